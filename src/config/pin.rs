//! Pins: the keys that an upstream's certificate may have (RFC 7469, section 2.4, has the form).

use std::fmt;
use std::str::FromStr;

use super::parent::base64;

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
        write!(f, "sha256/{}", base64(&self.0))
    }
}

/// The text is no pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {EXPECTED}")]
pub struct NoPin;

impl FromStr for Pin {
    type Err = NoPin;

    fn from_str(text: &str) -> Result<Pin, NoPin> {
        let digits = text.strip_prefix("sha256/").and_then(|rest| rest.strip_suffix('='));
        let mut out = [0; 32];
        let mut filled = out.iter_mut();
        let (mut bits, mut count) = (0u32, 0);
        for digit in digits.ok_or(NoPin)?.bytes() {
            bits = (bits << 6 | value(digit).ok_or(NoPin)?) & 0xFFFF;
            count += 6;
            if count >= 8 {
                count -= 8;
                *filled.next().ok_or(NoPin)? = (bits >> count & 0xFF) as u8;
            }
        }
        let pin = Pin(out);
        // Also says no to what is too short, and to bits that stand for nothing.
        if pin.to_string() == text { Ok(pin) } else { Err(NoPin) }
    }
}

fn value(digit: u8) -> Option<u32> {
    let value = match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(value.into())
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
