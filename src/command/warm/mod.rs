//! `warm`: pulls images through a running proxy and throws them away, so that they lie in its
//! cache. Each part is hashed here too: what is said to be there is whole.

mod body;
mod registry;
mod way;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use bytesize::ByteSize;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::Value;

use self::registry::Registry;
use self::way::{NoWay, Way};
use crate::command::login::Logins;
use crate::config::Config;
use crate::doctor::ask::Asked;
use crate::doctor::pull;
use crate::key::{Algorithm, Digest, Hasher, Image, Reference};
use crate::sys::sync::lock;

/// Attempts at one part.
const TRIES: u32 = 5;

/// Manifests of one image at most: an index may name others, and itself.
const MANIFESTS_MAX: usize = 1000;

/// Bytes of a part read at a time.
const READ: usize = 128 * 1024;

/// What to pull.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Where the proxy is, http://USER:PASSWORD@HOST:PORT where it wants a user; else HTTPS_PROXY,
    /// else this machine.
    #[arg(long, value_name = "URL")]
    proxy: Option<String>,
    /// The proxy's CA (PEM), trusted beside the system's store; else that of the configuration's
    /// tls.cert_dir, and, for images that need no credentials, what the proxy says it is.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// A file of images, one a line; # begins a comment, - is standard input.
    #[arg(long, value_name = "LIST")]
    file: Option<PathBuf>,
    /// Only this platform, as linux/amd64 or linux/arm/v7; may be repeated. Else all.
    #[arg(long = "platform", value_name = "OS/ARCH")]
    platforms: Vec<String>,
    /// Parts pulled at once.
    #[arg(long, value_name = "N", default_value_t = 4,
          value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
    /// The images, such as alpine or ghcr.io/org/app:1.2.
    #[arg(required_unless_present = "file")]
    images: Vec<String>,
}

/// What the parts of images were found to be.
#[derive(Default)]
struct Tally {
    new: u64,
    new_bytes: u64,
    there: u64,
    there_bytes: u64,
}

impl Tally {
    fn is_empty(&self) -> bool {
        self.new == 0 && self.there == 0
    }

    fn add(&mut self, other: &Tally) {
        self.new += other.new;
        self.new_bytes += other.new_bytes;
        self.there += other.there;
        self.there_bytes += other.there_bytes;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { new, new_bytes, there, there_bytes } = *self;
        let (fresh, old) = (ByteSize(new_bytes).display(), ByteSize(there_bytes).display());
        write!(f, "new {new} blobs, {}; already there {there}, {}", fresh.iec(), old.iec())
    }
}

/// Pulls them all, telling of each image what was new, and of each that failed why; `false` where
/// one did.
///
/// # Errors
/// A proxy, a list or an image that can't be meant, in one line.
pub fn run(
    config: &Config,
    options: &Options,
    tell: &mut dyn FnMut(&str),
    fail: &mut dyn FnMut(&dyn fmt::Display),
) -> Result<bool, String> {
    let mut names = options.images.clone();
    if let Some(file) = &options.file {
        names.extend(listed(file).map_err(|error| format!("{}: {error}", file.display()))?);
    }
    let images: Vec<Image> =
        names.iter().map(|name| Image::parse(name)).collect::<Result<_, _>>()?;
    if images.is_empty() {
        return Err("the list names no image".to_owned());
    }
    for platform in &options.platforms {
        if !matches!(platform.split('/').count(), 2 | 3) || platform.split('/').any(str::is_empty) {
            return Err(format!("--platform wants OS/ARCH, such as linux/amd64, not {platform:?}"));
        }
    }
    let way = match Way::find(config, options.proxy.as_deref(), options.ca.as_deref()) {
        Ok(way) => way,
        Err(NoWay::Usage(error)) => return Err(error),
        Err(NoWay::Gone(error)) => {
            fail(&error);
            return Ok(false);
        }
    };
    let logins = Logins::of_user();
    let (mut all, mut failed) = (Tally::default(), 0);
    for image in &images {
        let pulled = Registry::new(&way, &logins, image)
            .and_then(|registry| Puller { registry, options }.pull());
        let (tally, failures) = pulled.unwrap_or_else(|error| (Tally::default(), vec![error]));
        for failure in &failures {
            fail(&format_args!("{image}: {failure}"));
        }
        failed += usize::from(!failures.is_empty());
        // Of what failed there is nothing to count.
        if !tally.is_empty() {
            tell(&format!("{image}: {tally}"));
        }
        all.add(&tally);
    }
    let (number, failed_of) = (images.len(), format!(", {failed} failed"));
    let failed_of = if failed == 0 { "" } else { &failed_of };
    match all.is_empty() {
        true => tell(&format!("{number} images{failed_of}")),
        false => tell(&format!("{number} images{failed_of}: {all}")),
    }
    Ok(failed == 0)
}

fn listed(file: &Path) -> io::Result<Vec<String>> {
    let text: Box<dyn BufRead> = match file == Path::new("-") {
        true => Box::new(io::stdin().lock()),
        false => Box::new(BufReader::new(std::fs::File::open(file)?)),
    };
    let mut names = Vec::new();
    for line in text.lines() {
        let line = line?;
        let name = line.split('#').next().unwrap_or_default().trim();
        if !name.is_empty() {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

struct Puller<'a> {
    registry: Registry<'a>,
    options: &'a Options,
}

impl Puller<'_> {
    /// What its parts were found to be, and why some of them failed; the error is why there is
    /// nothing of it.
    fn pull(&self) -> Result<(Tally, Vec<String>), String> {
        let blobs: Vec<(Digest, u64)> = self.blobs()?.into_iter().collect();
        let (tally, failures) = (Mutex::new(Tally::default()), Mutex::new(Vec::new()));
        // Draws on a terminal only.
        let bars = MultiProgress::new();
        let sizes = blobs.iter().map(|(_, size)| *size).fold(0, u64::saturating_add);
        let total = bars.add(bar(sizes, "total".to_owned()));
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..usize::from(self.options.jobs).min(blobs.len()) {
                scope.spawn(|| {
                    while let Some((digest, size)) = blobs.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        let bar = bars.add(bar(*size, digest.hex().chars().take(12).collect()));
                        match self.blob(digest, *size, &bar) {
                            Ok(found) => lock(&tally).add(&found),
                            Err(error) => lock(&failures).push(format!("{digest}: {error}")),
                        }
                        bar.finish_and_clear();
                        total.inc(*size);
                    }
                });
            }
        });
        total.finish_and_clear();
        Ok((std::mem::take(&mut lock(&tally)), std::mem::take(&mut lock(&failures))))
    }

    /// Digests and sizes of all that the image's manifests name, which are pulled here.
    fn blobs(&self) -> Result<BTreeMap<Digest, u64>, String> {
        let mut blobs = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let mut left = vec![self.top()?];
        while let Some(digest) = left.pop() {
            if !seen.insert(digest.clone()) {
                continue;
            }
            if seen.len() > MANIFESTS_MAX {
                return Err(format!("more than {MANIFESTS_MAX} manifests"));
            }
            let manifest = self.manifest(&digest.to_string())?;
            if Digest::of(digest.algorithm(), &manifest.body) != digest {
                return Err(format!("the manifest {digest} has another digest"));
            }
            let manifest = pull::json(&manifest)?;
            if manifest["schemaVersion"] == 1 {
                return Err("a schema 1 image: push it again by a current client".to_owned());
            }
            let list = |name: &str| manifest[name].as_array().map_or(&[][..], Vec::as_slice);
            for part in list("manifests").iter().filter(|part| self.wants(&part["platform"])) {
                left.extend(pull::digest(part)?.and_then(Digest::parse));
            }
            // Foreign layers lie elsewhere: clients don't ask a registry for them.
            let own = |part: &&Value| part["urls"].as_array().is_none_or(Vec::is_empty);
            for part in list("layers").iter().chain([&manifest["config"]]).filter(own) {
                let Some(digest) = pull::digest(part)?.and_then(Digest::parse) else { continue };
                let size = part["size"].as_u64().ok_or("a part without a size")?;
                blobs.insert(digest, size);
            }
        }
        match blobs.is_empty() {
            true => Err("nothing to pull: no such platform, or no image".to_owned()),
            false => Ok(blobs),
        }
    }

    /// The digest of what the image's name stands for: stored, a tag's manifest is under that.
    fn top(&self) -> Result<Digest, String> {
        match self.registry.reference() {
            Reference::Digest(digest) => Ok(digest.clone()),
            Reference::Tag(tag) => Ok(Digest::of(Algorithm::Sha256, &self.manifest(tag)?.body)),
        }
    }

    fn manifest(&self, name: &str) -> Result<Asked, String> {
        let answer = self.registry.open("manifests", name)?;
        Asked::read((answer.head, answer.body))
    }

    fn wants(&self, platform: &Value) -> bool {
        let part = |name: &str| platform[name].as_str().unwrap_or_default();
        self.options.platforms.is_empty()
            || self.options.platforms.iter().any(|wanted| {
                let mut words = wanted.split('/');
                words.next() == Some(part("os"))
                    && words.next() == Some(part("architecture"))
                    && words.next().is_none_or(|variant| variant == part("variant"))
            })
    }

    /// One blob, again where it broke off: the proxy goes on meanwhile.
    fn blob(&self, digest: &Digest, size: u64, bar: &ProgressBar) -> Result<Tally, String> {
        let mut error = String::new();
        for attempt in 0..TRIES {
            if attempt > 0 {
                thread::sleep(Duration::from_millis(200) * attempt);
            }
            bar.set_position(0);
            let mut answer = self.registry.open("blobs", &digest.to_string())?;
            match check(&mut answer.body, digest, size, bar) {
                // A second attempt meets what the first one began.
                Ok(()) if attempt == 0 && answer.head.fields.get_str("x-cache") == Some("HIT") => {
                    return Ok(Tally { there: 1, there_bytes: size, ..Tally::default() });
                }
                Ok(()) => return Ok(Tally { new: 1, new_bytes: size, ..Tally::default() }),
                Err(why) => error = why,
            }
        }
        Err(error)
    }
}

/// Reads a body to its end: it must be of this size and digest.
fn check(
    body: &mut impl Read,
    digest: &Digest,
    size: u64,
    bar: &ProgressBar,
) -> Result<(), String> {
    let mut hasher = Hasher::new(digest.algorithm());
    let (mut read, mut piece) = (0, vec![0; READ]);
    loop {
        let got = body.read(&mut piece).map_err(|error| error.to_string())?;
        if got == 0 {
            break;
        }
        hasher.update(piece.get(..got).unwrap_or_default());
        read += got as u64;
        bar.inc(got as u64);
        if read > size {
            return Err(format!("more bytes came than the {size} its manifest says"));
        }
    }
    match hasher.finish() == *digest {
        _ if read != size => Err(format!("{read} bytes came, its manifest says {size}")),
        true => Ok(()),
        false => Err("it has another digest".to_owned()),
    }
}

fn bar(size: u64, name: String) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:12} {wide_bar} {bytes}/{total_bytes} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(size).with_style(style).with_message(name)
}
