//! A CA that is limited to the hosts whose TLS is opened, and a CA that is replaced.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::json;
use support::answer::Answer;
use support::ca::{assert_refused, assert_verifies, config, mode};
use support::certs::Trust;
use support::client::{Client, dial};
use support::names;
use support::openssl::{shell, try_shell};
use support::origin::Origin;
use support::proxy::{Finished, Proxy, Setup, run};

fn ca(setup: &Setup, words: &[&str]) -> Finished {
    let config = config(setup);
    let finished = setup.run(&[&["ca"], words, &["--config", &config]].concat());
    assert_eq!(finished.code, Some(0), "{words:?}: {finished:?}");
    finished
}

fn read(setup: &Setup, name: &str) -> String {
    let path = setup.path("certs").join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Files of the folder whose names begin like this.
fn kept(setup: &Setup, start: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(setup.path("certs")).expect("certs").flatten();
    let mut found: Vec<PathBuf> = all
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(start))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

fn tls(keys: serde_json::Value) -> serde_json::Value {
    json!({ "tls": keys })
}

/// A connection through the proxy that trusts this root (PEM), if the proxy uses it.
fn connect(proxy: &Proxy, origin: &Origin, root: &str) -> Option<Client> {
    let tcp = dial(proxy.address(), None);
    Client::try_secure(tcp, &origin.authority(), &Trust::pem(root)).ok()
}

/// Whether openssl believes a certificate for this alternative name that the CA's key signed.
fn believed(setup: &Setup, name: &str) -> bool {
    let folder = setup.path("").display().to_string();
    let sign = format!(
        "cd {folder} && openssl req -newkey rsa:2048 -nodes -keyout x.key -subj '/CN=x y' \
         -out x.csr 2>&1 && printf 'subjectAltName={name}\n' >x.ext \
         && openssl x509 -req -in x.csr -CA certs/ca.crt -CAkey certs/ca.key -extfile x.ext \
         -out x.crt 2>&1"
    );
    shell(&sign, b"");
    let verify = format!(
        "cd {folder} && openssl verify -no-CAfile -no-CApath -CAfile certs/ca.crt x.crt 2>&1"
    );
    let (ok, out, _) = try_shell(&verify, b"");
    assert!(ok || out.contains("subtree violation"), "{name}: {out}");
    ok
}

#[test]
fn a_constrained_ca_can_sign_for_the_intercepted_names_alone() {
    let keys = json!({
        "constrain": true,
        "intercept": [names::REGISTRY, "*.deep.test", "*.ecr.*.cloud.test"],
    });
    let setup = Setup::new().with(tls(keys));
    let setup = setup.with(json!({ "headers": { names::OTHER: {} } }));
    let proxy = setup.start();
    let root = read(&setup, "ca.crt");
    let text = shell("openssl x509 -noout -text", root.as_bytes());
    assert!(text.contains("Name Constraints: critical"), "{text}");
    assert!(text.contains("TLS Web Server Authentication"), "neither mail nor code: {text}");
    for (name, good) in [
        ("DNS:registry.test", true),
        ("DNS:REGISTRY.test", true),
        ("DNS:a.deep.test", true),
        ("DNS:other.example", true),
        ("DNS:1.ecr.eu.cloud.test", true),
        ("DNS:second.test", false),
        ("DNS:xregistry.test", false),
        ("DNS:test", false),
        ("DNS:registry.test,DNS:evil.example", false),
        ("IP:127.0.0.2", false),
        ("IP:2001:db8::1", false),
    ] {
        assert_eq!(believed(&setup, name), good, "{name}");
    }
    // What the proxy does with it is believed.
    for host in [names::REGISTRY, names::DEEP, names::OTHER] {
        let origin = Origin::https(host);
        origin.get("/", Answer::status(200, host));
        let mut client = connect(&proxy, &origin, &root).expect("TLS");
        assert_eq!(client.get("/").text(), host);
        assert_verifies(&setup, &root, &client.peer_chain(), host);
    }
    assert!(!proxy.log().join("\n").contains("name constraints"), "{}", proxy.output());
    let finished = ca(&setup, &[]);
    assert_eq!((finished.stderr.as_str(), finished.stdout.trim()), ("", root.trim()));
}

#[test]
fn an_intercepted_address_is_permitted_and_no_other() {
    let keys = json!({ "constrain": true, "intercept": ["127.0.0.2", "::1", names::REGISTRY] });
    let setup = Setup::new().with(tls(keys));
    let proxy = setup.start();
    let root = read(&setup, "ca.crt");
    for host in ["127.0.0.2", "[::1]", names::REGISTRY] {
        let client = connect(&proxy, &Origin::https(host), &root).expect("TLS");
        assert_verifies(&setup, &root, &client.peer_chain(), host.trim_matches(['[', ']']));
    }
    for (name, good) in
        [("IP:127.0.0.2", true), ("IP:127.0.0.3", false), ("IP:::2", false), ("DNS:x.test", false)]
    {
        assert_eq!(believed(&setup, name), good, "{name}");
    }
    drop(proxy);
    // Addresses alone: then no name at all.
    let setup = Setup::new().with(tls(json!({ "constrain": true, "intercept": ["127.0.0.2"] })));
    ca(&setup, &[]);
    for (name, good) in [("IP:127.0.0.2", true), ("IP:127.0.0.3", false), ("DNS:x.test", false)] {
        assert_eq!(believed(&setup, name), good, "{name}");
    }
}

#[test]
fn a_ca_that_is_not_limited_is_refused_where_it_is_to_be() {
    let mut setup = Setup::new();
    let before = ca(&setup, &[]).stdout;
    setup.set(tls(json!({ "constrain": true })));
    let parts = ["certs/ca.crt", "tls.constrain", "name constraints", "discobot-proxy ca rotate"];
    assert_refused(&setup, &parts);
    assert_eq!(read(&setup, "ca.crt").trim(), before.trim(), "it is for its owner to say");
    ca(&setup, &["rotate"]);
    setup.start().stop();
    // A limited one does where none is asked for.
    setup.set(tls(json!({ "constrain": false })));
    let proxy = setup.start();
    assert!(!proxy.log().join("\n").contains("name constraints"), "{}", proxy.output());
}

#[test]
fn every_host_is_too_many_for_a_constrained_ca() {
    for (keys, patterns) in [
        (json!({ "tls": { "constrain": true, "intercept": ["*"] } }), "tls.intercept"),
        (json!({ "tls": { "constrain": true }, "headers": { "*": {} } }), "headers"),
    ] {
        let setup = Setup::new().with(keys);
        let finished = setup.run(&["check", "--config", &config(&setup)]);
        assert_eq!(finished.code, Some(2), "{patterns}: {finished:?}");
        for part in ["config.yaml:", "tls.constrain: found true, expected false", "\"*\""] {
            assert!(finished.stderr.contains(part), "{part}: {finished:?}");
        }
    }
}

#[test]
fn a_limited_ca_that_no_longer_fits_is_spoken_of() {
    let constrained = |hosts: &[&str]| tls(json!({ "constrain": true, "intercept": hosts }));
    let mut setup = Setup::new().with(constrained(&[names::REGISTRY, names::OTHER]));
    ca(&setup, &[]);
    setup.set(constrained(&[names::REGISTRY, names::SECOND]));
    let said = ca(&setup, &[]).stderr;
    let narrow = format!("do not permit {}: clients will refuse", names::SECOND);
    let wide = format!("permit {} too", names::OTHER);
    for part in [&narrow, &wide, "certs/ca.crt", "discobot-proxy ca rotate"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let proxy = setup.start();
    proxy.wait_log(&["WARN", &narrow]);
    proxy.wait_log(&["WARN", &wide]);
    let root = read(&setup, "ca.crt");
    assert!(connect(&proxy, &Origin::https(names::REGISTRY), &root).is_some());
    assert!(connect(&proxy, &Origin::https(names::SECOND), &root).is_none());
    drop(proxy);
    assert!(!ca(&setup, &["rotate"]).stderr.contains("warning"));
    let proxy = setup.start();
    let root = read(&setup, "ca.crt");
    assert!(connect(&proxy, &Origin::https(names::SECOND), &root).is_some());
}

#[test]
fn a_rotated_ca_is_used_from_the_next_start_on() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    origin.get("/v2/", Answer::status(200, "{}"));
    let (old, old_key) = (read(&setup, "ca.crt"), read(&setup, "ca.key"));
    let finished = ca(&setup, &["rotate"]);
    let (new, new_key) = (read(&setup, "ca.crt"), read(&setup, "ca.key"));
    assert_eq!(finished.stdout.trim(), new.trim());
    assert!(new != old && new_key != old_key);
    let subject = |pem: &str| shell("openssl x509 -noout -subject", pem.as_bytes());
    assert_ne!(subject(&new), subject(&old), "stores and clients look for names");

    let (certificates, keys) = (kept(&setup, "ca.crt.old-"), kept(&setup, "ca.key.old-"));
    assert_eq!((certificates.len(), keys.len()), (1, 1));
    assert_eq!(fs::read_to_string(&certificates[0]).expect("the old one"), old);
    assert_eq!(fs::read_to_string(&keys[0]).expect("the old key"), old_key);
    assert_eq!((mode(&keys[0]), mode(&setup.path("certs/ca.key"))), (0o600, 0o600));
    let path = |path: &PathBuf| path.display().to_string();
    for part in [&path(&certificates[0]), &path(&keys[0]), "every client", "restart", "SIGHUP"] {
        assert!(finished.stderr.contains(part), "{part}: {}", finished.stderr);
    }

    // What runs goes on as it was, a reopened log or not, for hosts it has not seen before too.
    proxy.signal("HUP");
    proxy.wait_log(&["log reopened"]);
    for host in [&origin, &Origin::https(names::SECOND)] {
        assert!(connect(&proxy, host, &old).is_some());
        assert!(connect(&proxy, host, &new).is_none());
    }
    proxy.stop();
    let proxy = setup.start();
    let mut client = connect(&proxy, &origin, &new).expect("TLS");
    assert_eq!(client.get("/v2/").text(), "{}");
    assert!(connect(&proxy, &origin, &old).is_none());
}

#[test]
fn no_ca_is_lost_by_rotating_again_and_a_spoilt_one_can_be_rotated() {
    let setup = Setup::new();
    // None is there yet.
    assert!(!ca(&setup, &["rotate"]).stderr.contains("kept"));
    let mut all = vec![read(&setup, "ca.key")];
    for _ in 0..4 {
        ca(&setup, &["rotate"]);
        all.push(read(&setup, "ca.key"));
    }
    all.pop();
    let kept_keys = kept(&setup, "ca.key.old-");
    let found: Vec<String> =
        kept_keys.iter().map(|path| fs::read_to_string(path).expect("a key")).collect();
    assert_eq!(found.len(), all.len());
    assert!(all.iter().all(|key| found.contains(key)));

    // A key that others could read is what one rotates for.
    let key = setup.path("certs/ca.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("chmod");
    ca(&setup, &["rotate"]);
    assert!(kept(&setup, "ca.key").iter().all(|path| mode(path) == 0o600));
    fs::write(setup.path("certs/ca.crt"), "spoilt").expect("ca.crt");
    ca(&setup, &["rotate"]);
    fs::remove_file(&key).expect("ca.key");
    ca(&setup, &["rotate"]);
    setup.start().stop();
}

/// Runs the command with the n-th call of this kind being its end, or failing; false once there are
/// not so many calls.
fn disturbed(setup: &Setup, words: &str, call: &str, how: &str, n: usize) -> bool {
    let program = env!("CARGO_BIN_EXE_discobot-proxy");
    let script = format!(
        "umask 000; exec strace -f -qq -o /dev/null -e trace={call} \
         -e inject={call}:{how}:when={n} {program} {words} --config {}",
        config(setup)
    );
    let finished = run(&mut setup.wrapped("sh", &["-c", &script]));
    assert!(!finished.stderr.contains("strace"), "{finished:?}");
    finished.code != Some(0)
}

/// As strace takes them; a question mark, since not every machine has every call.
const RENAME: &str = "?rename,renameat,?renameat2";

/// Calls that change something, and how the n-th of them goes wrong, for each n there is.
const DISTURBANCES: &[(&str, &str, &str)] = &[
    ("ca", "write", "signal=KILL"),
    ("ca", RENAME, "signal=KILL"),
    ("ca rotate", "?unlink,unlinkat", "signal=KILL"),
    ("ca rotate", "write", "signal=KILL"),
    ("ca rotate", "fsync", "signal=KILL"),
    ("ca rotate", RENAME, "signal=KILL"),
    ("ca rotate", "write", "error=ENOSPC"),
    ("ca rotate", RENAME, "error=EIO"),
];

#[test]
fn a_crash_or_a_failure_at_any_point_leaves_a_pair_that_can_be_used() {
    let mut halfway = 0;
    for (words, call, how) in DISTURBANCES {
        let mut n = 0;
        loop {
            n += 1;
            assert!(n < 50, "{words}: {call} {how}");
            let setup = Setup::new();
            let old = (*words != "ca").then(|| (ca(&setup, &[]).stdout, read(&setup, "ca.key")));
            let disturbed = disturbed(&setup, words, call, how, n);
            let there = |name: &str| setup.path("certs").join(name).exists();
            halfway += usize::from(there("ca.crt.new") && !there("ca.key.new"));
            check_after(&setup, old, &format!("{words}: {call} {how} {n}"));
            if !disturbed {
                break;
            }
        }
    }
    // Between the two renames, at the first start and later.
    assert!(halfway >= 3, "{halfway}");
}

/// There is a pair that fits, no key was exposed, and an old one that was replaced is still there.
fn check_after(setup: &Setup, old: Option<(String, String)>, what: &str) {
    let now = ca(setup, &[]).stdout;
    assert_eq!(now.trim(), read(setup, "ca.crt").trim(), "{what}");
    let folder = setup.path("certs").display().to_string();
    let own = format!("openssl x509 -pubkey -noout -in {folder}/ca.crt");
    let key = format!("openssl pkey -pubout -in {folder}/ca.key");
    assert_eq!(shell(&own, b""), shell(&key, b""), "{what}");
    for path in kept(setup, "ca.key") {
        assert_eq!(mode(&path), 0o600, "{what}: {}", path.display());
    }
    if let Some((certificate, key)) = old.filter(|(certificate, _)| *certificate != now) {
        let holds = |start: &str, wanted: &str| {
            let found = |path: &PathBuf| {
                fs::read_to_string(path).is_ok_and(|text| text.trim() == wanted.trim())
            };
            kept(setup, start).iter().any(found)
        };
        assert!(holds("ca.key.old-", &key) && holds("ca.crt.old-", &certificate), "{what}");
    }
    if setup.path("certs/ca.key.new").exists() {
        // What is left over is in nobody's way.
        ca(setup, &["rotate"]);
        let left: Vec<PathBuf> = [kept(setup, "ca.key.new"), kept(setup, "ca.crt.new")].concat();
        assert!(left.is_empty(), "{what}: {left:?}");
    }
}
