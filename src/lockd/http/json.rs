//! The JSON API: everything below `/v1/`.
//!
//! A client that closes its side for writing while it waits for a lock waits no more. It is
//! answered at once, as if its limit were reached: with a grant that was on its way, or with
//! `timeout`. If that answer does not reach the client, a proxy gave up. Then a request with
//! an id has its place again for a while.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::{HeaderValue, StatusCode, Uri, header, request::Parts};
use axum::response::Response;
use axum::routing::MethodRouter;
use axum::{Extension, Router};
use futures_util::stream;
use serde::de::DeserializeOwned;

use super::app_state::AppState;
use super::error_response::{self, ErrorResponse};
use super::limits;
use super::listing::{ListFilter, Listing, milliseconds, shown, since_epoch};
use super::live;
use super::origin::one;
use super::request::Caller;
use super::routes::{Operation, RequiredAccess, Routes};
use super::socket::Peer;
use crate::lockd::state::{GrantReply, LockRequest, Refusal, WaitLimit};
use crate::wire::{
    About, Acquire, Code, ForceRelease, Granted, Holder, HolderSince, List, Milliseconds, Release,
    Released, Renew, Renewed, Search, ShownLock, Token,
};

/// A request with a body.
const BODY: [Code; 3] = [Code::Invalid, Code::Body, Code::NotJson];

/// Codes for what the books or the disk refuse.
const STATE: [Code; 3] = [Code::Poisoned, Code::Storage, Code::ShuttingDown];

pub(super) fn routes() -> Routes<Arc<AppState>> {
    let routes = Routes::new(MethodRouter::new().fallback(wrong_method));
    let routes = routes
        .at(Operation::get("/v1/", "Say what answers here").answers::<About>("The program."), about)
        .at(
            Operation::get("/v1/locks", "List the locks that are held, and their waiters")
                .query::<Search>()
                .answers::<List>("The locks, by name.")
                .refuses(&[Code::Invalid]),
            list,
        )
        .at(
            Operation::get("/v1/locks/{resource}", "Show one lock")
                .answers::<ShownLock>("It is held.")
                .refuses(&[Code::Invalid, Code::NotLocked]),
            show,
        )
        .at(live::operation(), live::events);
    let paths = ["/v1/acquire", "/v1/locks/{resource}/acquire"];
    let routes = paths.into_iter().fold(routes, |routes, path| routes.at(acquires(path), acquire));
    let paths = ["/v1/renew", "/v1/locks/{resource}/renew"];
    let routes = paths.into_iter().fold(routes, |routes, path| routes.at(renews(path), renew));
    let paths = ["/v1/release", "/v1/locks/{resource}/release"];
    let routes = paths.into_iter().fold(routes, |routes, path| routes.at(releases(path), release));
    let paths = ["/v1/force-release", "/v1/locks/{resource}/force-release"];
    paths.into_iter().fold(routes, |routes, path| routes.at(forces(path), force_release))
}

/// What is at no route of the API.
pub(super) fn rest() -> Router {
    Router::new().route("/v1/{*rest}", axum::routing::any(nothing_here))
}

fn acquires(path: &'static str) -> Operation {
    Operation::post(path, "Ask for a lock, and wait for it")
        .details(
            "A client that closes its side of the connection while it waits is answered at once, \
             as if its limit were reached. If that answer does not reach it, or its connection \
             breaks, the same request has its place in the queue again for 20 s, if it has a \
             request id.",
        )
        .takes::<Acquire>()
        .answers::<Granted>("The client has the lock.")
        .then(&["/v1/renew", "/v1/release"])
        .refuses(&BODY)
        .refuses(&STATE)
        .refuses(&[Code::BadName, Code::Forbidden, Code::Locked, Code::Timeout])
        .refuses(&[Code::RequestOver, Code::TooManyWaiting])
        .refuses(&[Code::LocksPerClient, Code::WaitersPerClient])
}

fn renews(path: &'static str) -> Operation {
    Operation::post(path, "Let the lease of a lock run anew")
        .takes::<Renew>()
        .answers::<Renewed>("It runs from now on.")
        .refuses(&BODY)
        .refuses(&STATE)
        .refuses(&[Code::Forbidden, Code::NotHeld])
}

fn releases(path: &'static str) -> Operation {
    Operation::post(path, "Give a lock back")
        .takes::<Release>()
        .answers::<Released>("It is free, or the next client's.")
        .refuses(&BODY)
        .refuses(&STATE)
        .refuses(&[Code::Forbidden, Code::NotLocked, Code::NotYours, Code::WrongToken])
}

fn forces(path: &'static str) -> Operation {
    Operation::post(path, "End a lock by force, or remove a file that names no client")
        .details("The holder is not asked and may still be at work.")
        .access(RequiredAccess::Administrator)
        .takes::<ForceRelease>()
        .answers::<ShownLock>("What it was.")
        .refuses(&BODY)
        .refuses(&STATE)
        .refuses(&[Code::Forbidden, Code::NotLocked, Code::WrongToken])
}

async fn about() -> Response {
    let version = env!("CARGO_PKG_VERSION");
    let about = About { name: "lockkeeper", openapi: "openapi.json", version };
    error_response::json(StatusCode::OK, &about)
}

async fn wrong_method(request: Request) -> ErrorResponse {
    limits::ignore(request.into_body());
    let text = "this path is not for this method";
    ErrorResponse::new(Code::WrongMethod, text)
}

async fn nothing_here(request: Request) -> ErrorResponse {
    limits::ignore(request.into_body());
    ErrorResponse::new(Code::NoSuchPath, "there is nothing at this path")
}

/// The resource a path names. No path can name "." and "..", which clients take
/// for steps, nor the empty name: for these there are paths without, and the
/// body has it.
struct NamedResource(Option<String>);

impl<S: Send + Sync> FromRequestParts<S> for NamedResource {
    type Rejection = ErrorResponse;

    async fn from_request_parts(head: &mut Parts, state: &S) -> Result<Self, ErrorResponse> {
        let named = Option::<Path<String>>::from_request_parts(head, state).await;
        let wrong =
            |_| ErrorResponse::invalid("the resource in the path is not UTF-8, percent-encoded");
        named.map(|named| Self(named.map(|Path(resource)| resource))).map_err(wrong)
    }
}

impl NamedResource {
    /// The one name, from the path or the body.
    fn or(self, in_body: Option<String>) -> Result<String, ErrorResponse> {
        match (self.0, in_body) {
            (Some(resource), None) | (None, Some(resource)) => Ok(resource),
            (None, None) => {
                Err(ErrorResponse::invalid("name the resource in the body or in the path"))
            }
            (Some(_), Some(_)) => {
                Err(ErrorResponse::invalid("the path names the resource already"))
            }
        }
    }
}

impl AppState {
    async fn read<T: DeserializeOwned>(&self, request: Request) -> Result<T, ErrorResponse> {
        let (head, body) = request.into_parts();
        // A page from elsewhere can send text without asking, but not JSON.
        if !is_json(&head) {
            limits::ignore(body);
            return Err(ErrorResponse::new(
                Code::NotJson,
                "send JSON, and say so: Content-Type: application/json",
            ));
        }
        let body = self.bodies.read(&head.headers, body).await?;
        // An array would be taken for the fields in the order of their declaration.
        if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
            return Err(ErrorResponse::invalid("send a JSON object"));
        }
        serde_json::from_slice(&body).map_err(|error| {
            ErrorResponse::invalid(format!("this is not what was expected: {error}"))
        })
    }

    async fn lock(
        &self,
        request: LockRequest,
        caller: &Caller,
        peer: &Peer,
    ) -> Result<Response, ErrorResponse> {
        let _permit = match request.wait {
            WaitLimit::No => None,
            _ => Some(self.waiting.take(caller.share()).ok_or_else(too_many_waiting)?),
        };
        let (resource, client) = (request.resource.clone(), request.client.clone());
        let request_id = request.request_id.clone();
        let locks = self.locks.requested_by(caller.requester());
        let granted = tokio::select! {
            biased;
            () = caller.loses(|bearer| bearer.may_use(&client)) => {
                return Err(caller.not_for(&client));
            }
            granted = locks.lock_for(request, peer.hangs_up()) => granted,
            () = self.stop.cancelled() => return Err(ErrorResponse::shutting_down()),
        };
        match granted {
            Ok(grant) => {
                let answer = granted_answer(&resource, &client, grant);
                peer.deliveries().expect_grant(locks, resource, grant.token);
                Ok(answer)
            }
            Err(refusal) => {
                let refused = self.refused(&resource, refusal);
                if let Some(id) = request_id.filter(|_| peer.has_hung_up()) {
                    peer.deliveries().expect_refusal(locks, resource, client, id);
                }
                Err(refused)
            }
        }
    }

    fn not_forced(&self, resource: &str, refusal: Refusal) -> ErrorResponse {
        let holder = self.locks.show(resource).map(|held| held.client);
        let Some(holder) = holder.filter(|_| refusal == Refusal::WrongToken) else {
            return refusal.into();
        };
        let text = "another client has it by now";
        ErrorResponse::new(Code::WrongToken, text).held_by(Holder { client: holder, hold: None })
    }

    /// With what is known of the holder.
    fn refused(&self, resource: &str, refusal: Refusal) -> ErrorResponse {
        let holder = match &refusal {
            Refusal::LockedBy { client } | Refusal::TimedOut { holder: client } => client.clone(),
            Refusal::NotYours { holder, .. } => holder.clone(),
            _ => return refusal.into(),
        };
        let shown = self.locks.show(resource).filter(|held| held.client == holder);
        let hold = shown.map(|held| HolderSince {
            remaining_ms: held.lease.map(|lease| milliseconds(lease.remaining)),
            since_ms: since_epoch(held.since),
        });
        ErrorResponse::from(refusal).held_by(Holder { client: holder, hold })
    }
}

fn granted_answer(resource: &str, client: &str, grant: GrantReply) -> Response {
    let (token, lease_ms) = (Token(grant.token), grant.lease.map(milliseconds));
    error_response::json(
        StatusCode::OK,
        &Granted { client: client.into(), lease_ms, resource: resource.into(), token },
    )
}

fn is_json(head: &Parts) -> bool {
    let Ok(Some(kind)) = one(&head.headers, &header::CONTENT_TYPE) else { return false };
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

fn too_many_waiting() -> ErrorResponse {
    ErrorResponse::new(
        Code::TooManyWaiting,
        "too many requests of this address or token, or of all, wait already: try again later",
    )
}

async fn acquire(
    State(api): State<Arc<AppState>>,
    named: NamedResource,
    Extension(caller): Extension<Caller>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Result<Response, ErrorResponse> {
    let Acquire { resource, client, wait_ms, lease_ms, request_id } = api.read(request).await?;
    let (resource, client): (Arc<str>, Arc<str>) = (named.or(resource)?.into(), client.into());
    let log = |failure: &ErrorResponse| {
        caller.log_refusal("acquire", Some(&resource), Some(&client), failure);
    };
    caller.must_be_for(&client).inspect_err(log)?;
    let wait = match wait_ms {
        None | Some(Some(Milliseconds(0))) => WaitLimit::No,
        Some(Some(Milliseconds(limit))) => WaitLimit::Until(Duration::from_millis(limit)),
        Some(None) => WaitLimit::Forever,
    };
    let lease = lease_ms.map(|Milliseconds(lease)| Duration::from_millis(lease));
    let request = LockRequest {
        resource: Arc::clone(&resource),
        client: Arc::clone(&client),
        wait,
        lease,
        request_id: request_id.map(Arc::from),
    };
    api.lock(request, &caller, &peer).await.inspect_err(log)
}

async fn renew(
    State(api): State<Arc<AppState>>,
    named: NamedResource,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ErrorResponse> {
    let Renew { resource, client, token } = api.read(request).await?;
    let resource = named.or(resource)?;
    let log = |failure: &ErrorResponse| {
        caller.log_refusal("renew", Some(&resource), Some(&client), failure);
    };
    caller.must_be_for(&client).inspect_err(log)?;
    match api.locks.renew(&resource, &client, token.0).await {
        Ok(lease) => {
            let lease_ms = (lease != Duration::MAX).then(|| milliseconds(lease));
            Ok(error_response::json(StatusCode::OK, &Renewed { lease_ms }))
        }
        Err(refusal) => Err(not_held(refusal)).inspect_err(log),
    }
}

/// One code for all reasons why a renewing client has no lock any more.
fn not_held(refusal: Refusal) -> ErrorResponse {
    let status = match &refusal {
        Refusal::NotLocked => 404,
        Refusal::NotYours { .. } | Refusal::WrongToken => 409,
        _ => return refusal.into(),
    };
    ErrorResponse::new(Code::NotHeld, refusal.to_string()).with_status(status)
}

async fn release(
    State(api): State<Arc<AppState>>,
    named: NamedResource,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ErrorResponse> {
    let Release { resource, client, token } = api.read(request).await?;
    let resource = named.or(resource)?;
    let log = |failure: &ErrorResponse| {
        caller.log_refusal("release", Some(&resource), Some(&client), failure);
    };
    caller.must_be_for(&client).inspect_err(log)?;
    let locks = api.locks.requested_by(caller.requester());
    let released = locks.unlock(&resource, &client, token.map(|Token(token)| token)).await;
    released.map_err(|refusal| api.refused(&resource, refusal)).inspect_err(log)?;
    Ok(error_response::json(
        StatusCode::OK,
        &Released { client: client.into(), resource: resource.into() },
    ))
}

async fn force_release(
    State(api): State<Arc<AppState>>,
    named: NamedResource,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ErrorResponse> {
    let log = |resource: Option<&str>, failure: &ErrorResponse| {
        caller.log_refusal("force-release", resource, None, failure);
    };
    if !caller.is_administrator() {
        limits::ignore(request.into_body());
        let text = "only administrators may do this";
        let failure = ErrorResponse::new(Code::Forbidden, text);
        log(named.0.as_deref(), &failure);
        return Err(failure);
    }
    let ForceRelease { resource, token } = api.read(request).await?;
    let resource = named.or(resource)?;
    let token = token.map(|Token(token)| token);
    let held = api.locks.requested_by(caller.requester()).force_unlock(&resource, token).await;
    let held = held.map_err(|refusal| api.not_forced(&resource, refusal));
    let held = held.inspect_err(|failure| log(Some(&resource), failure))?;
    Ok(error_response::json(StatusCode::OK, &shown(&held, true)))
}

async fn list(
    State(api): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> Result<Response, ErrorResponse> {
    let filter = ListFilter::of(&uri)?;
    let (at, survey) = (Instant::now(), Arc::new(api.locks.survey()));
    let is_administrator = caller.is_administrator();
    let mut listing = Listing::new(api.locks.clone(), survey, at, filter, is_administrator);
    let first = listing.next().unwrap_or_default();
    let body = match listing.next() {
        None => Body::from(first),
        Some(second) => {
            // An error closes the connection: half a list is not taken for a whole one.
            let or_error = move |piece| match caller.sees_as(is_administrator) {
                true => Ok(piece),
                false => Err("its token may not see this list any more"),
            };
            let pieces = [first, second].into_iter().chain(listing).map(or_error);
            Body::from_stream(stream::iter(pieces))
        }
    };
    let mut response = Response::new(body);
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}

async fn show(
    State(api): State<Arc<AppState>>,
    named: NamedResource,
    Extension(caller): Extension<Caller>,
) -> Result<Response, ErrorResponse> {
    let resource = named.or(None)?;
    let held = api.locks.show(&resource).ok_or(Refusal::NotLocked)?;
    Ok(error_response::json(StatusCode::OK, &shown(&held, caller.is_administrator())))
}
