//! The JSON API: everything below `/v1/`.
//!
//! A client that closes its side for writing while it waits for a lock waits no
//! more. It is answered at once, as if its limit were reached: with a grant that
//! was on its way, or with `timeout`. If that answer does not reach it, it was a
//! proxy that gave up: with a request id it has its place again for a while.

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

use super::app_state::Api;
use super::failure::{self, Failure};
use super::limits;
use super::listing::{Listing, Wanted, milliseconds, shown, since_epoch};
use super::live;
use super::origin::one;
use super::request::Caller;
use super::routes::{Access, Operation, Routes};
use super::socket::Peer;
use crate::lockd::state::{Grant, LockRequest, Refusal, Wait};
use crate::wire::{
    About, Acquire, Code, ForceRelease, Granted, Holder, HolderSince, List, Milliseconds, Release,
    Released, Renew, Renewed, Search, ShownLock, Token,
};

/// A request with a body.
const BODY: [Code; 3] = [Code::Invalid, Code::Body, Code::NotJson];

/// The books or the disk do not take it.
const STATE: [Code; 3] = [Code::Poisoned, Code::Storage, Code::ShuttingDown];

pub(super) fn routes() -> Routes<Api> {
    let routes = Routes::new(MethodRouter::new().fallback(wrong_method));
    let routes = routes
        .at(Operation::get("/v1/", "Say what answers here").answers::<About>("The program."), about)
        .at(
            Operation::get("/v1/locks", "List the locks that are held, and who waits")
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
    Operation::post(path, "End a lock by force, or remove a file that says nobody's name")
        .details("The holder is not asked and may still be at work.")
        .access(Access::Administrator)
        .takes::<ForceRelease>()
        .answers::<ShownLock>("What it was.")
        .refuses(&BODY)
        .refuses(&STATE)
        .refuses(&[Code::Forbidden, Code::NotLocked, Code::WrongToken])
}

async fn about() -> Response {
    let version = env!("CARGO_PKG_VERSION");
    let about = About { name: "lockkeeper", openapi: "openapi.json", version };
    failure::json(StatusCode::OK, &about)
}

async fn wrong_method(request: Request) -> Failure {
    limits::ignore(request.into_body());
    let text = "this path is not for this method";
    Failure::new(Code::WrongMethod, text)
}

async fn nothing_here(request: Request) -> Failure {
    limits::ignore(request.into_body());
    Failure::new(Code::NoSuchPath, "there is nothing at this path")
}

/// The resource a path names. No path can name "." and "..", which clients take
/// for steps, nor the empty name: for these there are paths without, and the
/// body has it.
struct Resource(Option<String>);

impl<S: Send + Sync> FromRequestParts<S> for Resource {
    type Rejection = Failure;

    async fn from_request_parts(head: &mut Parts, state: &S) -> Result<Self, Failure> {
        let named = Option::<Path<String>>::from_request_parts(head, state).await;
        let wrong = |_| Failure::invalid("the resource in the path is not UTF-8, percent-encoded");
        named.map(|named| Self(named.map(|Path(resource)| resource))).map_err(wrong)
    }
}

impl Resource {
    /// The one name, from the path or the body.
    fn or(self, in_body: Option<String>) -> Result<String, Failure> {
        match (self.0, in_body) {
            (Some(resource), None) | (None, Some(resource)) => Ok(resource),
            (None, None) => Err(Failure::invalid("name the resource in the body or in the path")),
            (Some(_), Some(_)) => Err(Failure::invalid("the path names the resource already")),
        }
    }
}

impl Api {
    async fn read<T: DeserializeOwned>(&self, request: Request) -> Result<T, Failure> {
        let (head, body) = request.into_parts();
        // A page from elsewhere can send text without asking, but not JSON.
        if !is_json(&head) {
            limits::ignore(body);
            return Err(Failure::new(
                Code::NotJson,
                "send JSON, and say so: Content-Type: application/json",
            ));
        }
        let body = self.bodies.read(&head.headers, body).await?;
        // An array would be taken for the fields in the order of their declaration.
        if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
            return Err(Failure::invalid("send a JSON object"));
        }
        serde_json::from_slice(&body)
            .map_err(|error| Failure::invalid(format!("this is not what was expected: {error}")))
    }

    async fn lock(
        &self,
        request: LockRequest,
        caller: &Caller,
        peer: &Peer,
    ) -> Result<Response, Failure> {
        let _seat = match request.wait {
            Wait::No => None,
            _ => Some(self.waiting.take(caller.share()).ok_or_else(too_many_waiting)?),
        };
        let (resource, client) = (request.resource.clone(), request.client.clone());
        let request_id = request.request_id.clone();
        let engine = self.engine.asked_by(caller.source());
        let granted = tokio::select! {
            biased;
            () = caller.loses(|bearer| bearer.may_use(&client)) => {
                return Err(caller.not_for(&client));
            }
            granted = engine.lock_for(request, peer.hangs_up()) => granted,
            () = self.stop.cancelled() => return Err(Failure::shutting_down()),
        };
        match granted {
            Ok(grant) => {
                let answer = granted_answer(&resource, &client, grant);
                peer.deliveries().expect_grant(engine, resource, grant.token);
                Ok(answer)
            }
            Err(refusal) => {
                let refused = self.refused(&resource, refusal);
                if let Some(id) = request_id.filter(|_| peer.has_hung_up()) {
                    peer.deliveries().expect_refusal(engine, resource, client, id);
                }
                Err(refused)
            }
        }
    }

    fn not_forced(&self, resource: &str, refusal: Refusal) -> Failure {
        let holder = self.engine.show(resource).map(|held| held.client);
        let Some(holder) = holder.filter(|_| refusal == Refusal::WrongToken) else {
            return refusal.into();
        };
        let text = "somebody else has it by now";
        Failure::new(Code::WrongToken, text).held_by(Holder { client: holder, hold: None })
    }

    /// With what is known of the holder.
    fn refused(&self, resource: &str, refusal: Refusal) -> Failure {
        let holder = match &refusal {
            Refusal::LockedBy { client } | Refusal::TimedOut { holder: client } => client.clone(),
            Refusal::NotYours { holder, .. } => holder.clone(),
            _ => return refusal.into(),
        };
        let shown = self.engine.show(resource).filter(|held| held.client == holder);
        let hold = shown.map(|held| HolderSince {
            remaining_ms: held.lease.map(|lease| milliseconds(lease.remaining)),
            since_ms: since_epoch(held.since),
        });
        Failure::from(refusal).held_by(Holder { client: holder, hold })
    }
}

fn granted_answer(resource: &str, client: &str, grant: Grant) -> Response {
    let (token, lease_ms) = (Token(grant.token), grant.lease.map(milliseconds));
    failure::json(
        StatusCode::OK,
        &Granted { client: client.into(), lease_ms, resource: resource.into(), token },
    )
}

fn is_json(head: &Parts) -> bool {
    let Ok(Some(kind)) = one(&head.headers, &header::CONTENT_TYPE) else { return false };
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

fn too_many_waiting() -> Failure {
    Failure::new(
        Code::TooManyWaiting,
        "too many requests of this address or token, or of all, wait already: try again later",
    )
}

async fn acquire(
    State(api): State<Api>,
    named: Resource,
    Extension(caller): Extension<Caller>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Result<Response, Failure> {
    let Acquire { resource, client, wait_ms, lease_ms, request_id } = api.read(request).await?;
    let resource = named.or(resource)?;
    let log = |failure: &Failure| {
        caller.log_refusal("acquire", Some(&resource), Some(&client), failure);
    };
    caller.must_be_for(&client).inspect_err(log)?;
    let wait = match wait_ms {
        None | Some(Some(Milliseconds(0))) => Wait::No,
        Some(Some(Milliseconds(limit))) => Wait::Until(Duration::from_millis(limit)),
        Some(None) => Wait::Forever,
    };
    let lease = lease_ms.map(|Milliseconds(lease)| Duration::from_millis(lease));
    let (resource_of, client_of) = (resource.clone(), client.clone());
    let request = LockRequest { resource: resource_of, client: client_of, wait, lease, request_id };
    api.lock(request, &caller, &peer).await.inspect_err(log)
}

async fn renew(
    State(api): State<Api>,
    named: Resource,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Failure> {
    let Renew { resource, client, token } = api.read(request).await?;
    let resource = named.or(resource)?;
    let log = |failure: &Failure| {
        caller.log_refusal("renew", Some(&resource), Some(&client), failure);
    };
    caller.must_be_for(&client).inspect_err(log)?;
    match api.engine.renew(&resource, &client, token.0).await {
        Ok(lease) => {
            let lease_ms = (lease != Duration::MAX).then(|| milliseconds(lease));
            Ok(failure::json(StatusCode::OK, &Renewed { lease_ms }))
        }
        Err(refusal) => Err(not_held(refusal)).inspect_err(log),
    }
}

/// To who renews it is one thing why it has no lock any more.
fn not_held(refusal: Refusal) -> Failure {
    let status = match &refusal {
        Refusal::NotLocked => 404,
        Refusal::NotYours { .. } | Refusal::WrongToken => 409,
        _ => return refusal.into(),
    };
    Failure::new(Code::NotHeld, refusal.to_string()).with_status(status)
}

async fn release(
    State(api): State<Api>,
    named: Resource,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Failure> {
    let Release { resource, client, token } = api.read(request).await?;
    let resource = named.or(resource)?;
    let log = |failure: &Failure| {
        caller.log_refusal("release", Some(&resource), Some(&client), failure);
    };
    caller.must_be_for(&client).inspect_err(log)?;
    let engine = api.engine.asked_by(caller.source());
    let released = engine.unlock(&resource, &client, token.map(|Token(token)| token)).await;
    released.map_err(|refusal| api.refused(&resource, refusal)).inspect_err(log)?;
    Ok(failure::json(
        StatusCode::OK,
        &Released { client: client.into(), resource: resource.into() },
    ))
}

async fn force_release(
    State(api): State<Api>,
    named: Resource,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Failure> {
    let log = |resource: Option<&str>, failure: &Failure| {
        caller.log_refusal("force-release", resource, None, failure);
    };
    if !caller.is_administrator() {
        limits::ignore(request.into_body());
        let text = "only administrators may do this";
        let failure = Failure::new(Code::Forbidden, text);
        log(named.0.as_deref(), &failure);
        return Err(failure);
    }
    let ForceRelease { resource, token } = api.read(request).await?;
    let resource = named.or(resource)?;
    let token = token.map(|Token(token)| token);
    let held = api.engine.asked_by(caller.source()).force_unlock(&resource, token).await;
    let held = held.map_err(|refusal| api.not_forced(&resource, refusal));
    let held = held.inspect_err(|failure| log(Some(&resource), failure))?;
    Ok(failure::json(StatusCode::OK, &shown(&held, true)))
}

async fn list(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> Result<Response, Failure> {
    let wanted = Wanted::of(&uri)?;
    let (at, survey) = (Instant::now(), Arc::new(api.engine.survey()));
    let is_administrator = caller.is_administrator();
    let mut listing = Listing::new(api.engine, survey, at, wanted, is_administrator);
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
    State(api): State<Api>,
    named: Resource,
    Extension(caller): Extension<Caller>,
) -> Result<Response, Failure> {
    let resource = named.or(None)?;
    let held = api.engine.show(&resource).ok_or(Refusal::NotLocked)?;
    Ok(failure::json(StatusCode::OK, &shown(&held, caller.is_administrator())))
}
