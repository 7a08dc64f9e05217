//! What is known of images, made anew from what is stored: for a start without the file, or with
//! one that can't be read. It blocks, on a thread of its own, a few entries at a time.
//!
//! A stored tag says its name. A manifest stored by its digest has only a hash of the repository it
//! came from, since nobody is to read the names of private images off the disk: it is *nameless*
//! until somebody asks for anything of that repository.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Images, NAMES_MAX};
use crate::cache::Held;
use crate::http::{Authority, Scheme};
use crate::key::{Algorithm, Digest, Image, Key, Reference, Repository};
use crate::policy::rights::{MANIFEST_MAX, RepositoryId};
use crate::proxy::{Described, described, image_of};
use crate::sys::sync::lock;

/// Entries whose heads are looked at, the last used first: those of thousands of images.
const LOOKED_MAX: usize = 64 * 1024;

/// Heads are read so many at a time, a matter of a millisecond, with as long a pause after them.
const AT_ONCE: usize = 64;
const PAUSE: Duration = Duration::from_millis(1);

/// Stored manifests whose repository has no name yet, with their last use. At most [`NAMES_MAX`].
#[derive(Default)]
pub(super) struct Nameless {
    by_repository: HashMap<RepositoryId, Vec<(Digest, u64)>>,
    count: usize,
}

impl Nameless {
    fn put(&mut self, repository: RepositoryId, digest: Digest, used_ms: u64) {
        if self.count < NAMES_MAX {
            self.count += 1;
            self.by_repository.entry(repository).or_default().push((digest, used_ms));
        }
    }

    fn take(&mut self, repository: &Repository) -> Vec<(Digest, u64)> {
        if self.count == 0 {
            return Vec::new();
        }
        let ids = [Scheme::Https, Scheme::Http].map(|scheme| id(repository, scheme));
        let taken = ids.into_iter().flatten().filter_map(|id| self.by_repository.remove(&id));
        let taken: Vec<_> = taken.flatten().collect();
        self.count -= taken.len();
        taken
    }
}

fn id(repository: &Repository, scheme: Scheme) -> Option<RepositoryId> {
    let authority = Authority::parse(repository.authority()).ok()?;
    let port = authority.port.unwrap_or_else(|| scheme.default_port());
    Some(RepositoryId::new(scheme, &authority.host, port, repository.name()))
}

impl Images {
    /// Learns anew what the stored manifests say, where there was nothing to read at the start. To
    /// be called after the scan; blocks.
    pub fn rebuild(&self) {
        if !self.lost.swap(false, Ordering::Relaxed) {
            return;
        }
        let mut found: Vec<(u64, u32)> = Vec::new();
        self.cache.survey(|place, _, held| {
            if held.size <= MANIFEST_MAX as u64 {
                found.push((held.used_ms, place));
            }
        });
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.truncate(LOOKED_MAX);
        let places: Vec<u32> = found.into_iter().map(|(_, place)| place).collect();
        for places in places.chunks(AT_ONCE) {
            for (key, held) in self.cache.at(places) {
                self.look_at(&key, held);
            }
            std::thread::sleep(PAUSE);
        }
        // Those that were named meanwhile.
        let named = self.snapshot();
        let named: HashSet<&Repository> =
            named.names().map(|(image, _)| &image.repository).collect();
        for repository in named {
            self.claim(repository);
        }
        self.due.store(true, Ordering::SeqCst);
        self.keep_pinned();
    }

    fn look_at(&self, key: &Key, held: Held) {
        let Ok((_, head)) = self.cache.describe(key) else { return };
        let Described { kind, url, source } = described(&head);
        match key {
            Key::Url(_) => {
                let at = url.as_deref().and_then(|url| Some(url.split_at(url.find('/')?)));
                if let Some(image) = at.and_then(|(authority, path)| image_of(authority, path))
                    && let Ok(body) = self.cache.read(key, MANIFEST_MAX as u64)
                {
                    let digest = Digest::of(Algorithm::Sha256, &body);
                    self.restore(image, digest, Some(body), held.used_ms);
                }
            }
            Key::Digest(digest) => {
                let is_manifest =
                    |kind: String| kind.contains(".manifest.") || kind.contains(".image.index.");
                if let Some(source) = source
                    && kind.is_some_and(is_manifest)
                {
                    lock(&self.nameless).put(source, digest.clone(), held.used_ms);
                }
            }
        }
    }

    /// Names what is stored of a repository that somebody has named by now. Whether there is any.
    pub(super) fn claim(&self, repository: &Repository) -> bool {
        let found = lock(&self.nameless).take(repository);
        let claimed = !found.is_empty();
        for (digest, used_ms) in found {
            let is_there =
                self.cache.held(&[Key::Digest(digest.clone())]).iter().any(Option::is_some);
            if is_there {
                let reference = Reference::Digest(digest.clone());
                let image = Image { repository: repository.clone(), reference };
                self.restore(image, digest, None, used_ms);
            }
        }
        claimed
    }

    /// Takes in a name from before, unless something newer is known under it.
    fn restore(&self, image: Image, digest: Digest, body: Option<Vec<u8>>, used_ms: u64) {
        {
            let mut catalogue = self.catalogue();
            if catalogue.has(&image) {
                return;
            }
            catalogue.name(image, digest.clone(), used_ms);
        }
        self.learn(&digest, body);
    }
}
