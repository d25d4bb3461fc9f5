//! What the tests of `lockkeeper serve` share: the daemon as an operator has it,
//! with its log, its files of tokens and certificates, and requests to it.

#![allow(dead_code, unreachable_pub)]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cli_support::lockkeeper;
use crate::lockd_support::support::{eventually, on_tmpfs};
use crate::lockd_support::{Answer, Client};

/// `lockkeeper serve`, killed when dropped.
pub struct Serve {
    child: Child,
    pub url: String,
    pub address: SocketAddr,
    log: PathBuf,
    home: TempDir,
}

impl Serve {
    /// With a directory of its own, at any port of loopback.
    pub fn start(flags: &[&str]) -> Self {
        let home = on_tmpfs();
        let mut command = lockkeeper();
        command.args(["serve", "--no-sync", "--listen", "127.0.0.1:0"]).args(flags);
        Self::run(command, home)
    }

    /// This command, which gets the directory; it says where it serves.
    pub fn run(mut command: Command, home: TempDir) -> Self {
        let (log, locks) = (home.path().join("log"), home.path().join("locks"));
        let _ = std::fs::create_dir(&locks);
        command.arg("--dir").arg(locks).stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(File::options().create(true).append(true).open(&log).expect("a log"));
        let mut child = command.spawn().expect("a daemon");
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("its output"));
        output.read_line(&mut line).expect("a line");
        let url = line.trim().to_owned();
        let (_, address) = url.split_once("://").unwrap_or_else(|| panic!("{}", text(&log)));
        let address = address.parse().expect("an address");
        Self { child, url, address, log, home }
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        text(&self.log)
    }

    pub fn log_file(&self) -> &Path {
        &self.log
    }

    #[track_caller]
    pub fn expect_log(&self, what: &str) {
        eventually(&format!("the log says {what:?}"), || self.log().contains(what));
    }

    /// Asks it to read its files again, and waits until the log has this once more.
    #[track_caller]
    pub fn reload(&self, said: &str) {
        let before = self.log().matches(said).count();
        self.signal(Signal::HUP);
        eventually(&format!("the log says {said:?}"), || self.log().matches(said).count() > before);
    }

    /// How many of its threads are called so; the kernel keeps 15 bytes of a name.
    pub fn threads(&self, name: &str) -> usize {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("it runs");
        let names = tasks.flatten().map(|task| text(&task.path().join("comm")));
        names.filter(|it| it.trim() == name).count()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Ends it by SIGTERM.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        eventually("it ends", || self.child.try_wait().expect("its status").is_some());
        self.child.wait().expect("its status")
    }

    /// SIGKILL; the directory and the log are left.
    pub fn kill(mut self) -> TempDir {
        self.end();
        std::mem::replace(&mut self.home, on_tmpfs())
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends a request over a connection of its own.
    pub fn send(&self, verb: &str, path: &str, token: &str, body: &Value) -> Client {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let credentials = match token {
            "" => String::new(),
            token => format!("Authorization: Bearer {token}\r\n"),
        };
        let mut client = Client::connect(self.address);
        client.send(format!(
            "{verb} {path} HTTP/1.1\r\nHost: localhost\r\n{credentials}\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        client
    }

    /// The answer to a request.
    pub fn ask(&self, verb: &str, path: &str, token: &str, body: &Value) -> Answer {
        self.send(verb, path, token, body).answer()
    }

    pub fn get(&self, path: &str, token: &str) -> Answer {
        self.ask("GET", path, token, &Value::Null)
    }

    /// One try to acquire.
    pub fn acquire(&self, resource: &str, client: &str, token: &str) -> Answer {
        self.ask("POST", &acquire_at(resource), token, &json!({ "client": client }))
    }

    /// A request that waits without a limit, once it waits.
    pub fn wait_for(&self, resource: &str, client: &str, token: &str) -> Client {
        let body = json!({ "client": client, "wait_ms": null });
        let waiter = self.send("POST", &acquire_at(resource), token, &body);
        eventually("it waits", || {
            let shown = parsed(&self.get(&format!("/v1/locks/{resource}"), token));
            let waiting = shown["waiting"].as_array();
            waiting.is_some_and(|all| all.iter().any(|waiter| waiter["client"] == client))
        });
        waiter
    }

    pub fn release(&self, resource: &str, client: &str, token: &str) -> Answer {
        let path = format!("/v1/locks/{resource}/release");
        self.ask("POST", &path, token, &json!({ "client": client }))
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        self.end();
    }
}

fn acquire_at(resource: &str) -> String {
    format!("/v1/locks/{resource}/acquire")
}

/// The body of an answer.
pub fn parsed(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).expect("JSON")
}

/// The status of an answer and its code.
pub fn refused(answer: &Answer) -> (u16, String) {
    (answer.status, parsed(answer)["error"].as_str().unwrap_or_default().to_owned())
}

pub fn text(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

/// What a program says; it must succeed.
pub fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}: run tests/setup.sh"));
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {wrong}");
    String::from_utf8(output.stdout).expect("text")
}

/// A token, made as the documentation says, and its hash.
pub fn token() -> (String, String) {
    let token = output("openssl", &["rand", "-hex", "32"]).trim().to_owned();
    let sha256 = output("sh", &["-c", &format!("printf %s {token} | sha256sum")]);
    (token, sha256.split_whitespace().next().expect("a hash").to_owned())
}

/// Writes a file of tokens with these lines.
pub fn write_tokens(path: &Path, tokens: &[Value]) {
    std::fs::write(path, json!({ "tokens": tokens }).to_string()).expect("a file");
    let only_mine = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, only_mine).expect("its permissions");
}

/// In place of a file a pipe: as on a file system that hangs, it is not read before
/// [`let_read`] has it so.
pub fn make_unread(path: &Path) {
    let pipe = path.with_extension("pipe");
    output("mkfifo", &["-m", "600", pipe.to_str().expect("a path")]);
    std::fs::rename(pipe, path).expect("it is replaced");
}

/// One reader of such a pipe gets these tokens, once it is there.
#[track_caller]
pub fn let_read(path: &Path, tokens: &[Value]) {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).expect("a flag");
    let mut pipe = None;
    eventually("it is being read", || {
        pipe = File::options().write(true).custom_flags(flags).open(path).ok();
        pipe.is_some()
    });
    let text = json!({ "tokens": tokens }).to_string();
    pipe.expect("a pipe").write_all(text.as_bytes()).expect("it is read");
}

/// Makes a certificate for localhost with this common name, and its key.
pub fn write_certificate(certificate: &Path, key: &Path, name: &str) {
    let [certificate, key] = [certificate, key].map(|path| path.to_str().expect("a path"));
    let subject = format!("/CN={name}");
    let algorithm = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let files = ["-keyout", key, "-out", certificate, "-days", "2", "-subj", &subject];
    let names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"];
    let arguments = [&["req", "-x509"], &algorithm[..], &files, &names].concat();
    output("openssl", &arguments);
}
