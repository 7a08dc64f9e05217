//! The end and the next start: nothing stored is lost, nothing partial survives, signals are heeded.

mod support;

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::json;
use support::answer::{Answer, Gate};
use support::body::{Body, sha256};
use support::client::{Client, try_dial};
use support::clock::Clock;
use support::names;
use support::origin::{Origin, bare_server, fresh_body};
use support::proxy::Setup;
use support::registry::{Registry, blob_path, manifest_path};
use support::wait_until;

/// Generous for a busy machine; far less than any grace.
const AT_ONCE: Duration = Duration::from_secs(20);

#[test]
fn a_restart_keeps_every_entry_and_its_head() {
    let patterns = json!({ "cache": { "patterns": ["^/v2/.*sha256:", "^/files/"] } });
    let setup = Setup::new().with(patterns);
    let origin = Origin::https(names::REGISTRY);
    let proxy = setup.start();
    let mut urls = Vec::new();
    for number in 0..30_u64 {
        let body = fresh_body(number * 20_011);
        let path = match number % 3 {
            0 => blob_path("lab/img", &body),
            1 => manifest_path("lab/img", &body),
            _ => format!("/files/{number}?q=%2F"),
        };
        let kind = format!("application/x-kind-{number}");
        let bare = path.split('?').next().unwrap_or("").to_owned();
        origin.get(&bare, Answer::ok(&body).with("Content-Type", kind).with("X-Own", "kept"));
        proxy.get(&origin, &path).assert_is(&body);
        let hit = proxy.get(&origin, &path);
        hit.assert_hit();
        urls.push((path, body, hit));
    }
    let size = proxy.stat("current_size");
    let certificate = fs::read(setup.path("certs/ca.crt")).expect("ca.crt");
    proxy.stop();
    origin.stop();

    let proxy = setup.start();
    for (path, body, before) in &urls {
        let hit = proxy.get(&origin, path);
        hit.assert_is(body);
        hit.assert_hit();
        for name in ["Content-Type", "X-Cache-Date", "ETag", "Docker-Content-Digest", "X-Own"] {
            assert_eq!(hit.head.fields(name), before.head.fields(name), "{name} of {path}");
        }
    }
    wait_until("the scan", || (proxy.stat("current_size") == size).then_some(()));
    assert_eq!(proxy.stat("misses"), 0);
    assert_eq!(fs::read(setup.path("certs/ca.crt")).expect("ca.crt"), certificate);
}

#[test]
fn the_first_hit_does_not_wait_for_the_scan_of_a_large_cache() {
    const ENTRIES: u32 = 30_000;
    let setup = Setup::new();
    let origin = Origin::http(names::REGISTRY);
    let body = fresh_body(10_000);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body));
    let proxy = setup.start();
    proxy.get(&origin, &path).assert_is(&body);
    proxy.stop();
    origin.stop();

    // Entries of one byte each under made-up digests; each has its meta, as real ones do.
    let meta = fs::read_to_string(setup.blob(&format!("{}.meta", body.sha256()))).expect("meta");
    for number in 0..ENTRIES {
        let name = sha256(&number.to_le_bytes());
        let own = meta.replace(&body.sha256(), &name).replace("\"length\":10000", "\"length\":1");
        fs::write(setup.blob(&format!("{name}.meta")), own).expect("a meta file");
        fs::write(setup.blob(&name), "x").expect("a body");
    }

    // Where the machine is busy with other tests the scan may be quicker than the client, once.
    let all = body.len() + u64::from(ENTRIES);
    for _ in 0..10 {
        let proxy = setup.start();
        let hit = Client::plain(proxy.address()).get(&origin.url(&path));
        let known = proxy.stat("current_size");
        hit.assert_is(&body);
        hit.assert_hit();
        if known < all {
            wait_until("the scan", || (proxy.stat("current_size") == all).then_some(()));
            return;
        }
        proxy.kill();
    }
    panic!("ten first hits came after the scan");
}

#[test]
fn a_killed_fill_leaves_nothing_behind_and_is_fetched_anew() {
    let setup = Setup::new();
    let registry = Registry::https();
    let whole = fresh_body(300_000);
    let cut = fresh_body(3_000_000);
    let gate = Gate::new();
    let proxy = setup.start();
    let whole_path = registry.blob("lab/img", &whole);
    proxy.get(&registry.main, &whole_path).assert_is(&whole);
    let path = registry.gated_blob("lab/img", &cut, 2_000_000, &gate);
    let mut client = proxy.client(&registry.main);
    let mut transfer = client.begin(&registry.main.url(&path));
    transfer.read_to(&mut client, 1_000_000);
    proxy.kill();
    gate.open();
    assert!(transfer.finish(&mut client).whole.is_err());
    assert!(!setup.blob(&cut.sha256()).exists(), "a partial body under a final name");

    let proxy = setup.start();
    proxy.get(&registry.main, &whole_path).assert_hit();
    let left = fs::read_dir(setup.path("cache/partial")).expect("the folder").count();
    assert_eq!(left, 0, "partial files survive the start");
    wait_until("the scan", || (proxy.stat("current_size") == 300_000).then_some(()));
    registry.blob("lab/img", &cut);
    let again = proxy.get(&registry.main, &path);
    again.assert_is(&cut);
    again.assert_not_hit();
}

#[test]
fn a_directory_cleared_while_stopped_is_an_empty_cache() {
    let setup = Setup::new();
    let origin = Origin::http(names::REGISTRY);
    let body = fresh_body(100_000);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body));
    let proxy = setup.start();
    proxy.get(&origin, &path).assert_is(&body);
    proxy.stop();
    for entry in fs::read_dir(setup.path("cache")).expect("the cache").flatten() {
        match entry.file_type().expect("its type").is_dir() {
            true => fs::remove_dir_all(entry.path()).expect("rm -rf"),
            false => fs::remove_file(entry.path()).expect("rm -f"),
        }
    }
    let proxy = setup.start();
    assert_eq!(proxy.stat("current_size"), 0);
    proxy.get(&origin, &path).assert_not_hit();
    proxy.get(&origin, &path).assert_hit();
}

#[test]
fn files_that_are_not_ours_are_left_alone() {
    let setup = Setup::new();
    let proxy = setup.start();
    proxy.stop();
    let strange = [
        setup.blob("README"),
        setup.blob("abc.meta"),
        setup.path("cache/notes.txt"),
        setup.blob(&"A".repeat(64)),
    ];
    for file in &strange {
        fs::write(file, "not the proxy's").expect("a file");
    }
    let folder = setup.blob(&"b".repeat(64));
    fs::create_dir(&folder).expect("a folder where a body would lie");
    let origin = Origin::http(names::REGISTRY);
    let body = fresh_body(1_000);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body));
    let proxy = setup.start();
    proxy.get(&origin, &path).assert_is(&body);
    proxy.get(&origin, &path).assert_hit();
    assert_eq!(proxy.stat("current_size"), 1_000);
    let shadowed = format!("{}{}", "/v2/lab/img/blobs/sha256:", "b".repeat(64));
    let response = proxy.get(&origin, &shadowed);
    assert_eq!(response.status, 404, "{}", response.text());
    proxy.stop();
    for file in &strange {
        assert!(file.exists(), "{} was removed", file.display());
    }
}

#[test]
fn sigterm_lets_a_running_transfer_finish_and_refuses_new_ones() {
    for signal in ["TERM", "INT"] {
        let setup = Setup::new();
        let mut proxy = setup.start();
        let registry = Registry::https();
        let body = fresh_body(4_000_000);
        let gate = Gate::new();
        let path = registry.gated_blob("lab/img", &body, 2_000_000, &gate);
        let mut client = proxy.client(&registry.main);
        let mut transfer = client.begin(&registry.main.url(&path));
        transfer.read_to(&mut client, 1_000_000);
        let idle = proxy.client(&registry.main);
        let address = proxy.address();
        proxy.signal(signal);
        wait_until("new connections to be refused", || {
            try_dial(address, None).is_err().then_some(())
        });
        gate.open();
        transfer.finish(&mut client).assert_is(&body);
        drop(client);
        let status = proxy.wait_exit();
        assert_eq!(status.code(), Some(0), "{}", proxy.output());
        drop(idle);
        assert!(setup.blob(&body.sha256()).exists(), "the fill was finished, so it is kept");
    }
}

#[test]
fn sigterm_lets_transfers_of_every_kind_finish() {
    let setup = Setup::new().with(json!({ "limits": { "shutdown_grace": "10m" } }));
    for origin in [Origin::https(names::REGISTRY), Origin::http(names::SECOND)] {
        let mut proxy = setup.start();
        let (stored, body, gate) = (fresh_body(16_000_000), fresh_body(3_000_000), Gate::new());
        let paths = [blob_path("lab/img", &stored), blob_path("lab/img", &body), "/pass".into()];
        origin.get(&paths[0], Answer::ok(&stored));
        for path in &paths[1..] {
            origin.get(path, Answer::ok(&body).gate_at(1_000_000, &gate));
        }
        origin.get("/poll", Answer::status(200, "at last").gate_head(&gate));
        origin.on("PUT", "/up", Answer::status(201, "taken"));
        origin.get("/ws", Answer::upgrade("websocket"));
        proxy.get(&origin, &paths[0]).assert_is(&stored);
        let mut down = Vec::new();
        for (path, whole) in paths.iter().zip([&stored, &body, &body]) {
            // Narrow, so that a hit is still under way.
            let mut client = match origin.is_tls() {
                true => {
                    let (to, trust) = (origin.authority(), proxy.trust());
                    Client::secure_narrow(proxy.address(), &to, &trust, 4096)
                }
                false => Client::narrow(proxy.address(), 4096),
            };
            let mut transfer = client.begin(&origin.url(path));
            transfer.read_to(&mut client, 500_000);
            down.push((client, transfer, whole));
        }
        let mut up = proxy.client(&origin);
        up.start("PUT", &origin.url("/up"), &[("Content-Length", "3000000")]);
        up.send_piece(&body.slice(0, 1_000_000), false).expect("a piece");
        origin.wait("/up", |seen| seen.body_len == 1_000_000);
        let mut poll = proxy.client(&origin);
        poll.start("GET", &origin.url("/poll"), &[]);
        gate.wait_arrivals(3);
        let mut upgraded = proxy.client(&origin);
        let fields = [("Connection", "Upgrade"), ("Upgrade", "websocket")];
        upgraded.start("GET", &origin.url("/ws"), &fields);
        assert!(upgraded.head().line.contains(" 101"));
        let echo = bare_server(names::OTHER, |tcp| std::io::copy(&mut &tcp, &mut &tcp).map(drop));
        let to = format!("{}:{}", names::OTHER, echo.port());
        let mut tunnel = Client::on(Client::tunnel(proxy.address(), &to).expect("a tunnel"));

        let (address, begun) = (proxy.address(), Instant::now());
        proxy.signal("TERM");
        wait_until("new connections to be refused", || {
            try_dial(address, None).is_err().then_some(())
        });
        assert!(begun.elapsed() < AT_ONCE, "refused after {:?}", begun.elapsed());
        gate.open();
        for (mut client, transfer, whole) in down {
            transfer.finish(&mut client).assert_is(whole);
        }
        up.send_piece(&body.slice(1_000_000, 3_000_000), false).expect("the rest");
        let head = up.head();
        assert_eq!(up.rest("PUT", head).text(), "taken");
        assert_eq!(origin.only("/up").body_sha256, Some(body.sha256()));
        let head = poll.head();
        assert_eq!(poll.rest("GET", head).text(), "at last");
        for client in [&mut upgraded, &mut tunnel] {
            client.wire.send(b"x").expect("a byte");
            assert_eq!(client.wire.read_some(&mut [0; 1]).expect("its echo"), 1);
        }
        drop((up, poll, upgraded, tunnel));
        assert_eq!(proxy.wait_exit().code(), Some(0), "{}", proxy.output());
    }
}

#[test]
fn sigterm_ends_no_fill_that_is_read_on_another_core() {
    // So many that the core of some fill serves none of the readers.
    let setup = Setup::new().with(json!({ "proxy": { "workers": 16 } }));
    let mut proxy = setup.start();
    let origin = Origin::http(names::SECOND);
    let (some, all) = (Gate::new(), Gate::new());
    let mut readers = Vec::new();
    for _ in 0..5 {
        let body = fresh_body(9_000_000);
        let path = blob_path("lab/img", &body);
        let answer = Answer::ok(&body).gate_at(1_000_000, &some).gate_at(8_000_000, &all);
        origin.get(&path, answer);
        let url = origin.url(&path);
        let mut first = proxy.plain();
        first.begin(&url).read_to(&mut first, 500_000);
        let mut client = proxy.plain();
        let mut transfer = client.begin(&url);
        transfer.read_to(&mut client, 500_000);
        readers.push((client, transfer, body));
    }
    // The first of each is gone, which the proxy notices when it has something for it.
    some.open();
    proxy.wait_stat("connections", readers.len() as u64);
    proxy.signal("TERM");
    let address = proxy.address();
    wait_until("new connections to be refused", || try_dial(address, None).is_err().then_some(()));
    all.open();
    for (mut client, transfer, body) in readers {
        transfer.finish(&mut client).assert_is(&body);
        assert!(setup.blob(&body.sha256()).exists());
    }
    assert_eq!(proxy.wait_exit().code(), Some(0), "{}", proxy.output());
}

#[test]
fn shutdown_grace_ends_what_does_not_finish() {
    let setup = Setup::new().with(json!({ "limits": { "shutdown_grace": "1s" } }));
    let proxy = setup.start();
    let registry = Registry::https();
    let body = fresh_body(4_000_000);
    let gate = Gate::new();
    let path = registry.gated_blob("lab/img", &body, 2_000_000, &gate);
    let mut client = proxy.client(&registry.main);
    let mut transfer = client.begin(&registry.main.url(&path));
    transfer.read_to(&mut client, 1_000_000);
    let start = Instant::now();
    let (code, output) = proxy.terminate();
    assert_eq!(code, Some(0), "{output}");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert!(transfer.finish(&mut client).whole.is_err());
    gate.open();
    assert!(!setup.blob(&body.sha256()).exists());
}

#[test]
fn a_second_signal_ends_transfers_and_loses_nothing_else() {
    let setup = Setup::new().with(json!({ "limits": { "shutdown_grace": "10m" } }));
    let mut proxy = setup.start();
    let registry = Registry::https();
    let body = fresh_body(4_000_000);
    let gate = Gate::new();
    let path = registry.gated_blob("lab/img", &body, 2_000_000, &gate);
    let mut client = proxy.client(&registry.main);
    let mut transfer = client.begin(&registry.main.url(&path));
    transfer.read_to(&mut client, 1_000_000);
    proxy.signal("TERM");
    proxy.wait_log(&["stopping"]);
    proxy.signal("TERM");
    assert_eq!(proxy.wait_exit().code(), Some(0));
    assert!(transfer.finish(&mut client).whole.is_err());
    gate.open();
    proxy.wait_log(&["stopped"]);
}

#[test]
fn an_idle_proxy_stops_at_once() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    origin.get("/v2/", Answer::status(200, "{}"));
    let mut idle = proxy.client(&origin);
    assert_eq!(idle.get("/v2/").text(), "{}");
    let fresh = Client::plain(proxy.address());
    let start = Instant::now();
    proxy.stop();
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "grace is for transfers: {:?}",
        start.elapsed()
    );
    assert!(idle.closes());
    drop(fresh);
}

#[test]
fn the_log_file_is_written_and_reopened_on_sighup() {
    let setup = Setup::new();
    let file = setup.path("proxy.log");
    let setup = setup.with(json!({ "logging": { "file": file.to_str() } }));
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    let bodies = [fresh_body(1_000), fresh_body(2_000)];
    let pull = |body: &Body| {
        let path = blob_path("lab/img", body);
        origin.get(&path, Answer::ok(body));
        proxy.get(&origin, &path).assert_is(body);
        proxy.wait_log(&["cached response", &path]);
    };
    // wait_log reads the file, so it is read before the file moves away.
    let (address, admin) = (proxy.address(), proxy.admin_address());
    pull(&bodies[0]);
    let moved = setup.path("proxy.log.1");
    fs::rename(&file, &moved).expect("rotating");
    proxy.signal("HUP");
    wait_until("the new log file", || file.exists().then_some(()));
    let path = blob_path("lab/img", &bodies[1]);
    origin.get(&path, Answer::ok(&bodies[1]));
    Client::plain(address).get(&origin.url(&path)).assert_is(&bodies[1]);
    proxy.wait_log(&["cached response", &path]);
    assert!(!fs::read_to_string(&moved).expect("the old log").contains(&path));
    assert_ne!(address, admin);
}

#[test]
fn a_port_that_is_taken_is_named_by_its_key() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port();
    for key in ["port", "api_port"] {
        let setup = Setup::new().with(json!({ "proxy": { key: port } }));
        let refused = setup.run_config();
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains(&format!("proxy.{key}: can't listen")), "{refused:?}");
    }
}

#[test]
fn files_made_by_the_proxy_are_not_for_everyone() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    let body = fresh_body(1_000);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body));
    proxy.get(&origin, &path).assert_is(&body);
    let mode = |path: std::path::PathBuf| {
        wait_until("the file", || fs::metadata(&path).ok()).permissions().mode() & 0o777
    };
    assert_eq!(mode(setup.path("certs/ca.key")), 0o600);
    assert_eq!(mode(setup.blob(&body.sha256())) & 0o007, 0, "private images are nobody else's");
}

#[test]
fn two_proxies_do_not_share_a_cache_directory() {
    let setup = Setup::new();
    let _first = setup.start();
    let second = setup.run_config();
    assert_eq!(second.code, Some(1), "{second:?}");
    let line = second.stderr.trim();
    assert_eq!(line.lines().count(), 1, "{second:?}");
    assert!(line.contains("cache"), "{line}");
}

#[test]
fn a_worker_lost_by_a_bug_ends_the_process() {
    // What a bug in the runtime would do is done by a clock that fails it.
    let (setup, clock) = Clock::of(Setup::new());
    let mut proxy = setup.start();
    let address = proxy.admin_address();
    clock.fail_first_worker();
    let _wakes = TcpStream::connect(address);
    assert_eq!(proxy.wait_exit().code(), Some(1), "{}", proxy.output());
    let output = proxy.output();
    for words in ["a bug: please report it", "ERROR a worker thread is lost", "which the log names"]
    {
        assert!(output.contains(words), "{words} in {output}");
    }
}
