//! Which parts a manifest names: OCI image manifests and indexes, Docker's second schema and its
//! lists.

use std::borrow::Cow;
use std::fmt;

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::key::Digest;

/// Bytes of a manifest that is looked into at most: what registries take, and so all there is.
pub const MANIFEST_MAX: usize = 4 * 1024 * 1024;

/// Descriptors of one manifest that are kept at most. Images have a hundred layers at most, indexes
/// some dozens of platforms; what is left out costs a question each, and a manifest made up to
/// crowd others out finds its bound here.
pub const DESCRIPTORS_MAX: usize = 1024;

/// The parts that a manifest names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Layers and configuration: registries take a manifest only where the repository has them.
    pub blobs: Vec<Part>,
    /// Manifests of an index, which registries may take without having them.
    pub manifests: Vec<Part>,
}

/// A part of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub digest: Digest,
    /// Its bytes, as the manifest says.
    pub size: u64,
}

impl Manifest {
    /// Reads a manifest's body, whatever it turns out to be. `None` for what is none, and for what
    /// one reader could take for an image and another for an index.
    ///
    /// What a client may find elsewhere (layers with `urls`, layers not to be distributed, the
    /// subject) is left out: a registry need not have it.
    pub fn parse(body: &[u8]) -> Option<Manifest> {
        if body.len() > MANIFEST_MAX {
            return None;
        }
        let read: Body = serde_json::from_str(std::str::from_utf8(body).ok()?).ok()?;
        if read.schema_version != 2 {
            return None;
        }
        match (read.config, read.layers, read.manifests) {
            (None, None, Some(Parts(manifests))) => Some(Manifest { blobs: Vec::new(), manifests }),
            (config, layers, None) if config.is_some() || layers.is_some() => {
                let Parts(mut blobs) = layers.unwrap_or_default();
                blobs.extend(config.and_then(Descriptor::part));
                Some(Manifest { blobs, manifests: Vec::new() })
            }
            _ => None,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    schema_version: u8,
    #[serde(borrow)]
    config: Option<Descriptor<'a>>,
    layers: Option<Parts>,
    manifests: Option<Parts>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor<'a> {
    #[serde(borrow)]
    digest: Cow<'a, str>,
    #[serde(borrow, default)]
    media_type: Cow<'a, str>,
    #[serde(default)]
    size: u64,
    urls: Option<IgnoredAny>,
}

impl Descriptor<'_> {
    fn part(self) -> Option<Part> {
        let elsewhere = self.urls.is_some()
            || self.media_type.contains("foreign")
            || self.media_type.contains("nondistributable");
        let digest = Digest::parse(&self.digest).filter(|_| !elsewhere)?;
        Some(Part { digest, size: self.size })
    }
}

/// What a list of descriptors names. It is read to its end and kept up to the bound, so that no
/// body makes much more of itself in memory.
#[derive(Default)]
struct Parts(Vec<Part>);

impl<'de> Deserialize<'de> for Parts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Parts, D::Error> {
        deserializer.deserialize_seq(List)
    }
}

struct List;

impl<'de> Visitor<'de> for List {
    type Value = Parts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of descriptors")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Parts, A::Error> {
        let mut parts = Vec::new();
        while parts.len() < DESCRIPTORS_MAX {
            let Some(descriptor) = list.next_element::<Descriptor>()? else {
                return Ok(Parts(parts));
            };
            parts.extend(descriptor.part());
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Parts(parts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(n: usize) -> String {
        format!("sha256:{n:064x}")
    }

    fn part(n: usize, size: u64) -> Part {
        Part { digest: Digest::parse(&hex(n)).unwrap(), size }
    }

    fn descriptors(numbers: std::ops::Range<usize>) -> String {
        let one = |n| format!(r#"{{"mediaType":"a/b","size":1,"digest":"{}"}}"#, hex(n));
        numbers.map(one).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn images_name_their_blobs_and_indexes_their_manifests() {
        let image = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
                "config":{{"mediaType":"application/vnd.oci.image.config.v1+json","size":7,
                "digest":"{}","data":"e30="}},"layers":[{}],"subject":{{"digest":"{}"}},
                "annotations":{{"a":"b","urls":"c"}}}}"#,
            hex(1),
            descriptors(2..5),
            hex(9),
        );
        let blobs = [(2, 1), (3, 1), (4, 1), (1, 7)].map(|(n, size)| part(n, size)).to_vec();
        assert_eq!(
            Manifest::parse(image.as_bytes()),
            Some(Manifest { blobs, ..Manifest::default() })
        );
        let index = format!(
            r#"{{"manifests":[{}],"schemaVersion":2,"subject":{{"digest":"{}"}}}}"#,
            descriptors(1..3),
            hex(9),
        );
        let manifests = [1, 2].map(|n| part(n, 1)).to_vec();
        assert_eq!(
            Manifest::parse(index.as_bytes()),
            Some(Manifest { manifests, ..Manifest::default() })
        );
    }

    #[test]
    fn what_may_lie_elsewhere_is_left_out() {
        let of = |more: &str| {
            let layer = format!(r#"{{"digest":"{}"{more}}}"#, hex(1));
            let body = format!(r#"{{"schemaVersion":2,"layers":[{layer}]}}"#);
            Manifest::parse(body.as_bytes()).unwrap().blobs.len()
        };
        assert_eq!(of(""), 1);
        assert_eq!(of(r#","urls":null"#), 1);
        for more in [
            r#","urls":["https://a/b"]"#,
            r#","urls":[]"#,
            r#","urls":{}"#,
            r#","mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip""#,
            r#","mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar""#,
        ] {
            assert_eq!(of(more), 0, "{more}");
        }
    }

    #[test]
    fn hostile_bodies_are_nothing() {
        let both =
            format!(r#"{{"schemaVersion":2,"layers":[{0}],"manifests":[{0}]}}"#, descriptors(1..2));
        let config_too =
            format!(r#"{{"schemaVersion":2,"config":{},"manifests":[]}}"#, descriptors(1..2));
        let twice = r#"{"schemaVersion":2,"layers":[],"layers":[]}"#;
        let deep = "[".repeat(1_000_000);
        let deep_inside = format!(r#"{{"schemaVersion":2,"layers":[{{"a":{deep}"#);
        let deep_layers = format!(r#"{{"schemaVersion":2,"layers":{deep}"#);
        let large = format!(r#"{{"schemaVersion":2,"layers":[]}}{}"#, " ".repeat(MANIFEST_MAX));
        for body in [
            "",
            "{}",
            "null",
            "[]",
            "2",
            "\u{feff}{\"schemaVersion\":2,\"layers\":[]}",
            r#"{"schemaVersion":2}"#,
            r#"{"schemaVersion":1,"layers":[]}"#,
            r#"{"schemaVersion":2.0,"layers":[]}"#,
            r#"{"schemaVersion":"2","layers":[]}"#,
            r#"{"layers":[]}"#,
            r#"{"schemaVersion":2,"layers":{}}"#,
            r#"{"schemaVersion":2,"layers":[1]}"#,
            r#"{"schemaVersion":2,"layers":[{"digest":1}]}"#,
            r#"{"schemaVersion":2,"layers":[{"size":1}]}"#,
            &format!(r#"{{"schemaVersion":2,"layers":[{{"digest":"{}","size":-1}}]}}"#, hex(1)),
            r#"{"schemaVersion":2,"layers":[]} x"#,
            r#"{"schemaVersion":2,"layers":["#,
            twice,
            &both,
            &config_too,
            &deep,
            &deep_inside,
            &deep_layers,
            &large,
        ] {
            let shown = body.get(..80).unwrap_or(body);
            assert_eq!(Manifest::parse(body.as_bytes()), None, "{shown}");
        }
        assert_eq!(Manifest::parse(b"{\"schemaVersion\":2,\"layers\":[],\"a\":\"\xff\"}"), None);
    }

    #[test]
    fn digests_of_no_kind_we_know_are_left_out() {
        let body = r#"{"schemaVersion":2,"layers":[{"digest":"md5:00"},{"digest":""},
            {"digest":"sha256:\u0030"}]}"#;
        assert_eq!(Manifest::parse(body.as_bytes()), Some(Manifest::default()));
    }

    #[test]
    fn the_number_of_descriptors_is_bounded() {
        let body = |n| format!(r#"{{"schemaVersion":2,"layers":[{}]}}"#, descriptors(0..n));
        let kept = |n| Manifest::parse(body(n).as_bytes()).map(|read| read.blobs.len());
        assert_eq!(kept(DESCRIPTORS_MAX), Some(DESCRIPTORS_MAX));
        assert_eq!(kept(DESCRIPTORS_MAX + 1), Some(DESCRIPTORS_MAX));
        assert_eq!(kept(20_000), Some(DESCRIPTORS_MAX));
    }

    /// Bytes changed, left out and doubled at random: nothing here may panic.
    #[test]
    fn mangled_bodies_never_panic() {
        let good = format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
            descriptors(0..1),
            descriptors(1..4)
        );
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        for _ in 0..20_000 {
            let mut body = good.clone().into_bytes();
            for _ in 0..=random(3) {
                let at = random(body.len());
                match random(3) {
                    0 => body[at] = random(256) as u8,
                    1 => body.truncate(at.max(1)),
                    _ => body.insert(at, b"{}[],:\"\\0"[random(9)]),
                }
            }
            let _ = Manifest::parse(&body);
        }
    }
}
