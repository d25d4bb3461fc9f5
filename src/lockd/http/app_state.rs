//! What the handlers of the JSON API share.

use std::sync::{Arc, OnceLock};

use axum::body::Bytes;
use tokio_util::sync::CancellationToken;

use super::limits::BodyReader;
use super::metrics::Counts;
use super::permits::Seats;
use super::survey_cache::Live;
use crate::lockd::state::Engine;

/// What answers.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) engine: Engine,
    pub(crate) bodies: BodyReader,
    /// For requests that wait for a lock.
    pub(crate) waiting: Seats,
    /// For those who watch.
    pub(crate) viewers: Seats,
    pub(crate) live: Live,
    /// For Prometheus.
    pub(crate) counts: Counts,
    /// The description of the API: made from the routes, before anything is served.
    pub(crate) document: Arc<OnceLock<Bytes>>,
    /// The daemon ends.
    pub(crate) stop: CancellationToken,
}
