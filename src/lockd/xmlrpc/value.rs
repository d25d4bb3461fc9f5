//! The values a call can carry.

/// One value of a call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Nil,
    Int(i128),
    Bool(bool),
    Double(f64),
    Text(String),
    /// What it held is of no use here, and not kept.
    Binary,
    /// What it held is of no use here, and not kept.
    DateTime,
    Array(Vec<Value>),
    /// In the order in which they were sent; a name that is sent again stands
    /// in its first place with its last value.
    Struct(Vec<(String, Value)>),
}

impl Value {
    /// What to call it in a sentence.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Nil => "nil",
            Self::Int(_) => "an integer",
            Self::Bool(_) => "a boolean",
            Self::Double(_) => "a double",
            Self::Text(_) => "a string",
            Self::Binary => "base64 data",
            Self::DateTime => "a dateTime",
            Self::Array(_) => "an array",
            Self::Struct(_) => "a struct",
        }
    }
}

/// A call as it was sent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MethodCall {
    /// `None`: the call named no method.
    pub(crate) method: Option<String>,
    pub(crate) params: Vec<Value>,
}
