//! What Unix does for a worker and its conductor.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Child;

use nix::fcntl::{OFlag, open};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

/// Whether a process can be stopped and go on.
pub const HAS_STOPS: bool = true;

pub fn directory() -> PathBuf {
    Path::new("/dev/shm").to_owned()
}

/// A worker ends with its conductor.
pub fn end_with_parent() {
    set_pdeathsig(Signal::SIGKILL).expect("a worker ends with its conductor");
}

pub fn stop(child: &Child) {
    signal(child, Signal::SIGSTOP);
}

pub fn go_on(child: &Child) {
    signal(child, Signal::SIGCONT);
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
    // It may have ended by itself, which is found elsewhere.
    let _ = kill(pid, signal);
}

/// In one step, where nothing may be.
pub fn make_sign(path: &Path, text: &str) -> io::Result<()> {
    symlink(text, path)
}

pub fn read_sign(path: &Path) -> io::Result<String> {
    std::fs::read_link(path).map(|target| target.to_string_lossy().into_owned())
}

pub fn remove_sign(path: &Path) -> io::Result<()> {
    std::fs::remove_file(path)
}

pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset)
}

pub fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(bytes, offset)
}

/// Whether a candidate needs a name here.
pub fn has_unnamed_files(directory: &Path) -> bool {
    cfg!(not(lockkeeper_generic_unix))
        && open(directory, OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::S_IRUSR)
            .is_ok()
}
