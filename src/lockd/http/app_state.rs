//! What the handlers of the JSON API share.

use std::sync::{Arc, OnceLock};

use axum::body::Bytes;
use tokio_util::sync::CancellationToken;

use super::limits::BodyReader;
use super::metrics::Counts;
use super::permits::Permits;
use super::survey_cache::SurveyCache;
use crate::lockd::state::LockTable;

/// What answers.
pub(crate) struct AppState {
    pub(crate) locks: LockTable,
    pub(crate) bodies: BodyReader,
    /// For requests that wait for a lock.
    pub(crate) waiting: Permits,
    /// For viewers.
    pub(crate) viewers: Permits,
    pub(crate) live: SurveyCache,
    /// For Prometheus.
    pub(crate) counts: Counts,
    /// The description of the API: made from the routes, before anything is served.
    pub(crate) document: Arc<OnceLock<Bytes>>,
    /// The daemon ends.
    pub(crate) stop: CancellationToken,
}
