//! Whom the proxy believes to be an upstream: who signed the certificate, or, where `tls.pins` has
//! the host, its key and nothing else.

mod support;

use std::fs;

use rcgen::date_time_ymd;
use serde_json::json;
use support::answer::Answer;
use support::certs::{Authority, Identity, self_signed};
use support::client::Response;
use support::names;
use support::openssl::shell;
use support::origin::{Origin, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::blob_path;

/// As docs/OPERATING.md has it, with the certificate from standard input.
const PIN: &str = "openssl x509 -pubkey -noout | openssl pkey -pubin -outform der \
                   | openssl dgst -sha256 -binary | base64";

fn pin(identity: &Identity) -> String {
    format!("sha256/{}", shell(PIN, identity.leaf_pem.as_bytes()).trim())
}

/// A blob of an origin with this identity, through the proxy.
fn pull(proxy: &Proxy, identity: &Identity) -> (Origin, Response) {
    let origin = Origin::https_with(names::REGISTRY, identity.clone());
    let body = fresh_body(1_000);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body));
    let fields = [("Authorization", "Bearer for-the-registry")];
    let response = proxy.get_with(&origin, &path, &fields);
    (origin, response)
}

#[track_caller]
fn assert_refused(pulled: &(Origin, Response), parts: &[&str]) {
    let (origin, response) = pulled;
    let message = response.assert_own_error(&[502]);
    assert_eq!(response.json()["errors"][0]["code"], "UPSTREAM_TLS", "{message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} in {message:?}");
    }
    assert_eq!(origin.seen().len(), 0, "a request, and what it carries, came to a stranger");
}

/// Certificates that are not the registry's, and what is said of each.
fn strangers() -> Vec<(Identity, &'static str)> {
    let trusted = Authority::trusted();
    let registry = &[names::REGISTRY][..];
    vec![
        (trusted.server(&[names::SECOND]), "not valid for name"),
        (trusted.server(&["127.0.0.2"]), "not valid for name"),
        (
            trusted.server_with(registry, |params| {
                params.not_before = date_time_ymd(2001, 1, 1);
                params.not_after = date_time_ymd(2002, 1, 1);
            }),
            "expired",
        ),
        (
            trusted.server_with(registry, |params| params.not_before = date_time_ymd(2990, 1, 1)),
            "not valid yet",
        ),
        (Authority::new("somebody else").server(registry), "UnknownIssuer"),
        (self_signed(registry), "UnknownIssuer"),
    ]
}

#[test]
fn a_certificate_that_is_not_the_registrys_is_refused() {
    let setup = Setup::new();
    let proxy = setup.start();
    for (identity, why) in strangers() {
        assert_refused(&pull(&proxy, &identity), &[why, names::REGISTRY]);
    }
    assert_eq!(pull(&proxy, &Authority::trusted().server(&[names::REGISTRY])).1.status, 200);
    assert_eq!(proxy.stat("stores"), 1);
}

#[test]
fn neither_is_it_behind_a_redirect() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let cdn = Origin::https_with(names::CDN, Authority::trusted().server(&[names::REGISTRY]));
    let body = fresh_body(1_000);
    let path = blob_path("lab/img", &body);
    cdn.get("/blob", Answer::ok(&body));
    origin.get(&path, Answer::redirect(307, cdn.url("/blob")));
    let message = proxy.get(&origin, &path).assert_own_error(&[502]);
    assert!(message.contains("not valid for name"), "{message}");
    assert_eq!(cdn.seen().len(), 0);
}

#[test]
fn a_certificate_shown_without_its_key_is_refused() {
    let identity = Authority::trusted().server(&[names::REGISTRY]);
    let setup = Setup::new();
    let proxy = setup.start();
    assert_refused(&pull(&proxy, &identity.impostor()), &["BadSignature"]);
    drop(proxy);
    let setup = setup.with(json!({ "tls": { "pins": { names::REGISTRY: [pin(&identity)] } } }));
    let proxy = setup.start();
    assert_refused(&pull(&proxy, &identity.impostor()), &["BadSignature"]);
    assert_eq!(pull(&proxy, &identity).1.status, 200);
}

#[test]
fn with_a_pin_the_key_alone_counts() {
    let mut strangers = strangers();
    strangers.push((Authority::trusted().server(&[names::REGISTRY]), "what would do without it"));
    let pins: Vec<String> = strangers.iter().map(|(identity, _)| pin(identity)).collect();
    let keys = json!({ names::REGISTRY: pins, "*.deep.test": [pins[0]] });
    let setup = Setup::new().with(json!({ "tls": { "pins": keys, "intercept": ["*"] } }));
    let proxy = setup.start();
    for (identity, why) in strangers {
        let (origin, response) = pull(&proxy, &identity);
        assert_eq!((response.status, origin.seen().len()), (200, 1), "{why}: {}", response.text());
    }
    // Any other key is refused, whoever signed it.
    for identity in
        [Authority::trusted().server(&[names::REGISTRY]), self_signed(&[names::REGISTRY])]
    {
        let shown = pin(&identity);
        assert_refused(&pull(&proxy, &identity), &["tls.pins", names::REGISTRY, &shown]);
    }
    // A wider pattern is for the hosts below it.
    let origin = Origin::https(names::DEEP);
    proxy.get(&origin, "/").assert_own_error(&[502]);
    // A host without a pin is known by who signed its certificate.
    let origin = Origin::https(names::SECOND);
    origin.get("/", Answer::status(200, "second"));
    assert_eq!(proxy.get(&origin, "/").text(), "second");
    let origin = Origin::https_with(names::SECOND, self_signed(&[names::SECOND]));
    proxy.get(&origin, "/").assert_own_error(&[502]);
}

#[test]
fn a_pin_does_without_any_trusted_ca() {
    let identity = self_signed(&[names::REGISTRY]);
    let tls = json!({ "upstream_ca": [], "pins": { names::REGISTRY: [pin(&identity)] } });
    let none = Setup::new();
    let empty = none.path("no-roots.pem");
    fs::write(&empty, "").expect("the file");
    let setup = none.with(json!({ "tls": tls }));
    let setup = setup.env("SSL_CERT_FILE", empty.to_str().expect("UTF-8"));
    let setup = setup.env("SSL_CERT_DIR", "/nonexistent");
    let proxy = setup.start();
    assert_eq!(pull(&proxy, &identity).1.status, 200);
    let origin = Origin::https(names::SECOND);
    proxy.get(&origin, "/").assert_own_error(&[502]);
}

#[test]
fn files_of_cas_that_cannot_be_used_are_refused_before_the_start() {
    let identity = self_signed(&[names::REGISTRY]);
    let rows: [(&str, Option<&str>, &str); 6] = [
        ("missing.pem", None, "No such file"),
        ("folder.pem/", None, ""),
        ("empty.pem", Some(""), "no PEM certificate"),
        ("words.pem", Some("just words\n"), "no PEM certificate"),
        ("key.pem", Some(&identity.key_pem), "no PEM certificate"),
        ("torn.pem", Some("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"), ""),
    ];
    let mut setup = Setup::new();
    let good = setup.path("upstream-ca.pem");
    for (name, content, why) in rows {
        let file = setup.path(name);
        match content {
            Some(content) => fs::write(&file, content).expect("the file"),
            None if name.ends_with('/') => fs::create_dir(&file).expect("the folder"),
            None => {}
        }
        setup.set(json!({ "tls": { "upstream_ca": [good, file] } }));
        let config = setup.write_config();
        let path = config.to_str().expect("UTF-8");
        for arguments in [&["check", "--config", path][..], &["--config", path]] {
            let finished = setup.run(arguments);
            assert_eq!(finished.code, Some(2), "{name}: {finished:?}");
            assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
            let shown = file.to_str().expect("UTF-8");
            for part in ["tls.upstream_ca[1]", "config.yaml:", shown, why] {
                assert!(finished.stderr.contains(part), "{part:?}: {finished:?}");
            }
            assert!(!finished.stdout.contains("tls:"), "{finished:?}");
        }
    }
    assert!(!setup.path("certs").exists() && !setup.path("cache").exists(), "half-started");
}
