//! The tests' own tools against each other, without the proxy: an origin that does not fault as
//! scripted, or a client that does not notice, would make every other test say nothing.

mod support;

use support::answer::{Answer, Ending, Gate};
use support::body::{Body, sha256};
use support::certs::{Authority, Trust};
use support::client::{Client, Payload, dial, start_tls};
use support::names;
use support::origin::{Origin, fresh_body};
use support::wire::{Framing, Stream};

fn client(origin: &Origin) -> Client {
    Client::direct(origin.address(), &origin.authority())
}

#[test]
fn bodies_are_the_same_whole_and_in_pieces_and_differ_by_seed() {
    let body = fresh_body(1_000_003);
    let whole = body.to_vec();
    assert_eq!(sha256(&whole), body.sha256());
    for (from, to) in [(0, 10), (4090, 4110), (262_140, 262_150), (524_290, 1_000_003)] {
        assert_eq!(body.slice(from, to), whole[from as usize..to as usize]);
    }
    for len in [1, 3, 5_000] {
        assert_ne!(fresh_body(len).sha256(), fresh_body(len).sha256());
    }
    let mut pages: Vec<&[u8]> = whole.chunks(4096).collect();
    pages.sort_unstable();
    assert!(pages.windows(2).all(|pair| pair[0] != pair[1]), "two pages alike");
}

#[test]
fn every_shape_of_answer_is_read_and_every_fault_noticed() {
    let origin = Origin::http(names::REGISTRY);
    let body = fresh_body(300_000);
    for answer in [Answer::ok(&body), Answer::ok(&body).chunked(), Answer::ok(&body).until_close()]
    {
        origin.get("/x", answer);
        client(&origin).get("/x").assert_is(&body);
    }
    type Fault = fn(Answer) -> Answer;
    let faults: [Fault; 5] = [
        |answer| answer.ends_at(200_000, Ending::Cut),
        |answer| answer.ends_at(200_000, Ending::Reset),
        |answer| answer.claims(300_001),
        |answer| answer.chunked().ends_at(299_999, Ending::Cut),
        |answer| answer.ends_at(0, Ending::Cut),
    ];
    for fault in faults {
        origin.get("/x", fault(Answer::ok(&body)));
        let response = client(&origin).get("/x");
        assert!(response.status == 200 && response.whole.is_err());
    }
    origin.get("/x", Answer::ok(&body).corrupt_at(7));
    let response = client(&origin).get("/x");
    assert!(response.whole.is_ok() && response.sha256 != body.sha256());
}

#[test]
fn requests_are_recorded_and_routes_scripted() {
    let origin = Origin::http(names::REGISTRY);
    let up = fresh_body(200_000);
    origin.script("PUT", "/x", [Answer::status(500, "first"), Answer::status(201, "then")]);
    let mut one = client(&origin);
    assert_eq!(one.request("PUT", "/x?a=%2F", &[], Payload::Chunked(&up)).text(), "first");
    assert_eq!(one.request("PUT", "/x", &[], Payload::Length(&up)).text(), "then");
    let mut two = client(&origin);
    assert_eq!(two.request("PUT", "/x", &[], Payload::None).text(), "then");
    assert_eq!(two.get("/y").status, 404);
    let seen = origin.seen();
    assert_eq!(seen[0].target, "/x?a=%2F");
    let frames = [Framing::Chunked, Framing::Length(200_000), Framing::None, Framing::None];
    for (seen, framing) in seen.iter().zip(frames) {
        assert_eq!(seen.framing, framing);
    }
    assert_eq!(seen[0].body_sha256.as_deref(), Some(up.sha256().as_str()));
    assert_eq!(seen[1].body_sha256, seen[0].body_sha256);
    assert_eq!((seen[0].connection, seen[1].connection, seen[2].connection), (0, 0, 1));
    assert_eq!((origin.connections(), origin.count("PUT", "/x")), (2, 3));
}

#[test]
fn challenges_ranges_and_refusals_follow_the_request() {
    let origin = Origin::http(names::REGISTRY);
    let body = Body::bytes("0123456789");
    origin.get("/r", Answer::ok(&body).ranges());
    origin.get("/w", Answer::ok(&body).wants("Bearer x", "Bearer realm=\"r\""));
    origin.get("/s", Answer::ok(&body).refuses_authorization());
    let mut client = client(&origin);
    let part = client.get_with("/r", &[("Range", "bytes=3-5")]);
    assert_eq!((part.status, part.text().as_str()), (206, "345"));
    assert_eq!(part.field("Content-Range"), Some("bytes 3-5/10"));
    assert_eq!(client.get_with("/r", &[("Range", "bytes=7-")]).text(), "789");
    assert_eq!(client.get_with("/r", &[("Range", "bytes=-2")]).text(), "89");
    assert_eq!(client.get_with("/r", &[("Range", "bytes=10-")]).status, 416);
    assert_eq!(client.get("/w").field("WWW-Authenticate"), Some("Bearer realm=\"r\""));
    assert_eq!(client.get_with("/w", &[("Authorization", "Bearer x")]).status, 200);
    assert_eq!(client.get_with("/s", &[("Authorization", "Bearer x")]).status, 400);
    assert_eq!(
        client.request("HEAD", "/r", &[], Payload::None).field("Content-Length"),
        Some("10")
    );
}

#[test]
fn gates_hold_a_body_and_let_it_go() {
    let origin = Origin::http(names::REGISTRY);
    let body = fresh_body(100_000);
    let gate = Gate::new();
    origin.get("/x", Answer::ok(&body).gate_at(50_000, &gate));
    let mut client = client(&origin);
    let mut transfer = client.begin("/x");
    transfer.read_to(&mut client, 50_000);
    gate.wait_arrivals(1);
    gate.open();
    transfer.finish(&mut client).assert_is(&body);
}

#[test]
fn tls_origins_show_their_certificate_and_stop_for_good() {
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(1_000_000);
    origin.get("/x", Answer::ok(&body));
    let trust = Trust::pem(Authority::trusted().pem());
    let tls = start_tls(dial(origin.address(), None), names::REGISTRY, &trust).expect("TLS");
    let Stream::Client(session) = &tls else { panic!("a client's stream") };
    let shown = session.conn.peer_certificates().expect("a certificate")[0].to_vec();
    assert_eq!(shown, origin.certificate());
    let stranger = Trust::pem(Authority::new("stranger").pem());
    assert!(start_tls(dial(origin.address(), None), names::REGISTRY, &stranger).is_err());
    assert!(start_tls(dial(origin.address(), None), names::SECOND, &trust).is_err());
    origin.stop();
    assert!(support::client::try_dial(origin.address(), None).is_err());
}
