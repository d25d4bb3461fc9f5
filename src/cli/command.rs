//! CMD: how it is started, and what the lock says of it.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::Command;

use tokio::process::Child;

use super::exit::Failure;
use super::text::{printable, tell};
use crate::file::options::NOTE_MAX_BYTES;
use crate::sys::child;
use crate::sys::program::program_name;
use crate::sys::signals::Signals;

/// Start CMD as a shell does. `prepare` gives it what it needs of the lock.
pub(super) fn start(
    words: &[OsString],
    signals: &mut Signals,
    prepare: impl Fn(&mut Command),
) -> Result<Child, Failure> {
    let name = || printable(words[0].to_string_lossy());
    let started = child::start(words, prepare);
    let command = started.map_err(|error| Failure::to_start(&name(), &error))?;
    signals.spare(&command);
    // One that the terminal sent at this moment may have come before the
    // command was in its group. If not, this one comes on top of it, before
    // the command can have told them apart.
    while let Some(signal) = signals.already() {
        tell_if_failed(child::pass_on_anyway(&command, signal));
    }
    Ok(command)
}

/// CMD could not be sent something.
pub(super) fn tell_if_failed(sent: io::Result<()>) {
    if let Err(error) = sent {
        tell(error);
    }
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
}
