//! Who holds what, sent whenever that changes: server-sent events.
//!
//! However many watch and however much changes, the list is made at most four
//! times a second.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::Response;
use futures_util::stream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::auth::Caller;
use super::failure::Failure;
use super::json::{Api, Wanted};
use super::listen::{Peer, PeerGroup};
use super::seats::Seat;
use crate::lockd::engine::{Engine, Held};

/// Between two lists.
const SPACING: Duration = Duration::from_millis(250);

/// A sign of life when nothing changes.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The last list that was made, for all who watch.
#[derive(Clone)]
pub(crate) struct Live {
    engine: Engine,
    last: Arc<Mutex<Option<Snapshot>>>,
}

/// The list as it was.
#[derive(Clone)]
struct Snapshot {
    version: u64,
    at: Instant,
    list: Arc<Vec<Held>>,
}

impl Live {
    pub(crate) fn new(engine: Engine) -> Self {
        Self { engine, last: Arc::default() }
    }

    /// A list that is not older than [`SPACING`].
    fn snapshot(&self, changes: &watch::Receiver<u64>) -> Snapshot {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = last.as_ref().filter(|last| last.at.elapsed() < SPACING);
        if let Some(fresh) = fresh {
            return fresh.clone();
        }
        // The version before the list: what changes in between is sent again.
        let version = *changes.borrow();
        let list = Arc::new(self.engine.list());
        let snapshot = Snapshot { version, at: Instant::now(), list };
        *last = Some(snapshot.clone());
        snapshot
    }
}

/// One who watches.
struct Viewer {
    live: Live,
    changes: watch::Receiver<u64>,
    sent: Option<u64>,
    wanted: Wanted,
    caller: Caller,
    stop: CancellationToken,
    _seat: Seat,
}

impl Viewer {
    /// The next event; `None` at the end of the daemon.
    async fn next(&mut self) -> Option<String> {
        let stop = self.stop.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => None,
            event = self.event() => event,
        }
    }

    async fn event(&mut self) -> Option<String> {
        if self.sent.is_some() {
            sleep(SPACING).await;
        }
        let sent = self.sent;
        let changed = self.changes.wait_for(|version| Some(*version) != sent);
        match timeout(KEEP_ALIVE, changed).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return None,
            Err(_) => return Some(":\n\n".to_owned()),
        }
        let snapshot = self.live.snapshot(&self.changes);
        self.sent = Some(snapshot.version);
        let list = self.wanted.select(&snapshot.list, snapshot.at.elapsed(), &self.caller);
        // JSON has no line ends of its own.
        Some(format!("event: locks\ndata: {list}\n\n"))
    }
}

/// `GET /v1/events`.
pub(crate) async fn events(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Extension(Peer(peer)): Extension<Peer>,
    uri: Uri,
) -> Result<Response, Failure> {
    let wanted = Wanted::of(&uri)?;
    let seat = api.viewers.take(PeerGroup::of(peer)).ok_or_else(|| {
        let text = "too many watch already: close a page";
        Failure::new(StatusCode::TOO_MANY_REQUESTS, "too_many_viewers", text)
    })?;
    let changes = api.engine.changes();
    let (live, stop) = (api.live, api.stop);
    let viewer = Viewer { live, changes, sent: None, wanted, caller, stop, _seat: seat };
    let events = stream::unfold(viewer, async |mut viewer| {
        let event = viewer.next().await?;
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(event)), viewer))
    });
    let mut response = Response::new(Body::from_stream(events));
    let kind = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}
