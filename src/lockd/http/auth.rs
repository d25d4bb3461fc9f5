//! The rights of callers.
//!
//! A1. Without tokens every caller may use every client's name, and a peer on this machine
//!     may force. It may not for others, as a proxy, and not at all where a proxy stands
//!     before the daemon. With tokens every request needs one, from wherever. Exceptions
//!     are the page, which says nothing by itself, and the probes. Neither says the
//!     daemon's version.
//! A2. A right token is never refused for the wrong ones of others: guessing is
//!     hopeless, so a peer that guesses costs log lines, and those are limited.
//! A3. No credentials are in any log, answer or error.
//! A4. The rights of a token are looked up at each use, in the file as it was last read. A
//!     wait, a stream or a list on its way ends when its right does.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::access_tokens::TokenFile;
use super::error_response::ErrorResponse;
use super::failure_counts::{FailureCounts, Frequency};
use super::origin::{Hosts, one};
use super::permits::PeerGroup;
use super::request::{Caller, MayUse, is_at, peer, requester, wrong_token};
use super::{limits, proxy};
use crate::lockd::state::{Credential, RefusedRequest};
use crate::wire::Code;

/// Failures of one peer that are answered and logged one by one.
const FAILURES: u32 = 20;

/// Refusals of one caller, which was let in, that are logged. With the longest texts
/// the queue of the log has room for them. More would push out lines of others.
const REFUSALS: u32 = 100;

/// Lets requests in, or not. Clones are the same.
#[derive(Clone)]
pub(crate) struct Gate(Arc<GateInner>);

struct GateInner {
    hosts: Hosts,
    tokens: Option<TokenFile>,
    failures: FailureCounts,
    foreign: FailureCounts,
    anonymous: FailureCounts,
    /// Of those that are let in.
    refusals: Arc<FailureCounts>,
}

impl Gate {
    pub(crate) fn new(hosts: Hosts, tokens: Option<TokenFile>) -> Self {
        let [failures, foreign, anonymous] = [FAILURES; 3].map(FailureCounts::new);
        let refusals = Arc::new(FailureCounts::new(REFUSALS));
        Self(Arc::new(GateInner { hosts, tokens, failures, foreign, anonymous, refusals }))
    }

    /// How many requests came with a wrong token.
    pub(crate) fn failed_logins(&self) -> u64 {
        self.0.failures.in_all.load(Ordering::Relaxed)
    }

    /// How many requests were for another host, or from a page of one.
    pub(crate) fn foreign_requests(&self) -> u64 {
        self.0.foreign.in_all.load(Ordering::Relaxed)
    }

    /// Whether every request needs a token.
    pub(crate) fn needs_token(&self) -> bool {
        self.0.tokens.is_some()
    }

    /// What stands before the daemon's own paths.
    pub(crate) fn prefix(&self) -> &str {
        self.0.hosts.prefix()
    }

    async fn answer(&self, request: Request, next: Next) -> Response {
        let (mut head, body) = request.into_parts();
        if let Err(foreign) = self.0.hosts.check(&head) {
            // A page can send many of these.
            let peer = peer(&head);
            if self.0.foreign.count(proxy::group(peer, &head.headers).into()) != Frequency::TooMany
            {
                let (error, reason) = (&*foreign.code().to_string(), &*foreign.to_string());
                let requester = requester(&head, Credential::None);
                RefusedRequest { error, reason, ..RefusedRequest::default() }.warn(&requester);
            }
            limits::ignore(body);
            return ErrorResponse::new(foreign.code(), foreign.to_string()).into_response();
        }
        if !is_open(&head) {
            match self.caller(&head) {
                Ok(caller) => {
                    head.extensions.insert(caller);
                }
                Err(failure) => {
                    limits::ignore(body);
                    return challenge(&head, failure);
                }
            }
        }
        let is_known = head.extensions.get::<Caller>().is_some();
        let mut response = next.run(Request::from_parts(head, body)).await;
        if is_known {
            response.headers_mut().insert(header::SERVER, PROGRAM);
        }
        response
    }

    fn caller(&self, request: &Parts) -> Result<Caller, ErrorResponse> {
        let peer = peer(request);
        let group = proxy::group(peer, &request.headers);
        let refusals = Arc::clone(&self.0.refusals);
        let Some(file) = &self.0.tokens else {
            let is_direct = !self.0.hosts.is_public() && !proxy::is_passed_on(&request.headers);
            let is_administrator = is_direct && group == PeerGroup::Here;
            let may_use = MayUse::NotNeeded { is_administrator };
            let by = if is_administrator { Credential::ThisMachine } else { Credential::None };
            let requester = Arc::new(requester(request, by));
            return Ok(Caller { group, may_use, requester, refusals });
        };
        let Some(token) = presented(&request.headers) else {
            let failure = ErrorResponse::new(
                Code::CredentialsNeeded,
                "this daemon needs a token: send it as Authorization: Bearer, or as a password",
            );
            if self.0.anonymous.count(group.into()) != Frequency::TooMany {
                let requester = requester(request, Credential::None);
                let (error, reason) = (&*failure.code().to_string(), failure.message());
                RefusedRequest { error, reason, ..RefusedRequest::default() }.audit(&requester);
            }
            return Err(failure);
        };
        let tokens = file.tokens();
        let known =
            tokens.borrow().bearer(&token).map(|(hash, bearer)| (hash, bearer.name.clone()));
        if let Some((sha256, name)) = known {
            let requester = Arc::new(requester(request, Credential::Token(Arc::clone(&name))));
            let may_use = MayUse::Token { name, sha256, tokens };
            return Ok(Caller { group, may_use, requester, refusals });
        }
        let count = self.0.failures.count(group.into());
        if count != Frequency::TooMany {
            let reason = match count {
                Frequency::Last => {
                    "wrong credentials: for a minute no more of this peer's are logged"
                }
                _ => "wrong credentials",
            };
            let error = &*Code::WrongCredentials.to_string();
            let requester = requester(request, Credential::Unknown);
            RefusedRequest { error, reason, ..RefusedRequest::default() }.warn(&requester);
        }
        Err(match count {
            Frequency::Few | Frequency::Last => wrong_token(),
            Frequency::TooMany => ErrorResponse::new(
                Code::TooManyFailures,
                "too many wrong tokens came from this address: check the token, wait a minute",
            ),
        })
    }
}

/// What all requests go through.
pub(crate) async fn admit(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let mut response = gate.answer(request, next).await;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
    response
}

/// The `Server` of answers to requests that were let in.
const PROGRAM: HeaderValue =
    HeaderValue::from_static(concat!("lockkeeper/", env!("CARGO_PKG_VERSION")));

const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// A1.
fn is_open(head: &Parts) -> bool {
    let is_read = matches!(head.method, Method::GET | Method::HEAD);
    is_read && matches!(head.uri.path(), "/" | "/healthz" | "/readyz")
}

fn challenge(head: &Parts, failure: ErrorResponse) -> Response<Body> {
    let mut response = failure.into_response();
    if response.status() == StatusCode::UNAUTHORIZED {
        let challenges = response.headers_mut();
        let bearer = HeaderValue::from_static("Bearer realm=\"lockkeeper\"");
        challenges.append(header::WWW_AUTHENTICATE, bearer);
        // A browser would ask for a password and send it ever after: not for
        // what the page asks for.
        if !is_at(head.uri.path()) {
            let basic = HeaderValue::from_static("Basic realm=\"lockkeeper\", charset=\"UTF-8\"");
            challenges.append(header::WWW_AUTHENTICATE, basic);
        }
    }
    response
}

/// The token, as bearer or as the password of any user.
fn presented(headers: &HeaderMap) -> Option<Vec<u8>> {
    let value = one(headers, &header::AUTHORIZATION).ok()??;
    let (scheme, rest) = value.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.as_bytes().to_vec());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    // What cannot be decoded is a wrong token.
    let pair = STANDARD.decode(rest).unwrap_or_default();
    let colon = pair.iter().position(|byte| *byte == b':').map_or(pair.len(), |it| it + 1);
    Some(pair[colon..].to_vec())
}
