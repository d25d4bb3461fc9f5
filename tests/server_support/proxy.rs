//! A network that fails: a TCP proxy before one address, on a thread and a runtime of its own.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::{Shutdown as Half, shutdown};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::claim::Claim;
use crate::support::eventually;

/// The two ends of a connection through a [`Proxy`], and the ways bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    Server,
    Client,
}

/// What a proxy does at the moment. Each pair is indexed by [`To`].
#[derive(Clone, Default)]
struct Settings {
    refuses: bool,
    stalls: [bool; 2],
    delays: [Duration; 2],
    /// The sources whose connections stall both ways.
    cut: BTreeSet<usize>,
    /// How often the connections of the time were reset, and half closed.
    resets: [usize; 2],
    half_closes: [usize; 2],
}

#[derive(Default)]
struct Counts {
    accepted: AtomicUsize,
    open: AtomicUsize,
    refuses: AtomicBool,
    bytes: [AtomicU64; 2],
}

/// Which of several sources a connection comes from, by the address at its other end.
pub type Source = Box<dyn Fn(SocketAddr) -> Option<usize> + Send + Sync>;

pub struct Proxy {
    address: SocketAddr,
    settings: Option<watch::Sender<Settings>>,
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
    claim: Option<Claim>,
}

impl Proxy {
    /// At an address of its own. The certificate of a server is not for that address:
    /// `Cluster::proxy` and PostgreSQL's `Server::proxy` are for TLS.
    pub fn to(target: SocketAddr) -> Self {
        let claim = Claim::new();
        let mut proxy = Self::between(claim.at(0), target, Box::new(|_| Some(0)));
        proxy.claim = Some(claim);
        proxy
    }

    pub fn between(address: SocketAddr, target: SocketAddr, source: Source) -> Self {
        let listener = std::net::TcpListener::bind(address).expect("a free port");
        let (sender, settings) = watch::channel(Settings::default());
        let counts = Arc::new(Counts::default());
        let path = Path { address, target, source, counts: Arc::clone(&counts), settings };
        let thread = std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().build().expect("a runtime").block_on(serve(listener, path));
        });
        Self { address, settings: Some(sender), counts, thread: Some(thread), claim: None }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// As lockkeeper takes it.
    pub fn endpoint(&self) -> String {
        self.address.to_string()
    }

    fn set(&self, change: impl FnOnce(&mut Settings)) {
        self.settings.as_ref().expect("it runs").send_modify(change);
    }

    /// Bytes on this way arrive this much later. They arrive though the client that sent
    /// them has closed its connection.
    pub fn delay(&self, to: To, by: Duration) {
        self.set(|settings| settings.delays[to as usize] = by);
    }

    /// Nothing arrives, and neither end is told. New connections are taken.
    pub fn stall(&self) {
        self.set(|settings| settings.stalls = [true; 2]);
    }

    /// Nothing arrives on this way.
    pub fn stall_to(&self, to: To) {
        self.set(|settings| settings.stalls[to as usize] = true);
    }

    /// What was stalled arrives now.
    pub fn go_on(&self) {
        self.set(|settings| settings.stalls = [false; 2]);
    }

    /// Both ends of every open connection are reset.
    pub fn drop_all(&self) {
        self.set(|settings| settings.resets.iter_mut().for_each(|count| *count += 1));
    }

    /// This end of every open connection is reset. The other end is not told, and what was
    /// on its way is lost.
    pub fn reset(&self, end: To) {
        self.set(|settings| settings.resets[end as usize] += 1);
    }

    /// This end of every open connection reads its end; the other way stays as it is.
    pub fn half_close(&self, end: To) {
        self.set(|settings| settings.half_closes[end as usize] += 1);
    }

    /// New connections are refused: nothing listens there.
    pub fn refuse(&self) {
        self.set(|settings| settings.refuses = true);
        self.expect_refuses(true);
    }

    /// The end of [`Proxy::refuse`].
    pub fn accept(&self) {
        self.set(|settings| settings.refuses = false);
        self.expect_refuses(false);
    }

    fn expect_refuses(&self, refuses: bool) {
        eventually("it listens, or no more", || {
            self.counts.refuses.load(Ordering::SeqCst) == refuses
        });
    }

    /// Connections of these sources stall, both ways, and no others.
    pub fn cut(&self, sources: BTreeSet<usize>) {
        self.set(|settings| settings.cut = sources);
    }

    pub fn cut_more(&self, source: usize) {
        self.set(|settings| _ = settings.cut.insert(source));
    }

    /// How many connections it took.
    pub fn accepted(&self) -> usize {
        self.counts.accepted.load(Ordering::SeqCst)
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.counts.open.load(Ordering::SeqCst)
    }

    /// How many bytes it handed on.
    pub fn bytes(&self, to: To) -> u64 {
        self.counts.bytes[to as usize].load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.settings = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// What all connections of a proxy share.
struct Path {
    address: SocketAddr,
    target: SocketAddr,
    source: Source,
    counts: Arc<Counts>,
    settings: watch::Receiver<Settings>,
}

/// Ends with the proxy.
async fn serve(listener: std::net::TcpListener, path: Path) {
    let mut listener = Some(listen(listener));
    let mut settings = path.settings.clone();
    let path = Arc::new(path);
    loop {
        let refuses = settings.borrow_and_update().refuses;
        if refuses {
            // Also where a process that is being started has a copy of it for a moment.
            let _ = listener.take().map(|listener| shutdown(&listener, Half::Read));
        } else if listener.is_none() {
            let again = std::net::TcpListener::bind(path.address).expect("its port again");
            listener = Some(listen(again));
        }
        path.counts.refuses.store(refuses, Ordering::SeqCst);
        tokio::select! {
            changed = settings.changed() => if changed.is_err() {
                // The next proxy may be given this port.
                let _ = listener.take().map(|listener| shutdown(&listener, Half::Read));
                return;
            },
            near = accept(listener.as_ref()) => {
                let (near, from) = near.expect("a connection");
                path.counts.accepted.fetch_add(1, Ordering::SeqCst);
                let then = settings.borrow().clone();
                tokio::spawn(connect(near, from, then, Arc::clone(&path)));
            }
        }
    }
}

fn listen(listener: std::net::TcpListener) -> TcpListener {
    listener.set_nonblocking(true).expect("it does not block");
    TcpListener::from_std(listener).expect("a listener")
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// `then`: when it was taken. What is done to open connections later is done to this one.
async fn connect(near: TcpStream, from: SocketAddr, then: Settings, path: Arc<Path>) {
    let Some(source) = (path.source)(from) else { return reset(near) };
    // A server that is down refuses: so does the way to it.
    let Ok(far) = TcpStream::connect(path.target).await else { return reset(near) };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    path.counts.open.fetch_add(1, Ordering::SeqCst);
    join(near, far, source, &then, &path).await;
    path.counts.open.fetch_sub(1, Ordering::SeqCst);
}

fn reset(stream: TcpStream) {
    let _ = stream.set_zero_linger();
}

/// Until both ways have ended, or an end is reset.
async fn join(near: TcpStream, far: TcpStream, source: usize, then: &Settings, path: &Path) {
    let both = async {
        let way = |to: To| Way { to, source, half_closes: then.half_closes[to as usize], path };
        let (up, down) = (way(To::Server), way(To::Client));
        tokio::join!(up.carry(&near, &far), down.carry(&far, &near))
    };
    let mut settings = path.settings.clone();
    let before = then.resets;
    let after = tokio::select! {
        _ = both => return,
        after = has_reset(&mut settings, before) => after,
    };
    let Some(after) = after else { return };
    let is_reset = |end: To| after[end as usize] != before[end as usize];
    match (is_reset(To::Server), is_reset(To::Client)) {
        (true, false) => {
            reset(far);
            be_silent(near, To::Client, settings, after).await;
        }
        (false, true) => {
            reset(near);
            be_silent(far, To::Server, settings, after).await;
        }
        _ => {
            reset(near);
            reset(far);
        }
    }
}

/// The counts when they differ from these; `None` with the end of the proxy.
async fn has_reset(
    settings: &mut watch::Receiver<Settings>,
    before: [usize; 2],
) -> Option<[usize; 2]> {
    let changed = settings.wait_for(|settings| settings.resets != before).await;
    changed.ok().map(|settings| settings.resets)
}

/// Keeps an end open whose other end was reset, until it closes or is reset as well.
async fn be_silent(
    kept: TcpStream,
    end: To,
    mut settings: watch::Receiver<Settings>,
    before: [usize; 2],
) {
    let is_reset = |settings: &Settings| settings.resets[end as usize] != before[end as usize];
    tokio::select! {
        _ = swallow(&kept) => {}
        ended = settings.wait_for(is_reset) => if ended.is_ok() { reset(kept) },
    }
}

async fn swallow(stream: &TcpStream) {
    while read(stream).await.is_some() {}
}

/// One way of a connection.
struct Way<'a> {
    to: To,
    source: usize,
    /// How often it was closed before this connection was there.
    half_closes: usize,
    path: &'a Path,
}

/// How many pieces are under way at most, of up to [`PIECE`] bytes each. With less, a delay
/// would limit how much goes through.
const UNDER_WAY: usize = 1024;

const PIECE: usize = 16 * 1024;

impl Way<'_> {
    async fn carry(&self, from: &TcpStream, to: &TcpStream) {
        let way = self.to as usize;
        let mut settings = self.path.settings.clone();
        // Each piece with the moment when it arrives; `None` is the end.
        let mut under_way: VecDeque<(Instant, Option<Vec<u8>>)> = VecDeque::new();
        let mut has_ended = false;
        loop {
            let now = settings.borrow_and_update().clone();
            if now.half_closes[way] != self.half_closes {
                let _ = shutdown(to, Half::Write);
                return;
            }
            let stalls = now.stalls[way] || now.cut.contains(&self.source);
            let next = under_way.front().map(|(arrival, _)| *arrival).filter(|_| !stalls);
            tokio::select! {
                changed = settings.changed() => if changed.is_err() { return },
                piece = read(from), if !has_ended && under_way.len() < UNDER_WAY => {
                    has_ended = piece.is_none();
                    // As it is set by now: bytes that were sent later see it.
                    let delay = settings.borrow().delays[way];
                    under_way.push_back((Instant::now() + delay, piece));
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    let Some((_, Some(piece))) = under_way.pop_front() else {
                        let _ = shutdown(to, Half::Write);
                        return;
                    };
                    if write(to, &piece).await.is_err() {
                        return;
                    }
                    self.path.counts.bytes[way].fetch_add(piece.len() as u64, Ordering::SeqCst);
                }
            }
        }
    }
}

/// `None` at the end, in order or not.
async fn read(stream: &TcpStream) -> Option<Vec<u8>> {
    let mut piece = vec![0; PIECE];
    loop {
        stream.readable().await.ok()?;
        match stream.try_read(&mut piece) {
            Ok(0) => return None,
            Ok(length) => {
                piece.truncate(length);
                return Some(piece);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
}

async fn write(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
