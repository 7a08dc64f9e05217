//! Who asks: whatever in a request may open a registry's door, as a keyed hash.

use std::fmt;

use serde::Deserialize;
use zeroize::Zeroizing;

use super::place::{Short, first_half};
use crate::http::Fields;
use crate::key::{Algorithm, Digest, Hasher};

/// Bytes of an Authorization value whose expiry is looked for at most.
const TOKEN_MAX: usize = 64 * 1024;

/// The secret of this installation: without it, a hash here can't be tried against guessed
/// passwords.
pub struct Secret(Zeroizing<[u8; 32]>);

impl Secret {
    /// From 32 random bytes, kept in a file that only the proxy can read.
    pub fn new(bytes: [u8; 32]) -> Secret {
        Secret(bytes.into())
    }

    /// HMAC-SHA-256 (RFC 2104) of what `feed` puts in.
    pub fn mac(&self, feed: impl FnOnce(&mut Hasher)) -> Digest {
        const BLOCK: usize = 64;
        let padded = |pad: u8| {
            let mut block = [pad; BLOCK];
            block.iter_mut().zip(self.0.iter()).for_each(|(slot, byte)| *slot ^= byte);
            let mut hasher = Hasher::new(Algorithm::Sha256);
            hasher.update(&block);
            hasher
        };
        let mut inner = padded(0x36);
        feed(&mut inner);
        let mut outer = padded(0x5c);
        outer.update(inner.finish().bytes());
        outer.finish()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Whoever sends the same credentials. Never the credentials themselves.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Principal(Kind);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Anonymous,
    Holder {
        id: Short,
        /// When the credentials end by what they say themselves, milliseconds since 1970.
        expires_ms: u64,
    },
}

impl Principal {
    /// Whoever sends nothing that could be a credential.
    pub const ANONYMOUS: Principal = Principal(Kind::Anonymous);

    /// Who asks upstream with these fields and this query: the request *as it goes out*, header
    /// rules applied. Credentials that a rule puts in over the client's own make all its clients
    /// one principal; those it adds to the client's own do not.
    ///
    /// All fields count but those known to open no door: registries take tokens in Authorization,
    /// in cookies and in fields of their own, and one overlooked would make its holder anonymous.
    pub fn new(secret: &Secret, outgoing: &Fields, query: Option<&str>) -> Principal {
        let mut any = query.is_some();
        let id = secret.mac(|hasher| {
            hasher.update(b"principal");
            for (name, value) in outgoing.iter().filter(|(name, _)| !is_harmless(name)) {
                any = true;
                feed(hasher, name.to_ascii_lowercase().as_bytes());
                feed(hasher, value);
            }
            feed(hasher, query.unwrap_or_default().as_bytes());
        });
        match any {
            false => Principal::ANONYMOUS,
            true => {
                let mut tokens = outgoing.all("authorization");
                let expires = match (tokens.next(), tokens.next()) {
                    (Some(only), None) => expiry_ms(only),
                    _ => None,
                };
                let (id, expires_ms) = (first_half(id.bytes()), expires.unwrap_or(u64::MAX));
                Principal(Kind::Holder { id, expires_ms })
            }
        }
    }

    /// Whether nothing was sent that could be a credential.
    pub fn is_anonymous(&self) -> bool {
        matches!(self.0, Kind::Anonymous)
    }

    /// What its rows are found by.
    pub(super) fn id(&self) -> Short {
        match self.0 {
            Kind::Anonymous => Short::default(),
            Kind::Holder { id, .. } => id,
        }
    }

    /// When its credentials end by what they say themselves.
    pub(super) fn expires_ms(&self) -> u64 {
        match self.0 {
            Kind::Anonymous => u64::MAX,
            Kind::Holder { expires_ms, .. } => expires_ms,
        }
    }
}

impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_anonymous() { "Anonymous" } else { "Holder" })
    }
}

/// With its length ahead, so that no two lists of parts are the same bytes.
fn feed(hasher: &mut Hasher, part: &[u8]) {
    hasher.update(&(part.len() as u64).to_le_bytes());
    hasher.update(part);
}

/// Fields in which no registry looks for credentials.
fn is_harmless(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "accept",
        "accept-charset",
        "accept-encoding",
        "accept-language",
        "baggage",
        "cache-control",
        "connection",
        "content-length",
        "content-type",
        "date",
        "docker-distribution-api-version",
        "expect",
        "host",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "keep-alive",
        "pragma",
        "range",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "via",
        "x-request-id",
    ];
    NAMES.iter().any(|harmless| harmless.eq_ignore_ascii_case(name))
}

/// When a bearer token ends, where it is a JWT that says so (RFC 7519 4.1.4). Its signature is not
/// looked at: it only ever makes a grant shorter.
fn expiry_ms(authorization: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Claims {
        exp: f64,
    }
    if authorization.len() > TOKEN_MAX {
        return None;
    }
    let (scheme, token) = std::str::from_utf8(authorization).ok()?.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut parts = token.trim().split('.');
    let (_, claims, _) = (parts.next()?, parts.next()?, parts.next()?);
    let claims: Claims = serde_json::from_slice(&base64url(claims)?).ok()?;
    // A float's conversion saturates, and what is below zero has ended.
    Some((claims.exp * 1000.0) as u64)
}

/// Decodes base64url (RFC 4648 5), padded or not.
fn base64url(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut bits, mut held) = (0_u32, 0_u32);
    for byte in text.trim_end_matches('=').bytes() {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        (bits, held) = (bits << 6 | u32::from(six), held + 6);
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    (held < 6).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(begin: &[u8]) -> Secret {
        let mut bytes = [0; 32];
        bytes[..begin.len()].copy_from_slice(begin);
        Secret::new(bytes)
    }

    fn principal(listed: &[(&str, &str)], query: Option<&str>) -> Principal {
        let mut fields = Fields::new();
        listed.iter().for_each(|(name, value)| fields.push(name, value).unwrap());
        Principal::new(&secret(b"key"), &fields, query)
    }

    /// The key of an HMAC is padded with zeros: these keys are shorter than ours and still the
    /// same.
    #[test]
    fn the_mac_is_that_of_rfc_4231() {
        for (key, data, mac) in [
            (
                &[0x0b; 20][..],
                &b"Hi There"[..],
                "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
            ),
            (
                b"Jefe",
                b"what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (
                &[0xaa; 20],
                &[0xdd; 50],
                "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
            ),
        ] {
            assert_eq!(secret(key).mac(|hasher| hasher.update(data)).hex(), mac);
        }
    }

    #[test]
    fn what_opens_no_door_makes_nobody() {
        for fields in [
            &[][..],
            &[("Accept", "*/*"), ("User-Agent", "docker/29"), ("Host", "ghcr.io")],
            &[("range", "bytes=0-"), ("DOCKER-Distribution-API-Version", "registry/2.0")],
        ] {
            assert_eq!(principal(fields, None), Principal::ANONYMOUS);
        }
    }

    #[test]
    fn whatever_may_open_one_makes_another() {
        let all = [
            principal(&[("Authorization", "Bearer a")], None),
            principal(&[("Authorization", "Bearer b")], None),
            principal(&[("Authorization", "bearer a")], None),
            principal(&[("Authorization", "Bearer a"), ("Authorization", "Bearer b")], None),
            principal(&[("Authorization", "Bearer a"), ("Cookie", "b")], None),
            principal(&[("Cookie", "b")], None),
            principal(&[("Private-Token", "b")], None),
            principal(&[("X-JFrog-Art-Api", "b")], None),
            principal(&[("Authorization", "")], None),
            principal(&[], Some("token=a")),
            principal(&[], Some("token=b")),
            principal(&[], Some("")),
            Principal::ANONYMOUS,
        ];
        for (n, one) in all.iter().enumerate() {
            assert!(all[..n].iter().all(|other| other != one), "{n}");
            assert_eq!(one.is_anonymous(), n == all.len() - 1);
        }
        let same = principal(&[("Accept", "x"), ("AUTHORIZATION", "Bearer a")], None);
        assert_eq!(same, all[0]);
        let mut fields = Fields::new();
        fields.push("Authorization", "Bearer a").unwrap();
        assert_ne!(Principal::new(&secret(b"other"), &fields, None), all[0]);
    }

    #[test]
    fn nothing_is_revealed() {
        let holder = principal(&[("Authorization", "Bearer aXbXc")], Some("sig=aXbXc"));
        assert_eq!(format!("{holder:?} {:?}", Principal::ANONYMOUS), "Holder Anonymous");
        assert_eq!(format!("{:?}", secret(b"key")), "Secret");
    }

    #[test]
    fn base64url_is_decoded() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("Zg", b"f"),
            ("Zg==", b"f"),
            ("Zm8", b"fo"),
            ("Zm9v", b"foo"),
            ("Zm9vYmFy", b"foobar"),
            ("_-8", b"\xff\xef"),
        ] {
            assert_eq!(base64url(text).as_deref(), Some(bytes), "{text}");
        }
        for text in ["Z", "Zm9vY", "Zm9+", "Zm9/", "Zm 9", "Zm=9", "Zmé"] {
            assert_eq!(base64url(text), None, "{text}");
        }
    }

    #[test]
    fn tokens_say_when_they_end() {
        let claims = |text: &str| {
            const DIGITS: &[u8; 64] =
                b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
            let mut out = String::new();
            for three in text.as_bytes().chunks(3) {
                let byte = |n: usize| three.get(n).map_or(0, |byte| usize::from(*byte));
                let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
                let sixes = [bits >> 18, bits >> 12 & 63, bits >> 6 & 63, bits & 63];
                let digits = sixes.iter().take(three.len() + 1);
                out.extend(digits.map(|six| char::from(DIGITS[*six])));
            }
            out
        };
        let expiry = |text: &str| expiry_ms(format!("Bearer x.{}.y", claims(text)).as_bytes());
        for (text, ms) in [
            (r#"{"exp":1700000000}"#, Some(1_700_000_000_000)),
            (
                r#"{"iss":"a","exp":1.5e9,"access":[{"type":"repository"}]}"#,
                Some(1_500_000_000_000),
            ),
            (r#"{"exp":1700000000.25}"#, Some(1_700_000_000_250)),
            (r#"{"exp":-5}"#, Some(0)),
            (r#"{"exp":1e300}"#, Some(u64::MAX)),
            (r#"{"exp":"1700000000"}"#, None),
            (r#"{"exp":null}"#, None),
            (r#"{"exp":1,"exp":2}"#, None),
            (r#"{"exp":1e999}"#, None),
            (r#"{"iat":1700000000}"#, None),
            ("[]", None),
            ("exp", None),
        ] {
            assert_eq!(expiry(text), ms, "{text}");
        }
        let good = claims(r#"{"exp":17}"#);
        for (value, ms) in [
            (format!("bearer x.{good}.y"), Some(17_000)),
            (format!("Bearer  x.{good}. "), Some(17_000)),
            (format!("Basic x.{good}.y"), None),
            (format!("Bearer x.{good}"), None),
            (format!("Bearer {good}"), None),
            (format!("x.{good}.y"), None),
            (format!("Bearer x.{}.y", "[".repeat(40_000)), None),
            (format!("Bearer x.{}.y", claims(&"[".repeat(40_000))), None),
            (format!("Bearer x.{good}.{}", "y".repeat(TOKEN_MAX)), None),
        ] {
            assert_eq!(expiry_ms(value.as_bytes()), ms, "{value}");
        }
        assert_eq!(expiry_ms(b"Bearer \xff.\xff.\xff"), None);
    }
}
