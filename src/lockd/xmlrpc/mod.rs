//! The wire of gocept.lockd: XML-RPC as Python's `xmlrpc.server` speaks it.
//!
//! Every fault has the code 1. A fault that the original's own code raises has
//! its very text, behind the type as Python writes it ([`FaultStyle`]). Where
//! the original lets Python speak, or does harm, ours differs:
//!
//! | a call | the original | here |
//! |---|---|---|
//! | too few or too many arguments | the text of a `TypeError` | a fault that names the arguments |
//! | not XML, half of it, a wrong number | the text of an `ExpatError`, a `ValueError` | a fault that says what is wrong |
//! | the name of an attribute of the server (`lockdir`) | the text of a `TypeError` | `method "…" is not supported` |
//! | a resource that is not a string | the text of a `TypeError` | a fault that says what it should be |
//! | a lock by a client that is not a string | the text of a `TypeError`, and an empty file that locks the resource | a fault, and nothing is locked |
//! | an unlock by the client that locked, with white space around its name | refused | done |
//! | a DTD, entities of its own | read | a fault |
//! | an encoding but UTF-8, UTF-16, US-ASCII and ISO 8859-1 | many are read | a fault |
//! | elements where none belong, `<string>` without `<value>` | passed over, or read as a value | a fault |
//! | too long, too deep, too many values | read | a fault |
//! | a body that is too long, too slow or half sent | waited for, and no other request served | 413, 408 or 400 with a fault |
//! | a chunked body | an answer with status 500 | read |
//! | a method but POST | 501 | GET has the page at `/`; 405 elsewhere |
//! | an answer of more than 1400 bytes to a client that accepts gzip | compressed | as it is |
//! | a disk that is full | success, and an empty file | a fault, and nothing is locked |
//!
//! Names that are quoted with `repr` are so by the Unicode tables of this
//! program: characters that are newer than Python 3.11 are shown and not
//! escaped.

mod charset;
pub(crate) mod fault;
mod introspect;
mod malformed;
mod python;
mod read;
mod value;
mod write;

pub use fault::FaultStyle;
pub(crate) use introspect::{Method, NAMES, SIGNATURE};
pub(crate) use python::repr;
pub(crate) use read::{Shape, read};
pub(crate) use value::{MethodCall, Value};
pub(crate) use write::{ReturnValue, response};

/// Reads any bytes as a call and answers it, and panics if that breaks a promise.
#[cfg(fuzzing)]
pub fn read_anything(body: &[u8]) {
    let shape = Shape::default();
    let text = match read(body, &shape) {
        Ok(call) => {
            assert!(call.params.len() <= shape.values);
            let kept: usize = call.params.iter().map(text_length).sum();
            // One byte is two at most, where ISO 8859-1 becomes UTF-8.
            assert!(kept <= 2 * body.len());
            let shown: String = call.params.iter().map(repr).collect();
            fault::not_supported(call.method.as_deref()) + &shown
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.len() < 1024, "{text}");
            text
        }
    };
    // Whatever was sent, what it is answered with is XML.
    let document = fault::document(FaultStyle::Python3, &text);
    let mut events = quick_xml::Reader::from_str(&document);
    while events.read_event().expect("well-formed XML") != quick_xml::events::Event::Eof {}
}

#[cfg(fuzzing)]
fn text_length(value: &Value) -> usize {
    match value {
        Value::Text(text) => text.len(),
        Value::Array(values) => values.iter().map(text_length).sum(),
        Value::Struct(members) => {
            members.iter().map(|(name, value)| name.len() + text_length(value)).sum()
        }
        _ => 0,
    }
}
