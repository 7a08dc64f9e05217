//! Requests with bodies, and answers that are not stored: streamed both ways, framed as they came.

mod support;

use std::net::Shutdown;

use support::answer::{Answer, Gate};
use support::body::Body;
use support::client::Payload;
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::Setup;
use support::registry::blob_path;
use support::wait_until;
use support::wire::Framing;

/// Runs a test body once over TLS and once in plain.
fn both(test: impl Fn(&support::proxy::Proxy, &Origin)) {
    let setup = Setup::new();
    let proxy = setup.start();
    for origin in [Origin::https(names::REGISTRY), Origin::http(names::SECOND)] {
        test(&proxy, &origin);
    }
}

#[test]
fn a_push_reaches_the_registry_as_it_was_sent() {
    both(|proxy, origin| {
        let layer = fresh_body(5_000_000);
        let uploads = "/v2/lab/img/blobs/uploads/";
        let session = "/v2/lab/img/blobs/uploads/a-b-c";
        let location = format!("{session}?_state=x%3D%3D&y=/+");
        let begun = Answer::status(202, "")
            .with("Location", location.clone())
            .with("Range", "0-0")
            .with("Docker-Upload-UUID", "a-b-c");
        origin.on("POST", uploads, begun);
        let taken = Answer::status(202, "")
            .with("Location", origin.url(&location))
            .with("Range", "0-4999999");
        origin.on("PATCH", session, taken);
        let created = Answer::status(201, "").with("Docker-Content-Digest", layer.digest());
        origin.on("PUT", session, created);

        let mut client = proxy.client(origin);
        let nothing = Body::bytes("");
        let url = origin.url(uploads);
        let begun = client.request("POST", &url, &[], Payload::Length(&nothing));
        assert_eq!((begun.status, begun.field("Location")), (202, Some(location.as_str())));
        assert_eq!(begun.field("Range"), Some("0-0"));
        let url = origin.url(&location);
        let kind = [("Content-Type", "application/octet-stream"), ("Authorization", "Bearer t")];
        let taken = client.request("PATCH", &url, &kind, Payload::Chunked(&layer));
        assert_eq!((taken.status, taken.field("Range")), (202, Some("0-4999999")));
        assert_eq!(taken.field("Location"), Some(url.as_str()));
        let put = format!("{url}&digest={}", layer.digest());
        let created = client.request("PUT", &put, &kind, Payload::Length(&layer));
        assert_eq!(created.status, 201, "{created:?}");

        let seen = origin.seen();
        let frames: Vec<Framing> = seen.iter().map(|seen| seen.framing).collect();
        let expected = [Framing::Length(0), Framing::Chunked, Framing::Length(layer.len())];
        assert_eq!(frames, expected);
        assert_eq!(seen[1].target, location);
        assert_eq!(seen[2].target, format!("{location}&digest={}", layer.digest()));
        for upload in &seen[1..] {
            assert_eq!(upload.body_sha256.as_deref(), Some(layer.sha256().as_str()));
            assert_eq!(upload.field("Authorization"), Some("Bearer t"));
        }
    });
}

#[test]
fn a_request_body_is_streamed_and_not_held() {
    both(|proxy, origin| {
        for chunked in [false, true] {
            let body = fresh_body(3_000_000);
            let path = format!("/up/{chunked}");
            origin.on("PUT", &path, Answer::status(201, ""));
            let mut client = proxy.client(origin);
            let length = body.len().to_string();
            let framing = match chunked {
                true => ("Transfer-Encoding", "chunked"),
                false => ("Content-Length", length.as_str()),
            };
            client.start("PUT", &origin.url(&path), &[framing]);
            let mut at = 0;
            for stop in [1, 1_000, 1_000_000, 3_000_000] {
                client.send_piece(&body.slice(at, stop), chunked).expect("a piece");
                origin.wait(&path, |seen| seen.body_len >= stop);
                at = stop;
            }
            if chunked {
                client.wire.send(b"0\r\n\r\n").expect("the last chunk");
            }
            let head = client.head();
            assert_eq!(client.rest("PUT", head).status, 201);
            let sha256 = origin.only(&path).body_sha256;
            assert_eq!(sha256.as_deref(), Some(body.sha256().as_str()));
        }
    });
}

#[test]
fn an_answer_is_streamed_and_not_held() {
    both(|proxy, origin| {
        type Shape = fn(Answer) -> Answer;
        let shapes: [Shape; 3] = [|a| a, Answer::chunked, Answer::until_close];
        for (number, shape) in shapes.into_iter().enumerate() {
            let body = fresh_body(1_000_000);
            let gates = [Gate::new(), Gate::new(), Gate::new()];
            let mut answer = shape(Answer::ok(&body));
            for (at, gate) in [1, 500, 600_000].into_iter().zip(&gates) {
                answer = answer.gate_at(at, gate);
            }
            let path = format!("/watch/{number}");
            origin.get(&path, answer);
            let mut client = proxy.client(origin);
            let mut transfer = client.begin(&origin.url(&path));
            let length = transfer.head.field("Content-Length");
            assert_eq!(length.is_some(), number == 0, "{:?}", transfer.head);
            for (at, gate) in [1, 500, 600_000].into_iter().zip(&gates) {
                transfer.read_to(&mut client, at);
                gate.open();
            }
            transfer.finish(&mut client).assert_is(&body);
        }
    });
}

#[test]
fn memory_stays_flat_on_large_bodies() {
    both(|proxy, origin| {
        let body = fresh_body(256_000_000);
        origin.on("PUT", "/big", Answer::status(201, ""));
        origin.get("/big", Answer::ok(&body));
        let mut client = proxy.client(origin);
        let url = origin.url("/big");
        let small = fresh_body(1_000_000);
        client.request("PUT", &url, &[], Payload::Length(&small));
        let before = proxy.status_number("VmRSS:");
        for payload in [Payload::Length(&body), Payload::Chunked(&body)] {
            assert_eq!(client.request("PUT", &url, &[], payload).status, 201);
        }
        client.get(&url).assert_is(&body);
        let peak = proxy.status_number("VmHWM:");
        assert!(peak < before + 32_000, "{before} KiB grew to {peak} KiB");
        let uploads = origin.seen_at("/big");
        assert_eq!(uploads[1].body_sha256.as_deref(), Some(body.sha256().as_str()));
        assert_eq!(uploads[2].body_sha256, uploads[1].body_sha256);
    });
}

#[test]
fn a_push_is_never_stored_and_a_pull_after_it_is() {
    both(|proxy, origin| {
        let body = fresh_body(100_000);
        let path = blob_path("lab/img", &body);
        origin.on("PUT", &path, Answer::status(200, "stored upstream"));
        let mut client = proxy.client(origin);
        let url = origin.url(&path);
        let put = client.request("PUT", &url, &[], Payload::Length(&body));
        assert_eq!(put.text(), "stored upstream");
        origin.get(&path, Answer::ok(&body));
        let pull = client.get(&url);
        pull.assert_is(&body);
        pull.assert_not_hit();
        client.get(&url).assert_hit();
    });
}

#[test]
fn expect_100_continue_is_answered_before_the_body_is_sent() {
    both(|proxy, origin| {
        let body = fresh_body(200_000);
        origin.on("PUT", "/e", Answer::status(201, "done"));
        let mut client = proxy.client(origin);
        let length = body.len().to_string();
        let fields = [("Content-Length", length.as_str()), ("Expect", "100-continue")];
        client.start("PUT", &origin.url("/e"), &fields);
        let first = client.head();
        assert!(first.line.contains(" 100"), "{first:?}");
        client.send_payload(Payload::Length(&body)).expect("the body");
        let head = client.head();
        let response = client.rest("PUT", head);
        assert_eq!((response.status, response.text().as_str()), (201, "done"));
        let sha256 = origin.only("/e").body_sha256;
        assert_eq!(sha256.as_deref(), Some(body.sha256().as_str()));
        client.get(&origin.url("/none"));
    });
}

#[test]
fn an_answer_before_the_bodys_end_reaches_the_client() {
    both(|proxy, origin| {
        let refused = Answer::status(401, "sign in").with("WWW-Authenticate", "Bearer realm=\"x\"");
        origin.on("PATCH", "/up", refused.early());
        let mut client = proxy.client(origin);
        client.start("PATCH", &origin.url("/up"), &[("Transfer-Encoding", "chunked")]);
        client.send_piece(&[7; 1_000], true).expect("a piece");
        let head = client.head();
        let response = client.rest("PATCH", head);
        assert_eq!((response.status, response.text().as_str()), (401, "sign in"));
        assert_eq!(response.field("WWW-Authenticate"), Some("Bearer realm=\"x\""));
    });
}

#[test]
fn a_large_upload_that_is_refused_early_still_gets_its_answer() {
    both(|proxy, origin| {
        let body = fresh_body(20_000_000);
        origin.on("PUT", "/up", Answer::status(413, "too large").early());
        let mut client = proxy.client(origin);
        let response = client.request("PUT", &origin.url("/up"), &[], Payload::Length(&body));
        // The origin closes with the body unread, so its own system may cut its answer short.
        assert!(matches!(response.status, 413 | 502 | 503), "{response:?}");
        assert_eq!(proxy.client(origin).get(&origin.url("/none")).status, 404);
    });
}

#[test]
fn a_body_cut_by_the_client_never_looks_whole_upstream() {
    both(|proxy, origin| {
        for chunked in [false, true] {
            let path = format!("/cut/{chunked}");
            origin.on("PUT", &path, Answer::status(201, ""));
            let mut client = proxy.client(origin);
            let framing = match chunked {
                true => ("Transfer-Encoding", "chunked"),
                false => ("Content-Length", "100000"),
            };
            client.start("PUT", &origin.url(&path), &[framing]);
            client.send_piece(&[7; 60_000], chunked).expect("a piece");
            origin.wait(&path, |seen| seen.body_len == 60_000);
            let _ = client.wire.stream.tcp().shutdown(Shutdown::Both);
            drop(client);
            // The next request on whatever connection shows that the first is over.
            assert_eq!(proxy.get(origin, "/none").status, 404);
            let seen = origin.only(&path);
            assert_eq!(seen.body_sha256, None, "taken for whole: {seen:?}");
        }
    });
}

#[test]
fn early_hints_and_trailers_do_no_harm() {
    both(|proxy, origin| {
        let body = fresh_body(50_000);
        let answer = Answer::ok(&body).trailer("X-Checksum", "abc").interim(&[103]);
        origin.get("/t", answer.with("Trailer", "X-Checksum"));
        let mut client = proxy.client(origin);
        for _ in 0..2 {
            let response = client.get(&origin.url("/t"));
            response.assert_is(&body);
            // A recipient may drop trailers (RFC 9110 6.5.1); it must not make others of them.
            for (name, value) in &response.trailers {
                assert_eq!((name.as_str(), value.as_str()), ("X-Checksum", "abc"));
            }
        }
    });
}

#[test]
fn request_trailers_do_no_harm() {
    both(|proxy, origin| {
        origin.on("PUT", "/t", Answer::status(201, "ok"));
        let mut client = proxy.client(origin);
        let fields = [("Transfer-Encoding", "chunked"), ("Trailer", "X-Checksum")];
        client.start("PUT", &origin.url("/t"), &fields);
        client.wire.send(b"3;ext=1\r\nabc\r\n0\r\nX-Checksum: abc\r\n\r\n").expect("the body");
        let head = client.head();
        assert_eq!(client.rest("PUT", head).text(), "ok");
        assert_eq!(origin.only("/t").body_len, 3);
        assert_eq!(client.get(&origin.url("/none")).status, 404);
    });
}

#[test]
fn a_chunked_request_with_bad_framing_is_refused() {
    both(|proxy, origin| {
        for (number, bad) in ["zz\r\nabc\r\n", "3\nabc\r\n", "-3\r\nabc\r\n", "3\r\nabcdef\r\n"]
            .into_iter()
            .enumerate()
        {
            let path = format!("/bad/{number}");
            origin.on("PUT", &path, Answer::status(201, ""));
            let mut client = proxy.client(origin);
            client.start("PUT", &origin.url(&path), &[("Transfer-Encoding", "chunked")]);
            client.wire.send(bad.as_bytes()).expect("bad framing");
            // It may just as well hang up.
            if let Ok(Some(head)) = client.try_head() {
                let response = client.rest("PUT", head);
                assert!(response.status >= 400, "{bad:?}: {response:?}");
            }
            for seen in origin.seen_at(&path) {
                assert_eq!(seen.body_sha256, None, "{bad:?} taken for whole");
            }
        }
    });
}

#[test]
fn uploads_run_side_by_side() {
    both(|proxy, origin| {
        let before = origin.seen().len();
        std::thread::scope(|scope| {
            for number in 0..16 {
                scope.spawn(move || {
                    let body = fresh_body(2_000_000 + number * 1_001);
                    let path = format!("/side/{number}");
                    origin.on("PUT", &path, Answer::status(201, &body));
                    let mut client = proxy.client(origin);
                    let url = origin.url(&path);
                    let response = client.request("PUT", &url, &[], Payload::Chunked(&body));
                    assert_eq!((response.status, response.sha256), (201, body.sha256()));
                    let seen = origin.only(&path);
                    assert_eq!(seen.body_sha256.as_deref(), Some(body.sha256().as_str()));
                });
            }
        });
        wait_until("all uploads", || (origin.seen().len() >= before + 16).then_some(()));
    });
}
