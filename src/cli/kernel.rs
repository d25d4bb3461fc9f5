//! Arguments for locks of the kernel.

use std::str::FromStr;

use clap::Args;

use crate::{KernelOptions, Primitive};

/// A lock of the kernel's instead of a lock file
#[derive(Debug, Args)]
pub(super) struct Kernel {
    /// Take a kernel lock on the file LOCK, which excludes the programs that use the same kind:
    /// flock (flock(1), cargo, systemd) or ofd (apt, dpkg, SQLite, Python's lockf). The file is
    /// made if it is not there, and stays; nothing is written to it
    #[arg(long, value_name = "KIND", conflicts_with_all = [
        "race_delay", "tries", "openlock_compat", "pin", "note",
    ])]
    pub(super) kernel: Option<Kind>,

    /// With --kernel: share the lock with other readers
    #[arg(long, short, requires = "kernel")]
    pub(super) shared: bool,

    /// With --kernel: exit with this if the lock was not free in time [default: 73; flock(1) has 1]
    #[arg(long, short = 'E', value_name = "N", requires = "kernel")]
    pub(super) conflict_exit_code: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Flock,
    Ofd,
}

impl FromStr for Kind {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "flock" => Ok(Kind::Flock),
            "ofd" => Ok(Kind::Ofd),
            "posix" => Err("use --kernel ofd: it excludes programs with POSIX locks as well"),
            _ => Err("must be flock or ofd"),
        }
    }
}

impl Kind {
    pub(super) fn options(self) -> KernelOptions {
        KernelOptions::default().primitive(match self {
            Kind::Flock => Primitive::Flock,
            Kind::Ofd => Primitive::Ofd,
        })
    }
}
