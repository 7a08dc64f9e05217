//! Host patterns: which hosts a rule is for.
//!
//! A pattern is an exact host name or IP address, or a name whose first label is `*` (one or more
//! labels stand there), or has `*` for a label in the middle (exactly one stands there), or `*`
//! alone (every host). Letter case does not count. Matching allocates nothing.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// What a value of this kind must look like, for errors.
pub(super) const EXPECTED: &str =
    "a host such as ghcr.io, *.docker.io or 192.0.2.1, without scheme and port";

/// A checked host pattern.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPattern {
    text: Box<str>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    /// `*`.
    Any,
    /// An address.
    Ip(IpAddr),
    /// A name with as many labels as the pattern has.
    Exact,
    /// A name with at least as many labels as the pattern has, the `*` in front counted.
    Below,
}

/// How narrow a pattern is; of two that match a host the greater one wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Specificity {
    exact: bool,
    literal_labels: usize,
    fixed_length: bool,
    literal_bytes: usize,
}

impl HostPattern {
    /// The pattern, lower case, without a final dot; addresses in their canonical form.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether this is `*`.
    pub fn is_any(&self) -> bool {
        self.kind == Kind::Any
    }

    /// Whether the pattern stands for one host alone.
    pub fn is_exact(&self) -> bool {
        match self.kind {
            Kind::Ip(_) => true,
            Kind::Exact => !self.text.split('.').any(|label| label == "*"),
            Kind::Any | Kind::Below => false,
        }
    }

    /// Whether the pattern covers the host with this name (no address, no final dot).
    pub fn matches_name(&self, name: &str) -> bool {
        let whole = match self.kind {
            Kind::Any => return true,
            Kind::Ip(_) => return false,
            Kind::Exact => true,
            Kind::Below => false,
        };
        let tail = if whole { &*self.text } else { self.text.get(2..).unwrap_or_default() };
        let mut labels = name.rsplit('.');
        for wanted in tail.rsplit('.') {
            match labels.next() {
                Some(label) if wanted == "*" || wanted.eq_ignore_ascii_case(label) => {}
                _ => return false,
            }
        }
        labels.next().is_none() == whole
    }

    /// Whether the pattern covers this address; an IPv4-mapped one is the IPv4 address.
    pub fn matches_ip(&self, ip: IpAddr) -> bool {
        match self.kind {
            Kind::Any => true,
            Kind::Ip(own) => own == ip.to_canonical(),
            Kind::Exact | Kind::Below => false,
        }
    }

    /// The address, where the pattern is one.
    pub fn as_ip(&self) -> Option<IpAddr> {
        match self.kind {
            Kind::Ip(ip) => Some(ip),
            _ => None,
        }
    }

    /// The narrowest name that all hosts of the pattern are below or equal to: what stands behind
    /// its last `*`; empty for `*`.
    pub fn domain(&self) -> &str {
        match self.kind {
            Kind::Any => "",
            _ => self.text.rsplit("*.").next().unwrap_or_default(),
        }
    }

    /// How narrow the pattern is.
    pub fn specificity(&self) -> Specificity {
        let literals = || self.text.split('.').filter(|label| *label != "*");
        Specificity {
            exact: self.is_exact(),
            literal_labels: literals().count(),
            fixed_length: self.kind == Kind::Exact,
            literal_bytes: literals().map(str::len).sum(),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The text is no host pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {EXPECTED}")]
pub struct NoPattern;

impl FromStr for HostPattern {
    type Err = NoPattern;

    fn from_str(text: &str) -> Result<HostPattern, NoPattern> {
        if text == "*" {
            return Ok(HostPattern { text: text.into(), kind: Kind::Any });
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if let Ok(ip) = bare.unwrap_or(text).parse::<IpAddr>() {
            if bare.is_some() && ip.is_ipv4() {
                return Err(NoPattern);
            }
            let ip = ip.to_canonical();
            return Ok(HostPattern { text: ip.to_string().into(), kind: Kind::Ip(ip) });
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() || name.len() > 253 {
            return Err(NoPattern);
        }
        if !name.split('.').all(|label| label == "*" || is_label(label)) {
            return Err(NoPattern);
        }
        let last = name.rsplit('.').next().unwrap_or_default();
        if last == "*" || looks_like_number(last) {
            return Err(NoPattern);
        }
        let kind = if name.starts_with("*.") { Kind::Below } else { Kind::Exact };
        Ok(HostPattern { text: name.to_ascii_lowercase().into(), kind })
    }
}

/// Letters, digits, `-` and `_` (which real hosts use), no `-` at an end.
fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// A last label of this kind makes resolvers take the whole for an IPv4 address.
fn looks_like_number(label: &str) -> bool {
    let hex = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    match hex {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => label.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> HostPattern {
        text.parse().unwrap_or_else(|_| panic!("{text}"))
    }

    #[test]
    fn names_match_as_the_contract_says() {
        let table: &[(&str, &[&str], &[&str])] = &[
            (
                "ghcr.io",
                &["ghcr.io", "GHCR.io"],
                &["a.ghcr.io", "ghcr.io.evil.org", "xghcr.io", ""],
            ),
            ("GHCR.IO.", &["ghcr.io"], &["io"]),
            (
                "*.docker.io",
                &["auth.docker.io", "a.b.docker.io", "A.Docker.IO"],
                &["docker.io", "xdocker.io", "docker.io.evil.org", "io", ""],
            ),
            (
                "*.dkr.ecr.*.amazonaws.com",
                &["1.dkr.ecr.eu-west-1.amazonaws.com", "a.1.dkr.ecr.x.amazonaws.com"],
                &[
                    "dkr.ecr.x.amazonaws.com",
                    "1.dkr.ecr.amazonaws.com",
                    "1.dkr.ecr.a.b.amazonaws.com",
                    "1.dkr.ecr.x.amazonaws.com.cn",
                ],
            ),
            ("reg.*.corp", &["reg.a.corp"], &["reg.corp", "reg.a.b.corp", "x.reg.a.corp"]),
            ("*.*.corp", &["a.b.corp", "a.b.c.corp"], &["a.corp", "corp"]),
            ("*", &["anything", "a.b"], &[]),
            ("registry", &["registry"], &["registry.local"]),
            ("my_registry.local", &["my_registry.local"], &[]),
            ("10.0.0.1", &[], &["10.0.0.1", "0.0.1"]),
        ];
        for (text, yes, no) in table {
            let pattern = pattern(text);
            yes.iter().for_each(|name| assert!(pattern.matches_name(name), "{text} {name}"));
            no.iter().for_each(|name| assert!(!pattern.matches_name(name), "{text} {name}"));
        }
    }

    #[test]
    fn the_domain_of_a_pattern_holds_all_its_hosts() {
        for (text, domain) in [
            ("ghcr.io", "ghcr.io"),
            ("*.docker.io", "docker.io"),
            ("*.dkr.ecr.*.amazonaws.com", "amazonaws.com"),
            ("reg.*.corp", "corp"),
            ("*", ""),
        ] {
            assert_eq!((pattern(text).domain(), pattern(text).as_ip()), (domain, None), "{text}");
        }
        let ip = "::ffff:10.0.0.1";
        assert_eq!(pattern(ip).as_ip(), Some([10, 0, 0, 1].into()));
    }

    #[test]
    fn addresses_match_exactly() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(pattern("10.0.0.1").matches_ip(ip("10.0.0.1")));
        assert!(pattern("10.0.0.1").matches_ip(ip("::ffff:10.0.0.1")));
        assert!(pattern("::ffff:10.0.0.1").matches_ip(ip("10.0.0.1")));
        assert!(pattern("[2001:DB8::1]").matches_ip(ip("2001:db8:0::1")));
        assert!(pattern("*").matches_ip(ip("::1")));
        assert!(!pattern("10.0.0.1").matches_ip(ip("10.0.0.2")));
        assert!(!pattern("*.docker.io").matches_ip(ip("10.0.0.1")));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        let long = format!("{}.io", "a".repeat(64));
        let longer = format!("{}io", "a.".repeat(126));
        for text in [
            "",
            ".",
            "..",
            "**",
            "*.",
            "*.*",
            ".io",
            "a..b",
            "a*.io",
            "*a.io",
            "registry.*",
            "ghcr.io:443",
            "https://ghcr.io",
            "ghcr.io/x",
            "a b",
            "-a.io",
            "a-.io",
            "bücher.example",
            "1.2.3",
            "1.2.3.4.5",
            "0x7f",
            "a.0x7f",
            "127.1",
            "[10.0.0.1]",
            "[::1",
            "fe80::1%eth0",
            "10.0.0.0/8",
            "<<",
            &long,
            &longer,
        ] {
            assert!(text.parse::<HostPattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_narrower_pattern_is_greater() {
        let order = [
            "*",
            "*.com",
            "*.amazonaws.com",
            "*.*.amazonaws.com",
            "*.ecr.*.amazonaws.com",
            "x.*.amazonaws.com",
            "*.dkr.ecr.*.amazonaws.com",
            "*.dkr.ecr.eu.amazonaws.com",
            "com",
            "ecr.amazonaws.com",
            "1.dkr.ecr.eu.amazonaws.com",
        ];
        for pair in order.windows(2) {
            let [wide, narrow] = pair else { continue };
            assert!(
                pattern(wide).specificity() <= pattern(narrow).specificity(),
                "{wide} before {narrow}"
            );
        }
        assert!(pattern("10.0.0.1").specificity() > pattern("*.b").specificity());
        assert!(pattern("*.b.com").specificity() < pattern("a.*.com").specificity());
    }
}
