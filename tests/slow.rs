//! Clients that read slowly or vanish: memory and descriptors stay what they were, and whoever else
//! is served by the same core hardly notices.

mod support;

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use support::answer::{Answer, Gate};
use support::body::{Body, sha256};
use support::client::{Client, Transfer};
use support::names;
use support::origin::{Origin, bare_server, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::blob_path;
use support::wait_until;

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
    proxy.get(origin, &small_path).assert_is(&small);
    let hit = || {
        let begun = Instant::now();
        proxy.get(origin, &small_path).assert_hit();
        begun.elapsed()
    };
    let median = |waits: &mut Vec<Duration>| {
        waits.sort();
        waits[waits.len() / 2]
    };
    let alone = median(&mut (0..50).map(|_| hit()).collect());
    let rss = || proxy.status_number("VmRSS:");
    let before = rss();
    let mut readers: Vec<_> =
        (0..READERS).map(|_| SlowReader::start(proxy, origin, path)).collect();
    let done = AtomicBool::new(false);
    let (most, mut waits) = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                readers.iter_mut().for_each(SlowReader::sip);
                thread::sleep(Duration::from_millis(20));
            }
        });
        let (mut most, mut waits) = (0, Vec::new());
        for number in 0..200 {
            waits.push(hit());
            most = most.max(rss());
            if number % 20 == 0 {
                meanwhile();
            }
        }
        done.store(true, Ordering::SeqCst);
        (most, waits)
    });
    let grown = most.saturating_sub(before);
    let beside = median(&mut waits);
    println!(
        "{READERS} slow readers, TLS {}: {before} KiB and {grown} KiB more, {} each; hits of \
         others: median {:?} ({alone:?} without them), longest {:?}",
        origin.is_tls(),
        grown as f64 / READERS as f64,
        beside,
        waits[waits.len() - 1],
    );
    assert!(grown < READERS * READER_MAX, "{before} KiB grew by {grown} KiB");
    assert!(waits[waits.len() - 1] < Duration::from_secs(5), "others waited: {waits:?}");
    // The readers' own work runs on the same machine.
    let most = 10 * alone + Duration::from_millis(50);
    assert!(beside < most, "others waited {beside:?}, and {alone:?} without slow readers");
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

#[test]
fn a_client_that_has_ended_its_half_gets_all_however_slowly_it_reads() {
    let setup = one_core();
    let proxy = setup.start();
    for origin in [Origin::http(names::SECOND), Origin::https(names::REGISTRY)] {
        let body = fresh_body(16_000_000);
        let path = blob_path("lab/img", &body);
        origin.get(&path, Answer::ok(&body));
        proxy.get(&origin, &path).assert_is(&body);
        let mut reader = SlowReader::start(&proxy, &origin, &path);
        reader.client.finish_sending();
        for _ in 0..100 {
            reader.sip();
            thread::sleep(Duration::from_millis(1));
        }
        reader.transfer.finish(&mut reader.client).assert_is(&body);
    }
}

/// A client on its way out: what keeps its connection, if it does, and how it goes.
type Vanish = fn(&Stage, &Proxy, &Origin) -> Client;

/// What vanishing clients ask for.
struct Stage {
    giant: String,
    /// A blob whose head does not come.
    awaited: String,
    /// A server that says nothing.
    mute: String,
}

const VANISHES: [(&str, Vanish); 8] = [
    ("within a hit", |stage, proxy, origin| SlowReader::start(proxy, origin, &stage.giant).client),
    ("before it asks", |_, proxy, _| proxy.plain()),
    ("within a head", |_, proxy, origin| {
        let mut client = proxy.client(origin);
        client.wire.send(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nAccept: some").expect("half a head");
        client
    }),
    ("between two requests", |_, proxy, origin| {
        let mut client = proxy.client(origin);
        assert_eq!(client.get(&origin.url("/v2/")).text(), "{}");
        client
    }),
    ("before the handshake", |_, proxy, _| {
        let to = format!("{}:443", names::REGISTRY);
        Client::on(Client::tunnel(proxy.address(), &to).expect("a tunnel"))
    }),
    ("within an upload", |_, proxy, origin| {
        let mut client = proxy.client(origin);
        client.start("PUT", &origin.url("/upload"), &[("Content-Length", "1000000")]);
        client.send_piece(&[7; 100_000], false).expect("a part of it");
        client
    }),
    ("waiting for a fill", |stage, proxy, origin| {
        let mut client = proxy.client(origin);
        client.start("GET", &origin.url(&stage.awaited), &[]);
        client
    }),
    ("within a relayed tunnel", |stage, proxy, _| {
        let mut tunnel = Client::tunnel(proxy.address(), &stage.mute).expect("a tunnel");
        tunnel.write_all(b"hello").expect("sending");
        Client::on(tunnel)
    }),
];

/// How it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Going {
    /// RST.
    Reset,
    /// FIN, and nothing is read from then on; or RST, by the kernel, where something was unread.
    Close,
    /// FIN of its half, and then silence.
    HalfClose,
    /// Silence: cut off from the net.
    Silence,
}

const GOINGS: [Going; 4] = [Going::Reset, Going::Close, Going::HalfClose, Going::Silence];

/// Has clients of every kind vanish in every way. Gives those whose sockets are open still.
fn vanish(stage: &Stage, proxy: &Proxy, origins: &[Origin]) -> Vec<Client> {
    let mut silent = Vec::new();
    for (what, begin) in VANISHES {
        for (number, going) in GOINGS.into_iter().cycle().take(24).enumerate() {
            let client = begin(stage, proxy, &origins[number / 4 % origins.len()]);
            let tcp = client.wire.stream.tcp();
            match going {
                Going::Reset => {
                    let socket = socket2::SockRef::from(tcp);
                    socket.set_linger(Some(Duration::ZERO)).expect("linger");
                }
                Going::Close => {}
                Going::HalfClose => {
                    let ended = tcp.shutdown(Shutdown::Write);
                    ended.unwrap_or_else(|error| panic!("{what}: {error}"));
                    silent.push(client);
                }
                Going::Silence => silent.push(client),
            }
        }
    }
    silent
}

#[test]
fn descriptors_and_memory_of_clients_that_vanish_return() {
    let limits = json!({ "limits": { "idle_timeout": "3s", "header_timeout": "3s" } });
    let setup = one_core().with(limits);
    let origins = [Origin::http(names::SECOND), Origin::https(names::REGISTRY)];
    let giant = place_giant(&setup, &origins[0]);
    let proxy = setup.start();
    let mute = bare_server(names::OTHER, |mut tcp| io::copy(&mut tcp, &mut io::sink()).map(drop));
    for origin in &origins {
        origin.get("/v2/", Answer::status(200, "{}"));
        origin.on("PUT", "/upload", Answer::status(201, ""));
        drop(SlowReader::start(&proxy, origin, &giant));
    }
    let fewest = || origins.iter().for_each(Origin::drop_connections);
    let settled = |what: &str| {
        // Upstream connections that are kept for the next request are no client's.
        fewest();
        wait_until(&format!("all clients' ends, {what}"), || {
            (proxy.stat("connections") == 0).then_some(())
        });
    };
    settled("at the start");
    let before = proxy.descriptors();
    let mut sizes = Vec::new();
    for storm in 0..5 {
        let (gate, body) = (Gate::new(), fresh_body(100_000));
        let awaited = blob_path("lab/img", &body);
        for origin in &origins {
            origin.get(&awaited, Answer::ok(&body).gate_head(&gate));
        }
        let mute = format!("{}:{}", names::OTHER, mute.port());
        let silent = vanish(&Stage { giant: giant.clone(), awaited, mute }, &proxy, &origins);
        gate.open();
        let what = format!("after storm {storm}");
        settled(&what);
        wait_until(&format!("the descriptors, {what}"), || {
            // The file of each storm's own entry stays open for the next request.
            (proxy.descriptors() <= before + storm + 1).then_some(())
        });
        sizes.push(proxy.status_number("VmRSS:"));
        drop(silent);
    }
    println!("{before} descriptors; {sizes:?} KiB after each storm");
    // The first ones grow what is kept for good: the pools, the tables, the pages that the allocator
    // has for each thread. Then it is less than 4 KiB for each of 576 clients, half of what the
    // least of them holds.
    assert!(sizes[4] <= sizes[1] + 2304, "{sizes:?} KiB after each storm");
}

#[test]
fn an_unread_fill_that_drips_gives_its_place_back() {
    let keys = json!({ "upstream": { "read_timeout": "1s" }, "limits": { "max_fills": 1 } });
    let setup = Setup::new().with(keys);
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    let pause = Duration::from_millis(50);
    let (endless, late) = (fresh_body(2_000_000), fresh_body(300_000));
    let path = blob_path("lab/img", &endless);
    origin.get(&path, Answer::ok(&endless).drips_from(1_000_000, pause));
    let mut client = proxy.client(&origin);
    let mut transfer = client.begin(&origin.url(&path));
    transfer.read_to(&mut client, 100_000);
    drop(client);
    proxy.wait_stat("fills", 0);
    assert_eq!((proxy.stat("errors"), proxy.stat("stores")), (1, 0));
    // For a client that waits, twice as long as that, every byte is fetched.
    let path = blob_path("lab/img", &late);
    origin.get(&path, Answer::ok(&late).drips_from(late.len() - 50, pause));
    proxy.get(&origin, &path).assert_is(&late);
    proxy.wait_stat("stores", 1);
    let output = proxy.stop();
    assert!(output.contains("sends too slowly for a body that nobody reads"), "{output}");
}
