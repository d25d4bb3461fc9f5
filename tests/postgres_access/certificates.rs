//! An authority, and what it vouches for.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub(super) struct Certificates {
    pub(super) ca: PathBuf,
    /// For `db.test`, signed by the authority.
    pub(super) server: (PathBuf, PathBuf),
    /// For a user called `client`, signed by the authority.
    pub(super) client: (PathBuf, PathBuf),
    /// For `db.test`, by itself.
    pub(super) alone: (PathBuf, PathBuf),
}

impl Certificates {
    pub(super) fn make(directory: &Path) -> Self {
        let pair = |name: &str| {
            (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")))
        };
        let (authority, server, client, alone) =
            (pair("ca"), pair("server"), pair("client"), pair("alone"));
        let leaf = "basicConstraints=critical,CA:FALSE";
        let names = "subjectAltName=DNS:db.test";
        sign(&authority, "an authority", &["basicConstraints=critical,CA:TRUE"], None);
        sign(&server, "a server", &[leaf, names], Some(&authority));
        sign(&client, "client", &[leaf], Some(&authority));
        sign(&alone, "alone", &[names], None);
        Self { ca: authority.0, server, client, alone }
    }
}

fn sign(
    files: &(PathBuf, PathBuf),
    name: &str,
    extensions: &[&str],
    by: Option<&(PathBuf, PathBuf)>,
) {
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    command.args(["-nodes", "-days", "2", "-subj", &format!("/CN={name}")]);
    command.args(extensions.iter().flat_map(|extension| ["-addext", *extension]));
    if let Some((certificate, key)) = by {
        command.arg("-CA").arg(certificate).arg("-CAkey").arg(key);
    }
    command.arg("-out").arg(&files.0).arg("-keyout").arg(&files.1);
    let made = command.stdin(Stdio::null()).output().expect("openssl: run tests/setup.sh");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}
