//! Thousands of connections of every kind leave nothing behind. `DISCOBOT_LONG=1` makes a hundred
//! thousand of them.

mod support;

use std::path::Path;
use std::thread;

use support::answer::Answer;
use support::body::Body;
use support::client::Client;
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::blob_path;
use support::wait_until;

const THREADS: usize = 4;

/// Memory that allocators keep for later, in KiB.
const SLACK: u64 = 8 * 1024;

/// One connection; what it does goes by its number.
fn connection(number: usize, proxy: &Proxy, origins: &[Origin; 2], body: &Body) {
    let (plain, secure) = (&origins[0], &origins[1]);
    let path = blob_path("lab/img", body);
    match number % 6 {
        0 => proxy.get(plain, &path).assert_is(body),
        1 => proxy.get(secure, &path).assert_is(body),
        2 => {
            let mut client = proxy.client(secure);
            let mut transfer = client.begin(&secure.url(&path));
            transfer.read_to(&mut client, 1_000);
        }
        3 => assert_eq!(proxy.get(plain, "/v2/").text(), "{}"),
        4 => drop(Client::tunnel(proxy.address(), &secure.authority())),
        _ => assert_eq!(proxy.get(plain, "/none").status, 404),
    }
}

fn descriptors(proxy: &Proxy) -> usize {
    let folder = Path::new("/proc").join(proxy.pid().to_string()).join("fd");
    std::fs::read_dir(folder).expect("its descriptors").count()
}

/// Makes so many connections, and waits until they are gone: RSS in KiB, and descriptors.
fn storm(count: usize, proxy: &Proxy, origins: &[Origin; 2], body: &Body) -> (u64, usize) {
    thread::scope(|scope| {
        for first in 0..THREADS {
            scope.spawn(move || {
                for number in (first..count).step_by(THREADS) {
                    connection(number, proxy, origins, body);
                }
            });
        }
    });
    wait_until("the connections' ends", || (proxy.stat("connections") == 0).then_some(()));
    (proxy.status_number("VmRSS:"), descriptors(proxy))
}

#[test]
fn thousands_of_connections_leave_nothing_behind() {
    let all = if std::env::var_os("DISCOBOT_LONG").is_some() { 100_000 } else { 3_000 };
    let setup = Setup::new();
    let proxy = setup.start();
    let origins = [Origin::http(names::SECOND), Origin::https(names::REGISTRY)];
    let body = fresh_body(50_000);
    for origin in &origins {
        origin.get(&blob_path("lab/img", &body), Answer::ok(&body));
        origin.get("/v2/", Answer::status(200, "{}"));
    }
    let (rss, open) = storm(600, &proxy, &origins, &body);
    let (rss_after, open_after) = storm(all, &proxy, &origins, &body);
    println!("{all} connections: {rss} to {rss_after} KiB, {open} to {open_after} descriptors");
    assert!(rss_after <= rss + SLACK, "{rss} to {rss_after} KiB");
    // Idle upstream connections come and go.
    assert!(open_after <= open + 2 * THREADS, "{open} to {open_after} descriptors");
}
