//! The XML-RPC endpoint: a POST to any path that nothing else is at.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Method as HttpMethod, Request, Response, StatusCode, header};

use super::error_response::ErrorResponse;
use super::limits::{BodyError, BodyReader};
use super::request::Caller;
use super::routes::Operation;
use super::socket::Peer;
use crate::lockd::state::{LockRequest, LockTable, Refusal, WaitLimit};
use crate::lockd::xmlrpc::{
    self, FaultStyle, Method, MethodCall, NAMES, ReturnValue, SIGNATURE, Shape, Value, fault,
};

const XML: &str = "text/xml";

/// What answers calls.
#[derive(Clone)]
pub(crate) struct Rpc(Arc<RpcInner>);

struct RpcInner {
    locks: LockTable,
    style: FaultStyle,
    bodies: BodyReader,
    shape: Shape,
}

impl Rpc {
    pub(crate) fn new(
        locks: LockTable,
        style: FaultStyle,
        bodies: BodyReader,
        shape: Shape,
    ) -> Self {
        Self(Arc::new(RpcInner { locks, style, bodies, shape }))
    }
}

/// The calls, as they are described. They may be made at other paths too.
pub(super) fn operation(path: &'static str) -> Operation {
    Operation::post(path, "Calls of XML-RPC, as of gocept.lockd")
        .tag("xml-rpc")
        .details(
            "`lock(resource, client)`, `unlock(resource, client)` and the introspection of \
             `system`. A call is answered with 200, a fault too, at every path where no other \
             `POST` is described.",
        )
        .takes_text(XML)
        .says(200, XML, "The answer or the fault.")
        .says(400, XML, "A fault: the call was cut short, or is not the gzip that it says.")
        .says(408, XML, "A fault: the call was not sent in time.")
        .says(413, XML, "A fault: the call is too long.")
        .says(415, XML, "A fault: the call is packed, and not with gzip.")
        .says(503, XML, "A fault: too many long calls at a time; try again later.")
}

/// Answers what no other route does.
pub(crate) fn router(rpc: Rpc) -> Router {
    Router::new().fallback(answer).with_state(rpc)
}

async fn answer(State(rpc): State<Rpc>, request: Request<Body>) -> Response<Body> {
    let (head, body) = request.into_parts();
    if head.method != HttpMethod::POST {
        return not_here();
    }
    let body = match rpc.0.bodies.read(&head.headers, body).await {
        Ok(body) => body,
        Err(error) => return rpc.0.not_read(&error),
    };
    let answered = match xmlrpc::read(&body, &rpc.0.shape) {
        Ok(call) => {
            let Some(caller) = head.extensions.get() else {
                unreachable!("BUG: a call from nowhere");
            };
            rpc.0.call(call, caller, head.extensions.get()).await
        }
        Err(error) => Err(error.to_string()),
    };
    let document = match answered {
        Ok(answer) => xmlrpc::response(&answer),
        Err(text) => fault::document(rpc.0.style, &text),
    };
    xml(StatusCode::OK, document)
}

fn xml(status: StatusCode, document: String) -> Response<Body> {
    let mut response = Response::new(Body::from(document));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(XML));
    response
}

fn not_here() -> Response<Body> {
    let mut response = Response::new(Body::from("XML-RPC calls are made with POST\n"));
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    let headers = response.headers_mut();
    headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

impl RpcInner {
    fn not_read(&self, error: &BodyError) -> Response<Body> {
        let status = StatusCode::from_u16(error.status()).expect("BUG: a status that is none");
        let mut response = xml(status, fault::document(self.style, &error.to_string()));
        if !matches!(error, BodyError::Encoding | BodyError::NotGzip | BodyError::TooMany) {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        response
    }

    /// What a call is answered with, or the text of its fault.
    async fn call(
        &self,
        call: MethodCall,
        caller: &Caller,
        peer: Option<&Peer>,
    ) -> Result<ReturnValue, String> {
        let named = call.method.as_deref();
        let method = named.and_then(Method::named).ok_or_else(|| fault::not_supported(named))?;
        let expected = method.arguments();
        if call.params.len() != expected.len() {
            return Err(wrong_count(named.unwrap_or_default(), expected, call.params.len()));
        }
        let mut params = call.params.into_iter();
        match method {
            Method::Lock | Method::Unlock => {
                let (Some(resource), Some(client)) = (params.next(), params.next()) else {
                    unreachable!("BUG: the arguments were counted");
                };
                let resource = text(resource, "the resource")?;
                let Value::Text(client) = client else {
                    return Err(self.no_client(method, &resource, &client));
                };
                let verb = if method == Method::Lock { "acquire" } else { "release" };
                let log = |failure: &ErrorResponse| {
                    caller.log_refusal(verb, Some(&resource), Some(&client), failure);
                };
                if !caller.may_use(&client) {
                    let failure = caller.not_for(&client);
                    log(&failure);
                    if caller.is_viewer() {
                        return Err(failure.message().to_owned());
                    }
                    let shown = xmlrpc::repr(&Value::Text(client));
                    return Err(format!("these credentials are not for the client {shown}"));
                }
                let locks = self.locks.requested_by(caller.requester());
                let refusal = match method {
                    Method::Lock => lock(locks, &resource, &client, peer).await.err(),
                    _ => locks.unlock(&resource, &client, None).await.err(),
                };
                let Some(refusal) = refusal else { return Ok(ReturnValue::Nil) };
                log(&ErrorResponse::from(refusal.clone()));
                Err(fault_of(refusal))
            }
            Method::List => Ok(ReturnValue::Names(NAMES)),
            Method::Help => help(params.next()),
            Method::Signature => Ok(ReturnValue::Text(SIGNATURE)),
        }
    }

    /// The fault for a client that is not text: no holder is called so.
    fn no_client(&self, method: Method, resource: &str, client: &Value) -> String {
        match (method, self.held_by(resource)) {
            // As the original, look first at the holder.
            (Method::Lock, Some(holder)) => fault::already_locked(&holder),
            (Method::Lock, None) => not_text("the client", client),
            (_, Some(holder)) => fault::not_yours(&holder, &xmlrpc::repr(client)),
            (_, None) => fault::NOT_LOCKED.to_owned(),
        }
    }

    /// The holder, if there is one.
    fn held_by(&self, resource: &str) -> Option<String> {
        let held = self.locks.show(resource)?;
        held.problem.is_none().then_some(held.client)
    }
}

async fn lock(
    locks: LockTable,
    resource: &str,
    client: &str,
    peer: Option<&Peer>,
) -> Result<(), Refusal> {
    let resource: Arc<str> = resource.into();
    let request = LockRequest {
        resource: Arc::clone(&resource),
        client: client.into(),
        wait: WaitLimit::No,
        lease: None,
        request_id: None,
    };
    let grant = locks.lock(request).await?;
    if let Some(peer) = peer {
        peer.deliveries().expect_grant(locks, resource, grant.token);
    }
    Ok(())
}

fn fault_of(refusal: Refusal) -> String {
    match refusal {
        Refusal::LockedBy { client } | Refusal::TimedOut { holder: client } => {
            fault::already_locked(&client)
        }
        Refusal::NotYours { holder, client } => {
            fault::not_yours(&holder, &xmlrpc::repr(&Value::Text(client)))
        }
        Refusal::NotLocked => fault::NOT_LOCKED.to_owned(),
        refusal => refusal.to_string(),
    }
}

fn help(about: Option<Value>) -> Result<ReturnValue, String> {
    match about {
        Some(Value::Text(name)) => {
            Ok(ReturnValue::Text(Method::named(&name).map_or("", Method::help)))
        }
        Some(value @ (Value::Array(_) | Value::Struct(_))) => {
            Err(format!("the method name must be a string, not {}", value.kind()))
        }
        _ => Ok(ReturnValue::Text("")),
    }
}

fn text(value: Value, what: &str) -> Result<String, String> {
    match value {
        Value::Text(text) => Ok(text),
        other => Err(not_text(what, &other)),
    }
}

fn not_text(what: &str, value: &Value) -> String {
    format!("{what} must be a string, not {}", value.kind())
}

fn wrong_count(method: &str, expected: &[&str], given: usize) -> String {
    let expected = match expected {
        [] => "no arguments".to_owned(),
        [name] => format!("one argument ({name})"),
        names => format!("{} arguments ({})", names.len(), names.join(", ")),
    };
    format!("{method} takes {expected}, and {given} came")
}
