//! An authority, and what it vouches for.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Files of one authority, a server and a client. Two of these do not trust each other.
#[derive(Clone, Debug)]
pub struct Certificates {
    pub ca: PathBuf,
    pub server: PathBuf,
    pub server_key: PathBuf,
    pub client: PathBuf,
    pub client_key: PathBuf,
}

impl Certificates {
    /// The server's is for this address and name, 127.0.0.1 and `localhost`; the client's for
    /// a user called `client`.
    pub fn make(directory: &Path, address: Ipv4Addr, name: &str) -> Self {
        let files = Self::paths(directory);
        let key = directory.join("ca.key");
        let authority = (files.ca.as_path(), key.as_path());
        sign(authority, "an authority", &["basicConstraints=critical,CA:TRUE"], None);
        let names = format!("DNS:localhost,DNS:{name},IP:127.0.0.1,IP:{address}");
        let names = format!("subjectAltName={names}");
        let leaf = "basicConstraints=critical,CA:FALSE";
        let server = (files.server.as_path(), files.server_key.as_path());
        sign(server, "a server", &[leaf, &names], Some(authority));
        let client = (files.client.as_path(), files.client_key.as_path());
        sign(client, "client", &[leaf], Some(authority));
        files
    }

    /// Where they are, or would be.
    pub fn paths(directory: &Path) -> Self {
        Self {
            ca: directory.join("ca.pem"),
            server: directory.join("server.pem"),
            server_key: directory.join("server.key"),
            client: directory.join("client.pem"),
            client_key: directory.join("client.key"),
        }
    }
}

/// A certificate and its key.
type Files<'a> = (&'a Path, &'a Path);

fn sign(files: Files<'_>, name: &str, extensions: &[&str], by: Option<Files<'_>>) {
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    command.args(["-nodes", "-days", "2", "-subj", &format!("/CN={name}")]);
    command.args(extensions.iter().flat_map(|extension| ["-addext", *extension]));
    if let Some((certificate, key)) = by {
        command.arg("-CA").arg(certificate).arg("-CAkey").arg(key);
    }
    command.arg("-out").arg(files.0).arg("-keyout").arg(files.1);
    let made = command.stdin(Stdio::null()).output().expect("openssl: run tests/setup.sh");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}
