//! The methods there are and what they say of themselves.
//!
//! The texts go over the wire as every server made with Python's `xmlrpc`
//! sends them: clients may compare them.

/// A method that can be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Lock,
    Unlock,
    List,
    Help,
    Signature,
}

/// Their names, sorted.
pub(crate) const NAMES: &[&str] =
    &["lock", "system.listMethods", "system.methodHelp", "system.methodSignature", "unlock"];

/// What is answered to every question for a signature.
pub(crate) const SIGNATURE: &str = "signatures not supported";

impl Method {
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "lock" => Self::Lock,
            "unlock" => Self::Unlock,
            "system.listMethods" => Self::List,
            "system.methodHelp" => Self::Help,
            "system.methodSignature" => Self::Signature,
            _ => return None,
        })
    }

    /// The names of its arguments.
    pub(crate) fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Lock | Self::Unlock => &["resource", "client"],
            Self::List => &[],
            Self::Help | Self::Signature => &["method name"],
        }
    }

    /// Its help, which is empty for the two that matter.
    pub(crate) fn help(self) -> &'static str {
        match self {
            Self::Lock | Self::Unlock => "",
            Self::List => {
                "system.listMethods() => ['add', 'subtract', 'multiple']\n\n\
                 Returns a list of the methods supported by the server."
            }
            Self::Help => {
                "system.methodHelp('add') => \"Adds two integers together\"\n\n\
                 Returns a string containing documentation for the specified method."
            }
            Self::Signature => {
                "system.methodSignature('add') => [double, int, int]\n\n\
                 Returns a list describing the signature of the method. In the\n\
                 above example, the add method takes two integers as arguments\n\
                 and returns a double result.\n\n\
                 This server does NOT support system.methodSignature."
            }
        }
    }
}
