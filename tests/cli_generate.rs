//! `lockkeeper generate`: manual pages and completions, for packages.

#![cfg(feature = "cli")]

mod cli_support;
mod support;

use std::fs;
use std::process::Command;

use cli_support::{code, lockkeeper, output, stderr, stdout};
use support::{names_in, on_tmpfs};

#[test]
fn each_verb_has_a_page_that_shows_what_its_help_shows() {
    let directory = on_tmpfs();
    assert_eq!(code(lockkeeper().arg("generate").arg(directory.path())), 0);
    let pages: Vec<String> =
        names_in(directory.path()).into_iter().filter(|name| name.ends_with(".1")).collect();
    for page in ["lockkeeper.1", "lockkeeper-run.1", "lockkeeper-status.1", "lockkeeper-break.1"] {
        assert!(pages.contains(&page.to_owned()), "{page} in {pages:?}");
    }
    assert!(!pages.iter().any(|page| page.contains("generate")), "{pages:?}");
    let help = stdout(&output(lockkeeper().args(["run", "--help"])));
    let page = fs::read_to_string(directory.path().join("lockkeeper-run.1")).expect("a page");
    let page = page.replace("\\-", "-");
    // Of options, and of the text behind them with its columns.
    for line in help.lines().skip_while(|line| !line.starts_with("Examples:")) {
        assert!(page.lines().any(|other| other == line), "{line:?} is not in the page");
    }
    for option in ["--timeout", "--try", "--on-lost", "--kernel"] {
        assert!(help.contains(option) && page.contains(option), "{option}");
    }
}

#[test]
fn bash_completes_verbs() {
    let directory = on_tmpfs();
    assert_eq!(code(lockkeeper().arg("generate").arg(directory.path())), 0);
    let names = names_in(directory.path());
    assert!(
        names.contains(&"_lockkeeper".to_owned()) && names.contains(&"lockkeeper.fish".to_owned())
    );
    let script = "source lockkeeper.bash; COMP_WORDS=(lockkeeper ru) COMP_CWORD=1; \
                  _lockkeeper lockkeeper ru lockkeeper; echo \"${COMPREPLY[*]}\"";
    let mut bash = Command::new("bash");
    bash.args(["-c", script]).current_dir(directory.path());
    assert_eq!(String::from_utf8_lossy(&output(&mut bash).stdout).trim(), "run");
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let failed = output(lockkeeper().args(["generate", "/proc/none"]));
    assert_eq!(failed.status.code(), Some(69));
    assert!(stderr(&failed).contains("/proc/none"));
}
