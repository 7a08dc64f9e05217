//! Files: their names, their format, the commit by rename, the scan at start.
//!
//! ```text
//! <dir>/blobs/sha256/<hex>        exactly the body's bytes; its SHA-256 is its name
//! <dir>/blobs/sha256/<hex>.meta   one line of JSON ([`Meta`]), then the stored head
//! <dir>/blobs/sha512/…            the same for SHA-512
//! <dir>/urls/sha256/<hex>[.meta]  entries that carry no digest, by the hash of their URL
//! <dir>/partial/<n>.part          what is being filled; means nothing, removed at the start
//! <dir>/lock                      held by the process that uses the directory
//! ```
//!
//! The appearance of the body's final name is the commit; its `.meta` is there before it. The
//! modification time of the body is its last use. Everything here blocks: it runs on helper
//! threads.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::key::{Algorithm, Digest, Hasher, Key};
use crate::sys;
use crate::sys::clock::millis;

/// The first line of a `.meta` file.
#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    /// Version of this format.
    format: u32,
    /// `sha256:…`, `sha512:…` or `url:…`: must agree with the file's name.
    key: String,
    /// Bytes of the body; must agree with the file's length.
    length: u64,
    /// When it was stored, RFC 3339.
    stored: String,
}

const FORMAT: u32 = 1;

/// A stored head larger than this is not ours; response heads are limited far below it.
const META_MAX: u64 = 2 * 1024 * 1024;

/// A `.meta` without its body is left alone until it is so much older than the scan.
const ORPHAN_AGE: Duration = Duration::from_millis(20);

/// The folders that hold entries, below the cache directory.
const FOLDERS: [&str; 3] = ["blobs/sha256", "blobs/sha512", "urls/sha256"];

/// What [`Disk::load`] gives.
pub(super) struct Loaded {
    pub file: File,
    pub head: Box<[u8]>,
    pub len: u64,
    pub stored: SystemTime,
}

/// A body the scan came upon.
pub(super) struct Seen {
    pub key: Key,
    pub size: u64,
    pub used_ms: u64,
    /// As far as the file system says: the `.meta` knows for certain.
    pub stored_ms: u64,
}

/// The cache directory, locked for this process.
pub(super) struct Disk {
    dir: PathBuf,
    next_part: AtomicU64,
    lock: Option<File>,
}

impl Disk {
    /// Makes the directories, takes the lock, tries whether files can be written, and removes what
    /// an earlier process left unfinished. The error names the path.
    pub(super) fn open(dir: &Path) -> io::Result<Disk> {
        make_folders(dir)?;
        let path = dir.join("lock");
        // Held for reading, as committed bodies are: what is open for writing keeps a file system
        // from being remounted read-only.
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .and_then(|_| File::open(&path))
            .map_err(|error| at(&path, error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let text = format!("{}: in use by another discobot-proxy", dir.display());
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
            }
            Err(TryLockError::Error(error)) => return Err(at(&path, error)),
        }
        let disk = Disk { dir: dir.to_owned(), next_part: AtomicU64::new(0), lock: Some(lock) };
        disk.remove_partial()?;
        let (probe, path) = disk.create_part()?;
        drop(probe);
        fs::remove_file(&path).map_err(|error| at(&path, error))?;
        Ok(disk)
    }

    /// The cache directory as it is, whoever uses it: to look, and to remove what is damaged.
    pub(super) fn beside(dir: &Path) -> Disk {
        Disk { dir: dir.to_owned(), next_part: AtomicU64::new(0), lock: None }
    }

    /// Whether there is a body under the name of `key`.
    pub(super) fn has_body(&self, key: &Key) -> bool {
        self.path(key).exists()
    }

    /// Whether the body under the name of `key` has no `.meta`: a commit gives the body its name
    /// last and a removal takes it first, so that of one that stays there is one.
    pub(super) fn lacks_meta(&self, key: &Key) -> bool {
        let path = self.path(key);
        let body = || fs::metadata(&path).ok().map(|found| found.ino());
        let before = body();
        before.is_some() && !meta_path(&path).exists() && body() == before
    }

    /// Whether `file` is what lies under the name of `key` now.
    pub(super) fn is_current(&self, key: &Key, file: &File) -> io::Result<bool> {
        Ok(fs::metadata(self.path(key))?.ino() == file.metadata()?.ino())
    }

    /// A new file to fill, open for reading and writing. Makes the directories anew where they are
    /// gone.
    pub(super) fn create_part(&self) -> io::Result<(File, PathBuf)> {
        let number = self.next_part.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join("partial").join(format!("{number}.part"));
        let open =
            || OpenOptions::new().read(true).write(true).create_new(true).mode(0o640).open(&path);
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_folders(&self.dir)?;
                open()
            }
            result => result,
        };
        let file = file.map_err(|error| at(&path, error))?;
        Ok((file, path))
    }

    /// Room for files, in bytes.
    pub(super) fn free(&self) -> io::Result<u64> {
        Ok(sys::file::space(&self.dir)?.free)
    }

    /// Gives a finished part its final name, its `.meta` first.
    pub(super) fn commit(
        &self,
        part: &Path,
        key: &Key,
        len: u64,
        stored: SystemTime,
        head: &[u8],
    ) -> io::Result<()> {
        let body = self.path(key);
        let meta_path = meta_path(&body);
        if matches!(key, Key::Url(_)) {
            // Another body may lie under this name: gone before its `.meta` changes.
            remove_if_there(&body)?;
        }
        let meta = Meta {
            format: FORMAT,
            key: name(key),
            length: len,
            stored: humantime::format_rfc3339_millis(stored).to_string(),
        };
        let mut bytes = serde_json::to_vec(&meta)?;
        bytes.push(b'\n');
        bytes.extend_from_slice(head);
        let meta_part = part.with_extension("meta.part");
        let written = fs::write(&meta_part, &bytes)
            .and_then(|()| fs::rename(&meta_part, &meta_path))
            .and_then(|()| fs::rename(part, &body));
        if written.is_err() {
            // Nothing half-made stays behind, nor an older body without its `.meta`; the error that
            // counts is the first one.
            let _ = fs::remove_file(&meta_part);
            let _ = self.remove(key);
        }
        written
    }

    /// The body under the name of `key`, open for reading.
    pub(super) fn open_body(&self, key: &Key) -> io::Result<File> {
        File::open(self.path(key))
    }

    /// Opens a stored entry. `InvalidData` where its files do not agree with each other.
    pub(super) fn load(&self, key: &Key) -> io::Result<Loaded> {
        let path = self.path(key);
        let file = File::open(&path)?;
        let (meta, head) = read_meta(&path)?;
        let found = file.metadata()?;
        if fs::metadata(&path)?.ino() != found.ino() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "replaced while it was opened"));
        }
        let stored = humantime::parse_rfc3339(&meta.stored);
        match stored {
            Ok(stored)
                if meta.format == FORMAT
                    && meta.key == name(key)
                    && meta.length == found.len()
                    && found.is_file() =>
            {
                Ok(Loaded { file, head: head.into(), len: meta.length, stored })
            }
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{}: length or .meta do not agree", path.display()),
            )),
        }
    }

    /// What lies beside a body: when it was stored, and its head.
    pub(super) fn describe(&self, key: &Key) -> io::Result<(SystemTime, Vec<u8>)> {
        let (meta, head) = read_meta(&self.path(key))?;
        let stored = humantime::parse_rfc3339(&meta.stored).map_err(io::Error::other)?;
        Ok((stored, head))
    }

    /// A body of at most `max` bytes.
    pub(super) fn read(&self, key: &Key, max: u64) -> io::Result<Vec<u8>> {
        let file = self.open_body(key)?;
        if file.metadata()?.len() > max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut body = Vec::new();
        file.take(max).read_to_end(&mut body)?;
        Ok(body)
    }

    /// Removes an entry's files; readers keep what they have open.
    pub(super) fn remove(&self, key: &Key) -> io::Result<()> {
        let body = self.path(key);
        remove_if_there(&body)?;
        remove_if_there(&meta_path(&body))
    }

    /// Notes when an entry was last used.
    pub(super) fn touch(&self, key: &Key, used_ms: u64) -> io::Result<()> {
        let time = UNIX_EPOCH + Duration::from_millis(used_ms);
        File::open(self.path(key))?.set_modified(time)
    }

    /// Goes through all stored bodies in no order. A `.meta` whose body never came (the process
    /// died between the two names) is removed; what is no entry's file is left alone.
    pub(super) fn scan(&self, mut each: impl FnMut(Seen)) -> io::Result<()> {
        let (begun, hashes) = (SystemTime::now(), RandomState::new());
        for folder in FOLDERS {
            // Of the names with `.meta` less those without: 0 where all are in pairs. Looking for
            // each one's body by itself takes as long as all the rest.
            let mut unpaired = 0_u64;
            for found in fs::read_dir(self.dir.join(folder))? {
                let found = found?;
                let name = found.file_name();
                let Some(name) = name.to_str() else { continue };
                let body = name.strip_suffix(".meta");
                let Some(key) = key_of(folder, body.unwrap_or(name)) else { continue };
                if body.is_some() {
                    unpaired = unpaired.wrapping_add(hashes.hash_one(&key));
                    continue;
                }
                unpaired = unpaired.wrapping_sub(hashes.hash_one(&key));
                // An entry may be evicted between the listing and the look at it.
                let Ok(metadata) = found.metadata() else { continue };
                if metadata.is_file() {
                    let used = metadata.modified().unwrap_or(UNIX_EPOCH);
                    let stored_ms = millis(metadata.created().unwrap_or(used));
                    each(Seen { key, size: metadata.len(), used_ms: millis(used), stored_ms });
                }
            }
            // Where somebody else has the lock they may belong to a commit of his.
            if unpaired != 0 && self.lock.is_some() {
                self.remove_orphans(folder, begun)?;
            }
        }
        Ok(())
    }

    fn remove_orphans(&self, folder: &str, begun: SystemTime) -> io::Result<()> {
        for found in fs::read_dir(self.dir.join(folder))? {
            let found = found?;
            let name = found.file_name();
            if let Some(body) = name.to_str().and_then(|name| name.strip_suffix(".meta"))
                && key_of(folder, body).is_some()
            {
                remove_orphan(&found.path(), body, begun);
            }
        }
        Ok(())
    }

    fn remove_partial(&self) -> io::Result<()> {
        let folder = self.dir.join("partial");
        for found in fs::read_dir(&folder).map_err(|error| at(&folder, error))? {
            let path = found?.path();
            if path.extension().is_some_and(|extension| extension == "part") {
                fs::remove_file(&path).map_err(|error| at(&path, error))?;
            }
        }
        Ok(())
    }

    fn path(&self, key: &Key) -> PathBuf {
        let folder = match key {
            Key::Digest(digest) => match digest.algorithm() {
                Algorithm::Sha256 => FOLDERS[0],
                Algorithm::Sha512 => FOLDERS[1],
            },
            Key::Url(_) => FOLDERS[2],
        };
        self.dir.join(folder).join(key.hex())
    }
}

/// Hashes the first `len` bytes of a file, which must have as many.
pub(super) fn hash(file: &File, algorithm: Algorithm, len: u64) -> io::Result<Hasher> {
    let mut hasher = Hasher::new(algorithm);
    let mut buf = vec![0; 256 * 1024];
    let mut at = 0;
    while at < len {
        let piece = usize::try_from(len - at).unwrap_or(usize::MAX).min(buf.len());
        let got = file.read_at(&mut buf[..piece], at)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(&buf[..got]);
        at += got as u64;
    }
    Ok(hasher)
}

fn make_folders(dir: &Path) -> io::Result<()> {
    for folder in FOLDERS.iter().chain(&["partial"]) {
        let path = dir.join(folder);
        let made = fs::DirBuilder::new().recursive(true).mode(0o750).create(&path);
        made.map_err(|error| at(&path, error))?;
    }
    Ok(())
}

fn name(key: &Key) -> String {
    match key {
        Key::Digest(digest) => digest.to_string(),
        Key::Url(_) => format!("url:{}", key.hex()),
    }
}

fn key_of(folder: &str, name: &str) -> Option<Key> {
    let digest = |algorithm| Digest::from_hex(algorithm, name);
    match folder {
        "blobs/sha256" => digest(Algorithm::Sha256).map(Key::Digest),
        "blobs/sha512" => digest(Algorithm::Sha512).map(Key::Digest),
        _ => match digest(Algorithm::Sha256)? {
            Digest::Sha256(bytes) => Some(Key::Url(bytes)),
            Digest::Sha512(_) => None,
        },
    }
}

/// Beside this body.
fn read_meta(body: &Path) -> io::Result<(Meta, Vec<u8>)> {
    let mut reader = BufReader::new(File::open(meta_path(body))?.take(META_MAX));
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line)?;
    let mut head = Vec::new();
    reader.read_to_end(&mut head)?;
    Ok((serde_json::from_slice(&line)?, head))
}

fn meta_path(body: &Path) -> PathBuf {
    let mut name = body.as_os_str().to_owned();
    name.push(".meta");
    PathBuf::from(name)
}

fn remove_orphan(meta: &Path, body: &str, begun: SystemTime) {
    if fs::exists(meta.with_file_name(body)).unwrap_or(true) {
        return;
    }
    // A younger one may belong to a commit that is under way; file times lag behind the clock.
    let old = fs::metadata(meta)
        .and_then(|found| found.modified())
        .is_ok_and(|time| time + ORPHAN_AGE < begun);
    if old {
        // Whatever keeps it from being removed keeps it from being served, too.
        let _ = fs::remove_file(meta);
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
