//! A CA's certificate and key: checked, put to use, made.

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, Error, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
    SignatureAlgorithm, SigningKey,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;

use super::files::{Files, Pair};
use super::names::{Limits, Subtree, constraints};
use super::{BACKDATED_DAYS, CA_DAYS, CaError, LEAF_DAYS, der};
use crate::http::Host;

/// A CA that ends within these days is spoken of.
const SOON_DAYS: i64 = 30;

/// A certificate and its key, fit for signing.
pub(super) struct Authority {
    key: KeyPair,
    /// Its name as it stands in the certificate: the leaves' issuer, to the byte.
    subject: Vec<u8>,
    key_id: Option<Vec<u8>>,
    from: OffsetDateTime,
    until: OffsetDateTime,
    /// What is sent behind a leaf.
    chain: Vec<CertificateDer<'static>>,
    limits: Vec<Limits>,
    pem: String,
    warnings: Vec<String>,
}

/// A certificate for one host.
pub(super) struct Leaf {
    /// Itself, and what is sent behind it.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) from: OffsetDateTime,
    pub(super) until: OffsetDateTime,
}

impl Authority {
    /// Reads and checks a pair from these files.
    pub(super) fn read(
        pair: Pair,
        files: &Files,
        now: OffsetDateTime,
    ) -> Result<Authority, CaError> {
        let fault = |why: String| CaError::Content { path: files.certificate.clone(), why };
        let key =
            read_key(&pair.key).map_err(|why| CaError::Content { path: files.key.clone(), why })?;
        let all = CertificateDer::pem_slice_iter(pair.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| fault(error.to_string()))?;
        let parsed = all.iter().map(parse).collect::<Result<Vec<_>, _>>().map_err(fault)?;
        let own = parsed.first().ok_or_else(|| fault("no PEM certificate in it".to_owned()))?;
        if own.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            let (certificate, key) = (files.certificate.clone(), files.key.clone());
            return Err(CaError::Mismatch { certificate, key });
        }
        check(own, now).map_err(fault)?;
        let key_id =
            own.iter_extensions().find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            });
        // A root is not sent along: clients have it, or do not trust it.
        let chain = all.iter().zip(&parsed).filter(|(_, parsed)| !is_root(parsed));
        let limits = parsed.iter().map(Limits::of).collect::<Result<Vec<_>, _>>();
        Ok(Authority {
            subject: own.subject().as_raw().to_vec(),
            key_id,
            from: own.validity().not_before.to_datetime(),
            until: own.validity().not_after.to_datetime(),
            chain: chain.map(|(der, _)| der.clone()).collect(),
            limits: limits.map_err(fault)?,
            warnings: endings(&parsed, now),
            key,
            pem: pair.certificate,
        })
    }

    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    /// Whether name constraints keep it from signing for any host.
    pub(super) fn is_limited(&self) -> bool {
        self.limits.iter().any(Limits::are_set)
    }

    /// What is to be said about a CA that is to sign for `subtrees`, and, where it is `narrow`, for
    /// nothing else.
    pub(super) fn warnings(&self, subtrees: &[Subtree], narrow: bool) -> Vec<String> {
        let mut warnings = self.warnings.clone();
        let permitted = |name: &Subtree| self.limits.iter().all(|limits| limits.permit(name));
        let refused: Vec<String> =
            subtrees.iter().filter(|name| !permitted(name)).map(Subtree::to_string).collect();
        if !refused.is_empty() {
            warnings.push(format!(
                "its name constraints do not permit {}: clients will refuse the certificates of \
                 these hosts; `discobot-proxy ca rotate` makes a CA that fits",
                refused.join(", ")
            ));
        }
        let beyond = self.limits.first().map(|limits| limits.beyond(subtrees)).unwrap_or_default();
        if narrow && !beyond.is_empty() {
            warnings.push(format!(
                "its name constraints permit {} too, which tls.intercept does not name; \
                 `discobot-proxy ca rotate` makes a CA that fits",
                beyond.join(", ")
            ));
        }
        warnings
    }

    /// A certificate for `host` and this key.
    pub(super) fn leaf(
        &self,
        host: &Host,
        key: &KeyPair,
        serial: SerialNumber,
        now: OffsetDateTime,
    ) -> Result<Leaf, String> {
        if now >= self.until {
            return Err(format!("the CA ended on {}", self.until.date()));
        }
        let words = |error: Error| error.to_string();
        let mut params = CertificateParams::default();
        let (from, until) = validity(now, LEAF_DAYS);
        // Nothing is valid that the CA is not.
        let (from, until) = (from.max(self.from), until.min(self.until));
        (params.not_before, params.not_after) = (from, until);
        params.serial_number = Some(serial);
        params.subject_alt_names = vec![alternative_name(host).map_err(words)?];
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name(host));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = self.key_id.is_some();
        let mut issuer = CertificateParams::default();
        let key_id = self.key_id.clone().unwrap_or_default();
        issuer.key_identifier_method = KeyIdMethod::PreSpecified(key_id);
        let draft = params.signed_by(key, &Issuer::new(issuer, Unsigned(&self.key)));
        // rcgen would write the issuer's name anew, and not as it was where a part comes twice.
        let draft = draft.map_err(words)?;
        let (unsigned, algorithm) =
            der::reissued(draft.der(), &self.subject).ok_or("rcgen made no certificate")?;
        let signature = self.key.sign(&unsigned).map_err(words)?;
        let leaf = der::certificate(&unsigned, &algorithm, &signature);
        let chain = [CertificateDer::from(leaf)].into_iter().chain(self.chain.iter().cloned());
        Ok(Leaf { chain: chain.collect(), from, until })
    }
}

/// Makes a CA; with `limits`, one that may sign for these names alone.
pub(super) fn make(limits: Option<&[Subtree]>, now: OffsetDateTime) -> Result<Pair, String> {
    let words = |error: Error| error.to_string();
    let key = KeyPair::generate().map_err(words)?;
    let mut params = CertificateParams::default();
    (params.not_before, params.not_after) = validity(now, CA_DAYS);
    // The day and the key tell two CAs apart in a trust store's listing, and to clients that look
    // for an issuer by its name.
    let id: String =
        params.key_identifier(&key).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name = DistinguishedName::new();
    let name = format!("discobot-proxy CA {} {id}", now.date());
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    if let Some(subtrees) = limits {
        params.name_constraints = Some(constraints(subtrees));
        // Names of people and of programs are not constrained: none is to be signed.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    }
    let certificate = params.self_signed(&key).map_err(words)?.pem();
    Ok(Pair { certificate, key: key.serialize_pem().into() })
}

fn validity(now: OffsetDateTime, days: i64) -> (OffsetDateTime, OffsetDateTime) {
    (now - time::Duration::days(BACKDATED_DAYS), now + time::Duration::days(days))
}

fn alternative_name(host: &Host) -> Result<SanType, Error> {
    Ok(match host {
        Host::Name(name) => SanType::DnsName(name.to_string().try_into()?),
        Host::V4(address) => SanType::IpAddress(IpAddr::V4(*address)),
        Host::V6(address) => SanType::IpAddress(IpAddr::V6(*address)),
    })
}

/// Clients look at the alternative names. Some hold a common name that looks like a host's against
/// the CA's name constraints all the same, and an address looks like one.
fn common_name(host: &Host) -> String {
    match host {
        // 64 characters at most (RFC 5280, appendix A.1).
        Host::Name(name) => name.chars().take(64).collect(),
        Host::V4(_) | Host::V6(_) => format!("address {host}"),
    }
}

fn read_key(pem: &str) -> Result<KeyPair, String> {
    let marks = ["-----BEGIN ENCRYPTED", "Proc-Type: 4,ENCRYPTED"];
    if pem.lines().any(|line| marks.iter().any(|mark| line.starts_with(mark))) {
        let how = "write it without a passphrase: openssl pkey -in OLD -out NEW";
        return Err(format!("the key is encrypted; {how}"));
    }
    let words = |error: &dyn std::fmt::Display| {
        format!("no usable private key ({error}): RSA of 2048 bits and more, or ECDSA, in PEM")
    };
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| words(&error))?;
    KeyPair::try_from(&key).map_err(|error| words(&error))
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    let (rest, certificate) = x509_parser::parse_x509_certificate(der)
        .map_err(|error| format!("no certificate: {error}"))?;
    if rest.is_empty() { Ok(certificate) } else { Err("more than a certificate".to_owned()) }
}

fn is_root(certificate: &X509Certificate<'_>) -> bool {
    certificate.subject().as_raw() == certificate.issuer().as_raw()
}

/// Whether clients would take it for a CA's.
fn check(certificate: &X509Certificate<'_>, now: OffsetDateTime) -> Result<(), String> {
    let words = |error: x509_parser::error::X509Error| error.to_string();
    let basic = certificate.basic_constraints().map_err(words)?;
    if !basic.is_some_and(|basic| basic.value.ca) {
        return Err("not the certificate of a CA (no basicConstraints CA:TRUE)".to_owned());
    }
    let usage = certificate.key_usage().map_err(words)?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err("this certificate may not sign others (no keyCertSign in keyUsage)".to_owned());
    }
    let validity = certificate.validity();
    let (from, until) = (validity.not_before.to_datetime(), validity.not_after.to_datetime());
    if now >= until {
        let day = until.date();
        return Err(format!(
            "this CA ended on {day}: put one in its place that is valid, or run `discobot-proxy \
             ca rotate`; clients must then trust that one"
        ));
    }
    if now < from {
        return Err(format!("this CA begins on {} only; is the clock right?", from.date()));
    }
    Ok(())
}

/// What is to be said about the ends of these certificates, of which the first is valid.
fn endings(certificates: &[X509Certificate<'_>], now: OffsetDateTime) -> Vec<String> {
    let until = |certificate: &X509Certificate<'_>| certificate.validity().not_after.to_datetime();
    let mut warnings = Vec::new();
    for (n, certificate) in certificates.iter().enumerate() {
        let until = until(certificate);
        let day = until.date();
        if n == 0 && until - now < time::Duration::days(SOON_DAYS) {
            warnings.push(format!("this CA ends on {day}; clients must trust another by then"));
        }
        if n > 0 && now >= until {
            warnings.push(format!("its certificate {} ended on {day}", n + 1));
        }
    }
    warnings
}

/// Signs nothing: for a draft that is signed when it is complete.
struct Unsigned<'a>(&'a KeyPair);

impl PublicKeyData for Unsigned<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for Unsigned<'_> {
    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(Vec::new())
    }
}
