//! Real clients pull real images from real registries through the proxy, twice: the second time no
//! registry is asked for a blob, and the pull works with the registry gone once it has answered for
//! the manifest. What was pulled can be pushed again, elsewhere.
//!
//! `DISCOBOT_LONG=1` has them push a layer of a gigabyte.
//!
//! Each test has a network namespace of its own, and root is needed to make it (support/lab.rs).

mod support;

use std::thread;
use std::time::Duration;

use support::lab::clients::{Client, Containerd, Dockerd, Skopeo};
use support::lab::image::{Image, digest_of};
use support::lab::public::{Front, Public};
use support::lab::registry::Registry;
use support::lab::{Lab, Proxy, delete, listed_images};
use support::{seed, wait_until};

const REGISTRY: &str = "registry.test";
const OTHER: &str = "other.test";

/// Pulls each image twice from a docker-registry with TLS, counting in the registry's access log.
fn pulls_twice(lab: &Lab, client: fn(&Lab, &Proxy) -> Box<dyn Client>) {
    let registry = Registry::start(lab, REGISTRY, true);
    let proxy = Proxy::start(lab, &[REGISTRY], "info");
    let mut client = client(lab, &proxy);
    let images = [
        ("lab/small", Image::made(lab, "small", &[3000, 0, 70_000])),
        ("lab/large", Image::made(lab, "large", &[100 << 20])),
        ("lab/debian", Image::debian()),
    ];
    for (repository, image) in &images {
        registry.fill(lab, image, repository);
        let reference = format!("{REGISTRY}/{repository}:v1");
        let before = (registry.blob_gets(), proxy.stats(lab));

        client.pull(lab, &reference).unwrap();
        client.check(lab, &reference, image);
        client.forget(lab, &reference);
        let cold = (registry.blob_gets(), proxy.stats(lab));
        assert_eq!(cold.0 - before.0, image.blobs().count(), "{}", registry.log());
        assert!(cold.1.stores >= before.1.stores + image.blobs().count() as u64, "{cold:?}");

        for digest in image.blobs() {
            assert_eq!(digest_of(&proxy.stored(digest)), digest);
        }

        let name = format!("{REGISTRY}/{repository}");
        let listed = wait_until("the image is listed", || {
            listed_images(lab).into_iter().find(|listed| listed["image"] == name.as_str())
        });
        assert_eq!(listed["tags"], serde_json::json!(["v1"]), "{listed}");
        let stored = listed["stored"].as_u64().unwrap();
        let len = |digest| std::fs::metadata(proxy.stored(digest)).unwrap().len();
        assert!(stored >= image.blobs().map(len).sum(), "{listed}");

        client.pull(lab, &reference).unwrap();
        client.check(lab, &reference, image);
        client.forget(lab, &reference);
        let warm = (registry.blob_gets(), proxy.stats(lab));
        assert_eq!(warm.0, cold.0, "the second pull asked for blobs:\n{}", registry.log());
        assert!(warm.1.hits >= cold.1.hits + image.blobs().count() as u64, "{cold:?} {warm:?}");
        assert_eq!(warm.1.stores, cold.1.stores);
        assert_eq!(warm.1.errors, 0);
    }
}

/// Pulls from a registry that ends as soon as it has answered for the manifest.
fn pulls_with_the_registry_gone(lab: &Lab, client: fn(&Lab, &Proxy) -> Box<dyn Client>) {
    let image = Image::debian();
    let registry = Registry::start(lab, "origin.test", false);
    registry.fill(lab, &image, "lab/debian");
    let (front, served) = Front::start(lab, REGISTRY, registry);
    let proxy = Proxy::start(lab, &[REGISTRY], "info");
    let mut client = client(lab, &proxy);
    let reference = format!("{REGISTRY}/lab/debian:v1");
    client.pull(lab, &reference).unwrap();
    client.check(lab, &reference, &image);
    client.forget(lab, &reference);
    let asked = served.count("GET", "/blobs/");
    assert_eq!(asked, image.blobs().count());

    front.end_after_manifest();
    client.pull(lab, &reference).unwrap();
    client.check(lab, &reference, &image);
    assert!(front.has_ended());
    assert_eq!(served.count("GET", "/blobs/"), asked);
}

/// Pulls from a registry with the manners of a large public one.
fn pulls_from_a_public_registry(lab: &Lab, client: fn(&Lab, &Proxy) -> Box<dyn Client>) {
    let image = Image::debian();
    let life = Duration::from_secs(5);
    let public = Public::start(lab, &image, life);
    // Neither the token host nor the CDN is intercepted; only the proxy speaks to the CDN.
    let proxy = Proxy::start(lab, &[Public::NAME], "trace");
    let mut client = client(lab, &proxy);
    let reference = format!("{}/lab/app:v1", Public::NAME);
    let blobs = image.blobs().count();
    // Cold; from the cache; and again after a clearing, when each URL signed before has expired.
    for bodies in [blobs, blobs, 2 * blobs] {
        if bodies > blobs {
            thread::sleep(life);
            delete(lab, "/api/cache");
        }
        client.pull(lab, &reference).unwrap();
        client.check(lab, &reference, &image);
        client.forget(lab, &reference);
        assert_eq!(public.bodies(), bodies);
        assert_eq!(public.offences(), Vec::<String>::new());
    }
    assert!(public.tokens.count("GET", "/token") >= 3, "each pull fetches its own token");
    let log = proxy.log();
    assert!(log.contains("cache hit"));
    for secret in public.secrets() {
        let leak = log.lines().find(|line| line.contains(&secret));
        assert_eq!(leak, None, "a token or a signature was logged");
    }
}

/// Pulls an image and pushes it to another registry, which has none of the blobs that the proxy
/// has: each must get there. `body`: how this client says the length of a layer.
fn pushes_what_it_pulled(lab: &Lab, client: fn(&Lab, &Proxy) -> Box<dyn Client>, body: &str) {
    let large = if seed::is_long() { 1 << 30 } else { 50 << 20 };
    let image = Image::made(lab, "image", &[3000, large]);
    let registry = Registry::start(lab, REGISTRY, true);
    registry.fill(lab, &image, "lab/image");
    let other = Registry::start(lab, OTHER, true);
    let proxy = Proxy::start(lab, &[REGISTRY, OTHER], "debug");
    let mut client = client(lab, &proxy);
    let pulled = format!("{REGISTRY}/lab/image:v1");
    let before = proxy.status_number("VmRSS:");
    client.pull(lab, &pulled).unwrap();
    client.push(lab, &pulled, &format!("{OTHER}/lab/other:v1")).unwrap();
    other.check(lab, "lab/other", &image);
    let peak = proxy.status_number("VmHWM:");
    println!("{large} bytes pulled and pushed: {before} KiB grew to {peak} KiB");
    assert!(peak < before + 32 * 1024, "{before} KiB grew to {peak} KiB");
    let log = proxy.log();
    let sent = |line: &&str| line.contains(OTHER) && line.contains("/blobs/uploads/");
    let uploads: Vec<&str> = log.lines().filter(sent).collect();
    let layers = uploads.iter().filter(|line| line.contains(body));
    assert!(layers.count() >= image.layers.len(), "{body}: {uploads:#?}");
}

/// Pushes to another repository of the registry it pulled from, which can have what is there
/// mounted.
fn pushes_within_a_registry(lab: &Lab, client: fn(&Lab, &Proxy) -> Box<dyn Client>) {
    let image = Image::made(lab, "image", &[3000, 5 << 20]);
    let registry = Registry::start(lab, REGISTRY, true);
    registry.fill(lab, &image, "lab/image");
    let proxy = Proxy::start(lab, &[REGISTRY], "info");
    let mut client = client(lab, &proxy);
    let pulled = format!("{REGISTRY}/lab/image:v1");
    client.pull(lab, &pulled).unwrap();
    client.push(lab, &pulled, &format!("{REGISTRY}/lab/other:v1")).unwrap();
    registry.check(lab, "lab/other", &image);
}

fn skopeo(lab: &Lab, proxy: &Proxy) -> Box<dyn Client> {
    Box::new(Skopeo::new(lab, proxy))
}

fn containerd(lab: &Lab, proxy: &Proxy) -> Box<dyn Client> {
    Box::new(Containerd::start(lab, proxy))
}

fn dockerd(lab: &Lab, proxy: &Proxy) -> Box<dyn Client> {
    Box::new(Dockerd::start(lab, proxy))
}

#[test]
fn skopeo_pulls_twice() {
    pulls_twice(&Lab::new("skopeo"), skopeo);
}

#[test]
fn containerd_pulls_twice() {
    pulls_twice(&Lab::new("containerd"), containerd);
}

#[test]
fn dockerd_pulls_twice() {
    pulls_twice(&Lab::new("dockerd"), dockerd);
}

#[test]
fn skopeo_pulls_with_the_registry_gone() {
    pulls_with_the_registry_gone(&Lab::new("skopeo-gone"), skopeo);
}

#[test]
fn containerd_pulls_with_the_registry_gone() {
    pulls_with_the_registry_gone(&Lab::new("containerd-gone"), containerd);
}

#[test]
fn dockerd_pulls_with_the_registry_gone() {
    pulls_with_the_registry_gone(&Lab::new("dockerd-gone"), dockerd);
}

#[test]
fn skopeo_pulls_from_a_public_registry() {
    pulls_from_a_public_registry(&Lab::new("skopeo-public"), skopeo);
}

#[test]
fn containerd_pulls_from_a_public_registry() {
    pulls_from_a_public_registry(&Lab::new("containerd-public"), containerd);
}

#[test]
fn dockerd_pulls_from_a_public_registry() {
    pulls_from_a_public_registry(&Lab::new("dockerd-public"), dockerd);
}

#[test]
fn skopeo_pushes_what_it_pulled() {
    pushes_what_it_pulled(&Lab::new("skopeo-push"), skopeo, "method=\"PATCH\" body=Length(");
}

#[test]
fn containerd_pushes_what_it_pulled() {
    pushes_what_it_pulled(&Lab::new("containerd-push"), containerd, "method=\"PUT\" body=Length(");
}

#[test]
fn dockerd_pushes_what_it_pulled() {
    pushes_what_it_pulled(&Lab::new("dockerd-push"), dockerd, "method=\"PATCH\" body=Chunked");
}

#[test]
fn skopeo_pushes_within_a_registry() {
    pushes_within_a_registry(&Lab::new("skopeo-within"), skopeo);
}

#[test]
fn containerd_pushes_within_a_registry() {
    pushes_within_a_registry(&Lab::new("containerd-within"), containerd);
}

#[test]
fn dockerd_pushes_within_a_registry() {
    pushes_within_a_registry(&Lab::new("dockerd-within"), dockerd);
}
