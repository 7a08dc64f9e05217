//! `discobot-proxy verify`: a whole cache read again, what is damaged removed, also beside a proxy
//! that runs.

mod support;

use std::fs;
use std::path::Path;

use support::answer::Answer;
use support::body::Body;
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::{Finished, Proxy, Setup};
use support::registry::blob_path;

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
fn no_cache_is_said_so() {
    let setup = Setup::new();
    let finished = verify(&setup);
    assert_eq!(finished.code, Some(1), "{}", finished.stdout);
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
}
