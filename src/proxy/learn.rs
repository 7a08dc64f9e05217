//! What goes by of manifests, for the catalogue of images. It is taken in on helper threads; what
//! they have no time for is not learnt this time.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Worker;
use super::drain::guarded;
use super::exchange::Request;
use super::session::Client;
use super::url::Url;
use crate::cache::Seen;
use crate::http::{Method, ResponseHead};
use crate::images::{Heard, Images};
use crate::key::{Digest, Image, Reference, Repository};
use crate::policy::rights::{Endpoint, MANIFEST_MAX, RegistryPath};

/// Bytes of a manifest that is passed and taken in at most; real ones have some thousand.
const PASSED_MAX: usize = 1024 * 1024;

/// Such manifests under way at once, at most.
const PASSING_MAX: usize = 64;

static PASSING: AtomicUsize = AtomicUsize::new(0);

/// An answer about a manifest on its way past the cache.
pub struct Lesson {
    images: Arc<Images>,
    image: Image,
    /// What the registry calls it.
    said: Option<Digest>,
    body: Option<Passing>,
}

/// The body of one of the manifests under way.
struct Passing(Vec<u8>);

impl Passing {
    fn begin() -> Option<Passing> {
        let one_more = |taken: usize| (taken < PASSING_MAX).then_some(taken + 1);
        let taken = PASSING.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        taken.ok().map(|_| Passing(Vec::new()))
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        PASSING.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lesson {
    /// `None` where the answer is about no manifest. One that sends the client elsewhere for it is
    /// taken in here.
    pub fn begin(
        worker: &Worker,
        client: &Client,
        request: &Request,
        head: &ResponseHead,
    ) -> Option<Lesson> {
        let image = image_at(&request.url)?;
        if let 301 | 302 | 303 | 307 | 308 = head.status {
            let next = head.fields.get("location").and_then(|to| request.url.resolve(to))?;
            worker.images.redirected(client.ip(), image, image_at(&next)?);
            return None;
        }
        if head.status != 200 {
            return None;
        }
        let image = worker.images.asked_first(client.ip(), image);
        let said = head.fields.get_str("docker-content-digest").and_then(Digest::parse);
        let body = match request.head.method {
            Method::GET if !head.fields.contains("content-encoding") => Passing::begin(),
            Method::GET | Method::HEAD => None,
            _ => return None,
        };
        Some(Lesson { images: Arc::clone(&worker.images), image, said, body })
    }

    /// Takes in the next bytes of the body.
    pub fn take(&mut self, piece: &[u8]) {
        if let Some(Passing(body)) = &mut self.body {
            if body.len() + piece.len() > PASSED_MAX {
                self.body = None;
            } else {
                body.extend_from_slice(piece);
            }
        }
    }

    /// The answer has come whole.
    pub fn end(self) {
        let Lesson { images, image, said, body } = self;
        let by_tag = matches!(image.reference, Reference::Tag(_));
        let (heard, passing) = match (body, said) {
            (Some(mut body), _) => (Heard::Manifest(std::mem::take(&mut body.0)), Some(body)),
            (None, Some(digest)) if by_tag => (Heard::Digest(digest), None),
            _ => return,
        };
        help(move || {
            images.hear(image, heard);
            // It counts as one that is held until here.
            drop(passing);
        });
    }
}

/// Takes in what was stored, where it is a manifest.
pub fn stored(worker: &Worker, url: &Url, seen: Seen) {
    let Some(image) = image_at(url).filter(|_| seen.written <= MANIFEST_MAX as u64) else { return };
    let images = Arc::clone(&worker.images);
    help(move || {
        // At most MANIFEST_MAX.
        let mut body = vec![0; seen.written as usize];
        if seen.body.file.read_exact_at(&mut body, 0).is_ok() {
            images.hear(image, Heard::Manifest(body));
        }
    });
}

fn help(work: impl FnOnce() + Send + 'static) {
    monoio::spawn(guarded(async {
        let _ = monoio::spawn_blocking(work).await;
    }));
}

/// The image whose manifest is asked for.
fn image_at(url: &Url) -> Option<Image> {
    image_of(&url.authority(), url.path())
}

/// The image whose manifest a path at a registry is.
pub fn image_of(authority: &str, path: &str) -> Option<Image> {
    let path = RegistryPath::parse(path).filter(|path| path.endpoint == Endpoint::Manifest)?;
    let reference = match path.digest() {
        Some(digest) => Reference::Digest(digest),
        None => Reference::Tag(path.reference.to_owned()),
    };
    Some(Image { repository: Repository::at(authority, path.name), reference })
}
