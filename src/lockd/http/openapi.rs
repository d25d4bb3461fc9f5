//! The description of the API, OpenAPI 3.1: from the routes, and from the types
//! that they read and write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::app_state::AppState;
use super::routes::{
    AnswerDescription, FOR_ANOTHER, HttpMethod, Operation, RequiredAccess, WITHOUT_TOKEN,
};
use crate::wire::{Code, RESOURCE_MAX_BYTES, Refused};

const ABOUT: &str = "Locks between processes, kept by a daemon. A request that is not fulfilled is \
    answered with a code for programs and a text for people. Each `GET` may be made as `HEAD` too. \
    Some refusals come before anything is looked at, and are no JSON: 400, 408, 414 and 431 for a \
    head that is none, is too slow or too long, and 503 where there is no room for another \
    connection. A method that a path is not for is answered with 405 and `Allow`, and what is \
    below `/v1/` and not described here with 404 `no_such_path`. Answers to requests that were let in say the version in `Server`.";

/// The document. `needs_token`: every request needs a token; `prefix` stands before the
/// daemon's paths.
pub(super) fn document(operations: &[Operation], needs_token: bool, prefix: &str) -> String {
    let mut made = DocumentBuilder::new(needs_token);
    for operation in operations {
        let described = made.operation(operation);
        let path = made.paths.entry(operation.path).or_default();
        path.insert(operation.method.name().to_owned(), described);
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "lockkeeper",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
            "description": ABOUT,
        },
        "servers": [{ "url": if prefix.is_empty() { "/" } else { prefix } }],
        "paths": made.paths,
        "components": { "schemas": made.schemas() },
    });
    if needs_token {
        document["components"]["securitySchemes"] = json!({
            "bearer": { "type": "http", "scheme": "bearer" },
            "basic": {
                "type": "http",
                "scheme": "basic",
                "description": "The token as the password of any user.",
            },
        });
        document["security"] = json!([{ "bearer": [] }, { "basic": [] }]);
    }
    document.to_string()
}

/// `GET /v1/openapi.json`, as it is described.
pub(super) fn operation() -> Operation {
    Operation::get("/v1/openapi.json", "This document")
        .answers::<Map<String, Value>>("The description of this daemon, OpenAPI 3.1.")
}

pub(super) async fn served(State(api): State<Arc<AppState>>) -> Response {
    let document = api.document.get().expect("BUG: it is made before anything is served");
    let mut response = Response::new(Body::from(document.clone()));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

struct DocumentBuilder {
    needs_token: bool,
    paths: BTreeMap<&'static str, Map<String, Value>>,
    /// Of what is read, and of what is written: fields with defaults are needed only there.
    read: SchemaGenerator,
    written: SchemaGenerator,
}

impl DocumentBuilder {
    fn new(needs_token: bool) -> Self {
        let settings = || {
            let mut settings = SchemaSettings::draft2020_12();
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
            settings
        };
        let read = settings().for_deserialize().into_generator();
        let written = settings().for_serialize().into_generator();
        Self { needs_token, paths: BTreeMap::new(), read, written }
    }

    fn schemas(mut self) -> Map<String, Value> {
        let mut schemas = self.written.take_definitions(true);
        schemas.extend(self.read.take_definitions(true));
        schemas
    }

    fn operation(&mut self, operation: &Operation) -> Value {
        let mut described = json!({
            "operationId": operation_id(operation.method, operation.path),
            "summary": operation.summary,
            "responses": self.responses(operation),
        });
        if let Some(tag) = operation.tag {
            described["tags"] = json!([tag]);
        }
        if !operation.details.is_empty() {
            described["description"] = operation.details.into();
        }
        if self.needs_token && operation.access == RequiredAccess::Open {
            described["security"] = json!([]);
        }
        let parameters = self.parameters(operation);
        if !parameters.is_empty() {
            described["parameters"] = parameters.into();
        }
        if let Some((media_type, schema)) = operation.takes {
            let schema = body(schema(&mut self.read), names_resource(operation));
            described["requestBody"] =
                json!({ "required": true, "content": { media_type: { "schema": schema } } });
        }
        described
    }

    fn parameters(&mut self, operation: &Operation) -> Vec<Value> {
        let mut parameters = Vec::new();
        if names_resource(operation) {
            parameters.push(json!({
                "name": "resource",
                "in": "path",
                "required": true,
                "description": "What is locked, percent-encoded. Clients take \".\" and \"..\" for \
                    steps, and no path has the empty name: for these there are paths without it.",
                "schema": { "type": "string", "minLength": 1, "maxLength": RESOURCE_MAX_BYTES },
            }));
        }
        let Some(schema) = operation.query else { return parameters };
        let schema = schema(&mut self.read);
        let fields = schema.get("properties").and_then(Value::as_object);
        for (name, field) in fields.into_iter().flatten() {
            let mut field = field.clone();
            let about = field.as_object_mut().and_then(|field| field.remove("description"));
            parameters.push(json!({
                "name": name, "in": "query", "description": about, "schema": not_null(field),
            }));
        }
        parameters
    }

    fn responses(&mut self, operation: &Operation) -> BTreeMap<String, Value> {
        let mut responses: BTreeMap<String, Value> = BTreeMap::new();
        for answer in &operation.answers {
            let mut described = self.answer(answer);
            if !operation.then.is_empty() {
                described["links"] = links(operation);
            }
            responses.insert(answer.status.to_string(), described);
        }
        for (status, codes) in self.refusals(operation) {
            let described = self.refusal(status, &codes);
            // A text for probes and a refusal may have one status.
            match responses.get_mut(&status.to_string()) {
                Some(other) => {
                    let both = [&other["description"], &described["description"]];
                    other["description"] =
                        both.map(|it| it.as_str().unwrap_or_default()).join(" ").into();
                    other["content"]["application/json"] =
                        described["content"]["application/json"].clone();
                }
                None => drop(responses.insert(status.to_string(), described)),
            }
        }
        responses
    }

    fn answer(&mut self, answer: &AnswerDescription) -> Value {
        let schema = (answer.schema)(&mut self.written);
        let mut described = json!({
            "description": answer.says,
            "content": { answer.media_type: { "schema": schema } },
        });
        if let Some(events) = answer.events {
            // OpenAPI 3.1 has no words for the events of a stream; 3.2 says `itemSchema`.
            described["content"][answer.media_type]["x-event-data"] =
                events(&mut self.written).to_value();
        }
        described
    }

    /// The codes with which it refuses, by their status.
    fn refusals(&self, operation: &Operation) -> BTreeMap<u16, BTreeSet<Code>> {
        let mut codes = [operation.refusals.as_slice(), &FOR_ANOTHER].concat();
        if self.needs_token && operation.access != RequiredAccess::Open {
            codes.extend(WITHOUT_TOKEN);
        }
        let mut by_status: BTreeMap<u16, BTreeSet<Code>> = BTreeMap::new();
        for code in codes {
            for status in code.statuses() {
                by_status.entry(*status).or_default().insert(code);
            }
        }
        by_status
    }

    fn refusal(&mut self, status: u16, codes: &BTreeSet<Code>) -> Value {
        let refused = self.written.subschema_for::<Refused>();
        let names: Vec<Value> = codes.iter().map(|code| json!(code)).collect();
        let listed: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
        let mut described = json!({
            "description": format!("Refused: {}.", listed.join(", ")),
            "content": { "application/json": { "schema": {
                "allOf": [refused, { "properties": { "error": { "enum": names } } }],
            } } },
        });
        if matches!(status, 429 | 503) {
            described["headers"] = json!({
                "Retry-After": { "description": "In seconds.", "schema": { "type": "string" } },
            });
        }
        described
    }
}

/// `post_v1_locks_resource_acquire`: no other has the same.
fn operation_id(method: HttpMethod, path: &str) -> String {
    let words = path.split(['/', '{', '}', '-', '.']);
    let words = words.filter(|word| !word.is_empty());
    words.fold(method.name().to_owned(), |id, word| id + "_" + word)
}

/// What can be asked for with what the answer says.
fn links(operation: &Operation) -> Value {
    let fields = ["client", "resource", "token"];
    let fields = fields.map(|name| (name, format!("$response.body#/{name}")));
    let body: BTreeMap<&str, String> = fields.into();
    let link = |path: &&str| {
        let id = operation_id(HttpMethod::Post, path);
        (id.clone(), json!({ "operationId": id, "requestBody": body }))
    };
    operation.then.iter().map(link).collect::<Map<_, _>>().into()
}

fn names_resource(operation: &Operation) -> bool {
    operation.path.contains("{resource}")
}

/// The resource is in the path or in the body, and never in both.
fn body(schema: Schema, is_in_path: bool) -> Value {
    let mut schema = schema.to_value();
    let fields = schema.get_mut("properties").and_then(Value::as_object_mut);
    let resource = fields.and_then(|fields| fields.remove("resource"));
    let Some(resource) = resource.filter(|_| !is_in_path) else { return schema };
    schema["properties"]["resource"] = not_null(resource);
    match schema["required"].as_array_mut() {
        Some(required) => required.push("resource".into()),
        None => schema["required"] = json!(["resource"]),
    }
    schema
}

/// For what is there or not, but never null.
fn not_null(mut schema: Value) -> Value {
    if let Some(kinds) = schema["type"].as_array_mut() {
        kinds.retain(|kind| kind != "null");
        if let [kind] = kinds.as_slice() {
            schema["type"] = kind.clone();
        }
    }
    if schema["default"].is_null() {
        schema.as_object_mut().and_then(|schema| schema.remove("default"));
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lockd::http::routes::Routes;

    /// The routes of a daemon, as its router shows itself, and what is said of them.
    fn routed() -> (String, Vec<Operation>) {
        let directory = tempfile::tempdir().expect("a directory");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let (api, rpc, gate) = crate::lockd::server::parts_for_tests(directory.path()).await;
            let (router, operations) = crate::lockd::http::all(api, rpc, &gate);
            (format!("{router:?}"), operations)
        })
    }

    fn described(needs_token: bool) -> Value {
        let document = document(&routed().1, needs_token, "");
        serde_json::from_str(&document).expect("JSON")
    }

    /// axum has no list of its routes, but shows them in its debug output.
    #[test]
    fn the_document_and_the_router_have_the_same_paths() {
        let (shown, operations) = routed();
        let is_path = |it: &&str| it.starts_with('/') && !it.contains("__private__");
        let routed: BTreeSet<&str> = shown.split('"').filter(is_path).collect();
        let document = described(true);
        let documented = document["paths"].as_object().expect("paths").keys();
        let documented: BTreeSet<&str> = documented.map(String::as_str).collect();
        let apart: Vec<_> = routed.symmetric_difference(&documented).collect();
        // Calls of XML-RPC come with every path; and what is left is nothing.
        assert_eq!(apart, [&"/RPC2", &"/v1/{*rest}"], "{shown}");
        let described = document["paths"].as_object().expect("paths").values();
        let methods = described.map(|methods| methods.as_object().expect("methods").len());
        assert_eq!(operations.len(), methods.sum::<usize>());
    }

    #[test]
    fn every_code_is_one_of_some_route() {
        let document = described(true);
        let codes = document["components"]["schemas"]["Code"]["oneOf"].as_array().expect("codes");
        let responses = document["paths"].to_string();
        // What is nowhere is at no route.
        for code in codes.iter().filter_map(|code| code["const"].as_str()) {
            let is_somewhere = responses.contains(&format!("\"{code}\""));
            assert!(is_somewhere || ["no_such_path", "wrong_method"].contains(&code), "{code}");
        }
        assert!(codes.len() > 20);
    }

    #[test]
    fn a_field_of_a_type_that_is_served_is_in_the_document() {
        #[derive(schemars::JsonSchema, serde::Serialize)]
        struct Served {
            /// What it says.
            added: u64,
        }
        let operation = Operation::get("/v1/served", "").answers::<Served>("");
        let routes = Routes::new(axum::routing::MethodRouter::new());
        let (_, operations) = routes.at(operation, async || ()).finish(());
        let document: Value =
            serde_json::from_str(&super::document(&operations, false, "")).expect("JSON");
        let field = &document["components"]["schemas"]["Served"]["properties"]["added"];
        assert_eq!(field["description"], "What it says.");
    }
}
