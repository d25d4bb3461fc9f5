//! The real libpq, by Python.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

pub(super) type Said = BTreeMap<String, String>;

/// What libpq makes of each text; `None` where it refuses it. Nothing at all where there is
/// no libpq, which is printed.
pub(super) fn ask(what: &str, texts: &[&str], set: &[(&str, &str)]) -> Option<Vec<Option<Said>>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/postgres_access/libpq.py");
    static IS_THERE: LazyLock<bool> = LazyLock::new(|| {
        let mut python = Command::new("python3");
        python.args(["-c", "import ctypes; ctypes.CDLL('libpq.so.5')"]).stderr(Stdio::null());
        python.status().is_ok_and(|status| status.success())
    });
    if !*IS_THERE {
        println!("skipped: python3 or libpq.so.5 is not there: run tests/setup.sh");
        return None;
    }
    let mut command = Command::new("python3");
    command.arg(script).arg(what).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command.env("HOME", "/nonexistent").envs(set.iter().copied());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let lines: String = texts
        .iter()
        .map(|text| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n")
        .collect();
    // It answers while it reads.
    let writer = std::thread::spawn(move || input.write_all(lines.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let said: Vec<_> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(said.len(), texts.len(), "libpq.py ended early");
    Some(said)
}
