//! TLS in the kernel: the hand-over, and all that may follow on a connection that was handed over.
//!
//! Few machines have kernel TLS. Where there is none, rustls answers the same requests, and that is
//! what these tests see; `scripts/ktls-vm.sh` runs them where it must be the kernel.

mod support;

use std::io::Write;

use rustls::{AlertDescription, CipherSuite};
use serde_json::json;
use support::answer::Answer;
use support::body::Body;
use support::certs::Trust;
use support::client::{Client, Payload};
use support::origin::fresh_body;
use support::proxy::{KTLS, Proxy, Setup};
use support::registry::Registry;
use support::wire::Stream;

/// Every suite offered: its name in `/health`, whether it is of TLS 1.2, how a client asks for it.
const SUITES: [(&str, bool, CipherSuite); 6] = [
    ("TLS 1.3 AES-128-GCM", false, CipherSuite::TLS13_AES_128_GCM_SHA256),
    ("TLS 1.3 AES-256-GCM", false, CipherSuite::TLS13_AES_256_GCM_SHA384),
    ("TLS 1.3 ChaCha20-Poly1305", false, CipherSuite::TLS13_CHACHA20_POLY1305_SHA256),
    ("TLS 1.2 AES-128-GCM", true, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("TLS 1.2 AES-256-GCM", true, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("TLS 1.2 ChaCha20-Poly1305", true, CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
];

/// A proxy that hands over what the kernel takes, and a large entry.
struct Scene {
    proxy: Proxy,
    registry: Registry,
    body: Body,
    path: String,
    _setup: Setup,
}

impl Scene {
    fn new(len: u64) -> Scene {
        let setup = Setup::new().with(json!({ "tls": { "ktls": "on" } }));
        let (proxy, registry, body) = (setup.start(), Registry::https(), fresh_body(len));
        let path = registry.blob("lab/img", &body);
        proxy.get(&registry.main, &path).assert_is(&body);
        proxy.wait_stat("stores", 1);
        Scene { proxy, registry, body, path, _setup: setup }
    }

    fn trust(&self, (_, tls12, suite): (&str, bool, CipherSuite)) -> Trust {
        let mut trust = self.proxy.trust();
        (trust.tls12, trust.suite) = (tls12, Some(suite));
        trust
    }

    fn client(&self, suite: (&str, bool, CipherSuite)) -> Client {
        Client::secure(self.proxy.address(), &self.registry.main.authority(), &self.trust(suite))
    }

    fn get(&self, client: &mut Client) {
        let response = client.get(&self.registry.main.url(&self.path));
        response.assert_is(&self.body);
        response.assert_hit();
    }

    /// A client that has had the large entry, and whether the kernel speaks its TLS since.
    fn handed_over(&self, suite: (&str, bool, CipherSuite)) -> (Client, bool) {
        let before = (self.proxy.stat("ktls"), sessions());
        let mut client = self.client(suite);
        self.get(&mut client);
        let kernel = self.kernel_takes(suite.0);
        assert_eq!(self.proxy.stat("ktls"), before.0 + u64::from(kernel), "{suite:?}");
        // The whole kernel's, so that others may have moved it as well; but nobody took it back.
        let moved = [0, 1].map(|n| sessions()[n] > before.1[n]);
        assert!(!kernel || moved == [true; 2], "{suite:?}: {moved:?}");
        (client, kernel)
    }

    fn kernel_takes(&self, name: &str) -> bool {
        let health = self.proxy.admin("GET", "/health", &[]).json();
        let suites = health["ktls"]["suites"].as_array().expect("suites").clone();
        let takes = suites.contains(&json!(name));
        assert!(takes || std::env::var_os(KTLS).is_none(), "{KTLS} is set: {health}");
        assert_eq!(health["ktls"]["why"].is_string(), suites.is_empty(), "{health}");
        takes
    }
}

/// Sessions the kernel has begun to send and to receive on.
fn sessions() -> [u64; 2] {
    let text = std::fs::read_to_string("/proc/net/tls_stat").unwrap_or_default();
    ["TlsTxSw", "TlsRxSw"].map(|name| {
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(name));
        line.and_then(|line| line.split_whitespace().nth(1))
            .map_or(0, |n| n.parse().expect("a number"))
    })
}

/// Reads on to the end of the stream, which the closing alert must come before.
#[track_caller]
fn assert_ends_clean(client: &mut Client) {
    let end = client.wire.read_some(&mut [0; 1]);
    assert_eq!(end.expect("no closing alert"), 0, "more after the answer");
}

fn session(client: &mut Client) -> &mut rustls::ClientConnection {
    let Stream::Client(tls) = &mut client.wire.stream else { panic!("no TLS here") };
    &mut tls.conn
}

#[test]
fn whatever_follows_a_large_hit_comes_whole_in_every_suite() {
    let scene = Scene::new(3_000_001);
    let registry = &scene.registry;
    let url = |path: &str| registry.main.url(path);
    for (n, suite) in SUITES.into_iter().enumerate() {
        let (mut client, _) = scene.handed_over(suite);
        // A miss, and the small hit it leaves.
        let small = fresh_body(700);
        let path = registry.blob("lab/img", &small);
        client.get(&url(&path)).assert_is(&small);
        let hit = client.get(&url(&path));
        hit.assert_is(&small);
        hit.assert_hit();
        // Of the large one a part, its head, nothing, and all again.
        let part = client.get_with(&url(&scene.path), &[("Range", "bytes=1000000-2999999")]);
        part.assert_part(&scene.body, (1_000_000, 3_000_000));
        let part = client.get_with(&url(&scene.path), &[("Range", "bytes=5000000-")]);
        part.assert_unsatisfiable(scene.body.len());
        let head = client.request("HEAD", &url(&scene.path), &[], Payload::None);
        assert_eq!((head.status, head.len), (200, 0));
        let etag = format!("\"{}\"", scene.body.digest());
        let same = client.get_with(&url(&scene.path), &[("If-None-Match", &etag)]);
        assert_eq!((same.status, same.len), (304, 0));
        scene.get(&mut client);
        // A large miss, an answer in chunks, one past the cache, an error of upstream's.
        let large = fresh_body(2_000_000);
        client.get(&url(&registry.blob("lab/img", &large))).assert_is(&large);
        registry.main.get(&format!("/chunks/{n}"), Answer::ok(&large).chunked());
        client.get(&url(&format!("/chunks/{n}"))).assert_is(&large);
        assert_eq!(client.get(&url("/nowhere")).status, 404);
        // A body of the client's, with its length and in chunks.
        registry.main.on("POST", "/upload", Answer::status(201, "done"));
        for payload in [Payload::Length(&large), Payload::Chunked(&large)] {
            let answer = client.request("POST", &url("/upload"), &[], payload);
            assert_eq!((answer.status, answer.text().as_str()), (201, "done"));
            let seen = registry.main.seen_at("/upload");
            let last = seen.last().and_then(|seen| seen.body_sha256.clone());
            assert_eq!(last, Some(large.sha256()), "{suite:?}");
        }
        // A refusal of ours, which ends it.
        let answer = client.request("GET", &url("/x"), &[("Host", "else.where")], Payload::None);
        answer.assert_own_error(&[400, 421]);
        assert_ends_clean(&mut client);
    }
}

#[test]
fn an_upgraded_stream_goes_both_ways_after_a_hand_over() {
    let scene = Scene::new(400_000);
    scene.registry.main.get("/socket", Answer::upgrade("echo").echoes());
    let (mut client, _) = scene.handed_over(SUITES[0]);
    let fields = [("Connection", "Upgrade"), ("Upgrade", "echo")];
    client.start("GET", &scene.registry.main.url("/socket"), &fields);
    assert_eq!(support::client::status(&client.head()), 101);
    for word in ["one", "two"] {
        client.wire.send(word.as_bytes()).expect("sending");
        let mut got = [0; 3];
        for at in 0..3 {
            assert_eq!(client.wire.read_some(&mut got[at..=at]).expect("reading"), 1);
        }
        assert_eq!(got, word.as_bytes());
    }
}

#[test]
fn new_keys_of_the_client_end_the_connection_after_the_answer_under_way() {
    let scene = Scene::new(3_000_000);
    for suite in &SUITES[..3] {
        let (to, trust) = (scene.registry.main.authority(), scene.trust(*suite));
        // So narrow that most of the answer is still to be written.
        let mut client = Client::secure_narrow(scene.proxy.address(), &to, &trust, 16_384);
        let kernel = scene.kernel_takes(suite.0);
        let mut transfer = client.begin(&scene.registry.main.url(&scene.path));
        transfer.read_to(&mut client, 100_000);
        session(&mut client).refresh_traffic_keys().expect("a key update");
        client.start("GET", &scene.registry.main.url(&scene.path), &[]);
        let response = transfer.finish(&mut client);
        response.assert_is(&scene.body);
        if kernel {
            assert_ends_clean(&mut client);
        } else {
            let head = client.head();
            client.rest("GET", head).assert_is(&scene.body);
        }
    }
}

#[test]
fn goodbyes_and_alerts_are_understood_and_answered() {
    let scene = Scene::new(400_000);
    for suite in SUITES {
        let (mut client, _) = scene.handed_over(suite);
        session(&mut client).send_close_notify();
        client.wire.send(b"").expect("the closing alert");
        assert_ends_clean(&mut client);

        // A record that nobody has encrypted.
        let (mut client, _) = scene.handed_over(suite);
        let mut tcp = client.wire.stream.tcp().try_clone().expect("the socket");
        tcp.write_all(&[&[23, 3, 3, 0, 32][..], &[7; 32]].concat()).expect("sending");
        let error = client.wire.read_some(&mut [0; 1]).expect_err("an alert");
        let error = error.downcast::<rustls::Error>().expect("of TLS");
        let expected = rustls::Error::AlertReceived(AlertDescription::BadRecordMac);
        assert_eq!(error, expected, "{suite:?}");
    }
    scene.proxy.wait_stat("connections", 0);
}

#[test]
fn a_client_that_reads_slowly_gets_the_last_answer_whole() {
    let scene = Scene::new(3_000_000);
    for suite in SUITES {
        let to = scene.registry.main.authority();
        let proxy = scene.proxy.address();
        let mut client = Client::secure_narrow(proxy, &to, &scene.trust(suite), 4096);
        let before = scene.proxy.stat("bytes_to_clients");
        let url = scene.registry.main.url(&scene.path);
        client.start("GET", &url, &[("Connection", "close")]);
        // Nothing is read until the proxy has no place to put more.
        let mut last = before;
        support::wait_until("the socket is full", || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            let sent = scene.proxy.stat("bytes_to_clients");
            std::mem::replace(&mut last, sent).eq(&sent).then_some(())
        });
        let head = client.head();
        client.rest("GET", head).assert_is(&scene.body);
        assert_ends_clean(&mut client);
    }
}

#[test]
fn half_a_record_keeps_the_connection_with_rustls_until_the_next_large_hit() {
    let scene = Scene::new(400_000);
    for suite in SUITES {
        let mut client = scene.client(suite);
        let kernel = scene.kernel_takes(suite.0);
        let request = |path: &str| {
            let host = scene.registry.main.authority();
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")
        };
        let mut first = records(&mut client, &request(&scene.path));
        let second = records(&mut client, &request(&scene.path));
        let (piece, rest) = second.split_at(second.len() / 2);
        first.extend_from_slice(piece);
        let counts = || ["ktls", "ktls_refused"].map(|name| scene.proxy.stat(name));
        let [done, kept] = counts();
        let mut tcp = client.wire.stream.tcp().try_clone().expect("the socket");
        // In one piece, to be read as one.
        tcp.write_all(&first).expect("sending");
        let head = client.head();
        client.rest("GET", head).assert_is(&scene.body);
        assert_eq!(counts(), [done, kept + u64::from(kernel)], "{suite:?}");
        tcp.write_all(rest).expect("sending");
        let head = client.head();
        client.rest("GET", head).assert_is(&scene.body);
        assert_eq!(counts()[0], done + u64::from(kernel), "{suite:?}");
    }
}

/// What `text` is on the wire.
fn records(client: &mut Client, text: &str) -> Vec<u8> {
    let session = session(client);
    session.writer().write_all(text.as_bytes()).expect("plaintext");
    let mut out = Vec::new();
    while session.wants_write() {
        session.write_tls(&mut out).expect("records");
    }
    out
}

#[test]
fn nothing_is_handed_over_unasked() {
    for choice in ["off", "auto"] {
        let setup = Setup::new().with(json!({ "tls": { "ktls": choice } }));
        let (proxy, registry, body) = (setup.start(), Registry::https(), fresh_body(400_000));
        let path = registry.blob("lab/img", &body);
        proxy.get(&registry.main, &path).assert_is(&body);
        proxy.get(&registry.main, &path).assert_hit();
        let health = proxy.admin("GET", "/health", &[]).json();
        let why = health["ktls"]["why"].as_str().expect("why");
        assert!(why.contains(&format!("tls.ktls is {choice}")), "{why}");
        assert_eq!(health["ktls"]["suites"], json!([]));
        assert_eq!(["ktls", "ktls_refused"].map(|name| proxy.stat(name)), [0, 0]);
    }
}
