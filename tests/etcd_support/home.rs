//! A directory for members.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::on_tmpfs;

/// Reads its input to the end, which comes with that of the test's process at the latest.
/// Then it removes the directory; a member that is being killed may still write to it. A
/// signal from the terminal is not for it.
const GUARD: &str = r#"
trap '' HUP INT QUIT TERM
cd /
read -r _
until rm -rf "$1"; do
    sleep 0.01
done
"#;

/// It is gone once this is dropped, and when this process ends in any way: what all tests of
/// a program share is never dropped.
pub struct Home {
    path: PathBuf,
    guard: Child,
}

impl Home {
    pub fn new() -> Self {
        let path = on_tmpfs().keep();
        let mut guard = Command::new("sh");
        guard.args(["-c", GUARD, "guard"]).arg(&path).process_group(0);
        guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { guard: guard.spawn().expect("sh"), path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}
