//! The tests' certificate authority, and TLS configurations of origins and clients.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// A certificate authority of the tests' making.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new one, of the given common name.
    pub fn new(name: &str) -> Authority {
        let key = KeyPair::generate().expect("a CA key");
        let mut params = CertificateParams::new(Vec::new()).expect("CA parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).expect("a CA certificate").pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    /// The one that the tests' proxies trust through `tls.upstream_ca`.
    pub fn trusted() -> &'static Authority {
        static TRUSTED: OnceLock<Authority> = OnceLock::new();
        TRUSTED.get_or_init(|| Authority::new("discobot test CA"))
    }

    /// Its certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A server's identity for `names` (host names or addresses).
    pub fn server(&self, names: &[&str]) -> Identity {
        self.server_with(names, |_| {})
    }

    /// The same, with whatever `change` makes of the certificate.
    pub fn server_with(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Identity {
        let key = KeyPair::generate().expect("a leaf key");
        let mut params = leaf_params(names);
        change(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).expect("a leaf");
        Identity::new(&leaf, &key)
    }
}

/// A certificate for `names` that nobody but itself signed.
pub fn self_signed(names: &[&str]) -> Identity {
    let key = KeyPair::generate().expect("a leaf key");
    let leaf = leaf_params(names).self_signed(&key).expect("a leaf");
    Identity::new(&leaf, &key)
}

fn leaf_params(names: &[&str]) -> CertificateParams {
    let bare: Vec<String> =
        names.iter().map(|name| name.trim_matches(['[', ']']).to_owned()).collect();
    let mut params = CertificateParams::new(bare).expect("leaf parameters");
    params.distinguished_name.push(DnType::CommonName, "origin of a test");
    params
}

/// What a server shows of itself.
#[derive(Clone)]
pub struct Identity {
    pub(super) config: Arc<ServerConfig>,
    /// Its certificate, DER.
    pub leaf: Vec<u8>,
    pub leaf_pem: String,
    pub key_pem: String,
}

impl Identity {
    fn new(leaf: &Certificate, key: &KeyPair) -> Identity {
        let secret = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], secret)
            .expect("a server configuration");
        Identity {
            config: Arc::new(config),
            leaf: leaf.der().to_vec(),
            leaf_pem: leaf.pem(),
            key_pem: key.serialize_pem(),
        }
    }

    /// Somebody who shows this certificate without having its key.
    pub fn impostor(&self) -> Identity {
        let other = self_signed(&["impostor.test"]);
        let secret = PrivateKeyDer::from_pem_slice(other.key_pem.as_bytes()).expect("a key");
        let secret = any_supported_type(&secret).expect("a usable key");
        let chain = vec![CertificateDer::from(self.leaf.clone())];
        let shown = SingleCertAndKey::from(CertifiedKey::new(chain, secret));
        let config =
            ServerConfig::builder().with_no_client_auth().with_cert_resolver(Arc::new(shown));
        Identity { config: Arc::new(config), ..self.clone() }
    }
}

/// How a client takes part in TLS.
#[derive(Clone)]
pub struct Trust {
    roots: Arc<RootCertStore>,
    /// Send the host name in the handshake (RFC 6066 3).
    pub sni: bool,
    /// Offer nothing newer than TLS 1.2.
    pub tls12: bool,
    /// Offer this alone.
    pub suite: Option<rustls::CipherSuite>,
    /// Protocols to offer by ALPN.
    pub alpn: Vec<Vec<u8>>,
    /// Seconds by which its clock is ahead.
    ahead: i64,
}

/// A client's clock.
#[derive(Debug)]
struct Ahead(i64);

impl TimeProvider for Ahead {
    fn current_time(&self) -> Option<UnixTime> {
        let now = UnixTime::now().as_secs().checked_add_signed(self.0)?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(now)))
    }
}

impl Trust {
    /// Trusts the certificates of a PEM text, and no others.
    pub fn pem(pem: &str) -> Trust {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            roots.add(certificate.expect("a PEM certificate")).expect("a usable root");
        }
        assert!(!roots.is_empty(), "no certificate in {pem:?}");
        Trust {
            roots: Arc::new(roots),
            sni: true,
            tls12: false,
            suite: None,
            alpn: Vec::new(),
            ahead: 0,
        }
    }

    /// The same, at so many seconds from now.
    pub fn at(mut self, seconds: i64) -> Trust {
        self.ahead = seconds;
        self
    }

    pub(super) fn config(&self) -> Arc<ClientConfig> {
        let versions: &[&rustls::SupportedProtocolVersion] = match self.tls12 {
            true => &[&rustls::version::TLS12],
            false => rustls::ALL_VERSIONS,
        };
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        provider.cipher_suites.retain(|own| self.suite.is_none_or(|suite| own.suite() == suite));
        let clock = Arc::new(Ahead(self.ahead));
        let mut config = ClientConfig::builder_with_details(Arc::new(provider), clock)
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.enable_sni = self.sni;
        config.alpn_protocols = self.alpn.clone();
        Arc::new(config)
    }
}

/// Not before, not after, as seconds since 1970, of a DER certificate (RFC 5280 4.1.2.5).
pub fn validity(der: &[u8]) -> (u64, u64) {
    let mut times = Vec::new();
    for at in 0..der.len().saturating_sub(17) {
        let text = match (der[at], der[at + 1]) {
            (0x17, 13) => {
                let digits = String::from_utf8_lossy(&der[at + 2..at + 15]).into_owned();
                let century = if digits.as_str() < "50" { "20" } else { "19" };
                format!("{century}{digits}")
            }
            (0x18, 15) => String::from_utf8_lossy(&der[at + 2..at + 17]).into_owned(),
            _ => continue,
        };
        let Some(digits) = text.strip_suffix('Z') else { continue };
        if digits.len() == 14 && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            times.push(seconds(digits));
        }
    }
    assert!(times.len() >= 2, "no validity in the certificate");
    (times[0], times[1])
}

fn seconds(digits: &str) -> u64 {
    let part = |from: usize, to: usize| &digits[from..to];
    let text = format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0, 4),
        part(4, 6),
        part(6, 8),
        part(8, 10),
        part(10, 12),
        part(12, 14)
    );
    let time = humantime::parse_rfc3339(&text).unwrap_or_else(|_| panic!("{text} is no time"));
    time.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Whether a DER certificate carries this host name or address among its subject alternative
/// names (RFC 5280 4.2.1.6): the raw tag and value are looked for.
pub fn names_host(der: &[u8], host: &str) -> bool {
    let value = match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => [&[0x87, 4], address.octets().as_slice()].concat(),
        Ok(IpAddr::V6(address)) => [&[0x87, 16], address.octets().as_slice()].concat(),
        Err(_) => [&[0x82, host.len() as u8], host.as_bytes()].concat(),
    };
    der.windows(value.len()).any(|window| window == value)
}
