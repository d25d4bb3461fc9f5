//! What is at which path, said once: the router is built from it, and so is the
//! description of the API (`openapi`).
//!
//! D1. A path gets its handler here and nowhere else, together with its
//!     description; so neither is without the other.
//! D2. A code with which a route refuses is one that its description has. Debug
//!     builds panic where it is not: add the code to the route.

use axum::Router;
use axum::extract::Request;
use axum::handler::Handler;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{MethodFilter, MethodRouter};
use schemars::{JsonSchema, Schema, SchemaGenerator};

use crate::wire::Code;

/// Codes for a request that is for another host, or from a foreign page: everywhere.
pub(super) const FOR_ANOTHER: [Code; 3] = [Code::NoHost, Code::ForeignHost, Code::ForeignOrigin];

/// Codes for a request without a good token: wherever one is needed.
pub(super) const WITHOUT_TOKEN: [Code; 3] =
    [Code::CredentialsNeeded, Code::WrongCredentials, Code::TooManyFailures];

/// The schema of a type; it puts those of others that it names into the generator.
pub(super) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// A method at a path, as it is described.
#[derive(Clone)]
pub(super) struct Operation {
    pub(super) method: HttpMethod,
    pub(super) path: &'static str,
    pub(super) summary: &'static str,
    pub(super) details: &'static str,
    pub(super) access: RequiredAccess,
    pub(super) query: Option<SchemaOf>,
    /// The media type of its body, and what that is.
    pub(super) takes: Option<(&'static str, SchemaOf)>,
    pub(super) answers: Vec<AnswerDescription>,
    pub(super) refusals: Vec<Code>,
    /// Paths at which its answer can be sent on with `POST`.
    pub(super) then: &'static [&'static str],
    pub(super) tag: Option<&'static str>,
}

/// An answer that is no refusal.
#[derive(Clone)]
pub(super) struct AnswerDescription {
    pub(super) status: u16,
    pub(super) media_type: &'static str,
    pub(super) schema: SchemaOf,
    pub(super) says: &'static str,
    /// What the events of a stream are.
    pub(super) events: Option<SchemaOf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HttpMethod {
    Get,
    Post,
}

/// The token that a route needs, where the daemon has tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequiredAccess {
    /// None.
    Open,
    /// Any.
    Token,
    /// One of an administrator.
    Administrator,
}

impl HttpMethod {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Post => "post",
        }
    }

    fn filter(self) -> MethodFilter {
        match self {
            Self::Get => MethodFilter::GET,
            Self::Post => MethodFilter::POST,
        }
    }
}

impl Operation {
    pub(super) fn get(path: &'static str, summary: &'static str) -> Self {
        Self::new(HttpMethod::Get, path, summary)
    }

    pub(super) fn post(path: &'static str, summary: &'static str) -> Self {
        Self::new(HttpMethod::Post, path, summary)
    }

    fn new(method: HttpMethod, path: &'static str, summary: &'static str) -> Self {
        let (details, access, query, takes) = ("", RequiredAccess::Token, None, None);
        let (answers, refusals, then, tag) = (Vec::new(), Vec::new(), [].as_slice(), None);
        Self { method, path, summary, details, access, query, takes, answers, refusals, then, tag }
    }

    pub(super) fn details(self, details: &'static str) -> Self {
        Self { details, ..self }
    }

    pub(super) fn access(self, access: RequiredAccess) -> Self {
        Self { access, ..self }
    }

    pub(super) fn then(self, paths: &'static [&'static str]) -> Self {
        Self { then: paths, ..self }
    }

    pub(super) fn tag(self, tag: &'static str) -> Self {
        Self { tag: Some(tag), ..self }
    }

    pub(super) fn query<T: JsonSchema>(self) -> Self {
        Self { query: Some(T::json_schema), ..self }
    }

    pub(super) fn takes<T: JsonSchema>(self) -> Self {
        Self { takes: Some(("application/json", T::json_schema)), ..self }
    }

    /// A text of this kind.
    pub(super) fn takes_text(self, media_type: &'static str) -> Self {
        Self { takes: Some((media_type, String::json_schema)), ..self }
    }

    /// With 200 and this in JSON.
    pub(super) fn answers<T: JsonSchema>(self, says: &'static str) -> Self {
        let (media_type, events) = ("application/json", None);
        let schema: SchemaOf = |schemas| schemas.subschema_for::<T>();
        self.answer(AnswerDescription { status: 200, media_type, schema, says, events })
    }

    /// With this status and a text.
    pub(super) fn says(self, status: u16, media_type: &'static str, says: &'static str) -> Self {
        let schema: SchemaOf = |schemas| schemas.subschema_for::<String>();
        self.answer(AnswerDescription { status, media_type, schema, says, events: None })
    }

    /// With a stream of events, each of which has this for its data.
    pub(super) fn streams<T: JsonSchema>(self, says: &'static str) -> Self {
        let schema: SchemaOf = |schemas| schemas.subschema_for::<String>();
        let events: Option<SchemaOf> = Some(|schemas| schemas.subschema_for::<T>());
        self.answer(AnswerDescription {
            status: 200,
            media_type: "text/event-stream",
            schema,
            says,
            events,
        })
    }

    fn answer(mut self, answer: AnswerDescription) -> Self {
        self.answers.push(answer);
        self
    }

    pub(super) fn refuses(mut self, codes: &[Code]) -> Self {
        self.refusals.extend_from_slice(codes);
        self
    }
}

/// Routes, and what is said of them.
pub(super) struct Routes<S = ()> {
    router: Router<S>,
    operations: Vec<Operation>,
    /// Answers other methods at the same paths.
    others: MethodRouter<S>,
}

impl<S: Clone + Send + Sync + 'static> Routes<S> {
    /// None yet: `others` answers methods that a path is not for.
    pub(super) fn new(others: MethodRouter<S>) -> Self {
        Self { router: Router::new(), operations: Vec::new(), others }
    }

    /// D1.
    pub(super) fn at<T: 'static>(self, operation: Operation, handler: impl Handler<T, S>) -> Self {
        let methods = self.others.clone().on(operation.method.filter(), handler);
        self.add(operation, methods)
    }

    /// The same with what answers by itself.
    pub(super) fn at_service(self, operation: Operation, service: Router) -> Self {
        let methods = self.others.clone().on_service(operation.method.filter(), service);
        self.add(operation, methods)
    }

    fn add(mut self, operation: Operation, mut methods: MethodRouter<S>) -> Self {
        if cfg!(debug_assertions) {
            let everywhere = [Code::WrongMethod].as_slice();
            let codes = [&operation.refusals, everywhere, &WITHOUT_TOKEN, &FOR_ANOTHER].concat();
            let path = operation.path;
            methods = methods.layer(from_fn(move |request, next| {
                is_described(path, codes.clone(), request, next)
            }));
        }
        self.router = self.router.route(operation.path, methods);
        self.operations.push(operation);
        self
    }

    /// The router, and what is in it.
    pub(super) fn finish(self, state: S) -> (Router, Vec<Operation>) {
        (self.router.with_state(state), self.operations)
    }
}

/// D2.
async fn is_described(
    path: &'static str,
    codes: Vec<Code>,
    request: Request,
    next: Next,
) -> Response {
    let response = next.run(request).await;
    if let Some(code) = response.extensions().get::<Code>() {
        assert!(codes.contains(code), "BUG: {path} is not described as refusing with {code:?}");
    }
    response
}
