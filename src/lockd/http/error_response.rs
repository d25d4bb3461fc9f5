//! Answers that say why not: a status, a code for programs and a text for people.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::limits::BodyError;
use crate::lockd::state::Refusal;
use crate::wire::{Code, Holder, Refused};

/// Why a request was not fulfilled.
#[derive(Debug)]
pub(crate) struct ErrorResponse {
    status: u16,
    error: Code,
    message: String,
    holder: Option<Holder>,
}

impl ErrorResponse {
    /// With the usual status of this code.
    pub(crate) fn new(error: Code, message: impl Into<String>) -> Self {
        Self { status: error.statuses()[0], error, message: message.into(), holder: None }
    }

    /// With another of its statuses.
    pub(crate) fn with_status(self, status: u16) -> Self {
        debug_assert!(self.error.statuses().contains(&status), "BUG: {status} is not described");
        Self { status, ..self }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::Invalid, message)
    }

    pub(crate) fn shutting_down() -> Self {
        Refusal::ShuttingDown.into()
    }

    pub(crate) fn code(&self) -> Code {
        self.error
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn held_by(self, holder: Holder) -> Self {
        Self { holder: Some(holder), ..self }
    }
}

impl From<Refusal> for ErrorResponse {
    fn from(refusal: Refusal) -> Self {
        let error = match &refusal {
            Refusal::BadName { .. } => Code::BadName,
            Refusal::Invalid { .. } => Code::Invalid,
            Refusal::LockedBy { .. } => Code::Locked,
            Refusal::NotYours { .. } => Code::NotYours,
            Refusal::NotLocked => Code::NotLocked,
            Refusal::WrongToken => Code::WrongToken,
            Refusal::TimedOut { .. } => Code::Timeout,
            Refusal::RequestOver => Code::RequestOver,
            Refusal::Poisoned { .. } => Code::Poisoned,
            Refusal::Storage { .. } => Code::Storage,
            Refusal::TooMany { .. } => Code::TooManyWaiting,
            Refusal::LocksPerClient { .. } => Code::LocksPerClient,
            Refusal::WaitersPerClient { .. } => Code::WaitersPerClient,
            Refusal::ShuttingDown => Code::ShuttingDown,
        };
        Self::new(error, refusal.to_string())
    }
}

impl From<BodyError> for ErrorResponse {
    fn from(error: BodyError) -> Self {
        Self::new(Code::Body, error.to_string()).with_status(error.status())
    }
}

impl IntoResponse for ErrorResponse {
    fn into_response(self) -> Response {
        let Self { status, error, message, holder } = self;
        let status = StatusCode::from_u16(status).expect("BUG: a status that is none");
        let mut response = json(status, &Refused { error, holder, message });
        response.extensions_mut().insert(error);
        let headers = response.headers_mut();
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        // What is left of the request cannot be told from the next one.
        let is_unread =
            matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE);
        if is_unread || error == Code::ShuttingDown {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// An answer in JSON.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let text = serde_json::to_string(value).expect("BUG: an answer that is no JSON");
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
