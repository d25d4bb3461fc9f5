//! From the bytes of a document to its characters.

use std::borrow::Cow;

use quick_xml::Reader;
use quick_xml::events::Event;

use super::malformed::Malformed;

/// An XML declaration ends within this many bytes, or there is none.
const DECLARATION_BYTES: usize = 256;

/// The text of a document in UTF-8, UTF-16 with its mark, US-ASCII or ISO 8859-1.
pub(crate) fn decode(body: &[u8]) -> Result<Cow<'_, str>, Malformed> {
    match body {
        [0xef, 0xbb, 0xbf, rest @ ..] => utf8(rest),
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        _ => by_declaration(body),
    }
}

fn by_declaration(body: &[u8]) -> Result<Cow<'_, str>, Malformed> {
    let Some(name) = declared(body) else { return utf8(body) };
    match name.to_ascii_lowercase().as_str() {
        "utf-8" | "utf8" => utf8(body),
        "us-ascii" | "ascii" if body.is_ascii() => utf8(body),
        "us-ascii" | "ascii" => Err(Malformed::NotInEncoding("us-ascii")),
        "iso-8859-1" | "latin-1" | "latin1" => {
            Ok(body.iter().map(|&byte| char::from(byte)).collect::<String>().into())
        }
        _ => Err(Malformed::Encoding(name)),
    }
}

/// The encoding that the XML declaration names.
fn declared(body: &[u8]) -> Option<String> {
    if !body.starts_with(b"<?xml") {
        return None;
    }
    let head = &body[..body.len().min(DECLARATION_BYTES)];
    let end = head.windows(2).position(|pair| pair == b"?>")? + 2;
    let head = std::str::from_utf8(&head[..end]).ok()?;
    match Reader::from_str(head).read_event() {
        Ok(Event::Decl(declaration)) => Some(declaration.encoding()?.ok()?.into_owned()),
        _ => None,
    }
}

fn utf8(bytes: &[u8]) -> Result<Cow<'_, str>, Malformed> {
    std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(|_| Malformed::NotInEncoding("UTF-8"))
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<Cow<'static, str>, Malformed> {
    let pairs = bytes.chunks_exact(2);
    let is_whole = pairs.remainder().is_empty();
    let units = pairs.map(|pair| unit([pair[0], pair[1]]));
    match char::decode_utf16(units).collect::<Result<String, _>>() {
        Ok(text) if is_whole => Ok(text.into()),
        _ => Err(Malformed::NotInEncoding("UTF-16")),
    }
}
