//! A range so far ahead of a running fill that it is asked of upstream: the client gets its part,
//! the fill goes on, and what upstream does not give comes from the fill all the same.

mod support;

use serde_json::json;
use support::answer::{Answer, Gate};
use support::body::{Body, sha256};
use support::client::{Client, Response, Transfer};
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::blob_path;

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

/// How far ahead of a fill a range may begin and still wait for it: the proxy's own limit.
const FAR: u64 = 1 << 30;

/// A body longer than that. Nothing ever reads all of it.
fn huge() -> Body {
    Body::made(4711, FAR + 50_000_000)
}

/// A digest entry and one of another pattern whose fill stops at two gates; every further request
/// is answered as `further` says.
fn huge_at(origin: &Origin, further: &Answer) -> [(String, [Gate; 2]); 2] {
    // Whatever the digest of this is: it is never proven.
    let name = fresh_body(10);
    let paths = [blob_path("lab/huge", &name), format!("/files/{}", name.sha256())];
    paths.map(|path| {
        let gates = [Gate::new(), Gate::new()];
        let answer = Answer::ok(&huge()).with("ETag", "\"up\"");
        let first = answer.gate_at(1_000_000, &gates[0]).gate_at(3_000_000, &gates[1]);
        origin.script("GET", &path, [first, further.clone()]);
        (path, gates)
    })
}

/// A proxy with room for it, that stores files by their URL beside blobs.
fn with_huge_files() -> Setup {
    let patterns = ["^/files/", "^/v2/.*/blobs/sha256:"];
    Setup::new().with(json!({ "cache": { "max_size": "100GB", "patterns": patterns } }))
}

#[test]
fn a_range_far_ahead_of_a_fill_goes_upstream_and_the_fill_goes_on() {
    let setup = with_huge_files();
    let proxy = setup.start();
    let body = huge();
    for origin in origins() {
        let further = Answer::ok(&body).ranges().with("ETag", "\"up\"");
        for (path, gates) in huge_at(&origin, &further) {
            let mut filler = proxy.client(&origin);
            let mut filling = filler.begin(&origin.url(&path));
            filling.read_to(&mut filler, 1_000_000);
            let etag = filling.head.field("ETag").expect("an ETag").to_owned();
            let end = body.len();
            // Within the limit it waits for the fill.
            let (_near, transfer) = begin(&proxy, &origin, &path, &format!("bytes={FAR}-"));
            transfer.assert_promises((FAR, end, end));
            assert_eq!(origin.count("GET", &path), 1);
            let far = FAR + 2_000_000;
            let rows = [
                (format!("bytes={far}-{}", far + 99_999), (far, far + 100_000)),
                ("bytes=-1000".to_owned(), (end - 1_000, end)),
            ];
            for (range, part) in &rows {
                for fields in [vec![], vec![("If-Range", etag.as_str())]] {
                    let fields = [&[("Range", range.as_str())], &fields[..]].concat();
                    let response = proxy.get_with(&origin, &path, &fields);
                    response.assert_part(&body, *part);
                    response.assert_not_hit();
                    let seen = origin.seen_at(&path);
                    let last = seen.last().expect("a request");
                    assert_eq!(last.field("Range"), Some(range.as_str()));
                    // Upstream has never heard of the ETag that is the digest.
                    let asks = path.starts_with("/files/") && fields.len() > 1;
                    assert_eq!(last.field("If-Range").is_some(), asks, "{last:?}");
                }
            }
            // One that reads a piece and leaves is no error here either.
            let (mut client, mut transfer) =
                begin(&proxy, &origin, &path, &format!("bytes={far}-"));
            transfer.assert_promises((far, end, end));
            transfer.read_to(&mut client, 1_000_000);
            drop(client);
            assert_eq!(origin.count("GET", &path), 6);
            gates[0].open();
            filling.read_to(&mut filler, 3_000_000);
            assert_eq!(filling.sha256(), sha256(&body.slice(0, 3_000_000)));
        }
    }
    assert_eq!(proxy.stat("errors"), 0);
}

#[test]
fn a_range_far_into_nothing_yet_goes_upstream_and_the_whole_is_fetched_too() {
    let setup = with_huge_files();
    let proxy = setup.start();
    let body = huge();
    for origin in origins() {
        for (path, _gates) in huge_at(&origin, &Answer::ok(&body).ranges()) {
            let response = ranged(&proxy, &origin, &path, "bytes=-5000");
            response.assert_part(&body, (body.len() - 5_000, body.len()));
            let (mut client, mut transfer) = begin(&proxy, &origin, &path, "bytes=500000-");
            transfer.read_to(&mut client, 500_000);
            let asked = origin.seen_at(&path);
            let ranges: Vec<_> = asked.iter().map(|seen| seen.field("Range")).collect();
            assert_eq!(ranges, [None, Some("bytes=-5000")]);
        }
    }
    assert_eq!(proxy.stat("errors"), 0);
}

#[test]
fn a_range_far_ahead_that_upstream_does_not_give_waits_for_the_fill() {
    let setup = with_huge_files();
    let proxy = setup.start();
    let body = huge();
    let end = body.len();
    let other = Body::made(1, end - 1);
    let refusals = [
        Answer::ok(&body),
        Answer::ok(&other).ranges(),
        Answer::ok(&body).ranges().with("Content-Encoding", "gzip"),
        Answer::status(206, "no range"),
        Answer::status(503, "SlowDown"),
        Answer::raw("nonsense\r\n\r\n"),
    ];
    for origin in origins() {
        for refusal in &refusals {
            for (path, _gates) in huge_at(&origin, refusal) {
                // The one that begins the fill, and one that joins it.
                for _ in 0..2 {
                    let range = format!("bytes={}-{}", end - 5_000, end - 4_001);
                    let (_client, transfer) = begin(&proxy, &origin, &path, &range);
                    transfer.assert_promises((end - 5_000, end - 4_000, end));
                    assert_eq!(transfer.head.field("Content-Encoding"), None);
                }
                assert_eq!(origin.count("GET", &path), 3);
            }
        }
    }
    assert_eq!(proxy.stat("errors"), 0);
}
