//! rustls over buffers of ours: large reads are decrypted where they lie.

use std::path::Path;
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{ClientConfig, ProtocolVersion, RootCertStore};

/// Trusts the certificates in `ca` and no others.
pub fn config(ca: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca {
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let certificates = CertificateDer::pem_file_iter(path).map_err(|error| failed(&error))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| failed(&error))?;
            roots.add(certificate).map_err(|error| failed(&error))?;
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // A new connection is to cost what it costs a new client.
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// One TLS session.
pub struct Tls(UnbufferedClientConnection);

/// What a session wants next.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wants {
    /// More from the peer.
    Input,
    /// `out` sent.
    Output,
    /// Nothing: requests may be written.
    Requests,
    /// The peer has said goodbye.
    End,
}

impl Tls {
    pub fn new(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Tls, String> {
        let session = UnbufferedClientConnection::new(config, name);
        session.map(Tls).map_err(|error| error.to_string())
    }

    /// Whether a record's length says how much plaintext is in it.
    pub fn is_1_3(&self) -> bool {
        self.0.protocol_version() == Some(ProtocolVersion::TLSv1_3)
    }

    /// Takes in `buf[*start..]`, moving `start` on; plaintext goes to `plain`, and what is to be
    /// sent to `out`.
    pub fn advance(
        &mut self,
        buf: &mut [u8],
        start: &mut usize,
        out: &mut Vec<u8>,
        plain: &mut dyn FnMut(&[u8]),
    ) -> Result<Wants, String> {
        loop {
            let before = *start;
            let status = self.0.process_tls_records(&mut buf[*start..]);
            let UnbufferedStatus { mut discard, state, .. } = status;
            let wants = match state.map_err(|error| error.to_string())? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(|error| error.to_string())?;
                        discard += record.discard;
                        plain(record.payload);
                    }
                    None
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    append(out, 1024, |spare| match data.encode(spare) {
                        Ok(len) => Ok(len),
                        Err(EncodeError::InsufficientSize(size)) => Err(Some(size.required_size)),
                        Err(_) => Err(None),
                    })?;
                    None
                }
                ConnectionState::TransmitTlsData(data) => {
                    data.done();
                    Some(Wants::Output)
                }
                ConnectionState::BlockedHandshake => Some(Wants::Input),
                ConnectionState::WriteTraffic(_) => Some(Wants::Requests),
                ConnectionState::PeerClosed | ConnectionState::Closed => Some(Wants::End),
                _ => return Err("TLS in a state not foreseen".to_owned()),
            };
            *start += discard;
            // Idle and everything taken in, or stuck at a record that is not all there.
            if let Some(wants) = wants
                && (wants != Wants::Requests || *start == buf.len() || *start == before)
            {
                return Ok(wants);
            }
        }
    }

    /// Encrypts a request that is shorter than a record.
    pub fn encrypt(&mut self, request: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let status: UnbufferedStatus<'_, '_, ClientConnectionData> =
            self.0.process_tls_records(&mut []);
        match status.state.map_err(|error| error.to_string())? {
            ConnectionState::WriteTraffic(mut traffic) => {
                append(out, request.len() + 64, |spare| match traffic.encrypt(request, spare) {
                    Ok(len) => Ok(len),
                    Err(EncryptError::InsufficientSize(size)) => Err(Some(size.required_size)),
                    Err(_) => Err(None),
                })
            }
            _ => Err("TLS takes no request".to_owned()),
        }
    }
}

/// Lets `write` append to `out`, with more room where it says so.
fn append(
    out: &mut Vec<u8>,
    room: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
) -> Result<(), String> {
    let from = out.len();
    let mut room = room;
    for _ in 0..2 {
        out.resize(from + room, 0);
        match write(&mut out[from..]) {
            Ok(len) => {
                out.truncate(from + len);
                return Ok(());
            }
            Err(Some(wanted)) => room = wanted,
            Err(None) => break,
        }
    }
    Err("TLS could not encode".to_owned())
}
