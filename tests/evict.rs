//! The cache's size: the least recently used go first, the limit holds, and nobody notices who is
//! still reading.

mod support;

use std::thread;

use serde_json::json;
use support::answer::{Answer, Gate};
use support::body::Body;
use support::client::Client;
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::{Registry, blob_path};
use support::wait_until;

const MEGA: u64 = 1_000_000;

fn limited(max_size: u64) -> Setup {
    Setup::new().with(json!({ "cache": { "max_size": max_size } }))
}

/// Serves `count` blobs of a megabyte.
fn blobs(origin: &Origin, count: usize) -> Vec<Body> {
    let bodies: Vec<Body> = (0..count).map(|_| fresh_body(MEGA)).collect();
    for body in &bodies {
        origin.get(&blob_path("lab/img", body), Answer::ok(body));
    }
    bodies
}

fn pull(proxy: &Proxy, origin: &Origin, body: &Body) -> bool {
    let response = proxy.get(origin, &blob_path("lab/img", body));
    response.assert_is(body);
    response.field("X-Cache") == Some("HIT")
}

/// Bytes of all bodies on disk, partial ones included.
fn on_disk(setup: &Setup) -> u64 {
    let size = |folder: &str| -> u64 {
        let files = std::fs::read_dir(setup.path("cache").join(folder)).expect("a folder");
        let bodies = files.flatten().filter(|entry| {
            let name = entry.file_name();
            !name.to_string_lossy().contains(".meta")
        });
        bodies.filter_map(|entry| entry.metadata().ok()).map(|data| data.len()).sum()
    };
    // A body moves from the one to the other: counted in this order, it may be missed, not doubled.
    size("blobs/sha256") + size("partial")
}

#[test]
fn the_least_recently_used_go_first() {
    let setup = limited(3 * MEGA + 500_000);
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    let bodies = blobs(&origin, 6);
    let [a, b, c, d, e, f] = &bodies[..] else { panic!("six bodies") };
    for body in [a, b, c] {
        assert!(!pull(&proxy, &origin, body));
    }
    assert!(pull(&proxy, &origin, a));
    assert!(!pull(&proxy, &origin, d)); // b goes
    assert!(pull(&proxy, &origin, a));
    assert!(pull(&proxy, &origin, c));
    assert!(!pull(&proxy, &origin, e)); // d goes
    assert!(!pull(&proxy, &origin, f)); // a goes
    for (body, kept) in [(b, false), (d, false), (a, false), (c, true), (e, true), (f, true)] {
        let file = setup.blob(&body.sha256());
        wait_until("the file's state", || (file.exists() == kept).then_some(()));
        assert_eq!(setup.blob(&format!("{}.meta", body.sha256())).exists(), kept);
    }
    let stats = proxy.stats();
    assert_eq!(stats["evictions"].as_u64(), Some(3), "{stats}");
    assert_eq!(stats["current_size"].as_u64(), Some(3 * MEGA), "{stats}");
    assert!(!pull(&proxy, &origin, b), "evicted, so asked anew");
}

#[test]
fn the_order_of_use_outlives_a_restart() {
    for kill in [false, true] {
        let setup = limited(3 * MEGA + 500_000);
        let origin = Origin::http(names::REGISTRY);
        let bodies = blobs(&origin, 5);
        let [a, b, c, d, e] = &bodies[..] else { panic!("five bodies") };
        let proxy = setup.start();
        for body in [a, b, c] {
            assert!(!pull(&proxy, &origin, body));
        }
        assert!(pull(&proxy, &origin, a));
        if kill {
            // A touch reaches the disk within seconds; until then SIGKILL may lose it.
            let used = |body: &Body| {
                let file = std::fs::metadata(setup.blob(&body.sha256())).expect("the blob");
                file.modified().expect("a time")
            };
            wait_until("the touch on disk", || (used(a) > used(c)).then_some(()));
            proxy.kill();
        } else {
            proxy.stop();
        }
        let proxy = setup.start();
        wait_until("the scan", || (proxy.stat("current_size") == 3 * MEGA).then_some(()));
        assert!(!pull(&proxy, &origin, d)); // b goes, not a
        assert!(!pull(&proxy, &origin, e)); // c goes, not a
        assert!(pull(&proxy, &origin, a), "the order of use was forgotten (killed: {kill})");
    }
}

#[test]
fn a_cache_larger_than_a_new_limit_shrinks_after_the_start() {
    let mut setup = limited(10 * MEGA);
    let origin = Origin::http(names::REGISTRY);
    let bodies = blobs(&origin, 8);
    let proxy = setup.start();
    for body in &bodies {
        pull(&proxy, &origin, body);
    }
    proxy.stop();
    setup.set(json!({ "cache": { "max_size": 3 * MEGA } }));
    let proxy = setup.start();
    wait_until("the new limit", || {
        let size = proxy.stat("current_size");
        (size > 0 && size <= 3 * MEGA && on_disk(&setup) <= 3 * MEGA).then_some(())
    });
    assert!(pull(&proxy, &origin, &bodies[7]));
    assert!(!pull(&proxy, &origin, &bodies[0]));
}

#[test]
fn the_limit_is_exceeded_by_no_more_than_the_fills_in_progress() {
    const CLIENTS: usize = 4;
    let setup = limited(5 * MEGA);
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    let bodies = blobs(&origin, 60);
    let peak = thread::scope(|scope| {
        let pulls: Vec<_> = bodies
            .chunks(bodies.len() / CLIENTS)
            .map(|part| {
                let (proxy, origin) = (&proxy, &origin);
                scope.spawn(move || {
                    for body in part {
                        pull(proxy, origin, body);
                    }
                })
            })
            .collect();
        let mut peak = 0;
        while pulls.iter().any(|pull| !pull.is_finished()) {
            peak = peak.max(on_disk(&setup));
            assert!(proxy.stat("current_size") <= 5 * MEGA);
        }
        peak
    });
    assert!(peak <= (5 + CLIENTS as u64) * MEGA, "{peak} bytes on disk");
    wait_until("the limit", || (on_disk(&setup) <= 5 * MEGA).then_some(()));
    let stats = proxy.stats();
    let number = |name: &str| stats[name].as_u64().unwrap_or(0);
    assert_eq!(number("stores"), 60, "{stats}");
    assert_eq!(number("evictions") * MEGA + number("current_size"), 60 * MEGA, "{stats}");
}

/// A client in the middle of a hit that has read a little and holds still.
fn paused_hit(proxy: &Proxy, origin: &Origin, body: &Body) -> impl FnOnce() {
    let path = blob_path("lab/img", body);
    let mut client = match origin.is_tls() {
        true => {
            let to = origin.authority();
            Client::secure_narrow(proxy.address(), &to, &proxy.trust(), 8192)
        }
        false => Client::narrow(proxy.address(), 8192),
    };
    let mut transfer = client.begin(&origin.url(&path));
    transfer.read_to(&mut client, 20_000);
    assert_eq!(transfer.head.field("X-Cache"), Some("HIT"));
    let body = body.clone();
    move || transfer.finish(&mut client).assert_is(&body)
}

#[test]
fn eviction_leaves_a_running_transfer_alone() {
    let setup = limited(40 * MEGA);
    let proxy = setup.start();
    for origin in [Origin::http(names::REGISTRY), Origin::https(names::SECOND)] {
        let large = fresh_body(32 * MEGA);
        origin.get(&blob_path("lab/img", &large), Answer::ok(&large));
        pull(&proxy, &origin, &large);
        let finish = paused_hit(&proxy, &origin, &large);
        let other = fresh_body(30 * MEGA);
        origin.get(&blob_path("lab/img", &other), Answer::ok(&other));
        pull(&proxy, &origin, &other);
        let file = setup.blob(&large.sha256());
        wait_until("the eviction", || (!file.exists()).then_some(()));
        finish();
    }
}

#[test]
fn deletion_leaves_running_transfers_alone() {
    let setup = Setup::new();
    let proxy = setup.start();
    for origin in [Origin::http(names::REGISTRY), Origin::https(names::SECOND)] {
        for whole_cache in [false, true] {
            let body = fresh_body(32 * MEGA);
            origin.get(&blob_path("lab/img", &body), Answer::ok(&body));
            pull(&proxy, &origin, &body);
            let finish = paused_hit(&proxy, &origin, &body);
            let target = match whole_cache {
                true => "/api/cache".to_owned(),
                false => format!("/api/cache/{}", body.digest()),
            };
            let left = match whole_cache {
                true => 0,
                false => proxy.stat("current_size") - body.len(),
            };
            assert_eq!(proxy.admin("DELETE", &target, &[]).status, 200);
            assert!(!setup.blob(&body.sha256()).exists());
            assert_eq!(proxy.stat("current_size"), left);
            finish();
            assert!(!pull(&proxy, &origin, &body), "removed, so asked anew");
        }
    }
}

#[test]
fn clearing_leaves_a_running_fill_alone() {
    let setup = Setup::new();
    let proxy = setup.start();
    let registry = Registry::https();
    let body = fresh_body(4 * MEGA);
    let gate = Gate::new();
    let path = registry.gated_blob("lab/img", &body, 2 * MEGA, &gate);
    let url = registry.main.url(&path);
    let mut client = proxy.client(&registry.main);
    let mut transfer = client.begin(&url);
    transfer.read_to(&mut client, MEGA);
    for target in ["/api/cache".to_owned(), format!("/api/cache/{}", body.digest())] {
        let status = proxy.admin("DELETE", &target, &[]).status;
        assert!(matches!(status, 200 | 404), "{status}");
    }
    gate.open();
    transfer.finish(&mut client).assert_is(&body);
    client.get(&url).assert_is(&body);
}

#[test]
fn what_is_only_announced_pushes_nothing_out() {
    let setup = limited(100 * MEGA);
    let proxy = setup.start();
    let registry = Registry::https();
    let stored = fresh_body(60 * MEGA);
    let path = registry.blob("lab/img", &stored);
    proxy.get(&registry.main, &path).assert_is(&stored);
    let claimed = fresh_body(90 * MEGA);
    let gate = Gate::new();
    let claim = registry.gated_blob("lab/img", &claimed, MEGA, &gate);
    let url = registry.main.url(&claim);
    let mut client = proxy.client(&registry.main);
    let mut transfer = client.begin(&url);
    transfer.read_to(&mut client, MEGA / 2);
    proxy.get(&registry.main, &path).assert_hit();
    gate.open();
    transfer.finish(&mut client).assert_is(&claimed);
    proxy.wait_stat("evictions", 1);
    assert_eq!(proxy.stat("current_size"), 90 * MEGA);
}

#[test]
fn a_body_that_turns_out_larger_than_the_cache_is_delivered_and_no_fault() {
    let setup = limited(5 * MEGA);
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    let small = &blobs(&origin, 1)[0];
    pull(&proxy, &origin, small);
    let large = fresh_body(20 * MEGA);
    let path = blob_path("lab/img", &large);
    origin.get(&path, Answer::ok(&large).chunked().ranges());
    proxy.get(&origin, &path).assert_is(&large);
    wait_until("the part's end", || (on_disk(&setup) <= 5 * MEGA).then_some(()));
    assert!(!setup.blob(&large.sha256()).exists());
    assert_eq!(proxy.stat("errors"), 0);
    proxy.wait_log(&["larger than cache.max_size"]);
    let log = proxy.output();
    assert!(!log.contains("caching fails"), "{log}");
    assert!(!log.contains("broken off"), "{log}");
}

#[test]
fn little_room_on_the_file_system_means_passing_through() {
    let setup = Setup::new().with(json!({ "cache": { "min_free": "900TB" } }));
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    for body in blobs(&origin, 3) {
        assert!(!pull(&proxy, &origin, &body));
        assert!(!pull(&proxy, &origin, &body));
    }
    let stats = proxy.stats();
    assert_eq!(stats["current_size"].as_u64(), Some(0), "{stats}");
}
