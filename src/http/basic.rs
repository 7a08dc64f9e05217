//! User and password of the Basic scheme (RFC 7617, section 2).

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
        let pair = Zeroizing::new(base64(encoded.trim_start())?);
        let colon = memchr::memchr(b':', &pair)?;
        let (user, password) = pair.split_at_checked(colon)?;
        Some(Basic { user: user.to_vec(), password: password.get(1..)?.to_vec().into() })
    }
}

/// Decodes base64, with its padding or without.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let padding = text.len() - digits.len();
    if padding > 2 || (padding > 0 && !text.len().is_multiple_of(4)) {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    let (mut bits, mut held) = (0_u32, 0_u32);
    for digit in digits.bytes() {
        let six = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(six);
        held += 6;
        if held >= 8 {
            held -= 8;
            // The cut is what is meant.
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    // A digit alone is not even one byte, and bits left over stand for nothing.
    (held < 6 && bits == 0).then_some(bytes)
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
