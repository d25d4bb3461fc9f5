//! `/metrics` for Prometheus, and `/healthz` and `/readyz` for probes.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::MethodRouter;
use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use super::auth::Gate;
use super::routes::{Operation, RequiredAccess, Routes};
use super::rpc;
use crate::lockd::histogram::Histogram;
use crate::lockd::state::{LockTable, TIME_BOUNDS};
use crate::lockd::store::SYNC_BOUNDS;

/// Version 0.0.4 of the text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// For text that people read.
const PLAIN: &str = "text/plain; charset=utf-8";

/// What is looked at.
#[derive(Clone)]
pub(super) struct MetricsState {
    pub(super) locks: LockTable,
    pub(super) gate: Gate,
    pub(super) counts: Counts,
    pub(super) stop: CancellationToken,
}

/// What is counted elsewhere.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// Connections that are open.
    pub(crate) connections: Arc<AtomicU64>,
    /// Where the program counts them.
    pub(crate) log_lines_dropped: Option<Arc<AtomicU64>>,
}

/// `calls` are of XML-RPC, which come with any path.
pub(super) fn routes(calls: &Router) -> Routes<MetricsState> {
    Routes::new(MethodRouter::new())
        .at(
            Operation::get("/metrics", "Figures for Prometheus").says(200, TEXT, "The figures."),
            metrics,
        )
        .at_service(rpc::operation("/metrics"), calls.clone())
        .at(
            Operation::get("/healthz", "Say that the daemon is alive")
                .details(
                    "Whatever it may do, it answers. A daemon that does not is to be restarted.",
                )
                .access(RequiredAccess::Open)
                .says(200, PLAIN, "`ok`."),
            healthz,
        )
        .at_service(rpc::operation("/healthz"), calls.clone())
        .at(
            Operation::get("/readyz", "Say whether locks can be acquired here")
                .details(
                    "`stopping`: the daemon ends; soon it takes no connection. `storage`: the disk \
                     is full, or has refused a lock within 30 s and given none since, but not for \
                     its name alone. `failed`: the daemon may write to its directory no more, and \
                     ends. Before it has recovered, it does not answer.",
                )
                .access(RequiredAccess::Open)
                .says(200, PLAIN, "`ok`.")
                .says(503, PLAIN, "`stopping`, `storage` or `failed`."),
            readyz,
        )
        .at_service(rpc::operation("/readyz"), calls.clone())
}

async fn metrics(State(watched): State<MetricsState>) -> Response {
    text(StatusCode::OK, TEXT, exposition(&watched))
}

/// The daemon answers.
async fn healthz() -> Response {
    text(StatusCode::OK, PLAIN, "ok\n".to_owned())
}

/// Whether locks can be had here.
async fn readyz(State(MetricsState { locks, stop, .. }): State<MetricsState>) -> Response {
    // The reason of `failed` has paths in it, and no right is needed here.
    let why_not = match locks.failed().now_or_never() {
        _ if stop.is_cancelled() => "stopping\n",
        Some(_) => "failed\n",
        None if !locks.has_storage() => "storage\n",
        None => return text(StatusCode::OK, PLAIN, "ok\n".to_owned()),
    };
    text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, why_not.to_owned())
}

fn text(status: StatusCode, kind: &'static str, text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn exposition(watched: &MetricsState) -> String {
    let figures = watched.locks.figures();
    let mut out = Exposition::default();
    out.gauge("held", "Locks that are held.", figures.held);
    out.gauge("waiting", "Requests that wait for a lock.", figures.waiting);
    let files = "Files in the directory that do not say whose lock they are.";
    out.gauge("problems", files, figures.problems);
    let token = "No fencing token above this one was given.";
    out.gauge("last_token", token, figures.last_token);
    let connections = watched.counts.connections.load(Ordering::Relaxed);
    out.gauge("connections", "Connections that are open.", connections);
    out.counter("granted", "Locks that were given.", figures.granted);
    out.counter("released", "Locks that their clients gave back.", figures.released);
    let refused = "Requests for a lock that were refused or ran out of time.";
    out.counter("refused", refused, figures.refused);
    out.counter("expired", "Locks whose lease ran out.", figures.expired);
    out.counter("forced", "Locks that an administrator ended.", figures.forced);
    out.counter("disk_errors", "Changes that the disk refused.", figures.disk_errors);
    let logins = "Requests with a token that is not known here.";
    out.counter("failed_logins", logins, watched.gate.failed_logins());
    let foreign = "Requests for another host, or from a page of one.";
    out.counter("foreign_requests", foreign, watched.gate.foreign_requests());
    if let Some(lines) = &watched.counts.log_lines_dropped {
        let dropped = "Lines of the log that were dropped because no reader took them.";
        out.counter("log_lines_dropped", dropped, lines.load(Ordering::Relaxed));
    }
    let waits = "How long requests waited for the locks that they were given.";
    out.histogram("wait_seconds", waits, &figures.waits, &TIME_BOUNDS);
    let holds = "How long locks were held, of those that ended.";
    out.histogram("hold_seconds", holds, &figures.holds, &TIME_BOUNDS);
    let syncs = "How long syncs of the journal took.";
    out.histogram("sync_seconds", syncs, &figures.syncs, &SYNC_BOUNDS);
    out.build_info();
    out.0
}

/// Figures in the text format, one after the other.
#[derive(Default)]
struct Exposition(String);

const WRITES: &str = "BUG: a string was not written";

impl Exposition {
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}").expect(WRITES);
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        let name = format!("lockkeeper_{name}");
        self.head(&name, help, "gauge");
        writeln!(self.0, "{name} {value}").expect(WRITES);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        let name = format!("lockkeeper_{name}_total");
        self.head(&name, help, "counter");
        writeln!(self.0, "{name} {value}").expect(WRITES);
    }

    fn histogram<const BOUNDS: usize>(
        &mut self,
        name: &str,
        help: &str,
        figures: &Histogram<BOUNDS>,
        bounds: &[Duration; BOUNDS],
    ) {
        let name = format!("lockkeeper_{name}");
        self.head(&name, help, "histogram");
        for (bound, within) in bounds.iter().zip(figures.within) {
            let bound = bound.as_secs_f64();
            writeln!(self.0, "{name}_bucket{{le=\"{bound}\"}} {within}").expect(WRITES);
        }
        let (count, sum) = (figures.count, figures.time.as_secs_f64());
        writeln!(self.0, "{name}_bucket{{le=\"+Inf\"}} {count}").expect(WRITES);
        writeln!(self.0, "{name}_sum {sum}\n{name}_count {count}").expect(WRITES);
    }

    /// What runs: a figure that is always 1, with the answer for its label.
    fn build_info(&mut self) {
        let (name, version) = ("lockkeeper_build_info", env!("CARGO_PKG_VERSION"));
        self.head(name, "The version that runs.", "gauge");
        writeln!(self.0, "{name}{{version=\"{version}\"}} 1").expect(WRITES);
    }
}
