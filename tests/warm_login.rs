//! `discobot-proxy warm` with the credentials that Docker and podman keep: whose they are, where
//! they go, and where they never go.

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::answer::Answer;
use support::body::{Body, hex};
use support::names;
use support::origin::{Origin, Seen, fresh_body};
use support::proxy::{Finished, Proxy, Setup, run};

const PASSWORD: &str = "s3cret-pass";
/// `lab` with that password.
const BASIC: &str = "Basic bGFiOnMzY3JldC1wYXNz";
const AUTH: &str = "bGFiOnMzY3JldC1wYXNz";
const WANTS_BASIC: &str = "Basic realm=\"lab\"";

fn at(kind: &str, name: &str) -> String {
    format!("/v2/lab/img/{kind}/{name}")
}

/// Serves `lab/img:v1` to those who say this, and challenges the others; its layer.
fn serve(origin: &Origin, authorization: &str, challenge: &str) -> Body {
    let (layer, config) = (fresh_body(100_000), fresh_body(100));
    let part = |body: &Body| json!({"digest": body.digest(), "size": body.len()});
    let manifest = json!({"schemaVersion": 2, "config": part(&config), "layers": [part(&layer)]});
    let manifest = Body::bytes(manifest.to_string());
    for (kind, name, body) in [
        ("manifests", "v1", &manifest),
        ("manifests", &manifest.digest(), &manifest),
        ("blobs", &config.digest(), &config),
        ("blobs", &layer.digest(), &layer),
    ] {
        let answer = Answer::ok(body).with("Docker-Content-Digest", body.digest());
        origin.get(&at(kind, name), answer.wants(authorization, challenge));
    }
    layer
}

/// A client's home: what it trusts beside the proxy's CA is the tests' authority.
struct Home {
    setup: Setup,
    proxy: Proxy,
    variables: Vec<(&'static str, String)>,
}

impl Home {
    fn new(setup: Setup) -> Home {
        let proxy = setup.start();
        let public = setup.path("upstream-ca.pem").display().to_string();
        Home { setup, proxy, variables: vec![("SSL_CERT_FILE", public)] }
    }

    fn file(&self, path: &str, text: &str) -> PathBuf {
        let path = self.setup.path(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
        fs::write(&path, text).expect("a file");
        path
    }

    fn docker(&self, document: &Value) -> PathBuf {
        self.file(".docker/config.json", &document.to_string())
    }

    /// Written by a process of its own: what this one has open for writing, others may inherit, and
    /// such a file can't be run (ETXTBSY).
    fn helper(&self, name: &str, script: &str) {
        let path = self.setup.path(&format!("bin/docker-credential-{name}"));
        fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
        let write = "printf %s \"$2\" >\"$1\" && chmod 755 \"$1\"";
        let mut command = Command::new("sh");
        command.args(["-c", write, "sh"]).arg(path).arg(script);
        assert!(command.status().expect("sh").success());
    }

    fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.variables.push((name, value.into()));
    }

    /// Neither it nor the proxy says the password.
    fn warm(&self, more: &[&str]) -> Finished {
        let mut command = self.setup.command();
        let url = format!("http://{}", self.proxy.address());
        let path = std::env::var("PATH").expect("PATH");
        let bin = self.setup.path("bin");
        command.args(["warm", "--proxy", &url]).args(more);
        command.env("HOME", self.setup.path("")).env("PATH", format!("{}:{path}", bin.display()));
        let seen = run(command.envs(self.variables.clone()));
        for text in [&seen.stdout, &seen.stderr, &self.proxy.output()] {
            assert!(!text.contains(PASSWORD) && !text.contains(AUTH), "{text}");
        }
        seen
    }
}

#[track_caller]
fn says(seen: &Finished, code: i32, parts: &[&str]) {
    assert_eq!(seen.code, Some(code), "{seen:?}");
    for part in parts {
        assert!(seen.stdout.contains(part) || seen.stderr.contains(part), "no {part:?}: {seen:?}");
    }
}

fn image(origin: &Origin) -> String {
    format!("{}/lab/img:v1", origin.authority())
}

fn said(seen: &[Seen]) -> Vec<String> {
    let mut said: Vec<String> =
        seen.iter().filter_map(|seen| Some(seen.field("Authorization")?.to_owned())).collect();
    said.sort();
    said.dedup();
    said
}

#[test]
fn a_password_of_dockers_file_opens_a_private_registry() {
    let origin = Origin::https(names::REGISTRY);
    serve(&origin, BASIC, WANTS_BASIC);
    let home = Home::new(Setup::new());
    let image = image(&origin);
    says(&home.warm(&[&image]), 1, &["it wants credentials, and none for", ".docker/config.json"]);
    let file = home.docker(&json!({"auths": {origin.authority(): {"auth": "bGFiOnh5eg=="}}}));
    let file = file.display().to_string();
    says(
        &home.warm(&[&image]),
        1,
        &["401: \"authentication required\", to the credentials of", &file],
    );
    home.docker(&json!({"auths": {origin.authority(): {"auth": AUTH}}}));
    says(&home.warm(&[&image]), 0, &["new 2 blobs, "]);
    // Nobody is told before he asks.
    assert_eq!(origin.seen().first().and_then(|seen| seen.field("Authorization")), None);
    let denied = Answer::status(403, "{\"errors\":[{\"message\":\"not for you\"}]}");
    origin.get(&at("manifests", "v1"), denied.wants(BASIC, WANTS_BASIC));
    says(&home.warm(&[&image]), 1, &["403: \"not for you\", to the credentials of", &file]);
    for text in ["{\"auths\": s3cret-pass", "{\"auths\": {\"x\": {\"auth\": \"s3cret-pass"] {
        home.file(".docker/config.json", text);
        says(&home.warm(&[&image]), 1, &[&file, "no JSON at line 1"]);
    }
    home.file(".docker/config.json", &" ".repeat(2 << 20));
    says(&home.warm(&[&image]), 1, &[&file, "more than 1048576 bytes"]);
}

#[test]
fn a_token_service_has_the_password_and_the_registry_its_token() {
    let origin = Origin::https(names::REGISTRY);
    let tokens = Origin::https(names::AUTH);
    let scope = "repository:lab/img:pull";
    let realm = tokens.url("/token");
    let challenge = format!("Bearer realm=\"{realm}\",service=\"lab\",scope=\"{scope}\"");
    serve(&origin, "Bearer for-lab", &challenge);
    let given = Answer::status(200, "{\"token\":\"for-lab\"}");
    tokens.get("/token", given.wants(BASIC, WANTS_BASIC));
    let home = Home::new(Setup::new());
    let image = image(&origin);
    says(&home.warm(&[&image]), 1, &["it wants credentials, and none for"]);
    home.docker(&json!({"auths": {
        origin.authority(): {"username": "lab", "password": PASSWORD},
        tokens.authority(): {"auth": "bGFiOnh5eg=="},
    }}));
    says(&home.warm(&["--jobs", "1", &image]), 0, &["new 2 blobs, "]);
    let asked = tokens.seen_at("/token");
    assert_eq!((asked.len(), said(&asked)), (2, vec![BASIC.to_owned()]));
    assert_eq!(asked[1].target, "/token?service=lab&scope=repository%3Alab%2Fimg%3Apull");
    assert_eq!(said(&origin.seen()), ["Bearer for-lab"]);
    let file = home.docker(&json!({"auths": {origin.authority(): {"auth": "bGFiOnh5eg=="}}}));
    let refused = format!("{} refuses the credentials of {}", tokens.url(""), file.display());
    says(&home.warm(&[&image]), 1, &[&refused]);
    // What it gives to nobody opens nothing here.
    home.docker(&json!({}));
    tokens.get("/token", Answer::status(200, "{\"token\":\"for-nobody\"}"));
    says(&home.warm(&[&image]), 1, &["401: ", "none for"]);
}

#[test]
fn an_identity_token_is_changed_for_another() {
    let origin = Origin::https(names::REGISTRY);
    let tokens = Origin::https(names::AUTH);
    let realm = tokens.url("/token");
    serve(&origin, "Bearer for-lab", &format!("Bearer realm=\"{realm}\",service=\"lab\""));
    tokens.on("POST", "/token", Answer::status(200, "{\"access_token\":\"for-lab\"}"));
    let home = Home::new(Setup::new());
    home.docker(&json!({"auths": {origin.authority(): {"identitytoken": PASSWORD}}}));
    says(&home.warm(&["--jobs", "1", &image(&origin)]), 0, &["new 2 blobs, "]);
    let asked = tokens.only("/token");
    let form = format!(
        "grant_type=refresh_token&client_id=discobot-proxy&refresh_token={PASSWORD}&service=lab"
    );
    assert_eq!(asked.body_sha256, Some(hex(&Sha256::digest(form))));
    assert_eq!(
        (asked.field("Authorization"), said(&origin.seen())),
        (None, vec!["Bearer for-lab".into()])
    );
}

#[test]
fn credentials_go_nowhere_without_tls() {
    let origin = Origin::https(names::REGISTRY);
    let tokens = Origin::http(names::AUTH);
    let realm = tokens.url("/token");
    let home = Home::new(Setup::new());
    for login in [json!({"auth": AUTH}), json!({"identitytoken": PASSWORD})] {
        home.docker(&json!({"auths": {origin.authority(): login}}));
        serve(&origin, "Bearer x", &format!("Bearer realm=\"{realm}\""));
        says(&home.warm(&[&image(&origin)]), 1, &["it wants tokens without TLS"]);
    }
    let (manifest, away) = (at("manifests", "v1"), tokens.url("/v1"));
    origin.get(&manifest, Answer::redirect(307, away).wants(BASIC, WANTS_BASIC));
    home.docker(&json!({"auths": {origin.authority(): {"auth": AUTH}}}));
    says(&home.warm(&[&image(&origin)]), 1, &["is without TLS"]);
    assert!(tokens.seen().is_empty(), "{:?}", tokens.seen());
}

#[test]
fn a_redirect_to_another_host_takes_no_credentials_along() {
    let origin = Origin::https(names::REGISTRY);
    let cdn = Origin::https(names::CDN);
    let layer = serve(&origin, BASIC, WANTS_BASIC);
    let away = Answer::redirect(307, cdn.url("/layer?signed=1"));
    origin.get(&at("blobs", &layer.digest()), away.wants(BASIC, WANTS_BASIC));
    cdn.get("/layer", Answer::ok(&layer).refuses_authorization());
    // Else it is the proxy that follows.
    let home = Home::new(Setup::new().with(json!({ "cache": { "enabled": false } })));
    home.docker(&json!({"auths": {origin.authority(): {"auth": AUTH}}}));
    says(&home.warm(&[&image(&origin)]), 0, &["new 2 blobs, "]);
    assert_eq!(cdn.only("/layer").target, "/layer?signed=1");
    // Nor does one that sends back.
    let other = at("blobs", "other");
    origin.get(&other, Answer::ok(&layer).refuses_authorization());
    cdn.get("/layer", Answer::redirect(307, origin.url(&other)));
    says(&home.warm(&[&image(&origin)]), 0, &["new 2 blobs, "]);
    origin.get(&at("manifests", "v1"), Answer::redirect(307, at("manifests", "v1")));
    let before = origin.seen().len();
    says(&home.warm(&[&image(&origin)]), 1, &["it redirects more than 5 times"]);
    assert_eq!(origin.seen().len() - before, 6);
}

#[test]
fn credentials_stay_here_where_the_ca_is_the_proxys_word() {
    let origin = Origin::https(names::REGISTRY);
    serve(&origin, BASIC, WANTS_BASIC);
    let mut home = Home::new(Setup::new());
    home.docker(&json!({"auths": {origin.authority(): {"auth": AUTH}}}));
    let own = home.setup.path("ca.pem");
    fs::rename(home.setup.path("certs"), home.setup.path("moved")).expect("no CA by its name");
    fs::copy(home.setup.path("moved/ca.crt"), &own).expect("a copy");
    let image = image(&origin);
    says(&home.warm(&[&image]), 1, &["it wants credentials: credentials only go", "--ca FILE"]);
    let tokens = Origin::https(names::AUTH);
    tokens.get("/token", Answer::status(401, "").wants(BASIC, WANTS_BASIC));
    let realm = tokens.url("/token");
    serve(&origin, "Bearer x", &format!("Bearer realm=\"{realm}\""));
    says(&home.warm(&[&image]), 1, &["--ca FILE"]);
    assert!(said(&origin.seen()).is_empty() && said(&tokens.seen()).is_empty());
    serve(&origin, BASIC, WANTS_BASIC);
    says(&home.warm(&["--ca", own.to_str().expect("UTF-8"), &image]), 0, &["new 2 blobs, "]);
    // The system's store is as good as a file.
    let both = [&own, &home.setup.path("upstream-ca.pem")]
        .map(|path| fs::read_to_string(path).expect("PEM"));
    let store = home.file("store.pem", &both.concat()).display().to_string();
    home.set("SSL_CERT_FILE", store);
    serve(&origin, BASIC, WANTS_BASIC);
    says(&home.warm(&[&image]), 0, &["new 2 blobs, "]);
}

#[test]
fn a_helper_is_asked_once_for_each_registry() {
    let origin = Origin::https(names::REGISTRY);
    let home = Home::new(Setup::new());
    let asked = home.setup.path("asked");
    let script = |answer: &str| {
        let log = asked.display();
        format!("#!/bin/sh\necho \"$@ $(cat)\" >>{log}\necho '{answer}'\n")
    };
    let login = json!({"ServerURL": "x", "Username": "lab", "Secret": PASSWORD}).to_string();
    home.helper("lab", &script(&login));
    home.helper("none", &script("credentials not found in native keychain"));
    home.helper("bad", &script(PASSWORD));
    let (host, image) = (origin.authority(), image(&origin));
    for document in [
        json!({"credHelpers": {&host: "lab"}, "credsStore": "bad"}),
        json!({"credsStore": "lab", "auths": {&host: {}}}),
    ] {
        home.docker(&document);
        serve(&origin, BASIC, WANTS_BASIC);
        let _ = fs::remove_file(&asked);
        says(&home.warm(&[&image, &image]), 0, &["2 images: new 2 blobs, "]);
        assert_eq!(fs::read_to_string(&asked).expect("asked"), format!("get {host}\n"));
    }
    home.docker(&json!({"credsStore": "none", "auths": {&host: {"auth": AUTH}}}));
    says(&home.warm(&[&image]), 0, &["already there 2, "]);
    let file = home.setup.path(".docker/config.json").display().to_string();
    for (name, why) in [
        ("bad", "docker-credential-bad get: it answers no login"),
        ("missing", "docker-credential-missing get: No such file"),
        ("../bin/docker-credential-lab", "names no credential helper"),
    ] {
        home.docker(&json!({"credsStore": name}));
        says(&home.warm(&[&image]), 1, &[&file, why]);
    }
}

#[test]
fn podmans_files_are_read_and_the_nearest_key_counts() {
    let origin = Origin::https(names::REGISTRY);
    serve(&origin, BASIC, WANTS_BASIC);
    let mut home = Home::new(Setup::new());
    let (host, image) = (origin.authority(), image(&origin));
    let wrong = json!({"auth": "bGFiOnh5eg=="});
    let scoped = json!({"auths": {
        host.clone(): wrong, format!("{host}/lab"): wrong, format!("{host}/lab/img"): {"auth": AUTH},
    }});
    home.file(".config/containers/auth.json", &scoped.to_string());
    says(&home.warm(&[&image]), 0, &["new 2 blobs, "]);
    let wrong = json!({"auths": {host.clone(): wrong}}).to_string();
    let runtime = home.file("run/containers/auth.json", &wrong).display().to_string();
    home.set("XDG_RUNTIME_DIR", home.setup.path("run").display().to_string());
    says(&home.warm(&[&image]), 1, &["to the credentials of", &runtime]);
    home.docker(&json!({"auths": {host.clone(): {"auth": AUTH}}}));
    says(&home.warm(&[&image]), 0, &["already there 2, "]);
    let named = home.file("named.json", &wrong).display().to_string();
    home.set("REGISTRY_AUTH_FILE", named.clone());
    says(&home.warm(&[&image]), 1, &["to the credentials of", &named]);
}

#[test]
fn what_was_warmed_with_credentials_stays_private() {
    let origin = Origin::https(names::REGISTRY);
    let layer = serve(&origin, BASIC, WANTS_BASIC);
    let home = Home::new(Setup::new().with(json!({ "cache": { "access": "verify" } })));
    home.docker(&json!({"auths": {origin.authority(): {"auth": AUTH}}}));
    says(&home.warm(&[&image(&origin)]), 0, &["new 2 blobs, "]);
    let path = at("blobs", &layer.digest());
    assert_eq!(home.proxy.get(&origin, &path).status, 401);
    let response = home.proxy.get_with(&origin, &path, &[("Authorization", "Basic bGFiOnh5eg==")]);
    assert_eq!(response.status, 401);
    let response = home.proxy.get_with(&origin, &path, &[("Authorization", BASIC)]);
    assert_eq!((response.status, response.field("X-Cache")), (200, Some("HIT")));
    response.assert_is(&layer);
}
