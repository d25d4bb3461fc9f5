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
use axum::routing::{MethodRouter, get, post};
use axum::{Extension, Router};
use futures_util::stream;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::auth::Caller;
use super::failure::{self, Failure};
use super::limits::{self, BodyReader};
use super::listing::{Listing, Wanted, milliseconds, shown, since_epoch};
use super::live::{self, Live};
use super::origin::one;
use super::seats::Seats;
use super::socket::Peer;
use crate::lockd::engine::{Engine, Grant, LockRequest, Refusal, Wait};

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
    /// The daemon ends.
    pub(crate) stop: CancellationToken,
}

/// Whether a path is one of the API's.
pub(crate) fn is_at(path: &str) -> bool {
    path.starts_with("/v1/")
}

pub(crate) fn router(api: Api) -> Router {
    let only = |methods: MethodRouter<Api>| methods.fallback(wrong_method);
    Router::new()
        .route("/v1/locks", only(get(list)))
        .route("/v1/locks/{resource}", only(get(show)))
        .route("/v1/locks/{resource}/acquire", only(post(acquire)))
        .route("/v1/locks/{resource}/renew", only(post(renew)))
        .route("/v1/locks/{resource}/release", only(post(release)))
        .route("/v1/locks/{resource}/force-release", only(post(force_release)))
        .route("/v1/acquire", only(post(acquire)))
        .route("/v1/renew", only(post(renew)))
        .route("/v1/release", only(post(release)))
        .route("/v1/force-release", only(post(force_release)))
        .route("/v1/events", only(get(live::events)))
        .route("/v1/{*rest}", axum::routing::any(nothing_here))
        .with_state(api)
}

async fn wrong_method(request: Request) -> Failure {
    limits::ignore(request.into_body());
    let text = "this path is not for this method";
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", text)
}

async fn nothing_here(request: Request) -> Failure {
    limits::ignore(request.into_body());
    Failure::new(StatusCode::NOT_FOUND, "no_such_path", "there is nothing at this path")
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Acquire {
    resource: Option<String>,
    client: String,
    /// `None`: not given, one try; `Some(None)`: for ever.
    #[serde(default, deserialize_with = "given")]
    wait_ms: Option<Option<u64>>,
    lease_ms: Option<u64>,
    request_id: Option<String>,
}

fn given<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(value).map(Some)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Renew {
    resource: Option<String>,
    client: String,
    token: Token,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Release {
    resource: Option<String>,
    client: String,
    token: Option<Token>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ForceRelease {
    resource: Option<String>,
    token: Option<Token>,
}

/// A fencing token: decimal digits in a string, for readers whose numbers are
/// floating.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
struct Token(u64);

impl TryFrom<String> for Token {
    type Error = &'static str;

    fn try_from(digits: String) -> Result<Self, Self::Error> {
        let is_plain = digits.bytes().all(|digit| digit.is_ascii_digit());
        let number = digits.parse().ok().filter(|_| is_plain).map(Self);
        number.ok_or("a token is a string of decimal digits")
    }
}

impl Api {
    async fn read<T: DeserializeOwned>(&self, request: Request) -> Result<T, Failure> {
        let (head, body) = request.into_parts();
        // A page from elsewhere can send text without asking, but not JSON.
        if !is_json(&head) {
            limits::ignore(body);
            return Err(Failure::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "not_json",
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
        let failure = Failure::new(StatusCode::CONFLICT, "wrong_token", text);
        failure.held_by(json!({ "client": holder }))
    }

    /// With what is known of the holder.
    fn refused(&self, resource: &str, refusal: Refusal) -> Failure {
        let holder = match &refusal {
            Refusal::LockedBy { client } | Refusal::TimedOut { holder: client } => client.clone(),
            Refusal::NotYours { holder, .. } => holder.clone(),
            _ => return refusal.into(),
        };
        let shown = self.engine.show(resource).filter(|held| held.client == holder);
        let holder = shown.map_or_else(
            || json!({ "client": holder }),
            |held| {
                let lease = held.lease.map(|lease| milliseconds(lease.remaining));
                let since = since_epoch(held.since);
                json!({ "client": held.client, "since_ms": since, "remaining_ms": lease })
            },
        );
        Failure::from(refusal).held_by(holder)
    }
}

fn granted_answer(resource: &str, client: &str, grant: Grant) -> Response {
    failure::json(
        StatusCode::OK,
        &json!({
            "resource": resource,
            "client": client,
            "token": grant.token.to_string(),
            "lease_ms": grant.lease.map(milliseconds),
        }),
    )
}

fn is_json(head: &Parts) -> bool {
    let Ok(Some(kind)) = one(&head.headers, &header::CONTENT_TYPE) else { return false };
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

fn too_many_waiting() -> Failure {
    Failure::new(
        StatusCode::TOO_MANY_REQUESTS,
        "too_many_waiting",
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
        None | Some(Some(0)) => Wait::No,
        Some(Some(limit)) => Wait::Until(Duration::from_millis(limit)),
        Some(None) => Wait::Forever,
    };
    let lease = lease_ms.map(Duration::from_millis);
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
            let lease = (lease != Duration::MAX).then(|| milliseconds(lease));
            Ok(failure::json(StatusCode::OK, &json!({ "lease_ms": lease })))
        }
        Err(refusal) => Err(not_held(refusal)).inspect_err(log),
    }
}

/// To who renews it is one thing why it has no lock any more.
fn not_held(refusal: Refusal) -> Failure {
    let status = match &refusal {
        Refusal::NotLocked => StatusCode::NOT_FOUND,
        Refusal::NotYours { .. } | Refusal::WrongToken => StatusCode::CONFLICT,
        _ => return refusal.into(),
    };
    Failure::new(status, "not_held", refusal.to_string())
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
    Ok(failure::json(StatusCode::OK, &json!({ "resource": resource, "client": client })))
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
        let failure = Failure::new(StatusCode::FORBIDDEN, "forbidden", text);
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
    let mut listing = Listing::new(api.engine, survey, at, wanted, caller.is_administrator());
    let first = listing.next().unwrap_or_default();
    let body = match listing.next() {
        None => Body::from(first),
        Some(second) => {
            let pieces = [first, second].into_iter().chain(listing);
            Body::from_stream(stream::iter(pieces.map(Ok::<_, std::convert::Infallible>)))
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
