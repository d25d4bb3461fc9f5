//! What answers as an old server would, or a strange one, or none.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// So long a client is listened to that should not close its half.
const QUIET: Duration = Duration::from_millis(300);

/// Whether the last client that asked for a cancel closed its half before it was answered.
pub(super) static CLOSED: AtomicBool = AtomicBool::new(true);

/// Listens for as long as the test program runs; gives the port.
pub(super) fn listen(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(stream));
        }
    });
    port
}

/// Answers a session's beginning with `first`, and each statement with `then`.
pub(super) fn server(first: Vec<u8>, then: Vec<u8>) -> u16 {
    listen(move |mut stream| drop(serve(&mut stream, &first, &then)))
}

pub(super) fn serve(stream: &mut TcpStream, first: &[u8], then: &[u8]) -> std::io::Result<()> {
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut rest = vec![0; u32::from_be_bytes(length) as usize - 4];
        stream.read_exact(&mut rest)?;
        match rest[..4] {
            [0x04, 0xd2, 0x16, 0x2f] => stream.write_all(b"N")?,
            [0x04, 0xd2, 0x16, 0x2e] => return cancel(stream),
            _ => break,
        }
    }
    stream.write_all(first)?;
    loop {
        let mut header = [0; 5];
        stream.read_exact(&mut header)?;
        let length = u32::from_be_bytes(header[1..].try_into().unwrap());
        stream.read_exact(&mut vec![0; length as usize - 4])?;
        stream.write_all(then)?;
    }
}

/// As PgBouncer, which drops the request of a client that has closed its half.
fn cancel(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(QUIET))?;
    let closed = stream.read(&mut [0]).is_ok();
    CLOSED.store(closed, Ordering::SeqCst);
    Ok(())
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag], length.to_be_bytes().as_slice(), body].concat()
}

fn ready() -> Vec<u8> {
    message(b'Z', b"I")
}

/// A session that begins, with these parameters.
pub(super) fn welcome(parameters: &[(&str, &str)]) -> Vec<u8> {
    let parameters = parameters
        .iter()
        .flat_map(|(name, value)| message(b'S', format!("{name}\0{value}\0").as_bytes()));
    let mut all = message(b'R', &[0; 4]);
    all.extend(parameters);
    all.extend(message(b'K', &[0; 8]));
    all.extend(ready());
    all
}

pub(super) fn fatal(state: &str, text: &str) -> Vec<u8> {
    message(b'E', format!("SFATAL\0VFATAL\0C{state}\0M{text}\0\0").as_bytes())
}

pub(super) fn error(state: &str, text: &str) -> Vec<u8> {
    let mut all = message(b'E', format!("SERROR\0VERROR\0C{state}\0M{text}\0\0").as_bytes());
    all.extend(ready());
    all
}

/// One row of texts.
pub(super) fn row(values: &[&str]) -> Vec<u8> {
    let count = u16::try_from(values.len()).unwrap().to_be_bytes();
    // A name, its table and column, type 25 (text) of any length, as text.
    let column = [b"c\0".as_slice(), &[0; 6], &[0, 0, 0, 25, 255, 255, 255, 255, 255, 255, 0, 0]];
    let columns = column.concat().repeat(values.len());
    let mut all = message(b'T', &[count.as_slice(), &columns].concat());
    let mut data = count.to_vec();
    for value in values {
        data.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
        data.extend(value.bytes());
    }
    all.extend(message(b'D', &data));
    all.extend(message(b'C', b"SELECT 1\0"));
    all.extend(ready());
    all
}
