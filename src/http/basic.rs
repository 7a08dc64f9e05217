//! User and password of the Basic scheme (RFC 7617, section 2).

use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, Engine};
use zeroize::Zeroizing;

/// Bytes of credentials that are looked at, at most: there are no such long passwords.
const BASIC_MAX: usize = 4096;

/// What a user says of himself.
#[derive(Clone, PartialEq, Eq)]
pub struct Basic {
    /// Without a colon.
    pub user: Vec<u8>,
    /// Any bytes.
    pub password: Zeroizing<Vec<u8>>,
}

impl Basic {
    /// Reads the value of `Authorization` or `Proxy-Authorization`; `None` where it is of another
    /// scheme, or not base64 (RFC 4648, section 4) of something with a colon in it.
    pub fn parse(value: &[u8]) -> Option<Basic> {
        if value.len() > BASIC_MAX {
            return None;
        }
        let (scheme, encoded) = std::str::from_utf8(value).ok()?.trim().split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        Basic::decode(encoded.trim_start())
    }

    /// Reads what stands behind the scheme.
    pub fn decode(encoded: &str) -> Option<Basic> {
        let pair = Zeroizing::new(base64(encoded)?);
        let colon = memchr::memchr(b':', &pair)?;
        let (user, password) = pair.split_at_checked(colon)?;
        Some(Basic { user: user.to_vec(), password: password.get(1..)?.to_vec().into() })
    }

    /// This user, who is without a colon.
    pub fn new(user: &str, password: &str) -> Basic {
        Basic { user: user.into(), password: password.as_bytes().to_vec().into() }
    }

    /// The value of `Authorization` or `Proxy-Authorization`.
    pub fn value(&self) -> Zeroizing<String> {
        let pair = Zeroizing::new([&*self.user, b":", &self.password].concat());
        let encoded = Zeroizing::new(BASE64_STANDARD.encode(&*pair));
        Zeroizing::new(["Basic ", &encoded].concat())
    }
}

/// Decodes base64, with all of its padding or none.
fn base64(text: &str) -> Option<Vec<u8>> {
    // Once, not one way and then the other: a try that fails leaves a part of a password behind.
    match text.len().is_multiple_of(4) {
        true => BASE64_STANDARD.decode(text).ok(),
        false => BASE64_STANDARD_NO_PAD.decode(text).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> Option<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Basic::parse(value.as_bytes()).map(|basic| (text(&basic.user), text(&basic.password)))
    }

    #[test]
    fn credentials_are_read() {
        let pair = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        for (value, expected) in [
            // The example of the RFC.
            ("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", pair("Aladdin", "open sesame")),
            ("basic  QWxhZGRpbjpvcGVuIHNlc2FtZQ", pair("Aladdin", "open sesame")),
            ("BASIC Og==", pair("", "")),
            ("Basic YTpiOmM=", pair("a", "b:c")),
            ("Basic w6TDtjrDvMOf", pair("äö", "üß")),
            ("Basic Pz8/Pj4+Og==", pair("???>>>", "")),
        ] {
            assert_eq!(parse(value), expected, "{value}");
            if let Some((user, password)) = expected {
                let written = Basic::new(&user, &password).value();
                assert_eq!(parse(&written), Some((user, password)), "{value}");
            }
        }
    }

    #[test]
    fn what_is_no_basic_credentials_is_none() {
        for value in [
            "",
            "Basic",
            "Basic ",
            "Bearer QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
            "Basic QWxhZGRpbg==",
            "Basic YTpi=",
            "Basic YTpiOmM",
            "Basic Og=",
            "Basic Og===",
            "Basic Oh==",
            "Basic O",
            "Basic Og==, Basic Og==",
            "Basic YTpi YTpi",
            "Basic YTpi_-",
        ] {
            let partly = value == "Basic YTpiOmM";
            assert_eq!(parse(value).is_none(), !partly, "{value}");
        }
        let long = format!("Basic {}", "YTph".repeat(2000));
        assert_eq!(parse(&long), None);
    }
}
