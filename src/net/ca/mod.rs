//! Our certificate authority and the leaf certificates it issues for the hosts whose TLS is opened.
//!
//! `files` keeps the CA's two files together, `authority` is what they hold, `names` are the name
//! constraints that limit it, `der` puts certificates together.
//!
//! What must stay true: the key's file was never readable by others; a pair that is used fits
//! together and is valid; whatever is interrupted leaves a pair that can be used.

mod authority;
mod der;
mod files;
mod names;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{KeyPair, SerialNumber};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use thiserror::Error;
use time::OffsetDateTime;

use self::authority::Authority;
use self::files::{Files, Lock};
pub use self::names::Subtree;
use crate::http::Host;

/// How long a leaf is valid. Far below what browsers accept (398 days).
const LEAF_DAYS: i64 = 7;

/// A leaf is made anew when it has been in use for so long, well before it ends: clients' clocks
/// may be ahead.
const LEAF_USED_DAYS: i64 = 3;

/// Certificates begin so long ago, for clients whose clock is behind.
const BACKDATED_DAYS: i64 = 1;

/// How long the CA is valid.
const CA_DAYS: i64 = 3650;

/// Leaves kept.
const LEAVES_MAX: usize = 1024;

/// Times that a pair is read which another process may be replacing.
const READS_MAX: usize = 3;

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
    #[error("{}: mode {mode:04o} lets others at the CA's key; run: chmod 600 {}",
        path.display(), path.display())]
    Readable {
        /// The key's path.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The two files hold something of two CAs.
    #[error(
        "{}: not the certificate of the key in {}; the CA's own has to come first", certificate
        .display(), key.display()
    )]
    Mismatch {
        /// The certificate's path.
        certificate: PathBuf,
        /// The key's path.
        key: PathBuf,
    },
    /// A file holds something else.
    #[error("{}: {why}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It may sign for more than it is to.
    #[error(
        "{}: tls.constrain is on, but no name constraints keep this CA from signing for every \
         host: run `discobot-proxy ca rotate` (clients must then trust the new certificate), or \
         set tls.constrain to false", certificate.display()
    )]
    Unlimited {
        /// The certificate's path.
        certificate: PathBuf,
    },
    /// Another process has been replacing the files for too long.
    #[error("{}: another process is replacing the CA", dir.display())]
    Busy {
        /// The folder.
        dir: PathBuf,
    },
}

/// Where the CA is, and what it is for.
#[derive(Clone, Debug)]
pub struct CaOptions {
    /// The folder of `ca.crt` and `ca.key`.
    pub dir: PathBuf,
    /// The names whose TLS is opened.
    pub names: Vec<Subtree>,
    /// Whether it may sign for these names alone.
    pub constrain: bool,
}

/// The CA: issues leaves, and remembers them.
pub struct Ca {
    authority: Authority,
    certificate: PathBuf,
    warnings: Vec<String>,
    base: Base,
    leaves: Mutex<HashMap<Host, Served>>,
}

/// A leaf in use.
struct Served {
    /// When it begins to be valid: a clock that was put back makes it useless.
    from: OffsetDateTime,
    /// When it is to be made anew.
    until: OffsetDateTime,
    config: Arc<ServerConfig>,
}

/// What all leaves share.
struct Base {
    provider: Arc<rustls::crypto::CryptoProvider>,
    key: KeyPair,
    ticketer: Arc<dyn rustls::server::ProducesTickets>,
    /// Whether sessions give out their keys, for [`super::Conn::hand_over`].
    gives_keys: bool,
}

/// A CA that has been replaced.
pub struct Rotated {
    /// The new one.
    pub ca: Ca,
    /// Where the old one's files went.
    pub kept: Vec<PathBuf>,
}

impl Ca {
    /// Reads the CA, or makes one when there is none.
    pub fn open(options: &CaOptions) -> Result<Ca, CaError> {
        if let Some(ca) = Ca::inspect(options)? {
            return Ok(ca);
        }
        let files = Files::new(&options.dir);
        files.make_dir()?;
        let lock = files.lock()?;
        // Whoever had the lock may have made one.
        if let Some(ca) = Ca::read(options, Some(&lock))? {
            return Ok(ca);
        }
        files.install(&make(options)?, &lock)?;
        Ca::made(options, &lock)
    }

    /// Reads the CA, `None` when there is none.
    pub fn inspect(options: &CaOptions) -> Result<Option<Ca>, CaError> {
        Ca::read(options, None)
    }

    fn read(options: &CaOptions, lock: Option<&Lock>) -> Result<Option<Ca>, CaError> {
        let files = Files::new(&options.dir);
        let Some(authority) = load(&files, lock)? else { return Ok(None) };
        if options.constrain && !authority.is_limited() {
            return Err(CaError::Unlimited { certificate: files.certificate });
        }
        let words = |why: &String| format!("{}: {why}", files.certificate.display());
        let warnings = authority.warnings(&options.names, options.constrain);
        let base = Base::new();
        Ok(Some(Ca {
            authority,
            warnings: warnings.iter().map(words).collect(),
            base: base.map_err(|why| CaError::Content { path: files.key, why })?,
            certificate: files.certificate,
            leaves: Mutex::default(),
        }))
    }

    /// Makes a new CA in place of the one that is there, whatever state that is in, and keeps the
    /// old one's files.
    pub fn rotate(options: &CaOptions) -> Result<Rotated, CaError> {
        let files = Files::new(&options.dir);
        files.make_dir()?;
        let lock = files.lock()?;
        finish(&files, &lock);
        let kept = files.keep(OffsetDateTime::now_utc(), &lock)?;
        files.install(&make(options)?, &lock)?;
        Ok(Rotated { ca: Ca::made(options, &lock)?, kept })
    }

    /// Reads what was just written.
    fn made(options: &CaOptions, lock: &Lock) -> Result<Ca, CaError> {
        let gone = || CaError::File {
            path: options.dir.join("ca.crt"),
            why: io::ErrorKind::NotFound.into(),
        };
        Ca::read(options, Some(lock))?.ok_or_else(gone)
    }

    /// Has the sessions of its leaves give out their keys, where [`super::Ktls`] may want them.
    #[must_use]
    pub fn giving_keys(mut self, gives_keys: bool) -> Ca {
        self.base.gives_keys = gives_keys;
        self
    }

    /// The path of the certificate that clients are to trust.
    pub fn certificate_path(&self) -> &Path {
        &self.certificate
    }

    /// The certificate that clients are to trust, PEM.
    pub fn certificate_pem(&self) -> &str {
        self.authority.pem()
    }

    /// What is to be said about it, a sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The server side of TLS for `host`, with a leaf that names it.
    pub fn server_config(&self, host: &Host) -> Result<Arc<ServerConfig>, String> {
        let now = OffsetDateTime::now_utc();
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(served) = leaves.get(host)
            && (served.from..served.until).contains(&now)
        {
            return Ok(Arc::clone(&served.config));
        }
        let served = self.serve(host, now);
        let served = served.map_err(|why| format!("no certificate for {host}: {why}"))?;
        if leaves.len() >= LEAVES_MAX && !leaves.contains_key(host) {
            let oldest = leaves.iter().min_by_key(|(_, served)| served.until);
            if let Some(oldest) = oldest.map(|(host, _)| host.clone()) {
                leaves.remove(&oldest);
            }
        }
        let config = Arc::clone(&served.config);
        leaves.insert(host.clone(), served);
        Ok(config)
    }

    fn serve(&self, host: &Host, now: OffsetDateTime) -> Result<Served, String> {
        let leaf = self.authority.leaf(host, &self.base.key, self.base.serial()?, now)?;
        let until = leaf.until.min(now + time::Duration::days(LEAF_USED_DAYS));
        let config = self.base.config(leaf.chain).map_err(|error| error.to_string())?;
        Ok(Served { from: leaf.from, until, config: Arc::new(config) })
    }
}

/// Reads the pair, `None` when there is none. Another process may be replacing it, or have stopped
/// doing so half-way; unless the lock is `held`.
fn load(files: &Files, held: Option<&Lock>) -> Result<Option<Authority>, CaError> {
    let mut reads = 0;
    loop {
        reads += 1;
        let pair = files.read();
        let read = |pair| Authority::read(pair, files, OffsetDateTime::now_utc());
        match pair.and_then(|pair| pair.map(read).transpose()) {
            Err(CaError::Half { .. } | CaError::Mismatch { .. }) if reads < READS_MAX => match held
            {
                Some(lock) => finish(files, lock),
                None => finish(files, &files.lock()?),
            },
            done => return done,
        }
    }
}

/// Completes what another process began, where the new key has its name already.
fn finish(files: &Files, lock: &Lock) {
    let fits = |pair| Authority::read(pair, files, OffsetDateTime::now_utc()).is_ok();
    if let Ok(Some(pair)) = files.read_pending()
        && fits(pair)
    {
        // What is wrong with the pair then is said by whoever reads it.
        let _ = files.finish(lock);
    }
}

fn make(options: &CaOptions) -> Result<files::Pair, CaError> {
    let limits = options.constrain.then_some(options.names.as_slice());
    authority::make(limits, OffsetDateTime::now_utc())
        .map_err(|why| CaError::Content { path: options.dir.clone(), why })
}

impl Base {
    fn new() -> Result<Base, String> {
        let words = |error: &dyn std::fmt::Display| error.to_string();
        Ok(Base {
            provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
            key: KeyPair::generate().map_err(|error| words(&error))?,
            ticketer: rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|error| words(&error))?,
            gives_keys: false,
        })
    }

    /// A number that no other certificate of ours has (RFC 5280, section 4.1.2.2). All leaves share
    /// a key, so it can't be made of that.
    fn serial(&self) -> Result<SerialNumber, String> {
        let mut bytes = [0; 16];
        self.provider.secure_random.fill(&mut bytes).map_err(|_| "no random numbers")?;
        // Positive, and always as long.
        bytes[0] = bytes[0] & 0x3F | 0x40;
        Ok(SerialNumber::from_slice(&bytes))
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
        config.enable_secret_extraction = self.gives_keys;
        Ok(config)
    }
}
