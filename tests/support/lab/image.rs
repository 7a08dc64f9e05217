//! Images as OCI layouts on disk: the source that every pull is compared with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::super::body::hex;
use super::{Lab, run};

/// One image of one platform, as `scripts/oci-layout.sh` writes it. Digests are "sha256:<hex>".
#[derive(Debug, Clone)]
pub struct Image {
    pub layout: PathBuf,
    pub manifest: String,
    pub config: String,
    pub layers: Vec<String>,
    /// Digests of the layers unpacked, as the configuration names them.
    pub diff_ids: Vec<String>,
}

impl Image {
    /// Makes an image of random bytes, a layer of each size.
    pub fn made(lab: &Lab, name: &str, sizes: &[usize]) -> Image {
        let layout = lab.path(name);
        let mut command = Command::new(script("oci-layout.sh"));
        command.arg(&layout).arg("v1");
        for (number, size) in sizes.iter().enumerate() {
            let dir = lab.path(&format!("{name}-{number}"));
            fs::create_dir_all(&dir).unwrap();
            let file = dir.join(format!("random-{number}"));
            run(Command::new("dd")
                .args(["if=/dev/urandom", "bs=64K", "iflag=fullblock,count_bytes"])
                .args([format!("count={size}"), format!("of={}", file.display())]));
            command.arg(dir);
        }
        run(&mut command);
        Image::open(layout)
    }

    /// A Debian base system in three layers, made once on a machine.
    pub fn debian() -> Image {
        static LAYOUT: OnceLock<PathBuf> = OnceLock::new();
        let layout = LAYOUT.get_or_init(|| {
            PathBuf::from(run(&mut Command::new(script("debian-image.sh"))).trim_end())
        });
        Image::open(layout.clone())
    }

    fn open(layout: PathBuf) -> Image {
        let index = read_json(&layout.join("index.json"));
        let manifest = text(&index["manifests"][0]["digest"]);
        let listed = read_json(&blob_path(&layout, &manifest));
        let config = text(&listed["config"]["digest"]);
        let configured = read_json(&blob_path(&layout, &config));
        let layers = listed["layers"].as_array().unwrap();
        let diff_ids = configured["rootfs"]["diff_ids"].as_array().unwrap();
        Image {
            manifest,
            config,
            layers: layers.iter().map(|layer| text(&layer["digest"])).collect(),
            diff_ids: diff_ids.iter().map(text).collect(),
            layout,
        }
    }

    /// Configuration and layers: what a client fetches by the blob route.
    pub fn blobs(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.config).chain(&self.layers).map(String::as_str)
    }

    pub fn blob_path(&self, digest: &str) -> PathBuf {
        blob_path(&self.layout, digest)
    }
}

/// The digest of a file's bytes, "sha256:<hex>".
pub fn digest_of(path: &Path) -> String {
    let mut file = fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut HashWriter(&mut hasher)).unwrap();
    format!("sha256:{}", hex(&hasher.finalize()))
}

struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)
}

fn blob_path(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}

fn read_json(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}
