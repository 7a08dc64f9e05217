//! Upstreams that fail in mid-body, lie about it, or refuse: the clients get the whole right body
//! or none at all, and the next request begins anew.

mod support;

use std::io::{Read, Write};

use serde_json::{Value, json};
use support::answer::{Answer, Ending, Gate};
use support::body::Body;
use support::client::{Client, Response};
use support::names;
use support::origin::{Origin, Seen, bare_server, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::{Registry, blob_path, manifest_path};

const FILES: &str = "^/files/";

/// A setup whose fills may be resumed so often.
fn retrying(retries: u64) -> Setup {
    Setup::new().with(json!({ "upstream": { "retries": retries } }))
}

/// What the requests asked to start from, in their order.
fn ranges(requests: &[Seen]) -> Vec<Option<&str>> {
    requests.iter().map(|seen| seen.field("Range")).collect()
}

/// Where a request asked to start.
fn start(seen: &Seen) -> u64 {
    let range = seen.field("Range").and_then(|range| range.strip_prefix("bytes="));
    range.map_or(0, |range| range.trim_end_matches('-').parse().expect("an open range"))
}

/// Several clients that have the head of their answer before the first byte beyond `at` comes.
fn readers(proxy: &Proxy, origin: &Origin, path: &str, at: u64) -> Vec<impl FnOnce() -> Response> {
    let url = origin.url(path);
    let begin = || {
        let mut client = proxy.client(origin);
        let mut transfer = client.begin(&url);
        transfer.read_to(&mut client, at);
        move || transfer.finish(&mut client)
    };
    (0..4).map(|_| begin()).collect()
}

#[test]
fn a_fill_broken_off_several_times_goes_on_from_where_it_stood_by_a_fresh_redirect() {
    let setup = retrying(5);
    let proxy = setup.start();
    for registry in [Registry::https(), Registry::http()] {
        for (number, how) in [Ending::Reset, Ending::Cut].into_iter().enumerate() {
            let body = fresh_body(3_000_000);
            let path = registry.blob("lab/img", &body);
            let at_cdn = Registry::cdn_path(&body);
            let gate = Gate::new();
            let answers = [
                Answer::ok(&body).gate_at(500_000, &gate).ends_at(1_000_000, how),
                Answer::ok(&body).ranges().ends_at(1_700_001, how),
                Answer::ok(&body).ranges().ends_at(2_999_999, how),
                Answer::ok(&body).ranges(),
            ];
            let sign = |number: usize| format!("sig={number}&b=%2F");
            let locations = (0..answers.len())
                .map(|i| Answer::redirect(307, registry.cdn.url(&format!("{at_cdn}?{}", sign(i)))));
            registry.main.script("GET", &path, locations);
            let signed = answers.into_iter().enumerate().map(|(i, a)| a.signed(&sign(i)));
            registry.cdn.script("GET", &at_cdn, signed);

            let readers = readers(&proxy, &registry.main, &path, 300_000);
            gate.open();
            for reader in readers {
                reader().assert_is(&body);
            }
            proxy.get(&registry.main, &path).assert_hit();
            assert_eq!(registry.main.count("GET", &path), 4, "the registry was not asked anew");
            let fetches = registry.cdn.seen_at(&at_cdn);
            let starts: Vec<u64> = fetches.iter().map(start).collect();
            // What a reset destroys on its way is asked for again; all else is not.
            let ends = [0, 1_000_000, 1_700_001, 2_999_999];
            assert!(starts.is_sorted() && starts.len() == 4, "{number}: {starts:?}");
            for (start, end) in starts.iter().zip(ends) {
                assert!(*start <= end && (how == Ending::Reset || *start == end), "{starts:?}");
            }
            for seen in &fetches {
                assert_eq!(seen.field("Authorization"), None);
                assert_eq!(seen.head.fields("Accept-Encoding"), ["identity"]);
            }
        }
    }
    assert_eq!((proxy.stat("errors"), proxy.stat("stores")), (0, 4), "{}", proxy.stats());
}

#[test]
fn an_upstream_that_stalls_is_given_up_and_the_fill_goes_on() {
    let setup = Setup::new().with(json!({ "upstream": { "read_timeout": "1s" } }));
    let proxy = setup.start();
    let stall = Gate::new();
    let registries = [Registry::https(), Registry::http()];
    for registry in &registries {
        let body = fresh_body(2_000_000);
        let path = registry.blob("lab/img", &body);
        let stalls = |at| Answer::ok(&body).ranges().gate_at(at, &stall);
        let answers = [stalls(1_000_000), stalls(1_500_000), Answer::ok(&body).ranges()];
        registry.cdn.script("GET", &Registry::cdn_path(&body), answers);
        for reader in readers(&proxy, &registry.main, &path, 300_000) {
            reader().assert_is(&body);
        }
        let fetches = registry.cdn.seen_at(&Registry::cdn_path(&body));
        let expected = [None, Some("bytes=1000000-"), Some("bytes=1500000-")];
        assert_eq!(ranges(&fetches), expected);
        proxy.get(&registry.main, &path).assert_hit();
    }
    assert_eq!(proxy.stat("errors"), 0);
    stall.open();
}

#[test]
fn a_refusal_on_the_way_to_the_rest_is_tried_again() {
    let setup = retrying(5);
    let proxy = setup.start();
    let registry = Registry::https();
    let body = fresh_body(1_500_000);
    let path = registry.blob("lab/img", &body);
    let at_cdn = Registry::cdn_path(&body);
    let answers = [
        Answer::ok(&body).ends_at(700_000, Ending::Cut),
        Answer::status(403, "<Error><Code>AccessDenied</Code></Error>"),
        Answer::status(503, "SlowDown"),
        Answer::raw("nonsense\r\n\r\n"),
        Answer::ok(&body).ranges(),
    ];
    registry.cdn.script("GET", &at_cdn, answers);
    proxy.get(&registry.main, &path).assert_is(&body);
    proxy.get(&registry.main, &path).assert_hit();
    let rest = Some("bytes=700000-");
    assert_eq!(ranges(&registry.cdn.seen_at(&at_cdn)), [None, rest, rest, rest, rest]);
    assert_eq!(registry.main.count("GET", &path), 5);
    assert_eq!(proxy.stat("errors"), 0);
}

#[test]
fn a_file_with_an_etag_goes_on_after_a_refusal_too() {
    let setup = Setup::new().with(json!({ "cache": { "patterns": [FILES] } }));
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(900_000);
    let tagged = |answer: Answer| answer.with("ETag", "\"one\"");
    let answers = [
        tagged(Answer::ok(&body).ends_at(400_000, Ending::Cut)),
        Answer::status(503, "SlowDown"),
        tagged(Answer::ok(&body).ranges()),
    ];
    origin.script("GET", "/files/tagged", answers);
    proxy.get(&origin, "/files/tagged").assert_is(&body);
    proxy.get(&origin, "/files/tagged").assert_hit();
}

#[test]
fn a_fill_is_resumed_no_more_often_than_upstream_retries() {
    for retries in [0, 2] {
        let setup = retrying(retries);
        let proxy = setup.start();
        let registry = Registry::https();
        let body = fresh_body(2_000_000);
        let path = registry.blob("lab/img", &body);
        let at_cdn = Registry::cdn_path(&body);
        let gate = Gate::new();
        let breaks = (1..10).map(|i| {
            let answer = Answer::ok(&body).ranges().ends_at(i * 200_000, Ending::Cut);
            if i == 1 { answer.gate_at(150_000, &gate) } else { answer }
        });
        registry.cdn.script("GET", &at_cdn, breaks);
        let readers = readers(&proxy, &registry.main, &path, 100_000);
        gate.open();
        for reader in readers {
            let response = reader();
            assert!(response.whole.is_err() && response.len < body.len(), "{}", response.len);
        }
        assert_eq!(registry.fetches(&body) as u64, 1 + retries);
        assert!(!setup.blob(&body.sha256()).exists());
        assert_eq!((proxy.stat("errors"), proxy.stat("stores")), (1, 0));
        registry.blob("lab/img", &body);
        let again = proxy.get(&registry.main, &path);
        again.assert_is(&body);
        again.assert_not_hit();
    }
}

#[test]
fn an_upstream_without_ranges_is_read_again_past_what_is_there() {
    let setup = retrying(5);
    let proxy = setup.start();
    type Shape = fn(Answer) -> Answer;
    let shapes: [Shape; 3] = [|a| a, Answer::chunked, Answer::until_close];
    for registry in [Registry::https(), Registry::http()] {
        for shape in shapes {
            let body = fresh_body(1_200_000);
            let path = registry.blob("lab/img", &body);
            let at_cdn = Registry::cdn_path(&body);
            let answers = [
                shape(Answer::ok(&body)).ends_at(400_000, Ending::Reset),
                // Broken off before what is there already is through, too.
                shape(Answer::ok(&body)).ends_at(100_000, Ending::Reset),
                shape(Answer::ok(&body)).ends_at(900_000, Ending::Reset),
                shape(Answer::ok(&body)),
            ];
            registry.cdn.script("GET", &at_cdn, answers);
            let response = proxy.get(&registry.main, &path);
            response.assert_is(&body);
            proxy.get(&registry.main, &path).assert_hit();
            assert_eq!(registry.fetches(&body), 4);
        }
    }
    assert_eq!(proxy.stat("errors"), 0, "{}", proxy.stats());
}

#[test]
fn a_body_of_unknown_length_cut_just_before_its_end_is_whole_all_the_same() {
    let setup = retrying(2);
    let proxy = setup.start();
    for registry in [Registry::https(), Registry::http()] {
        let body = fresh_body(600_000);
        let path = registry.blob("lab/img", &body);
        let cut = Answer::ok(&body).chunked().ranges().ends_at(600_000, Ending::Cut);
        registry.cdn.script("GET", &Registry::cdn_path(&body), [cut, Answer::ok(&body).ranges()]);
        proxy.get(&registry.main, &path).assert_is(&body);
        proxy.get(&registry.main, &path).assert_hit();
    }
}

#[test]
fn two_versions_of_a_file_are_never_joined() {
    let config = json!({ "cache": { "patterns": [FILES] }, "upstream": { "retries": 2 } });
    let setup = Setup::new().with(config);
    let proxy = setup.start();
    // (ETag of the first answer, of the second, whether the second goes on from the first)
    let rows = [
        (Some("\"one\""), Some("\"one\""), true),
        (Some("\"one\""), Some("\"two\""), false),
        (Some("\"one\""), Some("W/\"one\""), false),
        (Some("\"one\""), None, false),
        (Some("W/\"one\""), Some("W/\"one\""), false),
        (None, None, false),
        (None, Some("\"one\""), false),
    ];
    let tagged = |answer: Answer, tag: Option<&str>| match tag {
        Some(tag) => answer.with("ETag", tag),
        None => answer,
    };
    for origin in [Origin::https(names::REGISTRY), Origin::http(names::SECOND)] {
        for (number, (first, second, fits)) in rows.into_iter().enumerate() {
            for ranged in [true, false] {
                let old = fresh_body(900_000);
                let new = if fits { old.clone() } else { fresh_body(900_000) };
                let path = format!("/files/{number}/{ranged}");
                let rest = if ranged { Answer::ok(&new).ranges() } else { Answer::ok(&new) };
                let answers = [
                    tagged(Answer::ok(&old).ends_at(400_000, Ending::Cut), first),
                    tagged(rest, second),
                ];
                origin.script("GET", &path, answers);
                let response = proxy.get(&origin, &path);
                if fits {
                    response.assert_is(&old);
                } else {
                    let joined = response.whole.is_ok();
                    assert!(!joined, "row {number}, ranged {ranged}: two versions joined");
                    assert!(response.len <= 400_000, "row {number}: {}", response.len);
                }
                let again = proxy.get(&origin, &path);
                again.assert_is(&new);
                assert_eq!(again.field("X-Cache").is_some(), fits, "row {number}");
            }
        }
    }
}

/// What is asked for, by whom, and when its bytes go wrong.
#[derive(Clone, Copy, Debug)]
struct Wrong {
    manifest: bool,
    readers: usize,
    resumed: bool,
}

fn wrong_digest(wrong: Wrong) {
    let setup = retrying(3);
    let proxy = setup.start();
    for origin in [Origin::https(names::REGISTRY), Origin::http(names::SECOND)] {
        let before = proxy.stats();
        let grown = |name: &str| proxy.stat(name) - before[name].as_u64().unwrap_or(0);
        let len = if wrong.manifest { 3_000 } else { 1_500_000 };
        let body = fresh_body(len);
        let path = if wrong.manifest {
            manifest_path("lab/img", &body)
        } else {
            blob_path("lab/img", &body)
        };
        let gate = Gate::new();
        let ok =
            || Answer::ok(&body).with("Content-Type", "application/vnd.oci.image.manifest.v1+json");
        let bad = ok().ranges().corrupt_at(len - 1);
        let answers = match wrong.resumed {
            true => vec![ok().gate_head(&gate).ends_at(len / 2, Ending::Cut), bad],
            false => vec![bad.gate_head(&gate)],
        };
        let fetches = answers.len();
        origin.script("GET", &path, answers);
        let mut clients: Vec<Client> = (0..wrong.readers).map(|_| proxy.client(&origin)).collect();
        for client in &mut clients {
            client.start("GET", &origin.url(&path), &[]);
        }
        let misses = before["misses"].as_u64().unwrap_or(0) + wrong.readers as u64;
        proxy.wait_stat("misses", misses);
        gate.open();
        for client in &mut clients {
            let head = client.head();
            let response = client.rest("GET", head);
            let whole = response.status == 200 && response.whole.is_ok();
            assert!(!whole, "{wrong:?}: {} wrong bytes delivered", response.len);
            assert!(response.status != 200 || response.len < len, "{wrong:?}: {response:?}");
        }
        assert_eq!(origin.count("GET", &path), fetches, "{wrong:?}");
        assert_eq!((grown("errors"), grown("stores")), (1, 0), "{wrong:?}: {}", proxy.stats());
        assert!(!setup.blob(&body.sha256()).exists());
        proxy.wait_log(&["WARN", "digest", origin.host(), &body.sha256()]);

        origin.get(&path, ok());
        let again = proxy.get(&origin, &path);
        again.assert_is(&body);
        again.assert_not_hit();
        assert_eq!(origin.count("GET", &path), fetches + 1, "{wrong:?}");
        proxy.get(&origin, &path).assert_hit();
    }
}

#[test]
fn a_wrong_blob_is_nobodys() {
    for (readers, resumed) in [(1, false), (20, false), (1, true), (20, true)] {
        wrong_digest(Wrong { manifest: false, readers, resumed });
    }
}

#[test]
fn a_wrong_manifest_is_nobodys() {
    for (readers, resumed) in [(1, false), (20, false), (1, true), (20, true)] {
        wrong_digest(Wrong { manifest: true, readers, resumed });
    }
}

#[test]
fn a_content_length_that_lies_is_found_out() {
    let config =
        json!({ "upstream": { "retries": 1 }, "cache": { "patterns": [FILES, "/blobs/"] } });
    let setup = Setup::new().with(config);
    let proxy = setup.start();
    for origin in [Origin::https(names::REGISTRY), Origin::http(names::SECOND)] {
        for len in [2_000, 400_000] {
            for claimed in [len - 700, len + 700, len / 2, len * 2] {
                for ranged in [true, false] {
                    let body = fresh_body(len);
                    let path = blob_path("lab/img", &body);
                    let answer = Answer::ok(&body).claims(claimed);
                    let answer = if ranged { answer.ranges() } else { answer };
                    origin.get(&path, answer);
                    let response = proxy.get(&origin, &path);
                    let whole = response.status == 200 && response.whole.is_ok();
                    assert!(!whole, "{len} bytes said to be {claimed} delivered: {response:?}");
                    assert!(!setup.blob(&body.sha256()).exists());
                    origin.get(&path, Answer::ok(&body));
                    proxy.get(&origin, &path).assert_is(&body);
                }
            }
        }
        // Nothing but its end says that a file is not whole.
        let body = fresh_body(400_000);
        origin.get("/files/long", Answer::ok(&body).claims(400_001).with("ETag", "\"e\""));
        assert!(proxy.get(&origin, "/files/long").whole.is_err());
        origin.get("/files/long", Answer::ok(&body));
        let again = proxy.get(&origin, "/files/long");
        again.assert_is(&body);
        again.assert_not_hit();
    }
}

#[test]
fn what_comes_behind_an_answer_is_no_answer_to_the_next_request() {
    let setup =
        Setup::new().with(json!({ "proxy": { "workers": 1 }, "cache": { "patterns": [FILES] } }));
    let proxy = setup.start();
    let address = bare_server(names::OTHER, |mut tcp| {
        let mut buffer = [0; 4096];
        loop {
            let count = tcp.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
            let path = text.split(' ').nth(1).unwrap_or("").to_owned();
            let forged = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged";
            let length = path.len();
            let answer =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{path}{forged}");
            tcp.write_all(answer.as_bytes())?;
        }
    });
    let mut client = proxy.plain();
    for number in 0..20 {
        for folder in ["files", "elsewhere"] {
            let path = format!("/{folder}/{number}");
            let url = format!("http://{}:{}{path}", names::OTHER, address.port());
            assert_eq!(client.get(&url).text(), path);
        }
    }
}

#[test]
fn zero_length_bodies_are_bodies() {
    let config = json!({ "cache": { "patterns": [FILES, "/blobs/", "/manifests/"] } });
    let setup = Setup::new().with(config);
    let proxy = setup.start();
    let empty = Body::bytes("");
    for origin in [Origin::https(names::REGISTRY), Origin::http(names::SECOND)] {
        let paths = [blob_path("lab/img", &empty), "/files/empty".to_owned()];
        for path in paths {
            proxy.admin("DELETE", &format!("/api/cache/{}", empty.digest()), &[]);
            let gate = Gate::new();
            origin.get(&path, Answer::ok(&empty).gate_head(&gate));
            let misses = proxy.stat("misses");
            let mut clients: Vec<Client> = (0..6).map(|_| proxy.client(&origin)).collect();
            for client in &mut clients {
                client.start("GET", &origin.url(&path), &[]);
            }
            proxy.wait_stat("misses", misses + 6);
            gate.open();
            for client in &mut clients {
                let head = client.head();
                client.rest("GET", head).assert_is(&empty);
            }
            assert_eq!(origin.count("GET", &path), 1);
            let hit = proxy.get(&origin, &path);
            hit.assert_is(&empty);
            hit.assert_hit();
            assert_eq!(hit.field("Content-Length"), Some("0"));
        }
    }
}

#[test]
fn a_body_of_unknown_length_is_chunked_once_and_has_its_length_from_then_on() {
    let setup = Setup::new();
    let proxy = setup.start();
    let registry = Registry::https();
    for shape in [Answer::chunked as fn(Answer) -> Answer, Answer::until_close] {
        let body = fresh_body(700_000);
        let gate = Gate::new();
        let path =
            registry.blob_as("lab/img", &body, shape(Answer::ok(&body)).gate_at(300_000, &gate));
        let url = registry.main.url(&path);
        let mut client = proxy.client(&registry.main);
        let transfer = client.begin(&url);
        assert_eq!(transfer.head.field("Transfer-Encoding"), Some("chunked"));
        assert_eq!(transfer.head.field("Content-Length"), None);
        gate.open();
        transfer.finish(&mut client).assert_is(&body);
        let hit = client.get(&url);
        hit.assert_is(&body);
        hit.assert_hit();
        assert_eq!(hit.field("Content-Length"), Some("700000"));
        assert_eq!(hit.field("Transfer-Encoding"), None);
        let meta = std::fs::metadata(setup.blob(&body.sha256())).expect("the entry");
        assert_eq!(meta.len(), body.len());
    }
}

#[test]
fn a_redirect_in_circles_between_hosts_or_to_a_refused_one_ends_for_all_who_wait() {
    let config = json!({
        "proxy": { "deny_destinations": ["127.0.0.9/32", "169.254.0.0/16", "::1/128"] },
        "limits": { "max_redirects": 4 },
    });
    let setup = Setup::new().with(config);
    let proxy = setup.start();
    let registry = Registry::https();
    let refused = [
        registry.cdn.url("/circle"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "https://[::ffff:169.254.169.254]/latest".to_owned(),
        format!("http://{}:9009/x", names::DEAD),
        "http://[::1]:9009/x".to_owned(),
        "file:///etc/passwd".to_owned(),
        "gopher://cdn.example/".to_owned(),
        "http://no-such-name.invalid/x".to_owned(),
    ];
    for location in refused {
        let body = fresh_body(1_000);
        let path = blob_path("lab/img", &body);
        let gate = Gate::new();
        let circle = registry.main.url(&path);
        registry.cdn.get("/circle", Answer::redirect(302, circle));
        registry.main.get(&path, Answer::redirect(307, &*location).gate_head(&gate));
        let misses = proxy.stat("misses");
        let mut clients: Vec<Client> = (0..3).map(|_| proxy.client(&registry.main)).collect();
        for client in &mut clients {
            client.start("GET", &path, &[]);
        }
        proxy.wait_stat("misses", misses + 3);
        gate.open();
        for client in &mut clients {
            let head = client.head();
            client.rest("GET", head).assert_own_error(&[403, 502, 503, 504]);
        }
        registry.blob("lab/img", &body);
        proxy.get(&registry.main, &path).assert_is(&body);
    }
}

#[test]
fn a_redirect_to_the_other_scheme_is_followed() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origins = [Origin::https(names::REGISTRY), Origin::http(names::SECOND)];
    for (from, to) in [(&origins[0], &origins[1]), (&origins[1], &origins[0])] {
        let body = fresh_body(50_000);
        let path = blob_path("lab/img", &body);
        from.get(&path, Answer::redirect(307, to.url("/elsewhere")));
        to.get("/elsewhere", Answer::ok(&body));
        let secret = [("Authorization", "Bearer t0ken")];
        proxy.get_with(from, &path, &secret).assert_is(&body);
        proxy.get(from, &path).assert_hit();
        let fetches = to.seen_at("/elsewhere");
        assert_eq!(fetches.last().and_then(|seen| seen.field("Authorization")), None);
    }
}

#[test]
fn refusals_reach_everyone_who_waits_as_upstream_gave_them() {
    let setup = Setup::new();
    let proxy = setup.start();
    let registry = Registry::https();
    type Shape = fn(Answer) -> Answer;
    let shapes: [Shape; 3] = [|a| a, Answer::chunked, Answer::until_close];
    let rows: [(u16, &str); 4] =
        [(429, "Fri, 31 Dec 2100 23:59:59 GMT"), (429, "120"), (404, "0"), (503, "3600")];
    for (status, after) in rows {
        for (number, shape) in shapes.iter().enumerate() {
            let real = fresh_body(1_000);
            let text = json!({ "errors": [{ "code": "TOOMANYREQUESTS", "message": after }] });
            let refusal = Body::bytes(text.to_string());
            let gate = Gate::new();
            let answer = shape(Answer::status(status, &refusal))
                .with("Retry-After", after)
                .with("RateLimit-Remaining", "0;w=21600");
            let path = registry.blob_as("lab/img", &real, answer.gate_head(&gate));
            let before = proxy.stats();
            let misses = before["misses"].as_u64().unwrap_or(0);
            let mut clients: Vec<Client> = (0..4).map(|_| proxy.client(&registry.main)).collect();
            for client in &mut clients {
                client.start("GET", &path, &[]);
            }
            proxy.wait_stat("misses", misses + 4);
            gate.open();
            for client in &mut clients {
                let head = client.head();
                let response = client.rest("GET", head);
                assert_eq!(response.status, status, "{number}: {response:?}");
                assert_eq!(response.whole, Ok(()));
                assert_eq!(response.json(), text);
                assert_eq!(response.head.fields("Retry-After"), [after]);
                assert_eq!(response.head.fields("RateLimit-Remaining"), ["0;w=21600"]);
                response.assert_not_hit();
            }
            let errors = |stats: &Value| stats["errors"].as_u64();
            assert_eq!(errors(&proxy.stats()), errors(&before), "a refusal is no error of ours");
            registry.blob("lab/img", &real);
            proxy.get(&registry.main, &path).assert_is(&real);
        }
    }
}
