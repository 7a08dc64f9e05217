//! A user's own CA in place of ours: which are taken, and what is said of those that are not. openssl
//! makes them, and judges what comes out.

mod support;

use std::fs;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, date_time_ymd};
use serde_json::json;
use support::answer::Answer;
use support::ca::{assert_refused, assert_verifies, put};
use support::certs::Trust;
use support::client::Client;
use support::names;
use support::openssl::shell;
use support::origin::Origin;
use support::proxy::{Proxy, Setup};

/// A root's key and certificate by these commands, as `root.key` and `root.crt`.
fn make(setup: &Setup, commands: &str) {
    let folder = setup.path("").display().to_string();
    shell(&format!("cd {folder} && ({commands}) 2>&1"), b"");
}

fn read(setup: &Setup, name: &str) -> String {
    fs::read_to_string(setup.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Pulls through the proxy as a client that trusts `root` (PEM); what it was shown.
fn pull(proxy: &Proxy, root: &str) -> Vec<String> {
    let origin = Origin::https(names::REGISTRY);
    origin.get("/v2/", Answer::status(200, "{}"));
    let mut client = Client::secure(proxy.address(), &origin.authority(), &Trust::pem(root));
    assert_eq!(client.get("/v2/").text(), "{}");
    client.peer_chain()
}

/// The rest of an `openssl req` that makes a root. Some clients want it to the letter of RFC 5280.
const ROOT: &str =
    "-x509 -days 60 -subj '/CN=our root' -addext keyUsage=critical,keyCertSign -out root.crt";

#[test]
fn keys_of_every_usual_kind_and_form_are_taken() {
    for (what, commands) in [
        ("RSA, PKCS#8", format!("openssl req -newkey rsa:2048 -nodes -keyout root.key {ROOT}")),
        (
            "RSA, PKCS#1",
            format!(
                "openssl genrsa -traditional -out root.key 3072 && openssl req -key root.key {ROOT}"
            ),
        ),
        (
            "P-256, SEC 1 behind its parameters",
            format!(
                "openssl ecparam -name prime256v1 -genkey -out root.key \
                 && openssl req -key root.key {ROOT}"
            ),
        ),
        (
            "P-384, PKCS#8",
            format!(
                "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out root.key \
                 && openssl req -key root.key {ROOT}"
            ),
        ),
    ] {
        let setup = Setup::new();
        make(&setup, &commands);
        let (root, key) = (read(&setup, "root.crt"), read(&setup, "root.key"));
        put(&setup, &root, &key);
        let proxy = setup.start();
        let chain = pull(&proxy, &root);
        assert_eq!(chain.len(), 1, "{what}");
        assert_verifies(&setup, &root, &chain, names::REGISTRY);
        assert_eq!((read(&setup, "certs/ca.crt"), read(&setup, "certs/ca.key")), (root, key));
    }
}

#[test]
fn an_intermediate_is_sent_along_and_its_root_is_not() {
    let setup = Setup::new();
    make(
        &setup,
        &format!(
            "openssl req -newkey rsa:2048 -nodes -keyout root.key {ROOT} \
             && openssl req -newkey rsa:2048 -nodes -keyout ca.key -subj '/CN=between' -out ca.csr \
             && printf 'basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign\n\
             subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n' >ca.ext \
             && openssl x509 -req -days 60 -in ca.csr -CA root.crt -CAkey root.key \
             -extfile ca.ext -out ca.crt"
        ),
    );
    let (root, own, key) =
        (read(&setup, "root.crt"), read(&setup, "ca.crt"), read(&setup, "ca.key"));
    for file in [own.clone(), format!("{own}{root}"), format!("a comment\n{own}\n{root}\n")] {
        put(&setup, &file, &key);
        let proxy = setup.start();
        let chain = pull(&proxy, &root);
        assert_eq!((chain.len(), chain[1].trim()), (2, own.trim()));
        assert_verifies(&setup, &root, &chain, names::REGISTRY);
        proxy.stop();
    }
    // The root before the certificate of the key, or alone.
    for file in [format!("{root}{own}"), root] {
        put(&setup, &file, &key);
        let parts = ["ca.crt", "not the certificate of the key", "ca.key", "has to come first"];
        assert_refused(&setup, &parts);
    }
}

/// Names as large directories give them: parts of a kind twice, two parts in one, other alphabets.
#[test]
fn a_name_of_any_make_is_the_leafs_issuer_to_the_byte() {
    for name in [
        "/DC=example/DC=corp/OU=lab/OU=registries/CN=issuing CA",
        "/C=DE/O=Lab+OU=Registries/CN=one of two",
        "/CN=Zertifizierungsstelle für Größen/emailAddress=ca@corp.example",
        "/O=no common name",
    ] {
        let setup = Setup::new();
        make(
            &setup,
            &format!(
                "openssl req -newkey rsa:2048 -nodes -keyout root.key -x509 -days 60 -utf8 \
                 -addext keyUsage=critical,keyCertSign -multivalue-rdn -subj '{name}' -out root.crt"
            ),
        );
        let root = read(&setup, "root.crt");
        put(&setup, &root, &read(&setup, "root.key"));
        let proxy = setup.start();
        assert_verifies(&setup, &root, &pull(&proxy, &root), names::REGISTRY);
    }
}

#[test]
fn an_address_is_signed_for_by_a_limited_ca() {
    let setup =
        Setup::new().with(json!({ "tls": { "intercept": ["127.0.0.2", names::REGISTRY] } }));
    make(
        &setup,
        "openssl req -newkey rsa:2048 -nodes -keyout root.key -x509 -days 60 -subj /CN=limited \
         -addext keyUsage=critical,keyCertSign \
         -addext 'nameConstraints=critical,permitted;DNS:registry.test,\
         permitted;IP:127.0.0.0/255.0.0.0' -out root.crt",
    );
    let root = read(&setup, "root.crt");
    put(&setup, &root, &read(&setup, "root.key"));
    let proxy = setup.start();
    let origin = Origin::https("127.0.0.2");
    let client = Client::secure(proxy.address(), &origin.authority(), &Trust::pem(&root));
    assert_verifies(&setup, &root, &client.peer_chain(), "127.0.0.2");
    let log = proxy.log().join("\n");
    assert!(!log.contains("name constraints"), "{log}");
}

/// A self-signed certificate, after `change`, and its key.
fn own(change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    change(&mut params);
    (params.self_signed(&key).expect("a certificate").pem(), key.serialize_pem())
}

#[test]
fn what_clients_would_not_take_is_refused() {
    let good = own(|_| {});
    let other = own(|_| {});
    let rows = [
        (
            own(|params| params.not_after = date_time_ymd(2020, 2, 29)),
            "this CA ended on 2020-02-29",
        ),
        (
            own(|params| params.not_before = date_time_ymd(2990, 1, 1)),
            "this CA begins on 2990-01-01",
        ),
        (own(|params| params.is_ca = IsCa::NoCa), "not the certificate of a CA"),
        (own(|params| params.is_ca = IsCa::ExplicitNoCa), "not the certificate of a CA"),
        (
            own(|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]),
            "no keyCertSign",
        ),
        ((good.0.clone(), other.1), "not the certificate of the key"),
        ((String::new(), good.1.clone()), "no PEM certificate"),
        (("words".to_owned(), good.1.clone()), "no PEM certificate"),
        ((good.1.clone(), good.1.clone()), "no PEM certificate"),
        ((format!("{}\n{}", good.0, torn()), good.1.clone()), "no certificate"),
    ];
    let setup = Setup::new();
    for ((certificate, key), why) in rows {
        put(&setup, &certificate, &key);
        assert_refused(&setup, &["certs/ca.crt", why]);
    }
    put(&setup, &good.0, &good.1);
    setup.start().stop();
}

fn torn() -> &'static str {
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
}

#[test]
fn what_is_no_key_is_refused() {
    let setup = Setup::new();
    make(
        &setup,
        &format!(
            "openssl req -newkey rsa:2048 -nodes -keyout root.key {ROOT} \
             && openssl pkey -in root.key -aes256 -passout pass:x -out encrypted.key \
             && openssl rsa -in root.key -traditional -aes256 -passout pass:x -out older.key \
             && openssl pkey -in root.key -pubout -out public.key \
             && openssl genrsa -out short.key 1024"
        ),
    );
    let root = read(&setup, "root.crt");
    for (name, why) in [
        ("encrypted.key", "the key is encrypted"),
        ("older.key", "the key is encrypted"),
        ("public.key", "no usable private key"),
        ("short.key", "RSA of 2048 bits and more"),
        ("root.crt", "no usable private key"),
    ] {
        put(&setup, &root, &read(&setup, name));
        assert_refused(&setup, &["certs/ca.key", why]);
    }
    let long = format!("{}{}", read(&setup, "root.key"), "\n".repeat(1 << 20));
    put(&setup, &root, &long);
    assert_refused(&setup, &["certs/ca.key", "more than 1 MiB"]);
}
