//! A directory that does not outlive its test.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// Reads its input to the end of a line, or to its end when the test's process ends. A signal
/// from the terminal is not for it. What follows has the directory as `$1`.
const WAIT: &str = "trap '' HUP INT QUIT TERM\ncd /\nread -r _\n";

/// A directory with a process that removes it: once this is dropped, and when this process
/// ends in any way. What all tests of a program share is never dropped.
pub struct Guarded {
    path: PathBuf,
    guard: Child,
}

impl Guarded {
    /// `ending` is what the shell does at the end, up to the removal.
    pub fn new(directory: TempDir, ending: &str) -> Self {
        let (path, script) = (directory.keep(), format!("{WAIT}{ending}"));
        let mut guard = Command::new("sh");
        guard.args(["-c", &script, "guard"]).arg(&path).process_group(0);
        guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { guard: guard.spawn().expect("sh"), path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let told = self.guard.stdin.take().map(|mut input| writeln!(input));
        debug_assert!(told.is_some_and(|told| told.is_ok()));
        let _ = self.guard.wait();
    }
}
