//! Answers that say why not: a status, a code for programs and a text for people.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};

use super::limits::BodyError;
use crate::lockd::engine::Refusal;

/// Why a request was not fulfilled.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    error: &'static str,
    message: String,
    holder: Option<Value>,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, error: &'static str, message: impl Into<String>) -> Self {
        Self { status, error, message: message.into(), holder: None }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", message)
    }

    pub(crate) fn shutting_down() -> Self {
        Refusal::ShuttingDown.into()
    }

    pub(crate) fn code(&self) -> &'static str {
        self.error
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn held_by(self, holder: Value) -> Self {
        Self { holder: Some(holder), ..self }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let (status, error) = match &refusal {
            Refusal::BadName { .. } => (StatusCode::BAD_REQUEST, "bad_name"),
            Refusal::Invalid { .. } => (StatusCode::BAD_REQUEST, "invalid"),
            Refusal::LockedBy { .. } => (StatusCode::CONFLICT, "locked"),
            Refusal::NotYours { .. } => (StatusCode::CONFLICT, "not_yours"),
            Refusal::NotLocked => (StatusCode::NOT_FOUND, "not_locked"),
            Refusal::WrongToken => (StatusCode::CONFLICT, "wrong_token"),
            // Not 408: there are clients that repeat such a request by themselves.
            Refusal::TimedOut { .. } => (StatusCode::CONFLICT, "timeout"),
            Refusal::RequestOver => (StatusCode::CONFLICT, "request_over"),
            Refusal::Poisoned { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "poisoned"),
            Refusal::Storage { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "storage"),
            Refusal::TooMany { .. } => (StatusCode::TOO_MANY_REQUESTS, "too_many_waiting"),
            // Not 429: asking again does not help, and there are clients that would.
            Refusal::LocksPerClient { .. } => (StatusCode::CONFLICT, "locks_per_client"),
            Refusal::WaitersPerClient { .. } => (StatusCode::CONFLICT, "waiters_per_client"),
            Refusal::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
        };
        Self::new(status, error, refusal.to_string())
    }
}

impl From<BodyError> for Failure {
    fn from(error: BodyError) -> Self {
        let status = StatusCode::from_u16(error.status()).expect("BUG: a status that is none");
        Self::new(status, "body", error.to_string())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut fields = Map::new();
        fields.insert("error".to_owned(), self.error.into());
        fields.insert("message".to_owned(), self.message.into());
        fields.extend(self.holder.map(|holder| ("holder".to_owned(), holder)));
        let mut response = json(self.status, &Value::Object(fields));
        let headers = response.headers_mut();
        if matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        // What is left of the request cannot be told from the next one.
        let is_unread =
            matches!(self.status, StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE);
        if is_unread || self.error == "shutting_down" {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// An answer in JSON.
pub(crate) fn json(status: StatusCode, value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
