//! `discobot-proxy doctor`: what it says of a client and of a pull, and its exit code.

mod support;

use std::fs;
use std::path::Path;

use serde_json::json;
use support::answer::Answer;
use support::body::Body;
use support::names;
use support::origin::Origin;
use support::proxy::{Finished, Proxy, Setup};

fn doctor(setup: &Setup, proxy: &str, root: &Path, more: &[&str]) -> Finished {
    let root = root.display().to_string();
    setup.run(&[&["doctor", "--proxy", proxy, "--root", &root], more].concat())
}

fn url(proxy: &Proxy) -> String {
    format!("http://{}", proxy.address())
}

fn write(root: &Path, below: &str, text: &str) {
    let path = root.join(below);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(path, text).expect("a file");
}

#[track_caller]
fn says(finished: &Finished, code: i32, parts: &[&str]) {
    assert_eq!(finished.code, Some(code), "{finished:?}");
    for part in parts {
        assert!(finished.stdout.contains(part), "no {part:?} in {}", finished.stdout);
    }
}

#[test]
fn a_client_is_told_what_it_lacks_until_it_lacks_nothing() {
    let setup = Setup::new();
    let proxy = setup.start();
    let url = url(&proxy);
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path();
    write(root, "usr/sbin/dockerd", "");
    write(root, "usr/bin/podman", "");
    let bundle = "etc/ssl/certs/ca-certificates.crt";
    write(root, bundle, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let line =
        |name: &str| format!("mend: curl -fsSL {url}/setup/{name} | sudo sh -s -- --restart");
    let seen = doctor(&setup, &url, root, &[]);
    says(&seen, 1, &["ok    proxy: ", "ok    clock: ", "fail  system store: "]);
    says(&seen, 1, &["fail  docker: ", &line("docker"), "fail  podman: ", &line("podman")]);
    assert!(!seen.stdout.contains("containerd"), "it is not installed: {}", seen.stdout);

    let ca = fs::read_to_string(setup.path("certs/ca.crt")).expect("the CA");
    // Other line ends and neighbours are the same certificate.
    let others = fs::read_to_string(root.join(bundle)).expect("the bundle");
    write(root, bundle, &format!("{others}{}", ca.replace('\n', "\r\n")));
    // A longer port is another proxy.
    write(root, "etc/docker/daemon.json", &format!("{{\"proxies\": {{\"p\": \"{url}0\"}}}}"));
    write(root, "etc/containers/containers.conf.d/x.conf", &format!("env = [\"A={url}\"]"));
    let seen = doctor(&setup, &url, root, &[]);
    says(&seen, 1, &["ok    system store: ", "fail  docker: ", "ok    podman: "]);
    write(root, "etc/docker/daemon.json", &format!("{{\"proxies\": {{\"p\": \"{url}\"}}}}"));
    let seen = doctor(&setup, &url, root, &[]);
    says(&seen, 0, &["ok    docker: "]);

    // A daemon that runs since before the change has not read it.
    write(root, "proc/7/comm", "dockerd\n");
    write(root, "proc/stat", "cpu 1\nbtime 1000000000\n");
    let fields = ["0"; 18].join(" ");
    write(root, "proc/7/stat", &format!("7 (docker d) S {fields} 500 0\n"));
    let seen = doctor(&setup, &url, root, &[]);
    says(&seen, 1, &["fail  docker: it runs since before", "systemctl restart docker"]);
    write(root, "proc/stat", "cpu 1\nbtime 9000000000\n");
    says(&doctor(&setup, &url, root, &[]), 0, &["ok    docker: "]);
}

#[test]
fn a_pull_is_tried_and_has_to_hit() {
    let index = |digest: &str| json!({"manifests": [{"digest": digest}]}).to_string();
    let origin = Origin::https(names::REGISTRY);
    let config = Body::bytes("{\"architecture\": \"any\"}");
    let digest = config.digest();
    let manifest = Body::bytes(json!({"config": {"digest": digest}}).to_string());
    let at = |kind: &str, name: &str| format!("/v2/lab/img/{kind}/{name}");
    origin.get(&at("manifests", "v1"), Answer::ok(&Body::bytes(index(&manifest.digest()))));
    origin.get(&at("manifests", &manifest.digest()), Answer::ok(&manifest));
    origin.get(&at("blobs", &digest), Answer::ok(&config));
    let image = format!("{}/lab/img:v1", origin.authority());
    let dir = tempfile::tempdir().expect("a directory");

    let setup = Setup::new();
    let proxy = setup.start();
    let seen = doctor(&setup, &url(&proxy), dir.path(), &[&image]);
    says(&seen, 1, &["ok    pull: ", "comes from its cache", "fail  system store: there is none"]);
    assert_eq!(proxy.stat("hits"), 1);
    let missing = format!("{}/lab/none:v1", origin.authority());
    says(&doctor(&setup, &url(&proxy), dir.path(), &[&missing]), 1, &["fail  pull: ", ": 404: "]);

    let setup = Setup::new().with(json!({"cache": {"enabled": false}}));
    let proxy = setup.start();
    let seen = doctor(&setup, &url(&proxy), dir.path(), &[&image]);
    says(&seen, 1, &["fail  pull: ", "its second pull is no hit", "mend: journalctl"]);
}

#[test]
fn a_token_for_nobody_is_fetched_where_the_challenge_says() {
    let origin = Origin::https(names::REGISTRY);
    let config = Body::bytes("{}");
    let manifest = Body::bytes(json!({"config": {"digest": config.digest()}}).to_string());
    let challenge =
        "Bearer realm=\"/token\",service=\"a registry\",scope=\"repository:lab/img:pull\"";
    for (kind, name, body) in [("manifests", "v1", &manifest), ("blobs", &config.digest(), &config)]
    {
        let answer = Answer::ok(body).wants("Bearer for-nobody", challenge);
        origin.get(&format!("/v2/lab/img/{kind}/{name}"), answer);
    }
    origin.get("/token", Answer::status(200, "{\"access_token\":\"for-nobody\"}"));
    let setup = Setup::new();
    let proxy = setup.start();
    let dir = tempfile::tempdir().expect("a directory");
    let image = format!("{}/lab/img:v1", origin.authority());
    says(&doctor(&setup, &url(&proxy), dir.path(), &[&image]), 1, &["comes from its cache"]);
    let asked = &origin.seen_at("/token")[0].target;
    assert!(asked.ends_with("service=a%20registry&scope=repository%3Alab%2Fimg%3Apull"), "{asked}");
}

#[test]
fn a_registrys_words_are_no_request_and_no_line_of_ours() {
    let origin = Origin::https(names::REGISTRY);
    let digest =
        "x HTTP/1.1\r\nHost: a\r\n\r\nDELETE http://b.test/ HTTP/1.1\r\nHost: b.test\r\n\r\n";
    let manifest = json!({"config": {"digest": digest}}).to_string();
    origin.get("/v2/lab/img/manifests/v1", Answer::status(200, Body::bytes(manifest)));
    let words = json!({"errors": [{"message": "x\n      mend: run this"}]}).to_string();
    origin.get("/v2/lab/img/manifests/v2", Answer::status(403, Body::bytes(words)));
    let setup = Setup::new();
    let proxy = setup.start();
    let dir = tempfile::tempdir().expect("a directory");
    for (tag, part) in [("v1", "names no digest"), ("v2", ": 403: \"x\\n      mend: run this\"")] {
        let image = format!("{}/lab/img:{tag}", origin.authority());
        let seen = doctor(&setup, &url(&proxy), dir.path(), &[&image]);
        says(&seen, 1, &["fail  pull: ", part]);
    }
    assert_eq!(origin.seen().len(), 2, "{:?}", origin.seen());
}

#[test]
fn a_proxy_that_is_not_there_is_said_and_bad_input_is_one_line() {
    let setup = Setup::new();
    let dir = tempfile::tempdir().expect("a directory");
    // A port that was just free.
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
    let nobody = format!("http://{}", free.expect("a port"));
    let seen = doctor(&setup, &nobody, dir.path(), &[]);
    says(&seen, 1, &["fail  proxy: ", "can't be reached", "mend: systemctl start discobot-proxy"]);
    for (proxy, image) in [("ftp://x", "alpine"), ("http://", "alpine"), (&*nobody, "a b")] {
        let seen = doctor(&setup, proxy, dir.path(), &[image]);
        assert_eq!((seen.code, seen.stdout.as_str()), (Some(2), ""), "{seen:?}");
        assert_eq!(seen.stderr.lines().count(), 1, "{seen:?}");
    }
}

#[test]
fn the_proxys_own_host_is_looked_at() {
    let setup = Setup::new();
    let proxy = setup.start();
    let seen = doctor(&setup, &url(&proxy), Path::new("/"), &[]);
    for what in [" room: ", " io_uring: ", " open files: ", " locked memory: "] {
        assert!(seen.stdout.contains(what), "no {what} in {}", seen.stdout);
    }
}

#[test]
fn health_is_the_running_proxys_and_its_absence_is_one_line() {
    let mut setup = Setup::new();
    let proxy = setup.start();
    let port = proxy.admin_address().port();
    // As a container's engine asks: with the configuration that the proxy was started with. A proxy
    // on all addresses is asked on this machine's own.
    for (bind, code) in [("127.0.0.1", 0), ("0.0.0.0", 0), ("127.0.0.2", 1)] {
        setup.set(json!({ "proxy": { "api_bind": bind, "api_port": port } }));
        let config = setup.write_config().display().to_string();
        let seen = setup.run(&["health", "--config", &config]);
        assert_eq!(seen.code, Some(code), "{bind}: {seen:?}");
        match code {
            0 => assert!(seen.stdout.contains("\"status\":\"ok\""), "{seen:?}"),
            _ => assert_eq!((&*seen.stdout, seen.stderr.lines().count()), ("", 1), "{seen:?}"),
        }
    }
}
