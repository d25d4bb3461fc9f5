//! A directory for servers, and the guarantee that nothing of them outlives a test.

use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::programs::{programs, user};
use crate::server_support::Guarded;
use crate::support::{on_disk, on_tmpfs};

/// Kills every process below the directory, which finds those as well whose postmaster was
/// killed, and stopped ones. At last it removes shared memory and the directory.
const ENDING: &str = r#"
below() {
    find /proc/[0-9]*/cwd -maxdepth 0 -lname "$1/*" 2>/dev/null | cut -d / -f 3
}
while pids=$(below "$1") && [ -n "$pids" ]; do
    kill -KILL $pids 2>/dev/null
    sleep 0.01
done
for pid_file in "$1"/*/postmaster.pid; do
    [ -e "$pid_file" ] && ipcrm --shmem-id "$(awk 'NR == 7 { print $2 }' "$pid_file")"
done
rm -rf "$1"
"#;

/// A directory of the servers' user, on tmpfs unless said otherwise. With it ends every process
/// whose working directory is below it, however the test or its process ends.
pub struct Home(Guarded);

impl Home {
    pub fn new() -> Self {
        Self::of(on_tmpfs())
    }

    /// With real costs of a commit.
    pub fn on_disk() -> Self {
        Self::of(on_disk())
    }

    fn of(directory: TempDir) -> Self {
        give(directory.path());
        Self(Guarded::new(directory, ENDING))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A directory in it, and the command that runs a program there.
    pub fn command(&self, directory: &str, program: &Path) -> Command {
        let directory = self.path().join(directory);
        if !directory.exists() {
            // PostgreSQL takes no data that others may read.
            DirBuilder::new().mode(0o700).create(&directory).expect("a directory");
            give(&directory);
        }
        let mut command = programs().command(program);
        command.current_dir(directory).stdin(Stdio::null());
        command
    }

    /// Runs a program to its end, in `directory`.
    #[track_caller]
    pub fn run(&self, directory: &str, program: &str, arguments: &[&str]) {
        let mut command = self.command(directory, &programs().postgres(program));
        let output = command.args(arguments).output().expect("a program of PostgreSQL");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {said}");
    }

    /// A file of the servers' user, which only it may read.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, text).expect("a file");
        crate::support::chmod(&path, 0o600);
        give(&path);
        path
    }
}

/// Makes it the servers' user's.
pub fn give(path: &Path) {
    if let Some(user) = user() {
        chown(path, Some(user), Some(user)).expect("root may give files");
    }
}
