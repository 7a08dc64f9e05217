//! Reading a whole cache again: is every body still what its name says? Needs no runtime and no
//! lock, so it works beside a proxy that runs.

use std::io;
use std::path::Path;

use super::disk::{self, Disk, Seen};
use crate::key::Key;

/// What a verification found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Entries that are whole.
    pub whole: u64,
    /// Entries that were damaged, and are removed.
    pub damaged: u64,
    /// Entries that went, or were replaced, while they were read.
    pub gone: u64,
    /// Bytes read.
    pub bytes: u64,
}

/// What is told while it goes on.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// So many bytes are to be read.
    Total(u64),
    /// So many more have been read.
    Read(u64),
    /// This entry was damaged; why, in words.
    Damaged(&'a Key, &'a str),
}

/// Reads every entry below `dir`; removes those whose files do not agree with their name, their
/// length or their `.meta`.
///
/// # Errors
/// A directory that can't be read, a damaged entry that can't be removed.
pub fn verify(dir: &Path, tell: &dyn Fn(Progress<'_>)) -> io::Result<Report> {
    let disk = Disk::beside(dir);
    let mut all = Vec::new();
    disk.scan(|seen| all.push(seen))?;
    tell(Progress::Total(all.iter().map(|seen| seen.size).sum()));
    let mut report = Report::default();
    for Seen { key, size, .. } in all {
        match check(&disk, &key) {
            Ok(Found::Whole(len)) => {
                report.whole += 1;
                report.bytes += len;
            }
            Ok(Found::Gone) => report.gone += 1,
            Ok(Found::Damaged(why)) => {
                disk.remove(&key)?;
                report.damaged += 1;
                tell(Progress::Damaged(&key, &why));
            }
            Err(error) => return Err(error),
        }
        tell(Progress::Read(size));
    }
    Ok(report)
}

enum Found {
    Whole(u64),
    Damaged(String),
    Gone,
}

fn check(disk: &Disk, key: &Key) -> io::Result<Found> {
    let loaded = match disk.load(key) {
        Ok(loaded) => loaded,
        Err(error) => {
            return match error.kind() {
                // The body's name is there and its `.meta` is not, or everything went meanwhile.
                io::ErrorKind::NotFound if disk.lacks_meta(key) => {
                    Ok(Found::Damaged("its .meta is missing".to_owned()))
                }
                io::ErrorKind::NotFound | io::ErrorKind::Interrupted => Ok(Found::Gone),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                    Ok(Found::Damaged(error.to_string()))
                }
                _ => Err(error),
            };
        }
    };
    let Key::Digest(digest) = key else { return Ok(Found::Whole(loaded.len)) };
    let hashed = disk::hash(&loaded.file, digest.algorithm(), loaded.len);
    let damage = match hashed {
        Ok(hasher) => {
            let found = hasher.finish();
            if found == *digest {
                return Ok(Found::Whole(loaded.len));
            }
            format!("its bytes hash to {found}")
        }
        Err(error) => format!("it can't be read: {error}"),
    };
    match disk.is_current(key, &loaded.file) {
        Ok(true) => Ok(Found::Damaged(damage)),
        _ => Ok(Found::Gone),
    }
}
