//! One fetch, however many ask: followers read a growing entry at their own pace, and neither the
//! slow nor the vanished hinder the rest.

mod support;

use std::sync::Barrier;
use std::thread;

use serde_json::{Value, json};
use support::answer::{Answer, Ending, Gate};
use support::body::Body;
use support::client::{Client, Response};
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::Setup;
use support::registry::{Registry, blob_path, manifest_path};
use support::wait_until;

#[test]
fn forty_clients_on_a_cold_100_mb_blob_make_one_fetch() {
    let setup = Setup::new().with(json!({ "proxy": { "workers": 2 } }));
    let proxy = setup.start();
    let registry = Registry::https();
    let plain = Origin::http(names::SECOND);
    let body = fresh_body(100_000_000);
    let path = registry.blob("lab/img", &body);
    plain.get(&path, Answer::ok(&body));
    let (address, trust) = (proxy.address(), proxy.trust());
    let barrier = Barrier::new(40);
    let ask = |number: usize| {
        let (origin, mut client) = match number % 2 {
            0 => (&registry.main, Client::secure(address, &registry.main.authority(), &trust)),
            _ => (&plain, Client::plain(address)),
        };
        barrier.wait();
        client.get(&origin.url(&path))
    };
    let ask = &ask;
    let responses: Vec<Response> = thread::scope(|scope| {
        let threads: Vec<_> = (0..40).map(|number| scope.spawn(move || ask(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a client")).collect()
    });
    let digest = body.sha256();
    for response in &responses {
        assert_eq!((response.status, response.len), (200, body.len()), "{:?}", response.whole);
        assert_eq!((response.whole.clone(), &response.sha256), (Ok(()), &digest));
    }
    assert_eq!(registry.fetches(&body) + plain.seen().len(), 1, "{}", proxy.stats());
    let stats = proxy.stats();
    let number = |name: &str| stats[name].as_u64().unwrap_or(u64::MAX);
    assert_eq!((number("stores"), number("hits") + number("misses")), (1, 40), "{stats}");
    assert_eq!(number("coalesced"), number("misses") - 1, "{stats}");
    let busy = proxy.thread_ticks().into_iter().filter(|ticks| *ticks >= 5).count();
    assert!(busy >= 2, "only {busy} threads did any work: {:?}", proxy.thread_ticks());
}

#[test]
fn followers_read_what_is_there_before_the_fetch_ends() {
    let setup = Setup::new();
    let proxy = setup.start();
    let registry = Registry::https();
    let body = fresh_body(4_000_000);
    let gate = Gate::new();
    let path = registry.gated_blob("lab/img", &body, 3_000_000, &gate);
    let url = registry.main.url(&path);
    let mut readers = Vec::new();
    for _ in 0..8 {
        let mut client = proxy.client(&registry.main);
        let mut transfer = client.begin(&url);
        assert_eq!(transfer.status(), 200);
        assert_eq!(transfer.head.field("Content-Length"), Some("4000000"));
        transfer.read_to(&mut client, 2_000_000);
        readers.push((client, transfer));
    }
    assert!(!setup.blob(&body.sha256()).exists(), "committed before it is whole");
    gate.open();
    for (mut client, transfer) in readers {
        transfer.finish(&mut client).assert_is(&body);
        client.get(&url).assert_hit();
    }
    assert_eq!(registry.fetches(&body), 1);
    let stats = proxy.stats();
    assert_eq!(stats["misses"].as_u64(), Some(8), "{stats}");
    assert_eq!(stats["coalesced"].as_u64(), Some(7), "{stats}");
    assert_eq!(stats["hits"].as_u64(), Some(8), "{stats}");
}

#[test]
fn followers_wait_for_the_head_together() {
    let setup = Setup::new();
    let proxy = setup.start();
    let registry = Registry::https();
    let body = fresh_body(500_000);
    let gate = Gate::new();
    let path = registry.blob_as("lab/img", &body, Answer::ok(&body).gate_head(&gate));
    let url = registry.main.url(&path);
    let mut clients: Vec<Client> = (0..12).map(|_| proxy.client(&registry.main)).collect();
    for client in &mut clients {
        client.start("GET", &url, &[]);
    }
    gate.wait_arrivals(1);
    proxy.wait_stat("misses", 12);
    gate.open();
    for mut client in clients {
        let head = client.head();
        client.rest("GET", head).assert_is(&body);
    }
    assert_eq!(registry.fetches(&body), 1);
}

#[test]
fn a_chunked_upstream_is_followed_too() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    let body = fresh_body(2_000_000);
    let gate = Gate::new();
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body).chunked().gate_at(1_000_000, &gate));
    let url = origin.url(&path);
    let mut readers = Vec::new();
    for _ in 0..4 {
        let mut client = proxy.plain();
        let mut transfer = client.begin(&url);
        assert_eq!(transfer.head.field("Content-Length"), None);
        transfer.read_to(&mut client, 500_000);
        readers.push((client, transfer));
    }
    gate.open();
    for (mut client, transfer) in readers {
        transfer.finish(&mut client).assert_is(&body);
    }
    assert_eq!(origin.count("GET", &path), 1);
}

#[test]
fn a_slow_client_slows_neither_the_fill_nor_the_others() {
    let setup = Setup::new();
    let proxy = setup.start();
    let registry = Registry::https();
    let plain = Origin::http(names::SECOND);
    let body = fresh_body(48_000_000);
    let path = registry.blob("lab/img", &body);
    plain.get(&path, Answer::ok(&body));
    // The first of them is the one whose request makes the fill.
    let mut slow = Vec::new();
    for secure in [true, false, true, false] {
        let (mut client, url) = match secure {
            true => {
                let to = registry.main.authority();
                let client = Client::secure_narrow(proxy.address(), &to, &proxy.trust(), 8192);
                (client, registry.main.url(&path))
            }
            false => (Client::narrow(proxy.address(), 8192), plain.url(&path)),
        };
        let mut transfer = client.begin(&url);
        transfer.read_to(&mut client, 10_000);
        slow.push((client, transfer));
    }
    proxy.wait_stat("stores", 1);
    for origin in [&registry.main, &plain] {
        let quick = proxy.get(origin, &path);
        quick.assert_is(&body);
        quick.assert_hit();
    }
    for (mut client, transfer) in slow {
        transfer.finish(&mut client).assert_is(&body);
    }
    assert_eq!(registry.fetches(&body) + plain.seen().len(), 1);
}

#[test]
fn clients_that_leave_do_not_end_the_fill() {
    let setup = Setup::new();
    let proxy = setup.start();
    let registry = Registry::https();
    let body = fresh_body(8_000_000);
    let gate = Gate::new();
    let path = registry.gated_blob("lab/img", &body, 4_000_000, &gate);
    let url = registry.main.url(&path);
    let mut leaver = proxy.client(&registry.main);
    let mut first = leaver.begin(&url);
    first.read_to(&mut leaver, 1_000_000);
    let mut stayer = proxy.client(&registry.main);
    let mut second = stayer.begin(&url);
    second.read_to(&mut stayer, 1_000_000);
    drop(leaver);
    gate.open();
    second.finish(&mut stayer).assert_is(&body);
    let hit = proxy.get(&registry.main, &path);
    hit.assert_is(&body);
    hit.assert_hit();
    assert_eq!(registry.fetches(&body), 1);
    assert_eq!(proxy.stat("errors"), 0, "a client that leaves is no error");
}

#[test]
fn a_fill_goes_on_when_every_client_has_left() {
    let setup = Setup::new();
    let proxy = setup.start();
    let registry = Registry::https();
    let body = fresh_body(8_000_000);
    let gate = Gate::new();
    let path = registry.gated_blob("lab/img", &body, 4_000_000, &gate);
    for _ in 0..3 {
        let mut client = proxy.client(&registry.main);
        let mut transfer = client.begin(&registry.main.url(&path));
        transfer.read_to(&mut client, 100_000);
    }
    gate.open();
    proxy.wait_stat("stores", 1);
    proxy.get(&registry.main, &path).assert_hit();
    assert_eq!(registry.fetches(&body), 1);
}

#[test]
fn joiners_survive_a_leader_that_leaves_before_the_head() {
    let setup = Setup::new();
    let proxy = setup.start();
    let registry = Registry::https();
    let body = fresh_body(1_000_000);
    let gate = Gate::new();
    let path = registry.blob_as("lab/img", &body, Answer::ok(&body).gate_head(&gate));
    let url = registry.main.url(&path);
    let mut leader = proxy.client(&registry.main);
    leader.start("GET", &url, &[]);
    gate.wait_arrivals(1);
    let mut joiner = proxy.client(&registry.main);
    joiner.start("GET", &url, &[]);
    proxy.wait_stat("misses", 2);
    drop(leader);
    gate.open();
    let head = joiner.head();
    joiner.rest("GET", head).assert_is(&body);
    assert!(registry.fetches(&body) <= 2, "{}", registry.fetches(&body));
    proxy.wait_stat("stores", 1);
}

#[test]
fn joiners_of_an_answer_that_is_not_stored_all_get_theirs() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(50_000);
    let path = blob_path("lab/img", &body);
    let gates = [Gate::new(), Gate::new()];
    for (gate, status) in gates.iter().zip([404, 200]) {
        let answer = Answer::status(status, &body).with("Cache-Control", "no-store");
        origin.get(&path, answer.gate_head(gate));
        let before = proxy.stat("misses");
        let mut clients: Vec<Client> = (0..8).map(|_| proxy.client(&origin)).collect();
        for client in &mut clients {
            client.start("GET", &path, &[]);
        }
        gate.wait_arrivals(1);
        proxy.wait_stat("misses", before + 8);
        gate.open();
        for mut client in clients {
            let head = client.head();
            let response = client.rest("GET", head);
            assert_eq!((response.status, response.len), (status, body.len()));
            assert_eq!(response.sha256, body.sha256());
        }
    }
    assert!(origin.count("GET", &path) <= 16, "{}", origin.count("GET", &path));
    assert_eq!(proxy.stat("stores"), 0);
}

#[test]
fn joiners_of_an_answer_that_is_not_stored_never_queue_behind_each_other() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(50_000);
    let path = blob_path("lab/img", &body);
    let (head, tail) = (Gate::new(), Gate::new());
    let answer = Answer::ok(&body).with("Cache-Control", "no-store").gate_at(25_000, &tail);
    origin.get(&path, answer.gate_head(&head));
    let mut clients: Vec<Client> = (0..6).map(|_| proxy.client(&origin)).collect();
    for client in &mut clients {
        client.start("GET", &path, &[]);
    }
    head.wait_arrivals(1);
    proxy.wait_stat("misses", 6);
    head.open();
    // All six stand in mid-body at once: none waits for another's end.
    tail.wait_arrivals(6);
    tail.open();
    for mut client in clients {
        let head = client.head();
        client.rest("GET", head).assert_is(&body);
    }
}

#[test]
fn a_wrong_digest_reaches_none_of_twenty_readers_whole() {
    let setup = Setup::new();
    let proxy = setup.start();
    let registry = Registry::https();
    let body = fresh_body(2_000_000);
    let gate = Gate::new();
    let bad = Answer::ok(&body).corrupt_at(1_999_999).gate_at(1_000_000, &gate);
    let path = registry.blob_as("lab/img", &body, bad);
    let url = registry.main.url(&path);
    let mut readers = Vec::new();
    for _ in 0..20 {
        let mut client = proxy.client(&registry.main);
        let mut transfer = client.begin(&url);
        transfer.read_to(&mut client, 500_000);
        readers.push((client, transfer));
    }
    gate.open();
    for (mut client, transfer) in readers {
        let response = transfer.finish(&mut client);
        assert!(response.whole.is_err() && response.len < body.len(), "{}", response.len);
    }
    assert!(!setup.blob(&body.sha256()).exists());
    assert_eq!(proxy.stat("stores"), 0);
    assert!(proxy.stat("errors") >= 1);
    proxy.wait_log(&[names::REGISTRY, &body.sha256()]);
    registry.blob("lab/img", &body);
    proxy.get(&registry.main, &path).assert_is(&body);
}

#[test]
fn a_broken_fetch_reaches_every_reader_as_broken() {
    let setup = Setup::new().with(json!({ "upstream": { "retries": 0 } }));
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    let body = fresh_body(2_000_000);
    let gate = Gate::new();
    let path = blob_path("lab/img", &body);
    let broken = Answer::ok(&body).gate_at(1_000_000, &gate).ends_at(1_500_000, Ending::Reset);
    origin.script("GET", &path, [broken, Answer::ok(&body)]);
    let mut readers = Vec::new();
    for _ in 0..5 {
        let mut client = proxy.plain();
        let mut transfer = client.begin(&origin.url(&path));
        transfer.read_to(&mut client, 500_000);
        readers.push((client, transfer));
    }
    gate.open();
    for (mut client, transfer) in readers {
        let response = transfer.finish(&mut client);
        // Either cut short, or (once fills resume) whole and right; never whole and wrong.
        match response.whole {
            Ok(()) => response.assert_is(&body),
            Err(_) => assert!(response.len < body.len()),
        }
    }
    proxy.get(&origin, &path).assert_is(&body);
}

#[test]
fn many_fills_run_side_by_side() {
    let setup = Setup::new();
    let proxy = setup.start();
    let registry = Registry::https();
    let bodies: Vec<Body> = (0..24).map(|i| fresh_body(200_000 + i * 10_007)).collect();
    let gate = Gate::new();
    let mut readers = Vec::new();
    for body in &bodies {
        let path = registry.gated_blob("lab/img", body, 100_000, &gate);
        let mut client = proxy.client(&registry.main);
        let transfer = client.begin(&registry.main.url(&path));
        readers.push((client, transfer, body));
    }
    gate.wait_arrivals(bodies.len());
    gate.open();
    for (mut client, transfer, body) in readers {
        transfer.finish(&mut client).assert_is(body);
        assert_eq!(registry.fetches(body), 1);
    }
    let total: u64 = bodies.iter().map(Body::len).sum();
    wait_until("every entry stored", || (proxy.stat("current_size") == total).then_some(()));
}

#[test]
fn clients_of_a_manifest_stored_from_elsewhere_make_one_fetch() {
    const CLIENTS: usize = 24;
    const KIND: &str = "application/vnd.oci.image.manifest.v1+json";
    const MINE: (&str, &str) = ("Authorization", "Basic bWluZQ==");
    for access in ["trust", "verify"] {
        let setup = Setup::new().with(json!({ "cache": { "access": access } }));
        let proxy = setup.start();
        let (origin, elsewhere) = (Origin::https(names::REGISTRY), Origin::https(names::SECOND));
        let body = fresh_body(3_000);
        let path = manifest_path("lab/img", &body);
        let answer = || {
            let answer = Answer::ok(&body).with("Content-Type", KIND);
            answer.with("Docker-Distribution-Api-Version", "registry/2.0")
        };
        elsewhere.get(&path, answer());
        proxy.get(&elsewhere, &path).assert_is(&body);
        let gate = Gate::new();
        let mine = |answer: Answer| answer.wants(MINE.1, "Basic");
        origin.get(&path, mine(answer().gate_head(&gate)));
        origin.on("HEAD", &path, mine(answer()));
        let mut clients: Vec<Client> = (0..CLIENTS).map(|_| proxy.client(&origin)).collect();
        for client in &mut clients {
            client.start("GET", &path, &[MINE]);
        }
        proxy.wait_stat("coalesced", CLIENTS as u64 - 1);
        let mut stranger = proxy.client(&origin);
        stranger.start("GET", &path, &[("Authorization", "Basic b3RoZXI=")]);
        proxy.wait_stat("coalesced", CLIENTS as u64);
        gate.open();
        for mut client in clients {
            let head = client.head();
            let response = client.rest("GET", head);
            response.assert_is(&body);
            assert_eq!(response.field("Content-Type"), Some(KIND));
        }
        let head = stranger.head();
        let status = if access == "trust" { 200 } else { 401 };
        assert_eq!(stranger.rest("GET", head).status, status, "{access}");
        let all = origin.seen_at(&path).into_iter();
        let fetches = all.filter(|seen| seen.method == "GET" && seen.field(MINE.0) == Some(MINE.1));
        assert_eq!(fetches.count(), 1, "{access}");
    }
}

#[test]
fn joiners_of_a_fill_that_never_begins_are_answered_as_the_first_is() {
    let cdn = json!([format!("{}/32", names::address(names::CDN))]);
    let setup = Setup::new().with(json!({ "proxy": { "deny_destinations": cdn } }));
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let denied = format!("https://{}/data", names::CDN);
    let dead = format!("https://{}:5000/data", names::DEAD);
    let rows = [
        (403, Answer::redirect(307, denied)),
        (502, Answer::raw("nonsense\r\n\r\n")),
        (503, Answer::redirect(307, dead)),
    ];
    for (status, answer) in rows {
        let path = blob_path("lab/img", &fresh_body(50_000));
        let gate = Gate::new();
        origin.get(&path, answer.gate_head(&gate));
        let joined = proxy.stat("coalesced") + 3;
        let mut clients: Vec<Client> = (0..4).map(|_| proxy.client(&origin)).collect();
        for client in &mut clients {
            client.start("GET", &path, &[]);
        }
        proxy.wait_stat("coalesced", joined);
        gate.open();
        let answers: Vec<Response> = clients
            .iter_mut()
            .map(|client| {
                let head = client.head();
                client.rest("GET", head)
            })
            .collect();
        let said = |answer: &Response| {
            answer.assert_own_error(&[status]);
            let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
            let error = &body["errors"][0];
            (error["code"].clone(), error["message"].clone())
        };
        assert!(answers.iter().all(|answer| said(answer) == said(&answers[0])), "{answers:?}");
        assert_eq!(origin.count("GET", &path), 1);
    }
}

#[test]
fn a_joiner_from_another_registry_asks_it_where_the_joined_one_fails() {
    let setup = Setup::new();
    let proxy = setup.start();
    let (broken, good) = (Origin::https(names::REGISTRY), Origin::https(names::SECOND));
    let body = fresh_body(50_000);
    let path = blob_path("lab/img", &body);
    let gate = Gate::new();
    broken.get(&path, Answer::raw("nonsense\r\n\r\n").gate_head(&gate));
    good.get(&path, Answer::ok(&body));
    let mut first = proxy.client(&broken);
    first.start("GET", &path, &[]);
    gate.wait_arrivals(1);
    let mut joiner = proxy.client(&good);
    joiner.start("GET", &path, &[]);
    proxy.wait_stat("coalesced", 1);
    gate.open();
    let head = first.head();
    first.rest("GET", head).assert_own_error(&[502]);
    let head = joiner.head();
    joiner.rest("GET", head).assert_is(&body);
}
