//! CMD: how it is started, and what the lock says of it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Access, access};
use rustix::io::Errno;
use tokio::process::Child;

use super::exit::Failure;
use super::inherited;
use super::signals::{Signals, send};
use super::text::printable;
use crate::file::options::NOTE_MAX_BYTES;
use crate::sys::program::program_name;

/// What runs a file that the kernel cannot: `_PATH_BSHELL` of paths.h, as in execvp(3).
const SHELL: &str = "/bin/sh";

/// Start CMD as a shell does. `prepare` gives it what it needs of the lock.
pub(super) fn start(
    words: &[OsString],
    signals: &mut Signals,
    prepare: impl Fn(&mut Command),
) -> Result<Child, Failure> {
    let spawn = |mut command: Command| {
        prepare(&mut command);
        inherited::pass_on(&mut command);
        tokio::process::Command::from(command).spawn()
    };
    let started = match spawn(as_program(words)) {
        Err(error) if is_no_program(&error) => spawn(as_script(words)),
        started => started,
    };
    let name = || printable(words[0].to_string_lossy());
    let command = started.map_err(|error| Failure::to_start(&name(), &error))?;
    signals.spare(&command);
    // One that the terminal sent at this moment may have come before the
    // command was in its group. If not, this one comes on top of it, before
    // the command can have told them apart.
    while let Some(signal) = signals.already() {
        send(&command, signal.number);
    }
    Ok(command)
}

/// The lock could not be copied for CMD.
pub(super) fn no_copy(error: Errno) -> Failure {
    Failure::system("handing CMD the lock", &error.into())
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

/// The name of CMD in the lock file: its file stem, as of every holder.
pub(super) fn name(words: &[OsString]) -> String {
    let stem = Path::new(&words[0]).file_stem().unwrap_or_default();
    program_name(&stem.to_string_lossy())
}

/// The note of a lock without `--note`: CMD as it was given, if that says more than
/// its name. No arguments: passwords may be among them, and a lock file may be read by
/// more users, and for longer, than what ps(1) shows.
pub(super) fn note(words: &[OsString]) -> Option<String> {
    let program = printable(words[0].to_string_lossy());
    (program != name(words)).then(|| shortened(program))
}

/// The end of a path says more than its beginning.
fn shortened(text: String) -> String {
    const CUT: &str = "…";
    if text.len() <= NOTE_MAX_BYTES {
        return text;
    }
    let first = text.len() - (NOTE_MAX_BYTES - CUT.len());
    let first = (first..).find(|&index| text.is_char_boundary(index));
    format!("{CUT}{}", &text[first.expect("BUG: the end is a boundary")..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(program: &str) -> Vec<OsString> {
        vec![program.into(), "--password=secret".into()]
    }

    #[test]
    fn a_lock_shows_its_command_without_arguments() {
        let shown = |program: &str| (name(&words(program)), note(&words(program)));
        assert_eq!(shown("sleep"), ("sleep".to_owned(), None));
        assert_eq!(shown("./import.sh"), ("import".to_owned(), Some("./import.sh".to_owned())));
        assert_eq!(shown("/"), ("unnamed".to_owned(), Some("/".to_owned())));
        assert_eq!(shown("a\nb").1.as_deref(), Some("a\\nb"));
    }

    #[test]
    fn a_long_path_is_shown_by_its_end() {
        let long = format!("/{}/import", "é".repeat(200));
        let note = note(&words(&long)).unwrap();
        assert!(note.len() <= NOTE_MAX_BYTES && note.len() > NOTE_MAX_BYTES - 4, "{note}");
        assert!(note.starts_with("…é") && note.ends_with("é/import"), "{note}");
    }

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
