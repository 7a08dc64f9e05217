//! The two files of the CA. They belong together, and are replaced together.
//!
//! No file system renames two files at once, so one rename decides: both are written under other
//! names, the key gets its own name, then the certificate. What stops in between leaves the new
//! certificate as `ca.crt.new`, and whoever opens the CA next gives it its name.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::CaError;

/// A larger file is something else.
const FILE_MAX: u64 = 1 << 20;

/// How long another process may take to replace the CA.
const LOCKED_MAX: Duration = Duration::from_secs(10);

/// How often it is looked whether that is done.
const LOCKED_PAUSE: Duration = Duration::from_millis(20);

/// Mode of what has nothing to hide.
const PUBLIC: u32 = 0o644;

/// Mode of a key.
const SECRET: u32 = 0o600;

/// Old pairs of one second that are kept.
const OLD_MAX: usize = 100;

/// What the two files hold, PEM.
pub(super) struct Pair {
    pub(super) certificate: String,
    pub(super) key: Zeroizing<String>,
}

/// Where the two files are.
pub(super) struct Files {
    dir: PathBuf,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// Held while the files are replaced.
pub(super) struct Lock {
    _dir: File,
}

impl Files {
    pub(super) fn new(dir: &Path) -> Files {
        let (certificate, key) = (dir.join("ca.crt"), dir.join("ca.key"));
        Files { dir: dir.to_owned(), certificate, key }
    }

    /// Makes the folder where there is none.
    pub(super) fn make_dir(&self) -> Result<(), CaError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.dir);
        made.map_err(|why| file_error(&self.dir, why))
    }

    /// What the files hold; `None` where neither is there.
    pub(super) fn read(&self) -> Result<Option<Pair>, CaError> {
        let (certificate, key) = (read(&self.certificate)?, read_key(&self.key)?);
        let half = |there: &Path, missing: &Path| {
            Err(CaError::Half { there: there.to_owned(), missing: missing.to_owned() })
        };
        match (certificate, key) {
            (Some(certificate), Some(key)) => Ok(Some(Pair { certificate, key })),
            (Some(_), None) => half(&self.certificate, &self.key),
            (None, Some(_)) => half(&self.key, &self.certificate),
            (None, None) => Ok(None),
        }
    }

    /// The key with the certificate that may be meant to follow it.
    pub(super) fn read_pending(&self) -> Result<Option<Pair>, CaError> {
        let Some(certificate) = read(&self.pending())? else { return Ok(None) };
        let key = read_key(&self.key)?;
        Ok(key.map(|key| Pair { certificate, key }))
    }

    /// Gives the certificate that waits its name; the lock is held.
    pub(super) fn finish(&self, _: &Lock) -> Result<(), CaError> {
        rename(&self.pending(), &self.certificate)?;
        self.sync();
        Ok(())
    }

    /// Puts `pair` in place of what is there.
    pub(super) fn install(&self, pair: &Pair, _: &Lock) -> Result<(), CaError> {
        let (certificate, key) = (self.pending(), with(&self.key, "new"));
        // The certificate goes first and comes last: alone, it follows a key that has its name.
        for left_over in [&certificate, &key] {
            match fs::remove_file(left_over) {
                Err(why) if why.kind() != io::ErrorKind::NotFound => {
                    return Err(file_error(left_over, why));
                }
                _ => {}
            }
        }
        create(&key, pair.key.as_bytes(), SECRET)?;
        create(&certificate, pair.certificate.as_bytes(), PUBLIC)?;
        self.sync();
        rename(&key, &self.key)?;
        rename(&certificate, &self.certificate)?;
        self.sync();
        Ok(())
    }

    /// Copies what is there to files with the time in their names.
    pub(super) fn keep(&self, now: OffsetDateTime, _: &Lock) -> Result<Vec<PathBuf>, CaError> {
        let (date, time) = (now.date(), now.time());
        let mut stamp = format!(
            "old-{:04}{:02}{:02}T{:02}{:02}{:02}Z",
            date.year(),
            u8::from(date.month()),
            date.day(),
            time.hour(),
            time.minute(),
            time.second()
        );
        let taken = |stamp: &str| {
            [&self.certificate, &self.key].iter().any(|path| with(path, stamp).exists())
        };
        for n in 2..OLD_MAX {
            if !taken(&stamp) {
                break;
            }
            let plain = stamp.find('.').unwrap_or(stamp.len());
            stamp.truncate(plain);
            stamp.push_str(&format!(".{n}"));
        }
        let mut kept = Vec::new();
        for (path, mode) in [(&self.certificate, PUBLIC), (&self.key, SECRET)] {
            let bytes = match fs::read(path) {
                Ok(bytes) => bytes,
                Err(why) if why.kind() == io::ErrorKind::NotFound => continue,
                Err(why) => return Err(file_error(path, why)),
            };
            let copy = with(path, &stamp);
            create(&copy, &bytes, mode)?;
            kept.push(copy);
        }
        self.sync();
        Ok(kept)
    }

    /// Waits until no other process replaces the files, and keeps all others from it.
    pub(super) fn lock(&self) -> Result<Lock, CaError> {
        let dir = File::open(&self.dir).map_err(|why| file_error(&self.dir, why))?;
        let end = Instant::now() + LOCKED_MAX;
        while let Err(TryLockError::WouldBlock) = dir.try_lock() {
            if Instant::now() >= end {
                return Err(CaError::Busy { dir: self.dir.clone() });
            }
            thread::sleep(LOCKED_PAUSE);
        }
        // A file system without locks does with one process at a time.
        Ok(Lock { _dir: dir })
    }

    fn pending(&self) -> PathBuf {
        with(&self.certificate, "new")
    }

    /// Makes renames last over a power cut, where the file system can.
    fn sync(&self) {
        let _ = File::open(&self.dir).and_then(|dir| dir.sync_all());
    }
}

/// `path` with another extension behind its own.
fn with(path: &Path, extension: &str) -> PathBuf {
    path.with_added_extension(extension)
}

fn read(path: &Path) -> Result<Option<String>, CaError> {
    match File::open(path) {
        Ok(file) => text(path, file).map(Some),
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(file_error(path, why)),
    }
}

fn read_key(path: &Path) -> Result<Option<Zeroizing<String>>, CaError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(why) => return Err(file_error(path, why)),
    };
    // Of the open file: a name may stand for another one by now.
    let mode = file.metadata().map_err(|why| file_error(path, why))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(CaError::Readable { path: path.to_owned(), mode });
    }
    text(path, file).map(|text| Some(text.into()))
}

fn text(path: &Path, file: File) -> Result<String, CaError> {
    let mut text = String::new();
    let len = file.take(FILE_MAX).read_to_string(&mut text);
    match len.map_err(|why| file_error(path, why))? as u64 {
        FILE_MAX => {
            let why = "more than 1 MiB, which no certificate and no key has".to_owned();
            Err(CaError::Content { path: path.to_owned(), why })
        }
        _ => Ok(text),
    }
}

/// Makes a file that never had a wider mode than this one, whatever the umask is.
fn create(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CaError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        // A umask takes away what clients need to read, or we ourselves.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|why| file_error(path, why))
}

fn rename(from: &Path, to: &Path) -> Result<(), CaError> {
    fs::rename(from, to).map_err(|why| file_error(to, why))
}

fn file_error(path: &Path, why: io::Error) -> CaError {
    CaError::File { path: path.to_owned(), why }
}
