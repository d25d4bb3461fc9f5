//! A client that costs little: requests are written once, answers looked at.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One client with a resource of its own.
pub(crate) struct Caller {
    address: SocketAddr,
    lock: Vec<u8>,
    unlock: Vec<u8>,
    /// Kept if the server keeps it.
    stream: Option<TcpStream>,
    answer: Vec<u8>,
}

impl Caller {
    pub(crate) fn new(address: SocketAddr, number: usize) -> Self {
        let [lock, unlock] = ["lock", "unlock"].map(|method| request(method, number));
        Self { address, lock, unlock, stream: None, answer: Vec::new() }
    }

    /// Lock and unlock, and how long each took.
    pub(crate) async fn pair(&mut self, times: &mut Vec<Duration>) {
        for request in [std::mem::take(&mut self.lock), std::mem::take(&mut self.unlock)] {
            let start = Instant::now();
            self.call(&request).await;
            times.push(start.elapsed());
            if self.lock.is_empty() {
                self.lock = request;
            } else {
                self.unlock = request;
            }
        }
    }

    async fn call(&mut self, request: &[u8]) {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => connect(self.address).await,
        };
        stream.write_all(request).await.expect("it listens");
        self.answer.clear();
        let is_kept = loop {
            if let Some(is_kept) = is_complete(&self.answer) {
                break is_kept;
            }
            let mut bytes = [0; 4096];
            let length = stream.read(&mut bytes).await.expect("an answer");
            assert!(length > 0, "the answer was cut off");
            self.answer.extend_from_slice(&bytes[..length]);
        };
        let has = |part: &[u8]| self.answer.windows(part.len()).any(|found| found == part);
        assert!(has(b"<nil/>"), "{}", String::from_utf8_lossy(&self.answer));
        self.stream = is_kept.then_some(stream);
    }
}

async fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).await.expect("a connection");
    stream.set_nodelay(true).expect("a setting");
    stream
}

/// Whether the answer is complete, and then whether the connection is kept.
fn is_complete(answer: &[u8]) -> Option<bool> {
    let end = answer.windows(4).position(|part| part == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&answer[..end]).expect("a head").to_ascii_lowercase();
    let (_, length) = head.split_once("content-length:").expect("a length");
    let length: usize = length.lines().next()?.trim().parse().expect("a length");
    let is_kept = head.starts_with("http/1.1") && !head.contains("connection: close");
    (answer.len() >= end + length).then_some(is_kept)
}

fn request(method: &str, number: usize) -> Vec<u8> {
    let body = format!(
        "<?xml version='1.0'?>\n<methodCall>\n<methodName>{method}</methodName>\n<params>\n\
         <param>\n<value><string>resource{number}</string></value>\n</param>\n\
         <param>\n<value><string>client{number}</string></value>\n</param>\n\
         </params>\n</methodCall>\n"
    );
    let head = format!(
        "POST /RPC2 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/xml\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head, body].concat().into_bytes()
}
