//! The signals that this process inherited as ignored, and how CMD inherits them too.
//!
//! flock(1), nohup(1), env(1) and nice(1) leave signals as they are: what was ignored
//! when they started is ignored in the command. Two things of Rust's stand in the way
//! of that. Before `main`, SIGPIPE is made an ignored signal, whatever it was. And a
//! child gets SIGPIPE with its default action. So the disposition of SIGPIPE is looked
//! at before Rust does, and given back between `fork` and `exec`.

// Neither std nor nix asks for a disposition without setting one; a function that
// runs before Rust does, and one that runs in the child, are promises to keep.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use nix::sys::signal::{SigHandler, Signal, signal};

static PIPE_WAS_IGNORED: AtomicBool = AtomicBool::new(false);

/// The C library calls this before `main`.
#[used]
// SAFETY: the section is a list of such functions, ld(1).
#[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__mod_init_func"))]
#[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".init_array"))]
static BEFORE_MAIN: extern "C" fn() = look;

/// Runs before Rust is ready: one system call, and nothing that needs Rust's runtime.
extern "C" fn look() {
    PIPE_WAS_IGNORED.store(is_ignored(libc::SIGPIPE), Ordering::Relaxed);
}

/// Whether this signal is ignored at the moment. Needs no `/proc`.
pub(super) fn is_ignored(number: i32) -> bool {
    let mut found = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action sigaction(2) only fills in what is there.
    let asked = unsafe { libc::sigaction(number, ptr::null(), found.as_mut_ptr()) };
    // SAFETY: it has filled it in.
    asked == 0 && unsafe { found.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Let `command` start with the signals ignored that were when this process started.
/// The others need nothing: ignored signals stay ignored over `exec`, a handler ends.
pub(super) fn pass_on(command: &mut Command) {
    let is_ignored = PIPE_WAS_IGNORED.load(Ordering::Relaxed);
    let restore = move || match is_ignored {
        // SAFETY: no handler is set.
        true => unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) }
            .map(drop)
            .map_err(io::Error::from),
        false => Ok(()),
    };
    // SAFETY: between fork and exec it makes one system call and allocates nothing.
    unsafe { command.pre_exec(restore) };
}
