//! Images: what people call the entries of the cache. A catalogue of which name (registry,
//! repository, tag or digest) stands for which manifest, and which digests that is made of; what is
//! listed, removed and pinned by it.
//!
//! It is learnt from what registries answer through the proxy, on helper threads: a hit costs
//! nothing. What must stay true:
//!
//! - **It decides nothing that a client sees.** Who may have what is for
//!   [`crate::policy::rights`] to say. What is wrong here lists, removes or keeps the wrong bytes.
//! - **A name is an upstream's word** at the time it was asked; what a manifest is made of is
//!   proven by its digest.
//! - **Bounded**, by [`NAMES_MAX`], [`PARTS_MAX`], [`IMAGE_PARTS_MAX`] and [`PINS_MAX`]: the names
//!   that were not seen for longest are forgotten first, pinned ones never. So are redirects that
//!   clients follow to another name of theirs.
//! - **A pin follows its image**: to parts that come later, and to whatever its tag names now.

mod catalogue;
mod file;
mod list;
mod purge;
mod rebuild;
mod redirects;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use self::catalogue::{Catalogue, Node};
pub use self::catalogue::{IMAGE_PARTS_MAX, NAMES_MAX, PARTS_MAX, PINS_MAX};
pub use self::list::{Entry, LIMIT_MAX, Listed, Order, Page, Query, Sort};
pub use self::purge::{NotPurged, Purge, Purged};
use self::rebuild::Nameless;
use self::redirects::Redirects;
use crate::cache::Cache;
use crate::key::{Algorithm, Digest, Image, Key, Reference};
use crate::policy::rights::{MANIFEST_MAX, Manifest};
use crate::sys::clock::now_ms;
use crate::sys::sync::lock;

/// Manifests of an index that are read from the cache at most, when nothing is known of them.
const READ_MAX: usize = 256;

/// Saving takes at most so much of the time: one part in so many.
const SAVE_SHARE: u32 = 20;

/// What a registry said of an image.
#[derive(Debug)]
pub enum Heard {
    /// The digest of its manifest.
    Digest(Digest),
    /// The manifest itself.
    Manifest(Vec<u8>),
}

/// The catalogue of a cache, what is pinned in that, and their file. Everything but
/// [`Images::open`] blocks, unless it says otherwise.
pub struct Images {
    cache: Cache,
    catalogue: Mutex<Catalogue>,
    /// What the cache was told to keep. Held for as long as it takes to tell it.
    kept: Mutex<HashSet<Key>>,
    file: PathBuf,
    /// Whether the file would say something new. Who learns that does not wait for a write.
    due: AtomicBool,
    saving: Mutex<Saving>,
    redirects: Mutex<Redirects>,
    /// Whether there was no file to read, and nothing has been made of what is stored yet.
    lost: AtomicBool,
    nameless: Mutex<Nameless>,
}

struct Saving {
    last: Instant,
    took: Duration,
}

/// A pin, for people who look.
#[derive(Debug)]
pub struct Pin {
    /// What is pinned.
    pub image: Image,
    /// Bytes of it that are stored.
    pub bytes: u64,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
}

impl Images {
    /// Reads what an earlier process left in `dir`, and pins what it had pinned. The error is why
    /// there is nothing to read; what is there is usable all the same.
    pub fn open(cache: Cache, dir: &Path) -> (Images, Option<io::Error>) {
        let file = dir.join("images");
        let (catalogue, error) = match file::read(&file) {
            Ok(catalogue) => (catalogue, None),
            Err(error) => (Catalogue::default(), Some(error)),
        };
        let saving = Saving { last: Instant::now(), took: Duration::ZERO };
        let (catalogue, saving) = (Mutex::new(catalogue), Mutex::new(saving));
        let images = Images {
            cache,
            catalogue,
            kept: Mutex::default(),
            file,
            due: AtomicBool::new(false),
            saving,
            redirects: Mutex::default(),
            lost: AtomicBool::new(error.is_some()),
            nameless: Mutex::default(),
        };
        images.keep_pinned();
        (images, error)
    }

    /// Writes everything down, where there is something new and it was not done a moment ago.
    pub fn save(&self) -> io::Result<()> {
        let saving = lock(&self.saving);
        match self.is_due() && saving.last.elapsed() >= saving.took * SAVE_SHARE {
            true => self.write(saving),
            false => Ok(()),
        }
    }

    /// Writes everything down, where there is something new.
    pub fn save_now(&self) -> io::Result<()> {
        let saving = lock(&self.saving);
        if self.is_due() { self.write(saving) } else { Ok(()) }
    }

    fn is_due(&self) -> bool {
        self.due.load(Ordering::SeqCst)
    }

    fn write(&self, mut saving: MutexGuard<'_, Saving>) -> io::Result<()> {
        // Before it is looked at what there is: what comes meanwhile is due again.
        self.due.store(false, Ordering::SeqCst);
        let begun = Instant::now();
        let written = file::write(&self.file, &self.snapshot());
        (saving.last, saving.took) = (Instant::now(), begun.elapsed());
        if written.is_err() {
            self.due.store(true, Ordering::SeqCst);
        }
        written
    }

    /// Takes in that a registry sent a client that asked for one image to another. Does not block.
    pub fn redirected(&self, client: IpAddr, asked: Image, told: Image) {
        lock(&self.redirects).note(client, asked, told, Instant::now());
    }

    /// What a client that asks for an image asked for before it was sent there. Does not block.
    pub fn asked_first(&self, client: IpAddr, image: Image) -> Image {
        lock(&self.redirects).follow(client, image, Instant::now())
    }

    /// Takes in what a registry said of an image.
    pub fn hear(&self, image: Image, heard: Heard) {
        let (digest, body) = match (&image.reference, heard) {
            (Reference::Digest(named), Heard::Manifest(body)) => (named.clone(), Some(body)),
            // The digest that a registry says its tag has may be another's.
            (Reference::Tag(_), Heard::Manifest(body)) => {
                (Digest::of(Algorithm::Sha256, &body), Some(body))
            }
            (_, Heard::Digest(digest)) => (digest, None),
        };
        let repository = image.repository.clone();
        let is_new = {
            let mut catalogue = self.catalogue();
            let is_new = catalogue.name(image, digest.clone(), now_ms());
            is_new | !catalogue.knows(&digest)
        };
        let learnt = self.learn(&digest, body);
        let claimed = self.claim(&repository);
        // That a name was seen again is not worth a write by itself.
        if is_new || learnt || claimed {
            self.due.store(true, Ordering::SeqCst);
            self.keep_pinned();
        }
    }

    /// Finds out what a manifest is made of, and those below it: from `body`, else from the cache.
    /// Whether something was.
    fn learn(&self, image: &Digest, body: Option<Vec<u8>>) -> bool {
        let mut body = body;
        let mut learnt = false;
        let mut next = vec![image.clone()];
        let mut left = READ_MAX;
        while let Some(digest) = next.pop()
            && left > 0
        {
            left -= 1;
            if !self.catalogue().knows(&digest) {
                if self.catalogue().is_full(image) {
                    break;
                }
                let stored = || self.cache.read(&Key::Digest(digest.clone()), MANIFEST_MAX as u64);
                let Some(body) = body.take().or_else(|| stored().ok()) else { continue };
                if Digest::of(digest.algorithm(), &body) != digest {
                    continue;
                }
                let Some(manifest) = Manifest::parse(&body) else { continue };
                self.catalogue().learn(digest.clone(), Node::new(body.len() as u64, manifest));
                learnt = true;
            }
            next.extend(self.catalogue().unknown_below(&digest));
        }
        learnt
    }

    /// Keeps an image from being evicted, whatever of it is stored or comes to be. Whether that is
    /// new; `None` where there are as many as there may be.
    pub fn pin(&self, image: &Image) -> io::Result<Option<bool>> {
        let Some(is_new) = self.catalogue().pin(image.clone(), now_ms()) else {
            return Ok(None);
        };
        self.pins_changed().map(|()| Some(is_new))
    }

    /// Lets an image be evicted again. Whether it was pinned.
    pub fn unpin(&self, image: &Image) -> io::Result<bool> {
        let was_pinned = self.catalogue().unpin(image);
        self.pins_changed().map(|()| was_pinned)
    }

    /// What is pinned.
    pub fn pins(&self) -> Vec<Pin> {
        let catalogue = self.snapshot();
        let bytes = |image: &Image| {
            let digest = catalogue.find(image)?;
            let keys = list::keys(&catalogue.parts_of(&digest, &HashSet::new()));
            Some(self.cache.held(&keys).into_iter().flatten().map(|held| held.size).sum())
        };
        let pin = |(image, since_ms): (&Image, u64)| Pin {
            image: image.clone(),
            bytes: bytes(image).unwrap_or_default(),
            since_ms,
        };
        catalogue.pins().map(pin).collect()
    }

    /// Whether anything is pinned.
    pub fn has_pins(&self) -> bool {
        self.catalogue().pins().next().is_some()
    }

    fn pins_changed(&self) -> io::Result<()> {
        self.due.store(true, Ordering::SeqCst);
        self.keep_pinned();
        self.save_now()
    }

    /// Has the cache keep what is pinned by now, and nothing else.
    fn keep_pinned(&self) {
        let mut kept = lock(&self.kept);
        let pinned: HashSet<Key> = {
            let catalogue = self.catalogue();
            let nothing = HashSet::new();
            let images = catalogue.pins().map(|(image, _)| image);
            let tags = images.flat_map(purge::tag_keys);
            let digests = catalogue.pinned();
            let parts = digests.iter().map(|(_, digest)| catalogue.parts_of(digest, &nothing));
            parts.flat_map(|parts| list::keys(&parts)).chain(tags).collect()
        };
        let added: Vec<Key> = pinned.difference(&kept).cloned().collect();
        let removed: Vec<Key> = kept.difference(&pinned).cloned().collect();
        if !(added.is_empty() && removed.is_empty()) {
            self.cache.pin(&added, &removed);
        }
        *kept = pinned;
    }

    /// Everything known now: what is made of it takes no lock that a learner waits for.
    fn snapshot(&self) -> Catalogue {
        self.catalogue().clone()
    }

    fn catalogue(&self) -> MutexGuard<'_, Catalogue> {
        lock(&self.catalogue)
    }
}
