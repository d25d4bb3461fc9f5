//! The JSON between the daemon and its clients, and the codes of refusals.
//!
//! W1. The daemon serves these types as they stand, and the description of the API
//!     (`openapi`) is made from them: a field, or a code, that is added here is in
//!     both. What stands above a field is its description there.
//! W2. The fields of answers are declared in the order of their names.
//! W3. The client reads the same types. Its daemon may be newer: fields of an answer that
//!     it does not know are passed over, and a code that it does not know stays readable.

use std::borrow::Cow;
use std::fmt;

#[cfg(feature = "lockd")]
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Longest name of a resource, where each byte is its own in the name of its file: those
/// have 255 at most.
#[cfg(feature = "lockd")]
pub(crate) const RESOURCE_MAX_BYTES: usize = 241;

/// Longest client name. If longer, a record of it does not fit into the journal.
#[cfg(feature = "lockd")]
pub(crate) const CLIENT_MAX_BYTES: usize = 8192;

/// Longest request id. A UUID has 36 bytes; if longer, waiters take more memory.
#[cfg(feature = "lockd")]
pub(crate) const REQUEST_ID_MAX_BYTES: usize = 128;

/// A fencing token: decimal digits in a string, for readers with floating numbers. Each
/// grant of a directory has a greater one than every grant before.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Token(pub(crate) u64);

impl TryFrom<String> for Token {
    type Error = &'static str;

    fn try_from(digits: String) -> Result<Self, Self::Error> {
        if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err("a token is a string of decimal digits");
        }
        // A longer number is no grant's token, as the largest is none.
        Ok(Self(digits.parse().unwrap_or(u64::MAX)))
    }
}

impl From<Token> for String {
    fn from(Token(number): Token) -> Self {
        number.to_string()
    }
}

#[cfg(feature = "lockd")]
impl JsonSchema for Token {
    fn schema_name() -> Cow<'static, str> {
        "Token".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A fencing token: a number below 2⁶⁴ in decimal digits. Each grant of \
                a directory has a greater one than every grant before it.",
            "type": "string",
            "pattern": "^[0-9]+$",
        })
    }
}

/// A time that is asked for. Programs with floating numbers alone write 5000 as 5000.0,
/// which is an integer to JSON Schema, too.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Milliseconds(pub(crate) u64);

impl<'de> Deserialize<'de> for Milliseconds {
    fn deserialize<D: Deserializer<'de>>(number: D) -> Result<Self, D::Error> {
        struct Number;

        impl Visitor<'_> for Number {
            type Value = Milliseconds;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a whole number of milliseconds, 0 or more")
            }

            fn visit_u64<E>(self, number: u64) -> Result<Milliseconds, E> {
                Ok(Milliseconds(number))
            }

            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Milliseconds, E> {
                // The end is 2⁶⁴: as a float, the largest integer is that.
                if number.fract() != 0.0 || !(0.0..u64::MAX as f64).contains(&number) {
                    return Err(E::invalid_value(Unexpected::Float(number), &self));
                }
                Ok(Milliseconds(number as u64))
            }
        }

        number.deserialize_u64(Number)
    }
}

#[cfg(feature = "lockd")]
impl JsonSchema for Milliseconds {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Milliseconds".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 0, "maximum": u64::MAX })
    }
}

/// Which lock is asked for, and how.
#[derive(Deserialize, Serialize)]
#[cfg_attr(feature = "lockd", derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Acquire {
    /// What to lock; where the path names it, it is not named here. As the name of a file it may
    /// have 241 bytes.
    #[cfg_attr(feature = "lockd", schemars(length(max = RESOURCE_MAX_BYTES)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resource: Option<String>,
    /// The client that asks. White space around its name does not count.
    #[cfg_attr(feature = "lockd", schemars(length(max = CLIENT_MAX_BYTES), regex(pattern = r"^[^\x00]*$")))]
    pub(crate) client: String,
    /// How long to wait for the lock, in milliseconds; null: without a limit; not given: one try.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "lockd", schemars(with = "Option<Milliseconds>", extend("default" = 0)))]
    pub(crate) wait_ms: Option<Option<Milliseconds>>,
    /// After so many milliseconds without a renewal the lock is free; not given: it is kept until
    /// it is released.
    #[cfg_attr(feature = "lockd", schemars(range(min = 1)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lease_ms: Option<Milliseconds>,
    /// A name of the client's choice for this request: sent again with it, the request is the same
    /// one, with its place in the queue or its grant.
    #[cfg_attr(feature = "lockd", schemars(length(min = 1, max = REQUEST_ID_MAX_BYTES)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) request_id: Option<String>,
}

/// `None`: not given, one try; `Some(None)`: for ever.
fn given<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<Milliseconds>>, D::Error> {
    Option::deserialize(value).map(Some)
}

/// Which lease is to run anew.
#[derive(Deserialize, Serialize)]
#[cfg_attr(feature = "lockd", derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Renew {
    /// What is locked; where the path names it, it is not named here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resource: Option<String>,
    /// The client that has it.
    pub(crate) client: String,
    /// The token of the grant.
    pub(crate) token: Token,
}

/// Which lock is released.
#[derive(Deserialize, Serialize)]
#[cfg_attr(feature = "lockd", derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Release {
    /// What is locked; where the path names it, it is not named here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resource: Option<String>,
    /// The client that has it.
    pub(crate) client: String,
    /// Release this grant and no other. A release of it that is repeated succeeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<Token>,
}

/// Which lock is ended, whatever its holder does.
#[cfg(feature = "lockd")]
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ForceRelease {
    /// What is locked; where the path names it, it is not named here.
    pub(crate) resource: Option<String>,
    /// End this grant and no other.
    pub(crate) token: Option<Token>,
}

/// Which of the locks are shown.
#[cfg(feature = "lockd")]
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Search {
    /// A part of the name of the resource, the holder or a waiter; capitals do not matter.
    #[serde(default)]
    pub(crate) search: String,
    /// Show only the lock of exactly this resource.
    #[serde(default, deserialize_with = "text")]
    pub(crate) resource: Option<String>,
    /// Show at most so many; all are counted.
    #[serde(default, deserialize_with = "number")]
    #[schemars(with = "Option<usize>")]
    pub(crate) limit: Option<usize>,
}

#[cfg(feature = "lockd")]
fn text<'de, D: Deserializer<'de>>(text: D) -> Result<Option<String>, D::Error> {
    String::deserialize(text).map(Some)
}

/// In a query all is text.
#[cfg(feature = "lockd")]
fn number<'de, D: Deserializer<'de>>(text: D) -> Result<Option<usize>, D::Error> {
    let text = String::deserialize(text)?;
    if text.is_empty() || !text.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(serde::de::Error::custom("limit is a number"));
    }
    // A limit that is no number here is longer than any list.
    Ok(Some(text.parse().unwrap_or(usize::MAX)))
}

/// A lock that was granted.
#[derive(Deserialize, Serialize)]
#[cfg_attr(feature = "lockd", derive(JsonSchema))]
pub(crate) struct Granted<'a> {
    /// The client that has it.
    pub(crate) client: Cow<'a, str>,
    /// How long it lasts without a renewal; null: until it is released.
    pub(crate) lease_ms: Option<u64>,
    /// What is locked.
    pub(crate) resource: Cow<'a, str>,
    /// The token of this grant.
    pub(crate) token: Token,
}

/// A lease that runs anew.
#[derive(Deserialize, Serialize)]
#[cfg_attr(feature = "lockd", derive(JsonSchema))]
pub(crate) struct Renewed {
    /// How long it runs from now on; null: the lock has none.
    pub(crate) lease_ms: Option<u64>,
}

/// A lock that was released.
#[derive(Deserialize, Serialize)]
#[cfg_attr(feature = "lockd", derive(JsonSchema))]
pub(crate) struct Released<'a> {
    /// The client that had it.
    pub(crate) client: Cow<'a, str>,
    /// What was locked.
    pub(crate) resource: Cow<'a, str>,
}

/// A lock that is held, or a file in its place that names no client.
#[derive(Deserialize, Serialize)]
#[cfg_attr(feature = "lockd", derive(JsonSchema), schemars(rename = "Lock"))]
pub(crate) struct ShownLock {
    /// The client that has it; empty where there is a problem.
    pub(crate) client: String,
    /// Null: it is kept until it is released.
    pub(crate) lease: Option<ShownLease>,
    /// Whether an administrator can end it.
    pub(crate) may_be_forced: bool,
    /// What is wrong with the file in the lock's place, and what to do.
    pub(crate) problem: Option<String>,
    /// What is locked.
    pub(crate) resource: String,
    /// Since when, in milliseconds since 1970.
    pub(crate) since_ms: u64,
    /// The token of the grant; 0 where there is a problem.
    pub(crate) token: Token,
    /// The waiters, in the order of their turns: of many, the first 100.
    pub(crate) waiting: Vec<ShownWaiter>,
    /// How many wait.
    pub(crate) waiting_in_all: usize,
}

/// How long a lock lasts.
#[derive(Deserialize, Serialize)]
#[cfg_attr(feature = "lockd", derive(JsonSchema), schemars(rename = "Lease"))]
pub(crate) struct ShownLease {
    /// After each renewal, in milliseconds.
    pub(crate) length_ms: u64,
    /// From now on, in milliseconds.
    pub(crate) remaining_ms: u64,
}

/// A request that waits for a lock.
#[derive(Deserialize, Serialize)]
#[cfg_attr(feature = "lockd", derive(JsonSchema), schemars(rename = "Waiter"))]
pub(crate) struct ShownWaiter {
    /// The client that asks.
    pub(crate) client: String,
    /// Since when, in milliseconds since 1970.
    pub(crate) since_ms: u64,
}

/// The locks that are held, with their waiters. It is written piece by piece, in this order.
#[derive(Deserialize, Serialize)]
#[cfg_attr(feature = "lockd", derive(JsonSchema), schemars(rename = "Locks"))]
pub(crate) struct List {
    /// By their names.
    pub(crate) locks: Vec<ShownLock>,
    #[serde(flatten)]
    pub(crate) figures: ListFigures,
}

/// What stands behind the locks of a list.
#[derive(Deserialize, Serialize)]
#[cfg_attr(feature = "lockd", derive(JsonSchema))]
pub(crate) struct ListFigures {
    /// Whether the request came from an administrator.
    pub(crate) administrator: bool,
    /// How many locks are held in all.
    pub(crate) held: usize,
    /// How many of all match the search.
    pub(crate) matching: usize,
    /// The time of this list, in milliseconds since 1970.
    pub(crate) now_ms: u64,
    /// How many files there are that name no client.
    pub(crate) problems: usize,
    /// How many requests wait in all.
    pub(crate) waiting: usize,
}

/// What answers here.
#[cfg(feature = "lockd")]
#[derive(JsonSchema, Serialize)]
pub(crate) struct About {
    /// The program.
    pub(crate) name: &'static str,
    /// Where the description of the API is, seen from here.
    pub(crate) openapi: &'static str,
    /// The version of the program.
    pub(crate) version: &'static str,
}

/// Why a request was not fulfilled.
#[derive(Deserialize, Serialize)]
#[cfg_attr(feature = "lockd", derive(JsonSchema), schemars(rename = "Refused"))]
pub(crate) struct Refused<C = Code> {
    /// For programs.
    pub(crate) error: C,
    /// The holder, where that is the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "lockd", schemars(with = "Holder"))]
    pub(crate) holder: Option<Holder>,
    /// For people.
    pub(crate) message: String,
}

/// The holder of a lock that was asked for.
#[derive(Debug, Deserialize, Serialize)]
#[cfg_attr(feature = "lockd", derive(JsonSchema))]
pub(crate) struct Holder {
    /// The name of the client.
    pub(crate) client: String,
    #[serde(flatten)]
    pub(crate) hold: Option<HolderSince>,
}

/// Since when and how long, where that is known.
#[derive(Debug, Deserialize, Serialize)]
#[cfg_attr(feature = "lockd", derive(JsonSchema))]
pub(crate) struct HolderSince {
    /// How long its lease lasts without a renewal; null: until it is released.
    pub(crate) remaining_ms: Option<u64>,
    /// Since when, in milliseconds since 1970.
    pub(crate) since_ms: u64,
}

/// What kind of refusal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[cfg_attr(feature = "lockd", derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub(crate) enum Code {
    /// The name of the resource or of the client is none that can be kept.
    BadName,
    /// The body was not read: too long, too slow, cut short, or packed in an unknown way.
    Body,
    /// This daemon needs a token.
    CredentialsNeeded,
    /// These credentials are not for that.
    Forbidden,
    /// This daemon is not called as the Host header says.
    ForeignHost,
    /// A page from elsewhere asks.
    ForeignOrigin,
    /// The request is not as it is described here.
    Invalid,
    /// It is held, perhaps by the same client, and the request did not wait.
    Locked,
    /// The client, by its name, holds as many locks as one may.
    LocksPerClient,
    /// The request has no Host header, or several.
    NoHost,
    /// There is nothing at this path.
    NoSuchPath,
    /// The lock is not the client's any more, or not by this grant.
    NotHeld,
    /// The body is not said to be JSON.
    NotJson,
    /// No client has it.
    NotLocked,
    /// Another client has it.
    NotYours,
    /// The file in the lock's place names no client.
    Poisoned,
    /// The request with this id was granted before, and that grant is over.
    RequestOver,
    /// The daemon stops.
    ShuttingDown,
    /// The disk refused; nothing was changed.
    Storage,
    /// It was not free in time.
    Timeout,
    /// Too many wrong tokens came from this address.
    TooManyFailures,
    /// Too many listen for events.
    TooManyViewers,
    /// Too many requests wait.
    TooManyWaiting,
    /// The client, by its name, has as many requests that wait as one may.
    WaitersPerClient,
    /// The token is not known here.
    WrongCredentials,
    /// This path is not for this method.
    WrongMethod,
    /// The lock is held by another grant.
    WrongToken,
}

/// As in the JSON.
impl fmt::Display for Code {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(out)
    }
}

/// A code as the client reads it: its daemon may be newer. (W3)
#[cfg(feature = "lockd-client")]
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum AnyCode {
    Known(Code),
    Unknown(String),
}

/// As in the JSON.
#[cfg(feature = "lockd-client")]
impl fmt::Display for AnyCode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(code) => code.fmt(out),
            Self::Unknown(code) => code.fmt(out),
        }
    }
}

#[cfg(feature = "lockd")]
impl Code {
    /// The statuses of answers with this code; the usual one first.
    pub(crate) fn statuses(self) -> &'static [u16] {
        match self {
            Self::BadName | Self::Invalid | Self::NoHost => &[400],
            Self::Body => &[400, 408, 413, 415, 503],
            Self::CredentialsNeeded | Self::WrongCredentials => &[401],
            Self::Forbidden | Self::ForeignOrigin => &[403],
            Self::NoSuchPath | Self::NotLocked => &[404],
            Self::NotHeld => &[404, 409],
            Self::WrongMethod => &[405],
            // A wait that is over is not 408, and a quota not 429: asking again does not
            // help, and there are clients that would by themselves.
            Self::Locked
            | Self::LocksPerClient
            | Self::NotYours
            | Self::RequestOver
            | Self::Timeout
            | Self::WaitersPerClient
            | Self::WrongToken => &[409],
            Self::NotJson => &[415],
            Self::ForeignHost => &[421],
            Self::TooManyFailures | Self::TooManyViewers | Self::TooManyWaiting => &[429],
            Self::Poisoned | Self::Storage => &[500],
            Self::ShuttingDown => &[503],
        }
    }
}
