//! An address of loopback that is this test's alone.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// How many ports an address has for the taking.
pub const PORTS: u16 = 50;

/// An address with [`PORTS`] free ports. One more port is kept bound for as long as this
/// lives, so that no other claim takes the same, in whatever process. A member that is
/// killed finds its ports free when it is started again: nothing else binds this address,
/// and the kernel picks no port below the ephemeral ones.
pub struct Claim {
    pub address: Ipv4Addr,
    first: u16,
    _kept: TcpListener,
}

impl Claim {
    pub fn new() -> Self {
        let mut claims = std::iter::repeat_with(Self::random);
        claims.by_ref().take(100).flatten().next().expect("free ports on loopback")
    }

    /// `None` if it is taken, or a program listens on one of the ports. None is bound for
    /// the look: a process that is being started has a copy for a moment, which would be in
    /// the way of a member.
    fn random() -> Option<Self> {
        let [a, b, c, d, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
        let address = Ipv4Addr::new(127, 1 + a % 254, b, 1 + c % 254);
        let first = 20_000 + u16::from(d % 250) * (PORTS + 1);
        let kept = TcpListener::bind((address, first)).ok()?;
        let is_free = !listened_to().iter().any(|port| (first + 1..=first + PORTS).contains(port));
        is_free.then_some(Self { address, first, _kept: kept })
    }

    pub fn at(&self, port: u16) -> SocketAddr {
        assert!(port < PORTS, "an address has {PORTS} ports");
        SocketAddr::from((self.address, self.first + 1 + port))
    }
}

/// The ports of this machine that a program listens on.
fn listened_to() -> Vec<u16> {
    const LISTENS: &str = "0A";
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(std::fs::read_to_string);
    let mut ports = Vec::new();
    for line in tables.iter().flatten().flat_map(|table| table.lines()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.get(3) == Some(&LISTENS) {
            let (_, port) = words[1].split_once(':').expect("an address");
            ports.push(u16::from_str_radix(port, 16).expect("a port"));
        }
    }
    ports
}
