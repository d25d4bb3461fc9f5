//! A directory of the daemon that has lost something, and a disk that fails: what is
//! told, and that nothing is made up.

#[path = "cli_support/mod.rs"]
mod cli_support;
mod lockd_support;
mod strace_support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use cli_support::lockkeeper;
use lockd_support::support::{self, eventually, on_tmpfs};
use lockd_support::{Client, with_last_words};
use rustix::process::Signal;
use serde_json::{Value, json};
use strace_support::Faults;
use tempfile::TempDir;

/// `lockkeeper serve`, which syncs; killed when dropped.
struct Daemon {
    child: Child,
    address: SocketAddr,
    log: TempDir,
}

/// A daemon that did not start: its exit code, and what it said.
type Refused = (i32, String);

impl Daemon {
    fn try_start(directory: &Path, flags: &[&str]) -> Result<Self, Refused> {
        Self::try_start_by(lockkeeper(), directory, flags)
    }

    fn try_start_by(
        mut command: Command,
        directory: &Path,
        flags: &[&str],
    ) -> Result<Self, Refused> {
        command.args(["serve", "--listen", "127.0.0.1:0", "--dir"]).arg(directory).args(flags);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        // It says at its end why it does not start.
        with_last_words(|| match Self::start_once(&mut command) {
            Err((code, said)) if said.is_empty() => Err(format!("none, and it ended with {code}")),
            started => Ok(started),
        })
    }

    fn start_once(command: &mut Command) -> Result<Self, Refused> {
        let log = on_tmpfs();
        command.stderr(fs::File::create(log.path().join("log")).expect("a log"));
        let mut child = command.spawn().expect("a daemon");
        let mut url = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("its output"));
        output.read_line(&mut url).expect("a line, or none");
        let Some(address) = url.trim().strip_prefix("http://") else {
            let code = child.wait().expect("it ends").code().expect("by itself");
            return Err((code, said(&log)));
        };
        let address = address.parse().expect("an address");
        Ok(Self { child, address, log })
    }

    #[track_caller]
    fn start(directory: &Path, flags: &[&str]) -> Self {
        Self::try_start(directory, flags).unwrap_or_else(|refused| panic!("{refused:?}"))
    }

    /// Its log, once this is in it: it is written behind its back.
    #[track_caller]
    fn said(&self, expected: &str) -> String {
        eventually(expected, || said(&self.log).contains(expected));
        said(&self.log)
    }

    /// All of its log up to now, after it was stopped.
    fn said_in_all(mut self) -> String {
        // What stands before this in the log is not lost by a busy machine.
        self.signal(Signal::USR1);
        self.said("means nothing to a daemon");
        self.stop();
        said(&self.log)
    }

    fn kill(mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    fn stop(&mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.ended(), 0);
    }

    fn signal(&self, signal: Signal) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).expect("it runs");
    }

    /// It ends by itself.
    fn ended(&mut self) -> i32 {
        eventually("it ends", || self.child.try_wait().expect("its status").is_some());
        self.child.wait().expect("its status").code().expect("by itself")
    }

    fn post(&self, resource: &str, verb: &str, body: &Value) -> (u16, Value) {
        let path = format!("/v1/locks/{resource}/{verb}");
        let head = [("Content-Type", "application/json")];
        let answer = Client::connect(self.address).post(&path, &head, body.to_string().as_bytes());
        (answer.status, serde_json::from_slice(&answer.body).expect("JSON"))
    }

    /// The token of a lock that is given.
    #[track_caller]
    fn acquire(&self, resource: &str) -> u64 {
        let (status, grant) = self.post(resource, "acquire", &json!({"client": "c"}));
        assert_eq!(status, 200, "{grant}");
        grant["token"].as_str().expect("a token").parse().expect("a number")
    }

    #[track_caller]
    fn release(&self, resource: &str) {
        let (status, answer) = self.post(resource, "release", &json!({"client": "c"}));
        assert_eq!(status, 200, "{answer}");
    }

    /// What is held there: the token as a number.
    fn held(&self, resource: &str) -> Option<u64> {
        let mut client = Client::connect(self.address);
        client.send(format!("GET /v1/locks/{resource} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        let answer = client.answer();
        let shown = || serde_json::from_slice::<Value>(&answer.body).expect("JSON");
        let token = |shown: Value| shown["token"].as_str().expect("a token").parse();
        (answer.status == 200).then(|| token(shown()).expect("a number"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn said(log: &TempDir) -> String {
    fs::read_to_string(log.path().join("log")).expect("a log")
}

/// All but the lock that a killed daemon leaves.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(directory).expect("a directory").map(|it| it.expect("it").path());
    entries
        .filter(|path| !path.ends_with(".lockkeeper-daemon.lock"))
        .map(|path| (path.clone(), fs::read(path).expect("a file")))
        .collect()
}

/// The journal file that was written more, and how far.
fn journal(directory: &Path) -> (PathBuf, Vec<u8>, usize) {
    let files = ["a", "b"].map(|name| {
        let path = directory.join(format!(".lockkeeper-journal-{name}"));
        let bytes = fs::read(&path).expect("a journal");
        let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        (path, bytes, used)
    });
    files.into_iter().max_by_key(|(.., used)| *used).expect("two")
}

/// Some pairs, and two locks that are held. The last token.
fn fill(directory: &Path) -> u64 {
    let daemon = Daemon::start(directory, &[]);
    for _ in 0..20 {
        daemon.acquire("w");
        daemon.release("w");
    }
    let leased = json!({"client": "c", "lease_ms": 3_600_000});
    assert_eq!(daemon.post("leased", "acquire", &leased).0, 200);
    let last = daemon.acquire("last");
    daemon.kill();
    last
}

/// The arguments behind `lockkeeper serve` in the remedy, run as they are.
fn follow(remedy: &str) -> Vec<String> {
    let (_, rest) = remedy.split_once("lockkeeper serve ").expect("a command line");
    let (flags, _) = rest.split_once(" (and").expect("its end");
    flags.split(' ').skip(2).map(str::to_owned).collect()
}

#[test]
fn damage_in_a_journal_is_told_with_its_place_and_the_way_on() {
    let directory = on_tmpfs();
    let last = fill(directory.path());
    let (path, mut bytes, used) = journal(directory.path());
    let place = 1024 + (used - 1024) / 2;
    bytes[place] ^= 0x40;
    fs::write(&path, &bytes).expect("a damaged journal");
    let before = contents(directory.path());
    let (code, said) = Daemon::try_start(directory.path(), &[]).map(drop).expect_err("damage");
    assert_eq!(code, 69);
    let (_, at) = said.split_once(&format!("{} is damaged at byte ", path.display())).expect(&said);
    let at: usize = at.split(':').next().expect("a number").parse().expect("a number");
    assert!(at <= place && place - at < 100, "{at} {place}");
    assert!(contents(directory.path()) == before, "it was changed");

    let flags = follow(&said);
    assert_eq!(flags, ["--accept-damage"]);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let daemon = Daemon::start(directory.path(), &flags);
    let said = daemon.said("is kept as ");
    let (_, kept) = said.split_once("is kept as ").expect("a name");
    let kept = kept.lines().next().expect("a name");
    assert_eq!(fs::read(kept).expect("it is there"), bytes);
    assert!(daemon.acquire("new") > last);
    assert_eq!(daemon.held("last"), Some(last));
    daemon.kill();
    assert!(Daemon::start(directory.path(), &[]).acquire("newer") > last);
}

/// The files, and what is done to them.
type Way<'a> = (&'a [&'a str], fn(&Path));

#[test]
fn each_loss_names_its_own_remedy() {
    let filled = on_tmpfs();
    let last = fill(filled.path());
    let journals = [".lockkeeper-journal-a", ".lockkeeper-journal-b"];
    let tokens = ".lockkeeper-tokens";
    let ways: [Way<'_>; 7] = [
        (&journals[..1], |file| fs::remove_file(file).unwrap()),
        (&journals, |file| fs::remove_file(file).unwrap()),
        (&journals[1..], |file| fs::write(file, "").unwrap()),
        (&journals, |file| fs::write(file, vec![0; 128 * 1024]).unwrap()),
        (&journals, |file| {
            fs::File::options().write(true).open(file).unwrap().set_len(1500).unwrap()
        }),
        (&[tokens], |file| fs::remove_file(file).unwrap()),
        (&[tokens, journals[0]], |file| fs::write(file, [0; 1024]).unwrap()),
    ];
    for (names, damage) in ways {
        let directory = on_tmpfs();
        for (path, bytes) in contents(filled.path()) {
            fs::write(directory.path().join(path.file_name().unwrap()), bytes).unwrap();
        }
        names.iter().for_each(|name| damage(&directory.path().join(name)));
        let before = contents(directory.path());
        let (code, said) = Daemon::try_start(directory.path(), &[]).map(drop).expect_err("damage");
        assert_eq!(code, 69, "{said}");
        for name in names {
            assert!(said.contains(&directory.path().join(name).display().to_string()), "{said}");
        }
        assert!(contents(directory.path()) == before, "it was changed");
        let mut flags = follow(&said);
        assert_eq!(
            flags.contains(&"--accept-damage".to_owned()),
            names.contains(&journals[0]) || names.contains(&journals[1])
        );
        assert_eq!(flags.contains(&"N".to_owned()), names.contains(&tokens), "{said}");
        flags.iter_mut().filter(|flag| *flag == "N").for_each(|flag| *flag = last.to_string());
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let daemon = Daemon::start(directory.path(), &flags);
        assert!(daemon.acquire("new") > last, "{names:?}");
        assert!(daemon.held("leased").is_some() && daemon.held("w").is_none());
        daemon.kill();
        Daemon::start(directory.path(), &[]);
    }
}

/// `lockkeeper` where this file cannot be read; strace stands aside.
fn with_unreadable(file: &Path) -> Command {
    let command = lockkeeper();
    let mut strace = Command::new("strace");
    strace.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e", "inject=pread64:error=EIO", "-P"]);
    strace.arg(file).arg("--").arg(command.get_program()).args(command.get_args());
    strace
}

#[test]
fn a_file_that_cannot_be_read_is_moved_aside() {
    if !strace_support::is_there() {
        return;
    }
    let directory = on_tmpfs();
    let last = fill(directory.path());
    for (name, flag) in
        [(".lockkeeper-tokens", "--tokens-above"), (".lockkeeper-journal-a", "--accept-damage")]
    {
        let file = directory.path().join(name);
        let refused = Daemon::try_start_by(with_unreadable(&file), directory.path(), &[]);
        let (code, said) = refused.map(drop).expect_err("damage");
        assert_eq!(code, 69, "{said}");
        assert!(said.contains(&format!("{} is damaged at byte 0", file.display())), "{said}");
        assert_eq!(follow(&said)[0], flag);
    }
    let file = directory.path().join(".lockkeeper-journal-a");
    let before = fs::read(&file).expect("a journal");
    let command = with_unreadable(&file);
    let started = Daemon::try_start_by(command, directory.path(), &["--accept-damage"]);
    let daemon = started.unwrap_or_else(|refused| panic!("{refused:?}"));
    let aside = directory.path().join(".lockkeeper-journal-a.damaged-1");
    assert!(fs::read(aside).expect("it was moved") == before);
    assert!(daemon.acquire("new") > last);
    daemon.kill();
    assert!(Daemon::start(directory.path(), &[]).acquire("newer") > last);
}

#[test]
fn a_torn_last_record_is_only_reported() {
    let directory = on_tmpfs();
    let last = fill(directory.path());
    let (path, mut bytes, used) = journal(directory.path());
    bytes[used - 5..].fill(0);
    fs::write(&path, &bytes).expect("a torn journal");
    let daemon = Daemon::start(directory.path(), &[]);
    daemon.said("is torn");
    // Its file was there.
    assert!(daemon.held("last").is_some_and(|token| token > last));
    daemon.kill();
    let said = Daemon::start(directory.path(), &[]).said_in_all();
    assert!(!said.contains("is torn"), "{said}");
}

#[test]
fn tokens_go_on_above_what_was_asked_for_and_stay_there() {
    let directory = on_tmpfs();
    let most = u64::MAX / 2;
    for wrong in ["-1", "many", &(most + 1).to_string(), &u64::MAX.to_string()] {
        let flags = [format!("--tokens-above={wrong}")];
        let flags = flags.each_ref().map(String::as_str);
        let (code, said) =
            Daemon::try_start(directory.path(), &flags).map(drop).expect_err("wrong");
        assert_eq!(code, 64, "{said}");
        assert!(said.contains(wrong), "{said}");
    }
    assert!(contents(directory.path()).is_empty());
    // It is synced before anything is given.
    Daemon::start(directory.path(), &["--tokens-above", "7000000"]).kill();
    let daemon = Daemon::start(directory.path(), &[]);
    let first = daemon.acquire("r");
    assert!(first > 7_000_000);
    daemon.kill();
    // A unit file that has it still takes nothing back.
    let daemon = Daemon::start(directory.path(), &["--tokens-above", "7000000"]);
    assert!(daemon.acquire("s") > first);
    daemon.kill();
    let most = most.to_string();
    assert!(
        Daemon::start(directory.path(), &["--tokens-above", &most]).acquire("t") > u64::MAX / 2
    );
}

const DOCUMENT: &str = include_str!("../src/docs/backup_and_restore.md");

/// The commands of the documentation, for these places and this daemon.
fn documented(home: &Path, address: SocketAddr, last: u64) -> Vec<String> {
    let blocks = DOCUMENT.split("```sh\n").skip(1);
    let blocks = blocks.map(|block| block.split("```").next().expect("its end"));
    let replace = |block: &str| {
        for place in ["/var/lib/lockkeeper", "/backup/lockkeeper"] {
            assert!(DOCUMENT.contains(place));
        }
        block
            .replace("/var/lib/lockkeeper", &home.join("locks").display().to_string())
            .replace("/backup/lockkeeper", &home.join("backup").display().to_string())
            .replace("127.0.0.1:8000", &address.to_string())
            .replace("4711", &last.to_string())
    };
    blocks.map(replace).collect()
}

fn shell(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().expect("a shell");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

#[test]
fn a_restored_copy_gives_no_token_again_when_the_documentation_is_followed() {
    let home = on_tmpfs();
    let locks = home.path().join("locks");
    fs::create_dir(&locks).expect("a directory");
    let mut daemon = Daemon::start(&locks, &[]);
    daemon.acquire("before");
    daemon.stop();
    let [copy, _, _] = &documented(home.path(), daemon.address, 0)[..] else { panic!() };
    shell(copy);

    let mut daemon = Daemon::start(&locks, &[]);
    let last = (0..3).map(|number| daemon.acquire(&format!("since{number}"))).max();
    let last = last.expect("three");
    let [_, learn, _] = &documented(home.path(), daemon.address, 0)[..] else { panic!() };
    assert_eq!(shell(learn), last.to_string());
    daemon.stop();

    let [_, _, restore] = &documented(home.path(), daemon.address, last)[..] else { panic!() };
    let (copy, serve) = restore.trim().rsplit_once('\n').expect("several lines");
    shell(copy);
    // Without the number there is a warning, and only once.
    let trial = home.path().join("trial");
    shell(&format!("cp -a {} {}", home.path().join("backup").display(), trial.display()));
    for is_copied in [true, false] {
        let said = Daemon::start(&trial, &[]).said_in_all();
        assert_eq!(said.contains("--tokens-above N"), is_copied, "{said}");
    }
    let flags: Vec<&str> = serve.split(' ').collect();
    assert_eq!(flags[..3], ["lockkeeper", "serve", "--dir"]);
    let daemon = Daemon::start(Path::new(flags[3]), &flags[4..]);
    assert!(daemon.held("before").is_some() && daemon.held("since0").is_none());
    assert!(daemon.acquire("after") > last);
    daemon.kill();
    // One start is enough.
    assert!(Daemon::start(&locks, &[]).acquire("later") > last);
}

/// The flag stays in a unit file, and months later an older copy is restored.
#[test]
fn a_number_that_was_left_in_a_unit_file_hides_no_copy() {
    let home = on_tmpfs();
    let locks = home.path().join("locks");
    fs::create_dir(&locks).expect("a directory");
    let flags = ["--tokens-above", "100"];
    let mut daemon = Daemon::start(&locks, &flags);
    let first = daemon.acquire("first");
    assert_eq!(first, 101);
    daemon.stop();
    let restored = |name| {
        let restored = home.path().join(name);
        shell(&format!("cp -a {} {}", locks.display(), restored.display()));
        restored
    };
    let trial = restored("trial");
    for is_copied in [true, false] {
        let said = Daemon::start(&trial, &flags).said_in_all();
        assert_eq!(said.contains("--tokens-above 100, which raises nothing"), is_copied, "{said}");
    }
    let said = Daemon::start(&restored("other"), &["--tokens-above", "102"]).said_in_all();
    assert!(!said.contains("was copied"), "{said}");
    // Nor does it stand in for the counter.
    let lost = restored("lost");
    fs::remove_file(lost.join(".lockkeeper-tokens")).expect("it was there");
    let low = Daemon::try_start(&lost, &["--tokens-above", "99"]);
    let (code, said) = low.map(drop).expect_err("it is refused");
    assert_eq!(code, 69);
    assert!(said.contains("--tokens-above 99 is below 101"), "{said}");
    assert_eq!(follow(&said), ["--tokens-above", "N"]);
    assert!(Daemon::start(&lost, &["--tokens-above", "101"]).acquire("next") > first);
}

/// Calls that fail in the daemon, and whether it still knows what the disk has. The
/// first lock of a client writes its file first, which does not fail.
const FAULTS: [(&str, &str, bool); 3] = [
    ("fdatasync", "error=EIO", false),
    // The journal is written anew in its other file, and nothing can be added there.
    ("fdatasync", "error=EIO:when=1+2", true),
    ("pwrite64", "error=EIO:when=2+", false),
];

/// The daemon ends, and says whether it knows. For [`with_last_words`].
#[track_caller]
fn ended_knowing(daemon: &mut Daemon, knows: bool) -> Result<(), String> {
    assert_eq!(daemon.ended(), 69);
    let said = said(&daemon.log);
    if !said.contains("stopped serving: ") {
        return Err(said);
    }
    assert_eq!(said.contains("and taking back what may be in it"), !knows, "{said}");
    Ok(())
}

fn with_faults(daemon: &Daemon, calls: &str, fault: &str) -> Faults {
    Faults::of(daemon.child.id(), &daemon.log.path().join("trace"), calls, fault)
}

#[test]
fn a_grant_that_the_disk_refused_is_not_held_after_a_restart() {
    if !strace_support::is_there() {
        return;
    }
    for (calls, fault, knows) in FAULTS {
        with_last_words(|| {
            let directory = on_tmpfs();
            let mut daemon = Daemon::start(directory.path(), &[]);
            let kept = daemon.acquire("kept");
            let faults = with_faults(&daemon, calls, fault);
            let body = json!({"client": "other", "lease_ms": 3_600_000});
            let (status, answer) = daemon.post("refused", "acquire", &body);
            assert!(status >= 500, "{answer}");
            ended_knowing(&mut daemon, knows)?;
            drop(faults);
            let daemon = Daemon::start(directory.path(), &[]);
            assert_eq!(daemon.held("refused"), None, "{calls} {fault}");
            assert!(!directory.path().join("refused.resource.lock").exists());
            assert_eq!(daemon.held("kept"), Some(kept));
            assert!(daemon.acquire("refused") > kept + 1);
            Ok(())
        });
    }
}

#[test]
fn a_release_that_the_disk_refused_is_held_after_a_restart() {
    if !strace_support::is_there() {
        return;
    }
    for (calls, fault, knows) in FAULTS {
        let fault = fault.replace("2+", "1+");
        with_last_words(|| {
            let directory = on_tmpfs();
            let mut daemon = Daemon::start(directory.path(), &[]);
            let tokens = ["one", "two"].map(|resource| daemon.acquire(resource));
            let faults = with_faults(&daemon, calls, &fault);
            let (status, answer) = daemon.post("one", "release", &json!({"client": "c"}));
            assert!(status >= 500, "{answer}");
            ended_knowing(&mut daemon, knows)?;
            drop(faults);
            let lock = directory.path().join("one.resource.lock");
            assert_eq!(fs::read_to_string(lock).expect("its file"), "c");
            let daemon = Daemon::start(directory.path(), &[]);
            assert_eq!(["one", "two"].map(|resource| daemon.held(resource)), tokens.map(Some));
            Ok(())
        });
    }
}

#[test]
fn a_disk_that_fails_once_refuses_nothing() {
    if !strace_support::is_there() {
        return;
    }
    for calls in ["fdatasync", "pwrite64"] {
        let directory = on_tmpfs();
        let daemon = Daemon::start(directory.path(), &[]);
        let kept = daemon.acquire("kept");
        daemon.acquire("ended");
        // Not the second, which would write the file of the lock.
        let faults = with_faults(&daemon, calls, "error=EIO:when=1");
        daemon.release("ended");
        drop(faults);
        daemon.said("it is written anew");
        let given = daemon.acquire("given");
        daemon.kill();
        let daemon = Daemon::start(directory.path(), &[]);
        let held = ["kept", "ended", "given"].map(|resource| daemon.held(resource));
        assert_eq!(held, [Some(kept), None, Some(given)]);
    }
}

/// What a client was told last of a resource of its own.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Held(u64),
    Free,
    /// There was no answer.
    Nothing,
}

/// Acquire and release until the daemon fails.
fn told(address: SocketAddr, resource: &str) -> Told {
    let mut told = Told::Free;
    loop {
        let verb = if told == Told::Free { "acquire" } else { "release" };
        let Some((status, answer)) = try_post(address, resource, verb) else {
            return Told::Nothing;
        };
        told = match (status, verb) {
            (200, "acquire") => {
                let token = answer["token"].as_str().expect("a token");
                Told::Held(token.parse().expect("a number"))
            }
            (200, _) => Told::Free,
            // Nothing was changed.
            _ => return told,
        };
    }
}

fn try_post(address: SocketAddr, resource: &str, verb: &str) -> Option<(u16, Value)> {
    let mut stream = TcpStream::connect(address).ok()?;
    let body = r#"{"client":"c"}"#;
    let head = "Host: localhost\r\nContent-Type: application/json";
    let path = format!("/v1/locks/{resource}/{verb}");
    let length = body.len();
    let request =
        format!("POST {path} HTTP/1.1\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).ok()?;
    let answer = Client::over(stream).try_answer()?;
    Some((answer.status, serde_json::from_slice(&answer.body).expect("JSON")))
}

#[test]
fn what_many_clients_were_told_is_so_after_a_restart() {
    if !strace_support::is_there() {
        return;
    }
    for (calls, fault) in [
        ("fdatasync", "error=EIO:when=30+"),
        ("fdatasync", "error=EIO:when=30+2"),
        ("pwrite64", "error=EIO:when=90+"),
    ] {
        let directory = on_tmpfs();
        let mut daemon = Daemon::start(directory.path(), &[]);
        let faults = with_faults(&daemon, calls, fault);
        let address = daemon.address;
        let clients: Vec<_> = (0..12)
            .map(|number| std::thread::spawn(move || told(address, &format!("r{number}"))))
            .collect();
        let told: Vec<Told> = clients.into_iter().map(|it| it.join().expect("it ran")).collect();
        assert_eq!(daemon.ended(), 69);
        drop(faults);
        assert!(told.iter().filter(|told| **told != Told::Nothing).count() >= 1, "{told:?}");
        let daemon = Daemon::start(directory.path(), &[]);
        for (number, told) in told.into_iter().enumerate() {
            let found = daemon.held(&format!("r{number}"));
            match told {
                Told::Held(token) => assert_eq!(found, Some(token), "{number} {calls} {fault}"),
                Told::Free => assert_eq!(found, None, "{number} {calls} {fault}"),
                Told::Nothing => {}
            }
        }
    }
}

/// On a tmpfs of its own, in a mount namespace that goes with the process.
#[test]
fn what_a_full_disk_refused_is_not_held_after_a_restart() {
    const TEST: &str = "what_a_full_disk_refused_is_not_held_after_a_restart";
    if let Some((_, directory)) = support::role() {
        let daemon = Daemon::start(&directory, &[]);
        let long = "c".repeat(8000);
        let mut given = 0;
        let refused = loop {
            let resource = format!("r{given}");
            let (status, answer) = daemon.post(&resource, "acquire", &json!({"client": long}));
            if status != 200 {
                assert_eq!(answer["error"], "storage", "{answer}");
                break resource;
            }
            given += 1;
        };
        assert!(given > 0);
        daemon.kill();
        let daemon = Daemon::start(&directory, &[]);
        assert_eq!(daemon.held(&refused), None);
        for number in 0..given {
            let resource = format!("r{number}");
            assert_eq!(daemon.post(&resource, "release", &json!({"client": long})).0, 200);
        }
        return support::tell("done");
    }
    play_on_tmpfs(TEST, "size=2m");
}

/// It has no fixed size, and says 0 of 0 blocks.
#[test]
fn a_file_system_without_a_size_is_not_full() {
    const TEST: &str = "a_file_system_without_a_size_is_not_full";
    if let Some((_, directory)) = support::role() {
        let blocks = rustix::fs::statvfs(&directory).expect("its size").f_blocks;
        assert_eq!(blocks, 0);
        let daemon = Daemon::start(&directory, &[]);
        daemon.acquire("r");
        let mut client = Client::connect(daemon.address);
        client.send("GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let answer = client.answer();
        assert_eq!(answer.status, 200, "{:?}", String::from_utf8_lossy(&answer.body));
        return support::tell("done");
    }
    play_on_tmpfs(TEST, "size=0,nr_inodes=0");
}

/// Play a test's role in a mount namespace, which goes with the process.
fn play_on_tmpfs(test: &str, options: &str) {
    let may_mount = Command::new("unshare").args(["-m", "true"]).output();
    if !may_mount.is_ok_and(|output| output.status.success()) {
        return println!("SKIPPED: this process may not make a mount namespace");
    }
    let mount = on_tmpfs();
    let played = support::player(test, "daemon", mount.path());
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs -o \"$1\" none \"$2\" && shift 2 && exec \"$@\"";
    command.args(["-m", "sh", "-c", script, "sh", options]).arg(mount.path());
    command.arg(played.get_program()).args(played.get_args());
    command.envs(played.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let mut child = support::Process::start(command);
    child.expect("done");
    assert!(child.wait().success());
}
