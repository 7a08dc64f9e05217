//! Images over a real cache directory, whose files are made by hand.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::cache::Options;
use crate::policy::rights::{DESCRIPTORS_MAX, Part};
use crate::stats::Stats;

fn cache(dir: &Path) -> Cache {
    let options =
        Options { dir: dir.to_owned(), max_size: u64::MAX, min_free: 0, open_max: 4, fills_max: 4 };
    Cache::open(options, Arc::new(Stats::default())).unwrap()
}

fn made_up(n: usize) -> Digest {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    Digest::Sha256(bytes)
}

/// A list of so many descriptors, each of another digest.
fn descriptors(digests: impl Iterator<Item = Digest>) -> String {
    let mut list = String::new();
    for digest in digests {
        let comma = if list.is_empty() { "" } else { "," };
        write!(list, r#"{comma}{{"size":1,"digest":"{digest}"}}"#).unwrap();
    }
    list
}

/// Stores a manifest that names parts nobody else does.
fn store_manifest(dir: &Path, n: usize) -> Digest {
    let parts = (0..DESCRIPTORS_MAX).map(|part| made_up(n * DESCRIPTORS_MAX + part));
    let body = format!(r#"{{"schemaVersion":2,"layers":[{}]}}"#, descriptors(parts));
    let digest = Digest::of(Algorithm::Sha256, body.as_bytes());
    let hex = Key::Digest(digest.clone()).hex();
    fs::write(dir.join("blobs/sha256").join(&*hex), body).unwrap();
    digest
}

#[test]
fn an_index_made_up_to_crowd_others_out_finds_its_bound() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path());
    let (images, _) = Images::open(cache.clone(), dir.path());
    let children: Vec<Digest> = (0..64).map(|n| store_manifest(dir.path(), n)).collect();
    let body =
        format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, descriptors(children.iter().cloned()));
    let image = Image::parse("registry.test/lab/app:1").unwrap();
    images.hear(image.clone(), Heard::Manifest(body.clone().into()));
    images.hear(image, Heard::Manifest(body.into()));
    let known = images.catalogue().manifests().map(|(_, node)| node.parts.len()).sum::<usize>();
    assert!(known <= IMAGE_PARTS_MAX + 2 * DESCRIPTORS_MAX, "{known}");
    assert!(known >= IMAGE_PARTS_MAX - DESCRIPTORS_MAX, "{known}");
    cache.close();
}

#[test]
fn a_pinned_image_finds_the_bound_of_all_parts_too() {
    let mut catalogue = Catalogue::default();
    let pinned = Image::parse("registry.test/lab/pinned:1").unwrap();
    let part = |digest| Part { digest, size: 1 };
    let node = |parts: Vec<Part>, is_index| Node { size: 1, parts, is_index };
    let count = PARTS_MAX / DESCRIPTORS_MAX + 2;
    let index = (0..count).map(|n| part(made_up(n))).collect();
    catalogue.pin(pinned.clone(), 1);
    catalogue.name(pinned, made_up(usize::MAX), 1);
    catalogue.learn(made_up(usize::MAX), node(index, true));
    for n in 0..count {
        let parts = |first: usize| (first..first + DESCRIPTORS_MAX).map(|n| part(made_up(n)));
        catalogue.learn(made_up(n), node(parts((n + 1) << 20).collect(), false));
        let known = catalogue.manifests().map(|(_, node)| 1 + node.parts.len()).sum::<usize>();
        assert!(known <= PARTS_MAX, "{known} parts");
    }
    // What there was room for is still there.
    assert!(catalogue.knows(&made_up(usize::MAX)) && catalogue.knows(&made_up(0)));
    assert!(!catalogue.knows(&made_up(count - 1)));
}
