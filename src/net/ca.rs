//! Our certificate authority and the leaf certificates it issues for the hosts whose TLS is opened.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use thiserror::Error;
use time::OffsetDateTime;

use crate::http::Host;

/// How long a leaf is valid. Far below what browsers accept (398 days).
const LEAF_DAYS: i64 = 7;

/// A leaf is made anew when it has been in use for so long, well before it ends.
const LEAF_USED: Duration = Duration::from_secs(3 * 24 * 3600);

/// Certificates begin so long ago, for clients whose clock is behind.
const BACKDATED_DAYS: i64 = 1;

/// How long the CA is valid.
const CA_DAYS: i64 = 3650;

/// Leaves kept.
const LEAVES_MAX: usize = 1024;

/// Why there is no CA.
#[derive(Debug, Error)]
pub enum CaError {
    /// A file can't be read or written.
    #[error("{}: {why}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The system's words.
        why: io::Error,
    },
    /// One of the two files is missing.
    #[error(
        "{} is there but {} is not: put it back, or remove both to have a new CA made (clients \
         must then trust the new certificate)", there.display(), missing.display()
    )]
    Half {
        /// The file that is there.
        there: PathBuf,
        /// The file that is not.
        missing: PathBuf,
    },
    /// Others can read the key.
    #[error("{}: mode {mode:04o} lets others read the CA's key; run: chmod 600 {}",
        path.display(), path.display())]
    Readable {
        /// The key's path.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file holds something else.
    #[error("{}: {why}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// The CA: issues leaves, and remembers them.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: PathBuf,
    pem: String,
    chain: Vec<CertificateDer<'static>>,
    base: Base,
    leaves: Mutex<HashMap<Host, (Instant, Arc<ServerConfig>)>>,
}

/// What all leaves share.
struct Base {
    provider: Arc<rustls::crypto::CryptoProvider>,
    key: KeyPair,
    ticketer: Arc<dyn rustls::server::ProducesTickets>,
}

impl Ca {
    /// Reads the CA from `dir`, or makes one there when there is none.
    pub fn open(dir: &Path) -> Result<Ca, CaError> {
        let (certificate, key) = (dir.join("ca.crt"), dir.join("ca.key"));
        let exists = |path: &Path| path.try_exists().map_err(|why| file_error(path, why));
        match (exists(&certificate)?, exists(&key)?) {
            (true, true) => {}
            (false, false) => make(dir, &certificate, &key)?,
            (true, false) => return Err(CaError::Half { there: certificate, missing: key }),
            (false, true) => return Err(CaError::Half { there: key, missing: certificate }),
        }
        Ca::read(certificate, &key)
    }

    fn read(certificate: PathBuf, key_path: &Path) -> Result<Ca, CaError> {
        let mode = fs::metadata(key_path).map_err(|why| file_error(key_path, why))?;
        let mode = mode.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(CaError::Readable { path: key_path.to_owned(), mode });
        }
        let content = |path: &Path, why: String| CaError::Content { path: path.to_owned(), why };
        let read = |path: &Path| fs::read_to_string(path).map_err(|why| file_error(path, why));
        let (pem, key_pem) = (read(&certificate)?, read(key_path)?);
        let key = KeyPair::from_pem(&key_pem)
            .map_err(|error| content(key_path, format!("no usable private key: {error}")))?;
        let public = key.public_key_raw().to_vec();
        let issuer = Issuer::from_ca_cert_pem(&pem, key)
            .map_err(|error| content(&certificate, format!("no usable CA: {error}")))?;
        let chain = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| content(&certificate, error.to_string()))?;
        let holds = |der: &CertificateDer<'_>| {
            der.as_ref().windows(public.len()).any(|window| window == public)
        };
        if !chain.first().is_some_and(holds) {
            let why = format!("not the certificate of the key in {}", key_path.display());
            return Err(content(&certificate, why));
        }
        let base = Base::new().map_err(|why| content(&certificate, why))?;
        // A root is not sent along: clients have it, or do not trust it.
        let chain = if chain.len() > 1 { chain } else { Vec::new() };
        Ok(Ca { issuer, certificate, pem, chain, base, leaves: Mutex::default() })
    }

    /// The path of the certificate that clients are to trust.
    pub fn certificate_path(&self) -> &Path {
        &self.certificate
    }

    /// The certificate that clients are to trust, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// The server side of TLS for `host`, with a leaf that names it.
    pub fn server_config(&self, host: &Host) -> Result<Arc<ServerConfig>, String> {
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, config)) = leaves.get(host)
            && made.elapsed() < LEAF_USED
        {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(self.issue(host)?);
        if leaves.len() >= LEAVES_MAX {
            let oldest = leaves.iter().min_by_key(|(_, (made, _))| *made);
            if let Some(oldest) = oldest.map(|(host, _)| host.clone()) {
                leaves.remove(&oldest);
            }
        }
        leaves.insert(host.clone(), (Instant::now(), Arc::clone(&config)));
        Ok(config)
    }

    fn issue(&self, host: &Host) -> Result<ServerConfig, String> {
        let words = |error: &dyn std::fmt::Display| format!("no certificate for {host}: {error}");
        let mut params = CertificateParams::default();
        let name = match host {
            Host::Name(name) => {
                let name = name.to_string().try_into().map_err(|error| words(&error))?;
                SanType::DnsName(name)
            }
            Host::V4(address) => SanType::IpAddress(IpAddr::V4(*address)),
            Host::V6(address) => SanType::IpAddress(IpAddr::V6(*address)),
        };
        params.subject_alt_names = vec![name];
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name(host));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = validity(LEAF_DAYS);
        let leaf = params.signed_by(&self.base.key, &self.issuer).map_err(|error| words(&error))?;
        let mut chain = vec![leaf.der().clone()];
        chain.extend(self.chain.iter().cloned());
        self.base.config(chain).map_err(|error| words(&error))
    }
}

impl Base {
    fn new() -> Result<Base, String> {
        let words = |error: &dyn std::fmt::Display| error.to_string();
        Ok(Base {
            provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
            key: KeyPair::generate().map_err(|error| words(&error))?,
            ticketer: rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|error| words(&error))?,
        })
    }

    fn config(&self, chain: Vec<CertificateDer<'static>>) -> Result<ServerConfig, rustls::Error> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.ticketer = Arc::clone(&self.ticketer);
        // AES-128-GCM is the fastest here, and as good as any.
        config.ignore_client_order = true;
        Ok(config)
    }
}

/// A common name has 64 characters at most; clients look at the alternative names anyway.
fn common_name(host: &Host) -> String {
    host.to_string().chars().take(64).collect()
}

fn validity(days: i64) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - time::Duration::days(BACKDATED_DAYS), now + time::Duration::days(days))
}

fn make(dir: &Path, certificate: &Path, key_path: &Path) -> Result<(), CaError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(dir);
    made.map_err(|why| file_error(dir, why))?;
    let failed =
        |error: rcgen::Error| CaError::Content { path: dir.to_owned(), why: error.to_string() };
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::default();
    let (not_before, not_after) = validity(CA_DAYS);
    (params.not_before, params.not_after) = (not_before, not_after);
    params.distinguished_name = DistinguishedName::new();
    // The day tells two CAs of two installations or times apart in a trust store's listing.
    let name = format!("discobot-proxy CA {}", not_before.date());
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let pem = params.self_signed(&key).map_err(failed)?.pem();
    // The key first: a certificate without a key is noticed at the next start, and so is the
    // opposite; neither is ever half-written, since both appear by rename.
    write_new(key_path, key.serialize_pem().as_bytes(), 0o600)?;
    write_new(certificate, pem.as_bytes(), 0o644)
}

/// Writes a file that appears whole and with its mode, never wider.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CaError> {
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&part)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)
    };
    write().map_err(|why| {
        // The error that counts is the first one.
        let _ = fs::remove_file(&part);
        file_error(path, why)
    })
}

fn file_error(path: &Path, why: io::Error) -> CaError {
    CaError::File { path: path.to_owned(), why }
}
