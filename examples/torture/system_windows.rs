//! What Windows does for a worker and its conductor.

use std::fs::{self, File};
use std::io;
use std::os::windows::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicU64, Ordering};

/// Whether a process can be stopped and go on.
pub const HAS_STOPS: bool = false;

pub fn directory() -> PathBuf {
    std::env::temp_dir()
}

/// A worker ends soon after its conductor, when it has read all of its standard input.
pub fn end_with_parent() {}

pub fn stop(_: &Child) {}

pub fn go_on(_: &Child) {}

/// A name that no other file has.
fn beside(path: &Path) -> PathBuf {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let number = LAST.fetch_add(1, Ordering::Relaxed);
    path.with_extension(format!("{}.{number}", std::process::id()))
}

/// In one step, where nothing may be: a second name of a file that is complete.
pub fn make_sign(path: &Path, text: &str) -> io::Result<()> {
    let complete = beside(path);
    fs::write(&complete, text)?;
    let made = fs::hard_link(&complete, path);
    fs::remove_file(&complete)?;
    made
}

pub fn read_sign(path: &Path) -> io::Result<String> {
    fs::read_to_string(path)
}

/// Its name is free at once, also while the conductor reads it.
pub fn remove_sign(path: &Path) -> io::Result<()> {
    let aside = beside(path);
    fs::rename(path, &aside)?;
    fs::remove_file(aside)
}

pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    match file.seek_write(bytes, offset)? {
        written if written == bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

pub fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    match file.seek_read(bytes, offset)? {
        read if read == bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Whether a candidate needs a name here.
pub fn has_unnamed_files(_: &Path) -> bool {
    false
}
