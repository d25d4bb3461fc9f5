//! `/metrics` for Prometheus, and `/healthz` and `/readyz` for probes.

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
            Operation::get("/healthz", "Say that the daemon is alive")
                .details(
                    "Whatever it may do, it answers. A daemon that does not is to be restarted.",
                )
                .access(Access::Open)
                .says(200, PLAIN, "`ok`."),
            healthz,
        )
        .at_service(rpc::operation("/healthz"), calls.clone())
        .at(
            Operation::get("/readyz", "Say whether locks can be had here")
                .details(
                    "`stopping`: the daemon ends; soon it takes no connection. `storage`: the disk is full, or has refused a \
                     lock within 30 s and given none since. `failed`: the daemon may write to its \
                     directory no more, and ends. Before it has recovered, it does not answer.",
                )
                .access(Access::Open)
                .says(200, PLAIN, "`ok`.")
                .says(503, PLAIN, "`stopping`, `storage` or `failed`."),
            readyz,
        )
        .at_service(rpc::operation("/readyz"), calls.clone())
}

async fn metrics(State(watched): State<Watched>) -> Response {
    text(StatusCode::OK, TEXT, exposition(&watched.engine.figures()))
}

/// There is one who answers.
async fn healthz() -> Response {
    text(StatusCode::OK, PLAIN, "ok\n".to_owned())
}

/// Whether locks can be had here.
async fn readyz(State(Watched { engine, stop }): State<Watched>) -> Response {
    // Of `failed` the reason has paths in it, and everybody may ask.
    let why_not = match engine.failed().now_or_never() {
        _ if stop.is_cancelled() => "stopping\n",
        Some(_) => "failed\n",
        None if !engine.has_storage() => "storage\n",
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
    build_info(&mut out);
    out
}

/// What runs: a figure that is always 1, with the answer for its label.
fn build_info(out: &mut String) {
    let name = "lockkeeper_build_info";
    let version = env!("CARGO_PKG_VERSION");
    writeln!(out, "# HELP {name} The version that runs.\n# TYPE {name} gauge").expect(WRITES);
    writeln!(out, "{name}{{version=\"{version}\"}} 1").expect(WRITES);
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
