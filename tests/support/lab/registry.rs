//! docker-registry, the real one, with its access log counted.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use super::image::{Image, digest_of};
use super::{Lab, Program, run};

/// A registry serving `https://<name>` with a certificate of the lab's upstream authority, or plain
/// HTTP on port 5000.
pub struct Registry {
    program: Program,
    pub address: SocketAddr,
    /// Whom alone it serves, as `USER:PASSWORD`.
    user: Option<String>,
}

impl Registry {
    pub fn start(lab: &Lab, name: &str, tls: bool) -> Registry {
        Registry::serve(lab, name, tls, None)
    }

    /// One with TLS that serves this user alone, by Basic.
    pub fn private(lab: &Lab, name: &str, user: &str, password: &str) -> Registry {
        Registry::serve(lab, name, true, Some((user, password)))
    }

    fn serve(lab: &Lab, name: &str, tls: bool, user: Option<(&str, &str)>) -> Registry {
        let ip = IpAddr::V4(lab.add_host(name));
        let dir = lab.path(name);
        fs::create_dir_all(&dir).unwrap();
        let address = SocketAddr::new(ip, if tls { 443 } else { 5000 });
        let mut http = format!("addr: \"{address}\"");
        if tls {
            let identity = lab.upstream.server(&[name]);
            fs::write(dir.join("srv.crt"), identity.leaf_pem).unwrap();
            fs::write(dir.join("srv.key"), identity.key_pem).unwrap();
            http +=
                &format!(", tls: {{certificate: {0}/srv.crt, key: {0}/srv.key}}", dir.display());
        }
        let auth = user.map_or_else(String::new, |(user, password)| {
            let file = dir.join("users");
            fs::write(&file, run(Command::new("htpasswd").args(["-Bbn", user, password]))).unwrap();
            format!("auth: {{htpasswd: {{realm: lab, path: {}}}}}\n", file.display())
        });
        let text = format!(
            "version: 0.1\n{auth}log: {{level: warn, accesslog: {{disabled: false}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}/data}}}}\nhttp: {{{http}}}\n",
            dir.display()
        );
        let config = dir.join("config.yml");
        fs::write(&config, text).unwrap();
        let mut command = lab.command("docker-registry");
        command.arg("serve").arg(&config);
        let program = lab.start_until(name, &mut command, || lab.is_listening(address));
        let user = user.map(|(user, password)| format!("{user}:{password}"));
        Registry { program, address, user }
    }

    /// Puts `image` there as `repository:v1`, digests unchanged.
    pub fn fill(&self, lab: &Lab, image: &Image, repository: &str) {
        let mut command = lab.command("skopeo");
        command.args([
            "--insecure-policy",
            "copy",
            "--preserve-digests",
            "--dest-tls-verify=false",
        ]);
        if let Some(user) = &self.user {
            command.arg("--dest-creds").arg(user);
        }
        run(command
            .arg(format!("oci:{}:v1", image.layout.display()))
            .arg(format!("docker://{}/{repository}:v1", self.address)));
    }

    /// Panics unless `repository:v1` is `image` and whole. Its manifest and the packing of its layers
    /// are the pushing client's.
    pub fn check(&self, lab: &Lab, repository: &str, image: &Image) {
        let out = lab.path("registry-check");
        run(lab
            .command("skopeo")
            .args(["--insecure-policy", "copy", "--preserve-digests", "--src-tls-verify=false"])
            .arg(format!("docker://{}/{repository}:v1", self.address))
            .arg(format!("dir:{}", out.display())));
        let config = out.join(image.config.trim_start_matches("sha256:"));
        assert_eq!(digest_of(&config), image.config);
        fs::remove_dir_all(out).unwrap();
    }

    /// How many GETs of blobs it has answered.
    pub fn blob_gets(&self) -> usize {
        let log = self.log();
        let asks = |line: &&str| line.contains("\"GET /v2/") && line.contains("/blobs/sha256:");
        log.lines().filter(asks).count()
    }

    /// Its access log so far.
    pub fn log(&self) -> String {
        self.program.printed()
    }

    /// Ends it at once, as a crash does.
    pub fn kill(&mut self) {
        self.program.kill();
    }
}
