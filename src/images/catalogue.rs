//! The catalogue itself: names and the manifests behind them. Pure: no clock, no file, no lock.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::key::{Digest, Image, Reference, Repository};
use crate::policy::rights::{Manifest, Part};

/// Names remembered at most, some hundred bytes each.
pub const NAMES_MAX: usize = 16 * 1024;

/// Parts of all manifests together at most, 48 bytes each: 12 MB when full.
pub const PARTS_MAX: usize = 256 * 1024;

/// Of one image so many parts are looked at: an index that was made up to name more finds its bound
/// here.
pub const IMAGE_PARTS_MAX: usize = 4096;

/// Images pinned at most.
pub const PINS_MAX: usize = 128;

/// Which manifest a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its digest.
    pub digest: Digest,
    /// When upstream last said so, in milliseconds since 1970.
    pub seen_ms: u64,
}

/// A manifest or an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Bytes of it.
    pub size: u64,
    /// What it names.
    pub parts: Vec<Part>,
    /// Whether these are manifests.
    pub is_index: bool,
}

impl Node {
    /// A manifest of `size` bytes.
    pub fn new(size: u64, manifest: Manifest) -> Node {
        let Manifest { mut blobs, mut manifests } = manifest;
        let is_index = !manifests.is_empty();
        blobs.append(&mut manifests);
        Node { size, parts: blobs, is_index }
    }
}

/// An image as it is listed: one manifest or index of a repository, and the tags that name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Where it is.
    pub repository: Repository,
    /// What it is.
    pub digest: Digest,
    /// What names it.
    pub tags: BTreeSet<String>,
    /// When upstream last said so.
    pub seen_ms: u64,
}

/// What is known of images.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    names: HashMap<Image, Named>,
    manifests: HashMap<Digest, Arc<Node>>,
    /// Parts of all manifests.
    parts: usize,
    /// What is pinned, and since when.
    pins: BTreeMap<Image, u64>,
}

impl Catalogue {
    /// Takes in that a name stands for a manifest. Whether that is new.
    pub fn name(&mut self, image: Image, digest: Digest, seen_ms: u64) -> bool {
        let named = Named { digest, seen_ms };
        let old = self.names.insert(image, named.clone());
        let is_new = old.is_none_or(|old| old.digest != named.digest);
        while self.names.len() > NAMES_MAX && self.forget_oldest() {}
        is_new
    }

    /// Takes in what a manifest is made of, unless there is no room for it beside what is pinned.
    pub fn learn(&mut self, digest: Digest, node: Node) {
        self.parts += 1 + node.parts.len();
        if let Some(old) = self.manifests.insert(digest.clone(), Arc::new(node)) {
            self.parts -= 1 + old.parts.len();
        }
        while self.parts > PARTS_MAX && self.forget_oldest() {}
        if self.parts > PARTS_MAX
            && let Some(node) = self.manifests.remove(&digest)
        {
            self.parts -= 1 + node.parts.len();
        }
    }

    /// Whether so many parts of an image are known that no further one would be looked at.
    pub fn is_full(&self, digest: &Digest) -> bool {
        self.parts_of(digest, &HashSet::new()).len() >= IMAGE_PARTS_MAX
    }

    /// Whether it is known what a manifest is made of.
    pub fn knows(&self, digest: &Digest) -> bool {
        self.manifests.contains_key(digest)
    }

    /// Whether it is known what this very name stands for.
    pub fn has(&self, image: &Image) -> bool {
        self.names.contains_key(image)
    }

    /// The manifests of an index of which nothing is known.
    pub fn unknown_below(&self, digest: &Digest) -> Vec<Digest> {
        let Some(index) = self.manifests.get(digest).filter(|node| node.is_index) else {
            return Vec::new();
        };
        let digests = index.parts.iter().map(|part| &part.digest);
        digests.filter(|digest| !self.knows(digest)).cloned().collect()
    }

    /// Which manifest is meant, where the name is known.
    pub fn find(&self, image: &Image) -> Option<Digest> {
        if let Some(named) = self.names.get(image) {
            return Some(named.digest.clone());
        }
        let Reference::Digest(digest) = &image.reference else { return None };
        let names = || self.names.iter().filter(|(name, _)| name.repository == image.repository);
        let is_it = names().any(|(_, named)| named.digest == *digest)
            || names().any(|(_, named)| self.contains(&named.digest, digest));
        is_it.then(|| digest.clone())
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = (&Image, &Named)> {
        self.names.iter()
    }

    /// All manifests.
    pub fn manifests(&self) -> impl Iterator<Item = (&Digest, &Node)> {
        self.manifests.iter().map(|(digest, node)| (digest, &**node))
    }

    /// What is pinned, and since when.
    pub fn pins(&self) -> impl Iterator<Item = (&Image, u64)> {
        self.pins.iter().map(|(image, since_ms)| (image, *since_ms))
    }

    /// Pins an image. Whether that is new; `None` where there are as many as there may be.
    pub fn pin(&mut self, image: Image, since_ms: u64) -> Option<bool> {
        if self.pins.contains_key(&image) {
            return Some(false);
        }
        if self.pins.len() >= PINS_MAX {
            return None;
        }
        self.pins.insert(image, since_ms);
        Some(true)
    }

    /// Whether there was such a pin.
    pub fn unpin(&mut self, image: &Image) -> bool {
        self.pins.remove(image).is_some()
    }

    /// The images pinned, as far as they are known.
    pub fn pinned(&self) -> HashSet<(&Repository, Digest)> {
        self.pins
            .keys()
            .filter_map(|image| {
                let digest = match &image.reference {
                    Reference::Digest(digest) => Some(digest.clone()),
                    Reference::Tag(_) => self.find(image),
                };
                Some((&image.repository, digest?))
            })
            .collect()
    }

    /// All images. One that is a part of another of its repository, and has no tag, is not one.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows: BTreeMap<(&Repository, &Digest), Row> = BTreeMap::new();
        for (image, named) in &self.names {
            let row = rows.entry((&image.repository, &named.digest)).or_insert_with(|| Row {
                repository: image.repository.clone(),
                digest: named.digest.clone(),
                tags: BTreeSet::new(),
                seen_ms: 0,
            });
            row.seen_ms = row.seen_ms.max(named.seen_ms);
            if let Reference::Tag(tag) = &image.reference {
                row.tags.insert(tag.clone());
            }
        }
        let within: HashSet<(&Repository, &Digest)> = rows
            .keys()
            .flat_map(|(repository, digest)| {
                let below = self.below(digest);
                below.filter(move |below| below != digest).map(|below| (*repository, below))
            })
            .collect();
        let is_one = |(place, row): &((&Repository, &Digest), Row)| {
            !row.tags.is_empty() || !within.contains(place)
        };
        rows.into_iter().filter(is_one).map(|(_, row)| row).collect()
    }

    /// The manifest itself and all it is made of, as far as that is known, each part once, without
    /// `except` and what that is made of. A part's size is what the manifest above it says.
    pub fn parts_of<'a>(
        &'a self,
        digest: &'a Digest,
        except: &HashSet<Digest>,
    ) -> Vec<(&'a Digest, u64)> {
        let own = self.manifests.get(digest).map_or(0, |node| node.size);
        let mut found = vec![(digest, own)];
        let mut seen = HashSet::from([digest]);
        let mut at = 0;
        while let Some((digest, _)) = found.get(at) {
            at += 1;
            for part in self.manifests.get(*digest).into_iter().flat_map(|node| &node.parts) {
                if found.len() == IMAGE_PARTS_MAX {
                    return found;
                }
                if !except.contains(&part.digest) && seen.insert(&part.digest) {
                    found.push((&part.digest, part.size));
                }
            }
        }
        found
    }

    /// Which of an image's parts are manifests: the ones that each pull of it asks for.
    pub fn below<'a>(&'a self, digest: &'a Digest) -> impl Iterator<Item = &'a Digest> {
        let node = self.manifests.get(digest).filter(|node| node.is_index);
        let parts = node.into_iter().flat_map(|node| &node.parts).take(IMAGE_PARTS_MAX);
        std::iter::once(digest).chain(parts.map(|part| &part.digest))
    }

    /// Forgets these names, and what no other name leads to.
    pub fn forget(&mut self, is_meant: impl Fn(&Image, &Named) -> bool) {
        self.names.retain(|image, named| !is_meant(image, named));
        self.sweep();
    }

    fn contains(&self, index: &Digest, digest: &Digest) -> bool {
        self.below(index).any(|below| below == digest)
    }

    /// Forgets the eighth of the names that was not seen for longest, and what only they lead to.
    /// Whether anything went.
    fn forget_oldest(&mut self) -> bool {
        let times = |(image, named): (&Image, &Named)| {
            (!self.pins.contains_key(image)).then_some(named.seen_ms)
        };
        let mut seen: Vec<u64> = self.names.iter().filter_map(times).collect();
        let eighth = seen.len() / 8;
        let limit = match seen.is_empty() {
            true => 0,
            false => *seen.select_nth_unstable(eighth).1,
        };
        let pins = &self.pins;
        self.names.retain(|image, named| named.seen_ms > limit || pins.contains_key(image));
        self.sweep();
        !seen.is_empty()
    }

    /// Forgets the manifests that no name leads to.
    fn sweep(&mut self) {
        let mut reached = HashSet::new();
        let mut next: Vec<&Digest> = self.names.values().map(|named| &named.digest).collect();
        let pinned = self.pins.keys().filter_map(|image| match &image.reference {
            Reference::Digest(digest) => Some(digest),
            Reference::Tag(_) => None,
        });
        next.extend(pinned);
        while let Some(digest) = next.pop() {
            if let Some(node) = self.manifests.get(digest)
                && reached.insert(digest.clone())
            {
                next.extend(node.parts.iter().map(|part| &part.digest));
            }
        }
        self.manifests.retain(|digest, _| reached.contains(digest));
        self.parts = self.manifests.values().map(|node| 1 + node.parts.len()).sum();
    }
}
