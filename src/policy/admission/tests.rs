use super::super::policy;
use super::*;
use crate::http::split_path;

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn fields(lines: &[(&str, &str)]) -> Fields {
    let mut fields = Fields::new();
    lines.iter().for_each(|(name, value)| fields.push(name, value).unwrap());
    fields
}

fn with_ask<T>(
    method: &Method,
    url: &str,
    lines: &[(&str, &str)],
    then: impl FnOnce(&Ask) -> T,
) -> T {
    let (scheme, rest) = match url.strip_prefix("http://") {
        Some(rest) => (Scheme::Http, rest),
        None => (Scheme::Https, url.strip_prefix("https://").unwrap()),
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap());
    let authority = crate::http::Authority::parse(authority).unwrap();
    let (path, query) = split_path(path);
    let (port, fields) = (authority.port_for(scheme), fields(lines));
    then(&Ask { method, scheme, host: &authority.host, port, path, query, fields: &fields })
}

fn admit(policy: &Policy, method: &Method, url: &str) -> Admission {
    with_ask(method, url, &[], |ask| policy.admit(ask))
}

#[test]
fn candidates_are_get_and_head_on_a_pattern() {
    let policy = policy("");
    let blob = format!("https://ghcr.io/v2/a/b/blobs/sha256:{HEX}");
    for method in [Method::GET, Method::HEAD] {
        assert!(matches!(admit(&policy, &method, &blob), Admission::Store { .. }));
    }
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::parse("get").unwrap()] {
        assert_eq!(admit(&policy, &method, &blob), Admission::Pass(Reason::Method));
    }
    for path in [
        "/",
        "/v2/",
        "/v2/a/b/manifests/latest",
        "/v2/a/b/tags/list",
        "/v2/a/b/blobs/uploads/1",
        "/token?scope=/v2/a/blobs/sha256:x",
        "/x/v2/a/b/blobs/sha256:0",
    ] {
        let url = format!("https://ghcr.io{path}");
        assert_eq!(admit(&policy, &Method::GET, &url), Admission::Pass(Reason::Pattern), "{path}");
    }
    let off = super::super::policy("cache: {enabled: false}");
    assert_eq!(admit(&off, &Method::GET, &blob), Admission::Pass(Reason::CacheOff));
    let none = super::super::policy("cache: {patterns: []}");
    assert_eq!(admit(&none, &Method::GET, &blob), Admission::Pass(Reason::Pattern));
}

#[test]
fn a_request_with_a_body_passes() {
    let policy = policy("");
    let url = format!("https://ghcr.io/v2/a/blobs/sha256:{HEX}");
    let admit = |lines: &[_]| with_ask(&Method::GET, &url, lines, |ask| policy.admit(ask));
    for lines in [[("Transfer-Encoding", "chunked")], [("Content-Length", "1")]] {
        assert_eq!(admit(&lines), Admission::Pass(Reason::RequestBody));
    }
    for lines in [[("Content-Length", "0")], [("Range", "bytes=0-")]] {
        assert!(matches!(admit(&lines), Admission::Store { .. }));
    }
}

#[test]
fn a_digest_names_the_entry_wherever_it_is_asked_for() {
    let policy = policy("cache: {patterns: ['^/v2/']}");
    let wanted = Digest::parse(&format!("sha256:{HEX}")).unwrap();
    let stored =
        Admission::Store { key: Key::Digest(wanted.clone()), digest: Some(wanted.clone()) };
    for url in [
        format!("https://ghcr.io/v2/a/blobs/sha256:{HEX}"),
        format!("http://127.0.0.1:5000/v2/b/manifests/sha256:{HEX}"),
        format!("https://ghcr.io/v2/a/blobs/sha256:{HEX}?ns=docker.io"),
    ] {
        assert_eq!(admit(&policy, &Method::GET, &url), stored, "{url}");
    }
    let long = Digest::parse(&format!("sha512:{}", HEX.repeat(2))).unwrap();
    let url = format!("https://ghcr.io/v2/a/blobs/{long}");
    let Admission::Store { key, digest } = admit(&policy, &Method::GET, &url) else { panic!() };
    assert_eq!((key, digest), (Key::Digest(long.clone()), Some(long)));
}

#[test]
fn other_candidates_are_their_url() {
    let policy = policy("cache: {patterns: ['^/v2/']}");
    let key = |url: &str| match admit(&policy, &Method::GET, url) {
        Admission::Store { key, digest: None } => key,
        other => panic!("{url}: {other:?}"),
    };
    let upper = HEX.to_uppercase();
    let urls = [
        "https://ghcr.io/v2/a".to_owned(),
        "http://ghcr.io/v2/a".to_owned(),
        "http://ghcr.io:443/v2/a".to_owned(),
        "https://ghcr.io/v2/a?".to_owned(),
        "https://ghcr.io/v2/a?b".to_owned(),
        "https://ghcr.io/v2/A".to_owned(),
        format!("https://ghcr.io/v2/sha256-{HEX}"),
        format!("https://ghcr.io/v2/sha256:{upper}"),
        format!("https://ghcr.io/v2/sha256:{HEX}/"),
        format!("https://ghcr.io/v2/sha256:{HEX}0"),
        format!("https://ghcr.io/v2/sha512:{HEX}"),
    ];
    let keys: std::collections::HashSet<Key> = urls.iter().map(|url| key(url)).collect();
    assert_eq!(keys.len(), urls.len());
    assert_eq!(key("https://ghcr.io/v2/a"), key("https://GHCR.io:443/v2/a"));
    assert_eq!(key("https://ghcr.io/v2/a?b"), Key::for_url("https", "ghcr.io", 443, "/v2/a?b"));
    assert_eq!(key("http://[::1]/v2/a"), Key::for_url("http", "[::1]", 80, "/v2/a"));
}

/// The verdict on an answer: for a digest entry, and for another one.
fn verdicts(request: &[(&str, &str)], status: u16, answer: &[(&str, &str)]) -> [&'static str; 2] {
    let policy = policy("cache: {patterns: ['^/v2/'], max_size: 1000}");
    let digest = Digest::parse(&format!("sha256:{HEX}"));
    let (answer, len) = (fields(answer), answer.iter().find(|(name, _)| *name == "Content-Length"));
    let len = len.map(|(_, value)| value.parse().unwrap());
    [digest.as_ref(), None].map(|digest| {
        with_ask(&Method::GET, "https://ghcr.io/v2/a", request, |ask| {
            let verdict = policy.admit_answer(ask, digest, status, &answer, len);
            verdict.map_or_else(Reason::name, |()| "store")
        })
    })
}

#[test]
fn answers_are_stored_as_the_contract_says() {
    let both = |reason| [reason, reason];
    let other = |reason| ["store", reason];
    for (answer, expected) in [
        (("Content-Type", "x"), both("store")),
        (("Cache-Control", "no-store"), both("no-store")),
        (("Cache-Control", "max-age=5, No-Store"), both("no-store")),
        (("Cache-Control", "x=\"a, no-store\""), both("store")),
        (("Cache-Control", "x=\"a\\\", no-store\", y"), both("store")),
        (("Cache-Control", "x=\"a, no-store"), both("no-store")),
        (("Cache-Control", "é"), both("no-store")),
        (("Cache-Control", "no-storey, xno-store"), both("store")),
        (("Cache-Control", "private"), other("private")),
        (("Cache-Control", "private=\"x-a, x-b\""), other("private")),
        (("Cache-Control", "x=\"private\""), both("store")),
        (("Cache-Control", "no-cache, max-age=0"), both("store")),
        (("Vary", "Accept-Encoding"), both("store")),
        (("Vary", "origin, accept-encoding,"), both("store")),
        (("Vary", ""), both("store")),
        (("Vary", "*"), other("vary")),
        (("Vary", "Accept"), other("vary")),
        (("Vary", "Accept-Encoding, Accept"), other("vary")),
        (("Vary", "é"), other("vary")),
        (("Set-Cookie", "a=b"), other("set-cookie")),
        (("Content-Encoding", "gzip"), ["encoding", "store"]),
        (("Content-Encoding", "identity, br"), ["encoding", "store"]),
        (("Content-Encoding", "Identity"), both("store")),
        (("Content-Encoding", ""), both("store")),
        (("Content-Length", "1000"), both("store")),
        (("Content-Length", "1001"), both("too-large")),
    ] {
        assert_eq!(verdicts(&[], 200, &[answer]), expected, "{answer:?}");
    }
    for status in [201, 203, 204, 206, 301, 304, 307, 401, 404, 410, 429, 500] {
        assert_eq!(verdicts(&[], status, &[]), both("status"), "{status}");
    }
    let lines = [("Cache-Control", "max-age=1"), ("Cache-Control", "no-store")];
    assert_eq!(verdicts(&[], 200, &lines), both("no-store"));
}

#[test]
fn a_head_is_not_stored() {
    let policy = policy("");
    let verdict = with_ask(&Method::HEAD, "https://ghcr.io/v2/a", &[], |ask| {
        policy.admit_answer(ask, None, 200, &Fields::new(), None)
    });
    assert_eq!(verdict, Err(Reason::Method));
}

#[test]
fn answers_to_credentials_are_stored_when_marked_for_sharing() {
    let bearer = [("Authorization", "Bearer x")];
    for control in [
        "public",
        "Public, max-age=60",
        "public, max-age=0",
        "public, no-cache",
        "s-maxage=60",
        "S-MaxAge=\"60\"",
        "must-revalidate, max-age=60",
        "max-age=0, s-maxage=60",
        "public, s-maxage=99999999999999999999",
    ] {
        let answer = [("Cache-Control", control)];
        assert_eq!(verdicts(&bearer, 200, &answer), ["store", "store"], "{control}");
    }
    for control in [
        "max-age=60",
        "s-maxage=0",
        "s-maxage",
        "s-maxage=x",
        "s-maxage=60, s-maxage=0",
        "must-revalidate",
        "must-revalidate, max-age=0",
        "s-maxage=60, no-cache",
        "x=\"public\"",
        "proxy-revalidate",
        "",
    ] {
        let answer = [("Cache-Control", control)];
        assert_eq!(verdicts(&bearer, 200, &answer), ["store", "authorization"], "{control}");
    }
    assert_eq!(verdicts(&bearer, 200, &[]), ["store", "authorization"]);
    let both = [("Cache-Control", "public, private")];
    assert_eq!(verdicts(&bearer, 200, &both), ["store", "private"]);
}

#[test]
fn a_request_that_changes_something_removes_the_url() {
    let policy = policy("cache: {patterns: ['^/v2/']}");
    let url = "https://ghcr.io/v2/a/manifests/latest?x";
    let key = |method: &Method, url: &str, status| {
        with_ask(method, url, &[], |ask| policy.invalidates(ask, status))
    };
    let own = Key::for_url("https", "ghcr.io", 443, "/v2/a/manifests/latest?x");
    for method in [Method::PUT, Method::POST, Method::PATCH, Method::DELETE] {
        for status in [200, 201, 204, 307] {
            assert_eq!(key(&method, url, status), Some(own.clone()), "{method:?} {status}");
        }
        for status in [100, 400, 401, 404, 500] {
            assert_eq!(key(&method, url, status), None, "{method:?} {status}");
        }
    }
    for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::CONNECT] {
        assert_eq!(key(&method, url, 200), None, "{method:?}");
    }
    let digest = format!("https://ghcr.io/v2/a/manifests/sha256:{HEX}");
    assert_eq!(key(&Method::DELETE, &digest, 202), None);
    assert_eq!(key(&Method::PUT, "https://ghcr.io/other", 200), None);
}

#[test]
fn a_pattern_that_does_not_compile_is_named() {
    let error = |yaml: &str| {
        let config = Config::parse("test.yaml", yaml).unwrap();
        Policy::compile(&config).err().unwrap().to_string()
    };
    assert_eq!(
        error("cache:\n  patterns:\n    - ^/v2/\n    - ^/(v3\n"),
        "test.yaml:4: cache.patterns[1]: found one that does not compile (unclosed group), \
         expected a regular expression such as ^/v2/.*/blobs/sha256:.*"
    );
    let large = error("cache:\n  patterns: ['a{1000}{1000}{100}']\n");
    assert!(large.starts_with("test.yaml:2: cache.patterns[0]: found one that"), "{large}");
    assert!(!large.contains('\n'));
}
