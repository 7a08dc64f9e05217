//! What is listed: images and entries, by pages. Entries are gone through in pieces, a million of
//! them without holding anybody up.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Images;
use super::catalogue::{Catalogue, Row};
use crate::cache::Held;
use crate::key::{Digest, Key};

/// Rows of a page at most.
pub const LIMIT_MAX: usize = 1000;

/// By what rows are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Bytes.
    Size,
    /// Last use.
    LastUse,
    /// Answers from the cache.
    Hits,
    /// Name; of images alone.
    Image,
    /// When it was stored; of entries alone.
    Stored,
}

/// Which end comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The least.
    Ascending,
    /// The most.
    Descending,
}

/// Which rows are wanted.
#[derive(Clone, Debug)]
pub struct Query {
    /// From 1.
    pub page: usize,
    /// Rows of a page.
    pub limit: usize,
    /// What must be in a name, or begin a digest; lower case.
    pub q: String,
    /// By what they are sorted.
    pub sort: Sort,
    /// Which end comes first.
    pub order: Order,
}

impl Query {
    fn first(&self) -> usize {
        (self.page - 1).saturating_mul(self.limit)
    }

    fn directed(&self, order: Ordering) -> Ordering {
        if self.order == Order::Ascending { order } else { order.reverse() }
    }
}

/// A page of what was found.
#[derive(Debug)]
pub struct Page<T> {
    /// Its rows.
    pub rows: Vec<T>,
    /// Rows of all pages.
    pub total: usize,
}

/// An image.
#[derive(Debug)]
pub struct Listed {
    /// Where it is, and what names it.
    pub row: Row,
    /// Bytes of all its parts.
    pub size: u64,
    /// Bytes of them that are stored.
    pub stored: u64,
    /// Bytes of those that another image has, too.
    pub shared: u64,
    /// When it was last asked for by its name, or one of its manifests served.
    pub used_ms: u64,
    /// Answers from the cache with any of its parts, since the start.
    pub hits: u64,
    /// Whether it is kept from being evicted.
    pub pinned: bool,
}

/// An entry.
#[derive(Debug)]
pub struct Entry {
    /// What it lies under.
    pub key: Key,
    /// What is known of it without its files.
    pub held: Held,
    /// When it was stored.
    pub stored: SystemTime,
    /// Its head as it is stored; empty where that can't be read.
    pub head: Vec<u8>,
    /// Where it is asked for, where it is a part of a known image.
    pub url: Option<String>,
}

/// The keys of an image's parts.
pub(super) fn keys(parts: &[(&Digest, u64)]) -> Vec<Key> {
    parts.iter().map(|(digest, _)| Key::Digest((*digest).clone())).collect()
}

impl Images {
    /// The images of which something is stored, or that are pinned.
    pub fn list(&self, query: &Query) -> Page<Listed> {
        let catalogue = self.snapshot();
        let rows = catalogue.rows();
        let nothing = HashSet::new();
        let mut users: HashMap<&Digest, u32> = HashMap::new();
        for row in &rows {
            for (digest, _) in catalogue.parts_of(&row.digest, &nothing) {
                *users.entry(digest).or_default() += 1;
            }
        }
        let pinned = catalogue.pinned();
        let mut found: Vec<Listed> = rows
            .iter()
            .filter(|row| is_meant(row, &query.q))
            .map(|row| {
                let mut listed = self.look(&catalogue, row, &users);
                listed.pinned = pinned.contains(&(&row.repository, row.digest.clone()));
                listed
            })
            .filter(|listed| listed.stored > 0 || listed.pinned)
            .collect();
        let name = |listed: &Listed| (listed.row.repository.clone(), listed.row.digest.clone());
        found.sort_by(|a, b| {
            let order = match query.sort {
                Sort::Size => a.size.cmp(&b.size),
                Sort::Hits => a.hits.cmp(&b.hits),
                Sort::LastUse | Sort::Stored => a.used_ms.cmp(&b.used_ms),
                Sort::Image => Ordering::Equal,
            };
            let by_name =
                || (&a.row.repository, &a.row.tags).cmp(&(&b.row.repository, &b.row.tags));
            query.directed(order.then_with(by_name)).then_with(|| name(a).cmp(&name(b)))
        });
        let total = found.len();
        let rows = found.into_iter().skip(query.first()).take(query.limit).collect();
        Page { rows, total }
    }

    fn look(&self, catalogue: &Catalogue, row: &Row, users: &HashMap<&Digest, u32>) -> Listed {
        let parts = catalogue.parts_of(&row.digest, &HashSet::new());
        let manifests: HashSet<&Digest> = catalogue.below(&row.digest).collect();
        let mut listed = Listed {
            row: row.clone(),
            size: 0,
            stored: 0,
            shared: 0,
            used_ms: row.seen_ms,
            hits: 0,
            pinned: false,
        };
        for ((digest, size), held) in parts.iter().zip(self.cache.held(&keys(&parts))) {
            listed.size = listed.size.saturating_add(held.map_or(*size, |held| held.size));
            let Some(held) = held else { continue };
            listed.stored += held.size;
            listed.hits += u64::from(held.hits);
            if users.get(digest).is_some_and(|users| *users > 1) {
                listed.shared += held.size;
            }
            if manifests.contains(digest) {
                listed.used_ms = listed.used_ms.max(held.used_ms);
            }
        }
        listed
    }

    /// What is stored. `q` is looked for in the names of the images an entry is a part of, and at
    /// the beginning of its digest.
    pub fn entries(&self, query: &Query) -> Page<Entry> {
        let named = self.named(&query.q);
        let wanted = |key: &Key| {
            query.q.is_empty()
                || matches!(key, Key::Digest(digest) if named.contains(digest))
                || begins(key, &query.q)
        };
        // Sixteen bytes an entry, for as long as this takes.
        let mut found: Vec<(u64, u32)> = Vec::new();
        self.cache.survey(|place, key, held| {
            if wanted(key) {
                let value = match query.sort {
                    Sort::Size => held.size,
                    Sort::LastUse | Sort::Image => held.used_ms,
                    Sort::Hits => u64::from(held.hits),
                    Sort::Stored => held.stored_ms,
                };
                found.push((value, place));
            }
        });
        let total = found.len();
        let by_value = |a: &(u64, u32), b: &(u64, u32)| query.directed(a.cmp(b));
        let first = query.first().min(total);
        let last = first.saturating_add(query.limit).min(total);
        if last < total {
            found.select_nth_unstable_by(last, by_value);
            found.truncate(last);
        }
        if first > 0 && first < found.len() {
            found.select_nth_unstable_by(first, by_value);
        }
        let places = found.get_mut(first..).unwrap_or_default();
        places.sort_unstable_by(by_value);
        let places: Vec<u32> = places.iter().map(|(_, place)| *place).collect();
        let found = self.cache.at(&places);
        let mut urls = self.urls(&found);
        let rows = found.into_iter().map(|(key, held)| {
            let url = urls.remove(&key);
            self.describe(key, held, url)
        });
        Page { rows: rows.collect(), total }
    }

    /// Where these are asked for, as far as they are parts of known images.
    fn urls(&self, found: &[(Key, Held)]) -> HashMap<Key, String> {
        let (catalogue, nothing) = (self.snapshot(), HashSet::new());
        let wanted: HashSet<&Key> = found.iter().map(|(key, _)| key).collect();
        let mut urls = HashMap::new();
        for row in catalogue.rows() {
            let manifests: HashSet<&Digest> = catalogue.below(&row.digest).collect();
            for (digest, _) in catalogue.parts_of(&row.digest, &nothing) {
                let key = Key::Digest(digest.clone());
                if wanted.contains(&key) {
                    let (host, name) = (row.repository.authority(), row.repository.name());
                    let kind = if manifests.contains(digest) { "manifests" } else { "blobs" };
                    urls.entry(key).or_insert_with(|| format!("{host}/v2/{name}/{kind}/{digest}"));
                }
            }
        }
        urls
    }

    fn describe(&self, key: Key, held: Held, url: Option<String>) -> Entry {
        let (stored, head) = self.cache.describe(&key).unwrap_or_else(|_| {
            let stored = UNIX_EPOCH + Duration::from_millis(held.stored_ms);
            (stored, Vec::new())
        });
        Entry { key, held, stored, head, url }
    }

    /// The parts of all images in whose names `q` is.
    fn named(&self, q: &str) -> HashSet<Digest> {
        if q.is_empty() {
            return HashSet::new();
        }
        let (catalogue, nothing) = (self.snapshot(), HashSet::new());
        let rows = catalogue.rows();
        let meant = rows.iter().filter(|row| is_meant(row, q));
        let parts = meant.flat_map(|row| catalogue.parts_of(&row.digest, &nothing));
        parts.map(|(digest, _)| digest.clone()).collect()
    }
}

/// Whether `q` is in an image's name with any of its tags, or begins its digest.
fn is_meant(row: &Row, q: &str) -> bool {
    let repository = row.repository.to_string();
    let is_in = |name: &str| name.to_ascii_lowercase().contains(q);
    is_in(&repository)
        || row.tags.iter().any(|tag| is_in(&format!("{repository}:{tag}")))
        || begins(&Key::Digest(row.digest.clone()), q)
}

/// Whether the key's digits, with the name of their hash function or without, begin with `q`.
fn begins(key: &Key, q: &str) -> bool {
    let digits = match q.split_once(':') {
        Some(("sha256" | "sha512", digits)) => digits,
        Some(_) => return false,
        None => q,
    };
    !digits.is_empty() && key.begins_with(digits)
}
