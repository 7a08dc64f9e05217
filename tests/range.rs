//! Ranges: of an entry, of a running fill, of nothing yet. A part is what was asked for, it comes as
//! soon as its bytes are there, and however many ask for parts, the whole is fetched once.

mod support;

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use serde_json::json;
use support::answer::{Answer, Gate};
use support::body::{Body, sha256};
use support::client::{Client, Response, Transfer};
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::{Registry, blob_path, manifest_path};

const FILES: &str = "^/files/";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const BLOBS: &str = "^/v2/.*/(blobs|manifests)/sha256:";

/// A proxy that stores files by their URL beside blobs and manifests.
fn with_files() -> Setup {
    Setup::new().with(json!({ "cache": { "patterns": [FILES, BLOBS] } }))
}

/// One over TLS, one plain: their bytes leave the proxy by different ways.
fn origins() -> [Origin; 2] {
    [Origin::https(names::REGISTRY), Origin::http(names::SECOND)]
}

fn ranged(proxy: &Proxy, origin: &Origin, path: &str, range: &str) -> Response {
    proxy.get_with(origin, path, &[("Range", range)])
}

/// Sends a ranged GET on a connection of its own and reads the head of its answer.
fn begin(proxy: &Proxy, origin: &Origin, path: &str, range: &str) -> (Client, Transfer) {
    let mut client = proxy.client(origin);
    let transfer = client.begin_with(&origin.url(path), &[("Range", range)]);
    (client, transfer)
}

/// Stores what `path` answers.
fn store(proxy: &Proxy, origin: &Origin, path: &str, body: &Body) {
    proxy.get(origin, path).assert_is(body);
    proxy.get(origin, path).assert_hit();
}

#[test]
fn a_range_of_an_entry_is_that_part() {
    let setup = Setup::new();
    let proxy = setup.start();
    for origin in origins() {
        let body = fresh_body(300_000);
        let path = blob_path("lab/img", &body);
        origin.get(&path, Answer::ok(&body));
        store(&proxy, &origin, &path, &body);
        let (hits, errors) = (proxy.stat("hits"), proxy.stat("errors"));
        let rows = [
            ("bytes=0-", Some((0, 300_000))),
            ("bytes=0-0", Some((0, 1))),
            ("bytes=0-299999", Some((0, 300_000))),
            ("bytes=100-199", Some((100, 200))),
            ("bytes=70000-250000", Some((70_000, 250_001))),
            ("bytes=299999-", Some((299_999, 300_000))),
            ("bytes=299999-300000", Some((299_999, 300_000))),
            ("bytes=250000-99999999999999999999", Some((250_000, 300_000))),
            ("bytes=-1", Some((299_999, 300_000))),
            ("bytes=-100000", Some((200_000, 300_000))),
            ("bytes=-300000", Some((0, 300_000))),
            ("bytes=-300001", Some((0, 300_000))),
            ("Bytes=5-5", Some((5, 6))),
            ("bytes=300000-", None),
            ("bytes=300000-400000", None),
            ("bytes=99999999999999999999-", None),
            ("bytes=-0", None),
        ];
        let mut client = proxy.client(&origin);
        for (range, expected) in rows {
            let response = client.get_with(&origin.url(&path), &[("Range", range)]);
            match expected {
                Some(part) => response.assert_part(&body, part),
                None => response.assert_unsatisfiable(body.len()),
            }
            response.assert_hit();
            assert_eq!(response.field("ETag"), Some(format!("\"{}\"", body.digest()).as_str()));
            assert_eq!(response.field("Accept-Ranges"), Some("bytes"));
        }
        assert_eq!(origin.seen().len(), 1, "an entry's range went upstream");
        assert_eq!(proxy.stat("hits"), hits + rows.len() as u64);
        assert_eq!(proxy.stat("errors"), errors);
    }
}

#[test]
fn several_ranges_or_nonsense_are_the_whole() {
    let setup = Setup::new();
    let proxy = setup.start();
    for origin in origins() {
        let body = fresh_body(200_000);
        let path = blob_path("lab/img", &body);
        origin.get(&path, Answer::ok(&body));
        store(&proxy, &origin, &path, &body);
        let mut client = proxy.client(&origin);
        for ranges in [
            &["bytes=0-1,5-6"][..],
            &["bytes=0-1, 5-6"],
            &["bytes=0-1", "bytes=5-6"],
            &["bytes=0-1", "bytes=0-1"],
            &["bytes=9-5"],
            &["bytes=-"],
            &["bytes=a-b"],
            &["bytes=1"],
            &["bytes 0-5"],
            &["lines=0-5"],
            &["0-5"],
            &[""],
        ] {
            let fields: Vec<_> = ranges.iter().map(|range| ("Range", *range)).collect();
            let response = client.get_with(&origin.url(&path), &fields);
            response.assert_is(&body);
            response.assert_hit();
            assert_eq!(response.field("Content-Range"), None, "{ranges:?}");
        }
        assert_eq!(origin.seen().len(), 1);
    }
}

#[test]
fn if_range_gives_the_part_only_of_what_the_client_began_with() {
    const MODIFIED: &str = "Tue, 15 Nov 2022 12:45:26 GMT";
    let setup = with_files();
    let proxy = setup.start();
    for origin in origins() {
        let body = fresh_body(100_000);
        let (blob, own) = (blob_path("lab/img", &body), format!("\"{}\"", body.digest()));
        let weak = format!("W/{own}");
        // (path, fields of the stored answer, If-Range, whether it is the same)
        let rows = [
            (blob.as_str(), None, own.as_str(), true),
            (&blob, None, "\"sha256:0000\"", false),
            (&blob, None, &weak, false),
            (&blob, None, MODIFIED, false),
            (&blob, None, "", false),
            ("/files/e", Some(("ETag", "\"one\"")), "\"one\"", true),
            ("/files/e", Some(("ETag", "\"one\"")), "\"two\"", false),
            ("/files/e", Some(("ETag", "\"one\"")), "W/\"one\"", false),
            ("/files/e", Some(("ETag", "\"one\"")), MODIFIED, false),
            ("/files/w", Some(("ETag", "W/\"one\"")), "W/\"one\"", false),
            ("/files/w", Some(("ETag", "W/\"one\"")), "\"one\"", false),
            ("/files/m", Some(("Last-Modified", MODIFIED)), MODIFIED, true),
            ("/files/m", Some(("Last-Modified", MODIFIED)), "Tue, 15 Nov 2022 12:45:27 GMT", false),
            ("/files/m", Some(("Last-Modified", MODIFIED)), "\"one\"", false),
        ];
        for (path, field, given, same) in rows {
            let mut answer = Answer::ok(&body);
            if let Some((name, value)) = field {
                answer = answer.with(name, value);
            }
            origin.get(path, answer);
            proxy.get(&origin, path).assert_is(&body);
            let fields = [("Range", "bytes=1000-1999"), ("If-Range", given)];
            let response = proxy.get_with(&origin, path, &fields);
            response.assert_hit();
            match same {
                true => response.assert_part(&body, (1_000, 2_000)),
                false => response.assert_is(&body),
            }
            // Without a range it means nothing.
            proxy.get_with(&origin, path, &[("If-Range", given)]).assert_is(&body);
        }
    }
}

#[test]
fn if_range_means_the_same_of_nothing_yet_and_of_a_running_fill() {
    let setup = with_files();
    let proxy = setup.start();
    for origin in origins() {
        let body = fresh_body(1_000_000);
        let own = format!("\"{}\"", body.digest());
        let paths = [(blob_path("lab/img", &body), own), ("/files/i".into(), "\"up\"".into())];
        for (path, etag) in paths {
            let gate = Gate::new();
            origin.get(&path, Answer::ok(&body).with("ETag", "\"up\"").gate_at(500_000, &gate));
            // The first begins the fill, the others join it.
            let rows = [(etag.clone(), true), (etag.clone(), true), ("\"no\"".into(), false)];
            let mut waiting = Vec::new();
            for (given, same) in rows.into_iter().chain([(format!("W/{etag}"), false)]) {
                let mut client = proxy.client(&origin);
                let fields = [("Range", "bytes=400000-599999"), ("If-Range", given.as_str())];
                let mut transfer = client.begin_with(&origin.url(&path), &fields);
                assert_eq!(transfer.status(), if same { 206 } else { 200 }, "{given}");
                transfer.read_to(&mut client, 90_000);
                waiting.push((client, transfer, same));
            }
            gate.open();
            for (mut client, transfer, same) in waiting {
                let response = transfer.finish(&mut client);
                match same {
                    true => response.assert_part(&body, (400_000, 600_000)),
                    false => response.assert_is(&body),
                }
            }
            let asked = origin.only(&path);
            assert_eq!((asked.field("Range"), asked.field("If-Range")), (None, None));
        }
    }
}

#[test]
fn a_range_of_an_empty_body_is_the_empty_body() {
    let setup = with_files();
    let proxy = setup.start();
    let empty = Body::bytes("");
    for origin in origins() {
        for range in ["bytes=0-", "bytes=0-99", "bytes=-5", "bytes=7-"] {
            proxy.admin("DELETE", &format!("/api/cache/{}", empty.digest()), &[]);
            let path = blob_path("lab/img", &empty);
            origin.get(&path, Answer::ok(&empty));
            for hit in [false, true] {
                let response = ranged(&proxy, &origin, &path, range);
                response.assert_is(&empty);
                assert_eq!(response.field("X-Cache").is_some(), hit, "{range}");
            }
        }
    }
}

#[test]
fn a_range_on_a_running_fill_is_answered_as_soon_as_its_bytes_are_there() {
    let setup = Setup::new();
    let proxy = setup.start();
    let plain = Origin::http(names::SECOND);
    let registry = Registry::https();
    let body = fresh_body(3_000_000);
    let gate = Gate::new();
    let path = registry.gated_blob("lab/img", &body, 1_000_000, &gate);
    let mut filler = proxy.client(&registry.main);
    let mut filling = filler.begin(&registry.main.url(&path));
    filling.read_to(&mut filler, 1_000_000);
    // Upstream stands still from here on: what is answered whole is answered from the fill.
    gate.wait_arrivals(1);
    let mut waiting = Vec::new();
    for origin in [&registry.main, &plain] {
        for (from, to) in [(0, 1), (0, 100_000), (400_000, 999_999), (999_999, 1_000_000)] {
            let range = format!("bytes={from}-{}", to - 1);
            ranged(&proxy, origin, &path, &range).assert_part(&body, (from, to));
        }
        ranged(&proxy, origin, &path, "bytes=3000000-").assert_unsatisfiable(body.len());
        // (range, its part, how much of it is there)
        let rows = [
            ("bytes=0-", (0, 3_000_000), 1_000_000),
            ("bytes=600000-", (600_000, 3_000_000), 400_000),
            ("bytes=600000-99999999", (600_000, 3_000_000), 400_000),
            ("bytes=900000-1999999", (900_000, 2_000_000), 100_000),
            ("bytes=1000000-", (1_000_000, 3_000_000), 0),
            ("bytes=2000000-2000000", (2_000_000, 2_000_001), 0),
            ("bytes=-100", (2_999_900, 3_000_000), 0),
        ];
        for (range, (from, to), there) in rows {
            let (mut client, mut transfer) = begin(&proxy, origin, &path, range);
            transfer.assert_promises((from, to, body.len()));
            transfer.read_to(&mut client, there);
            waiting.push((client, transfer, (from, to)));
        }
    }
    assert_eq!(registry.fetches(&body), 1);
    gate.open();
    for (mut client, transfer, part) in waiting {
        transfer.finish(&mut client).assert_part(&body, part);
    }
    filling.finish(&mut filler).assert_is(&body);
    assert_eq!((registry.fetches(&body), plain.seen().len()), (1, 0), "{}", proxy.stats());
    assert_eq!((proxy.stat("errors"), proxy.stat("stores")), (0, 1));
}

#[test]
fn a_range_of_nothing_yet_fetches_the_whole_once() {
    let setup = with_files();
    let proxy = setup.start();
    // (range, the part; None: no byte of it exists)
    let rows = [
        ("bytes=0-", Some((0, 500_000))),
        ("bytes=0-0", Some((0, 1))),
        ("bytes=100000-199999", Some((100_000, 200_000))),
        ("bytes=499999-", Some((499_999, 500_000))),
        ("bytes=-1000", Some((499_000, 500_000))),
        ("bytes=500000-", None),
    ];
    for origin in origins() {
        for (number, (range, part)) in rows.into_iter().enumerate() {
            let body = fresh_body(500_000);
            let paths = [blob_path("lab/img", &body), format!("/files/{number}")];
            for path in paths {
                let answer = Answer::ok(&body).ranges().with("ETag", "\"up\"");
                origin.get(&path, answer.with("Last-Modified", "Tue, 15 Nov 2022 12:45:26 GMT"));
                let first = ranged(&proxy, &origin, &path, range);
                first.assert_not_hit();
                match part {
                    Some(part) => first.assert_part(&body, part),
                    None => first.assert_unsatisfiable(body.len()),
                }
                // It was stored, or is at once: nobody asks upstream a second time.
                proxy.get(&origin, &path).assert_is(&body);
                let asked = origin.only(&path);
                for name in ["Range", "If-Range"] {
                    assert_eq!(asked.field(name), None, "{range}: {asked:?}");
                }
            }
        }
    }
    proxy.wait_stat("stores", 24);
    assert_eq!(proxy.stat("errors"), 0);
}

#[test]
fn a_range_of_nothing_yet_does_not_wait_for_the_rest() {
    let setup = Setup::new();
    let proxy = setup.start();
    for origin in origins() {
        let body = fresh_body(2_000_000);
        let gate = Gate::new();
        let path = blob_path("lab/img", &body);
        origin.get(&path, Answer::ok(&body).gate_at(1_000_000, &gate));
        let part = ranged(&proxy, &origin, &path, "bytes=300000-799999");
        part.assert_part(&body, (300_000, 800_000));
        let (mut client, mut transfer) = begin(&proxy, &origin, &path, "bytes=500000-");
        transfer.assert_promises((500_000, 2_000_000, 2_000_000));
        transfer.read_to(&mut client, 500_000);
        assert!(!setup.blob(&body.sha256()).exists());
        gate.open();
        transfer.finish(&mut client).assert_part(&body, (500_000, 2_000_000));
        proxy.get(&origin, &path).assert_hit();
        assert_eq!(origin.count("GET", &path), 1);
    }
}

#[test]
fn parallel_ranges_share_one_fetch() {
    const PARTS: u64 = 24;
    let setup = Setup::new();
    let proxy = setup.start();
    let registry = Registry::https();
    let plain = Origin::http(names::SECOND);
    let body = fresh_body(6_000_007);
    let path = registry.blob("lab/img", &body);
    plain.get(&path, Answer::ok(&body));
    let barrier = Barrier::new(PARTS as usize);
    let part = |number: u64| {
        let size = body.len().div_ceil(PARTS);
        (number * size, ((number + 1) * size).min(body.len()))
    };
    let ask = |number: u64| {
        let origin = if number.is_multiple_of(2) { &registry.main } else { &plain };
        let (from, to) = part(number);
        let mut client = proxy.client(origin);
        barrier.wait();
        let range = format!("bytes={from}-{}", to - 1);
        client.get_with(&origin.url(&path), &[("Range", &range)])
    };
    let ask = &ask;
    let responses: Vec<Response> = thread::scope(|scope| {
        let threads: Vec<_> = (0..PARTS).map(|n| scope.spawn(move || ask(n))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a client")).collect()
    });
    for (number, response) in (0..).zip(&responses) {
        response.assert_part(&body, part(number));
    }
    assert_eq!(registry.fetches(&body) + plain.seen().len(), 1, "{}", proxy.stats());
    let stats = proxy.stats();
    let number = |name: &str| stats[name].as_u64().unwrap_or(u64::MAX);
    assert_eq!((number("stores"), number("hits") + number("misses")), (1, PARTS), "{stats}");
    assert_eq!(number("coalesced"), number("misses") - 1, "{stats}");
}

/// What containerd 2.1 does with `concurrent_layer_fetch_buffer`: for each piece a connection of
/// its own asks for everything from there on, reads the piece and closes. Four run at a time.
fn pull_in_pieces(proxy: &Proxy, origin: &Origin, path: &str, body: &Body, piece: u64) {
    let next = AtomicU64::new(0);
    let worker = || {
        loop {
            let from = next.fetch_add(piece, Ordering::SeqCst);
            if from >= body.len() {
                return;
            }
            let range = format!("bytes={from}-");
            let mut client = proxy.client(origin);
            let fields = [("Range", range.as_str()), ("Authorization", "Bearer t")];
            let mut transfer = client.begin_with(&origin.url(path), &fields);
            transfer.assert_promises((from, body.len(), body.len()));
            let to = (from + piece).min(body.len());
            transfer.read_to(&mut client, to - from);
            assert_eq!(transfer.sha256(), sha256(&body.slice(from, to)), "{range}");
        }
    };
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(worker);
        }
    });
}

/// Serves a manifest of one layer; its path.
fn serve_manifest(origin: &Origin, layer: &Body) -> (String, Body) {
    let layers = json!([{ "mediaType": LAYER, "digest": layer.digest(), "size": layer.len() }]);
    let text = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "layers": layers }).to_string();
    let manifest = Body::bytes(text);
    let path = manifest_path("lab/img", &manifest);
    origin.get(&path, Answer::ok(&manifest).with("Content-Type", MANIFEST));
    (path, manifest)
}

#[test]
fn containerds_open_ranges_read_for_one_piece_cost_one_fetch_and_are_no_error() {
    for access in ["trust", "verify"] {
        let setup = Setup::new().with(json!({ "cache": { "access": access } }));
        let proxy = setup.start();
        for registry in [Registry::https(), Registry::http()] {
            let before = proxy.stats();
            let body = fresh_body(9_000_000);
            let gate = Gate::new();
            let path = registry.gated_blob("lab/img", &body, 5_000_000, &gate);
            let (manifest_path, manifest) = serve_manifest(&registry.main, &body);
            for _ in 0..2 {
                let fields = [("Range", "bytes=0-"), ("Authorization", "Bearer t")];
                let response = proxy.get_with(&registry.main, &manifest_path, &fields);
                response.assert_part(&manifest, (0, manifest.len()));
                assert_eq!(response.head.fields("Content-Type"), [MANIFEST]);
            }
            assert_eq!(registry.main.count("GET", &manifest_path), 1);
            thread::scope(|scope| {
                scope.spawn(|| pull_in_pieces(&proxy, &registry.main, &path, &body, 700_000));
                gate.wait_arrivals(1);
                gate.open();
            });
            assert_eq!(registry.fetches(&body), 1, "{access}: {}", proxy.output());
            let stores = before["stores"].as_u64().expect("a counter");
            proxy.wait_stat("stores", stores + 2);
            // The stored entry is read in the same way.
            pull_in_pieces(&proxy, &registry.main, &path, &body, 2_000_000);
            assert_eq!(registry.only_fetch(&body).field("Range"), None);
            assert_eq!(registry.main.count("GET", &path), 1);
            assert_eq!(proxy.stats()["errors"], before["errors"], "{access}: {}", proxy.stats());
        }
        let output = proxy.stop();
        let warned = |line: &str| line.contains("WARN") && !line.contains("cache.access is trust");
        assert!(!output.lines().any(warned) && !output.contains("ERROR"), "{output}");
    }
}

#[test]
fn a_range_of_a_body_of_unknown_length_is_the_whole() {
    let setup = Setup::new();
    let proxy = setup.start();
    for origin in origins() {
        for shape in [Answer::chunked as fn(Answer) -> Answer, Answer::until_close] {
            let body = fresh_body(900_000);
            let gate = Gate::new();
            let path = blob_path("lab/img", &body);
            origin.get(&path, shape(Answer::ok(&body)).gate_at(400_000, &gate));
            // The first begins the fill, the others join it.
            let mut waiting = Vec::new();
            for range in ["bytes=100000-199999", "bytes=300000-", "bytes=-5"] {
                let (mut client, mut transfer) = begin(&proxy, &origin, &path, range);
                assert_eq!(transfer.status(), 200, "{range}: {:?}", transfer.head);
                assert_eq!(transfer.head.field("Content-Range"), None);
                transfer.read_to(&mut client, 350_000);
                waiting.push((client, transfer));
            }
            gate.open();
            for (mut client, transfer) in waiting {
                transfer.finish(&mut client).assert_is(&body);
            }
            let part = ranged(&proxy, &origin, &path, "bytes=300000-");
            part.assert_hit();
            part.assert_part(&body, (300_000, 900_000));
            assert_eq!(origin.count("GET", &path), 1);
        }
    }
    assert_eq!(proxy.stat("errors"), 0);
}

#[test]
fn a_range_of_what_is_not_stored_is_upstreams_to_answer() {
    let setup = Setup::new();
    let proxy = setup.start();
    for origin in origins() {
        let body = fresh_body(400_000);
        let path = blob_path("lab/img", &body);
        origin.get(&path, Answer::ok(&body).ranges().with("Cache-Control", "no-store"));
        let part = ranged(&proxy, &origin, &path, "bytes=1000-1999");
        part.assert_part(&body, (1_000, 2_000));
        part.assert_not_hit();
        origin.get(&path, Answer::status(404, "gone").ranges());
        let gone = ranged(&proxy, &origin, &path, "bytes=1000-1999");
        assert_eq!((gone.status, gone.text().as_str()), (404, "gone"));
    }
    assert_eq!(proxy.stat("stores"), 0);
}
