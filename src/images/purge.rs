//! What is removed by what people call it, or by its last use.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use thiserror::Error;

use super::Images;
use super::catalogue::{Catalogue, Named};
use crate::cache::{CacheError, Held, Removed};
use crate::key::{Digest, Image, Key, Reference, Repository};

/// What is to be removed: entries of which all this is true.
#[derive(Clone, Debug, Default)]
pub struct Purge {
    /// Parts of this image, but for what another image has, too.
    pub image: Option<Image>,
    /// Parts of any image of this repository, likewise.
    pub repository: Option<Repository>,
    /// Last used before, in milliseconds since 1970.
    pub unused_since_ms: Option<u64>,
    /// Nothing is removed; what would be is counted.
    pub dry_run: bool,
    /// What is pinned, too.
    pub force: bool,
}

impl Purge {
    /// Whether it is about less than everything.
    pub fn is_narrowed(&self) -> bool {
        self.image.is_some() || self.repository.is_some() || self.unused_since_ms.is_some()
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purged {
    /// What was removed, or would be.
    pub removed: Removed,
    /// Entries that stay because they are pinned.
    pub pinned: usize,
}

/// Why nothing was removed.
#[derive(Debug, Error)]
pub enum NotPurged {
    /// No such image or repository is known.
    #[error("nothing is known of {0}")]
    Unknown(String),
    /// The image is pinned.
    #[error("{0} is pinned: unpin it first, or add force=1")]
    Pinned(Image),
    /// What is stored is not known yet.
    #[error("the cache is still being scanned: try again in a moment")]
    Scanning,
    /// The cache could not do it.
    #[error("{0}")]
    Cache(#[from] CacheError),
}

/// What a purge by name comes to.
struct Doomed {
    keys: Vec<Key>,
    /// The manifests it is about, each with its repository.
    roots: HashSet<(Repository, Digest)>,
}

impl Images {
    /// Removes what is meant; blocks.
    pub fn purge(&self, purge: &Purge) -> Result<Purged, NotPurged> {
        if self.cache.is_scanning() {
            return Err(NotPurged::Scanning);
        }
        let doomed = match purge.image.is_some() || purge.repository.is_some() {
            true => Some(self.doomed(purge)?),
            false => None,
        };
        let is_old = |held: Held| purge.unused_since_ms.is_none_or(|since| held.used_ms < since);
        let may_go = |held: Held| (purge.force || !held.pinned) && is_old(held);
        let (mut pinned, mut count, mut freed) = (0, 0, 0);
        let mut keys = Vec::new();
        let mut look = |key: &Key, held: Held| {
            if may_go(held) {
                (count, freed) = (count + 1, freed + held.size);
                keys.push(key.clone());
            } else if is_old(held) {
                pinned += 1;
            }
        };
        match &doomed {
            Some(doomed) => {
                let held = self.cache.held(&doomed.keys);
                let there = doomed.keys.iter().zip(held);
                there.for_each(|(key, held)| held.into_iter().for_each(|held| look(key, held)));
            }
            None => self.cache.survey(|_, key, held| look(key, held)),
        }
        if purge.dry_run {
            return Ok(Purged { removed: Removed { count, freed }, pinned });
        }
        if purge.unused_since_ms.is_none() {
            // Fills under way are not to be stored either, be anything of theirs there or not.
            match &doomed {
                Some(doomed) => keys.clone_from(&doomed.keys),
                None => self.cache.doom_fills(!purge.force),
            }
            self.forget(doomed.as_ref());
        }
        Ok(Purged { removed: self.cache.remove_each(&keys, may_go)?, pinned })
    }

    /// Forgets all names but those that are pinned: for whoever has cleared the cache.
    pub fn forget_all(&self) {
        self.forget(None);
    }

    fn forget(&self, doomed: Option<&Doomed>) {
        {
            let mut catalogue = self.catalogue();
            let pins: HashSet<Image> = catalogue.pins().map(|(image, _)| image.clone()).collect();
            let is_meant = |image: &Image, named: &Named| {
                doomed.is_none_or(|doomed| {
                    let place = (image.repository.clone(), named.digest.clone());
                    doomed.roots.contains(&place)
                })
            };
            catalogue.forget(|image, named| is_meant(image, named) && !pins.contains(image));
        }
        self.due.store(true, Ordering::SeqCst);
        self.keep_pinned();
    }

    /// The parts that are only of what is meant.
    fn doomed(&self, purge: &Purge) -> Result<Doomed, NotPurged> {
        let catalogue = self.snapshot();
        let roots = meant(&catalogue, purge)?;
        let pinned = catalogue.pinned();
        if let Some(image) = &purge.image
            && !purge.force
            && roots.iter().any(|(place, digest)| pinned.contains(&(place, digest.clone())))
        {
            return Err(NotPurged::Pinned(image.clone()));
        }
        let digests: HashSet<Digest> = roots.iter().map(|(_, digest)| digest.clone()).collect();
        let nothing = HashSet::new();
        let mut kept: HashSet<&Digest> = HashSet::new();
        let rows = catalogue.rows();
        for row in &rows {
            let place = (row.repository.clone(), row.digest.clone());
            if !roots.contains(&place) {
                // A manifest that is to go by itself goes out of the index it is in.
                let same = roots.iter().any(|(repository, _)| *repository == row.repository);
                let except = if same { &digests } else { &nothing };
                kept.extend(catalogue.parts_of(&row.digest, except).iter().map(|part| part.0));
            }
        }
        let mut doomed: HashSet<&Digest> = HashSet::new();
        for (_, digest) in &roots {
            let parts = catalogue.parts_of(digest, &nothing);
            doomed.extend(parts.iter().map(|part| part.0).filter(|part| !kept.contains(part)));
        }
        let tags = catalogue.names().filter(|(image, named)| {
            roots.contains(&(image.repository.clone(), named.digest.clone()))
        });
        let mut keys: Vec<Key> = tags.flat_map(|(image, _)| tag_keys(image)).collect();
        keys.extend(doomed.iter().map(|digest| Key::Digest((*digest).clone())));
        // Names of its manifests alone go with it.
        let below = |(place, digest): &(Repository, Digest)| {
            let below = catalogue.below(digest).filter(|below| doomed.contains(below));
            below.map(|below| (place.clone(), below.clone())).collect::<Vec<_>>()
        };
        let roots = roots.iter().flat_map(below).chain(roots.iter().cloned()).collect();
        Ok(Doomed { keys, roots })
    }
}

/// The manifests that are meant, each with its repository.
fn meant(catalogue: &Catalogue, purge: &Purge) -> Result<HashSet<(Repository, Digest)>, NotPurged> {
    let mut roots: Option<HashSet<(Repository, Digest)>> = None;
    if let Some(image) = &purge.image {
        let unknown = || NotPurged::Unknown(image.to_string());
        let digest = catalogue.find(image).ok_or_else(unknown)?;
        roots = Some(HashSet::from([(image.repository.clone(), digest)]));
    }
    if let Some(repository) = &purge.repository {
        let names = catalogue.names().filter(|(image, _)| image.repository == *repository);
        let all: HashSet<_> =
            names.map(|(image, named)| (image.repository.clone(), named.digest.clone())).collect();
        if all.is_empty() {
            return Err(NotPurged::Unknown(repository.to_string()));
        }
        roots = Some(match roots {
            Some(roots) => roots.into_iter().filter(|(place, _)| place == repository).collect(),
            None => all,
        });
    }
    Ok(roots.unwrap_or_default())
}

/// The keys under which the answer for a tag lies, where `cache.patterns` has tags stored.
pub(super) fn tag_keys(image: &Image) -> Vec<Key> {
    let Reference::Tag(tag) = &image.reference else { return Vec::new() };
    let authority = image.repository.authority();
    let path = format!("/v2/{}/manifests/{tag}", image.repository.name());
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()),
        _ => (authority, None),
    };
    let key = |scheme, own| Key::for_url(scheme, host, port.unwrap_or(own), &path);
    vec![key("https", 443), key("http", 80)]
}
