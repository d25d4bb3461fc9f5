//! Where a request comes from, and what its caller may do.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::http::request::Parts;
use tokio::sync::watch;

use super::access_tokens::{AccessTokens, Bearer, TokenHash};
use super::error_response::ErrorResponse;
use super::failure_counts::{FailureCounts, Frequency};
use super::permits::{PeerGroup, Share};
use super::proxy;
use super::socket::Peer;
use crate::lockd::state::{Credential, RefusedRequest, Requester};
use crate::wire::Code;

/// The caller; an extension of every request but those that need no right.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(super) group: PeerGroup,
    pub(super) may_use: MayUse,
    /// For the audit.
    pub(super) requester: Arc<Requester>,
    pub(super) refusals: Arc<FailureCounts>,
}

/// What a request may do.
#[derive(Clone, Debug)]
pub(super) enum MayUse {
    /// There are no tokens: use the names of all clients. (A1)
    NotNeeded { is_administrator: bool },
    /// What the token is good for. (A4)
    Token { name: Arc<str>, sha256: TokenHash, tokens: watch::Receiver<AccessTokens> },
}

impl MayUse {
    /// Whether they may do this now; `may` is asked about a token that is known.
    fn may(&self, may: impl FnOnce(&Bearer) -> bool) -> bool {
        match self {
            Self::NotNeeded { .. } => true,
            Self::Token { sha256, tokens, .. } => tokens.borrow().by_hash(sha256).is_some_and(may),
        }
    }
}

impl Caller {
    pub(crate) fn requester(&self) -> &Arc<Requester> {
        &self.requester
    }

    /// Write a line of the audit, unless this caller had many of late.
    pub(crate) fn log_refusal(
        &self,
        verb: &'static str,
        resource: Option<&str>,
        client: Option<&str>,
        failure: &ErrorResponse,
    ) {
        let reason = match self.refusals.count(self.share()) {
            Frequency::Few => failure.message(),
            // In front, where a long text is not cut.
            Frequency::Last => {
                &format!("for a minute no more of this caller's: {}", failure.message())
            }
            Frequency::TooMany => return,
        };
        let (error, verb) = (&*failure.code().to_string(), Some(verb));
        RefusedRequest { verb, resource, client, error, reason }.audit(&self.requester);
    }

    /// The share that its permits count for. Callers of one address have one share, but
    /// each token has its own.
    pub(crate) fn share(&self) -> Share {
        let token = match &self.may_use {
            MayUse::Token { name, .. } => Some(Arc::clone(name)),
            MayUse::NotNeeded { .. } => None,
        };
        Share { group: self.group, token }
    }

    pub(crate) fn may_use(&self, client: &str) -> bool {
        self.may_use.may(|bearer| bearer.may_use(client))
    }

    pub(crate) fn is_administrator(&self) -> bool {
        match self.may_use {
            MayUse::NotNeeded { is_administrator } => is_administrator,
            MayUse::Token { .. } => self.may_use.may(|bearer| bearer.is_administrator),
        }
    }

    /// Whether the caller may still look, with the same right as an administrator or not. (A4)
    pub(crate) fn sees_as(&self, is_administrator: bool) -> bool {
        self.may_use.may(|bearer| bearer.is_administrator == is_administrator)
    }

    pub(crate) fn is_viewer(&self) -> bool {
        let is_known = matches!(self.may_use, MayUse::Token { .. });
        is_known && self.may_use.may(|bearer| bearer.is_viewer)
    }

    /// # Errors
    /// What its client is told.
    pub(crate) fn must_be_for(&self, client: &str) -> Result<(), ErrorResponse> {
        if self.may_use(client) { Ok(()) } else { Err(self.not_for(client)) }
    }

    pub(crate) fn not_for(&self, client: &str) -> ErrorResponse {
        if !self.may_use.may(|_| true) {
            return wrong_token();
        }
        let text = match self.is_viewer() {
            true => "this token may only look".to_owned(),
            false => format!("these credentials are not for the client {client:?}"),
        };
        ErrorResponse::new(Code::Forbidden, text)
    }

    /// Resolves when the tokens were read again and this one may not do this any
    /// more. (A4)
    pub(crate) async fn loses(&self, may: impl Fn(&Bearer) -> bool) {
        if let MayUse::Token { sha256, tokens, .. } = &self.may_use {
            let mut tokens = tokens.clone();
            let is_lost = |tokens: &AccessTokens| !tokens.by_hash(sha256).is_some_and(&may);
            if tokens.wait_for(is_lost).await.is_ok() {
                return;
            }
        }
        std::future::pending().await
    }
}

pub(super) fn peer(request: &Parts) -> SocketAddr {
    let Some(peer) = request.extensions.get::<Peer>() else {
        unreachable!("BUG: a request from nowhere");
    };
    peer.address()
}

pub(super) fn requester(request: &Parts, credential: Credential) -> Requester {
    let peer = peer(request);
    Requester { peer, forwarded_for: proxy::sender(peer, &request.headers), credential }
}

pub(super) fn wrong_token() -> ErrorResponse {
    ErrorResponse::new(Code::WrongCredentials, "this token is not known here")
}

/// Whether a path is one of the JSON API's.
pub(super) fn is_at(path: &str) -> bool {
    path.starts_with("/v1/")
}
