//! The daemon on the network: connections, and what is at which path.

pub(crate) mod auth;
pub(crate) mod delivery;
mod failure;
pub(crate) mod json;
pub(crate) mod limits;
mod linger;
pub(crate) mod listen;
mod listing;
pub(crate) mod live;
mod metrics;
pub(crate) mod origin;
mod page;
mod proxy;
pub(crate) mod rpc;
pub(crate) mod seats;
mod socket;
pub(crate) mod tls;
pub(crate) mod tokens;

use axum::Router;
use axum::middleware::from_fn_with_state;

/// All that is served: the JSON API, the metrics and the page at their paths,
/// and XML-RPC for what is left. The same again below the prefix, if there is one.
pub(crate) fn router(api: json::Api, rpc: rpc::Rpc, gate: auth::Gate) -> Router {
    let others = rpc::router(rpc);
    let prefix = gate.prefix().to_owned();
    let all = Router::new()
        .merge(metrics::router(api.engine.clone(), api.stop.clone(), &others))
        .merge(page::router(&others))
        .merge(json::router(api))
        .fallback_service(others)
        .layer(from_fn_with_state(gate, auth::admit));
    match prefix.as_str() {
        "" => all,
        prefix => Router::new().nest_service(prefix, all.clone()).fallback_service(all),
    }
}
