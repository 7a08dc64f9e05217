//! The catalogue's file: one JSON document, written beside the old one and then given its name.
//! What of it can't be read is left out; the rest counts.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::catalogue::{Catalogue, Node};
use crate::key::{Digest, Image};
use crate::policy::rights::Part;

/// Another one is another format.
const FORMAT: u32 = 1;

/// Bytes that are read at most: a full catalogue has some thirty million.
const FILE_MAX: u64 = 128 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
struct Document {
    format: u32,
    /// Name, digest, when it was seen (milliseconds since 1970).
    names: Vec<(String, String, u64)>,
    manifests: Vec<Saved>,
    /// Name, since when.
    pins: Vec<(String, u64)>,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    digest: String,
    size: u64,
    index: bool,
    /// Digest and size.
    parts: Vec<(String, u64)>,
}

/// Reads what [`write`] wrote.
pub(super) fn read(path: &Path) -> io::Result<Catalogue> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(FILE_MAX).read_to_end(&mut bytes)?;
    let document: Document = serde_json::from_slice(&bytes)?;
    if document.format != FORMAT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "of another version"));
    }
    let mut catalogue = Catalogue::default();
    // First, for they keep names from being forgotten.
    for (image, since_ms) in document.pins {
        if let Ok(image) = Image::parse(&image) {
            catalogue.pin(image, since_ms);
        }
    }
    for (image, digest, seen_ms) in document.names {
        if let (Ok(image), Some(digest)) = (Image::parse(&image), Digest::parse(&digest)) {
            catalogue.name(image, digest, seen_ms);
        }
    }
    for Saved { digest, size, index, parts } in document.manifests {
        let part =
            |(digest, size): (String, u64)| Some(Part { digest: Digest::parse(&digest)?, size });
        if let Some(digest) = Digest::parse(&digest) {
            let parts = parts.into_iter().filter_map(part).collect();
            catalogue.learn(digest, Node { size, parts, is_index: index });
        }
    }
    Ok(catalogue)
}

/// Writes everything down.
pub(super) fn write(path: &Path, catalogue: &Catalogue) -> io::Result<()> {
    let saved = |(digest, node): (&Digest, &Node)| Saved {
        digest: digest.to_string(),
        size: node.size,
        index: node.is_index,
        parts: node.parts.iter().map(|part| (part.digest.to_string(), part.size)).collect(),
    };
    let names = catalogue.names();
    let document = Document {
        format: FORMAT,
        names: names
            .map(|(image, n)| (image.to_string(), n.digest.to_string(), n.seen_ms))
            .collect(),
        manifests: catalogue.manifests().map(saved).collect(),
        pins: catalogue.pins().map(|(image, since_ms)| (image.to_string(), since_ms)).collect(),
    };
    let part = path.with_extension("part");
    let mut options = fs::OpenOptions::new();
    // It tells the names of private images.
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    file.write_all(&serde_json::to_vec(&document)?)?;
    // Or a power cut leaves the new name and none of the bytes: the pins with them.
    file.sync_all()?;
    fs::rename(part, path)
}
