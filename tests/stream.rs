//! What passes through as it comes: interim answers, trailers, upgrades, answers in pieces, clients
//! of HTTP/1.0, answers without bodies, and connections that end.

mod support;

use support::answer::Answer;
use support::client::Client;
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::Setup;

#[test]
fn a_client_that_sent_too_much_still_gets_the_whole_last_answer() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::http(names::SECOND);
    let body = fresh_body(300_000);
    origin.get("/last", Answer::ok(&body));
    // What does not fit its window stays with the proxy's system until it reads.
    let mut client = Client::narrow(proxy.address(), 4096);
    client.start("GET", &origin.url("/last"), &[("Connection", "close")]);
    client.wire.send(b"and more that nobody asked for").expect("sending");
    proxy.wait_stat("bytes_to_clients", body.len());
    proxy.wait_stat("connections", 0);
    let head = client.head();
    client.rest("GET", head).assert_is(&body);
}
