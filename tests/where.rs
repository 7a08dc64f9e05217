//! Where the proxy connects to, and where it does not, whoever asks for it and by which way.

mod support;

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use support::answer::Answer;
use support::body::Body;
use support::client::{Client, Response};
use support::lab::{Lab, Program, run};
use support::names;
use support::origin::{Origin, bare_server, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::blob_path;
use support::wait_until;
use support::wire::{Head, Stream, Wire};

/// What somebody may write for a loopback address, or for one that leads there.
const SPELLINGS: &[&str] = &[
    "127.0.0.1",
    "127.0.0.1.",
    "127.1",
    "127.0.1",
    "2130706433",
    "0177.0.0.1",
    "017700000001",
    "0x7f000001",
    "0x7f.0.0.1",
    "0x7F.1",
    "127.0.0.0x1",
    "0",
    "0.0.0.0",
    "[::]",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[::ffff:0:127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]",
    "[fe80::1%lo]",
    "[fe80::1%25lo]",
    "[::1%lo]",
    "localhost",
    "localhost.",
    "LOCALHOST",
    "a.localhost",
    "user@127.0.0.1",
    "%31%32%37.0.0.1",
    "127.0.0.1%00.example.org",
];

/// Loopback but for the addresses on which the tests' registries listen.
fn denying() -> Setup {
    Setup::new().with(json!({ "proxy": { "workers": 1, "deny_destinations": [
        "127.0.0.1/32", "::1/128", "169.254.0.0/16", "fe80::/10", "0.0.0.0/32", "::/128",
    ] } }))
}

/// Something that must not be reached: it listens on 127.0.0.1 and on ::1, on the same port.
struct Victim {
    port: u16,
    listeners: [TcpListener; 2],
}

impl Victim {
    fn new() -> Victim {
        wait_until("a port that is free on both addresses", || {
            let four = TcpListener::bind(("127.0.0.1", 0)).expect("a listener");
            let port = four.local_addr().expect("its address").port();
            let six = TcpListener::bind(("::1", port)).ok()?;
            Some(Victim { port, listeners: [four, six] })
        })
    }

    #[track_caller]
    fn assert_untouched(&self) {
        for listener in &self.listeners {
            listener.set_nonblocking(true).expect("a socket option");
            let reached = listener.accept();
            assert!(reached.is_err(), "somebody came: {reached:?}");
        }
    }
}

#[track_caller]
fn assert_refused(response: &Response, statuses: &[u16], what: &str) {
    assert!(statuses.contains(&response.status), "{what}: {response:?}");
    response.assert_own_error(statuses);
}

#[test]
fn no_spelling_of_loopback_is_reached_by_connect_or_a_whole_url() {
    let setup = denying();
    let proxy = setup.start();
    let victim = Victim::new();
    for host in SPELLINGS {
        let authority = format!("{host}:{}", victim.port);
        let refusal = Client::tunnel(proxy.address(), &authority).expect_err("CONNECT is refused");
        assert_refused(&refusal, &[400, 403], &authority);
        for scheme in ["http", "https"] {
            let url = format!("{scheme}://{authority}/v2/");
            assert_refused(&proxy.plain().get(&url), &[400, 403], &url);
        }
    }
    victim.assert_untouched();
    assert_eq!(proxy.stat("tunnelled") + proxy.stat("intercepted"), 0);
}

#[test]
fn no_spelling_of_loopback_is_reached_by_a_redirect() {
    let setup = denying();
    let proxy = setup.start();
    let victim = Victim::new();
    let registry = Origin::http(names::REGISTRY);
    for host in SPELLINGS {
        let body = fresh_body(100);
        let path = blob_path("lab/img", &body);
        for location in [
            format!("http://{host}:{}/x", victim.port),
            format!("https://{host}:{}/x", victim.port),
            format!("//{host}:{}/x", victim.port),
        ] {
            registry.get(&path, Answer::redirect(307, location.clone()));
            assert_refused(&proxy.get(&registry, &path), &[403, 502], &location);
        }
    }
    victim.assert_untouched();
    assert_eq!(proxy.stat("stores"), 0);
}

/// A private blob whose challenge sends whoever wants a token to this realm.
fn with_realm(registry: &Origin, repo: &str, realm: &str) -> String {
    let body = fresh_body(1_000);
    let path = blob_path(repo, &body);
    let challenge = format!("Bearer realm=\"{realm}\",service=\"s\",scope=\"x\"");
    for method in ["GET", "HEAD"] {
        let answer = Answer::ok(&body).with("Docker-Distribution-Api-Version", "registry/2.0");
        registry.on(method, &path, answer.wants("Bearer mine", &challenge));
    }
    path
}

#[test]
fn no_spelling_of_loopback_is_reached_by_a_question_for_a_token() {
    let setup = denying().with(json!({ "cache": { "access": "verify" } }));
    let proxy = setup.start();
    let victim = Victim::new();
    let registry = Origin::http(names::REGISTRY);
    let mine = [("Authorization", "Bearer mine")];
    let ask = |repo: &str, realm: &str| {
        let path = with_realm(&registry, repo, realm);
        assert_eq!(proxy.get_with(&registry, &path, &mine).status, 200);
        registry.wait(&path, |seen| seen.method == "HEAD" && seen.field("Authorization").is_none());
    };
    for (number, host) in SPELLINGS.iter().enumerate() {
        ask(&format!("lab/img{number}"), &format!("http://{host}:{}/token", victim.port));
    }
    ask("lab/mail", &format!("http://{}:25/token", names::AUTH));
    // One core asks one after the other: those before have been asked, or not, once this one was.
    let tokens = Origin::http(names::AUTH);
    ask("lab/last", &tokens.url("/token"));
    tokens.wait("/token", |_| true);
    victim.assert_untouched();
}

type Lines = Arc<Mutex<Vec<String>>>;

/// A parent proxy that answers everything with 200 and remembers the request lines.
fn parent() -> (SocketAddr, Lines) {
    let lines = Lines::default();
    let seen = lines.clone();
    (bare_server(names::OTHER, move |tcp| answer_all(tcp, &seen, |head| head.line)), lines)
}

/// Answers every request of a connection, and keeps what `note` makes of its head.
fn answer_all(tcp: TcpStream, lines: &Lines, note: impl Fn(Head) -> String) -> io::Result<()> {
    let mut wire = Wire::new(Stream::Plain(tcp));
    while let Some(head) = wire.head()? {
        lines.lock().unwrap().push(note(head));
        wire.stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
    }
    Ok(())
}

fn behind(setup: Setup, parent: SocketAddr) -> Setup {
    setup.with(json!({ "upstream": { "proxy": format!("http://{parent}") } }))
}

#[test]
fn a_parent_is_not_sent_where_the_proxy_itself_would_not_go() {
    let (address, lines) = parent();
    let setup = behind(denying(), address);
    let proxy = setup.start();
    // `names::DUAL` has one address that is denied and one that is not: the parent would choose.
    for host in SPELLINGS.iter().chain(&[names::DUAL, "169.254.169.254"]) {
        let authority = format!("{host}:5000");
        let refusal = Client::tunnel(proxy.address(), &authority).expect_err("CONNECT is refused");
        assert_refused(&refusal, &[400, 403], &authority);
        for scheme in ["http", "https"] {
            let url = format!("{scheme}://{authority}/x");
            assert_refused(&proxy.plain().get(&url), &[400, 403], &url);
        }
    }
    let mail = format!("http://{}:25/x", names::SECOND);
    assert_refused(&proxy.plain().get(&mail), &[403], &mail);
    assert_eq!(*lines.lock().unwrap(), [""; 0]);
    // What does not resolve here may resolve there.
    assert_eq!(proxy.plain().get("http://only-there.invalid/x").text(), "ok");
    assert_eq!(*lines.lock().unwrap(), ["GET http://only-there.invalid:80/x HTTP/1.1"]);
}

#[test]
fn a_parent_is_not_asked_for_a_host_that_only_its_address_would_allow() {
    let (address, lines) = parent();
    let list = json!({ "allowlist": {
        "enabled": true, "domains": ["listed.invalid"], "ips": ["127.0.0.2/32"],
    } });
    let setup = behind(Setup::new().with(list), address);
    let proxy = setup.start();
    for host in [names::REGISTRY, "listed.invalid"] {
        assert_eq!(proxy.plain().get(&format!("http://{host}/x")).text(), "ok");
    }
    lines.lock().unwrap().clear();
    for host in [names::SECOND, "unlisted.invalid"] {
        let url = format!("http://{host}/x");
        assert_refused(&proxy.plain().get(&url), &[403], &url);
        let refusal = Client::tunnel(proxy.address(), &format!("{host}:443"));
        assert_refused(&refusal.expect_err("a refusal"), &[403], host);
    }
    assert_eq!(*lines.lock().unwrap(), [""; 0]);
}

/// A proxy with this configuration in a lab of its own, on the usual ports of every address.
fn in_lab(lab: &Lab, text: &str) -> Program {
    let dir = lab.path("proxy");
    std::fs::create_dir_all(&dir).expect("a directory");
    let file = dir.join("config.yaml");
    let places = format!(
        "tls: {{cert_dir: {dir}/certs, intercept: []}}\ncache: {{dir: {dir}/cache}}\n",
        dir = dir.display()
    );
    std::fs::write(&file, format!("{places}{text}")).expect("the configuration");
    let mut command = lab.command(env!("CARGO_BIN_EXE_discobot-proxy"));
    command.arg("--config").arg(&file);
    let ready = || lab.is_listening(at(17_080)) && lab.is_listening(at(17_081));
    lab.start_until("proxy", &mut command, ready)
}

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A tunnel to this authority through the proxy of the lab; the status where there is none.
fn lab_tunnel(lab: &Lab, authority: &str) -> Result<(), u16> {
    let tcp = lab.connect(at(17_080)).expect("the proxy");
    match Client::tunnel_on(tcp, authority).expect("an answer to CONNECT") {
        Ok(_) => Ok(()),
        Err(refusal) => Err(refusal.status),
    }
}

#[test]
fn our_own_listeners_are_refused_on_every_address_of_the_machine() {
    let lab = Lab::new("own-listeners");
    let own: Vec<IpAddr> = (1..=3).map(|n| lab.add_host(&format!("own{n}.test")).into()).collect();
    run(lab.command("ip").args(["addr", "add", "2001:db8::7/128", "dev", "lo"]));
    let _proxy = in_lab(
        &lab,
        "proxy: {bind: [\"0.0.0.0\", \"::\"], api_bind: \"0.0.0.0\", deny_destinations: []}\n",
    );
    let mut hosts: Vec<String> = own.iter().map(IpAddr::to_string).collect();
    for ip in &own {
        hosts.extend([format!("[::ffff:{ip}]"), format!("[64:ff9b::{ip}]"), format!("[::{ip}]")]);
    }
    hosts.extend(["own1.test", "127.0.0.1", "127.8.8.8", "localhost", "0.0.0.0"].map(Into::into));
    for host in &hosts {
        for port in [17_080, 17_081] {
            assert_eq!(lab_tunnel(&lab, &format!("{host}:{port}")), Err(403), "{host}:{port}");
        }
        let tcp = lab.connect(at(17_080)).expect("the proxy");
        let response = Client::on(tcp).get(&format!("http://{host}:17081/health"));
        response.assert_own_error(&[403]);
    }
    for host in ["[2001:db8::7]", "[::1]", "[::]"] {
        assert_eq!(lab_tunnel(&lab, &format!("{host}:17080")), Err(403), "{host}");
    }
    // The same addresses at another port are nobody's of ours.
    let other = SocketAddr::new(own[1], 17_082);
    let _listener = lab.namespace().listen(other).expect("a listener");
    assert_eq!(lab_tunnel(&lab, &other.to_string()), Ok(()));
}

#[test]
fn a_parent_that_becomes_the_proxy_itself_is_not_dialled() {
    let lab = Lab::new("own-parent");
    lab.add_host("elsewhere.test");
    let text = "proxy: {bind: \"0.0.0.0\"}\nupstream: {proxy: \"http://late.test:17080\"}\n";
    let _proxy = in_lab(&lab, text);
    lab.add_host("late.test");
    assert_eq!(lab_tunnel(&lab, "elsewhere.test:443"), Err(502));
    let tcp = lab.connect(at(17_080)).expect("the proxy");
    Client::on(tcp).get("http://elsewhere.test/x").assert_own_error(&[502]);
}

/// A name server of the lab: answers for IPv4 with `answers`, one after the other; the last stays.
fn name_server(lab: &Lab, answers: Vec<Ipv4Addr>) -> Arc<AtomicUsize> {
    let asked = Arc::<AtomicUsize>::default();
    let count = asked.clone();
    let socket = lab.namespace().inside(|| UdpSocket::bind("127.0.0.1:53")).expect("port 53");
    std::thread::spawn(move || {
        let mut packet = [0; 512];
        while let Ok((len, peer)) = socket.recv_from(&mut packet) {
            let Some(question) = packet.get(12..len) else { continue };
            let name = question.iter().position(|byte| *byte == 0).unwrap_or(0);
            let is_v4 = question.get(name + 1..name + 3) == Some(&[0, 1]);
            let Some(question) = question.get(..name + 5) else { continue };
            // A response without error, one question and one answer or none (RFC 1035 4.1.1).
            let mut answer = packet[..2].to_vec();
            answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_v4), 0, 0, 0, 0]);
            answer.extend(question);
            if is_v4 {
                let at = count.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1);
                answer.extend([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
                answer.extend(answers[at].octets());
            }
            let _ = socket.send_to(&answer, peer);
        }
    });
    for (place, text) in
        [("/etc/resolv.conf", "nameserver 127.0.0.1\n"), ("/etc/nsswitch.conf", "hosts: dns\n")]
    {
        let file = lab.path(Path::new(place).file_name().and_then(|name| name.to_str()).unwrap());
        std::fs::write(&file, text).expect("a file of the lab");
        run(lab.command("mount").arg("--bind").arg(&file).arg(place));
    }
    asked
}

#[test]
fn a_name_that_changes_its_address_between_check_and_use_reaches_nobody() {
    let lab = Lab::new("rebinding");
    let victim = lab.namespace().listen(at(5_000)).expect("a listener");
    let nobody = lab.add_host("nobody.test");
    // Nothing listens at the first address: whoever looked the name up again would come to the
    // second one.
    let asked = name_server(&lab, vec![nobody, Ipv4Addr::LOCALHOST]);
    let _proxy = in_lab(&lab, "proxy: {workers: 1}\n");
    assert_eq!(lab_tunnel(&lab, "rebinding.test:5000"), Err(503));
    assert_eq!(asked.load(Ordering::SeqCst), 1, "looked up once, for check and use alike");
    // The failure made it forget the answer.
    assert_eq!(lab_tunnel(&lab, "rebinding.test:5000"), Err(403));
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    victim.set_nonblocking(true).expect("a socket option");
    assert!(victim.accept().is_err());
}

#[test]
fn a_name_behind_a_parent_is_judged_again_though_the_connection_is_the_same() {
    let lab = Lab::new("parent-rebinding");
    let nobody = lab.add_host("nobody.test");
    let parent = lab.namespace().listen(at(3_128)).expect("a listener");
    let lines = Lines::default();
    let seen = lines.clone();
    std::thread::spawn(move || {
        for tcp in parent.incoming().flatten() {
            let seen = seen.clone();
            std::thread::spawn(move || answer_all(tcp, &seen, |head| head.line));
        }
    });
    name_server(&lab, vec![nobody, Ipv4Addr::LOCALHOST]);
    let _proxy =
        in_lab(&lab, "proxy: {workers: 1}\nupstream: {proxy: \"http://127.0.0.1:3128\"}\n");
    let mut client = Client::on(lab.connect(at(17_080)).expect("the proxy"));
    assert_eq!(client.get("http://rebinding.test/x").text(), "ok");
    // The answer of the name server is used for ten seconds.
    wait_until("the address to be judged again", || {
        std::thread::sleep(Duration::from_millis(100));
        (client.get("http://rebinding.test/x").status == 403).then_some(())
    });
    let reached = lines.lock().unwrap().len();
    client.get("http://rebinding.test/x").assert_own_error(&[403]);
    assert_eq!(lines.lock().unwrap().len(), reached);
}

/// CONNECT and a whole URL to a port at an address where nothing listens.
fn reach(proxy: &Proxy, port: u16) -> (Box<Response>, Response) {
    let authority = format!("{}:{port}", names::DEAD);
    let refusal = Client::tunnel(proxy.address(), &authority).expect_err("nothing listens there");
    (refusal, proxy.plain().get(&format!("http://{authority}/x")))
}

#[test]
fn ports_behind_which_there_is_no_registry_are_refused_by_the_key_that_says_so() {
    let setup = Setup::new();
    let proxy = setup.start();
    for port in [22, 25, 80, 110, 444, 1023] {
        let (connect, plain) = reach(&proxy, port);
        let said = format!("port {port} is not in proxy.connect_ports");
        assert_eq!(connect.assert_own_error(&[403]), said);
        assert_eq!(connect.reason, said, "Go clients show the status line alone");
        match port {
            80 => drop(plain.assert_own_error(&[503])),
            _ => assert_eq!(plain.assert_own_error(&[403]), said),
        }
    }
    for port in [443, 1024, 5000, 8443, 65_535] {
        let (connect, plain) = reach(&proxy, port);
        connect.assert_own_error(&[503]);
        plain.assert_own_error(&[503]);
    }
    let registry = Origin::http(names::REGISTRY);
    let path = blob_path("lab/img", &fresh_body(100));
    for (location, status) in [
        (format!("http://{}:25/x", names::DEAD), 403),
        (format!("https://{}:80/x", names::DEAD), 403),
        (format!("http://{}/x", names::DEAD), 503),
        (format!("https://{}/x", names::DEAD), 503),
    ] {
        registry.get(&path, Answer::redirect(307, location.clone()));
        assert_refused(&proxy.get(&registry, &path), &[status], &location);
    }
}

#[test]
fn the_ports_are_those_of_the_configuration() {
    let setup = Setup::new().with(json!({ "proxy": { "connect_ports": [22, "4000-4002"] } }));
    let proxy = setup.start();
    for (port, status) in [(22, 503), (4000, 503), (4002, 503), (4003, 403), (443, 403)] {
        let (connect, plain) = reach(&proxy, port);
        assert_refused(&connect, &[status], &port.to_string());
        assert_refused(&plain, &[status], &port.to_string());
    }
    let printed = setup.run(&["check", "--config", "config.yaml"]).stdout;
    assert!(printed.contains("connect_ports:\n    - \"22\"\n    - \"4000-4002\""), "{printed}");
}

const INJECTED: &str = "Bearer 1njected";

/// The Authorization and the X-Via with which a request of a client without either came to the
/// origin.
fn came_with(proxy: &Proxy, origin: &Origin, path: &str) -> (Option<String>, Option<String>) {
    origin.get(path, Answer::status(200, "ok"));
    assert_eq!(proxy.get(origin, path).text(), "ok");
    let seen = origin.seen_at(path).pop().expect("a request");
    let field = |name| seen.field(name).map(str::to_owned);
    (field("Authorization"), field("X-Via"))
}

/// An origin of the lab without TLS. The lines say with which Authorization and X-Via requests came.
fn plain_registry(lab: &Lab, address: Ipv4Addr, port: u16) -> Lines {
    let listener = lab.namespace().listen((address, port).into()).expect("a listener");
    let lines = Lines::default();
    let seen = lines.clone();
    std::thread::spawn(move || {
        for tcp in listener.incoming().flatten() {
            let seen = seen.clone();
            std::thread::spawn(move || {
                let note = |head: Head| {
                    let field = |name| head.field(name).unwrap_or("none").to_owned();
                    format!("{} {}", field("Authorization"), field("X-Via"))
                };
                answer_all(tcp, &seen, note)
            });
        }
    });
    lines
}

#[test]
fn credentials_of_a_rule_are_not_sent_without_tls_unless_its_key_says_so() {
    let lab = Lab::new("clear-credentials");
    let _proxy = in_lab(
        &lab,
        "headers:\n  \"*.test\": &rule\n    set: {Authorization: \"Bearer 1njected\"}\n    \
         append: {X-Via: build}\n  \"http://said.test:5000\": *rule\n",
    );
    let get = |url: &str, fields: &[(&str, &str)]| {
        let mut client = Client::on(lab.connect(at(17_080)).expect("the proxy"));
        assert_eq!(client.get_with(url, fields).text(), "ok", "{url}");
    };
    let lines = plain_registry(&lab, lab.add_host("unsaid.test"), 5000);
    get("http://unsaid.test:5000/v2/", &[]);
    get("http://unsaid.test:5000/v2/", &[("Authorization", "Basic own")]);
    // By way of the cache, too.
    get(&format!("http://unsaid.test:5000{}", blob_path("a", &Body::bytes("ok"))), &[]);
    let said = lines.lock().unwrap().clone();
    assert_eq!(said[..3], ["none build", "Basic own build", "none build"]);
    let address = lab.add_host("said.test");
    let lines = plain_registry(&lab, address, 5000);
    get("http://said.test:5000/v2/", &[]);
    assert_eq!(*lines.lock().unwrap(), [format!("{INJECTED} build")]);
    let lines = plain_registry(&lab, address, 5001);
    get("http://said.test:5001/v2/", &[]);
    assert_eq!(*lines.lock().unwrap(), ["none build"], "the key names another port");
}

#[test]
fn credentials_of_a_rule_go_to_every_port_with_tls_and_to_loopback_without() {
    let setup = Setup::new().with(json!({ "headers": { "*.test": {
        "set": { "Authorization": INJECTED }, "append": { "X-Via": "build" },
    } } }));
    let proxy = setup.start();
    let all = (Some(INJECTED.to_owned()), Some("build".to_owned()));
    for origin in [
        Origin::https(names::REGISTRY),
        Origin::https(names::REGISTRY),
        Origin::http(names::REGISTRY),
    ] {
        assert_eq!(came_with(&proxy, &origin, "/v2/"), all);
    }
}

#[test]
fn credentials_for_loopback_do_not_leave_it_when_the_name_changes() {
    let lab = Lab::new("credentials-rebinding");
    let elsewhere = lab.add_host("elsewhere.test");
    let lines = plain_registry(&lab, elsewhere, 5000);
    let asked = name_server(&lab, vec![Ipv4Addr::LOCALHOST, elsewhere]);
    let _proxy = in_lab(
        &lab,
        "proxy: {workers: 1, deny_destinations: []}\nupstream: {retries: 3}\nheaders:\n  \
         \"*.test\":\n    set: {Authorization: \"Bearer 1njected\"}\n",
    );
    // The registry on loopback breaks off and is gone: the fill asks for the rest, by name.
    let here = lab.namespace().listen(at(5_000)).expect("a listener");
    let half = std::thread::spawn(move || {
        let mut wire = Wire::new(Stream::Plain(here.accept().expect("the proxy").0));
        drop(here);
        let head = wire.head().expect("a head").expect("a request");
        let answer = [&b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"[..], &[7; 50_000]];
        wire.stream.write_all(&answer.concat()).expect("half an answer");
        head.field("Authorization").map(str::to_owned)
    });
    let path = blob_path("lab/img", &fresh_body(100_000));
    let url = format!("http://rebinding.test:5000{path}");
    let response = Client::on(lab.connect(at(17_080)).expect("the proxy")).get(&url);
    assert!(response.whole.is_err(), "{response:?}");
    assert_eq!(half.join().expect("the registry").as_deref(), Some(INJECTED));
    assert!(asked.load(Ordering::SeqCst) >= 2, "the name was looked up again");
    assert_eq!(*lines.lock().unwrap(), [""; 0]);
}
