//! Private images: what is stored goes only to those whom upstream would give it.

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use serde_json::json;
use support::answer::{Answer, Gate};
use support::body::Body;
use support::client::Response;
use support::clock::Clock;
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::{blob_path, manifest_path};
use support::wait_until;

fn verifying() -> Setup {
    Setup::new().with(json!({ "cache": { "access": "verify" } }))
}

const CHALLENGE: &str = "Bearer realm=\"/nowhere\",service=\"s\",scope=\"x\"";
const MINE: &str = "Bearer mine";
const OTHERS: &str = "Bearer others";

/// Serves a blob of a repository to whoever has this credential.
fn private(origin: &Origin, repo: &str, body: &Body, authorization: &str) -> String {
    let path = blob_path(repo, body);
    let answer = || registry(Answer::ok(body)).wants(authorization, CHALLENGE);
    origin.get(&path, answer());
    origin.on("HEAD", &path, answer().bodiless());
    path
}

fn registry(answer: Answer) -> Answer {
    answer.with("Docker-Distribution-Api-Version", "registry/2.0")
}

fn ask(proxy: &Proxy, origin: &Origin, path: &str, authorization: &str) -> Response {
    proxy.get_with(origin, path, &[("Authorization", authorization)])
}

fn requests(origin: &Origin) -> usize {
    origin.seen().len()
}

#[test]
fn a_stored_private_blob_is_for_those_who_may_have_it() {
    let setup = verifying();
    let proxy = setup.start();
    for origin in [Origin::https(names::REGISTRY), Origin::http(names::SECOND)] {
        let body = fresh_body(200_000);
        let path = private(&origin, "team/app", &body, MINE);
        ask(&proxy, &origin, &path, MINE).assert_is(&body);
        let again = ask(&proxy, &origin, &path, MINE);
        again.assert_is(&body);
        again.assert_hit();
        for refused in [proxy.get(&origin, &path), ask(&proxy, &origin, &path, OTHERS)] {
            assert_eq!(refused.status, 401);
            assert_eq!(refused.field("WWW-Authenticate"), Some(CHALLENGE));
            refused.assert_not_hit();
        }
        let before = origin.count("GET", &path);
        ask(&proxy, &origin, &path, MINE).assert_hit();
        assert_eq!(origin.count("GET", &path), before, "no bytes were fetched again");
    }
}

#[test]
fn head_of_a_stored_private_blob_tells_nothing_either() {
    let setup = verifying();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(50_000);
    let path = private(&origin, "team/app", &body, MINE);
    ask(&proxy, &origin, &path, MINE).assert_is(&body);
    let mut client = proxy.client(&origin);
    client.start("HEAD", &origin.url(&path), &[]);
    let head = client.head();
    let refused = client.rest("HEAD", head);
    assert_eq!(refused.status, 401);
    refused.assert_not_hit();
    client.start("HEAD", &origin.url(&path), &[("Authorization", MINE)]);
    let head = client.head();
    client.rest("HEAD", head).assert_hit();
}

/// The registry says that it does not have it there, and a client of ours is told so.
#[track_caller]
fn is_unknown(proxy: &Proxy, origin: &Origin, path: &str) {
    for method in ["GET", "HEAD"] {
        origin.on(method, path, registry(Answer::status(404, "unknown")));
    }
    let refused = ask(proxy, origin, path, MINE);
    assert_eq!(refused.status, 404);
    refused.assert_not_hit();
}

#[test]
fn rights_in_one_repository_open_no_other() {
    let setup = verifying();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let (secret, own) = (fresh_body(100_000), fresh_body(1_000));
    let hidden = private(&origin, "team/secret", &secret, OTHERS);
    ask(&proxy, &origin, &hidden, OTHERS).assert_is(&secret);
    let mine = private(&origin, "me/own", &own, MINE);
    ask(&proxy, &origin, &mine, MINE).assert_is(&own);
    // The registry says that this repository does not have it.
    let through = blob_path("me/own", &secret);
    is_unknown(&proxy, &origin, &through);
}

#[test]
fn no_registry_vouches_for_anothers_bytes() {
    let setup = verifying();
    let proxy = setup.start();
    let (good, evil) = (Origin::https(names::REGISTRY), Origin::https(names::SECOND));
    let secret = fresh_body(100_000);
    let hidden = private(&good, "team/secret", &secret, MINE);
    ask(&proxy, &good, &hidden, MINE).assert_is(&secret);
    // It says yes to whatever it is asked, and has nothing.
    let path = blob_path("any/thing", &secret);
    let claim = || {
        let body = Body::bytes("nothing");
        registry(Answer::ok(&body)).with("Docker-Content-Digest", secret.digest())
    };
    evil.get(&path, claim());
    evil.on("HEAD", &path, claim().bodiless());
    let got = proxy.get(&evil, &path);
    got.assert_not_hit();
    assert_eq!(got.status, 502, "what it sent was not what it was asked for");
    ask(&proxy, &good, &hidden, MINE).assert_hit();
}

/// A registry that gives anybody a token for `team/public`.
fn public(origin: &Origin, body: &Body) -> String {
    let path = blob_path("team/public", body);
    let challenge = "Bearer realm=\"/token\",service=\"reg\",scope=\"repository:team/public:pull\"";
    let token = "{\"token\":\"for-nobody\"}";
    origin.get("/token", Answer::status(200, token).with("Content-Type", "application/json"));
    origin.get(&path, registry(Answer::ok(body)));
    let head = registry(Answer::ok(body)).bodiless();
    origin.on("HEAD", &path, head.wants("Bearer for-nobody", challenge));
    path
}

#[test]
fn public_hits_make_no_request_at_all_also_after_a_restart() {
    let setup = verifying();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(100_000);
    let path = public(&origin, &body);
    ask(&proxy, &origin, &path, "Bearer one").assert_is(&body);
    wait_until("the question for everybody", || {
        let asked = origin.seen_at(&path);
        asked
            .iter()
            .any(|seen| seen.field("Authorization") == Some("Bearer for-nobody"))
            .then_some(())
    });
    wait_until("its answer", || {
        let got = ask(&proxy, &origin, &path, "Bearer two");
        got.assert_is(&body);
        (got.field("X-Cache") == Some("HIT")).then_some(())
    });
    let quiet = |proxy: &Proxy| {
        let (before, questions) = (requests(&origin), proxy.stat("questions"));
        for n in 0..20 {
            ask(proxy, &origin, &path, &format!("Bearer new-{n}")).assert_hit();
            proxy.get(&origin, &path).assert_hit();
        }
        assert_eq!(requests(&origin), before);
        assert_eq!(proxy.stat("questions"), questions);
    };
    quiet(&proxy);
    proxy.stop();
    let proxy = setup.start();
    quiet(&proxy);
    proxy.kill();
    let proxy = setup.start();
    quiet(&proxy);
}

#[test]
fn a_killed_proxy_remembers_what_is_public() {
    let setup = verifying();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(100_000);
    let path = public(&origin, &body);
    ask(&proxy, &origin, &path, "Bearer one").assert_is(&body);
    wait_until("the repository's place in the file", || {
        let saved = fs::read_to_string(setup.path("cache/public")).unwrap_or_default();
        (saved.lines().count() == 3).then_some(())
    });
    proxy.kill();
    let proxy = setup.start();
    let before = requests(&origin);
    ask(&proxy, &origin, &path, "Bearer two").assert_hit();
    assert_eq!(requests(&origin), before);
}

#[test]
fn identical_questions_are_asked_once_and_share_what_became_of_it() {
    const CLIENTS: usize = 8;
    let setup = verifying().with(json!({ "proxy": { "workers": 1 } }));
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    for (refused, status) in [(false, 503), (true, 401)] {
        let body = fresh_body(100_000);
        let path = private(&origin, "team/app", &body, MINE);
        ask(&proxy, &origin, &path, MINE).assert_is(&body);
        let gate = Gate::new();
        let answer = match refused {
            true => registry(Answer::status(401, "")).with("WWW-Authenticate", CHALLENGE),
            false => Answer::raw("nonsense\r\n\r\n"),
        };
        origin.on("HEAD", &path, answer.gate_head(&gate));
        let shared = proxy.stat("questions_shared") + CLIENTS as u64 - 1;
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|_| {
                    let (proxy, origin, path) = (&proxy, &origin, &path);
                    scope.spawn(move || ask(proxy, origin, path, OTHERS))
                })
                .collect();
            proxy.wait_stat("questions_shared", shared);
            gate.open();
            for client in clients {
                assert_eq!(client.join().expect("a client").status, status);
            }
        });
        let asked = origin
            .seen_at(&path)
            .into_iter()
            .filter(|seen| seen.method == "HEAD" && seen.field("Authorization") == Some(OTHERS));
        assert_eq!(asked.count(), 1);
    }
}

#[test]
fn what_ails_a_registry_that_is_asked_reaches_the_client() {
    let setup = verifying();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(100_000);
    let path = private(&origin, "team/app", &body, MINE);
    ask(&proxy, &origin, &path, MINE).assert_is(&body);
    let limited = || Answer::status(429, "slow down").with("Retry-After", "77");
    origin.get(&path, limited());
    origin.on("HEAD", &path, limited().bodiless());
    let got = ask(&proxy, &origin, &path, OTHERS);
    assert_eq!((got.status, got.field("Retry-After")), (429, Some("77")), "{got:?}");
    ask(&proxy, &origin, &path, MINE).assert_hit();
}

#[test]
fn a_client_that_joins_a_running_fill_is_asked_too() {
    let setup = verifying();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(2_000_000);
    let path = blob_path("team/app", &body);
    let gate = Gate::new();
    origin.script(
        "GET",
        &path,
        [
            registry(Answer::ok(&body)).gate_at(500_000, &gate),
            registry(Answer::ok(&body)).wants(MINE, CHALLENGE),
        ],
    );
    let head = || registry(Answer::ok(&body)).bodiless().wants(MINE, CHALLENGE);
    origin.on("HEAD", &path, head());
    let mut leader = proxy.client(&origin);
    let mut transfer = leader.begin_with(&origin.url(&path), &[("Authorization", MINE)]);
    transfer.read_to(&mut leader, 400_000);
    let refused = ask(&proxy, &origin, &path, OTHERS);
    assert_eq!(refused.status, 401, "{refused:?}");
    gate.open();
    transfer.finish(&mut leader).assert_is(&body);
}

#[test]
fn with_the_registry_down_only_what_was_proven_is_served() {
    let setup = verifying();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(100_000);
    let path = private(&origin, "team/app", &body, MINE);
    ask(&proxy, &origin, &path, MINE).assert_is(&body);
    origin.stop();
    ask(&proxy, &origin, &path, MINE).assert_hit();
    let refused = ask(&proxy, &origin, &path, OTHERS);
    refused.assert_own_error(&[503]);
}

#[test]
fn trust_is_for_everybody_and_says_so() {
    let setup = Setup::new().with(json!({ "cache": { "access": "trust" } }));
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(10_000);
    let path = private(&origin, "team/app", &body, MINE);
    ask(&proxy, &origin, &path, MINE).assert_is(&body);
    proxy.get(&origin, &path).assert_hit();
    proxy.wait_log(&["WARN", "cache.access is trust"]);
}

#[test]
fn the_secret_and_the_grants_are_nobodys_to_read() {
    let setup = verifying();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(10_000);
    let path = private(&origin, "team/app", &body, MINE);
    ask(&proxy, &origin, &path, MINE).assert_is(&body);
    let secret = fs::metadata(setup.path("certs/grants.key")).expect("the secret");
    assert_eq!(secret.permissions().mode() & 0o777, 0o600);
    let meta = setup.blob(&format!("{}.meta", body.sha256()));
    let meta = String::from_utf8_lossy(&fs::read(meta).expect("a .meta")).into_owned();
    assert!(!meta.contains("mine") && !meta.contains("team/app"), "{meta}");
    let again = ask(&proxy, &origin, &path, MINE);
    assert!(again.field("X-Discobot-Source").is_none(), "{again:?}");
}

#[test]
fn clients_to_be_fetched_for_never_make_more_than_one_fill() {
    let setup = verifying();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(3_000_000);
    let path = private(&origin, "team/app", &body, MINE);
    ask(&proxy, &origin, &path, MINE).assert_is(&body);
    // The registry does not say by HEAD who may have it, and gives it to everybody.
    origin.on("HEAD", &path, Answer::status(405, ""));
    let gate = Gate::new();
    origin.get(&path, registry(Answer::ok(&body)).gate_at(2_000_000, &gate));
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|n| {
                let (proxy, origin, path) = (&proxy, &origin, &path);
                scope.spawn(move || ask(proxy, origin, path, &format!("Bearer {n}")))
            })
            .collect();
        gate.wait_arrivals(8);
        assert_eq!(proxy.stat("fills"), 1);
        let parts = fs::read_dir(setup.path("cache/partial")).expect("partial").count();
        assert_eq!(parts, 1, "the others pass and write nothing");
        gate.open();
        for client in clients {
            client.join().expect("a client").assert_is(&body);
        }
    });
}

fn head(proxy: &Proxy, origin: &Origin, path: &str) -> Response {
    let mut client = proxy.client(origin);
    client.start("HEAD", &origin.url(path), &[]);
    let head = client.head();
    client.rest("HEAD", head)
}

#[test]
fn head_speaks_for_no_other_repository_than_the_bytes_came_from() {
    for access in ["verify", "trust"] {
        let setup = Setup::new().with(json!({ "cache": { "access": access } }));
        let proxy = setup.start();
        let (origin, other) = (Origin::https(names::REGISTRY), Origin::https(names::SECOND));
        let (body, own) = (fresh_body(50_000), fresh_body(1_000));
        let path = blob_path("team/a", &body);
        origin.get(&path, registry(Answer::ok(&body)));
        proxy.get(&origin, &path).assert_is(&body);
        for (origin, repo) in [(&origin, "team/b"), (&other, "team/a")] {
            // Both are for everybody, so that nothing but the blob's absence keeps it from anybody.
            let public = blob_path(repo, &own);
            origin.get(&public, registry(Answer::ok(&own)));
            proxy.get(origin, &public).assert_is(&own);
            let elsewhere = blob_path(repo, &body);
            let unknown = registry(Answer::status(404, "")).with("X-Said-By", repo);
            origin.on("HEAD", &elsewhere, unknown);
            let said = head(&proxy, origin, &elsewhere);
            assert_eq!((said.status, said.field("X-Said-By")), (404, Some(repo)), "{access}");
            said.assert_not_hit();
            assert_eq!(origin.count("HEAD", &elsewhere), 1, "{access}");
        }
        head(&proxy, &origin, &path).assert_hit();
    }
}

#[test]
fn a_manifest_stored_from_another_repository_lists_nothing_in_this_one() {
    let setup = verifying();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let secret = fresh_body(100_000);
    let hidden = private(&origin, "team/secret", &secret, OTHERS);
    ask(&proxy, &origin, &hidden, OTHERS).assert_is(&secret);
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let layer = json!({ "mediaType": "application/x", "digest": secret.digest(), "size": 100_000 });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": kind, "config": layer, "layers": [layer],
    });
    let manifest = Body::bytes(manifest.to_string());
    let stored = manifest_path("team/secret", &manifest);
    let answer = || registry(Answer::ok(&manifest)).with("Content-Type", kind);
    origin.get(&stored, answer().wants(OTHERS, CHALLENGE));
    ask(&proxy, &origin, &stored, OTHERS).assert_is(&manifest);
    // A registry that takes manifests without their blobs has it here too.
    let mine = manifest_path("me/own", &manifest);
    origin.on("HEAD", &mine, answer().bodiless().wants(MINE, CHALLENGE));
    ask(&proxy, &origin, &mine, MINE).assert_hit();
    let through = blob_path("me/own", &secret);
    is_unknown(&proxy, &origin, &through);
}

#[test]
fn nobody_waits_for_what_another_registry_is_still_sending() {
    let setup = verifying();
    let proxy = setup.start();
    let (good, evil) = (Origin::https(names::REGISTRY), Origin::https(names::SECOND));
    let own = fresh_body(1_000);
    let public = blob_path("team/public", &own);
    good.get(&public, registry(Answer::ok(&own)));
    // Both repositories are for everybody: rights keep nobody from the evil one's bytes.
    proxy.get(&good, &public).assert_is(&own);
    for gated_at in [None, Some(0), Some(400_000)] {
        let body = fresh_body(1_000_000);
        let path = blob_path("team/public", &body);
        good.get(&path, registry(Answer::ok(&body)));
        let gate = Gate::new();
        let wrong = registry(Answer::ok(&body)).corrupt_at(500_000);
        evil.get(
            &path,
            match gated_at {
                None => wrong.gate_head(&gate),
                Some(at) => wrong.gate_at(at, &gate),
            },
        );
        let mut victim = proxy.client(&evil);
        victim.start("GET", &path, &[]);
        gate.wait_arrivals(1);
        let fetched = proxy.get(&good, &path);
        fetched.assert_is(&body);
        fetched.assert_not_hit();
        gate.open();
        let head = victim.head();
        assert!(victim.rest("GET", head).whole.is_err(), "the evil registry's own client");
        proxy.get(&good, &path).assert_is(&body);
        proxy.get(&good, &path).assert_hit();
    }
}

#[test]
fn what_was_proven_a_day_ago_counts_no_longer_when_the_registry_is_down() {
    const HOUR: i64 = 3600;
    let (setup, clock) = Clock::of(verifying());
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    let (secret, open) = (fresh_body(100_000), fresh_body(100_000));
    let hidden = private(&origin, "team/app", &secret, MINE);
    let public = public(&origin, &open);
    ask(&proxy, &origin, &hidden, MINE).assert_is(&secret);
    proxy.get(&origin, &public).assert_is(&open);
    origin.stop();
    let own_error = |path: &str, authorization: &str| {
        ask(&proxy, &origin, path, authorization).assert_own_error(&[503]);
    };
    // Grants hold for minutes, and what is public for hours: beyond that only as long as nobody
    // can be asked.
    for hours in [0, 23] {
        clock.set(hours * HOUR);
        ask(&proxy, &origin, &hidden, MINE).assert_hit();
        ask(&proxy, &origin, &public, OTHERS).assert_hit();
        proxy.get(&origin, &public).assert_hit();
        own_error(&hidden, OTHERS);
    }
    clock.set(25 * HOUR);
    own_error(&hidden, MINE);
    own_error(&public, OTHERS);
    proxy.get(&origin, &public).assert_own_error(&[503]);
}

#[test]
fn a_secret_of_grants_that_others_may_read_is_refused() {
    let setup = verifying();
    setup.start().stop();
    let secret = setup.path("certs/grants.key");
    for mode in [0o640, 0o604, 0o660] {
        fs::set_permissions(&secret, Permissions::from_mode(mode)).expect("chmod");
        let refused = setup.run_config();
        assert_eq!(refused.code, Some(1), "{refused:?}");
        let said = format!("grants.key: mode {mode:04o} lets others");
        assert!(refused.stderr.contains(&said), "{refused:?}");
    }
    fs::set_permissions(&secret, Permissions::from_mode(0o400)).expect("chmod");
    setup.start().stop();
}
