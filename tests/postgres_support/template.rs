//! The data of a new server. Making it takes a second, so it is made once for each build
//! directory and user, and copied.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::geteuid;
use rustix::fs::{FlockOperation, flock};

use super::home::Home;
use super::programs::programs;
use super::server::{PASSWORD, ROLE};

/// Puts the data of a new server into `home`. All copies have one system identifier, as all
/// servers restored from one backup have.
pub fn copy(home: &Home) {
    cp(&template(), &home.path().join("data"));
}

/// The same with a system identifier of its own.
pub fn make(home: &Home) {
    // Small segments: a new server writes one in full.
    let how = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"];
    let more = ["--wal-segsize=1", "--no-sync", "--no-instructions", "--pgdata=."];
    home.run("data", "initdb", &[how, more].concat());
    let mut command = home.command("data", &programs().postgres("postgres"));
    command.args(["--single", "-D", ".", "postgres"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut single = command.spawn().expect("postgres");
    let role = format!("create role {ROLE} login password '{PASSWORD}'\n");
    single.stdin.take().expect("its input").write_all(role.as_bytes()).expect("it listens");
    let output = single.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn template() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let name = format!("postgres-template-{}-{}", programs().version, geteuid());
    let lock = File::create(directory.join("postgres-template.lock")).expect("a lock file");
    // Another test program may be making it.
    flock(&lock, FlockOperation::LockExclusive).expect("a lock");
    let template = directory.join(&name);
    if !template.exists() {
        let (home, new) = (Home::new(), directory.join(format!("{name}.new")));
        make(&home);
        let _ = std::fs::remove_dir_all(&new);
        cp(&home.path().join("data"), &new);
        std::fs::rename(new, &template).expect("its name");
    }
    template
}

/// Keeps the owner.
fn cp(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status().expect("cp");
    assert!(copied.success(), "{} is copied to {}", from.display(), to.display());
}
