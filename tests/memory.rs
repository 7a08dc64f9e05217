//! What was secret and is no longer needed is not left in the process's memory.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use serde_json::json;
use support::client::Client;
use support::proxy::{Proxy, Setup};

/// In what stays in use, to see that it would be found.
const KEPT: &str = "kept-in-use-0123456789";

/// In what is used once.
const ONCE: &str = "used-once-0123456789";

/// `KEPT` or `ONCE` in the writable memory of the process: how often.
fn count(proxy: &Proxy, wanted: &str) -> usize {
    let dir = format!("/proc/{}", proxy.pid());
    let maps = fs::read_to_string(format!("{dir}/maps")).expect("its memory's map");
    let memory = File::open(format!("{dir}/mem")).expect("its memory");
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, rest) = line.split_once('-').expect("a range");
        let to = rest.split(' ').next().unwrap_or_default();
        let place = |hex| u64::from_str_radix(hex, 16).expect("an address");
        let mut bytes = vec![0; (place(to) - place(from)) as usize];
        // Some of the kernel's own can't be read.
        if memory.read_exact_at(&mut bytes, place(from)).is_ok() {
            let wanted = wanted.as_bytes();
            found += bytes.windows(wanted.len()).filter(|part| part == &wanted).count();
        }
    }
    found
}

#[test]
fn the_text_of_the_configuration() {
    let setup = Setup::new().with(json!({ "proxy": { "api_token": KEPT } }));
    let file = setup.write_config();
    let mut text = fs::read_to_string(&file).expect("the configuration");
    // No key holds it. So many that what comes afterwards does not happen to cover them all, and not
    // so many that their memory goes back to the kernel.
    text.push_str(&format!("# {ONCE}\n").repeat(300));
    fs::write(&file, text).expect("the configuration");
    let proxy = setup.start_with(&["--config", file.to_str().expect("UTF-8")]);
    assert!(count(&proxy, KEPT) > 0, "nothing is found at all");
    assert_eq!(count(&proxy, ONCE), 0);
}

#[test]
fn passwords_of_clients() {
    let setup = Setup::new();
    let file = setup.path("users");
    let users = format!("{KEPT}:$2y$04$abcdefghijklmnopqrstuuchfW6qKGHPmWbpYPB8NwI5L.KjFn0Ti\n");
    fs::write(&file, users).expect("the users");
    let setup = setup.with(json!({ "proxy": { "users": file.to_str().expect("UTF-8") } }));
    let proxy = setup.start();
    for length in 0..100 {
        // What is given back has its first bytes written over by the allocator.
        let pair = format!("somebody:{}{ONCE}", "x".repeat(length + 32));
        let value = format!("Basic {}", support::base64(pair.as_bytes()));
        let tcp = support::client::dial(proxy.address(), None);
        let fields = [("Proxy-Authorization", value.as_str())];
        let answer = Client::tunnel_with(tcp, "registry.test:443", &fields).expect("an answer");
        assert_eq!(answer.expect_err("a refusal").status, 407);
    }
    assert!(count(&proxy, KEPT) > 0, "nothing is found at all");
    assert_eq!(count(&proxy, ONCE), 0);
}
