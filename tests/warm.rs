//! `discobot-proxy warm`: images are pulled through the real proxy, checked, and counted.

mod support;

use std::fs;

use serde_json::{Value, json};
use support::answer::Answer;
use support::body::Body;
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::{Finished, Proxy, Setup};

fn at(kind: &str, name: &str) -> String {
    format!("/v2/lab/img/{kind}/{name}")
}

fn warm(setup: &Setup, proxy: &Proxy, more: &[&str]) -> Finished {
    let url = format!("http://{}", proxy.address());
    setup.run(&[&["warm", "--proxy", &url], more].concat())
}

fn part(body: &Body) -> Value {
    json!({"digest": body.digest(), "size": body.len()})
}

/// Serves an index of two platforms and an attestation, each of one layer; their layers.
fn serve(origin: &Origin) -> Vec<Body> {
    let platforms = [("linux", "amd64"), ("linux", "arm64"), ("unknown", "unknown")];
    let (mut entries, mut layers) = (Vec::new(), Vec::new());
    for (os, architecture) in platforms {
        let layer = fresh_body(300_000);
        let config = Body::bytes(json!({"for": layer.digest()}).to_string());
        let foreign = json!({"digest": fresh_body(9).digest(), "size": 9, "urls": ["https://x/"]});
        let manifest = json!({"schemaVersion": 2, "config": part(&config),
                              "layers": [part(&layer), foreign]});
        let manifest = Body::bytes(manifest.to_string());
        for blob in [&layer, &config] {
            origin.get(&at("blobs", &blob.digest()), Answer::ok(blob));
        }
        origin.get(&at("manifests", &manifest.digest()), Answer::ok(&manifest));
        let mut entry = part(&manifest);
        entry["platform"] = json!({"os": os, "architecture": architecture});
        entries.push(entry);
        layers.push(layer);
    }
    let index = Body::bytes(json!({"schemaVersion": 2, "manifests": entries}).to_string());
    origin.get(&at("manifests", "v1"), Answer::ok(&index));
    origin.get(&at("manifests", &index.digest()), Answer::ok(&index));
    layers
}

#[track_caller]
fn says(seen: &Finished, code: i32, parts: &[&str]) {
    assert_eq!(seen.code, Some(code), "{seen:?}");
    for part in parts {
        assert!(seen.stdout.contains(part) || seen.stderr.contains(part), "no {part:?}: {seen:?}");
    }
    assert!(!seen.stderr.contains('\u{1b}'), "bars where there is no terminal: {seen:?}");
}

#[test]
fn a_platform_then_all_then_nothing_is_new() {
    let origin = Origin::https(names::REGISTRY);
    let layers = serve(&origin);
    let setup = Setup::new();
    let proxy = setup.start();
    let image = format!("{}/lab/img:v1", origin.authority());
    says(&warm(&setup, &proxy, &["--platform", "linux/arm64", &image]), 0, &["new 2 blobs, "]);
    for (number, layer) in layers.iter().enumerate() {
        let asked = origin.seen_at(&at("blobs", &layer.digest())).len();
        assert_eq!(asked, usize::from(number == 1));
    }
    let seen = warm(&setup, &proxy, &[&image]);
    says(&seen, 0, &["new 4 blobs, ", "already there 2, "]);
    let list = setup.path("list");
    fs::write(&list, format!("# all of them\n\n{image} # twice\n{image}\n")).expect("a list");
    let list = list.to_str().expect("UTF-8");
    let seen = warm(&setup, &proxy, &["--file", list]);
    says(&seen, 0, &["2 images: new 0 blobs, 0 B; already there 12, "]);
}

#[test]
fn what_fails_is_named_and_the_rest_goes_on() {
    let origin = Origin::https(names::REGISTRY);
    serve(&origin);
    let lie = Body::bytes("not what it says");
    let digest = fresh_body(16).digest();
    let manifest = json!({"schemaVersion": 2, "config": {"digest": digest, "size": lie.len()}});
    let manifest = Body::bytes(manifest.to_string());
    origin.get(&at("manifests", "bad"), Answer::ok(&manifest));
    origin.get(&at("manifests", &manifest.digest()), Answer::ok(&manifest));
    origin.get(&at("blobs", &digest), Answer::ok(&lie));
    let old = Body::bytes("{\"schemaVersion\": 1}");
    origin.get(&at("manifests", "old"), Answer::ok(&old));
    origin.get(&at("manifests", &old.digest()), Answer::ok(&old));
    let setup = Setup::new();
    let proxy = setup.start();
    let image = |tag: &str| format!("{}/lab/img:{tag}", origin.authority());
    let all = ["bad", "old", "none", "v1"].map(image);
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let seen = warm(&setup, &proxy, &all);
    says(&seen, 1, &[&digest, "schema 1", ": 404: ", "4 images: new 6 blobs, "]);
    assert_eq!(seen.stderr.lines().count(), 3, "{seen:?}");
}

#[test]
fn a_token_for_nobody_is_fetched_and_a_busy_registry_waited_for() {
    let origin = Origin::https(names::REGISTRY);
    let config = fresh_body(1000);
    let manifest = json!({"schemaVersion": 2, "config": part(&config)}).to_string();
    let manifest = Body::bytes(manifest);
    let challenge = "Bearer realm=\"/token\",service=\"x\",scope=\"repository:lab/img:pull\"";
    let wants = |body: &Body| Answer::ok(body).wants("Bearer for-nobody", challenge);
    let busy = Answer::status(429, "").with("Retry-After", "0");
    origin.script("GET", &at("manifests", "v1"), [busy, wants(&manifest)]);
    origin.get(&at("manifests", &manifest.digest()), wants(&manifest));
    origin.get(&at("blobs", &config.digest()), wants(&config));
    origin.get("/token", Answer::status(200, "{\"token\":\"for-nobody\"}"));
    let setup = Setup::new();
    let proxy = setup.start();
    let image = format!("{}/lab/img:v1", origin.authority());
    says(&warm(&setup, &proxy, &[&image]), 0, &["new 1 blobs, "]);
    assert_eq!(origin.seen_at("/token").len(), 1);
}

#[test]
fn what_cant_be_meant_is_one_line() {
    let setup = Setup::new();
    let proxy = setup.start();
    for more in [&["a b"][..], &["--platform", "amd64", "alpine"], &["--file", "/none"]] {
        let seen = warm(&setup, &proxy, more);
        assert_eq!((seen.code, seen.stderr.lines().count()), (Some(2), 1), "{seen:?}");
    }
}
