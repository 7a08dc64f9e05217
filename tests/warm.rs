//! `discobot-proxy warm`: images are pulled through the real proxy, checked, and counted.

mod support;

use std::fs;
use std::net::SocketAddr;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use support::answer::{Answer, Ending, Gate};
use support::body::Body;
use support::certs::Authority;
use support::names;
use support::origin::{Origin, Seen, fresh_body};
use support::proxy::{Finished, Proxy, Setup, run};

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
    says(&seen, 1, &[&digest, "schema 1", ": 404: ", "4 images, 3 failed: new 6 blobs, "]);
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
fn the_way_is_connect_and_tls_by_the_proxys_ca() {
    let origin = Origin::https(names::REGISTRY);
    serve(&origin);
    let setup = Setup::new();
    let proxy = setup.start();
    let image = format!("{}/lab/img:v1", origin.authority());
    // On another machine there is no CA of this proxy.
    let elsewhere = Setup::new();
    let other = elsewhere.path("other.pem");
    fs::write(&other, Authority::new("another").pem()).expect("a CA");
    let seen = warm(&elsewhere, &proxy, &["--ca", other.to_str().expect("UTF-8"), &image]);
    says(&seen, 1, &["UnknownIssuer", "is --ca the CA of this proxy", "1 images, 1 failed"]);
    assert!(origin.seen().is_empty() && seen.stdout.lines().count() == 1, "{seen:?}");
    let own = setup.path("certs/ca.crt");
    let seen = warm(&elsewhere, &proxy, &["--ca", own.to_str().expect("UTF-8"), &image]);
    says(&seen, 0, &["new 6 blobs, "]);
    // By its word, as nothing is told it.
    says(&warm(&elsewhere, &proxy, &[&image]), 0, &["already there 6, "]);
    let seen = warm(&elsewhere, &proxy, &["--ca", "/none", &image]);
    assert_eq!((seen.code, seen.stderr.lines().count()), (Some(2), 1), "{seen:?}");
}

#[test]
fn what_the_proxy_does_not_open_is_not_called_warm() {
    let origin = Origin::https(names::OTHER);
    serve(&origin);
    let setup = Setup::new();
    let proxy = setup.start();
    let public = setup.path("upstream-ca.pem").display().to_string();
    let setup = setup.env("SSL_CERT_FILE", &public);
    let image = format!("{}/lab/img:v1", origin.authority());
    says(&warm(&setup, &proxy, &[&image]), 1, &["does not open the TLS", "tls.intercept"]);
}

/// Keeps a port from others without listening on it.
fn held(host: &str) -> (Socket, u16) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::new(names::address(host), 0).into()).expect("a port");
    let address = socket.local_addr().expect("its address");
    (socket, address.as_socket().expect("an IP address").port())
}

#[test]
fn what_is_not_there_counts_as_nothing() {
    let setup = Setup::new();
    let proxy = setup.start();
    let (_registry, port) = held(names::REGISTRY);
    let image = format!("{}:{port}/lab/img:v1", names::REGISTRY);
    let seen = warm(&setup, &proxy, &[&image]);
    says(&seen, 1, &["503: ", "1 images, 1 failed"]);
    assert!(!seen.stdout.contains("new"), "{seen:?}");
    let (_proxy, port) = held("127.0.0.1");
    let nowhere = format!("http://127.0.0.1:{port}");
    let seen = setup.run(&["warm", "--proxy", &nowhere, &image]);
    says(&seen, 1, &[&nowhere, "can't be reached"]);
    assert_eq!((&*seen.stdout, seen.stderr.lines().count()), ("", 1));
}

#[test]
fn wrong_bytes_are_noticed_here_too() {
    let origin = Origin::https(names::REGISTRY);
    let layer = fresh_body(300_000);
    let config = fresh_body(1000);
    let manifest = json!({"schemaVersion": 2, "config": part(&config), "layers": [part(&layer)]});
    let manifest = Body::bytes(manifest.to_string());
    for name in ["v1", &manifest.digest()] {
        origin.get(&at("manifests", name), Answer::ok(&manifest));
    }
    origin.get(&at("blobs", &config.digest()), Answer::ok(&config));
    let blob = at("blobs", &layer.digest());
    origin.get(&blob, Answer::ok(&layer).corrupt_at(9));
    // The proxy does not look at what it does not store.
    let setup = Setup::new().with(json!({ "cache": { "enabled": false } }));
    let proxy = setup.start();
    let image = format!("{}/lab/img:v1", origin.authority());
    let seen = warm(&setup, &proxy, &[&image]);
    says(&seen, 1, &[&layer.digest(), "it has another digest", "new 1 blobs, "]);
    origin.get(&blob, Answer::ok(&fresh_body(300_001)));
    says(&warm(&setup, &proxy, &[&image]), 1, &["more bytes came than the 300000"]);
    origin.get(&blob, Answer::ok(&layer).chunked());
    says(&warm(&setup, &proxy, &[&image]), 0, &["new 2 blobs, "]);
    let wrong = Body::bytes("{}");
    origin.get(&at("manifests", &manifest.digest()), Answer::ok(&wrong));
    says(&warm(&setup, &proxy, &[&image]), 1, &["has another digest"]);
}

#[test]
fn a_transfer_that_breaks_is_begun_again_or_reported() {
    let origin = Origin::https(names::REGISTRY);
    serve(&origin);
    let config = fresh_body(200_000);
    let manifest = Body::bytes(json!({"schemaVersion": 2, "config": part(&config)}).to_string());
    for name in ["v2", &manifest.digest()] {
        origin.get(&at("manifests", name), Answer::ok(&manifest));
    }
    let blob = at("blobs", &config.digest());
    let broken = || Answer::ok(&config).ends_at(100_000, Ending::Cut);
    origin.get(&blob, broken());
    let setup = Setup::new().with(json!({ "upstream": { "retries": 0 } }));
    let proxy = setup.start();
    let image = format!("{}/lab/img:v2", origin.authority());
    let seen = warm(&setup, &proxy, &[&image]);
    says(&seen, 1, &[&config.digest(), "1 images, 1 failed"]);
    assert!(!seen.stdout.contains("new"), "{seen:?}");
    origin.script("GET", &blob, [broken(), Answer::ok(&config)]);
    says(&warm(&setup, &proxy, &[&image]), 0, &["new 1 blobs, "]);
}

#[test]
fn no_more_parts_than_jobs_are_pulled_at_once() {
    let origin = Origin::https(names::REGISTRY);
    let layers: Vec<Body> = (0..6).map(|_| fresh_body(1000)).collect();
    let parts: Vec<Value> = layers.iter().map(part).collect();
    let manifest = Body::bytes(json!({"schemaVersion": 2, "layers": parts}).to_string());
    for name in ["v1", &manifest.digest()] {
        origin.get(&at("manifests", name), Answer::ok(&manifest));
    }
    let gate = Gate::new();
    let asked = || origin.seen().iter().filter(|seen| seen.target.contains("/blobs/")).count();
    for layer in &layers {
        origin.get(&at("blobs", &layer.digest()), Answer::ok(layer).gate_head(&gate));
    }
    let setup = Setup::new();
    let proxy = setup.start();
    let image = format!("{}/lab/img:v1", origin.authority());
    std::thread::scope(|scope| {
        let warmed = scope.spawn(|| warm(&setup, &proxy, &["--jobs", "2", &image]));
        gate.wait_arrivals(2);
        // Others pass while both wait: a third would have come as they do.
        for _ in 0..20 {
            assert_eq!(proxy.get(&origin, &at("manifests", "none")).status, 404);
        }
        assert_eq!(asked(), 2);
        gate.open();
        says(&warmed.join().expect("its end"), 0, &["new 6 blobs, "]);
    });
    for jobs in ["0", "65"] {
        assert_eq!(warm(&setup, &proxy, &["--jobs", jobs, &image]).code, Some(2));
    }
}

#[test]
fn a_list_may_come_by_standard_input() {
    let origin = Origin::https(names::REGISTRY);
    serve(&origin);
    let setup = Setup::new();
    let proxy = setup.start();
    let image = format!("{}/lab/img:v1", origin.authority());
    fs::write(setup.path("list"), format!("# none\n\n  {image}  # once\n")).expect("a list");
    let url = format!("http://{}", proxy.address());
    let from = |list: &str| {
        let mut command = setup.command();
        command.args(["warm", "--proxy", &url, "--file", "-"]);
        run(command.stdin(fs::File::open(setup.path(list)).expect("the list")))
    };
    says(&from("list"), 0, &["1 images: new 6 blobs, "]);
    fs::write(setup.path("empty"), "# none\n").expect("a list");
    says(&from("empty"), 2, &["the list names no image"]);
}

#[test]
fn a_terminal_has_bars_and_a_line_for_each_image() {
    let origin = Origin::https(names::REGISTRY);
    let layers = serve(&origin);
    let setup = Setup::new();
    let proxy = setup.start();
    let gate = Gate::new();
    let path = at("blobs", &layers[0].digest());
    origin.get(&path, Answer::ok(&layers[0]).gate_at(200_000, &gate));
    let image = format!("{}/lab/img:v1", origin.authority());
    let program = env!("CARGO_BIN_EXE_discobot-proxy");
    let line = format!("{program} warm --proxy http://{} {image}", proxy.address());
    // `script` gives it a terminal of its own.
    let mut command = setup.wrapped("script", &["-qec", &line, "/dev/null"]);
    command.env("TERM", "xterm").env("COLUMNS", "100");
    let seen = std::thread::scope(|scope| {
        let warmed = scope.spawn(move || run(&mut command));
        gate.wait_arrivals(1);
        gate.open();
        warmed.join().expect("its end")
    });
    assert_eq!(seen.code, Some(0), "{seen:?}");
    let name: String = layers[0].digest().chars().skip("sha256:".len()).take(12).collect();
    for part in [&*name, "total", "\u{1b}[", "new 6 blobs, "] {
        assert!(seen.stdout.contains(part), "no {part:?}: {seen:?}");
    }
}

#[test]
fn the_user_of_the_proxy_is_told_it_by_its_url() {
    let origin = Origin::https(names::REGISTRY);
    serve(&origin);
    let setup = Setup::new();
    let users = setup.path("users");
    // ann's password is `right-2y`.
    let ann = "ann:$2y$04$abcdefghijklmnopqrstuuchfW6qKGHPmWbpYPB8NwI5L.KjFn0Ti\n";
    fs::write(&users, ann).expect("the users");
    let setup = setup.with(json!({ "proxy": { "users": users.to_str().expect("UTF-8") } }));
    let proxy = setup.start();
    let image = format!("{}/lab/img:v1", origin.authority());
    says(&warm(&setup, &proxy, &[&image]), 1, &["the proxy wants a user: name it as http://USER"]);
    let run = |user: &str| {
        let url = format!("http://{user}@{}", proxy.address());
        setup.run(&["warm", "--proxy", &url, &image])
    };
    says(&run("ann:wrong"), 1, &["the proxy wants a user"]);
    says(&run("ann:right-2y"), 0, &["new 6 blobs, "]);
    let said = |seen: &Seen| seen.field("Proxy-Authorization").is_some();
    assert!(!origin.seen().iter().any(said), "{:?}", origin.seen());
}

#[test]
fn help_manual_and_completions_name_each_option() {
    let setup = Setup::new();
    let manual = setup.path("man");
    fs::create_dir(&manual).expect("a folder");
    let made = setup.run(&["man", manual.to_str().expect("UTF-8")]);
    assert_eq!(made.code, Some(0), "{made:?}");
    let page = fs::read_to_string(manual.join("discobot-proxy-warm.1")).expect("its page");
    let help = setup.run(&["warm", "--help"]).stdout;
    let bash = setup.run(&["completions", "bash"]).stdout;
    for option in ["ca", "platform", "file", "jobs", "proxy"] {
        assert!(help.contains(&format!("--{option} <")), "{help}");
        assert!(page.contains(&format!("\\-\\-{option}\\fR")), "{option}: {page}");
        assert!(bash.contains(&format!("--{option})")), "{option}: {bash}");
    }
    assert!(help.contains("credentials that Docker, podman"), "{help}");
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
