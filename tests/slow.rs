//! Clients that read slowly, vanish, or come by the thousand: memory and descriptors stay what they
//! were, and whoever else is served by the same core hardly notices.
//!
//! `DISCOBOT_LONG=1` makes the soak a hundred thousand connections long.

mod support;

use std::fs::{self, File};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use support::answer::{Answer, Gate};
use support::body::{Body, sha256};
use support::client::{Client, Transfer};
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::blob_path;

const READERS: u64 = 64;

/// What one of them may cost in memory, in KiB. What the kernel keeps for a socket is not in it.
const READER_MAX: u64 = 32;

const GIGA: u64 = 1 << 30;

/// The receive buffer a slow reader asks for.
const WINDOW: usize = 4096;

/// Bytes it takes at a time.
const SIP: u64 = 1024;

/// An entry of a gigabyte that takes no room: a hole under a made-up digest. The path to ask for.
fn place_giant(setup: &Setup, origin: &Origin) -> String {
    let proxy = setup.start();
    let body = fresh_body(1);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body));
    proxy.get(origin, &path).assert_is(&body);
    proxy.stop();
    let name = sha256(b"a gigabyte of nothing");
    let meta = fs::read_to_string(setup.blob(&format!("{}.meta", body.sha256()))).expect("meta");
    let meta = meta.replace(&body.sha256(), &name);
    let meta = meta.replace("\"length\":1,", &format!("\"length\":{GIGA},"));
    fs::write(setup.blob(&format!("{name}.meta")), meta).expect("a meta file");
    let file = File::create(setup.blob(&name)).expect("a body");
    file.set_len(GIGA).expect("a hole of a gigabyte");
    path.replace(&body.sha256(), &name)
}

/// One worker, so that whoever is slow shares its core with everyone.
fn one_core() -> Setup {
    Setup::new().with(json!({ "proxy": { "workers": 1 }, "cache": { "max_size": "4GB" } }))
}

/// A client that takes what it asked for by sips.
struct SlowReader {
    client: Client,
    transfer: Transfer,
    taken: u64,
}

impl SlowReader {
    fn start(proxy: &Proxy, origin: &Origin, path: &str) -> SlowReader {
        let mut client = match origin.is_tls() {
            true => {
                let to = origin.authority();
                Client::secure_narrow(proxy.address(), &to, &proxy.trust(), WINDOW)
            }
            false => Client::narrow(proxy.address(), WINDOW),
        };
        let transfer = client.begin(&origin.url(path));
        assert_eq!(transfer.status(), 200);
        let mut reader = SlowReader { client, transfer, taken: 0 };
        reader.sip();
        reader
    }

    fn sip(&mut self) {
        self.taken += SIP;
        self.transfer.read_to(&mut self.client, self.taken);
    }
}

/// A crowd of slow readers beside one who is there already, while `meanwhile` goes on; fails where
/// memory grows by more than they may cost, or others wait.
fn crowd(proxy: &Proxy, origin: &Origin, path: &str, mut meanwhile: impl FnMut()) {
    let small = fresh_body(10_000);
    let small_path = blob_path("lab/img", &small);
    origin.get(&small_path, Answer::ok(&small));
    let mut first = SlowReader::start(proxy, origin, path);
    first.sip();
    for _ in 0..10 {
        proxy.get(origin, &small_path).assert_is(&small);
    }
    let rss = || proxy.status_number("VmRSS:");
    let before = rss();
    let mut readers: Vec<_> =
        (0..READERS).map(|_| SlowReader::start(proxy, origin, path)).collect();
    let done = AtomicBool::new(false);
    let (most, waits) = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                readers.iter_mut().for_each(SlowReader::sip);
                thread::sleep(Duration::from_millis(20));
            }
        });
        let (mut most, mut waits) = (0, Vec::new());
        for number in 0..200 {
            let begun = Instant::now();
            proxy.get(origin, &small_path).assert_hit();
            waits.push(begun.elapsed());
            most = most.max(rss());
            if number % 20 == 0 {
                meanwhile();
            }
        }
        done.store(true, Ordering::SeqCst);
        (most, waits)
    });
    let grown = most.saturating_sub(before);
    let mut waits = waits;
    waits.sort();
    println!(
        "{READERS} slow readers, TLS {}: {before} KiB and {grown} KiB more, {} each; hits of \
         others: median {:?}, longest {:?}",
        origin.is_tls(),
        grown as f64 / READERS as f64,
        waits[waits.len() / 2],
        waits[waits.len() - 1],
    );
    assert!(grown < READERS * READER_MAX, "{before} KiB grew by {grown} KiB");
    assert!(waits[waits.len() - 1] < Duration::from_secs(5), "others waited: {waits:?}");
}

#[test]
fn slow_readers_of_a_hit_cost_next_to_nothing() {
    for origin in [Origin::http(names::SECOND), Origin::https(names::REGISTRY)] {
        let setup = one_core();
        let path = place_giant(&setup, &origin);
        let proxy = setup.start();
        crowd(&proxy, &origin, &path, || {});
        assert_eq!(origin.count("GET", &path), 0);
    }
}

#[test]
fn slow_readers_of_a_running_fill_cost_next_to_nothing() {
    for origin in [Origin::http(names::SECOND), Origin::https(names::REGISTRY)] {
        let setup = one_core();
        let proxy = setup.start();
        // Nobody will have it whole, so that any digest will do.
        let body = Body::made(7, GIGA);
        let path = format!("/v2/lab/img/blobs/sha256:{}", sha256(b"never whole"));
        let gates: Vec<Gate> = (0..10).map(|_| Gate::new()).collect();
        let mut answer = Answer::ok(&body);
        for (number, gate) in gates.iter().enumerate() {
            answer = answer.gate_at((number as u64 + 2) * 16_000_000, gate);
        }
        origin.get(&path, answer);
        let mut first = proxy.client(&origin);
        let mut transfer = first.begin(&origin.url(&path));
        transfer.read_to(&mut first, 16_000_000);
        gates[0].wait_arrivals(1);
        let mut gates = gates.iter();
        crowd(&proxy, &origin, &path, || gates.next().into_iter().for_each(Gate::open));
        assert_eq!(origin.count("GET", &path), 1);
        gates.for_each(Gate::open);
    }
}
