//! Stored files that somebody changed: what a look-up makes of them, and `verify`.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use discobot_proxy::cache::{Cache, Lookup, Options, Progress, verify};
use discobot_proxy::key::{Algorithm, Hasher, Key};
use discobot_proxy::stats::Stats;
use monoio::blocking::BlockingStrategy;

use super::{Verdict, ensure};

/// The body that lies under every key here, until it is changed.
pub const BODY: &[u8] = b"The quick brown fox jumps over the lazy dog, and the dog lies still.";

/// A `.meta` as the cache writes it for a key and length.
pub fn meta(key: &Key, len: usize) -> Vec<u8> {
    let name = match key {
        Key::Digest(digest) => digest.to_string(),
        Key::Url(_) => format!("url:{}", key.hex()),
    };
    let stored = "2026-01-02T03:04:05.678Z";
    let line =
        format!("{{\"format\":1,\"key\":\"{name}\",\"length\":{len},\"stored\":\"{stored}\"}}\n");
    [line.as_bytes(), b"Content-Type: application/octet-stream\r\n"].concat()
}

pub fn keys() -> [Key; 2] {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(BODY);
    let digest = Key::Digest(hasher.finish());
    [digest, Key::for_url("https", "registry.test", 443, "/file")]
}

/// What a look-up found: head, length, bytes.
pub struct Found {
    pub head: Vec<u8>,
    pub len: u64,
}

/// A cache that never learns what it has, so that each look-up goes to the disk.
pub struct Shelf {
    dir: PathBuf,
    cache: Cache,
    runtime: RefCell<monoio::Runtime<monoio::LegacyDriver>>,
    // Dropped last.
    _folder: tempfile::TempDir,
}

thread_local! {
    static SHELF: Shelf = Shelf::new();
}

impl Shelf {
    fn new() -> Shelf {
        let folder = tempfile::tempdir().expect("a directory");
        let dir = folder.path().to_owned();
        let options = Options {
            dir: dir.clone(),
            max_size: 1 << 30,
            min_free: 0,
            open_max: 4,
            fills_max: 64,
        };
        let cache = Cache::open(options, Arc::new(Stats::default())).expect("a cache");
        let runtime = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new()
            .with_blocking_strategy(BlockingStrategy::ExecuteLocal)
            .build()
            .expect("a runtime");
        Shelf { dir, cache, runtime: RefCell::new(runtime), _folder: folder }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// The cache's own look-up.
pub fn look(shelf: &Shelf, key: &Key) -> Option<Found> {
    let lookup = shelf.runtime.borrow_mut().block_on(shelf.cache.lookup(key, [0; 16]));
    match lookup.expect("no file system fails here") {
        Lookup::Hit(reader) => {
            let seen = reader.glance().expect("a hit is complete");
            let len = seen.len.expect("a hit has a length");
            assert_eq!(seen.written, len, "a hit that is not all there");
            Some(Found { head: seen.body.head.to_vec(), len })
        }
        Lookup::Miss(lease) => {
            lease.decline();
            None
        }
        Lookup::Join(_) | Lookup::Crowded => panic!("nobody fills anything here"),
    }
}

/// The first byte says which key and what happens to the body, the second where, the rest is the
/// `.meta`.
pub fn judge(data: &[u8], look: &dyn Fn(&Shelf, &Key) -> Option<Found>) -> Verdict {
    let [what, at, meta @ ..] = data else { return Ok(()) };
    let [digest, url] = keys();
    let key = if what & 1 == 0 { digest } else { url };
    let mut body = BODY.to_vec();
    let at = usize::from(*at) % body.len();
    match what >> 1 & 3 {
        0 => {}
        1 => body.truncate(at),
        2 => body.extend_from_slice(&BODY[..at]),
        _ => body[at] ^= 1 + (what >> 3),
    }
    SHELF.with(|shelf| {
        let verdict = judge_files(shelf, &key, &body, meta, look);
        // Out of the index as well, whatever came of it.
        let removed = shelf.runtime.borrow_mut().block_on(shelf.cache.remove(&key));
        removed.map(|_| ()).map_err(|error| error.to_string()).and(verdict)
    })
}

fn judge_files(
    shelf: &Shelf,
    key: &Key,
    body: &[u8],
    meta: &[u8],
    look: &dyn Fn(&Shelf, &Key) -> Option<Found>,
) -> Verdict {
    let folder = if matches!(key, Key::Url(_)) { "urls/sha256" } else { "blobs/sha256" };
    let path = shelf.dir().join(folder).join(key.hex());
    let meta_path = path.with_extension("meta");
    fs::write(&path, body).map_err(|error| error.to_string())?;
    fs::write(&meta_path, meta).map_err(|error| error.to_string())?;
    let line = meta.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
    let head = &meta[line.len()..];
    let agrees = is_meta_of(line, key, body.len());
    let pristine = line
        == self::meta(key, body.len()).split_inclusive(|b| *b == b'\n').next().unwrap_or_default();
    match look(shelf, key) {
        Some(found) => {
            ensure(agrees, || "a hit though the files do not agree".to_owned())?;
            let same = found.head == head && found.len == body.len() as u64;
            ensure(same, || format!("a hit of {} bytes with another head", found.len))?;
        }
        None => {
            ensure(!pristine, || "no hit though nothing is wrong".to_owned())?;
            let gone = !path.exists() && !meta_path.exists();
            ensure(gone, || "what is damaged is left lying about".to_owned())?;
        }
    }
    let stays = path.exists();
    let report = verify(shelf.dir(), &|_: Progress<'_>| {}).map_err(|error| error.to_string())?;
    // A digest says what the bytes are; of a URL's there is only the length to go by.
    let whole = stays && (body == BODY || matches!(key, Key::Url(_)));
    let counted = (report.whole, report.damaged);
    let ought = (u64::from(whole), u64::from(stays && !whole));
    ensure(counted == ought, || format!("verify counts {counted:?}, not {ought:?}"))?;
    ensure(path.exists() == whole, || "verify leaves what is damaged".to_owned())
}

fn is_meta_of(line: &[u8], key: &Key, len: usize) -> bool {
    let Ok(meta) = serde_json::from_slice::<serde_json::Value>(line) else { return false };
    let name = match key {
        Key::Digest(digest) => digest.to_string(),
        Key::Url(_) => format!("url:{}", key.hex()),
    };
    meta["format"] == 1 && meta["key"] == name.as_str() && meta["length"] == len
}
