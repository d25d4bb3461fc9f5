//! TLS: connections that others cannot read, to a server that is trusted.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
pub(crate) use tokio_rustls::rustls::Error as TlsError;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme, crypto,
};

use super::socket::Socket;
use crate::lock::error::Error;

/// What would become of another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outlook {
    /// It may succeed.
    Open,
    /// It would fail: the other side cannot be trusted.
    Untrusted,
    /// It would fail: the other side speaks another protocol.
    Foreign,
}

#[derive(Clone)]
pub(crate) struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Tls {
    /// # Errors
    /// [`Error::InvalidOption`].
    /// With an `identity` this side shows a certificate as well.
    pub(crate) fn new(
        host: &str,
        ca_file: Option<&Path>,
        identity: Option<(&Path, &Path)>,
    ) -> Result<Self, Error> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| invalid("server", format!("{host:?}: {error}")))?;
        let provider = Arc::new(crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("BUG: ring has no protocol version");
        let config = match ca_file {
            Some(file) => {
                let verifier = NamedCertificates::new(certificates_in("ca_file", file)?, provider)
                    .map_err(|why| invalid("ca_file", format!("{}: {why}", file.display())))?;
                config.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
            }
            None => config.with_root_certificates(roots_of_the_system()),
        };
        let config = match identity {
            None => config.with_no_client_auth(),
            Some((certificates, key)) => {
                let key_file = key;
                let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| {
                    invalid("key_file", format!("{}: {error}", key_file.display()))
                })?;
                let chain = certificates_in("cert_file", certificates)?;
                let wrong = |error| {
                    let files = (certificates.display(), key_file.display());
                    invalid("key_file", format!("{} with {}: {error}", files.0, files.1))
                };
                config.with_client_auth_cert(chain, key).map_err(wrong)?
            }
        };
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }

    /// For HTTP/2, as servers of it want to be told.
    #[cfg(feature = "etcd")]
    pub(crate) fn for_http2(mut self) -> Self {
        let mut config = ClientConfig::clone(self.connector.config());
        config.alpn_protocols = vec![b"h2".to_vec()];
        self.connector = TlsConnector::from(Arc::new(config));
        self
    }

    pub(crate) async fn connect(&self, socket: Socket) -> io::Result<TlsStream<Socket>> {
        self.connector.connect(self.name.clone(), socket).await
    }
}

fn invalid(option: &'static str, why: String) -> Error {
    Error::InvalidOption { option, why }
}

fn certificates_in(
    option: &'static str,
    file: &Path,
) -> Result<Vec<CertificateDer<'static>>, Error> {
    let wrong = |why: String| invalid(option, format!("{}: {why}", file.display()));
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| wrong(error.to_string()))?;
    if certificates.is_empty() {
        return Err(wrong("there is no certificate in it".to_owned()));
    }
    Ok(certificates)
}

fn roots_of_the_system() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors {
        tracing::warn!(%error, "reading the certificates that the system trusts");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    roots
}

/// Trusts the certificates that the user named: what they signed, and what is one of
/// them. The second needs no signature, so a certificate that could sign others
/// (`CA:TRUE`, as `openssl req -x509` makes them) may be the daemon's own.
#[derive(Debug)]
struct NamedCertificates {
    usual: Arc<WebPkiServerVerifier>,
    named: Vec<CertificateDer<'static>>,
}

impl NamedCertificates {
    /// # Errors
    /// What is wrong with one of them.
    fn new(
        named: Vec<CertificateDer<'static>>,
        provider: Arc<crypto::CryptoProvider>,
    ) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for certificate in &named {
            roots.add(certificate.clone()).map_err(|error| error.to_string())?;
        }
        let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let usual = usual.build().map_err(|error| error.to_string())?;
        Ok(Self { usual, named })
    }
}

impl ServerCertVerifier for NamedCertificates {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let verified = self.usual.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verified {
            // Its dates were checked before this refusal.
            Err(error) if is_authority(&error) && self.named.contains(end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.usual.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.usual.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

/// Whether a certificate was refused only because it is marked as an authority's.
/// rustls gives the reason of the crate below it in no other way.
fn is_authority(error: &TlsError) -> bool {
    matches!(error, TlsError::InvalidCertificate(CertificateError::Other(reason))
        if reason.0.to_string() == "CaUsedAsEndEntity")
}

/// What would become of another try, and the error with what can be done. `plain`: how
/// a URL without TLS begins.
pub(crate) fn explained(error: io::Error, plain: &str) -> (Outlook, io::Error) {
    let without = format!("without TLS the URL begins with {plain}");
    let Some(found) = error.get_ref().and_then(|error| error.downcast_ref::<TlsError>()) else {
        let is_cut_off = error.kind() == io::ErrorKind::UnexpectedEof;
        let shown = format!("{error}: {without}");
        let error = if is_cut_off { io::Error::new(error.kind(), shown) } else { error };
        return (Outlook::Open, error);
    };
    let without = format!("what answers there speaks no TLS: {without}");
    let (outlook, remedy) = match found {
        TlsError::InvalidMessage(_) => (Outlook::Foreign, without.as_str()),
        TlsError::InvalidCertificate(CertificateError::UnknownIssuer) => (
            Outlook::Untrusted,
            "if it has an authority of its own, or vouches for itself, name that certificate \
             (--ca, ca_file)",
        ),
        TlsError::InvalidCertificate(CertificateError::NotValidForNameContext { .. }) => (
            Outlook::Untrusted,
            "make one for this name: openssl req -x509 … -addext subjectAltName=DNS:name (or IP:)",
        ),
        found if is_authority(found) => (
            Outlook::Untrusted,
            "it is marked as an authority's: name it itself (--ca, ca_file), or make one with \
             openssl req -x509 … -addext basicConstraints=critical,CA:FALSE",
        ),
        _ => (Outlook::Untrusted, ""),
    };
    let text = if remedy.is_empty() { found.to_string() } else { format!("{found}: {remedy}") };
    (outlook, io::Error::new(error.kind(), text))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// As `openssl req -x509 -days 3650 -addext subjectAltName=DNS:locks` made it in
    /// November 2026.
    const USUAL: &str = "\
-----BEGIN CERTIFICATE-----
MIIBhjCCAS2gAwIBAgIUI6QQqEEV2Tu/U1rPnR6k4ZB6+p8wCgYIKoZIzj0EAwIw
EDEOMAwGA1UEAwwFbG9ja3MwHhcNMjYxMTI5MTQwNjEwWhcNMzYxMTI2MTQwNjEw
WjAQMQ4wDAYDVQQDDAVsb2NrczBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABKw3
jQ3IWw5i3vF6nrR+nu1cMDxnLgoKyGAAIQTnOBBEjcdql/DDMm2tEcKJma0Wg3is
GkJhHnBiVsDQ/P3VnhKjZTBjMB0GA1UdDgQWBBTEO+dslPDoPvZcXTXq+NHOCCgA
TTAfBgNVHSMEGDAWgBTEO+dslPDoPvZcXTXq+NHOCCgATTAPBgNVHRMBAf8EBTAD
AQH/MBAGA1UdEQQJMAeCBWxvY2tzMAoGCCqGSM49BAMCA0cAMEQCIH7JdLkNvUW/
xLkDUjR1r+srnEPEJi0sUHwjRfc15p63AiBZr9Bzm6V1WNczxj1eq8W/L0DJOw4V
AeOlRwEZo7UwEg==
-----END CERTIFICATE-----";

    fn verified(name: &'static str, year: u64) -> Result<(), TlsError> {
        let certificate = CertificateDer::from_pem_slice(USUAL.as_bytes()).unwrap();
        let provider = Arc::new(crypto::ring::default_provider());
        let verifier = NamedCertificates::new(vec![certificate.clone()], provider).unwrap();
        let name = ServerName::try_from(name).unwrap();
        let now = Duration::from_secs((year - 1970) * 365 * 24 * 3600);
        let now = UnixTime::since_unix_epoch(now);
        verifier.verify_server_cert(&certificate, &[], &name, &[], now).map(drop)
    }

    #[test]
    fn a_named_certificate_is_good_for_its_name_and_its_time() {
        assert_eq!(verified("locks", 2030), Ok(()));
        for (name, year) in [("elsewhere", 2030), ("locks", 2020), ("locks", 2040)] {
            let error = verified(name, year).unwrap_err();
            assert!(!is_authority(&error), "{name} {year}: {error}");
        }
    }
}
