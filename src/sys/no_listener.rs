//! What is wrong with a socket that another program listens at for this one.

/// Why a socket that was passed cannot be served.
pub(crate) struct NoListener {
    pub(crate) message: String,
    /// The user of the other program has to name another socket.
    pub(crate) is_misconfigured: bool,
}
