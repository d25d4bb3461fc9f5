//! `--at` and `LOCKKEEPER_AT`: a lock of any kind by its URL.
#![cfg(feature = "cli")]

mod cli_support;
mod support;

use cli_support::{code, lockkeeper, output, stdout};
use lockkeeper::{Guard, Lock, open};

/// CMD, and what it prints of its environment.
const SHOW: &str = "echo \"${LOCKKEEPER_PATH-none} ${LOCKKEEPER_HOLD_ID-none} \
                    ${LOCKKEEPER_FENCING_TOKEN-none} ${LOCKKEEPER_SERVER-none}\"";

#[test]
fn run_takes_the_lock_that_the_url_names() {
    let directory = support::on_tmpfs();
    let at = directory.path().display();
    for (url, file, has_id) in [
        (format!("{at}"), "job.lock", true),
        (format!("file://{at}?timeout=1s"), "job.lock", true),
        (format!("flock://{at}"), "job", false),
        (format!("ofd://{at}"), "job", false),
    ] {
        let mut command = lockkeeper();
        // As inside of the CMD of another.
        command.env("LOCKKEEPER_SERVER", "http://another").env("LOCKKEEPER_HOLD_ID", "another");
        let ran = output(command.args(["run", "--at", &url, "job", "--", "sh", "-c", SHOW]));
        assert_eq!(ran.status.code(), Some(0), "{url}: {ran:?}");
        let text = stdout(&ran);
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(words[0], format!("{at}/{file}"), "{url}");
        assert_eq!(words[1].len() == 32, has_id, "{url}: {words:?}");
        assert_eq!(words[2..], ["none", "none"], "{url}");
    }
}

#[tokio::test]
async fn status_and_run_see_what_the_library_holds() {
    let directory = support::on_tmpfs();
    for scheme in ["file", "flock", "ofd"] {
        let url = format!("{scheme}://{}", directory.path().display());
        let lock = open(&url).unwrap().lock("job").unwrap();
        let status = || {
            let mut command = lockkeeper();
            output(command.args(["status", "--json", "--at", &url, "job"]))
        };
        let guard = lock.acquire().await.unwrap();
        let held = status();
        assert_eq!(held.status.code(), Some(1), "{held:?}");
        let shown: serde_json::Value = serde_json::from_str(&stdout(&held)).unwrap();
        assert_eq!(shown[0]["state"], "held", "{shown}");
        assert_eq!(shown[0]["hold_id"].as_str(), guard.hold_id().as_deref());
        let mut again = lockkeeper();
        assert_eq!(code(again.args(["run", "-nq", "--at", &url, "job", "--", "true"])), 73);
        guard.release().await.unwrap();
        assert_eq!(status().status.code(), Some(0));
    }
}

#[test]
fn the_environment_names_a_place_where_no_argument_does() {
    let directory = support::on_tmpfs();
    let at = directory.path().display().to_string();
    let path = |arguments: &[&str]| {
        let mut command = lockkeeper();
        command.env("LOCKKEEPER_AT", format!("flock://{at}")).current_dir(&at);
        let ran = output(command.args(arguments).args(["--", "sh", "-c", SHOW]));
        assert_eq!(ran.status.code(), Some(0), "{ran:?}");
        stdout(&ran).split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(path(&["run", "job"]), format!("{at}/job"));
    assert_eq!(path(&["run", "--at", &at, "job"]), format!("{at}/job.lock"));
    assert_eq!(path(&["run", "--kernel", "ofd", "other"]), format!("{at}/other"));
}

#[test]
fn a_wrong_url_or_name_is_bad_usage() {
    for (url, name, word) in [
        ("zookeeper://host", "job", "zookeeper"),
        ("/run/lock", "a/b", "a/b"),
        ("flock:///run/lock?race_delay=1s", "job", "race_delay"),
    ] {
        let mut command = lockkeeper();
        let refused = output(command.args(["run", "--at", url, name, "--", "true"]));
        assert_eq!(refused.status.code(), Some(64), "{refused:?}");
        let text = String::from_utf8(refused.stderr).unwrap();
        assert!(text.contains(word), "{text}");
    }
}

/// An option that is not heard would let two in.
#[test]
fn an_option_that_does_not_go_with_the_environment_is_refused() {
    let directory = support::on_tmpfs();
    for flags in [
        &["--openlock-compat"][..],
        &["--pin", "required"],
        &["--tries", "3"],
        &["--race-delay", "1s"],
        &["--retry-period", "1s"],
    ] {
        let mut command = lockkeeper();
        command.env("LOCKKEEPER_AT", directory.path()).arg("run").args(flags);
        let refused = output(command.args(["job", "--", "true"]));
        assert_eq!(refused.status.code(), Some(64), "{flags:?}: {refused:?}");
        let text = String::from_utf8(refused.stderr).unwrap();
        assert!(text.contains(flags[0]) && text.contains("LOCKKEEPER_AT"), "{text}");
    }
}

#[tokio::test]
async fn break_and_watch_look_where_the_environment_says() {
    let directory = support::on_tmpfs();
    let guard = open(directory.path().to_str().unwrap()).unwrap().lock("job").unwrap();
    let guard = guard.acquire().await.unwrap();
    let mut command = lockkeeper();
    command.env("LOCKKEEPER_AT", directory.path()).current_dir("/");
    let refused = output(command.args(["break", "job"]));
    assert_eq!(refused.status.code(), Some(1), "a living holder: {refused:?}");
    guard.release().await.unwrap();
    let kernel = format!("flock://{}", directory.path().display());
    for verb in [&["break"][..], &["status", "--watch"]] {
        let mut command = lockkeeper();
        command.env("LOCKKEEPER_AT", &kernel);
        let refused = output(command.args(verb).arg("job"));
        assert_eq!(refused.status.code(), Some(64), "{refused:?}");
    }
    let mut command = lockkeeper();
    let unreadable = std::os::unix::ffi::OsStrExt::from_bytes(b"/\xff");
    command.env("LOCKKEEPER_AT", <std::ffi::OsStr>::to_owned(unreadable));
    assert_eq!(code(command.args(["run", "job", "--", "true"])), 64);
}

/// The file is removed before another can lock it, so the lock is released and not left to
/// CMD's children.
#[test]
fn a_kernel_lock_that_deletes_its_file_does_so_after_the_command() {
    let directory = support::on_tmpfs();
    let url = format!("flock://{}?delete_on_release=true", directory.path().display());
    let mut command = lockkeeper();
    assert_eq!(
        code(
            command
                .args(["run", "--at", &url, "job", "--", "test", "-e"])
                .arg(directory.path().join("job"))
        ),
        0
    );
    assert!(!directory.path().join("job").exists());
}

/// All are asked before one is answered. A server that is away costs the time of one wait.
#[cfg(feature = "lockd-client")]
#[test]
fn status_asks_for_all_names_together() {
    use std::io::{ErrorKind, Read};
    use std::net::TcpListener;

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("lockd+http://{}?reconnect=0", listener.local_addr().unwrap());
    let asked = std::thread::spawn(move || {
        let asked: Vec<_> = (0..3).map(|_| listener.accept().unwrap().0).collect();
        // One that was given up would be closed by now.
        for mut connection in &asked {
            connection.set_nonblocking(true).unwrap();
            loop {
                match connection.read(&mut [0; 4096]) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    read => assert!(read.unwrap() > 0, "one was asked after the other"),
                }
            }
        }
    });
    let mut command = lockkeeper();
    let shown = output(command.args(["status", "--json", "--at", &url, "c", "a", "b"]));
    asked.join().unwrap();
    assert_eq!(shown.status.code(), Some(69), "{shown:?}");
    let shown: serde_json::Value = serde_json::from_str(&stdout(&shown)).unwrap();
    let names: Vec<_> = shown.as_array().unwrap().iter().map(|one| &one["resource"]).collect();
    assert_eq!(names, ["c", "a", "b"]);
}
