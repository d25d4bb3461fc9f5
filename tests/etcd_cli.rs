//! The command with locks that etcd keeps.

mod cli_support;
mod etcd_support;
mod server_support;
mod support;

use std::path::Path;
use std::process::{Command, Output};

use cli_support::{STAY, code, lockkeeper, output, stderr, stdout, text};
use etcd_support::{Cluster, Tls, Version, is_there};
use serde_json::Value;
use support::{Process, eventually, on_tmpfs};

/// Below it are the locks of these tests.
const PREFIX: &str = "jobs/";

fn url(cluster: &Cluster) -> String {
    format!("etcd://{}/jobs?reconnect=10s", cluster.endpoints())
}

/// The command, without what the environment of the tests says of etcd.
fn command(arguments: &[&str]) -> Command {
    let mut command = lockkeeper();
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ETCDCTL_") {
            command.env_remove(name);
        }
    }
    command.args(arguments);
    command
}

fn run(url: &str, flags: &[&str], script: &str) -> Command {
    let mut command = command(&["run", "--at", url]);
    command.args(flags).args(["import", "--", "sh", "-c", script]);
    command
}

/// `lockkeeper run`, once it holds the lock, until its standard input is closed.
fn holder(url: &str, flags: &[&str]) -> Process {
    let holder = Process::start(run(url, flags, STAY));
    holder.expect("inside");
    holder
}

/// A contender, once its key stands as the last of so many.
fn queued(cluster: &Cluster, command: Command, length: usize) -> Process {
    let contender = Process::start(command);
    eventually("it has its key", || cluster.keys("jobs/import/").len() == length);
    contender
}

/// `etcdctl lock`, which keeps the lock for as long as this file is there.
fn etcdctl_lock(cluster: &Cluster, file: &Path) -> Command {
    std::fs::write(file, "").expect("a file");
    let script = "echo @inside; while test -e \"$0\"; do sleep 0.02; done";
    let mut command = cluster.etcdctl_command(&["lock", "jobs/import", "--", "sh", "-c", script]);
    command.arg(file);
    command
}

fn status(url: &str, names: &[&str]) -> (Option<i32>, Value) {
    let shown = output(command(&["status", "--json", "--at", url]).args(names));
    (shown.status.code(), serde_json::from_slice(&shown.stdout).expect("JSON"))
}

/// `lockkeeper break`, and its exit code with what it says.
fn broken(url: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let broken = output(command(&["break", "--at", url]).args(arguments).arg("import"));
    (broken.status.code(), stdout(&broken) + &stderr(&broken))
}

#[track_caller]
fn refused(output: &Output, code: i32, words: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    for word in words {
        assert!(text.contains(word), "{text} lacks {word}");
    }
}

#[test]
fn run_holds_the_key_of_the_lock_and_tells_its_command_of_it() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let script = format!(
        "echo \"@$LOCKKEEPER_RESOURCE $LOCKKEEPER_SERVER $LOCKKEEPER_HOLD_ID \
         $LOCKKEEPER_FENCING_TOKEN ${{LOCKKEEPER_PATH-none}}\"; {STAY}"
    );
    let mut start = run(&url(&cluster), &["--note", "nightly"], &script);
    let mut holder = Process::start({
        start.env("LOCKKEEPER_PATH", "/of/another");
        start
    });
    let line = holder.next();
    let words: Vec<&str> = line.split(' ').collect();
    holder.expect("inside");
    assert_eq!(words[0], "import");
    assert_eq!(words[1], format!("etcd://{}/jobs/", cluster.endpoints()));
    let keys = cluster.keys("jobs/import/");
    assert_eq!(keys.len(), 1);
    assert_eq!(keys[0].key, format!("jobs/import/{}", words[2]));
    assert!(words[3].parse::<i64>().unwrap() >= keys[0].create_revision, "{line}");
    assert_eq!(words[4], "none");
    let (code, shown) = status(&url(&cluster), &["import"]);
    assert_eq!((code, shown[0]["state"].as_str()), (Some(1), Some("held")), "{shown}");
    assert_eq!(shown[0]["resource"], "import");
    assert_eq!(shown[0]["name"], "sh", "the name of CMD");
    assert_eq!(shown[0]["note"], "nightly");
    assert_eq!(shown[0]["hold_id"], words[2]);
    assert!(holder.wait().success());
    assert!(cluster.keys("jobs/import/").is_empty());
    assert_eq!(status(&url(&cluster), &["import"]).0, Some(0));
}

#[test]
fn run_waits_for_etcdctl_and_etcdctl_for_run() {
    if !is_there(Version::V3_4) {
        return;
    }
    let (cluster, directory) = (Cluster::start(1), on_tmpfs());
    let url = url(&cluster);
    let [log, first_stays, last_stays] =
        ["log", "first", "last"].map(|name| directory.path().join(name));
    let first = Process::start(etcdctl_lock(&cluster, &first_stays));
    first.expect("inside");
    assert_eq!(code(&mut run(&url, &["-nq"], "true")), 73);
    assert_eq!(code(&mut run(&url, &["-q", "--timeout", "100ms"], "true")), 73);
    let mut waiting = run(&url, &[], STAY);
    waiting.stderr(std::fs::File::create(&log).unwrap());
    let mut ours = queued(&cluster, waiting, 2);
    eventually("it says for whom it waits", || text(&log).contains("a client of etcd with"));
    let last = queued(&cluster, etcdctl_lock(&cluster, &last_stays), 3);
    ours.expect_quiet();
    std::fs::remove_file(first_stays).unwrap();
    ours.expect("inside");
    last.expect_quiet();
    assert!(ours.wait().success());
    last.expect("inside");
}

#[test]
fn status_shows_the_holder_its_lease_and_the_waiters_in_order() {
    if !is_there(Version::V3_4) {
        return;
    }
    let (cluster, directory) = (Cluster::start(3), on_tmpfs());
    let (url, stays) = (url(&cluster), directory.path().join("stays"));
    let holder = holder(&url, &["--note", "first"]);
    let second = queued(&cluster, run(&url, &["-q", "--note", "second"], STAY), 2);
    let _third = queued(&cluster, etcdctl_lock(&cluster, &stays), 3);
    let keys = cluster.keys("jobs/import/");
    let (code, shown) = status(&url, &["import", "export"]);
    assert_eq!(code, Some(1));
    assert_eq!(
        (&shown[0]["note"], shown[0]["pid"].as_u64()),
        (&"first".into(), Some(holder.id().into()))
    );
    assert_eq!(shown[0]["lease"], format!("{:x}", keys[0].lease));
    let waiters = shown[0]["waiters"].as_array().unwrap();
    assert_eq!(waiters.len(), 2, "{shown}");
    assert_eq!(
        (&waiters[0]["note"], waiters[0]["pid"].as_u64()),
        (&"second".into(), Some(second.id().into()))
    );
    let unnamed = format!("a client of etcd with the lease {:x}", keys[2].lease);
    assert_eq!(waiters[1]["name"], unnamed);
    assert_eq!((&shown[1]["resource"], &shown[1]["state"]), (&"export".into(), &"free".into()));
    assert_eq!(shown[1]["waiters"].as_array().map(Vec::len), Some(0));
    let printed = stdout(&output(&mut command(&["status", "--at", &url, "export", "import"])));
    let lines: Vec<&str> = printed.lines().collect();
    assert!(
        lines[0].contains("\"export\" at etcd://") && lines[0].ends_with(": free"),
        "{printed}"
    );
    assert!(lines[1].contains("held by sh (pid "), "{printed}");
    assert!(lines[1].contains(&format!("lease {:x}", keys[0].lease)), "{printed}");
    assert!(lines[2].starts_with("  then sh (pid ") && lines[2].contains("second"), "{printed}");
    assert_eq!(lines[3..], [format!("  then {unnamed}")]);
}

#[test]
fn break_asks_a_holder_that_listens() {
    if !is_there(Version::V3_4) {
        return;
    }
    let (cluster, directory) = (Cluster::start(1), on_tmpfs());
    let (url, stays) = (url(&cluster), directory.path().join("stays"));
    assert_eq!(broken(&url, &["--revoke"]).0, Some(0), "nobody holds it");
    let mut asked = holder(&url, &["-q"]);
    let mut next = queued(&cluster, run(&url, &["-q"], STAY), 2);
    let (code, said) = broken(&url, &["--revoke"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("asked sh (pid "), "{said}");
    next.expect("inside");
    assert_eq!(asked.wait().code(), Some(74));
    next.hang_up();
    assert!(next.wait().success());
    let foreign = Process::start(etcdctl_lock(&cluster, &stays));
    foreign.expect("inside");
    let (code, said) = broken(&url, &["--revoke"]);
    assert_eq!(code, Some(1), "{said}");
    let way = format!("--force {:x}", cluster.keys("jobs/import/")[0].lease);
    assert!(said.contains("cannot be asked") && said.contains(&way), "{said}");
}

/// It would be waited for for ever, and no lease ends it.
#[test]
fn a_key_without_a_lease_is_shown_with_what_to_do() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let url = url(&cluster);
    cluster.etcdctl(&["put", "jobs/import/for-ever", "\u{1b}[31m"]);
    refused(&output(&mut run(&url, &[], "true")), 69, &["jobs/import/for-ever", "no lease"]);
    let (code, shown) = status(&url, &["import"]);
    assert_eq!((code, &shown[0]["lease"]), (Some(1), &Value::Null));
    assert!(shown[0]["evidence"].as_str().unwrap().contains("jobs/import/for-ever"), "{shown}");
    for arguments in [&["--revoke"][..], &["--force", "7"]] {
        let (code, said) = broken(&url, arguments);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("delete its key with etcdctl"), "{said}");
    }
    assert_eq!(cluster.keys("jobs/import/").len(), 1);
}

#[test]
fn break_ends_the_hold_of_the_lease_that_is_named_and_no_other() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let url = url(&cluster);
    assert_eq!(broken(&url, &["--force", "7"]).0, Some(0), "it is free");
    let mut ended = holder(&url, &["-q"]);
    let next = queued(&cluster, run(&url, &["-q"], STAY), 2);
    let keys = cluster.keys("jobs/import/");
    let (code, said) = broken(&url, &["--force", &format!("{:x}", keys[1].lease)]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("--force {:x}", keys[0].lease)), "{said}");
    assert_eq!(cluster.keys("jobs/import/").len(), 2, "the waiter's lease ended nothing");
    let (code, said) = broken(&url, &["--force", &format!("{:x}", keys[0].lease)]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("ended the hold of sh (pid "), "{said}");
    next.expect("inside");
    assert_eq!(ended.wait().code(), Some(74), "its CMD was ended");
}

#[test]
fn break_refuses_what_a_kind_of_lock_cannot() {
    let directory = on_tmpfs();
    let at = directory.path().to_str().unwrap();
    let at_kernel = format!("flock://{at}");
    for (url, arguments, word) in [
        ("etcd://127.0.0.1:1/jobs", &[][..], "--force LEASE"),
        (at, &["--force", "7"], "for the locks of etcd"),
        (&at_kernel, &["--revoke"], "can be broken"),
        (&at_kernel, &[], "can be broken"),
        ("etcd://127.0.0.1:1/jobs", &["--force", "soon"], "hexadecimal"),
        ("etcd://127.0.0.1:1/jobs", &["--force", "7", "--revoke"], "cannot be used with"),
    ] {
        let (code, said) = broken(url, arguments);
        assert_eq!(code, Some(64), "{said}");
        assert!(said.contains(word), "{said}");
    }
}

#[test]
fn the_environment_names_the_place_and_the_members() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::start(1);
    let mut held = command(&["run", "import", "--", "sh", "-c", STAY]);
    held.env("LOCKKEEPER_AT", "etcd:///jobs").env("ETCDCTL_ENDPOINTS", cluster.endpoints());
    let held = Process::start(held);
    held.expect("inside");
    assert_eq!(cluster.keys("jobs/import/").len(), 1);
    let mut other = command(&["status", "import"]);
    other.env("LOCKKEEPER_AT", url(&cluster)).env("ETCDCTL_ENDPOINTS", "127.0.0.1:1");
    assert_eq!(code(&mut other), 1, "the host of the URL counts");
}

#[test]
fn a_cluster_that_cannot_be_reached_is_no_held_lock() {
    let url = "etcd://127.0.0.1:1,127.0.0.1:2/jobs?reconnect=0";
    refused(&output(&mut run(url, &[], "true")), 69, &["import", "127.0.0.1:1", "reached"]);
    refused(&output(&mut run(url, &["-n"], "true")), 69, &["reached"]);
    refused(&output(&mut command(&["status", "--at", url, "import"])), 69, &["reached"]);
    assert_eq!(broken(url, &["--revoke"]).0, Some(69));
    assert_eq!(broken(url, &["--force", "7"]).0, Some(69));
}

/// What a login with these gives: `run` with the lock `import` below this prefix.
fn logged_in(cluster: &Cluster, prefix: &str, query: &str, set: &[(&str, &str)]) -> Output {
    let url = format!("etcd://{}/{prefix}?reconnect=10s{query}", cluster.endpoints());
    let mut command = run(&url, &["-q"], "echo done");
    output(command.envs(set.iter().copied()))
}

#[test]
fn a_user_logs_in_and_no_password_is_printed() {
    if !is_there(Version::V3_4) {
        return;
    }
    let (mut cluster, directory) = (Cluster::start(1), on_tmpfs());
    cluster.enable_auth(PREFIX, "me", "hunter2");
    let file = |name: &str, password: &str| {
        let file = directory.path().join(name);
        std::fs::write(&file, password).unwrap();
        format!("&user=me&password_file={}", file.display())
    };
    let (right, wrong) = (file("right", "hunter2\n"), file("wrong", "hunter3\n"));
    for (query, set) in [
        (right.as_str(), &[][..]),
        ("", &[("ETCDCTL_USER", "me:hunter2")]),
        ("", &[("ETCDCTL_USER", "me"), ("ETCDCTL_PASSWORD", "hunter2")]),
        ("&user=me", &[("ETCDCTL_USER", "root:x"), ("ETCDCTL_PASSWORD", "hunter2")]),
        (&right, &[("ETCDCTL_PASSWORD", "hunter3")]),
    ] {
        let ran = logged_in(&cluster, "jobs", query, set);
        assert_eq!(stdout(&ran), "done\n", "{query} {set:?}: {ran:?}");
    }
    for (prefix, query, set) in [
        ("jobs", wrong.as_str(), &[][..]),
        ("jobs", "", &[("ETCDCTL_USER", "me:hunter3")]),
        ("jobs", "", &[]),
        ("other", &right, &[]),
    ] {
        let ran = logged_in(&cluster, prefix, query, set);
        refused(&ran, 69, &["import", "refused"]);
        assert!(!stderr(&ran).contains("hunter"), "{ran:?}");
    }
    let ran = logged_in(&cluster, "jobs", "", &[("ETCDCTL_PASSWORD", "hunter2")]);
    refused(&ran, 64, &["no user"]);
    assert!(!stderr(&ran).contains("hunter"), "{ran:?}");
}

#[test]
fn certificates_come_from_the_url_or_the_environment() {
    if !is_there(Version::V3_4) {
        return;
    }
    let cluster = Cluster::builder(1).tls(Tls::Mutual).start();
    let files = cluster.certificates();
    let [ca, cert, key] =
        [&files.ca, &files.client, &files.client_key].map(|file| Path::to_str(file).unwrap());
    let host = cluster.endpoints();
    let identity = format!("cert_file={cert}&key_file={key}");
    let all = [("ETCDCTL_CACERT", ca), ("ETCDCTL_CERT", cert), ("ETCDCTL_KEY", key)];
    let wrong = [("ETCDCTL_CACERT", "/none"), ("ETCDCTL_CERT", "/none"), ("ETCDCTL_KEY", "/none")];
    for (url, set) in [
        (format!("etcd+tls://{host}/jobs?ca_file={ca}&{identity}"), &[][..]),
        (format!("etcd+tls://{host}/jobs"), &all),
        // As etcdctl: files of certificates mean TLS.
        (format!("etcd://{host}/jobs"), &all),
        (format!("etcd+tls://{host}/jobs?ca_file={ca}&{identity}"), &wrong),
        (format!("etcd+tls://{host}/jobs?server_name=etcd.test"), &all),
    ] {
        let mut command = run(&url, &["-q"], "echo done");
        let ran = output(command.envs(set.iter().copied()));
        assert_eq!(stdout(&ran), "done\n", "{url} {set:?}: {ran:?}");
    }
    let untrusted = format!("etcd+tls://{host}/jobs?{identity}&reconnect=0");
    refused(&output(&mut run(&untrusted, &[], "true")), 69, &["trusted"]);
    let other = format!("etcd+tls://{host}/jobs?ca_file={ca}&{identity}&server_name=other.test");
    refused(&output(&mut run(&other, &[], "true")), 69, &["trusted"]);
    let plain = format!("etcd://{host}/jobs?reconnect=0");
    let ran = output(&mut run(&plain, &[], "true"));
    println!("{}", stderr(&ran));
    refused(&ran, 69, &["import"]);
}
