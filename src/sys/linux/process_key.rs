//! Which process is this? Asked at every step that a forked child must not take
//! for its parent, and answered without a system call.
//!
//! 1. The answer is kept in a page that a fork gives to the child full of zeros
//!    (`MADV_WIPEONFORK`, madvise(2), Linux 4.14): a child that has not looked
//!    yet finds nothing, however it was forked, and looks.
//! 2. The page is shown to other threads only once it is of that kind. A child
//!    forked before finds no page, and makes its own.
//! 3. Nothing is waited for: a fork may come while another thread is in here.
//! 4. Where there is no such page the kernel is asked each time.
//!
//! A child that shares its parent's memory (`vfork`) until it executes a program
//! is its parent, here as for all that Rust keeps in memory.

use super::files::call;
use super::wipe_page;

/// What tells a process from the children it forked: its id, and for the first
/// process of a pid namespace, whose children may be the first of another, the
/// namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ProcessKey {
    pub(crate) pid: u32,
    namespace: u64,
}

impl ProcessKey {
    fn look() -> Self {
        let pid = std::process::id();
        let namespace = if pid == 1 { pid_namespace().unwrap_or_default() } else { 0 };
        ProcessKey { pid, namespace }
    }
}

/// This process.
pub(crate) fn this_process() -> ProcessKey {
    let Some(page) = wipe_page::of_this_process() else {
        return ProcessKey::look(); // (4)
    };
    let look = || {
        let ProcessKey { pid, namespace } = ProcessKey::look();
        (pid, namespace)
    };
    let (pid, namespace) = page.get_or_look(look);
    ProcessKey { pid, namespace }
}

/// The inode of `/proc/self/ns/pid`.
pub(crate) fn pid_namespace() -> Option<u64> {
    call(|| rustix::fs::stat("/proc/self/ns/pid")).ok().map(|file| file.st_ino as _)
}

#[cfg(test)]
mod tests {
    #![allow(unsafe_code)]

    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::{ProcessKey, this_process, wipe_page};

    #[test]
    fn a_child_finds_itself_and_not_its_parent() {
        let parent = this_process();
        assert_eq!(parent, ProcessKey::look());
        assert!(wipe_page::of_this_process().is_some(), "(4) is for others");
        // SAFETY: the child only makes system calls, and ends.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
                assert_eq!(this_process(), parent);
            }
            ForkResult::Child => {
                let found = [this_process(), this_process()];
                let is_right = found == [ProcessKey::look(); 2] && found[0] != parent;
                // SAFETY: nothing of this process is needed any more.
                unsafe { nix::libc::_exit(i32::from(!is_right)) }
            }
        }
    }
}
