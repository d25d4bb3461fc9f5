//! The list of locks, sent whenever it changes: server-sent events.
//!
//! The books are gone through at most four times a second, however many viewers there are
//! and however much changes.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, Uri, header};
use axum::response::Response;
use futures_util::stream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::app_state::AppState;
use super::error_response::ErrorResponse;
use super::listing::{ListFilter, Listing};
use super::permits::Permit;
use super::request::Caller;
use super::routes::Operation;
use super::socket::Peer;
use super::survey_cache::{SPACING, SurveyCache, TimedSurvey};
use crate::wire::{Code, List, Search};

/// Between two comments while nothing changes. Proxies end a connection on which
/// nothing came for 30 to 60 seconds, and the page after 25.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Makes a proxy pass on what it has at once: nginx would wait for a full buffer.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// A stream of events.
struct Viewer {
    live: SurveyCache,
    changes: watch::Receiver<u64>,
    sent: Option<u64>,
    /// The event that is on its way.
    listing: Option<Listing>,
    filter: ListFilter,
    caller: Caller,
    /// Whether file paths are shown.
    is_administrator: bool,
    peer: Peer,
    stop: CancellationToken,
    _permit: Permit,
}

impl Viewer {
    /// The next piece of an event; `None` at the end of the daemon, or when the peer has
    /// closed its side after the first event. It ends too when the token may look no more,
    /// or may see other things than before.
    async fn next(&mut self) -> Option<String> {
        if !self.caller.sees_as(self.is_administrator) {
            return None;
        }
        if let Some(piece) = self.piece() {
            return Some(piece);
        }
        let (stop, peer, is_first) = (self.stop.clone(), self.peer.clone(), self.sent.is_none());
        let (caller, is_administrator) = (self.caller.clone(), self.is_administrator);
        tokio::select! {
            biased;
            () = stop.cancelled() => None,
            () = caller.loses(|bearer| bearer.is_administrator == is_administrator) => None,
            event = self.event() => event,
            () = peer.hangs_up(), if !is_first => None,
        }
    }

    fn piece(&mut self) -> Option<String> {
        let piece = self.listing.as_mut()?.next();
        if piece.is_none() {
            self.listing = None;
            return Some("\n\n".to_owned());
        }
        piece
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
        let TimedSurvey { version, at, survey } = self.live.snapshot(&self.changes);
        self.sent = Some(version);
        let (locks, filter) = (self.live.locks.clone(), self.filter.clone());
        self.listing = Some(Listing::new(locks, survey, at, filter, self.is_administrator));
        // JSON has no line ends of its own.
        Some("event: locks\ndata: ".to_owned())
    }
}

/// `GET /v1/events`, as it is described.
pub(super) fn operation() -> Operation {
    Operation::get("/v1/events", "Hear of every change, as server-sent events")
        .details(
            "The first event comes at once, and then one after each change, at most four a \
             second. All are called `locks`, and have the whole list for their data. While \
             nothing changes, comments keep the connection alive.",
        )
        .query::<Search>()
        .streams::<List>("The stream; it ends with the daemon.")
        .refuses(&[Code::Invalid, Code::TooManyViewers])
}

pub(crate) async fn events(
    State(api): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
) -> Result<Response, ErrorResponse> {
    let filter = ListFilter::of(&uri)?;
    let permit = api.viewers.take(caller.share()).ok_or_else(|| {
        let text = "too many watch already: close a page";
        ErrorResponse::new(Code::TooManyViewers, text)
    })?;
    let changes = api.locks.changes();
    let (live, stop) = (api.live.clone(), api.stop.clone());
    let (sent, listing) = (None, None);
    let is_administrator = caller.is_administrator();
    let viewer = Viewer {
        live,
        changes,
        sent,
        listing,
        filter,
        caller,
        is_administrator,
        peer,
        stop,
        _permit: permit,
    };
    let events = stream::unfold(viewer, async |mut viewer| {
        let event = viewer.next().await?;
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(event)), viewer))
    });
    let mut response = Response::new(Body::from_stream(events));
    let kind = HeaderValue::from_static("text/event-stream");
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}
