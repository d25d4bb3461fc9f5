//! Programs, hosts and processes, as records name them.

use std::path::Path;

use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};

/// Longest program name in a record.
pub(crate) const NAME_MAX_BYTES: usize = 64;

/// Longest host name in a record, as Linux has it (`HOST_NAME_MAX`).
const HOST_MAX_BYTES: usize = 64;

/// The file stem of `argv[0]`: what openlock would record and look for.
pub(crate) fn my_name() -> String {
    let program = std::env::args_os().next().unwrap_or_default();
    let stem = Path::new(&program).file_stem().unwrap_or_default();
    program_name(&stem.to_string_lossy())
}

/// The command line of this process as `ps` shows it.
pub(crate) fn my_command_line() -> String {
    let words: Vec<_> =
        std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    words.join(" ")
}

/// A name as it may stand in a record: one line, not too long, never empty.
pub(crate) fn program_name(name: &str) -> String {
    let name = one_line(name, NAME_MAX_BYTES);
    if name.is_empty() { "unnamed".to_owned() } else { name }
}

/// A host name as it may stand in a record.
pub(crate) fn host_name(name: &str) -> String {
    one_line(name, HOST_MAX_BYTES)
}

pub(crate) fn one_line(text: &str, max_bytes: usize) -> String {
    let mut line = String::new();
    for character in text.chars().filter(|character| !character.is_control()) {
        if line.len() + character.len_utf8() > max_bytes {
            break;
        }
        line.push(character);
    }
    line.trim().to_owned()
}

pub(crate) fn command_line(pid: u32) -> String {
    let pid = sysinfo::Pid::from_u32(pid);
    let mut system = System::new();
    system.refresh_processes_specifics(
        ProcessesToUpdate::Some(&[pid]),
        false,
        ProcessRefreshKind::nothing().with_cmd(UpdateKind::Always),
    );
    let words = system.process(pid).map(|process| process.cmd().join(std::ffi::OsStr::new(" ")));
    words.unwrap_or_default().to_string_lossy().into_owned()
}
