//! A network that fails: a TCP proxy before one address.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

#[derive(Clone, Copy)]
struct Settings {
    /// Bytes arrive so much later, though their sender has gone.
    delay: Duration,
    /// Nothing arrives, and neither end is told.
    is_stalled: bool,
    /// How often all connections of the time were cut, and how they were the last time.
    cuts: (u64, Break),
}

/// How connections are cut.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Break {
    /// Both ends are told.
    Both,
    /// The server is told by a reset, and the client is not.
    ResetServer,
    /// The client is told by a reset, and the server is not.
    ResetClient,
    /// The server sees the end of what the client sends; its own bytes arrive.
    EndOfClient,
    /// The client sees the end of what the server sends; its own bytes arrive.
    EndOfServer,
}

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    settings: watch::Sender<Settings>,
}

impl Proxy {
    pub(crate) fn to(target: SocketAddr, runtime: &Handle) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a setting");
        let address = listener.local_addr().expect("its address");
        let well = Settings { delay: Duration::ZERO, is_stalled: false, cuts: (0, Break::Both) };
        let (settings, seen) = watch::channel(well);
        let _runtime = runtime.enter();
        let listener = TcpListener::from_std(listener).expect("a listener");
        drop(runtime.spawn(serve(listener, target, seen)));
        Self { address, settings }
    }

    pub(crate) fn delay(&self, by: Duration) {
        self.settings.send_modify(|settings| settings.delay = by);
    }

    pub(crate) fn stall(&self) {
        self.settings.send_modify(|settings| settings.is_stalled = true);
    }

    pub(crate) fn cut(&self, how: Break) {
        self.settings.send_modify(|settings| settings.cuts = (settings.cuts.0 + 1, how));
    }

    /// No delay, and what was stalled arrives. Who was not told of a cut never is.
    pub(crate) fn heal(&self) {
        self.settings.send_modify(|settings| {
            (settings.delay, settings.is_stalled) = (Duration::ZERO, false);
        });
    }
}

async fn serve(listener: TcpListener, target: SocketAddr, settings: watch::Receiver<Settings>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        drop(tokio::spawn(connect(client, target, settings.clone())));
    }
}

async fn connect(
    mut client: TcpStream,
    target: SocketAddr,
    mut settings: watch::Receiver<Settings>,
) {
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let cuts = settings.borrow().cuts.0;
    let how = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let up = pass(from_client, to_server, settings.clone());
        let down = pass(from_server, to_client, settings.clone());
        tokio::select! {
            _ = async { tokio::join!(up, down) } => return,
            cut = settings.wait_for(|settings| settings.cuts.0 != cuts) => {
                let Ok(cut) = cut else { return };
                cut.cuts.1
            }
        }
    };
    let cuts = settings.borrow().cuts.0;
    let untold = settings.clone();
    let next_cut = settings.wait_for(|settings| settings.cuts.0 != cuts);
    match how {
        Break::Both => {}
        Break::ResetServer => {
            reset(server);
            let _ = next_cut.await;
        }
        Break::ResetClient => {
            reset(client);
            let _ = next_cut.await;
        }
        Break::EndOfClient => {
            let _ = server.shutdown().await;
            let (from, to) = (server.split().0, client.split().1);
            tokio::select! { () = pass(from, to, untold) => {}, _ = next_cut => {} }
        }
        Break::EndOfServer => {
            let _ = client.shutdown().await;
            let (from, to) = (client.split().0, server.split().1);
            tokio::select! { () = pass(from, to, untold) => {}, _ = next_cut => {} }
        }
    }
}

/// Its peer is told that the connection is gone, and not that it has ended.
fn reset(stream: TcpStream) {
    let _ = set_socket_linger(&stream, Some(Duration::ZERO));
}

/// One way of a connection.
async fn pass(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut settings: watch::Receiver<Settings>,
) {
    let (queue, mut queued) = mpsc::unbounded_channel();
    let delays = settings.clone();
    let reading = async move {
        loop {
            let mut bytes = vec![0; 16 * 1024];
            match from.read(&mut bytes).await {
                Ok(length) if length > 0 => bytes.truncate(length),
                _ => return,
            }
            let due = Instant::now() + delays.borrow().delay;
            if queue.send((due, bytes)).is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((due, bytes)) = queued.recv().await {
            sleep_until(due).await;
            let is_passed = settings.wait_for(|settings| !settings.is_stalled).await.is_ok();
            if !is_passed || to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(reading, writing);
}
