//! `discobot-proxy verify`: a whole cache read again, what is damaged removed, also beside a proxy
//! that runs.

mod support;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use serde_json::json;
use support::answer::Answer;
use support::body::Body;
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::{Finished, Proxy, Setup, run};
use support::registry::blob_path;
use support::{DEADLINE, wait_until};

fn stored(setup: &Setup, proxy: &Proxy, origin: &Origin) -> Body {
    let body = fresh_body(300_000);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body));
    proxy.get(origin, &path).assert_is(&body);
    assert!(setup.blob(&body.sha256()).exists());
    body
}

fn verify(setup: &Setup) -> Finished {
    let config = setup.write_config();
    setup.run(&["verify", "--config", config.to_str().expect("UTF-8")])
}

fn flip(file: &Path) {
    let mut bytes = fs::read(file).expect("the body");
    bytes[1000] ^= 1;
    fs::write(file, bytes).expect("damage");
}

fn meta(file: &Path) -> std::path::PathBuf {
    let name = file.file_name().and_then(|name| name.to_str()).expect("a name");
    file.with_file_name(format!("{name}.meta"))
}

#[test]
fn a_whole_cache_is_found_whole_and_left_alone() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    let bodies = [stored(&setup, &proxy, &origin), stored(&setup, &proxy, &origin)];
    let finished = verify(&setup);
    assert_eq!(finished.code, Some(0), "{}{}", finished.stdout, finished.stderr);
    assert!(finished.stdout.contains("2 whole, 0 damaged"), "{}", finished.stdout);
    for body in &bodies {
        assert!(setup.blob(&body.sha256()).exists());
    }
    proxy.stop();
    assert_eq!(verify(&setup).code, Some(0));
}

#[test]
fn what_is_damaged_goes_and_is_fetched_anew_beside_a_running_proxy() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    let whole = stored(&setup, &proxy, &origin);
    let damages: [fn(&Path); 5] = [
        flip,
        |file| fs::OpenOptions::new().write(true).open(file).unwrap().set_len(10).unwrap(),
        |file| fs::remove_file(meta(file)).unwrap(),
        |file| fs::write(meta(file), b"{\"format\":1").unwrap(),
        |file| fs::write(meta(file), b"nonsense\n").unwrap(),
    ];
    let damaged: Vec<Body> = damages
        .iter()
        .map(|damage| {
            let body = stored(&setup, &proxy, &origin);
            damage(&setup.blob(&body.sha256()));
            body
        })
        .collect();
    let finished = verify(&setup);
    assert_eq!(finished.code, Some(3), "{}{}", finished.stdout, finished.stderr);
    assert!(finished.stdout.contains("1 whole, 5 damaged"), "{}", finished.stdout);
    for body in &damaged {
        assert!(finished.stdout.contains(&body.sha256()), "{}", finished.stdout);
        assert!(!setup.blob(&body.sha256()).exists());
        let again = proxy.get(&origin, &blob_path("lab/img", body));
        again.assert_is(body);
        again.assert_not_hit();
        proxy.get(&origin, &blob_path("lab/img", body)).assert_hit();
    }
    let path = blob_path("lab/img", &whole);
    proxy.get(&origin, &path).assert_hit();
    assert_eq!(verify(&setup).code, Some(0));
}

#[test]
fn a_terminal_shows_how_far_it_is_and_a_pipe_gets_the_result_alone() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    let bodies = [(); 4].map(|()| stored(&setup, &proxy, &origin));
    proxy.stop();
    let piped = verify(&setup);
    assert_eq!(
        piped.stdout,
        "4 whole, 0 damaged and removed, 0 gone meanwhile, 1200000 bytes read"
    );
    assert_eq!(piped.stderr, "");
    flip(&setup.blob(&bodies[0].sha256()));
    let (binary, config) = (env!("CARGO_BIN_EXE_discobot-proxy"), setup.write_config());
    let line = format!("stty cols 100 rows 24; {binary} verify --config {}", config.display());
    // A terminal of its own; the exit code is the command's.
    let shown = run(&mut setup.wrapped("script", &["-qec", &line, "/dev/null"]));
    assert_eq!(shown.code, Some(3), "{shown:?}");
    for part in ["/1.14 MiB", "/s", "damaged, removed: ", "3 whole, 1 damaged and removed"] {
        assert!(shown.stdout.contains(part), "{part} is not in {:?}", shown.stdout);
    }
}

#[test]
fn nothing_of_a_proxy_that_stores_and_evicts_meanwhile_is_taken_for_damaged() {
    let patterns = ["^/files/", "^/v2/.*/blobs/sha256:"];
    let keys = json!({ "cache": { "max_size": 1_000_000, "patterns": patterns } });
    let setup = Setup::new().with(keys);
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    let mut served = Vec::new();
    for number in 0..12 {
        let body = fresh_body(120_000 + number);
        for path in [blob_path("lab/img", &body), format!("/files/{number}")] {
            origin.get(&path, Answer::ok(&body));
            served.push((path, body.clone()));
        }
    }
    let (next, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let end = Instant::now() + 2 * DEADLINE;
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut client = proxy.plain();
                while !over.load(Ordering::SeqCst) && Instant::now() < end {
                    let (path, body) = &served[next.fetch_add(1, Ordering::SeqCst) % served.len()];
                    client.get(&origin.url(path)).assert_is(body);
                }
            });
        }
        let mut read = 0;
        wait_until("entries to be read beside evictions", || {
            let finished = verify(&setup);
            if finished.code != Some(0) || !finished.stdout.contains(" 0 damaged") {
                over.store(true, Ordering::SeqCst);
                panic!("{finished:?}");
            }
            let bytes = finished.stdout.rsplit(", ").next().and_then(|last| last.split(' ').next());
            read += bytes.and_then(|bytes| bytes.parse::<u64>().ok()).expect("bytes read");
            let enough = read > 10_000_000 && proxy.stat("evictions") > 200;
            enough.then(|| over.store(true, Ordering::SeqCst))
        });
    });
    assert_eq!(proxy.stat("errors"), 0, "{}", proxy.output());
}

#[test]
fn no_cache_is_said_so() {
    let setup = Setup::new();
    let finished = verify(&setup);
    assert_eq!(finished.code, Some(1), "{}", finished.stdout);
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
}
