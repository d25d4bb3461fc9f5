//! `/metrics` for Prometheus, and `/healthz`.

use std::fmt::Write as _;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::MethodRouter;
use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use super::routes::{Access, Operation, Routes};
use super::rpc;
use crate::lockd::engine::{Engine, Figures};
use crate::lockd::store::SYNC_BOUNDS;

/// Version 0.0.4 of the text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// For text that people read.
const PLAIN: &str = "text/plain; charset=utf-8";

/// What is looked at.
#[derive(Clone)]
pub(super) struct Watched {
    pub(super) engine: Engine,
    pub(super) stop: CancellationToken,
}

/// `calls` are of XML-RPC, which come with any path.
pub(super) fn routes(calls: &Router) -> Routes<Watched> {
    Routes::new(MethodRouter::new())
        .at(
            Operation::get("/metrics", "Figures for Prometheus").says(200, TEXT, "The figures."),
            metrics,
        )
        .at_service(rpc::operation("/metrics"), calls.clone())
        .at(
            Operation::get("/healthz", "Say whether locks can be had here")
                .access(Access::Open)
                .says(200, PLAIN, "`ok`.")
                .says(503, PLAIN, "`stopping`, `storage` or `failed`."),
            healthz,
        )
        .at_service(rpc::operation("/healthz"), calls.clone())
}

async fn metrics(State(watched): State<Watched>) -> Response {
    text(StatusCode::OK, TEXT, exposition(&watched.engine.figures()))
}

/// Whether locks can be had here.
async fn healthz(State(Watched { engine, stop }): State<Watched>) -> Response {
    if stop.is_cancelled() {
        return text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, "stopping\n".to_owned());
    }
    match engine.failed().now_or_never() {
        None if !engine.has_storage() => {
            text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, "storage\n".to_owned())
        }
        None => text(StatusCode::OK, PLAIN, "ok\n".to_owned()),
        // The reason has paths in it, and everybody may ask.
        Some(_) => text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, "failed\n".to_owned()),
    }
}

fn text(status: StatusCode, kind: &'static str, text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn exposition(figures: &Figures) -> String {
    let mut out = String::new();
    let gauges = [
        ("held", figures.held, "Locks that are held now."),
        ("waiting", figures.waiting, "Requests that wait for a lock now."),
        ("last_token", figures.last_token, "No fencing token above this one was given."),
    ];
    let counters = [
        ("granted", figures.granted, "Locks that were given."),
        ("released", figures.released, "Locks that their clients gave back."),
        ("refused", figures.refused, "Requests for a lock that were refused or ran out of time."),
        ("expired", figures.expired, "Locks whose lease ran out."),
        ("forced", figures.forced, "Locks that an administrator ended."),
    ];
    for (name, value, help) in gauges {
        metric(&mut out, &format!("lockkeeper_{name}"), "gauge", help, value);
    }
    for (name, value, help) in counters {
        metric(&mut out, &format!("lockkeeper_{name}_total"), "counter", help, value);
    }
    sync_time(&mut out, figures);
    out
}

fn metric(out: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}").expect(WRITES);
}

const WRITES: &str = "BUG: a string was not written";

fn sync_time(out: &mut String, figures: &Figures) {
    let name = "lockkeeper_sync_seconds";
    let (count, sum) = (figures.syncs.count, figures.syncs.time.as_secs_f64());
    writeln!(out, "# HELP {name} How long syncs of the journal took.\n# TYPE {name} histogram")
        .expect(WRITES);
    for (bound, within) in SYNC_BOUNDS.iter().zip(figures.syncs.within) {
        let bound = bound.as_secs_f64();
        writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {within}").expect(WRITES);
    }
    writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}").expect(WRITES);
    writeln!(out, "{name}_sum {sum}\n{name}_count {count}").expect(WRITES);
}
