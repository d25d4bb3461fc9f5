//! A network that fails: a TCP proxy before one address.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

#[derive(Clone, Copy, Default)]
struct Settings {
    /// Bytes arrive so much later, though their sender has gone.
    delay: Duration,
    /// Nothing arrives, and neither end is told.
    is_stalled: bool,
    /// How often all connections of the time were dropped.
    drops: u64,
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
        let (settings, seen) = watch::channel(Settings::default());
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

    pub(crate) fn drop_all(&self) {
        self.settings.send_modify(|settings| settings.drops += 1);
    }

    /// No delay, and what was stalled arrives.
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

async fn connect(client: TcpStream, target: SocketAddr, mut settings: watch::Receiver<Settings>) {
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let drops = settings.borrow().drops;
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    let up = pass(from_client, to_server, settings.clone());
    let down = pass(from_server, to_client, settings.clone());
    tokio::select! {
        _ = async { tokio::join!(up, down) } => {}
        _ = settings.wait_for(|settings| settings.drops != drops) => {}
    }
}

/// One way of a connection.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
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
