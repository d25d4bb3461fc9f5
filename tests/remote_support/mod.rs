//! What the tests of the daemon's clients share: a daemon as a user starts it,
//! a look at what it holds, and a network that fails.

#![allow(dead_code, unreachable_pub)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cli_support::lockkeeper;
use crate::support::{VERY_LONG, eventually};

/// `lockkeeper serve`, killed when dropped.
pub struct Daemon {
    child: Child,
    pub url: String,
    pub address: SocketAddr,
    directory: PathBuf,
    flags: Vec<String>,
}

impl Daemon {
    pub fn start(directory: &Path, flags: &[&str]) -> Self {
        let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
        Self::listening(directory, &flags, SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// A port that a daemon had before may be another program's for a while.
    fn listening(directory: &Path, flags: &[String], address: SocketAddr) -> Self {
        let deadline = Instant::now() + VERY_LONG;
        loop {
            if let Some(daemon) = Self::try_to_listen(directory, flags, address) {
                return daemon;
            }
            assert!(address.port() > 0 && Instant::now() < deadline, "it does not start");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    fn try_to_listen(directory: &Path, flags: &[String], address: SocketAddr) -> Option<Self> {
        let mut command = lockkeeper();
        command.args(["serve", "--no-sync", "--listen", &address.to_string(), "--dir"]);
        command.arg(directory).args(flags).stdout(Stdio::piped());
        command.env("LOCKKEEPER_LOG", "warn");
        let mut child = command.spawn().expect("a daemon");
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("its output"));
        output.read_line(&mut line).expect("a line");
        let url = line.trim().to_owned();
        let Some((_, address)) = url.split_once("://") else {
            let _ = child.wait();
            return None;
        };
        let address = address.parse().expect("an address");
        Some(Self { child, url, address, directory: directory.to_owned(), flags: flags.to_vec() })
    }

    /// SIGKILL, and wait until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    /// Start one that listens where this URL says.
    pub fn start_at(directory: &Path, url: &str) -> Self {
        Self::start_with(directory, &[], url)
    }

    /// The same, with these flags.
    pub fn start_with(directory: &Path, flags: &[String], url: &str) -> Self {
        let (_, address) = url.split_once("://").expect("a URL");
        Self::listening(directory, flags, address.parse().expect("an address"))
    }

    /// Start it again where it was.
    pub fn restart(&mut self) {
        *self = Self::listening(&self.directory, &self.flags, self.address);
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        kill(pid, signal).expect("it can be signalled");
    }

    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + VERY_LONG;
        loop {
            if let Some(status) = self.child.try_wait().expect("its status") {
                return status;
            }
            assert!(Instant::now() < deadline, "the daemon does not end");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    /// What it says of a resource; `None` if nobody has it.
    pub fn shown(&self, resource: &str) -> Option<Value> {
        let (status, body) = exchange(self.address, "GET", &format!("/v1/locks/{resource}"), "");
        (status == 200).then(|| serde_json::from_str(&body).expect("JSON"))
    }

    /// How many wait for a resource.
    pub fn waiting(&self, resource: &str) -> usize {
        let shown = self.shown(resource);
        shown.map_or(0, |shown| shown["waiting"].as_array().expect("who waits").len())
    }

    #[track_caller]
    pub fn expect_waiting(&self, resource: &str, count: usize) {
        eventually("so many wait", || self.waiting(resource) == count);
    }

    /// End whatever hold there is.
    pub fn force(&self, resource: &str) {
        let path = format!("/v1/locks/{resource}/force-release");
        let (status, body) = exchange(self.address, "POST", &path, "{}");
        assert_eq!(status, 200, "{body}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request, and the status and the body of its answer.
fn exchange(address: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("a connection");
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("it listens");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
    (status, body.to_owned())
}

/// What a [`Network`] does with what it is given.
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum Weather {
    /// Bytes go through.
    Fair,
    /// Nothing goes through, and nobody is told.
    Frozen,
    /// The next answer is thrown away and its connection closed; then it is fair.
    LosesOneAnswer,
}

/// A way to the daemon that can be broken.
pub struct Network {
    pub url: String,
    weather: Arc<AtomicU8>,
}

impl Network {
    pub fn to(daemon: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("an address");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let weather = Arc::new(AtomicU8::new(Weather::Fair as u8));
        let state = Arc::clone(&weather);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(near) = stream else { return };
                let Ok(far) = TcpStream::connect(daemon) else { continue };
                join(near, far, &state);
            }
        });
        Self { url, weather }
    }

    pub fn turn(&self, weather: Weather) {
        self.weather.store(weather as u8, Ordering::SeqCst);
    }

    /// Wait until the answer was lost.
    #[track_caller]
    pub fn expect_fair(&self) {
        eventually("an answer was lost", || {
            self.weather.load(Ordering::SeqCst) == Weather::Fair as u8
        });
    }
}

fn join(near: TcpStream, far: TcpStream, weather: &Arc<AtomicU8>) {
    let directions = [(&near, &far, false), (&far, &near, true)];
    for (from, to, is_answer) in directions {
        let from = from.try_clone().expect("a copy");
        let to = to.try_clone().expect("a copy");
        let weather = Arc::clone(weather);
        std::thread::spawn(move || carry(from, to, is_answer, &weather));
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, is_answer: bool, weather: &AtomicU8) {
    let mut bytes = [0; 4096];
    loop {
        let length = from.read(&mut bytes).unwrap_or(0);
        while weather.load(Ordering::SeqCst) == Weather::Frozen as u8 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let loses = is_answer && length > 0;
        let (before, after) = (Weather::LosesOneAnswer as u8, Weather::Fair as u8);
        let order = Ordering::SeqCst;
        if loses && weather.compare_exchange(before, after, order, order).is_ok() {
            let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
            return;
        }
        if length == 0 || to.write_all(&bytes[..length]).is_err() {
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
    }
}

/// A certificate that vouches for itself, for 127.0.0.1, and its key.
pub fn certificate(directory: &Path) -> (PathBuf, PathBuf) {
    let extensions = ["subjectAltName=IP:127.0.0.1", "basicConstraints=critical,CA:FALSE"];
    certificate_with(directory, &extensions)
}

/// One that `openssl req -x509` makes with these extensions.
pub fn certificate_with(directory: &Path, extensions: &[&str]) -> (PathBuf, PathBuf) {
    let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    command.args(["-nodes", "-days", "2", "-subj", "/CN=locks"]);
    command.args(extensions.iter().flat_map(|extension| ["-addext", *extension]));
    command.arg("-keyout").arg(&key).arg("-out");
    let made = command.arg(&certificate).stderr(Stdio::null()).status().expect("openssl");
    assert!(made.success(), "no certificate was made");
    (certificate, key)
}

/// A server that does as it is told: what it answers to each request, numbered from
/// zero, with the connection closed behind `None`.
pub struct Scripted {
    pub url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    pub fn start(script: impl Fn(usize) -> Option<String> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("an address");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let (requests, script) = (Arc::new(Mutex::default()), Arc::new(script));
        let heard = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (heard, script) = (Arc::clone(&heard), Arc::clone(&script));
                std::thread::spawn(move || answer(stream, &heard, &*script));
            }
        });
        Self { url, requests }
    }

    /// The first lines of what was asked.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no panic").clone()
    }
}

fn answer(
    mut stream: TcpStream,
    heard: &Mutex<Vec<String>>,
    script: &dyn Fn(usize) -> Option<String>,
) {
    let mut reader = BufReader::new(stream.try_clone().expect("a copy"));
    while let Some(line) = read_request(&mut reader) {
        let number = {
            let mut heard = heard.lock().expect("no panic");
            heard.push(line);
            heard.len() - 1
        };
        let Some(answer) = script(number) else { return };
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Its first line.
fn read_request(reader: &mut impl BufRead) -> Option<String> {
    let (mut first, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        if let Some((_, value)) =
            line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        {
            length = value.parse().expect("a length");
        }
        if line.is_empty() {
            reader.read_exact(&mut vec![0; length]).ok()?;
            return first;
        }
        first.get_or_insert(line.to_owned());
    }
}

/// An answer with this status line and body.
pub fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A server that neither takes nor refuses connections.
pub fn stalled() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("an address");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    (listener, url)
}

/// In hexadecimal digits.
pub fn sha256(text: &str) -> String {
    let mut command = Command::new("sha256sum");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sha256sum");
    let mut input = child.stdin.take().expect("its input");
    input.write_all(text.as_bytes()).expect("it reads");
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    let line = String::from_utf8(output.stdout).expect("digits");
    line.split_whitespace().next().expect("a hash").to_owned()
}
