//! Pins: the keys that an upstream's certificate may have (RFC 7469, section 2.4, has the form).

use std::fmt;
use std::str::FromStr;

use base64::prelude::{BASE64_STANDARD, Engine};

/// What a value of this kind must look like, for errors.
pub(super) const EXPECTED: &str =
    "sha256/ and the base64 of the SHA-256 of a certificate's public key, 44 characters";

/// SHA-256 of a certificate's SubjectPublicKeyInfo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin([u8; 32]);

impl Pin {
    /// The pin of a key whose SubjectPublicKeyInfo has this SHA-256.
    pub fn new(sha256: [u8; 32]) -> Pin {
        Pin(sha256)
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256/{}", BASE64_STANDARD.encode(self.0))
    }
}

/// The text is no pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {EXPECTED}")]
pub struct NoPin;

impl FromStr for Pin {
    type Err = NoPin;

    fn from_str(text: &str) -> Result<Pin, NoPin> {
        let digits = text.strip_prefix("sha256/").ok_or(NoPin)?;
        let bytes = BASE64_STANDARD.decode(digits).map_err(|_| NoPin)?;
        bytes.try_into().map(Pin).map_err(|_| NoPin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256/47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

    #[test]
    fn pins_read_and_print() {
        let pin: Pin = EMPTY.parse().unwrap();
        assert_eq!(pin.to_string(), EMPTY);
        assert_eq!((pin.0[0], pin.0[31]), (0xE3, 0x55));
        for byte in [0, 1, 0x7F, 0xFF] {
            let pin = Pin::new([byte; 32]);
            assert_eq!(pin.to_string().parse(), Ok(pin));
        }
    }

    #[test]
    fn what_is_no_pin_is_refused() {
        let digits = &EMPTY["sha256/".len()..];
        for text in [
            "",
            "sha256/",
            "sha256/=",
            digits,
            &format!("sha256//{digits}"),
            &format!("sha1/{digits}"),
            &format!("SHA256/{digits}"),
            &EMPTY.replace('F', ""),
            &EMPTY.replace('=', ""),
            &EMPTY.replace('=', "A="),
            &EMPTY.replace("U=", "V="),
            &EMPTY.replace('+', "-"),
            &format!("{EMPTY} "),
            "sha256/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ] {
            assert_eq!(text.parse::<Pin>(), Err(NoPin), "{text}");
        }
    }
}
