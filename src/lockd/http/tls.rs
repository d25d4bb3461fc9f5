//! TLS for connections, with a certificate and a key from files.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

use super::listen::Handshake;

/// Speaks TLS 1.2 or 1.3 as a server.
#[derive(Clone)]
pub(crate) struct Tls(TlsAcceptor);

impl Tls {
    /// The certificate comes first in its file, the ones that vouch for it
    /// behind; both files are PEM.
    ///
    /// # Errors
    /// Which file, and what is wrong with it.
    pub(crate) fn from_files(certificates: &Path, key: &Path) -> Result<Self, FileError> {
        let chain = CertificateDer::pem_file_iter(certificates)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| why(certificates, "certificate", &error))?;
        if chain.is_empty() {
            return Err(why(certificates, "certificate", &PemError::NoItemsFound));
        }
        let private =
            PrivateKeyDer::from_pem_file(key).map_err(|error| why(key, "private key", &error))?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|it| it.with_no_client_auth().with_single_cert(chain, private));
        let mut config = config.map_err(|error| FileError {
            path: certificates.to_owned(),
            why: format!("cannot be used with the key in {}: {error}", key.display()),
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }
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

impl Handshake for Tls {
    type Stream = TlsStream<TcpStream>;

    async fn handshake(&self, tcp: TcpStream) -> io::Result<Self::Stream> {
        self.0.accept(tcp).await
    }
}
