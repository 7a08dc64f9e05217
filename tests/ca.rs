//! The CA: how its files come to be, whose they may be, and what it signs. What openssl says of
//! files and certificates counts.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{SystemTime, UNIX_EPOCH};

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use serde_json::json;
use support::ca::{assert_refused, assert_verifies, config, mode, put};
use support::certs::{Trust, validity};
use support::client::{Client, dial};
use support::clock::{Clock, DAY};
use support::names;
use support::openssl::{shell, try_shell};
use support::origin::Origin;
use support::proxy::{Finished, Setup, run};
use time::OffsetDateTime;

/// The program with this command, after a shell's command.
fn run_after(setup: &Setup, before: &str, words: &str) -> Finished {
    let program = env!("CARGO_BIN_EXE_discobot-proxy");
    let script = format!("{before} {program} {words} --config {}", config(setup));
    run(&mut setup.wrapped("sh", &["-c", &script]))
}

fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs() as i64
}

#[test]
fn the_key_is_never_readable_by_others_whatever_the_umask() {
    for umask in ["000", "022", "077", "777"] {
        let setup = Setup::new();
        let file = setup.path("trace");
        // A question mark: not every machine has every call.
        let calls = "?open,openat,?creat,?chmod,fchmod,fchmodat,?rename,renameat,?renameat2,\
                     ?link,linkat,symlinkat,?symlink,write";
        let strace = format!(
            "umask {umask} && exec strace -f -qq -e trace={calls} -s 64 -o {}",
            file.display()
        );
        let finished = run_after(&setup, &strace, "ca");
        assert_eq!(finished.code, Some(0), "{finished:?}");
        assert_eq!(mode(&setup.path("certs/ca.key")), 0o600);
        assert_eq!(mode(&setup.path("certs/ca.crt")), 0o644, "to be copied to clients");

        let trace = fs::read_to_string(file).expect("the trace");
        let lines = |parts: &[&str]| {
            let all = trace.lines().filter(|line| parts.iter().all(|part| line.contains(part)));
            all.collect::<Vec<&str>>()
        };
        // What holds the key was made anew, under another name, with the mode it ends with.
        let [made] = lines(&["O_CREAT", "ca.key"])[..] else { panic!("{trace}") };
        assert!(made.contains("O_EXCL") && made.contains(", 0600)"), "{made}");
        assert!(!made.contains("ca.key\""), "{made}");
        assert_eq!(lines(&["write(", "PRIVATE KEY"]).len(), 1, "{trace}");
        assert_eq!(lines(&["rename", "ca.key\""]).len(), 1, "{trace}");
        assert_eq!(lines(&["link", "ca.key"]), [""; 0]);
        let [certificates] = lines(&["chmod(", ", 0644)"])[..] else { panic!("{trace}") };
        let keys = lines(&["chmod(", ", 0600)"]);
        assert_eq!(lines(&["chmod("]).len(), 1 + keys.len(), "{trace}");
        assert!(trace.find(certificates) > trace.find("PRIVATE KEY"), "{trace}");
    }
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let setup = Setup::new();
    assert_eq!(setup.run(&["ca", "--config", &config(&setup)]).code, Some(0));
    let key = setup.path("certs/ca.key");
    for bad in [0o640, 0o604, 0o644, 0o620, 0o602, 0o660, 0o666, 0o610] {
        fs::set_permissions(&key, fs::Permissions::from_mode(bad)).expect("chmod");
        let how = format!("chmod 600 {}", key.display());
        assert_refused(&setup, &["ca.key", &format!("{bad:04o}"), &how]);
        assert_eq!(mode(&key), bad, "it is for its owner to say");
    }
    for good in [0o600, 0o400] {
        fs::set_permissions(&key, fs::Permissions::from_mode(good)).expect("chmod");
        setup.start().stop();
    }
}

#[test]
fn many_that_start_at_once_make_one_ca() {
    let setup = Setup::new();
    let program = env!("CARGO_BIN_EXE_discobot-proxy");
    let script = format!(
        "for n in 1 2 3 4 5 6 7 8; do {program} ca --config {} & done; wait",
        config(&setup)
    );
    let finished = run(&mut setup.wrapped("sh", &["-c", &script]));
    assert_eq!(finished.stderr, "", "{finished:?}");
    let ends = finished.stdout.matches("-----END CERTIFICATE-----").count();
    let pem = fs::read_to_string(setup.path("certs/ca.crt")).expect("ca.crt");
    assert_eq!((ends, finished.stdout.matches(pem.trim()).count()), (8, 8), "{finished:?}");
    setup.start().stop();
}

#[test]
fn a_ca_of_our_making_signs_hosts_and_nothing_else() {
    let setup = Setup::new();
    let printed = setup.run(&["ca", "--config", &config(&setup)]).stdout;
    let text = shell("openssl x509 -noout -text", printed.as_bytes());
    for part in ["CA:TRUE, pathlen:0", "Basic Constraints: critical", "Certificate Sign, CRL Sign"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    // An authority below it is not believed, by openssl and by rustls alike.
    let dir = setup.path("").display().to_string();
    shell(
        &format!(
            "cd {dir} && openssl req -newkey rsa:2048 -nodes -keyout sub.key -subj /CN=below \
             -out sub.csr 2>&1 && printf 'basicConstraints=critical,CA:TRUE\n' >sub.ext \
             && openssl x509 -req -in sub.csr -CA certs/ca.crt -CAkey certs/ca.key -extfile sub.ext \
             -out sub.crt 2>&1 \
             && openssl req -newkey rsa:2048 -nodes -keyout evil.key -subj /CN=x -out evil.csr 2>&1 \
             && printf 'subjectAltName=DNS:registry.test\n' >evil.ext \
             && openssl x509 -req -in evil.csr -CA sub.crt -CAkey sub.key -extfile evil.ext \
             -out evil.crt 2>&1"
        ),
        b"",
    );
    let verify =
        format!("cd {dir} && openssl verify -CAfile certs/ca.crt -untrusted sub.crt evil.crt");
    let (ok, out, err) = try_shell(&verify, b"");
    assert!(!ok && format!("{out}{err}").contains("path length"), "{out}{err}");
}

#[test]
fn a_leaf_lives_for_days_and_has_a_number_of_its_own() {
    let setup = Setup::new();
    let proxy = setup.start();
    let mut numbers = BTreeSet::new();
    for host in [names::REGISTRY, names::SECOND] {
        let origin = Origin::https(host);
        let client = proxy.client(&origin);
        let (from, to) = validity(&client.peer_certificate());
        assert_eq!((to - from) as i64, 8 * DAY, "seven days, and one for slow clocks");
        let chain = client.peer_chain();
        assert_eq!(chain.len(), 1, "the root is the client's own");
        let root = fs::read_to_string(setup.path("certs/ca.crt")).expect("ca.crt");
        assert_verifies(&setup, &root, &chain, host);
        let text = shell("openssl x509 -noout -text", chain[0].as_bytes());
        for part in ["TLS Web Server Authentication", "Digital Signature"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("CA:TRUE"), "{text}");
        numbers.insert(shell("openssl x509 -noout -serial", chain[0].as_bytes()));
    }
    assert_eq!(numbers.len(), 2, "{numbers:?}");
}

#[test]
fn leaves_are_renewed_before_they_end_and_when_the_clock_was_put_back() {
    let (setup, clock) = Clock::of(Setup::new());
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let shown = |days: i64| {
        clock.set(days * DAY);
        let trust = proxy.trust().at(days * DAY);
        let client = Client::secure(proxy.address(), &origin.authority(), &trust);
        let leaf = client.peer_certificate();
        let (from, to) = validity(&leaf);
        let now = unix_now() + days * DAY;
        assert!(from as i64 <= now - 3600, "day {days}: a clock an hour slow would refuse it");
        assert!(to as i64 >= now + 3 * DAY, "day {days}: it ends in {} s", to as i64 - now);
        leaf
    };
    let first = shown(0);
    assert_eq!(shown(2), first, "made once for days");
    let second = shown(4);
    assert_ne!(second, first);
    assert_eq!(shown(6), second);
    let late = shown(400);
    assert_ne!(late, second);
    assert_ne!(shown(0), late, "of a day to come");
}

#[test]
fn a_leaf_does_not_outlive_its_ca_and_after_the_ca_there_is_none() {
    let (setup, clock) = Clock::of(Setup::new());
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_after = OffsetDateTime::now_utc() + time::Duration::days(100);
    let root = params.self_signed(&key).expect("a CA");
    put(&setup, &root.pem(), &key.serialize_pem());
    let ends = validity(root.der()).1;
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let trust = Trust::pem(&root.pem());
    clock.set(98 * DAY);
    let on_98 = trust.clone().at(98 * DAY);
    let client = Client::secure(proxy.address(), &origin.authority(), &on_98);
    assert_eq!(validity(&client.peer_certificate()).1, ends);
    drop(client);

    clock.set(101 * DAY);
    // By this client's clock all is well: it is the proxy that gives nothing more.
    let tcp = dial(proxy.address(), None);
    assert!(Client::try_secure(tcp, &origin.authority(), &on_98).is_err());
    proxy.wait_log(&["no certificate", "the CA ended on", names::REGISTRY]);
    drop(proxy);
    assert_refused(&setup, &["ca.crt", "this CA ended on", "ca rotate"]);
}

#[test]
fn an_end_that_is_near_is_said() {
    let (setup, clock) = Clock::of(Setup::new());
    let words = ["ca", "--config", &config(&setup)];
    assert_eq!(setup.run(&words).stderr, "");
    clock.set(3640 * DAY);
    let near = setup.run(&words);
    assert_eq!(near.code, Some(0), "{near:?}");
    assert!(near.stderr.contains("ca.crt: this CA ends on "), "{near:?}");
    setup.start().wait_log(&["WARN", "this CA ends on "]);
}

#[test]
fn leaves_are_kept_within_a_bound() {
    let setup = Setup::new().with(json!({ "tls": { "intercept": ["*"] } }));
    let proxy = setup.start();
    let trust = proxy.trust();
    let shown = |host: &str| {
        let tcp = dial(proxy.address(), None);
        Client::try_secure(tcp, &format!("{host}:443"), &trust).expect("TLS").peer_certificate()
    };
    let first = shown("127.1.0.0");
    assert_eq!(shown("127.1.0.0"), first);
    for n in 0..1024 {
        shown(&format!("127.2.{}.{}", n / 256, n % 256));
    }
    assert_ne!(shown("127.1.0.0"), first, "more than 1024 are kept");
}
