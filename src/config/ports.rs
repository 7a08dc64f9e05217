//! Ranges of ports, as `proxy.connect_ports` lists them.

use std::fmt;
use std::str::FromStr;

use super::value::digits;

/// What an entry must look like, for errors.
pub(super) const EXPECTED: &str = "a port such as 443, or ports such as \"1024-65535\"";

/// One port, or all from one to another; none of them is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    /// Whether this port is one of them.
    pub fn contain(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => self.first.fmt(f),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// The text is no port and no range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {EXPECTED}")]
pub struct NoPorts;

impl FromStr for Ports {
    type Err = NoPorts;

    fn from_str(text: &str) -> Result<Ports, NoPorts> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (digits(first.trim_end()), digits(last.trim_start())) {
            (Some(first), Some(last)) if 0 < first && first <= last => Ok(Ports { first, last }),
            _ => Err(NoPorts),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_ranges_are_read_and_printed() {
        for (text, printed, inside, outside) in [
            ("443", "443", 443, 444),
            ("1024-65535", "1024-65535", 65_535, 1023),
            ("1024 - 2048", "1024-2048", 1024, 2049),
            ("7-7", "7", 7, 6),
        ] {
            let ports: Ports = text.parse().unwrap();
            assert_eq!(ports.to_string(), printed);
            assert!(ports.contain(inside) && !ports.contain(outside), "{text}");
        }
        for text in ["", "0", "0-5", "5-4", "65536", "-", "1-", "-1", "1-2-3", "+1", "http"] {
            assert_eq!(text.parse::<Ports>(), Err(NoPorts), "{text}");
        }
    }
}
