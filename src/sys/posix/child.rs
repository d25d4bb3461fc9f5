//! CMD: how it is started, what it inherits, and how it ends.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use rustix::fs::{Access, access};
use rustix::io::Errno;
use rustix::process::{Signal, kill_process};
use tokio::process::Child;

use super::files::BorrowedFile;
use super::inherited;
use super::signals::Arrived;

/// What runs a file that the kernel cannot: `_PATH_BSHELL` of paths.h, as in execvp(3).
const SHELL: &str = "/bin/sh";

/// For `run --help`.
pub(crate) const ABOUT: &str = "\
CMD:
  It is found and started as by a shell: a script without #! is run by /bin/sh.
  While it runs, the lock file shows its name and lockkeeper's process id; a
  signal to that process reaches CMD. Arguments are not shown, as passwords may
  be among them; --note adds what should be seen.
  The lock ends with CMD. What CMD left running in the background does not keep
  it, unless lockkeeper was killed. With --kernel flock or ofd it does keep it, as
  under flock(1), until it ends or closes the file; --close turns that off.";

/// Start CMD as a shell does. `prepare` gives it what it needs.
pub(crate) fn start(words: &[OsString], prepare: impl Fn(&mut Command)) -> io::Result<Child> {
    let spawn = |mut command: Command| {
        prepare(&mut command);
        inherited::pass_on(&mut command);
        tokio::process::Command::from(command).spawn()
    };
    match spawn(as_program(words)) {
        Err(error) if is_no_program(&error) => spawn(as_script(words)),
        started => started,
    }
}

fn as_program(words: &[OsString]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}

/// glibc's execvp has tried the shell by itself and never says this. musl's does.
fn is_no_program(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOEXEC.raw_os_error())
}

/// A script without `#!`.
fn as_script(words: &[OsString]) -> Command {
    let mut command = Command::new(SHELL);
    command.arg(found(&words[0], std::env::var_os("PATH").as_deref())).args(&words[1..]);
    command
}

/// The file that execvp(3) finds: a name without a slash is looked for in `PATH`.
fn found(program: &OsStr, path: Option<&OsStr>) -> PathBuf {
    let is_path = program.as_bytes().contains(&b'/');
    let directories = path.filter(|_| !is_path).into_iter().flat_map(std::env::split_paths);
    let is_program = |file: &PathBuf| file.is_file() && access(file, Access::EXEC_OK).is_ok();
    directories.map(|directory| directory.join(program)).find(is_program).unwrap_or(program.into())
}

/// Replace this program by itself under another `argv[0]`; why that failed.
pub(crate) fn start_again_as(
    program: &OsStr,
    name: &str,
    arguments: impl Iterator<Item = OsString>,
) -> io::Error {
    let mut again = Command::new(program);
    inherited::pass_on(&mut again);
    again.arg0(name).args(arguments).exec()
}

/// What carries the lock on in CMD, if this process is killed.
#[derive(Default)]
pub(crate) struct Carrier(Option<OwnedFd>);

impl Carrier {
    /// A copy of the open file that carries the lock, if one does. A copy is not closed by
    /// `exec`. Whether the lock ends with this process does not matter.
    pub(crate) fn new(lock: Option<BorrowedFile<'_>>, _: bool) -> io::Result<Self> {
        Ok(Self(lock.map(rustix::io::dup).transpose()?))
    }

    /// CMD has its copy. Ours is closed before anything else is started.
    pub(crate) fn is_handed_over(&mut self) {
        self.0 = None;
    }
}

/// A signal that this process got, unless CMD got it as well.
pub(crate) fn pass_on(command: &Child, signal: Arrived) -> io::Result<()> {
    if signal.is_for_all { Ok(()) } else { pass_on_anyway(command, signal) }
}

/// A signal that this process got, and CMD perhaps as well.
pub(crate) fn pass_on_anyway(command: &Child, signal: Arrived) -> io::Result<()> {
    send(command, signal.number)
}

/// SIGTERM.
pub(crate) fn ask_to_end(command: &mut Child) -> io::Result<()> {
    send(command, Signal::TERM.as_raw())
}

/// SIGKILL.
pub(crate) fn kill(command: &mut Child) -> io::Result<()> {
    send(command, Signal::KILL.as_raw())
}

/// The number of a command that is gone is not used: `id` knows that.
fn send(command: &Child, number: i32) -> io::Result<()> {
    let pid = command
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(rustix::process::Pid::from_raw);
    let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(number)) else {
        return Ok(());
    };
    kill_process(pid, signal).map_err(|error| {
        let why = format!("signal {number} could not be passed on to CMD: {error}");
        io::Error::new(io::Error::from(error).kind(), why)
    })
}

/// The code that a shell has for the end of its command: of a signal, 128 and its number.
pub(crate) fn code(status: ExitStatus) -> u32 {
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(number)) => 128 + number,
        (None, None) => i32::from(u8::MAX),
    };
    u8::try_from(code).unwrap_or(u8::MAX).into()
}

/// How this process ends with such a code.
pub(crate) fn exit_code(code: u32) -> std::process::ExitCode {
    u8::try_from(code).unwrap_or(u8::MAX).into()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_script_is_found_where_execvp_finds_it() {
        let directory = tempfile::TempDir::new().unwrap();
        let (one, two) = (directory.path().join("one"), directory.path().join("two"));
        for (place, mode) in [(&one, 0o644), (&two, 0o755)] {
            use std::os::unix::fs::PermissionsExt;
            std::fs::create_dir(place).unwrap();
            std::fs::write(place.join("job"), "exit 3").unwrap();
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(place.join("job"), permissions).unwrap();
        }
        let path = std::env::join_paths([&one, &two]).unwrap();
        assert_eq!(found("job".as_ref(), Some(&path)), two.join("job"));
        assert_eq!(found("./job".as_ref(), Some(&path)), Path::new("./job"));
        assert_eq!(found("job".as_ref(), None), Path::new("job"));
    }
}
