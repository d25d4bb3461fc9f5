//! Values of which each process has one: a forked child does not find its parent's.

use std::mem;
use std::sync::OnceLock;

use crate::sys::process_key::{ProcessKey, this_process};

/// Reading takes no lock, so a child that was forked in the middle of it can read.
/// The child drops nothing of what its parent had.
pub(crate) struct PerProcess<T>(OnceLock<Box<Node<T>>>);

/// Behind the parent's value is the child's.
struct Node<T> {
    process: ProcessKey,
    /// Always there, but in [`Drop`].
    value: Option<T>,
    next: PerProcess<T>,
}

impl<T> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// What this process has, if it was made.
    pub(crate) fn get(&self) -> Option<&T> {
        let process = this_process();
        let mut node = self.0.get();
        while let Some(found) = node {
            if found.process == process {
                return found.value.as_ref();
            }
            node = found.next.0.get();
        }
        None
    }

    /// # Errors
    /// Those of `make`.
    pub(crate) fn get_or_make<E>(&self, make: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        if let Some(value) = self.get() {
            return Ok(value);
        }
        let (process, value) = (this_process(), Some(make()?));
        self.append(Box::new(Node { process, value, next: Self::new() }));
        Ok(self.get().expect("BUG: a value of this process was lost"))
    }

    /// Unless another thread of this process was first.
    fn append(&self, mut node: Box<Node<T>>) {
        let mut end = &self.0;
        while let Err(refused) = end.set(node) {
            let there = end.get().expect("BUG: a full cell is empty");
            if there.process == refused.process {
                return;
            }
            (node, end) = (refused, &there.next.0);
        }
    }
}

impl<T> Drop for Node<T> {
    fn drop(&mut self) {
        if self.process != this_process() {
            mem::forget(self.value.take());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(unsafe_code)]

    use std::convert::Infallible;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::*;

    #[test]
    fn a_forked_child_neither_finds_nor_drops_what_its_parent_has() {
        static IS_DROPPED: AtomicBool = AtomicBool::new(false);
        struct Value;
        impl Drop for Value {
            fn drop(&mut self) {
                IS_DROPPED.store(true, Ordering::Relaxed);
            }
        }
        let values = PerProcess::new();
        assert!(values.get_or_make(|| Ok::<_, Infallible>(Value)).is_ok());
        // SAFETY: the child only makes system calls, and ends.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
                drop(values);
                assert!(IS_DROPPED.load(Ordering::Relaxed));
            }
            ForkResult::Child => {
                let is_found = values.get().is_some();
                drop(values);
                let is_wrong = is_found || IS_DROPPED.load(Ordering::Relaxed);
                // SAFETY: nothing of this process is needed any more.
                unsafe { nix::libc::_exit(i32::from(is_wrong)) }
            }
        }
    }

    #[test]
    fn it_is_made_once_whatever_thread_comes_first() {
        static MADE: PerProcess<u32> = PerProcess::new();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        assert_eq!(MADE.get(), None);
        let make = || Ok::<_, Infallible>(NUMBER.fetch_add(1, Ordering::Relaxed));
        let get = move || *MADE.get_or_make(make).unwrap();
        let threads: Vec<_> = (0..8).map(|_| std::thread::spawn(get)).collect();
        let found: Vec<u32> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(found.iter().all(|number| Some(number) == MADE.get()), "{found:?}");
    }
}
