//! The daemon on the network: connections, and what is at which path.

pub(crate) mod access_tokens;
pub(crate) mod app_state;
pub(crate) mod auth;
mod connections;
mod delivery;
mod error_response;
mod failure_counts;
mod json;
pub(crate) mod limits;
mod linger;
pub(crate) mod listen;
mod listing;
mod live;
pub(crate) mod metrics;
mod openapi;
pub(crate) mod origin;
mod page;
pub(crate) mod permits;
mod proxy;
mod request;
mod routes;
pub(crate) mod rpc;
mod socket;
pub(crate) mod survey_cache;
mod tcp;
pub(crate) mod tls;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;

use self::routes::Operation;

/// All that is served: the JSON API, the metrics and the page at their paths,
/// and XML-RPC for what is left. The same again below the prefix, if there is one.
pub(crate) fn router(api: app_state::AppState, rpc: rpc::Rpc, gate: auth::Gate) -> Router {
    let prefix = gate.prefix().to_owned();
    let served = api.document.clone();
    let (all, operations) = all(api, rpc, &gate);
    served.get_or_init(|| openapi::document(&operations, gate.needs_token(), &prefix).into());
    let all = all.layer(from_fn_with_state(gate, auth::admit));
    match prefix.as_str() {
        "" => all,
        prefix => Router::new().nest_service(prefix, all.clone()).fallback_service(all),
    }
}

/// The routes, and what is said of them.
fn all(api: app_state::AppState, rpc: rpc::Rpc, gate: &auth::Gate) -> (Router, Vec<Operation>) {
    let others = rpc::router(rpc);
    let watched = metrics::MetricsState {
        locks: api.locks.clone(),
        gate: gate.clone(),
        counts: api.counts.clone(),
        stop: api.stop.clone(),
    };
    let parts = [
        metrics::routes(&others).finish(watched),
        page::routes(&others).finish(()),
        json::routes().at(openapi::operation(), openapi::served).finish(Arc::new(api)),
        (json::rest(), vec![rpc::operation("/RPC2")]),
    ];
    let (routers, operations): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    let router = routers.into_iter().fold(Router::new(), Router::merge);
    (router.fallback_service(others), operations.concat())
}
