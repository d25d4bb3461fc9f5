//! What the kernel's three kinds of file locks do, seen on this machine.
//!
//! `cargo run --example kernel_locks` runs five tests for each of F_SETLK,
//! F_OFD_SETLK and flock, between real processes, and prints a table. It uses
//! the system calls, not this crate's locks: it is why they are as they are.

// A raw fork is one of the things that are tried.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use rustix::fs::FlockOperation;
use rustix::pipe::{PipeFlags, pipe_with};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Setlk,
    OfdSetlk,
    Flock,
}

const KINDS: [Kind; 3] = [Kind::Setlk, Kind::OfdSetlk, Kind::Flock];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Setlk => "F_SETLK",
            Kind::OfdSetlk => "F_OFD_SETLK",
            Kind::Flock => "flock",
        }
    }

    /// An exclusive lock of the whole file, without waiting; whether it was had.
    fn try_lock(self, file: &File) -> bool {
        let lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        match self {
            Kind::Setlk => fcntl(file, FcntlArg::F_SETLK(&lock)).is_ok(),
            Kind::OfdSetlk => fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).is_ok(),
            Kind::Flock => {
                rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
            }
        }
    }
}

fn open(path: &Path) -> File {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
    file.expect("a file")
}

/// Whether another process gets the lock at this moment.
fn another_process_gets_it(kind: Kind, path: &Path) -> bool {
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    let output = command.args(["try", kind.name()]).arg(path).output();
    output.expect("another process").stdout == b"yes\n"
}

/// Another process that has the lock until its standard input is closed.
fn holder(kind: Kind, path: &Path) -> std::process::Child {
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    command.args(["hold", kind.name()]).arg(path);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("another process");
    let mut line = String::new();
    let output = child.stdout.as_mut().expect("its output");
    BufReader::new(output).read_line(&mut line).expect("a line");
    assert_eq!(line, "yes\n", "it has the lock");
    child
}

type Test = (&'static str, fn(Kind, &Path) -> bool);

const TESTS: [Test; 5] = [
    ("two processes exclude each other", |kind, path| {
        let mut child = holder(kind, path);
        let is_excluded = !kind.try_lock(&open(path));
        child.kill().and_then(|()| child.wait()).expect("a child");
        is_excluded
    }),
    ("a killed holder's lock is free", |kind, path| {
        let mut child = holder(kind, path);
        child.kill().and_then(|()| child.wait()).expect("a child");
        kind.try_lock(&open(path))
    }),
    ("two opens in one process exclude each other", |kind, path| {
        let first = open(path);
        assert!(kind.try_lock(&first));
        let second = open(path);
        !kind.try_lock(&second)
    }),
    ("it survives the close of a second open of the file", |kind, path| {
        let first = open(path);
        assert!(kind.try_lock(&first));
        drop(open(path));
        !another_process_gets_it(kind, path)
    }),
    ("a forked child has it when the parent closes", |kind, path| {
        let file = open(path);
        assert!(kind.try_lock(&file));
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        let (reader, mut writer) = (File::from(reader), File::from(writer));
        // SAFETY: this process has one thread.
        match unsafe { fork() }.expect("a child") {
            ForkResult::Child => {
                drop(writer);
                // Until the parent is done.
                let _ = BufReader::new(reader).read_line(&mut String::new());
                std::process::exit(0);
            }
            ForkResult::Parent { child } => {
                drop((file, reader));
                let child_has_it = !another_process_gets_it(kind, path);
                writer.write_all(b"\n").expect("it reads");
                assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
                child_has_it
            }
        }
    }),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, kind, path] = arguments.as_slice() {
        let kind = KINDS.into_iter().find(|known| known.name() == kind).expect("a kind");
        let file = open(Path::new(path));
        println!("{}", if kind.try_lock(&file) { "yes" } else { "no" });
        if role == "hold" {
            let _ = std::io::stdin().read_line(&mut String::new());
        }
        return;
    }
    let directory = tempfile::TempDir::new().expect("a directory");
    let row = |what: &str, cells: [&str; 3]| {
        println!("| {what:<52} | {:<7} | {:<11} | {:<5} |", cells[0], cells[1], cells[2]);
    };
    row("", KINDS.map(Kind::name));
    println!("|{}|{}|{}|{}|", "-".repeat(54), "-".repeat(9), "-".repeat(13), "-".repeat(7));
    for (number, (what, test)) in TESTS.iter().enumerate() {
        let cell = |kind: Kind| {
            let path = directory.path().join(format!("{number} {}", kind.name()));
            if test(kind, &path) { "yes" } else { "NO" }
        };
        row(what, KINDS.map(cell));
    }
    let system = rustix::system::uname();
    println!("\nLinux {}, {}", system.release().to_string_lossy(), directory.path().display());
}
