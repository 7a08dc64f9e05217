//! The proxy's CA as files, and what openssl makes of them.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::openssl::{shell, try_shell};
use super::proxy::Setup;

/// Permission bits of a file.
pub fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).permissions().mode()
        & 0o777
}

/// Writes the configuration; its path.
pub fn config(setup: &Setup) -> String {
    setup.write_config().to_str().expect("UTF-8").to_owned()
}

/// One line on standard error with these parts, from the start, `check` and `ca` alike.
#[track_caller]
pub fn assert_refused(setup: &Setup, parts: &[&str]) {
    let config = config(setup);
    for command in
        [&["--config", &config][..], &["check", "--config", &config], &["ca", "--config", &config]]
    {
        let finished = setup.run(command);
        assert_eq!(finished.code, Some(1), "{command:?}: {finished:?}");
        assert_eq!(finished.stderr.lines().count(), 1, "{command:?}: {finished:?}");
        for part in parts {
            assert!(finished.stderr.contains(part), "{part:?}: {finished:?}");
        }
    }
}

/// Certificates in the folder, by openssl, with its own key or none.
pub fn put(setup: &Setup, certificate: &str, key: &str) {
    let folder = setup.path("certs");
    fs::create_dir_all(&folder).expect("certs");
    fs::write(folder.join("ca.crt"), certificate).expect("ca.crt");
    fs::write(folder.join("ca.key"), key).expect("ca.key");
    fs::set_permissions(folder.join("ca.key"), fs::Permissions::from_mode(0o600)).expect("chmod");
}

/// Whether openssl takes what a client was shown for `host`, trusting `root` (PEM) alone.
#[track_caller]
pub fn assert_verifies(setup: &Setup, root: &str, chain: &[String], host: &str) {
    let (leaf, rest) = chain.split_first().expect("a leaf");
    let file = |name: &str, text: &str| {
        fs::write(setup.path(name), text).expect("a file");
        setup.path(name).display().to_string()
    };
    let (leaf, root) = (file("leaf.pem", leaf), file("root.pem", root));
    let rest = file("rest.pem", &rest.concat());
    let untrusted = if chain.len() > 1 { format!("-untrusted {rest}") } else { String::new() };
    let kind = if host.parse::<IpAddr>().is_ok() { "ip" } else { "hostname" };
    let line = format!(
        "openssl verify -x509_strict -no-CAfile -no-CApath -CAfile {root} {untrusted} \
         -purpose sslserver -verify_{kind} {host} {leaf}"
    );
    let (ok, out, err) = try_shell(&line, b"");
    assert!(ok, "{out}{err}\n{}", shell(&format!("openssl x509 -text -in {leaf}"), b""));
}
