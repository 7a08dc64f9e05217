//! Name constraints (RFC 5280, section 4.2.1.10): which names a CA may sign for.

use std::fmt;
use std::net::IpAddr;

use rcgen::{CidrSubnet, GeneralSubtree, NameConstraints};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

/// Names a CA is to sign for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subtree {
    /// This name and all below it; the empty one is every name.
    Name(String),
    /// This address.
    Address(IpAddr),
}

impl fmt::Display for Subtree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subtree::Name(name) if name.is_empty() => f.write_str("*"),
            Subtree::Name(name) => f.write_str(name),
            Subtree::Address(address) => address.fmt(f),
        }
    }
}

/// Constraints that permit `subtrees` and no other name or address.
pub(super) fn constraints(subtrees: &[Subtree]) -> NameConstraints {
    let mut permitted = Vec::new();
    let (mut names, mut addresses) = (false, false);
    for (n, subtree) in subtrees.iter().enumerate() {
        let wanted = Limit::from(subtree);
        let within = |other: &Subtree| other != subtree && Limit::from(other).includes(&wanted);
        let earlier = subtrees.get(..n).unwrap_or_default();
        if subtrees.iter().any(within) || earlier.contains(subtree) {
            continue;
        }
        permitted.push(match subtree {
            Subtree::Name(name) => GeneralSubtree::DnsName(name.clone()),
            Subtree::Address(address) => GeneralSubtree::IpAddress(alone(*address)),
        });
        match subtree {
            Subtree::Name(_) => names = true,
            Subtree::Address(_) => addresses = true,
        }
    }
    // A kind of name of which none is permitted is not constrained at all.
    let mut excluded = Vec::new();
    if !names {
        excluded.push(GeneralSubtree::DnsName(String::new()));
    }
    if !addresses {
        excluded.push(GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])));
        excluded.push(GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])));
    }
    NameConstraints { permitted_subtrees: permitted, excluded_subtrees: excluded }
}

fn alone(address: IpAddr) -> CidrSubnet {
    match address {
        IpAddr::V4(address) => CidrSubnet::V4(address.octets(), [0xFF; 4]),
        IpAddr::V6(address) => CidrSubnet::V6(address.octets(), [0xFF; 16]),
    }
}

/// Whether `name` is `base` or below it; letter case does not count.
fn below(base: &str, name: &str) -> bool {
    // Some write a dot in front.
    let base = base.strip_prefix('.').unwrap_or(base);
    let Some(cut) = name.len().checked_sub(base.len()) else { return false };
    base.is_empty()
        || name.get(cut..).is_some_and(|tail| tail.eq_ignore_ascii_case(base))
            && (cut == 0 || name.get(..cut).is_some_and(|head| head.ends_with('.')))
}

/// What one certificate says about the names below it.
#[derive(Debug, Default)]
pub(super) struct Limits {
    permitted: Vec<Limit>,
    excluded: Vec<Limit>,
}

#[derive(Clone, Debug)]
enum Limit {
    Name(String),
    /// Address and mask, of the same length.
    Net(Vec<u8>, Vec<u8>),
}

impl Limits {
    pub(super) fn of(certificate: &X509Certificate<'_>) -> Result<Limits, String> {
        let found = certificate.name_constraints().map_err(|error| error.to_string())?;
        let Some(found) = found else { return Ok(Limits::default()) };
        let read = |subtrees: &Option<Vec<x509_parser::extensions::GeneralSubtree<'_>>>| {
            let subtrees = subtrees.iter().flatten();
            subtrees.filter_map(|subtree| Limit::of(&subtree.base)).collect()
        };
        Ok(Limits {
            permitted: read(&found.value.permitted_subtrees),
            excluded: read(&found.value.excluded_subtrees),
        })
    }

    /// Whether there are names and addresses that it may not sign for.
    pub(super) fn are_set(&self) -> bool {
        let names = |limit: &Limit| matches!(limit, Limit::Name(_));
        let every = |len: usize| Limit::Net(vec![0; len], vec![0; len]);
        (self.permitted.iter().any(names) || self.excludes(&Limit::Name(String::new())))
            && (self.permitted.iter().any(|limit| !names(limit))
                || self.excludes(&every(4)) && self.excludes(&every(16)))
    }

    /// Whether it may sign for all of `subtree`.
    pub(super) fn permit(&self, subtree: &Subtree) -> bool {
        let wanted = Limit::from(subtree);
        let mut same = self.permitted.iter().filter(|limit| limit.is_like(&wanted)).peekable();
        let open = same.peek().is_none();
        (open || same.any(|limit| limit.includes(&wanted))) && !self.excludes(&wanted)
    }

    /// What it may sign for beyond `subtrees`, in words.
    pub(super) fn beyond(&self, subtrees: &[Subtree]) -> Vec<String> {
        let wanted: Vec<Limit> = subtrees.iter().map(Limit::from).collect();
        let idle = |limit: &&Limit| !wanted.iter().any(|wanted| wanted.includes(limit));
        self.permitted.iter().filter(idle).map(Limit::to_string).collect()
    }

    fn excludes(&self, wanted: &Limit) -> bool {
        self.excluded.iter().any(|limit| limit.includes(wanted))
    }
}

impl Limit {
    fn of(name: &GeneralName<'_>) -> Option<Limit> {
        match name {
            GeneralName::DNSName(name) => Some(Limit::Name((*name).to_owned())),
            GeneralName::IPAddress(bytes) if matches!(bytes.len(), 8 | 32) => {
                let (address, mask) = bytes.split_at_checked(bytes.len() / 2)?;
                Some(Limit::Net(address.to_vec(), mask.to_vec()))
            }
            _ => None,
        }
    }

    fn from(subtree: &Subtree) -> Limit {
        match subtree {
            Subtree::Name(name) => Limit::Name(name.clone()),
            Subtree::Address(IpAddr::V4(ip)) => Limit::Net(ip.octets().to_vec(), vec![0xFF; 4]),
            Subtree::Address(IpAddr::V6(ip)) => Limit::Net(ip.octets().to_vec(), vec![0xFF; 16]),
        }
    }

    fn is_like(&self, other: &Limit) -> bool {
        matches!((self, other), (Limit::Name(_), Limit::Name(_)) | (Limit::Net(..), Limit::Net(..)))
    }

    /// Whether everything of `other` is in this.
    fn includes(&self, other: &Limit) -> bool {
        match (self, other) {
            (Limit::Name(base), Limit::Name(name)) => below(base, name),
            (Limit::Net(net, mask), Limit::Net(other, narrower)) if net.len() == other.len() => {
                let bits = net.iter().zip(mask).zip(other.iter().zip(narrower));
                bits.into_iter().all(|((net, mask), (other, narrower))| {
                    narrower & mask == *mask && net & mask == other & mask
                })
            }
            _ => false,
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (net, mask) = match self {
            Limit::Name(name) => return f.write_str(name),
            Limit::Net(net, mask) => (net, mask),
        };
        let bits: u32 = mask.iter().map(|octet| octet.count_ones()).sum();
        let address = match (<[u8; 4]>::try_from(&net[..]), <[u8; 16]>::try_from(&net[..])) {
            (Ok(octets), _) => IpAddr::from(octets),
            (_, Ok(octets)) => IpAddr::from(octets),
            _ => return Ok(()),
        };
        write!(f, "{address}/{bits}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Subtree {
        Subtree::Name(text.to_owned())
    }

    #[test]
    fn each_name_is_permitted_once() {
        let address = Subtree::Address([10, 0, 0, 1].into());
        let twice = [name("a.io"), name("x.a.io"), name("xa.io"), name("a.io"), address.clone()];
        let made = constraints(&twice);
        let permitted: Vec<GeneralSubtree> = vec![
            GeneralSubtree::DnsName("a.io".into()),
            GeneralSubtree::DnsName("xa.io".into()),
            GeneralSubtree::IpAddress(CidrSubnet::V4([10, 0, 0, 1], [255; 4])),
        ];
        assert_eq!(made.permitted_subtrees, permitted);
        assert_eq!(made.excluded_subtrees, []);
        assert_eq!(constraints(&[name("a.io")]).excluded_subtrees.len(), 2);
        assert_eq!(constraints(&[address]).excluded_subtrees.len(), 1);
        assert_eq!(constraints(&[]).excluded_subtrees.len(), 3);
    }

    #[test]
    fn names_are_below_names() {
        for (base, name, is) in [
            ("a.io", "a.io", true),
            ("A.io", "x.a.IO", true),
            (".a.io", "x.a.io", true),
            ("", "a.io", true),
            ("", "", true),
            ("a.io", "xa.io", false),
            ("a.io", "io", false),
            ("a.io", "", false),
            ("a.io", "a.io.example", false),
        ] {
            assert_eq!(below(base, name), is, "{base} {name}");
        }
    }

    #[test]
    fn limits_are_understood() {
        let net = |octets: &[u8], mask: &[u8]| Limit::Net(octets.to_vec(), mask.to_vec());
        let limits = Limits {
            permitted: vec![Limit::Name("corp".into()), net(&[10, 0, 0, 0], &[255, 0, 0, 0])],
            excluded: vec![Limit::Name("secret.corp".into())],
        };
        let address = |ip: &str| Subtree::Address(ip.parse().unwrap());
        for (subtree, is) in [
            (name("corp"), true),
            (name("a.corp"), true),
            (name("x.secret.corp"), false),
            (name("io"), false),
            (name(""), false),
            (address("10.9.9.9"), true),
            (address("11.0.0.1"), false),
            (address("::1"), false),
        ] {
            assert_eq!(limits.permit(&subtree), is, "{subtree}");
        }
        assert!(limits.are_set());
        assert_eq!(limits.beyond(&[name("a.corp")]), ["corp", "10.0.0.0/8"]);
        assert_eq!(limits.beyond(&[name("corp"), address("10.0.0.1")]), ["10.0.0.0/8"]);

        let none = Limits::default();
        assert!(none.permit(&name("")) && none.permit(&address("::1")) && !none.are_set());
        let names = Limits { permitted: vec![Limit::Name("corp".into())], excluded: Vec::new() };
        assert!(names.permit(&address("::1")) && !names.are_set(), "addresses are open");
    }
}
