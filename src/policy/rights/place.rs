//! Repositories and the paths they are asked by (OCI distribution specification, "Endpoints").

use std::cell::RefCell;
use std::fmt;

use crate::http::{Host, Scheme};
use crate::key::{Algorithm, Digest, is_name, is_tag};

/// Half a SHA-256: what rows are found by.
pub type Short = [u8; 16];

/// A repository of a registry: `https://ghcr.io:443` and `owner/app`.
///
/// It holds hashes, not names: 128 bits of SHA-256 each, unkeyed, so that it means the same after a
/// restart. Who wants to pass for somebody else's repository has to find a second preimage. The
/// scheme is part of it: what somebody on the way answers over plain HTTP proves nothing about the
/// registry behind TLS.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RepositoryId {
    pub(super) registry: Short,
    pub(super) place: Short,
}

impl RepositoryId {
    /// The repository `name` of the registry at this host and port.
    pub fn new(scheme: Scheme, host: &Host, port: u16, name: &str) -> RepositoryId {
        LAST.with_borrow_mut(|last| match last {
            Some((of, id)) if of.is(scheme, host, port, name) => *id,
            _ => {
                let mut text = format!("{}://{host}:{port}", scheme.as_str());
                let registry = hash(text.as_bytes());
                text.extend(["/", name]);
                let id = RepositoryId { registry, place: hash(text.as_bytes()) };
                *last = Some((Named { scheme, host: host.clone(), port, name: name.into() }, id));
                id
            }
        })
    }

    /// The registry: a name for no more than comparing.
    pub fn registry(&self) -> [u8; 16] {
        self.registry
    }

    /// Whether both are of one registry.
    pub fn shares_registry(&self, other: &RepositoryId) -> bool {
        self.registry == other.registry
    }

    /// Reads the 64 hexadecimal digits that `Display` writes.
    pub fn parse(text: &str) -> Option<RepositoryId> {
        let both = Digest::from_hex(Algorithm::Sha256, text)?;
        Some(RepositoryId { registry: first_half(both.bytes()), place: last_half(both.bytes()) })
    }
}

/// What a [`RepositoryId`] is made of.
struct Named {
    scheme: Scheme,
    host: Host,
    port: u16,
    name: Box<str>,
}

impl Named {
    fn is(&self, scheme: Scheme, host: &Host, port: u16, name: &str) -> bool {
        *self.name == *name && self.host == *host && (self.scheme, self.port) == (scheme, port)
    }
}

thread_local! {
    /// The last one made on this thread: an image's parts are asked for one after the other.
    static LAST: RefCell<Option<(Named, RepositoryId)>> = const { RefCell::new(None) };
}

impl fmt::Display for RepositoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.registry.iter().chain(&self.place).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RepositoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a path asks of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `blobs`
    Blob,
    /// `manifests`
    Manifest,
    /// `referrers`
    Referrers,
    /// `tags/list`
    Tags,
}

/// A path `/v2/<name>/<endpoint>/<reference>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegistryPath<'a> {
    /// What is asked.
    pub endpoint: Endpoint,
    /// The repository's name, which may have slashes in it.
    pub name: &'a str,
    /// A digest; for manifests a tag, too; `list` for tags.
    pub reference: &'a str,
}

impl<'a> RegistryPath<'a> {
    /// Reads a path as it was sent, without its query. `None` for anything that is not exactly of
    /// this form: percent-encoding, empty and dotted segments, uploads.
    ///
    /// It is read from its end, so that a name may have a segment `blobs`, as registries do it.
    pub fn parse(path: &'a str) -> Option<RegistryPath<'a>> {
        let rest = path.strip_prefix("/v2/")?;
        let (rest, reference) = rest.rsplit_once('/')?;
        let (name, endpoint) = rest.rsplit_once('/')?;
        let is_digest = || Digest::parse(reference).is_some();
        let (endpoint, fits) = match endpoint {
            "blobs" => (Endpoint::Blob, is_digest()),
            "manifests" => (Endpoint::Manifest, is_digest() || is_tag(reference)),
            "referrers" => (Endpoint::Referrers, is_digest()),
            "tags" => (Endpoint::Tags, reference == "list"),
            _ => return None,
        };
        (fits && is_name(name)).then_some(RegistryPath { endpoint, name, reference })
    }

    /// The reference, where it is a digest.
    pub fn digest(&self) -> Option<Digest> {
        Digest::parse(self.reference)
    }

    /// The repository at the registry the path is for.
    pub fn repository(&self, scheme: Scheme, host: &Host, port: u16) -> RepositoryId {
        RepositoryId::new(scheme, host, port, self.name)
    }
}

/// What a digest is found by: half of it, where it is a SHA-256 itself.
pub fn short(digest: &Digest) -> Short {
    match digest {
        Digest::Sha256(bytes) => first_half(bytes),
        Digest::Sha512(bytes) => hash(&bytes[..]),
    }
}

fn hash(bytes: &[u8]) -> Short {
    first_half(Digest::of(Algorithm::Sha256, bytes).bytes())
}

/// The first 16 bytes; zeros behind where there are fewer.
pub fn first_half(bytes: &[u8]) -> Short {
    let mut short = Short::default();
    for (slot, byte) in short.iter_mut().zip(bytes) {
        *slot = *byte;
    }
    short
}

fn last_half(bytes: &[u8]) -> Short {
    first_half(bytes.get(16..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{NAME_MAX, TAG_MAX};

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn paths_are_read_from_their_end() {
        let digest = format!("sha256:{HEX}");
        let long = format!("sha512:{HEX}{HEX}");
        let tag = format!("sha256-{HEX}.sig");
        let widest = "a".repeat(NAME_MAX);
        for (name, endpoint, reference, kind) in [
            ("a", "blobs", digest.as_str(), Endpoint::Blob),
            ("library/alpine", "blobs", &long, Endpoint::Blob),
            ("a/blobs/b", "blobs", &digest, Endpoint::Blob),
            ("blobs/manifests/tags", "manifests", "latest", Endpoint::Manifest),
            ("a-b/c__d/e.f/0", "manifests", "_v1.2-rc.3", Endpoint::Manifest),
            ("Owner/App", "manifests", &digest, Endpoint::Manifest),
            ("a", "manifests", &tag, Endpoint::Manifest),
            ("a/b", "referrers", &digest, Endpoint::Referrers),
            ("a/b", "tags", "list", Endpoint::Tags),
            (&widest, "tags", "list", Endpoint::Tags),
        ] {
            let path = format!("/v2/{name}/{endpoint}/{reference}");
            let read = RegistryPath::parse(&path);
            assert_eq!(read, Some(RegistryPath { endpoint: kind, name, reference }), "{path}");
            let bare = reference.starts_with("sha256:") || reference.starts_with("sha512:");
            assert_eq!(read.unwrap().digest().is_some(), bare);
        }
    }

    #[test]
    fn what_is_no_such_path_is_refused() {
        let wide = "a".repeat(NAME_MAX + 1);
        let tag = "t".repeat(TAG_MAX + 1);
        for path in [
            "",
            "/",
            "/v2",
            "/v2/",
            "/v2//",
            "/v2/a",
            "/v2/a/b",
            "/v2/_catalog",
            "/v2/blobs/sha256:x",
            &format!("/v2/blobs/sha256:{HEX}"),
            &format!("/v2//blobs/sha256:{HEX}"),
            &format!("/v2/a//b/blobs/sha256:{HEX}"),
            &format!("/v2/a/./b/blobs/sha256:{HEX}"),
            &format!("/v2/a/../b/blobs/sha256:{HEX}"),
            &format!("/v2/a/.b/blobs/sha256:{HEX}"),
            &format!("/v2/a%2Fb/blobs/sha256:{HEX}"),
            &format!("/v2/-a/blobs/sha256:{HEX}"),
            &format!("/v2/a_/blobs/sha256:{HEX}"),
            &format!("/v2/a b/blobs/sha256:{HEX}"),
            &format!("/v2/é/blobs/sha256:{HEX}"),
            &format!("/v2/{wide}/blobs/sha256:{HEX}"),
            &format!("/v2/a/blobs/sha256:{HEX}/"),
            &format!("/v2/a/blobs/sha256:{HEX}0"),
            &format!("/v2/a/blobs/SHA256:{HEX}"),
            &format!("/v2/a/blobs/sha256%3A{HEX}"),
            &format!("/v1/a/blobs/sha256:{HEX}"),
            &format!("/x/v2/a/blobs/sha256:{HEX}"),
            &format!("/v2/a/layers/sha256:{HEX}"),
            &format!("/v2/a/manifests/md5:{HEX}"),
            &format!("/v2/a/manifests/{tag}"),
            "/v2/a/manifests/",
            "/v2/a/manifests/.",
            "/v2/a/manifests/..",
            "/v2/a/manifests/a?b",
            "/v2/a/blobs/latest",
            "/v2/a/blobs/uploads/",
            "/v2/a/blobs/uploads/5",
            "/v2/a/referrers/latest",
            "/v2/a/tags/latest",
        ] {
            assert_eq!(RegistryPath::parse(path), None, "{path}");
        }
    }

    #[test]
    fn every_part_of_a_repository_counts() {
        let host = |text: &str| Host::parse(text).unwrap();
        let id =
            |scheme, name: &str, port, path| RepositoryId::new(scheme, &host(name), port, path);
        let base = id(Scheme::Https, "ghcr.io", 443, "a/b");
        assert_eq!(base, id(Scheme::Https, "GHCR.io", 443, "a/b"));
        for (other, registry) in [
            (id(Scheme::Http, "ghcr.io", 443, "a/b"), false),
            (id(Scheme::Https, "ghcr.io", 444, "a/b"), false),
            (id(Scheme::Https, "quay.io", 443, "a/b"), false),
            (id(Scheme::Https, "ghcr.io", 443, "a"), true),
            (id(Scheme::Https, "ghcr.io", 443, "A/b"), true),
        ] {
            assert_ne!(base.place, other.place);
            assert_eq!(base.shares_registry(&other), registry);
        }
        assert_ne!(base.registry, base.place);
        assert_eq!(RepositoryId::parse(&base.to_string()), Some(base));
        assert_eq!(RepositoryId::parse(&base.to_string()[1..]), None);
    }

    #[test]
    fn digests_of_both_kinds_are_told_apart() {
        let one = Digest::parse(&format!("sha256:{HEX}")).unwrap();
        let other = Digest::parse(&format!("sha512:{HEX}{HEX}")).unwrap();
        assert_ne!(short(&one), short(&other));
    }
}
