//! Names and their addresses: looked up once for all, kept briefly, asked for anew; slow ones that
//! keep nobody else waiting; dead addresses that are gone past.

mod support;

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::json;
use socket2::{Domain, Socket, Type};
use support::answer::Answer;
use support::client::{Client, Response};
use support::dns::{Dns, own_address};
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::Registry;
use support::wait_until;

/// How long addresses are kept, and how long it is kept in mind that there are none.
const KEPT: Duration = Duration::from_secs(10);
const KEPT_FAILURE: Duration = Duration::from_secs(5);

/// A look-up that hangs is joined, and the system's resolver does not repeat itself, for so long.
const ONE_QUESTION: Duration = Duration::from_secs(29);

/// A proxy whose patience for names and connections is longer than any client's here.
fn patient() -> Setup {
    Setup::new().with(json!({ "upstream": { "connect_timeout": "300s" } }))
}

/// An origin at an address of its own, whose connections serve one request each.
fn origin(dns: &Dns, name: &str, says: &str) -> Origin {
    let address = own_address();
    dns.set(name, &[address.into()]);
    answering(Origin::at(name, &format!("{address}:0")), says)
}

fn answering(origin: Origin, says: &str) -> Origin {
    origin.get("/", Answer::status(200, says).until_close());
    origin
}

/// GET on a thread of its own.
fn ask(proxy: &Proxy, url: String) -> JoinHandle<Response> {
    let mut client = proxy.plain();
    thread::spawn(move || client.get(&url))
}

#[test]
fn slow_names_keep_neither_hits_nor_fills_waiting() {
    let dns = Dns::start();
    let setup = patient().with(json!({ "tls": { "intercept": [
        names::REGISTRY, "held.dns.test",
    ] } }));
    let proxy = dns.start_proxy(&setup);
    let registry = Registry::https();
    let stored = fresh_body(100_000);
    let path = registry.blob("library/a", &stored);
    proxy.get(&registry.main, &path).assert_is(&stored);
    proxy.wait_stat("stores", 1);

    // More than all threads of the pools there are, or ever were.
    let origin = origin(&dns, "slow.dns.test", "at last");
    let slow: Vec<String> = (0..24).map(|n| format!("slow{n}.dns.test")).collect();
    for name in &slow {
        dns.set(name, &[origin.address().ip()]);
        dns.hold(name);
    }
    let port = origin.address().port();
    let waiting: Vec<_> =
        slow.iter().map(|name| ask(&proxy, format!("http://{name}:{port}/"))).collect();
    wait_until("all names to be asked for", || {
        slow.iter().all(|name| dns.asked(name) > 0).then_some(())
    });

    let hit = proxy.get(&registry.main, &path);
    hit.assert_is(&stored);
    hit.assert_hit();
    let body = fresh_body(3_000_000);
    let fresh = Registry::http();
    let new = fresh.blob("library/b", &body);
    proxy.get(&fresh.main, &new).assert_is(&body);
    proxy.wait_stat("stores", 2);

    // The registry's own name hangs: what is stored is served all the same.
    dns.hold("held.dns.test");
    let begun = Instant::now();
    for _ in 0..3 {
        let mut client = Client::secure(proxy.address(), "held.dns.test:443", &proxy.trust());
        let hit = client.get(&path);
        hit.assert_is(&stored);
        hit.assert_hit();
    }
    let asked = dns.asked("held.dns.test");
    assert!(asked == 1 || begun.elapsed() >= ONE_QUESTION, "{asked} questions");

    assert!(waiting.iter().all(|asked| !asked.is_finished()), "their names are still held");
    for (name, asked) in slow.iter().zip(waiting) {
        dns.let_go(name);
        assert_eq!(asked.join().expect("an answer").text(), "at last");
    }
    dns.let_go("held.dns.test");
}

#[test]
fn all_who_wait_for_a_name_share_one_look_up() {
    let dns = Dns::start();
    let setup = patient().with(json!({ "tls": { "intercept": ["secure.dns.test"] } }));
    let proxy = dns.start_proxy(&setup);
    let many = origin(&dns, "many.dns.test", "for all");
    dns.hold("many.dns.test");
    let asked: Vec<_> = (0..12).map(|_| ask(&proxy, many.url("/"))).collect();
    proxy.wait_stat("dialled", 12);
    dns.let_go("many.dns.test");
    for asked in asked {
        assert_eq!(asked.join().expect("an answer").text(), "for all");
    }
    assert_eq!(dns.asked("many.dns.test"), 1);

    // A CONNECT that is opened, and the requests inside.
    let address = own_address();
    dns.set("secure.dns.test", &[address.into()]);
    let secure = answering(Origin::https_at("secure.dns.test", &format!("{address}:0")), "opened");
    dns.hold("secure.dns.test");
    let tunnels: Vec<_> = (0..6)
        .map(|_| {
            let (proxy, trust) = (proxy.address(), proxy.trust());
            let authority = secure.authority();
            thread::spawn(move || Client::secure(proxy, &authority, &trust).get("/"))
        })
        .collect();
    proxy.wait_stat("dialled", 18);
    dns.let_go("secure.dns.test");
    for tunnel in tunnels {
        assert_eq!(tunnel.join().expect("an answer").text(), "opened");
    }
    assert_eq!(dns.asked("secure.dns.test"), 1);
}

#[test]
fn addresses_are_kept_briefly_and_asked_for_anew() {
    let dns = Dns::start();
    let proxy = dns.start_proxy(&Setup::new());
    let first = origin(&dns, "moving.dns.test", "first");
    let begun = Instant::now();
    assert_eq!(proxy.get(&first, "/").text(), "first");
    let address = own_address();
    let second = Origin::at("moving.dns.test", &format!("{address}:{}", first.address().port()));
    let second = answering(second, "second");
    dns.set("moving.dns.test", &[address.into()]);
    wait_until("an answer from the new address", || {
        let answer = proxy.get(&second, "/").text();
        let expected = if begun.elapsed() < KEPT { "first" } else { &answer };
        assert_eq!(answer, expected);
        thread::sleep(Duration::from_millis(100));
        (answer == "second").then_some(())
    });
    assert_eq!(dns.asked("moving.dns.test"), 2);
}

#[test]
fn it_is_kept_in_mind_briefly_that_a_name_does_not_resolve() {
    let dns = Dns::start();
    let proxy = dns.start_proxy(&Setup::new());
    let address = own_address();
    let origin = answering(Origin::at("late.dns.test", &format!("{address}:0")), "here it is");
    let begun = Instant::now();
    let refused = proxy.get(&origin, "/").assert_own_error(&[503]);
    assert!(refused.contains("the name late.dns.test does not resolve"), "{refused}");
    dns.set("late.dns.test", &[address.into()]);
    wait_until("the name to be asked for anew", || {
        let status = proxy.get(&origin, "/").status;
        let expected = if begun.elapsed() < KEPT_FAILURE { 503 } else { status };
        assert_eq!(status, expected);
        thread::sleep(Duration::from_millis(100));
        (status == 200).then_some(())
    });
    assert_eq!(dns.asked("late.dns.test"), 2);
}

#[test]
fn a_name_none_of_whose_addresses_answers_is_asked_for_anew_at_once() {
    let dns = Dns::start();
    let proxy = dns.start_proxy(&Setup::new());
    let address = own_address();
    let origin = answering(Origin::at("moved.dns.test", &format!("{address}:0")), "moved");
    dns.set("moved.dns.test", &[own_address().into()]);
    let refused = proxy.get(&origin, "/").assert_own_error(&[503]);
    assert!(refused.contains("Connection refused"), "{refused}");
    dns.set("moved.dns.test", &[address.into()]);
    assert_eq!(proxy.get(&origin, "/").text(), "moved");
    assert_eq!(dns.asked("moved.dns.test"), 2);
}

#[test]
fn a_look_up_that_takes_too_long_is_a_504_that_names_the_host() {
    let dns = Dns::start();
    let times = json!({ "upstream": { "connect_timeout": "1s" } });
    let proxy = dns.start_proxy(&Setup::new().with(times));
    let origin = origin(&dns, "held.dns.test", "held");
    dns.hold("held.dns.test");
    let begun = Instant::now();
    for _ in 0..2 {
        let late = proxy.get(&origin, "/").assert_own_error(&[504]);
        assert!(late.contains("held.dns.test"), "{late}");
        assert!(late.contains("the name look-up took longer than 1s"), "{late}");
    }
    dns.let_go("held.dns.test");
    wait_until("the look-up's answer", || (proxy.get(&origin, "/").status == 200).then_some(()));
    let asked = dns.asked("held.dns.test");
    assert!(asked == 1 || begun.elapsed() >= ONE_QUESTION, "{asked} questions");
}

/// A listener that nobody can connect to and that refuses nobody: it accepts none, and its backlog
/// is full, so that the kernel drops what comes.
struct BlackHole {
    address: SocketAddr,
    _listener: Socket,
    _waiting: Vec<TcpStream>,
}

fn black_hole(address: SocketAddr) -> BlackHole {
    let listener = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
    listener.bind(&address.into()).expect("an address for the black hole");
    listener.listen(0).expect("listening");
    let address = listener.local_addr().expect("its address").as_socket().expect("an IP address");
    let mut waiting = Vec::new();
    wait_until("a full backlog", || {
        let tried = TcpStream::connect_timeout(&address, Duration::from_millis(500));
        match tried {
            Ok(stream) => waiting.push(stream),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
                return Some(());
            }
        }
        None
    });
    BlackHole { address, _listener: listener, _waiting: waiting }
}

fn v4(port: u16) -> SocketAddr {
    SocketAddr::new(own_address().into(), port)
}

#[test]
fn dead_addresses_are_gone_past_in_either_family() {
    let dns = Dns::start();
    // Whoever waited for one address alone would wait longer than the client.
    let proxy = dns.start_proxy(&patient());
    let v6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 0);
    let check = |name: &str, alive: &Origin, dead: &[SocketAddr]| {
        let others: Vec<IpAddr> = dead.iter().map(SocketAddr::ip).collect();
        let alive_ip = alive.address().ip();
        for addresses in [[&[alive_ip][..], &others].concat(), [&others[..], &[alive_ip]].concat()]
        {
            dns.set(name, &addresses);
            assert_eq!(proxy.get(alive, "/").text(), name, "{addresses:?}");
        }
    };
    let at =
        |name: &str, address: SocketAddr| answering(Origin::at(name, &address.to_string()), name);

    let name = "silent.dns.test";
    let alive = at(name, v4(0));
    let hole = black_hole(v4(alive.address().port()));
    check(name, &alive, &[hole.address]);

    let name = "refusing.dns.test";
    let alive = at(name, v4(0));
    let hole = black_hole(v4(alive.address().port()));
    check(name, &alive, &[v4(0), hole.address, v4(0)]);

    let name = "dead-v6.dns.test";
    let hole = black_hole(v6);
    let alive = at(name, v4(hole.address.port()));
    check(name, &alive, &[hole.address, v4(0)]);

    let name = "dead-v4.dns.test";
    let alive = at(name, v6);
    let hole = black_hole(v4(alive.address().port()));
    check(name, &alive, &[hole.address, v4(0)]);
    assert_eq!(proxy.stat("errors"), 0);
}

#[test]
fn the_address_that_answered_is_tried_first_next_time() {
    let dns = Dns::start();
    let proxy = dns.start_proxy(&patient());
    for attempt in 0..5 {
        let name = &format!("half{attempt}.dns.test");
        let alive = answering(Origin::at(name, &v4(0).to_string()), "alive");
        let hole = black_hole(v4(alive.address().port()));
        dns.set(name, &[hole.address.ip(), alive.address().ip()]);
        let begun = Instant::now();
        assert_eq!(proxy.get(&alive, "/").text(), "alive");
        let place = hole.address;
        drop(hole);
        let _risen = answering(Origin::at(name, &place.to_string()), "risen");
        let answer = proxy.get(&alive, "/").text();
        if begun.elapsed() < KEPT {
            assert_eq!(answer, "alive");
            return;
        }
    }
    panic!("two requests never came within {KEPT:?}");
}

#[test]
fn a_host_all_of_whose_addresses_are_dead_is_named() {
    let dns = Dns::start();
    let times = json!({ "upstream": { "connect_timeout": "1s" } });
    let proxy = dns.start_proxy(&Setup::new().with(times));
    let hole = black_hole(v4(0));
    let port = hole.address.port();
    let ask = |name: &str, addresses: &[IpAddr]| {
        dns.set(name, addresses);
        proxy.plain().get(&format!("http://{name}:{port}/"))
    };
    let nobody: IpAddr = own_address().into();
    let late = ask("silent.dns.test", &[hole.address.ip()]).assert_own_error(&[504]);
    assert!(late.contains("silent.dns.test"), "{late}");
    assert!(late.contains("connecting took longer than 1s"), "{late}");
    let refused = ask("closed.dns.test", &[nobody]).assert_own_error(&[503]);
    let named = format!("closed.dns.test:{port} can't be reached: Connection refused");
    assert!(refused.contains(&named), "{refused}");
    let late = ask("both.dns.test", &[nobody, hole.address.ip()]).assert_own_error(&[504]);
    assert!(late.contains("both.dns.test"), "{late}");
    let none = ask("none.dns.test", &[]).assert_own_error(&[503]);
    assert!(none.contains("the name none.dns.test does not resolve"), "{none}");
}
