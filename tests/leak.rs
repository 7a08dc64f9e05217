//! Nothing leaks: whatever secret a request, an answer or the configuration holds, it is in no log
//! line at any level, no error, no figure, no file and no file name.

mod support;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use serde_json::json;
use support::answer::{Answer, Ending};
use support::body::Body;
use support::client::{Payload, Response};
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::blob_path;

/// In every secret of these tests.
const MARK: &str = "marked";

/// `user:marked-basic` and `parent:marked-parent` as Basic credentials carry them.
const BASIC: &str = "dXNlcjptYXJrZWQtYmFzaWM=";
const PARENT: &str = "cGFyZW50Om1hcmtlZC1wYXJlbnQ=";

/// The configuration that is not allowed to hold a secret itself holds them all the same.
const CONFIG: &str = "config.yaml";

fn setup(keys: serde_json::Value) -> Setup {
    Setup::new()
        .with(json!({ "logging": { "level": "trace" }, "cache": { "access": "verify" } }))
        .with(keys)
}

/// What was said to somebody: head and body of an answer of the proxy's own.
fn said(response: &Response) -> String {
    format!("{:?}\n{}", response.head, response.text())
}

fn assert_clean(what: &str, text: &str) {
    for secret in [MARK, BASIC, PARENT] {
        if let Some(at) = text.find(secret) {
            let from = text[..at].rfind('\n').map_or(0, |at| at + 1);
            let line = text[from..].lines().next().unwrap_or_default();
            panic!("{what} holds {secret:?}: {line}");
        }
    }
}

/// Every file below a directory, names and contents, but for stored bodies and the configuration.
fn assert_files_clean(dir: &Path, bodies: &[&Body]) {
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        assert_clean("a file name", &name);
        if path.is_dir() {
            assert_files_clean(&path, bodies);
        } else if name != CONFIG && !bodies.iter().any(|body| body.sha256() == name) {
            let content = fs::read(&path).expect("a file");
            assert_clean(&path.display().to_string(), &String::from_utf8_lossy(&content));
        }
    }
}

/// Looks through everything a proxy has written, and ends it.
fn assert_kept(setup: &Setup, proxy: Proxy, bodies: &[&Body]) {
    for path in ["/health", "/api/cache/stats", "/api/cache", "/nowhere"] {
        let fields = [("Authorization", "Bearer marked-token")];
        assert_clean(path, &said(&proxy.admin("GET", path, &fields)));
    }
    let output = proxy.stop();
    assert!(output.contains("TRACE") || output.contains("DEBUG"), "not the lowest level: {output}");
    assert_clean("the log", &output);
    assert_files_clean(&setup.path("."), bodies);
}

const CREDENTIALS: &[(&str, &str)] = &[
    ("Authorization", "Bearer marked-bearer"),
    ("Cookie", "session=marked-cookie"),
    ("X-Registry-Auth", "marked-registry-auth"),
    ("Proxy-Authorization", "Basic dXNlcjptYXJrZWQtYmFzaWM="),
];

/// A registry whose blobs lie behind a signed URL of another host.
fn signed(registry: &Origin, cdn: &Origin, body: &Body, repo: &str) -> String {
    let path = blob_path(repo, body);
    let target = format!("/marked-path/{}?X-Amz-Signature=marked-signature", body.sha256());
    let location = cdn.url(&target);
    let to = || {
        Answer::redirect(307, location.clone())
            .with("Set-Cookie", "id=marked-set-cookie")
            .with("Docker-Distribution-Api-Version", "registry/2.0")
    };
    registry.get(&path, to());
    registry.on("HEAD", &path, to().bodiless());
    cdn.get(
        target.split('?').next().unwrap_or_default(),
        Answer::ok(body).with("Set-Cookie", "id=marked-set-cookie"),
    );
    path
}

#[test]
fn a_pull_with_credentials_and_signed_urls() {
    let setup = setup(json!({
        "headers": { "registry.test": { "set": { "X-Api-Key": "marked-rule" } } },
        "proxy": { "api_token": "marked-token" },
    }));
    let proxy = setup.start();
    let (registry, cdn) = (Origin::https(names::REGISTRY), Origin::https(names::SECOND));
    let (large, small) = (fresh_body(300_000), fresh_body(2_000));
    for body in [&large, &small] {
        let path = signed(&registry, &cdn, body, "team/app");
        for query in ["", "?token=marked-query"] {
            let path = format!("{path}{query}");
            for _ in 0..2 {
                proxy.get_with(&registry, &path, CREDENTIALS).assert_is(body);
            }
            let range = [CREDENTIALS, &[("Range", "bytes=5-9")]].concat();
            assert_eq!(proxy.get_with(&registry, &path, &range).status, 206);
            let mut client = proxy.client(&registry);
            client.request("HEAD", &registry.url(&path), CREDENTIALS, Payload::None);
        }
    }
    assert_kept(&setup, proxy, &[&large, &small]);
}

#[test]
fn upstreams_that_fail_in_every_way() {
    let setup = setup(json!({ "upstream": { "retries": 1, "read_timeout": "1s" } }));
    let proxy = setup.start();
    let (registry, cdn) = (Origin::https(names::REGISTRY), Origin::https(names::SECOND));
    let body = fresh_body(300_000);
    let path = blob_path("team/app", &body);
    let signed = cdn.url("/marked-path?sig=marked-signature");
    let answers = [
        Answer::ok(&body).corrupt_at(7),
        Answer::ok(&body).ends_at(100_000, Ending::Cut),
        Answer::redirect(307, "http://[marked-nowhere"),
        Answer::redirect(307, "ftp://marked.example/marked"),
        Answer::redirect(307, "https://user:marked-password@second.test/marked"),
        Answer::redirect(307, format!("https://{}/marked?sig=marked", names::DEAD)),
        Answer::redirect(307, registry.url(&format!("{path}?marked=1"))),
        Answer::redirect(307, signed.clone()),
        Answer::status(401, "{}").with("WWW-Authenticate", "Bearer realm=\"https://marked/\""),
        Answer::raw("HTTP/1.1 200 OK\r\nmarked name: marked value\r\n\r\n"),
        Answer::raw("HTTP/1.1 200 OK\r\nContent-Length: marked\r\n\r\n"),
        Answer::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nmarked\r\n"),
        Answer::raw("marked"),
    ];
    cdn.get("/marked-path", Answer::status(403, "expired"));
    for answer in answers {
        registry.get(&path, answer);
        let got = proxy.get_with(&registry, &path, CREDENTIALS);
        if got.status >= 500 {
            assert_clean("an error", &said(&got));
        }
    }
    registry.stop();
    let got = proxy.get_with(&registry, &format!("{path}?sig=marked"), CREDENTIALS);
    assert_clean("an error", &said(&got));
    assert_kept(&setup, proxy, &[]);
}

#[test]
fn uploads_tunnels_and_requests_that_are_refused() {
    let setup = setup(json!({ "limits": { "header_size": "8KiB" } }));
    let proxy = setup.start();
    let registry = Origin::https(names::REGISTRY);
    let plain = Origin::http(names::OTHER);
    let body = fresh_body(50_000);
    let upload = "/v2/team/app/blobs/uploads/?_state=marked-state";
    let location = registry.url("/v2/team/app/blobs/uploads/1?_state=marked-state");
    let route = "/v2/team/app/blobs/uploads/";
    registry.on("POST", route, Answer::status(202, "").with("Location", location));
    let mut client = proxy.client(&registry);
    let got = client.request("POST", &registry.url(upload), CREDENTIALS, Payload::Chunked(&body));
    assert_eq!(got.status, 202);
    let refused = [
        format!("GET http://user:marked-password@{}/ HTTP/1.1", plain.authority()),
        format!("GET http://{}/%zz?marked HTTP/1.1", plain.authority()),
        "GET http://127.1/?marked=1 HTTP/1.1".to_owned(),
        "GET marked-target HTTP/1.1".to_owned(),
        "CONNECT registry.test:25 HTTP/1.1".to_owned(),
        format!("GET http://{}/?marked HTTP/9.9", plain.authority()),
    ];
    let fields = "Host: other.example\r\nAuthorization: Bearer marked-bearer\r\n";
    let long = format!("X-Long: marked{}\r\n", "m".repeat(9_000));
    for line in &refused {
        for more in ["", "marked broken: marked\r\n", &long] {
            let mut client = proxy.plain();
            let head = format!("{line}\r\n{fields}{more}\r\n");
            if let Ok(got) = client.exchange(head.as_bytes()) {
                assert_clean("an error", &said(&got));
            }
        }
    }
    assert_kept(&setup, proxy, &[]);
}

#[test]
fn the_parents_password_and_what_the_configuration_holds() {
    let setup = setup(json!({
        "upstream": { "proxy": format!("http://parent:marked-parent@{}:9", names::address(names::DEAD)) },
        "headers": { "*.example": {
            "set": { "Authorization": "Bearer marked-rule", "X-Api-Key": "marked-key" },
            "append": { "Cookie": "marked-cookie" },
        } },
        "proxy": { "api_token": "marked-token" },
    }));
    let config = setup.write_config();
    let checked = setup.run(&["check", "--config", config.to_str().expect("UTF-8")]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert_clean("check", &format!("{}{}", checked.stdout, checked.stderr));
    let proxy = setup.start();
    let plain = Origin::http(names::OTHER);
    let got = proxy.get_with(&plain, "/", CREDENTIALS);
    assert_clean("an error", &said(&got));
    for token in ["Bearer marked-wrong", "Basic marked-wrong"] {
        let got = proxy.admin("DELETE", "/api/cache", &[("Authorization", token)]);
        assert_eq!(got.status, 401);
        assert_clean("an error", &said(&got));
    }
    assert_kept(&setup, proxy, &[]);
}

#[test]
fn no_core_dump_holds_what_is_in_memory() {
    let setup = Setup::new();
    let mut proxy = setup.start();
    let pid = proxy.pid().to_string();
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("its limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size"));
    let core: Vec<&str> = core.expect("the line").split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"], "{core:?}");
    proxy.signal("ABRT");
    assert!(!proxy.wait_exit().core_dumped());
}
