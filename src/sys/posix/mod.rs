//! What every Unix has. The folders of Linux and of the other systems name it again.

pub(crate) mod at_exit;
pub(crate) mod cpu;
pub(crate) mod files;
pub(crate) mod fork_count;
pub(crate) mod host;
