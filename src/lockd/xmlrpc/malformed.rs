//! What is wrong with a document.

/// All attributes of one element together: they mean nothing here, and whether
/// one comes twice is found in quadratic time.
pub(super) const ATTRIBUTE_BYTES: usize = 1024;

/// How much of what was sent an error repeats, in characters.
pub(super) const SHOWN_CHARACTERS: usize = 60;

/// Why a document is not read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("the request is empty, it should be an XML document with a <methodCall>")]
    Empty,
    #[error("the request is not XML: it begins with {0}")]
    NotXml(String),
    #[error("the XML is not well-formed at byte {at}: {what}")]
    NotWellFormed { at: u64, what: String },
    #[error("the XML ends before </{0}>")]
    EndsEarly(&'static str),
    #[error("the document is not in the encoding it should be in, {0}")]
    NotInEncoding(&'static str),
    #[error("the encoding {} is not known here: send UTF-8", shown(.0))]
    Encoding(String),
    #[error("a DOCTYPE is not accepted")]
    Doctype,
    #[error("the entity {} is not known: only lt, gt, amp, apos, quot and numbers are", shown(.0))]
    Entity(String),
    #[error("the character U+{0:04X} is not allowed in XML")]
    Character(u32),
    #[error("elements are nested deeper than {0}")]
    TooDeep(usize),
    #[error("there are more than {0} values")]
    TooMany(usize),
    #[error("a text is longer than {0} bytes")]
    TooLong(usize),
    #[error("attributes of one element are longer than {ATTRIBUTE_BYTES} bytes")]
    Attributes,
    #[error("the document is a {}, it should be a <methodCall>", shown(.0))]
    NotACall(String),
    #[error("{} does not belong in <{inside}>", shown(.tag))]
    Misplaced { tag: String, inside: &'static str },
    #[error("{} is not a type of value", shown(.0))]
    Type(String),
    #[error("<{inside}> has no <{tag}>")]
    Missing { tag: &'static str, inside: &'static str },
    #[error("<{inside}> has more than one <{tag}>")]
    Twice { tag: &'static str, inside: &'static str },
    #[error("{} is not a number of type {kind}", shown(.text))]
    Number { kind: &'static str, text: String },
}

pub(super) fn shown(text: &str) -> String {
    let mut part: String = text.chars().take(SHOWN_CHARACTERS).collect();
    if part.len() < text.len() {
        part.push('…');
    }
    super::python::quoted(&part)
}
