//! Checks of single values: text in, typed value out, `None` where the text is no such value.
//! The `EXPECTED` constants say in errors what would be right.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

pub(super) const EXPECTED_DURATION: &str = "a duration such as 10s, 5m or 1h";
pub(super) const EXPECTED_SIZE: &str = "a size such as 1073741824, 64KiB or 20GB";
pub(super) const EXPECTED_NET: &str = "a network such as 10.0.0.0/8 or fd00::/8, or an address";
pub(super) const EXPECTED_FIELD_VALUE: &str =
    "visible ASCII characters, blanks inside and no line breaks";

/// Names no rule may touch: hop-by-hop fields (RFC 9110 7.6.1 and the older list), and those
/// that say where a message goes and where it ends.
const UNTOUCHABLE: &[&str] = &[
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A whole number in plain decimal digits: no sign, no underscore.
pub(super) fn digits<N: std::str::FromStr>(text: &str) -> Option<N> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// `true` or `false`.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

/// `500ms`, `10s`, `5m`, `1h`, or several of them together; a bare `0` too.
pub(super) fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    humantime::parse_duration(text).ok()
}

/// Bytes: a number, alone or with a unit of 1000 (`KB MB GB TB PB`) or of 1024 (`KiB … PiB`).
pub(super) fn size(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (text.get(..end)?, text.get(end..)?.trim_start());
    let unit: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => bytesize::KB,
        "mb" => bytesize::MB,
        "gb" => bytesize::GB,
        "tb" => bytesize::TB,
        "pb" => bytesize::PB,
        "kib" => bytesize::KIB,
        "mib" => bytesize::MIB,
        "gib" => bytesize::GIB,
        "tib" => bytesize::TIB,
        "pib" => bytesize::PIB,
        _ => return None,
    };
    match number.split_once('.') {
        None => digits::<u64>(number)?.checked_mul(unit),
        Some((whole, part)) if part.len() <= 9 => {
            let scale = 10u64.pow(u32::try_from(part.len()).ok()?);
            let part = u128::from(digits::<u64>(part)?) * u128::from(unit) / u128::from(scale);
            digits::<u64>(whole)?.checked_mul(unit)?.checked_add(u64::try_from(part).ok()?)
        }
        Some(_) => None,
    }
}

/// A size in the largest unit of 1024 that gives a whole number.
pub(super) fn size_text(bytes: u64) -> String {
    let units = [("TiB", bytesize::TIB), ("GiB", bytesize::GIB), ("MiB", bytesize::MIB)];
    for (name, unit) in units.into_iter().chain([("KiB", bytesize::KIB)]) {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{}{name}", bytes / unit);
        }
    }
    bytes.to_string()
}

/// A CIDR, or an address for the network of it alone. Bits behind the prefix are dropped, and an
/// IPv4-mapped network is the IPv4 one.
pub(super) fn net(text: &str) -> Option<IpNet> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(IpNet::from(ip.to_canonical()));
    }
    let (_, prefix) = text.split_once('/')?;
    digits::<u8>(prefix)?;
    let net = text.parse::<IpNet>().ok()?.trunc();
    match (net.addr().to_canonical(), net.prefix_len().checked_sub(96)) {
        (IpAddr::V4(v4), Some(prefix)) if net.addr().is_ipv6() => {
            IpNet::new(IpAddr::V4(v4), prefix).ok()
        }
        _ => Some(net),
    }
}

/// Why a header name is refused in a rule.
pub(super) fn field_name(name: &str) -> Result<(), &'static str> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(token) {
        return Err("a header name of letters, digits and -");
    }
    if UNTOUCHABLE.iter().any(|own| own.eq_ignore_ascii_case(name)) {
        return Err("a header that neither routes nor frames a message");
    }
    Ok(())
}

/// Whether the text may be a header's value: what RFC 9110 5.5 allows, less the obsolete bytes.
pub(super) fn is_field_value(text: &str) -> bool {
    let visible = |byte: u8| (0x20..0x7f).contains(&byte) || byte == b'\t';
    text.bytes().all(visible) && text.trim_matches([' ', '\t']).len() == text.len()
}

/// Whether the text may follow `Bearer ` (RFC 6750 2.1 says less, but tokens are what they are).
pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Whether values of this header are masked when the configuration is printed.
pub(super) fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["auth", "cookie", "token", "secret", "key", "passw", "credential", "signature", "session"]
        .iter()
        .any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let ms = |text| duration(text).map(|value| value.as_millis());
        for (text, millis) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("1h 30m", 5_400_000),
            ("1h30m", 5_400_000),
            ("1.5s", 1_500),
            ("0s", 0),
            ("0", 0),
        ] {
            assert_eq!(ms(text), Some(millis), "{text}");
        }
        for text in ["", "15", "s", "-1s", "10 parsecs", "99999999999999999999s"] {
            assert_eq!(ms(text), None, "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("21474836480", 20 << 30),
            ("20GB", 20_000_000_000),
            ("20 GB", 20_000_000_000),
            ("20GiB", 20 << 30),
            ("20gib", 20 << 30),
            ("64KiB", 65_536),
            ("64kB", 64_000),
            ("1.5GiB", 3 << 29),
            ("0.1KB", 100),
            ("7B", 7),
            ("1TiB", 1 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in [
            "",
            "GB",
            "-1",
            "+1",
            "1e9",
            "1_000",
            "20G",
            "20GBit",
            "1.GB",
            ".5GB",
            "1.2.3GB",
            "0x10",
            "18446744073709551616",
            "99999999PB",
            "1.0000000001GB",
            "ten",
        ] {
            assert_eq!(size(text), None, "{text}");
        }
        for (bytes, text) in [(20 << 30, "20GiB"), (65_536, "64KiB"), (1_500, "1500"), (0, "0")] {
            assert_eq!(size_text(bytes), text);
            assert_eq!(size(text), Some(bytes));
        }
    }

    #[test]
    fn networks() {
        for (text, printed) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("192.0.2.1", "192.0.2.1/32"),
            ("::1", "::1/128"),
            ("FD00::1/8", "fd00::/8"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:10.0.0.1", "10.0.0.1/32"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(net(text).map(|net| net.to_string()).as_deref(), Some(printed), "{text}");
        }
        for text in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "a/8", "10.0.0.0/", "10.0.0.0/+8"] {
            assert_eq!(net(text), None, "{text}");
        }
    }

    #[test]
    fn header_names_and_values() {
        for name in ["Authorization", "X-Via", "x_y", "PRIVATE-TOKEN"] {
            assert_eq!(field_name(name), Ok(()), "{name}");
        }
        for name in ["", "a b", "a:", "é", "Host", "TE", "content-LENGTH", "Proxy-Authorization"] {
            assert!(field_name(name).is_err(), "{name}");
        }
        for value in ["", "Bearer abc", "a\tb", "\"q\""] {
            assert!(is_field_value(value), "{value:?}");
        }
        for value in ["a\r\nb", "a\nb", " a", "a ", "é", "a\0", "\u{7f}"] {
            assert!(!is_field_value(value), "{value:?}");
        }
    }
}
