//! What the tests of the daemon share: a daemon in a process of its own, and a
//! client that sends exactly what it is told to.

#![allow(dead_code, unreachable_pub)]

#[path = "../support/mod.rs"]
pub mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use lockkeeper::lockd::{FaultStyle, Server, ServerError, ServerOptions};
use support::{Process, VERY_LONG};
use tokio_util::sync::CancellationToken;

/// Be the daemon: say where it listens, and serve until the test hangs up.
/// What the role says after `daemon` are its settings.
pub fn play(role: &str, directory: &Path) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut options = ServerOptions::new(directory).listen(any).sync(false);
        for setting in role.split_whitespace().skip(1) {
            options = set(options, setting);
        }
        // A port that a daemon had before may be another program's for a while.
        let deadline = Instant::now() + VERY_LONG;
        let server = loop {
            match Server::bind(options.clone()).await {
                Err(ServerError::Listen { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                bound => break bound.expect("a server"),
            }
        };
        support::tell(&server.address().to_string());
        let stop = CancellationToken::new();
        let stopper = stop.clone();
        std::thread::spawn(move || {
            while support::told().is_some() {}
            stopper.cancel();
        });
        server.serve(stop).await.expect("it served");
        support::tell("stopped");
    });
}

fn set(options: ServerOptions, setting: &str) -> ServerOptions {
    let (name, value) = setting.split_once('=').expect("a setting");
    let seconds = || Duration::from_secs_f64(value.parse().expect("seconds"));
    match name {
        "py2" => options.fault_style(FaultStyle::Python2),
        "head" => options.head_time(seconds()),
        "body" => options.body_time(seconds()),
        "write" => options.write_time(seconds()),
        "public" => options.public_url(value),
        "grace" => options.grace(seconds()),
        "listen" => options.listen(value.parse().expect("an address")),
        "tokens" => options.tokens(value),
        "tls" => {
            let (certificate, key) = value.split_once(',').expect("two files");
            options.tls(certificate, key)
        }
        "insecure" => options.insecure(true),
        "host" => options.host(value),
        "waiting" => options.waiting(value.parse().expect("a number"), 1),
        "sync" => options.sync(true),
        "connections" => options.connections(value.parse().expect("a number")),
        _ => panic!("no such setting: {name}"),
    }
}

/// How long the end of `lockkeeper serve` waits for its last lines to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A run of `lockkeeper serve` to its end that found its last words in the log. One that
/// lacks them fails with what was said, or is repeated if it took so long that they may be
/// lost.
#[track_caller]
pub fn with_last_words<T>(mut run: impl FnMut() -> Result<T, String>) -> T {
    for _ in 0..20 {
        let begun = Instant::now();
        match run() {
            Ok(outcome) => return outcome,
            Err(said) => assert!(begun.elapsed() >= LAST_WORDS, "its last words: {said:?}"),
        }
    }
    panic!("its last words are missing each time");
}

/// A daemon.
pub struct Daemon {
    pub process: Process,
    pub address: SocketAddr,
}

impl Daemon {
    /// Start one for a directory; `test` is the test that plays the role.
    pub fn start(test: &str, settings: &str, directory: &Path) -> Self {
        let process = Process::play(test, &format!("daemon {settings}"), directory);
        let address = process.next().parse().expect("an address");
        Self { process, address }
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// What the document `call` is answered with.
    pub fn call(&self, call: &str) -> String {
        self.connect().post("/RPC2", &[("Content-Type", "text/xml")], call.as_bytes()).text()
    }

    /// Memory that it has in use, in bytes.
    pub fn memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(path).expect("its status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("its memory");
        let kilobytes = line.split_whitespace().nth(1).expect("a number");
        kilobytes.parse::<u64>().expect("a number") * 1024
    }
}

/// A connection.
pub struct Client {
    pub stream: TcpStream,
    read: Vec<u8>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("an answer in UTF-8")
    }
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).expect("a connection"))
    }

    pub fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a setting");
        stream.set_read_timeout(Some(VERY_LONG)).expect("a setting");
        stream.set_write_timeout(Some(VERY_LONG)).expect("a setting");
        Self { stream, read: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("it listens");
    }

    pub fn post(&mut self, path: &str, head: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = format!("POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n");
        for (name, value) in head {
            request += &format!("{name}: {value}\r\n");
        }
        request += &format!("Content-Length: {}\r\n\r\n", body.len());
        // In one piece: a head that is refused closes the connection before a second.
        self.send([request.as_bytes(), body].concat());
        self.answer()
    }

    /// The next answer.
    #[track_caller]
    pub fn answer(&mut self) -> Answer {
        self.try_answer().expect("an answer before the connection was closed")
    }

    /// The next answer; `None` if the connection was closed instead.
    pub fn try_answer(&mut self) -> Option<Answer> {
        let end = loop {
            if let Some(end) = self.read.windows(4).position(|part| part == b"\r\n\r\n") {
                break end + 4;
            }
            self.read_more()?;
        };
        let head = String::from_utf8(self.read.drain(..end).collect()).expect("a head in UTF-8");
        let mut lines = head.lines();
        let status = lines.next()?.split_whitespace().nth(1)?.parse().expect("a status");
        let fields = lines.filter_map(|line| line.split_once(':'));
        let head: BTreeMap<String, String> = fields
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        if head.get("transfer-encoding").is_some_and(|how| how == "chunked") {
            return Some(Answer { status, head, body: self.chunks()? });
        }
        let length =
            head.get("content-length").map_or(0, |length| length.parse().expect("a length"));
        while self.read.len() < length {
            self.read_more()?;
        }
        Some(Answer { status, head, body: self.read.drain(..length).collect() })
    }

    fn chunks(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let end = loop {
                if let Some(end) = self.read.windows(2).position(|part| part == b"\r\n") {
                    break end;
                }
                self.read_more()?;
            };
            let digits = String::from_utf8(self.read.drain(..end + 2).collect()).expect("digits");
            let length = usize::from_str_radix(digits.trim(), 16).expect("a length");
            while self.read.len() < length + 2 {
                self.read_more()?;
            }
            body.extend(self.read.drain(..length + 2).take(length));
            if length == 0 {
                return Some(body);
            }
        }
    }

    /// Read until the other side closes the connection.
    pub fn is_closed(&mut self) -> bool {
        while self.read_more().is_some() {}
        true
    }

    /// Read until this text has come, and forget it.
    #[track_caller]
    pub fn read_until(&mut self, expected: &str) {
        let (expected, deadline) = (expected.as_bytes(), Instant::now() + VERY_LONG);
        let end = loop {
            assert!(Instant::now() < deadline, "it did not come");
            let mut parts = self.read.windows(expected.len());
            if let Some(start) = parts.position(|part| part == expected) {
                break start + expected.len();
            }
            self.read_more().expect("more, before the connection is closed");
        };
        self.read.drain(..end);
    }

    pub fn read_more(&mut self) -> Option<()> {
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) => None,
            Ok(length) => {
                self.read.extend_from_slice(&bytes[..length]);
                Some(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            // A read with a limit is not made again by the kernel.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Some(()),
            Err(error) => panic!("nothing came: {error}"),
        }
    }
}

/// The document of a call with strings for arguments.
pub fn call(method: &str, arguments: &[&str]) -> String {
    let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;");
    let params: String = arguments
        .iter()
        .map(|text| format!("<param><value><string>{}</string></value></param>", escape(text)))
        .collect();
    format!(
        "<?xml version='1.0'?><methodCall><methodName>{method}</methodName>\
         <params>{params}</params></methodCall>"
    )
}

/// The document of the answer to a call that succeeds with nothing to say.
pub const NIL: &str = "<?xml version='1.0'?>\n<methodResponse>\n<params>\n<param>\n\
    <value><nil/></value></param>\n</params>\n</methodResponse>\n";

/// The text of a fault, if the document is one with the code 1.
pub fn fault(document: &str) -> Option<String> {
    let code = between(document, "<name>faultCode</name>", "</member>")?;
    assert!(code.contains("<int>1</int>"), "{document}");
    let text = between(document, "<name>faultString</name>\n<value><string>", "</string>")?;
    Some(text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(start)?;
    Some(rest.split_once(end)?.0)
}
