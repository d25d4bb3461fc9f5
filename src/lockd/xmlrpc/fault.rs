//! What a client is told when its call fails.

use super::python;
use super::write;

/// Every fault has this code, as every error of the original has.
const CODE: u32 = 1;

/// How a fault names its type in front of its text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FaultStyle {
    /// `<class 'Exception'>:…`, as a server that runs on Python 3. The default.
    #[default]
    Python3,
    /// `<type 'exceptions.Exception'>:…`, as a server that runs on Python 2.
    Python2,
}

impl FaultStyle {
    fn prefix(self) -> &'static str {
        match self {
            Self::Python3 => "<class 'Exception'>:",
            Self::Python2 => "<type 'exceptions.Exception'>:",
        }
    }
}

/// The document of a fault with this text.
pub(crate) fn document(style: FaultStyle, text: &str) -> String {
    write::fault(CODE, &format!("{}{text}", style.prefix()))
}

/// Text of the refusal of a lock that is held.
pub(crate) fn already_locked(holder: &str) -> String {
    format!("Resource already locked by {}", python::quoted(holder))
}

/// Text of the refusal to unlock for `client`, which is as Python shows it.
pub(crate) fn not_yours(holder: &str, client: &str) -> String {
    format!("Resource locked by {} cannot be unlocked by {client}", python::quoted(holder))
}

/// Text of the refusal to unlock what is not held.
pub(crate) const NOT_LOCKED: &str = "Resource not locked";

/// Text of the refusal of a method that does not exist.
pub(crate) fn not_supported(method: Option<&str>) -> String {
    format!("method \"{}\" is not supported", method.unwrap_or("None"))
}
