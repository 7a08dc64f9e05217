//! `discobot-proxy warm` from a real private registry, with a login that a real client has left.
//!
//! In a network namespace of its own; root is needed to make it (support/lab.rs).

mod support;

use std::fs;
use std::process::Command;

use support::lab::image::Image;
use support::lab::registry::Registry;
use support::lab::{Lab, Proxy, attempt, run};

const REGISTRY: &str = "private.test";
const IMAGE: &str = "private.test/lab/app:v1";

fn warm(lab: &Lab, logins: &str) -> Command {
    let mut command = lab.command(env!("CARGO_BIN_EXE_discobot-proxy"));
    command.arg("--config").arg(lab.path("proxy/config.yaml")).args(["warm", IMAGE]);
    command.env("REGISTRY_AUTH_FILE", lab.path(logins));
    command
}

#[test]
fn a_real_private_registry_is_warmed_by_a_real_login() {
    let lab = Lab::new("warm-private");
    let registry = Registry::private(&lab, REGISTRY, "lab", "s3cret-pass");
    let image = Image::made(&lab, "private", &[3000, 70_000, 5 << 20]);
    registry.fill(&lab, &image, "lab/app");
    let proxy = Proxy::start(&lab, &[REGISTRY], "info");

    let error = attempt(&mut warm(&lab, "none.json")).unwrap_err();
    assert!(error.contains("it wants credentials, and none for"), "{error}");

    // podman's and buildah's `login` write the same file.
    let upstream = lab.path("upstream.pem");
    fs::write(&upstream, lab.upstream.pem()).unwrap();
    let mut login = lab.command("skopeo");
    login.args(["login", "-u", "lab", "-p", "s3cret-pass", "--authfile"]);
    run(login.arg(lab.path("auth.json")).arg(REGISTRY).env("SSL_CERT_FILE", upstream));

    let said = run(&mut warm(&lab, "auth.json"));
    let blobs = image.blobs().count();
    assert!(said.contains(&format!("new {blobs} blobs, ")), "{said}");
    assert_eq!(registry.blob_gets(), blobs, "{}", registry.log());
    let said = run(&mut warm(&lab, "auth.json"));
    assert!(said.contains(&format!("already there {blobs}, ")), "{said}");
    assert_eq!(registry.blob_gets(), blobs, "{}", registry.log());
    assert!(!proxy.log().contains("s3cret-pass"), "{}", proxy.log());
}
