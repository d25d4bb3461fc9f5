//! What the tests of locks in etcd share: a cluster of real members, each a process on an
//! address of its own, and a network that fails, between the members or before them.
//!
//! A test begins with `if !is_there(Version::V3_4) { return }`, which says what is missing.

#![allow(dead_code, unreachable_pub, unused_imports)]

mod cluster;
mod member;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub use cluster::{Builder, Cluster, Entry, Status, Tls};

pub use crate::server_support::{Certificates, Proxy, To};

/// What `tests/setup.sh` brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Of Debian 11: older than what lockkeeper takes.
    V3_3,
    /// Of Debian 12.
    V3_4,
    /// Of Debian 13.
    V3_5,
}

impl Version {
    fn number(self) -> &'static str {
        match self {
            Version::V3_3 => "3.3",
            Version::V3_4 => "3.4",
            Version::V3_5 => "3.5",
        }
    }
}

/// Whether this version can be run; says so if not.
pub fn is_there(version: Version) -> bool {
    let found = directory(version).is_some();
    if !found {
        println!("skipped: etcd {} is not there: run tests/setup.sh", version.number());
    }
    found
}

/// The directory of its `etcd` and `etcdctl`: unpacked by the set-up, or one of `PATH`.
fn directory(version: Version) -> Option<PathBuf> {
    let unpacked = format!("target/etcd-{}/usr/bin", version.number());
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join(unpacked);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut all = std::iter::once(unpacked).chain(std::env::split_paths(&path));
    all.find(|directory| is_of(&directory.join("etcd"), version))
}

fn is_of(etcd: &Path, version: Version) -> bool {
    let output = command(etcd).arg("--version").stderr(Stdio::null()).output();
    let said = output.map_or_else(|_| Vec::new(), |output| output.stdout);
    let first = format!("etcd Version: {}.", version.number());
    String::from_utf8_lossy(&said).starts_with(&first)
}

/// The command that runs a program of etcd, without what the environment tells it.
fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ETCD") {
            command.env_remove(name);
        }
    }
    // etcd 3.4 starts on other processors than amd64 only if they are named.
    let architecture = std::env::consts::ARCH.replace("aarch64", "arm64");
    command.env("ETCDCTL_API", "3").env("ETCD_UNSUPPORTED_ARCH", architecture);
    command
}
