//! Server-sent events, as the daemon writes them: an event is lines with an empty one
//! behind them, and a comment is an event without data.

use std::io;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use super::connection::Connection;

/// Longer events are not a lock daemon's, which shows one lock in each. If larger, another
/// server can make this process keep more in memory.
const EVENT_BYTES: usize = 1 << 20;

/// A stream that is silent for so long is dead: the daemon writes something each ten
/// seconds. If larger, a proxy that lost the daemon is noticed later.
const SILENCE: Duration = Duration::from_secs(30);

/// The events of one response.
pub(super) struct EventStream {
    body: Incoming,
    unread: Unread,
    _connection: Connection,
}

/// What came and was not given yet.
#[derive(Default)]
struct Unread(Vec<u8>);

impl EventStream {
    pub(super) fn new(body: Incoming, connection: Connection) -> Self {
        Self { body, unread: Unread::default(), _connection: connection }
    }

    /// The data of the next event that has some.
    ///
    /// # Errors
    /// Why no other comes.
    pub(super) async fn next(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(data) = self.unread.event() {
                return Ok(data);
            }
            let Ok(frame) = timeout(SILENCE, self.body.frame()).await else {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no more events came"));
            };
            let Some(frame) = frame else {
                let text = "the daemon ended its events";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            };
            if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
                self.unread.push(&data)?;
            }
        }
    }
}

impl Unread {
    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.0.len() + bytes.len() > EVENT_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an event is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    /// The data of the first event that is whole and has some.
    fn event(&mut self) -> Option<Vec<u8>> {
        loop {
            let end = self.0.windows(2).position(|pair| pair == b"\n\n")?;
            let event: Vec<u8> = self.0.drain(..end + 2).collect();
            let lines = event.split(|byte| *byte == b'\n');
            let mut data = lines.filter_map(|line| line.strip_prefix(b"data: "));
            if let Some(data) = data.next() {
                return Some(data.to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_given_when_it_is_whole() {
        let mut unread = Unread::default();
        let text = b":\n\nevent: locks\ndata: {\"a\":1}\n\n:\n\ndata: two\n\ndat";
        let mut found = Vec::new();
        for byte in text {
            unread.push(&[*byte]).unwrap();
            found.extend(unread.event());
        }
        assert_eq!(found, [b"{\"a\":1}".to_vec(), b"two".to_vec()]);
        assert_eq!(unread.0, b"dat");
        assert!(unread.push(&[0; EVENT_BYTES]).is_err());
    }
}
