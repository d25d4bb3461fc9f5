//! What this machine is called.

/// Its name in the network.
pub(crate) fn name() -> String {
    sysinfo::System::host_name().unwrap_or_default()
}
