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
use tokio_rustls::rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use tokio_rustls::rustls::crypto::WebPkiSupportedAlgorithms;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme, crypto,
};

use super::heard_out::{HeardOut, is_gone};
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

/// Which certificates of a server are good.
#[derive(Clone, Copy)]
pub(crate) enum Trust<'a> {
    /// Of the server's name, by an authority that the system trusts.
    System,
    /// Of the server's name, in this file or signed by what is in it.
    File(&'a Path),
    /// In this file or signed by what is in it, whatever their name.
    #[cfg(feature = "postgres")]
    FileForAnyName(&'a Path),
    /// All: no third party can listen, and any can answer instead of the server.
    #[cfg(feature = "postgres")]
    All,
}

/// What the options are called that name files.
#[derive(Clone, Copy)]
pub(crate) struct OptionNames {
    pub(crate) ca: &'static str,
    pub(crate) cert: &'static str,
    pub(crate) key: &'static str,
}

#[cfg(any(feature = "etcd", feature = "lockd-client"))]
impl OptionNames {
    pub(crate) const USUAL: Self = Self { ca: "ca_file", cert: "cert_file", key: "key_file" };
}

#[derive(Clone)]
pub(crate) struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Tls {
    /// With an `identity` this side shows a certificate as well.
    ///
    /// # Errors
    /// [`Error::InvalidOption`].
    pub(crate) fn new(
        host: &str,
        trust: Trust<'_>,
        identity: Option<(&Path, &Path)>,
        options: OptionNames,
    ) -> Result<Self, Error> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| invalid("server", format!("{host:?}: {error}")))?;
        let provider = Arc::new(crypto::ring::default_provider());
        let supported = provider.signature_verification_algorithms;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("BUG: ring has no protocol version");
        let named = |file: &Path| {
            let named = Named::new(certificates_in(options.ca, file)?);
            named.map_err(|why| invalid(options.ca, format!("{}: {why}", file.display())))
        };
        let (named, checks_name) = match trust {
            Trust::System => (None, true),
            Trust::File(file) => (Some(named(file)?), true),
            #[cfg(feature = "postgres")]
            Trust::FileForAnyName(file) => (Some(named(file)?), false),
            #[cfg(feature = "postgres")]
            Trust::All => (None, false),
        };
        let config = if matches!(trust, Trust::System) {
            config.with_root_certificates(roots_of_the_system())
        } else {
            let checks = Checks { named, checks_name, supported };
            config.dangerous().with_custom_certificate_verifier(Arc::new(checks))
        };
        let config = match identity {
            None => config.with_no_client_auth(),
            Some((certificates, key)) => {
                let key_file = key;
                let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| {
                    invalid(options.key, format!("{}: {error}", key_file.display()))
                })?;
                let chain = certificates_in(options.cert, certificates)?;
                let wrong = |error| {
                    let files = (certificates.display(), key_file.display());
                    invalid(options.key, format!("{} with {}: {error}", files.0, files.1))
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

    pub(crate) async fn connect(&self, socket: Socket) -> io::Result<HeardOut<TlsStream<Socket>>> {
        let connected = self.connector.connect(self.name.clone(), socket).await;
        // What speaks no TLS closes the connection, or resets it if something is unread.
        let ended = |error| io::Error::new(io::ErrorKind::UnexpectedEof, error);
        let as_end = |error: io::Error| if is_gone(&error) { ended(error) } else { error };
        connected.map(HeardOut::new).map_err(as_end)
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

/// The certificates that a user named, and what they signed.
#[derive(Debug)]
struct Named {
    roots: RootCertStore,
    certificates: Vec<CertificateDer<'static>>,
}

impl Named {
    /// # Errors
    /// What is wrong with one of them.
    fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            roots.add(certificate.clone()).map_err(|error| error.to_string())?;
        }
        Ok(Self { roots, certificates })
    }

    /// Whether the certificate is one of them, or one of them signed it. The first needs
    /// no signature, so a certificate that could sign others (`CA:TRUE`, as `openssl req
    /// -x509` makes them) may be the server's own.
    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        supported: WebPkiSupportedAlgorithms,
    ) -> Result<(), TlsError> {
        let chain = verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(certificate)?,
            &self.roots,
            intermediates,
            now,
            supported.all,
        );
        match chain {
            // Its dates were checked before this refusal.
            Err(error) if is_authority(&error) && self.certificates.contains(certificate) => Ok(()),
            chain => chain,
        }
    }
}

/// What is checked of a server's certificate, besides that the server has its key.
#[derive(Debug)]
struct Checks {
    named: Option<Named>,
    checks_name: bool,
    supported: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Checks {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        if let Some(named) = &self.named {
            named.check(end_entity, intermediates, now, self.supported)?;
        }
        if self.checks_name {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        crypto::verify_tls12_signature(message, certificate, signed, &self.supported)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        crypto::verify_tls13_signature(message, certificate, signed, &self.supported)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.supported.supported_schemes()
    }
}

/// Whether a certificate was refused only because it is marked as an authority's.
/// rustls gives the reason of the crate below it in no other way.
fn is_authority(error: &TlsError) -> bool {
    matches!(error, TlsError::InvalidCertificate(CertificateError::Other(reason))
        if reason.0.to_string() == "CaUsedAsEndEntity")
}

/// What a user would change, in the words of one kind of lock.
pub(crate) struct Remedies {
    /// How it is done without TLS, as a sentence.
    pub(crate) plain: &'static str,
    /// What names the certificates to trust.
    pub(crate) ca: &'static str,
}

/// What would become of another try, and the error with what can be done.
pub(crate) fn explained(error: io::Error, remedies: &Remedies) -> (Outlook, io::Error) {
    let Remedies { plain: without, ca } = remedies;
    let Some(found) = error.get_ref().and_then(|error| error.downcast_ref::<TlsError>()) else {
        let is_cut_off = error.kind() == io::ErrorKind::UnexpectedEof;
        let shown = format!("{error}: {without}");
        let error = if is_cut_off { io::Error::new(error.kind(), shown) } else { error };
        return (Outlook::Open, error);
    };
    let (outlook, remedy) = match found {
        TlsError::InvalidMessage(_) => {
            (Outlook::Foreign, format!("what answers there speaks no TLS: {without}"))
        }
        TlsError::InvalidCertificate(CertificateError::UnknownIssuer) => (
            Outlook::Untrusted,
            format!(
                "if it has an authority of its own, or vouches for itself, name that \
                 certificate ({ca})"
            ),
        ),
        TlsError::InvalidCertificate(CertificateError::NotValidForNameContext { .. }) => (
            Outlook::Untrusted,
            "make one for this name: openssl req -x509 … -addext subjectAltName=DNS:name (or IP:)"
                .to_owned(),
        ),
        found if is_authority(found) => (
            Outlook::Untrusted,
            format!(
                "it is marked as an authority's: name it itself ({ca}), or make one with \
                 openssl req -x509 … -addext basicConstraints=critical,CA:FALSE"
            ),
        ),
        _ => (Outlook::Untrusted, String::new()),
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
        let supported = crypto::ring::default_provider().signature_verification_algorithms;
        let named = Some(Named::new(vec![certificate.clone()]).unwrap());
        let verifier = Checks { named, checks_name: true, supported };
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
