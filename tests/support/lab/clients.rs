//! skopeo, containerd and dockerd as clients of the proxy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::image::{Image, digest_of};
use super::{Lab, Program, Proxy, attempt, run};

/// A client that pulls images through the proxy and can be asked what it got.
pub trait Client {
    /// Pulls `reference` (`host/repository:tag` or `…@digest`); `Err` is what the client said.
    fn pull(&mut self, lab: &Lab, reference: &str) -> Result<(), String>;
    /// Panics unless what the last pull of `reference` brought is `image`, byte for byte.
    fn check(&self, lab: &Lab, reference: &str, image: &Image);
    /// Pushes what was pulled as `pulled` to `to`.
    fn push(&mut self, lab: &Lab, pulled: &str, to: &str) -> Result<(), String>;
    /// Removes what was pulled as `reference`, so that the next pull fetches all of it again.
    fn forget(&mut self, lab: &Lab, reference: &str);
}

/// The one proxy setting that these clients share: the environment.
fn through_proxy<'a>(command: &'a mut Command, bundle: &Path) -> &'a mut Command {
    command.env("HTTPS_PROXY", Proxy::URL).env("SSL_CERT_FILE", bundle).env("SSL_CERT_DIR", "/none")
}

/// skopeo, copying to a directory.
pub struct Skopeo {
    bundle: PathBuf,
    out: PathBuf,
}

impl Skopeo {
    pub fn new(lab: &Lab, proxy: &Proxy) -> Skopeo {
        Skopeo { bundle: proxy.bundle.clone(), out: lab.path("skopeo-out") }
    }
}

impl Client for Skopeo {
    fn pull(&mut self, lab: &Lab, reference: &str) -> Result<(), String> {
        let mut command = lab.command("skopeo");
        command
            .args(["--insecure-policy", "copy", "--preserve-digests"])
            .arg(format!("docker://{reference}"))
            .arg(format!("dir:{}", self.out.display()));
        attempt(through_proxy(&mut command, &self.bundle)).map(drop)
    }

    fn check(&self, _lab: &Lab, _reference: &str, image: &Image) {
        assert_eq!(digest_of(&self.out.join("manifest.json")), image.manifest);
        for digest in image.blobs() {
            let hex = digest.trim_start_matches("sha256:");
            assert_eq!(digest_of(&self.out.join(hex)), digest);
        }
    }

    fn push(&mut self, lab: &Lab, _pulled: &str, to: &str) -> Result<(), String> {
        let mut command = lab.command("skopeo");
        command
            .args(["--insecure-policy", "copy", "--preserve-digests"])
            .arg(format!("dir:{}", self.out.display()))
            .arg(format!("docker://{to}"));
        attempt(through_proxy(&mut command, &self.bundle)).map(drop)
    }

    fn forget(&mut self, _lab: &Lab, _reference: &str) {
        fs::remove_dir_all(&self.out).unwrap();
    }
}

/// containerd with a root of its own, pulled into by ctr.
pub struct Containerd {
    bundle: PathBuf,
    socket: PathBuf,
    root: PathBuf,
    _program: Program,
}

impl Containerd {
    pub fn start(lab: &Lab, proxy: &Proxy) -> Containerd {
        let dir = lab.path("containerd");
        fs::create_dir_all(&dir).unwrap();
        let (socket, root) = (dir.join("socket"), dir.join("root"));
        let text = format!(
            "version = 2\nroot = {root:?}\nstate = {:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {socket:?}\n\
             [ttrpc]\naddress = {:?}\n",
            dir.join("state"),
            dir.join("ttrpc"),
        );
        let config = dir.join("config.toml");
        fs::write(&config, text).unwrap();
        let mut command = lab.command("containerd");
        command.arg("--config").arg(&config);
        let command = through_proxy(&mut command, &proxy.bundle);
        let answers =
            || lab.command("ctr").arg("-a").arg(&socket).arg("version").output().unwrap().status;
        let program = lab.start_until("containerd", command, || answers().success());
        Containerd { bundle: proxy.bundle.clone(), socket, root, _program: program }
    }

    fn ctr(&self, lab: &Lab) -> Command {
        let mut command = lab.command("ctr");
        command.arg("-a").arg(&self.socket);
        command
    }
}

impl Client for Containerd {
    fn pull(&mut self, lab: &Lab, reference: &str) -> Result<(), String> {
        // ctr of containerd 1.6 fetches itself; later ones leave it to the daemon.
        let mut command = self.ctr(lab);
        command.args(["image", "pull", reference]);
        attempt(through_proxy(&mut command, &self.bundle)).map(drop)
    }

    fn check(&self, lab: &Lab, reference: &str, image: &Image) {
        let listed = run(self.ctr(lab).args(["image", "ls", &format!("name=={reference}")]));
        assert!(listed.contains(&image.manifest), "{reference} is {}:\n{listed}", image.manifest);
        let blobs = self.root.join("io.containerd.content.v1.content/blobs/sha256");
        for digest in image.blobs().chain([image.manifest.as_str()]) {
            let hex = digest.trim_start_matches("sha256:");
            assert_eq!(digest_of(&blobs.join(hex)), digest);
        }
    }

    fn push(&mut self, lab: &Lab, pulled: &str, to: &str) -> Result<(), String> {
        let mut command = self.ctr(lab);
        command.args(["image", "push", to, pulled]);
        attempt(through_proxy(&mut command, &self.bundle)).map(drop)
    }

    fn forget(&mut self, lab: &Lab, reference: &str) {
        run(self.ctr(lab).args(["image", "rm", "--sync", reference]));
        assert_eq!(run(self.ctr(lab).args(["content", "ls", "-q"])).trim(), "");
    }
}

/// dockerd with a root of its own.
pub struct Dockerd {
    address: String,
    program: Program,
}

impl Dockerd {
    pub fn start(lab: &Lab, proxy: &Proxy) -> Dockerd {
        let dir = lab.path("dockerd");
        fs::create_dir_all(&dir).unwrap();
        let at = |name: &str| dir.join(name).display().to_string();
        let address = format!("unix://{}", at("socket"));
        let mut command = lab.command("dockerd");
        command
            .args(["--data-root", &at("root"), "--exec-root", &at("exec"), "-H", &address])
            .args(["--pidfile", &at("pid"), "--config-file", &at("daemon.json")])
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none"]);
        fs::write(at("daemon.json"), "{}").unwrap();
        let command = through_proxy(&mut command, &proxy.bundle);
        let answers = || docker(lab, &address).arg("version").output().unwrap().status;
        let program = lab.start_until("dockerd", command, || answers().success());
        Dockerd { address, program }
    }
}

fn docker(lab: &Lab, address: &str) -> Command {
    let mut command = lab.command("docker");
    command.args(["-H", address]);
    command
}

impl Client for Dockerd {
    fn pull(&mut self, lab: &Lab, reference: &str) -> Result<(), String> {
        attempt(docker(lab, &self.address).args(["pull", reference])).map(drop)
    }

    fn check(&self, lab: &Lab, reference: &str, image: &Image) {
        // dockerd keeps no layer as it was sent; it unpacks what hashes to the layer's digest and
        // registers it where the unpacked bytes hash to the diff ID.
        let inspected = run(docker(lab, &self.address).args(["image", "inspect", reference]));
        let inspected: Value = serde_json::from_str(&inspected).unwrap();
        let found = &inspected[0];
        assert_eq!(found["Id"], Value::from(image.config.as_str()));
        assert_eq!(found["RootFS"]["Layers"], Value::from(image.diff_ids.clone()));
        let digests = found["RepoDigests"].to_string();
        assert!(digests.contains(&image.manifest), "{digests} has {}", image.manifest);
    }

    fn push(&mut self, lab: &Lab, pulled: &str, to: &str) -> Result<(), String> {
        run(docker(lab, &self.address).args(["tag", pulled, to]));
        attempt(docker(lab, &self.address).args(["push", to])).map(drop)
    }

    fn forget(&mut self, lab: &Lab, reference: &str) {
        run(docker(lab, &self.address).args(["rmi", reference]));
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        // By its own shutdown, so that it ends its containerd and unmounts.
        self.program.stop();
    }
}
