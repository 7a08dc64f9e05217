//! TLS with servers by blocking calls, for commands: they are no part of the proxy.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConnection, RootCertStore, StreamOwned};

use super::dial::server_name;
use super::tls::{UpstreamTls, config_of, provider, roots};
use super::{NetError, TlsSetup};
use crate::http::Host;

/// Whom a command trusts that goes through a proxy which opens TLS.
pub struct Trust {
    tls: Arc<UpstreamTls>,
    /// Who is known for sure; `None` where all of the trusted are.
    sure: Option<Signers>,
    /// Whose certificates are the proxy's; `None` where it does not say.
    proxy: Option<Signers>,
}

impl Trust {
    /// Trusts the system's certificates and those in `files` (PEM); where `believes`, those that
    /// the proxy says are its own (`said`, PEM), too. The error is a sentence.
    pub fn new(files: &[PathBuf], said: Option<&[u8]>, believes: bool) -> Result<Trust, String> {
        let (known, _) = roots(files).map_err(|(_, why)| why)?;
        let mut own = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(said.unwrap_or_default()) {
            let certificate = certificate.map_err(|error| format!("the proxy's CA: {error}"))?;
            own.add(certificate).map_err(|error| format!("the proxy's CA: {error}"))?;
        }
        let mut trusted = known.clone();
        let sure = match believes && !own.is_empty() {
            true => {
                trusted.extend(own.roots.iter().cloned());
                Some(Signers::new(known)?)
            }
            false => None,
        };
        let TlsSetup { client: tls, .. } = config_of(trusted, None).map_err(|(_, why)| why)?;
        let proxy = said.map(|_| Signers::new(own)).transpose()?;
        Ok(Trust { tls, sure, proxy })
    }

    /// Shakes hands with `host`.
    ///
    /// # Errors
    /// A certificate that is not trusted, a protocol error, or a socket that fails.
    pub fn connect(&self, host: &Host, mut tcp: TcpStream) -> Result<Secure, NetError> {
        let name = server_name(host)?;
        let mut session = ClientConnection::new(Arc::clone(&self.tls), name.clone())?;
        while session.is_handshaking() {
            session.complete_io(&mut tcp).map_err(failed)?;
        }
        let chain = session.peer_certificates().unwrap_or_default();
        let signed = |by: &Option<Signers>| by.as_ref().map(|by| by.signed(chain, &name));
        let (sure, opened) = (signed(&self.sure).unwrap_or(true), signed(&self.proxy));
        Ok(Secure { stream: StreamOwned::new(session, tcp), sure, opened })
    }
}

/// A connection by TLS.
pub struct Secure {
    stream: StreamOwned<ClientConnection, TcpStream>,
    /// Whether the server is known by a file or the system's store: credentials go to no other one.
    pub sure: bool,
    /// Whether it is the proxy that opened the TLS, where that can be told.
    pub opened: Option<bool>,
}

impl Read for Secure {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buf)
    }
}

impl Write for Secure {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Certificates that sign others; `None` is nobody's.
struct Signers(Option<Arc<WebPkiServerVerifier>>);

impl Signers {
    fn new(roots: RootCertStore) -> Result<Signers, String> {
        if roots.is_empty() {
            return Ok(Signers(None));
        }
        let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider());
        builder.build().map(|built| Signers(Some(built))).map_err(|error| error.to_string())
    }

    /// Whether they signed this server's certificate, which comes first in its chain.
    fn signed(&self, chain: &[CertificateDer<'_>], name: &ServerName<'_>) -> bool {
        let (Some(verifier), Some((leaf, between))) = (&self.0, chain.split_first()) else {
            return false;
        };
        verifier.verify_server_cert(leaf, between, name, &[], UnixTime::now()).is_ok()
    }
}

fn failed(error: io::Error) -> NetError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => NetError::Tls(tls.clone()),
        None => error.into(),
    }
}

impl NetError {
    /// Whether the peer's certificate was signed by nobody who is trusted.
    pub fn is_unknown_signer(&self) -> bool {
        let unknown = CertificateError::UnknownIssuer;
        matches!(self, NetError::Tls(rustls::Error::InvalidCertificate(why)) if *why == unknown)
    }
}
