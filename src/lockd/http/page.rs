//! The page at `/`: one file, without any text of others.
//!
//! A policy limits the browser to this script, this style, and requests to where the page
//! came from. So the name of a client could do nothing even as markup in the page.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::Response;
use axum::routing::MethodRouter;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::routes::{Operation, RequiredAccess, Routes};
use super::rpc;

const HTML: &str = "text/html; charset=utf-8";

const PAGE: &str = include_str!("page.html");

/// `calls` are of XML-RPC, which come with any path.
pub(super) fn routes(calls: &Router) -> Routes {
    let policy = HeaderValue::from_str(&policy()).expect("BUG: a policy that is no header");
    let operation = Operation::get("/", "The page for people").access(RequiredAccess::Open).says(
        200,
        HTML,
        "HTML with its script and style; what it shows it asks for itself.",
    );
    Routes::new(MethodRouter::new())
        .at(operation, async move || page(policy))
        .at_service(rpc::operation("/"), calls.clone())
}

fn page(policy: HeaderValue) -> Response {
    let mut response = Response::new(Body::from(Bytes::from_static(PAGE.as_bytes())));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(HTML));
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    let opener = HeaderName::from_static("cross-origin-opener-policy");
    headers.insert(opener, HeaderValue::from_static("same-origin"));
    response
}

fn policy() -> String {
    let (script, style) = (hash("script"), hash("style"));
    format!(
        "default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'"
    )
}

/// Of what stands between the tags, the only ones of that name.
fn hash(tag: &str) -> String {
    let (_, rest) = PAGE.split_once(&format!("<{tag}>")).expect("BUG: the page has no such tag");
    let (inside, _) = rest.split_once(&format!("</{tag}>")).expect("BUG: a tag without an end");
    format!("sha256-{}", STANDARD.encode(Sha256::digest(inside)))
}
