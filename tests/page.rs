//! The page on the admin port: what it says and to whom, and how it does in a real browser. The
//! browser's screenshots stay in `target/tmp/page`.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::json;
use support::answer::{Answer, Gate};
use support::body::Body;
use support::client::{Client, Payload, Response};
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::{blob_path, manifest_path};
use support::wait_until;

const SIZE: u64 = 20_000_000;

/// A Chromium that follows `tests/page/browser.mjs`; ends with its value.
struct Browser {
    child: Child,
    steps: Option<ChildStdin>,
    said: BufReader<ChildStdout>,
}

impl Browser {
    fn start(proxy: &Proxy) -> Browser {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let scratch = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let shots = scratch.join("page");
        std::fs::create_dir_all(&shots).expect("a folder");
        let mut node = Command::new("node");
        node.arg(root.join("tests/page/browser.mjs"));
        node.arg(scratch.with_file_name("browser-tools"));
        node.arg(format!("http://{}/", proxy.admin_address())).arg(&shots);
        node.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = node.spawn().expect("node: scripts/setup-tests.sh installs what is needed");
        let steps = child.stdin.take();
        let said = BufReader::new(child.stdout.take().expect("a pipe"));
        Browser { child, steps, said }
    }

    /// Has it do a step.
    #[track_caller]
    fn does(&mut self, step: &str) {
        writeln!(self.steps.as_mut().expect("its input"), "{step}").expect("a running browser");
        let mut line = String::new();
        self.said.read_line(&mut line).expect("its output");
        assert_eq!(line.trim_end(), "ok", "{step}");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // At the end of its input it closes the browser.
        self.steps.take();
        let _ = self.child.wait();
    }
}

fn page(proxy: &Proxy, fields: &[(&str, &str)]) -> Response {
    proxy.admin("GET", "/", fields)
}

/// A request that the proxy refuses, with markup where a client may have it.
fn ask_with_markup(proxy: &Proxy) {
    let mut client = Client::plain(proxy.address());
    let evil =
        "http://registry.test:1/v2/<img%20src=x/onerror=alert(1)>/manifests/<script>?sig=SECRET";
    let response =
        client.request("GET", evil, &[("Authorization", "Bearer SECRET")], Payload::None);
    assert!(response.status >= 400, "{response:?}");
}

/// Pulls an image of one part, `lab/page:1`: two entries; returns when the page can list it.
fn pull_image(proxy: &Proxy, origin: &Origin) {
    let part = fresh_body(1000);
    let path = blob_path("lab/page", &part);
    origin.get(&path, Answer::ok(&part));
    let described = json!({"mediaType": "a/b", "size": part.len(), "digest": part.digest()});
    let document = json!({"schemaVersion": 2, "config": described, "layers": []});
    let manifest = Body::bytes(document.to_string());
    let answer = Answer::ok(&manifest)
        .with("Content-Type", "application/vnd.oci.image.manifest.v1+json")
        .with("Docker-Content-Digest", manifest.digest());
    let tag = "/v2/lab/page/manifests/1";
    origin.get(tag, answer.clone());
    origin.get(&manifest_path("lab/page", &manifest), answer);
    proxy.get(origin, tag).assert_is(&manifest);
    proxy.get(origin, &manifest_path("lab/page", &manifest)).assert_is(&manifest);
    proxy.get(origin, &path).assert_is(&part);
    let whole = json!(part.len() + manifest.len());
    wait_until("the image", || {
        let list = proxy.admin("GET", "/api/cache/images", &[]).json();
        (list["images"][0]["stored"] == whole).then_some(())
    });
}

#[test]
fn the_page_has_its_figures_without_a_script() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    let body = fresh_body(50_000);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body));
    proxy.get(&origin, &format!("{path}?sig=SECRET")).assert_is(&body);
    let path = blob_path("lab/img", &body);
    proxy.get(&origin, &path).assert_hit();
    let live = wait_until("the miss and the hit", || {
        let live = proxy.admin("GET", "/api/live", &[]).json();
        (live["stats"]["hits"] == 1 && live["recent_misses"][0].is_object()).then_some(live)
    });
    assert_eq!(live["recent_misses"][0]["reason"], json!("first-time"));
    assert_eq!(live["recent_misses"][0]["path"], json!(path));
    assert_eq!(live["fills_running"], json!([]));
    let text = page(&proxy, &[]).text();
    for part in ["50.0 %", "50.0 kB", "first-time", "1.0 GB", "/v2/lab/img/blobs/sha256:"] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    assert!(!text.contains("SECRET") && !live.to_string().contains("SECRET"));
    assert!(!text.contains("style=") && !text.contains("http://") && !text.contains("https://"));
    assert!(text.contains("No image is stored."), "{text}");
    pull_image(&proxy, &origin);
    let name = format!("<code>{}/lab/page</code> <small>1</small>", origin.authority());
    let text = page(&proxy, &[]).text();
    assert!(text.contains(&name) && text.contains("1 of 1 images."), "{text}");
    // The script has its own list of them.
    assert!(!proxy.admin("GET", "/?figures", &[]).text().contains(&name));
}

#[test]
fn the_page_lets_in_nothing_from_elsewhere() {
    let setup = Setup::new();
    let proxy = setup.start();
    for path in ["/", "/page.css", "/page.js", "/page.svg"] {
        let answer = proxy.admin("GET", path, &[]);
        assert_eq!(answer.status, 200, "{path}");
        let policy = answer.field("Content-Security-Policy").expect("a policy");
        for rule in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        ] {
            assert!(policy.split(';').any(|part| part.trim() == rule), "{rule} in {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.field("X-Content-Type-Options"), Some("nosniff"));
        assert_eq!(answer.field("Referrer-Policy"), Some("no-referrer"));
        assert_eq!(answer.field("Cache-Control"), Some("no-store"));
        assert_eq!(proxy.admin("POST", path, &[]).status, 405, "{path}");
        assert_eq!(proxy.admin("GET", path, &[("Host", "evil.example")]).status, 403, "{path}");
    }
}

#[test]
fn markup_from_a_client_is_text_and_no_secret_is_shown() {
    let setup = Setup::new();
    let proxy = setup.start();
    ask_with_markup(&proxy);
    let event = wait_until("the error", || {
        let live = proxy.admin("GET", "/api/live", &[]).json();
        live["recent_errors"].as_array().and_then(|errors| errors.first().cloned())
    });
    assert!(event["path"].as_str().unwrap_or("").contains("<script>"), "{event}");
    let text = page(&proxy, &[]).text();
    assert!(text.contains("&lt;script&gt;"), "{text}");
    assert!(!text.contains("<script>") && !text.contains("<img"), "{text}");
    assert!(!text.contains("SECRET") && !event.to_string().contains("SECRET"), "{event}");
}

#[test]
fn without_the_token_the_page_has_no_figures() {
    let setup = Setup::new().with(json!({ "proxy": { "api_token": "s3cret-token" } }));
    let proxy = setup.start();
    for fields in [&[][..], &[("Authorization", "Bearer wrong")]] {
        let shell = page(&proxy, fields);
        assert_eq!(shell.status, 200);
        assert!(!shell.text().contains("data-live"), "{}", shell.text());
        assert_eq!(proxy.admin("GET", "/api/live", fields).status, 401);
    }
    assert_eq!(proxy.admin("GET", "/page.js", &[]).status, 200);
    let token = [("Authorization", "Bearer s3cret-token")];
    assert!(page(&proxy, &token).text().contains("data-live"));
    assert_eq!(proxy.admin("GET", "/api/live", &token).status, 200);
    Browser::start(&proxy).does("token");
}

#[test]
fn the_page_in_a_browser() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    let body = fresh_body(SIZE);
    let path = blob_path("lab/img", &body);
    let gate = Gate::new();
    origin.get(&path, Answer::ok(&body).gate_at(SIZE / 2, &gate));
    let mut browser = Browser::start(&proxy);
    browser.does("open");
    std::thread::scope(|scope| {
        let pull = scope.spawn(|| proxy.get(&origin, &path).assert_is(&body));
        gate.wait_arrivals(1);
        browser.does("fill");
        gate.open();
        pull.join().expect("the pull");
    });
    proxy.get(&origin, &path).assert_hit();
    browser.does("moved");
    ask_with_markup(&proxy);
    pull_image(&proxy, &origin);
    for step in ["looks", "scriptless", "hostile", "purge"] {
        browser.does(step);
    }
    pull_image(&proxy, &origin);
    let pins = || proxy.admin("GET", "/api/cache/pins", &[]).json()["pins"].clone();
    browser.does("pin");
    assert_eq!(pins()[0]["image"], json!(format!("{}/lab/page:1", origin.authority())));
    browser.does("unpin");
    assert_eq!(pins(), json!([]));
    browser.does("purge_image");
    assert_eq!(proxy.stat("entries"), 0);
    browser.does("end");
}
