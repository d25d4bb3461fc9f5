//! A proxy that says other words to a server than its clients do.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::claim::Claim;

/// Replaces a text by one of the same length, in what clients send. The text must not be
/// longer than one piece that a client sends at a time. It serves until the test's process
/// ends.
pub struct Substitution {
    claim: Claim,
    count: Arc<AtomicUsize>,
}

impl Substitution {
    pub fn between(target: SocketAddr, from: &'static str, to: &'static str) -> Self {
        assert_eq!(from.len(), to.len(), "messages say their length");
        let (claim, count) = (Claim::new(), Arc::new(AtomicUsize::new(0)));
        let listener = TcpListener::bind(claim.at(0)).expect("a free port");
        let counter = Arc::clone(&count);
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(target) else { continue };
                let counter = Arc::clone(&counter);
                let replace = move |piece: &mut [u8]| {
                    let found = replace(piece, from.as_bytes(), to.as_bytes());
                    counter.fetch_add(found, Ordering::SeqCst);
                };
                carry(&near, &far, replace);
                carry(&far, &near, |_| {});
            }
        });
        Self { claim, count }
    }

    pub fn address(&self) -> SocketAddr {
        self.claim.at(0)
    }

    /// How often the text was replaced.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

fn replace(piece: &mut [u8], from: &[u8], to: &[u8]) -> usize {
    let mut found = 0;
    for at in 0..piece.len().saturating_sub(from.len() - 1) {
        if piece[at..].starts_with(from) {
            piece[at..at + to.len()].copy_from_slice(to);
            found += 1;
        }
    }
    found
}

fn carry(from: &TcpStream, to: &TcpStream, change: impl Fn(&mut [u8]) + Send + 'static) {
    let mut from = from.try_clone().expect("a descriptor");
    let mut to = to.try_clone().expect("a descriptor");
    std::thread::spawn(move || {
        let mut piece = [0; 16 * 1024];
        while let Ok(length) = from.read(&mut piece) {
            change(&mut piece[..length]);
            if length == 0 || to.write_all(&piece[..length]).is_err() {
                break;
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    });
}
