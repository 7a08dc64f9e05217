//! Upstream certificates: known by their key where the host has a pin, else by who signed them.

use std::fmt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};

use crate::http::Host;

/// Judges the public key (SubjectPublicKeyInfo, DER) of a host's certificate: `None` where the host
/// has no pin. The error is a sentence.
pub type Pinned = Arc<dyn Fn(&Host, &[u8]) -> Option<Result<(), Box<str>>> + Send + Sync>;

/// Verifies upstreams for [`super::client_config`].
pub(super) struct Verifier {
    pinned: Pinned,
    /// Nothing where no CA is trusted.
    usual: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    pub(super) fn new(
        pinned: Pinned,
        roots: RootCertStore,
        provider: Arc<CryptoProvider>,
    ) -> Result<Verifier, String> {
        let usual = match roots.is_empty() {
            true => None,
            false => {
                let roots = Arc::new(roots);
                let usual = WebPkiServerVerifier::builder_with_provider(roots, provider.clone());
                Some(usual.build().map_err(|error| error.to_string())?)
            }
        };
        Ok(Verifier { pinned, usual, provider })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let key = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
        let host = host(name).ok_or(Error::UnsupportedNameType)?;
        match ((self.pinned)(&host, &key), &self.usual) {
            (Some(Ok(())), _) => Ok(ServerCertVerified::assertion()),
            (Some(Err(why)), _) => {
                let why = OtherError(Arc::new(WrongKey(why)));
                Err(CertificateError::Other(why).into())
            }
            (None, Some(usual)) => usual.verify_server_cert(certificate, chain, name, ocsp, now),
            (None, None) => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    // Whatever a certificate is trusted for, the peer has to show that the key is its own.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("usual", &self.usual).finish_non_exhaustive()
    }
}

/// A certificate whose key has no pin.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct WrongKey(Box<str>);

fn host(name: &ServerName<'_>) -> Option<Host> {
    match name {
        ServerName::DnsName(name) => Host::parse(name.as_ref()).ok(),
        ServerName::IpAddress(address) => Some(match std::net::IpAddr::from(*address) {
            std::net::IpAddr::V4(address) => Host::V4(address),
            std::net::IpAddr::V6(address) => Host::V6(address),
        }),
        _ => None,
    }
}

/// The words for a failure of TLS.
pub(super) fn words(error: &Error) -> String {
    match error {
        // rustls would show its wrapping too.
        Error::InvalidCertificate(CertificateError::Other(OtherError(why))) => why.to_string(),
        error => error.to_string(),
    }
}
