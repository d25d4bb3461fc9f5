//! TLS for connections, with a certificate and a key from files.

#![expect(clippy::disallowed_methods, reason = "reads certificate and key")]

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

use super::listen::Handshake;
use super::socket::Socket;
use crate::sys::mutex::Mutex;
use crate::sys::permissions;

/// Speaks TLS 1.2 or 1.3 as a server. Clones are the same.
#[derive(Clone)]
pub(crate) struct ServerTls(Arc<TlsInner>);

struct TlsInner {
    certificates: PathBuf,
    key: PathBuf,
    /// For the next connection. A whole new one after a reload: a session that an
    /// old one began is not resumed, so each new connection gets the new certificate.
    acceptor: Mutex<TlsAcceptor>,
}

impl ServerTls {
    /// The certificate comes first in its file, the ones that vouch for it
    /// behind; both files are PEM.
    ///
    /// # Errors
    /// Which file, and what is wrong with it.
    pub(crate) fn from_files(certificates: &Path, key: &Path) -> Result<Self, FileError> {
        let acceptor = Mutex::new(Self::read(certificates, key)?);
        let (certificates, key) = (certificates.to_owned(), key.to_owned());
        Ok(Self(Arc::new(TlsInner { certificates, key, acceptor })))
    }

    /// Reads the files again, for the connections to come.
    ///
    /// # Errors
    /// As [`from_files`](Self::from_files); then the old certificate stays.
    pub(crate) fn reload(&self) -> Result<(), FileError> {
        let acceptor = Self::read(&self.0.certificates, &self.0.key)?;
        *self.0.acceptor.lock() = acceptor;
        Ok(())
    }

    pub(crate) fn certificates(&self) -> &Path {
        &self.0.certificates
    }

    fn read(certificates: &Path, key: &Path) -> Result<TlsAcceptor, FileError> {
        let chain = CertificateDer::pem_file_iter(certificates)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| why(certificates, "certificate", &error))?;
        if chain.is_empty() {
            return Err(why(certificates, "certificate", &PemError::NoItemsFound));
        }
        let file =
            File::open(key).map_err(|error| why(key, "private key", &PemError::Io(error)))?;
        if is_writable_by_others(&file, key)? {
            let why = "can be changed by others, who could read what is sent: chmod go-w";
            return Err(FileError { path: key.to_owned(), why: why.to_owned() });
        }
        let private = PrivateKeyDer::from_pem_reader(&file)
            .map_err(|error| why(key, "private key", &error))?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|it| it.with_no_client_auth().with_single_cert(chain, private));
        let mut config = config.map_err(|error| FileError {
            path: certificates.to_owned(),
            why: format!("cannot be used with the key in {}: {error}", key.display()),
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// Group and others may not write a file of secrets or rights.
pub(crate) const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Others may not read a key. Its group may: `ssl-cert` on Debian, a pod's.
const READABLE_BY_ALL: u32 = 0o004;

/// Warns of what is less: mounted secrets are readable by all in many containers.
fn is_writable_by_others(key: &File, path: &Path) -> Result<bool, FileError> {
    let about = key.metadata().map_err(|error| why(path, "private key", &PemError::Io(error)))?;
    let mode = permissions::mode(&about).unwrap_or_default();
    if mode & READABLE_BY_ALL != 0 {
        tracing::warn!(key = %path.display(), "everybody on this machine can read it: chmod o-r");
    }
    Ok(mode & WRITABLE_BY_OTHERS != 0)
}

/// What is wrong with a file, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{} {why}", path.display())]
pub(crate) struct FileError {
    pub(crate) path: std::path::PathBuf,
    pub(crate) why: String,
}

fn why(path: &Path, what: &str, error: &PemError) -> FileError {
    let why = match error {
        PemError::Io(error) => format!("cannot be read: {error}"),
        PemError::NoItemsFound => format!("has no {what} in it: name a PEM file with one"),
        error => format!("is not a PEM file with a {what}: {error}"),
    };
    FileError { path: path.to_owned(), why }
}

impl Handshake for ServerTls {
    type Stream = TlsStream<Socket>;

    async fn handshake(&self, socket: Socket) -> io::Result<Self::Stream> {
        let acceptor = self.0.acceptor.lock().clone();
        acceptor.accept(socket).await
    }
}
