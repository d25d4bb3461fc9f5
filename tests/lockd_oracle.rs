//! Requests that were recorded against the original, played to the daemon.

mod lockd_support;

use std::collections::BTreeMap;
use std::path::Path;

use lockd_support::support::{on_tmpfs, role};
use lockd_support::{Answer, Client, Daemon, NIL, fault};
use serde_json::Value;

struct Case {
    group: u64,
    name: String,
    request_body: String,
    response_body: String,
    files_after: BTreeMap<String, String>,
}

impl Case {
    fn of(case: &Value) -> Self {
        let text = |name: &str| case[name].as_str().expect("a string").to_owned();
        let files = case["files_after"].as_object().expect("files").iter();
        let files =
            files.map(|(name, text)| (name.clone(), text.as_str().expect("text").to_owned()));
        Self {
            group: case["group"].as_u64().expect("a number"),
            name: text("name"),
            request_body: text("request_body"),
            response_body: text("response_body"),
            files_after: files.collect(),
        }
    }
}

/// What a case has instead, where ours is to differ.
enum Ours {
    Success,
    Fault(&'static str),
}

/// Cases in which the original shows a bug of its own, and the lock files that
/// are left here. `xmlrpc` in the documentation of the daemon lists them too.
fn differing(name: &str) -> Option<(Ours, &'static [(&'static str, &'static str)])> {
    let held_by_c = &[("rn.resource.lock", "c")];
    Some(match name {
        // There: an empty file that locks the resource. Here: nothing is locked.
        "none-client" => (Ours::Fault("the client must be a string, not nil"), &[]),
        "none-client-then-lock" => (Ours::Success, held_by_c),
        "none-client-unlock-none" => {
            (Ours::Fault("Resource locked by 'c' cannot be unlocked by None"), held_by_c)
        }
        "none-client-unlock-empty" => {
            (Ours::Fault("Resource locked by 'c' cannot be unlocked by ''"), held_by_c)
        }
        // There: a client whose name begins with a blank cannot unlock.
        "client-repr-6-unlock-own" => (Ours::Success, &[]),
        "client-repr-6-unlock-by-it" => (Ours::Fault("Resource not locked"), &[]),
        _ => return None,
    })
}

const PREFIX: &str = "<class 'Exception'>:";

#[test]
fn every_recorded_case_is_answered_with_the_same_meaning() {
    if let Some((role, path)) = role() {
        return lockd_support::play(&role, &path);
    }
    let recorded: Value =
        serde_json::from_str(include_str!("lockd/recorded.json")).expect("the recorded cases");
    let cases: Vec<Case> =
        recorded["cases"].as_array().expect("cases").iter().map(Case::of).collect();
    assert_eq!(cases.len(), 77);
    for group in cases.chunk_by(|one, next| one.group == next.group) {
        let directory = on_tmpfs();
        let test = "every_recorded_case_is_answered_with_the_same_meaning";
        let daemon = Daemon::start(test, "", directory.path());
        let mut kept = daemon.connect();
        for case in group {
            play(case, &daemon, &mut kept);
            check_files(case, directory.path());
        }
    }
}

fn play(case: &Case, daemon: &Daemon, kept: &mut Client) {
    if case.name == "get" {
        let mut client = daemon.connect();
        client.send("GET /RPC2 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
        let status = client.answer().status;
        assert!((400..600).contains(&status), "a GET was answered with {status}");
        return;
    }
    let body = case.request_body.as_bytes();
    let answer = match case.name.as_str() {
        "no-content-type" => daemon.connect().post("/RPC2", &[], body),
        "content-type-json" => {
            daemon.connect().post("/RPC2", &[("Content-Type", "application/json")], body)
        }
        "path-root" => daemon.connect().post("/", &[("Content-Type", "text/xml")], body),
        _ => kept.post("/RPC2", &[("Content-Type", "text/xml")], body),
    };
    check_answer(case, &answer);
}

fn check_answer(case: &Case, answer: &Answer) {
    let name = &case.name;
    assert_eq!(answer.status, 200, "{name}");
    assert_eq!(answer.head.get("content-type").map(String::as_str), Some("text/xml"), "{name}");
    let answered = answer.text();
    if let Some((ours, _)) = differing(name) {
        match ours {
            Ours::Success => assert_eq!(answered, NIL, "{name}"),
            Ours::Fault(text) => {
                assert_eq!(fault(&answered), Some(format!("{PREFIX}{text}")), "{name}");
            }
        }
        return;
    }
    match fault(&case.response_body) {
        // Python spoke there: a fault too, and with a text of our own.
        Some(theirs) if !theirs.starts_with(PREFIX) => {
            let ours = fault(&answered).unwrap_or_else(|| panic!("{name}: {answered}"));
            println!("{name}: {theirs} -> {ours}");
            let text = ours.strip_prefix(PREFIX).expect("the type of a fault");
            assert!(text.len() > 10 && !text.contains("wrapped()"), "{name}: {text}");
        }
        // To the byte.
        _ => assert_eq!(answered, case.response_body, "{name}"),
    }
}

fn check_files(case: &Case, directory: &Path) {
    let mut found = BTreeMap::new();
    for entry in directory.read_dir().expect("the directory") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("a name in UTF-8");
        if name.ends_with(".resource.lock") {
            // The file was recorded byte by byte.
            let bytes = std::fs::read(entry.path()).expect("a lock file");
            found.insert(name, bytes.into_iter().map(char::from).collect::<String>());
        }
    }
    let ours = differing(&case.name).map(|(_, files)| {
        files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    });
    assert_eq!(found, ours.unwrap_or_else(|| case.files_after.clone()), "{}", case.name);
}
