//! Images as people name them: `alpine`, `ghcr.io/org/app:1.2`, `host:5000/x@sha256:…`. Without a
//! registry a name is one of Docker Hub, whose requests go to another host than people say.

use std::fmt;
use std::net::Ipv6Addr;

use super::Digest;

/// What people call Docker Hub.
const HUB: &str = "docker.io";

/// Where it is asked for images.
const HUB_HOST: &str = "registry-1.docker.io";

/// Bytes of a repository's name at most. Docker and the specification's clients stop at 255 with
/// the host included.
pub const NAME_MAX: usize = 255;

/// Bytes of a tag at most, as the specification has it.
pub const TAG_MAX: usize = 128;

/// A repository of a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    registry: String,
    name: String,
}

impl Repository {
    /// Reads `org/app` or `ghcr.io/org/app`, without a tag. The error is a sentence.
    pub fn parse(text: &str) -> Result<Repository, String> {
        let strange = || format!("{text:?} is no repository: name it like ghcr.io/org/app");
        let (first, rest) = text.split_once('/').unwrap_or(("", text));
        let (registry, name) = match first.contains(['.', ':']) || first == "localhost" {
            true => (first, rest),
            false => (HUB, text),
        };
        match is_authority(registry) && is_name(name) {
            true => Ok(Repository::at(registry, name)),
            false => Err(strange()),
        }
    }

    /// The repository `name` that is asked for at `authority`: the host, and its port where that is
    /// not the scheme's own.
    pub fn at(authority: &str, name: &str) -> Repository {
        let authority = authority.to_ascii_lowercase();
        let authority = authority.strip_suffix(":443").unwrap_or(&authority);
        if !matches!(authority, HUB | HUB_HOST | "index.docker.io") {
            return Repository { registry: authority.to_owned(), name: name.to_owned() };
        }
        let folder = if name.contains('/') { "" } else { "library/" };
        Repository { registry: HUB.to_owned(), name: format!("{folder}{name}") }
    }

    /// The host that is asked for it, with its port where that is not HTTPS' own.
    pub fn authority(&self) -> &str {
        if self.registry == HUB { HUB_HOST } else { &self.registry }
    }

    /// What it is called there.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.name)
    }
}

/// An image of a repository, by its tag or its digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Image {
    /// Where it is.
    pub repository: Repository,
    /// Which it is.
    pub reference: Reference,
}

/// Which image of its repository is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reference {
    /// Whichever has this tag now.
    Tag(String),
    /// The one whose manifest has this digest.
    Digest(Digest),
}

impl Image {
    /// Reads it as Docker does; a tag beside a digest says nothing. The error is a sentence.
    pub fn parse(text: &str) -> Result<Image, String> {
        let strange = || format!("{text:?} is no image: name it like ghcr.io/org/app:1.2");
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => (named, Some(Digest::parse(digest).ok_or_else(strange)?)),
            None => (text, None),
        };
        let (repository, tag) = match named.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, tag),
            _ => (named, "latest"),
        };
        if !is_tag(tag) {
            return Err(strange());
        }
        let repository = Repository::parse(repository).map_err(|_| strange())?;
        let reference = digest.map_or_else(|| Reference::Tag(tag.to_owned()), Reference::Digest);
        Ok(Image { repository, reference })
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if matches!(self.reference, Reference::Tag(_)) { ':' } else { '@' };
        write!(f, "{}{mark}{}", self.repository, self.reference)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Tag(tag) => f.write_str(tag),
            Reference::Digest(digest) => digest.fmt(f),
        }
    }
}

/// Whether a repository may be called so: the specification's grammar, but for capitals, which some
/// registries have, and for which separators may follow each other.
pub fn is_name(name: &str) -> bool {
    name.len() <= NAME_MAX
        && name.split('/').all(|segment| is_segment(segment, |byte| b"._-".contains(byte)))
}

/// Whether a manifest may be tagged so.
pub fn is_tag(tag: &str) -> bool {
    let begins = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= TAG_MAX
        && tag.bytes().next().is_some_and(begins)
        && tag.bytes().all(|byte| begins(byte) || byte == b'.' || byte == b'-')
}

/// Letters and digits, and between them what `joins`.
fn is_segment(segment: &str, joins: impl Fn(&u8) -> bool) -> bool {
    let segment = segment.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let inside = |byte: &u8| byte.is_ascii_alphanumeric() || joins(byte);
    edge(segment.first()) && edge(segment.last()) && segment.iter().all(inside)
}

/// A host, which may have a port behind it.
fn is_authority(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| is_segment(label, |byte| *byte == b'-')),
    };
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port != 0);
    is_host && port.is_none_or(is_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_named_as_docker_names_them() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let (by_digest, both) =
            (format!("ghcr.io/app@{digest}"), format!("ghcr.io/app:1@{digest}"));
        let whole = format!("ghcr.io/app@{digest}");
        for (text, authority, shown) in [
            ("alpine", HUB_HOST, "docker.io/library/alpine:latest"),
            ("alpine:3.20", HUB_HOST, "docker.io/library/alpine:3.20"),
            ("docker.io/alpine", HUB_HOST, "docker.io/library/alpine:latest"),
            ("index.docker.io/org/app:1", HUB_HOST, "docker.io/org/app:1"),
            ("registry-1.docker.io/library/a", HUB_HOST, "docker.io/library/a:latest"),
            ("org/app", HUB_HOST, "docker.io/org/app:latest"),
            ("GHCR.io/org/app:1.2", "ghcr.io", "ghcr.io/org/app:1.2"),
            ("lab.test:5000/app", "lab.test:5000", "lab.test:5000/app:latest"),
            ("ghcr.io:443/app", "ghcr.io", "ghcr.io/app:latest"),
            ("localhost/app", "localhost", "localhost/app:latest"),
            ("[::1]:5000/a/b:c", "[::1]:5000", "[::1]:5000/a/b:c"),
            (&by_digest, "ghcr.io", &whole),
            (&both, "ghcr.io", &whole),
        ] {
            let image = Image::parse(text).unwrap();
            assert_eq!((image.repository.authority(), &*image.to_string()), (authority, shown));
            assert_eq!(Image::parse(shown).as_ref(), Ok(&image), "{text}");
        }
    }

    #[test]
    fn what_names_no_image_is_refused() {
        let (long, tag) = ("a".repeat(NAME_MAX + 1), format!("a:{}", "t".repeat(TAG_MAX + 1)));
        for text in [
            "",
            "a b",
            "ghcr.io/",
            "app:",
            ":1",
            "x..y/app",
            "a\r\nb",
            "ghcr.io/app@sha256:ab",
            "app@",
            "https://ghcr.io/app",
            "ghcr.io:x/app",
            "ghcr.io:0/app",
            "[::g]:5/app",
            "a//b",
            "../a",
            "a%2fb",
            "é",
            &long,
            &tag,
        ] {
            assert!(Image::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn repositories_have_no_tag() {
        assert_eq!(Repository::parse("alpine").unwrap().to_string(), "docker.io/library/alpine");
        for text in ["alpine:1", "ghcr.io/app:1", "", "ghcr.io/", "a@b"] {
            assert!(Repository::parse(text).is_err(), "{text:?}");
        }
    }
}
