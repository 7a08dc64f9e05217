//! Without io_uring, as under the seccomp profiles of container engines: the same proxy on epoll.
//!
//! These are one test of each kind. `DISCOBOT_SECCOMP=1 cargo test --test NAME` runs any other file
//! of tests that way; `scripts/test.sh` does so with all but the longest.

mod support;

use std::io::{Read, Write};

use serde_json::json;
use support::answer::{Answer, Gate};
use support::client::{Client, Payload, try_dial};
use support::names;
use support::origin::{Origin, bare_server, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::{Registry, blob_path};
use support::seccomp::{ENOSYS, EPERM, has_io_uring};
use support::wait_until;

fn start(setup: &Setup) -> Proxy {
    let proxy = setup.start();
    assert_driver(&proxy, "epoll");
    proxy
}

fn assert_driver(proxy: &Proxy, driver: &str) {
    proxy.wait_log(&["proxy=", "admin=", &format!("driver={driver}")]);
    let health = proxy.admin("GET", "/health", &[]).json();
    assert_eq!((&health["status"], &health["driver"]), (&json!("ok"), &json!(driver)));
}

fn setup() -> Setup {
    Setup::new().without_io_uring(EPERM)
}

#[test]
fn the_start_up_line_and_health_say_which_driver_runs() {
    for errno in [EPERM, ENOSYS] {
        let setup = Setup::new().without_io_uring(errno);
        start(&setup).stop();
    }
    let usual = if has_io_uring() { "io_uring" } else { "epoll" };
    let setup = Setup::new();
    let proxy = setup.start();
    assert_driver(&proxy, usual);
    proxy.stop();
}

#[test]
fn a_miss_its_joiners_and_hits() {
    let setup = setup();
    let proxy = start(&setup);
    let registry = Registry::https();
    let plain = Origin::http(names::SECOND);
    let body = fresh_body(20_000_000);
    let gate = Gate::new();
    let path = registry.gated_blob("lab/img", &body, 10_000_000, &gate);
    plain.get(&path, Answer::ok(&body));
    let mut readers = Vec::new();
    for number in 0..10 {
        let origin = if number % 2 == 0 { &registry.main } else { &plain };
        let mut client = proxy.client(origin);
        let mut transfer = client.begin(&origin.url(&path));
        // What is there goes out while upstream stands still.
        transfer.read_to(&mut client, 9_000_000);
        readers.push((client, transfer));
    }
    gate.open();
    for (mut client, transfer) in readers {
        let response = transfer.finish(&mut client);
        response.assert_is(&body);
        response.assert_not_hit();
    }
    assert_eq!(registry.fetches(&body) + plain.seen().len(), 1);
    for origin in [&registry.main, &plain] {
        let mut client = proxy.client(origin);
        for _ in 0..3 {
            let hit = client.get(&origin.url(&path));
            hit.assert_is(&body);
            hit.assert_hit();
        }
        let part = client.get_with(&origin.url(&path), &[("Range", "bytes=12345678-12445677")]);
        assert_eq!((part.status, part.len), (206, 100_000));
        assert_eq!(part.body, body.slice(12_345_678, 12_445_678));
        assert_eq!(part.field("Content-Range"), Some("bytes 12345678-12445677/20000000"));
    }
    let url = registry.main.url(&path);
    let head = proxy.client(&registry.main).request("HEAD", &url, &[], Payload::None);
    head.assert_hit();
    assert_eq!(head.field("Content-Length"), Some("20000000"));
    assert_eq!(registry.fetches(&body) + plain.seen().len(), 1);
}

#[test]
fn eviction_and_deletion_under_running_transfers() {
    let setup = setup().with(json!({ "cache": { "max_size": 40_000_000 } }));
    let proxy = start(&setup);
    for origin in [Origin::http(names::SECOND), Origin::https(names::REGISTRY)] {
        let large = fresh_body(32_000_000);
        origin.get(&blob_path("lab/img", &large), Answer::ok(&large));
        proxy.get(&origin, &blob_path("lab/img", &large)).assert_is(&large);
        let mut client = proxy.client(&origin);
        let mut transfer = client.begin(&origin.url(&blob_path("lab/img", &large)));
        transfer.read_to(&mut client, 20_000);
        let other = fresh_body(30_000_000);
        origin.get(&blob_path("lab/img", &other), Answer::ok(&other));
        proxy.get(&origin, &blob_path("lab/img", &other)).assert_is(&other);
        let file = setup.blob(&large.sha256());
        wait_until("the eviction", || (!file.exists()).then_some(()));
        assert_eq!(proxy.admin("DELETE", "/api/cache", &[]).status, 200);
        assert_eq!(proxy.stat("current_size"), 0);
        let response = transfer.finish(&mut client);
        response.assert_is(&large);
        response.assert_hit();
    }
}

#[test]
fn pushes_of_either_kind() {
    let setup = setup();
    let proxy = start(&setup);
    for origin in [Origin::http(names::SECOND), Origin::https(names::REGISTRY)] {
        let body = fresh_body(16_000_000);
        origin.on("PUT", "/upload", Answer::status(201, "made"));
        let mut client = proxy.client(&origin);
        for payload in [Payload::Length(&body), Payload::Chunked(&body)] {
            let url = origin.url("/upload");
            let answer = client.request("PUT", &url, &[("Expect", "100-continue")], payload);
            assert_eq!((answer.status, answer.text().as_str()), (201, "made"));
        }
        for upload in origin.seen_at("/upload") {
            assert_eq!(upload.body_sha256, Some(body.sha256()));
        }
    }
}

#[test]
fn a_relayed_tunnel() {
    let setup = setup();
    let proxy = start(&setup);
    let server = bare_server(names::OTHER, |mut tcp| {
        let mut all = Vec::new();
        tcp.read_to_end(&mut all)?;
        tcp.write_all(&all)
    });
    let authority = format!("{}:{}", names::OTHER, server.port());
    let tunnel = Client::tunnel(proxy.address(), &authority).expect("a tunnel");
    let said = fresh_body(3_000_000).to_vec();
    (&tunnel).write_all(&said).expect("sending");
    tunnel.shutdown(std::net::Shutdown::Write).expect("the end of our half");
    let mut heard = Vec::new();
    (&tunnel).read_to_end(&mut heard).expect("the answer");
    assert!(heard == said, "{} of {} bytes came back, or others", heard.len(), said.len());
}

#[test]
fn sigterm_lets_a_running_transfer_finish() {
    let setup = setup();
    let mut proxy = start(&setup);
    let registry = Registry::https();
    let body = fresh_body(4_000_000);
    let gate = Gate::new();
    let path = registry.gated_blob("lab/img", &body, 2_000_000, &gate);
    let mut client = proxy.client(&registry.main);
    let mut transfer = client.begin(&registry.main.url(&path));
    transfer.read_to(&mut client, 1_000_000);
    let address = proxy.address();
    proxy.signal("TERM");
    wait_until("new connections to be refused", || try_dial(address, None).is_err().then_some(()));
    gate.open();
    transfer.finish(&mut client).assert_is(&body);
    assert_eq!(proxy.wait_exit().code(), Some(0), "{}", proxy.output());
    assert!(setup.blob(&body.sha256()).exists(), "the fill was finished, so it is kept");
}
