//! What large registries answer pulls with: redirects to signed URLs, and challenges.

mod support;

use serde_json::json;
use support::answer::{Answer, Ending};
use support::client::Payload;
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::Setup;
use support::registry::{Registry, SIGNATURE, blob_path, manifest_path};

#[test]
fn a_redirect_is_followed_inside_with_the_query_byte_for_byte() {
    let setup = Setup::new();
    let proxy = setup.start();
    let registry = Registry::https();
    let body = fresh_body(2_000_000);
    let path = registry.blob("lab/img", &body);
    let fields = [
        ("Authorization", "Bearer clients-secret-token"),
        ("Cookie", "sid=clients-cookie"),
        ("Proxy-Authorization", "Basic c2VjcmV0"),
        ("User-Agent", "tests/1"),
    ];
    let response = proxy.get_with(&registry.main, &path, &fields);
    response.assert_is(&body);
    assert_eq!(response.field("Location"), None);

    let asked = registry.main.only(&path);
    assert_eq!(asked.field("Authorization"), Some("Bearer clients-secret-token"));
    assert_eq!(asked.field("Host"), Some(registry.main.authority().as_str()));
    let fetched = registry.only_fetch(&body);
    assert_eq!(fetched.target, format!("{}?{SIGNATURE}", Registry::cdn_path(&body)));
    assert_eq!(fetched.head.fields("Host"), [registry.cdn.authority()]);
    for secret in ["Authorization", "Cookie", "Proxy-Authorization"] {
        assert_eq!(fetched.field(secret), None, "{:?}", fetched.head);
    }
    assert_eq!(fetched.field("User-Agent"), Some("tests/1"));
    let output = proxy.stop();
    for secret in ["clients-secret-token", "clients-cookie", "c2VjcmV0", "s3cr3t"] {
        assert!(!output.contains(secret), "{secret} in the log: {output}");
    }
}

#[test]
fn no_secret_is_logged_at_the_finest_level_either() {
    let setup = Setup::new().with(json!({ "logging": { "level": "trace" } }));
    let proxy = setup.start();
    let registry = Registry::https();
    let body = fresh_body(100_000);
    let path = registry.blob("lab/img", &body);
    let secret =
        [("Authorization", "Bearer clients-secret-token"), ("Cookie", "sid=clients-cookie")];
    proxy.get_with(&registry.main, &path, &secret).assert_is(&body);
    proxy.get_with(&registry.main, &path, &secret).assert_is(&body);
    registry.cdn.stop();
    let other = fresh_body(1_000);
    let path = registry.blob("lab/img", &other);
    proxy.get_with(&registry.main, &path, &secret).assert_own_error(&[502, 503, 504]);
    let address = registry.main.url("/signed?X-Amz-Signature=s3cr3t&token=clients-secret-token");
    proxy.client(&registry.main).get_with(&address, &secret);
    let output = proxy.stop();
    for secret in ["clients-secret-token", "clients-cookie", "s3cr3t"] {
        assert!(!output.contains(secret), "{secret} in the log: {output}");
    }
}

#[test]
fn a_token_in_the_path_of_a_redirect_is_neither_logged_nor_told() {
    let keys = json!({ "logging": { "level": "trace" }, "upstream": { "retries": 1 } });
    let setup = Setup::new().with(keys);
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let hidden = "/artifacts-downloads/namespaces/x/downloads/t0ken";
    let body = fresh_body(1_000_000);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::redirect(302, hidden));
    // Whole; broken off and not to be had again; a redirect to nowhere; away.
    let cut = Answer::ok(&body).ends_at(500_000, Ending::Cut);
    origin.get(hidden, Answer::ok(&body));
    proxy.get(&origin, &path).assert_is(&body);
    proxy.admin("DELETE", "/api/cache", &[]);
    origin.script("GET", hidden, [cut.clone(), Answer::status(404, "")]);
    assert!(proxy.get(&origin, &path).whole.is_err());
    origin.get(hidden, Answer::redirect(302, "ftp://t0ken/t0ken"));
    proxy.get(&origin, &path).assert_own_error(&[502]);
    // A client that follows a redirect itself comes by that path, too.
    origin.get(hidden, cut);
    assert!(proxy.get(&origin, hidden).whole.is_err());
    let mut client = proxy.client(&origin);
    origin.stop();
    let message = client.get(hidden).assert_own_error(&[503]);
    assert!(!message.contains("t0ken"), "{message}");
    let message = client.get(&path).assert_own_error(&[503]);
    assert!(!message.contains("t0ken"), "{message}");
    let output = proxy.stop();
    for part in [names::REGISTRY, path.as_str(), "not the rest", "broke off", "Location"] {
        assert!(output.contains(part), "{part} is not in {output}");
    }
    assert!(!output.contains("t0ken"), "{output}");
}

#[test]
fn every_redirect_status_and_every_form_of_location_is_followed() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let other = Origin::https(names::CDN);
    let mut client = proxy.client(&origin);
    for status in [301, 302, 303, 307, 308] {
        let body = fresh_body(30_000);
        let path = blob_path("lab/img", &body);
        let directory = path.rsplit_once('/').expect("a path").0;
        let locations = [
            (format!("/moved/{status}?a=%2F&b"), &origin, format!("/moved/{status}")),
            (format!("near/{status}"), &origin, format!("{directory}/near/{status}")),
            (format!("../up/{status}"), &origin, format!("/v2/lab/img/up/{status}")),
            (format!("//{}/host/{status}", other.authority()), &other, format!("/host/{status}")),
            (other.url(&format!("/far/{status}")), &other, format!("/far/{status}")),
        ];
        for (location, target, lands) in locations {
            origin.get(&path, Answer::redirect(status, location.clone()));
            target.get(&lands, Answer::ok(&body));
            let response = client.get(&path);
            assert_eq!(response.status, 200, "{status} {location}: {}", response.text());
            response.assert_is(&body);
            assert_eq!(target.count("GET", &lands), 1, "{status} {location}");
            proxy.admin("DELETE", &format!("/api/cache/{}", body.digest()), &[]);
        }
    }
}

#[test]
fn authorization_stays_on_a_redirect_within_the_host() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(30_000);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::redirect(302, "/artifacts-downloads/x/y"));
    let answer = Answer::ok(&body).wants("Bearer t0ken", "Bearer realm=\"x\"");
    origin.get("/artifacts-downloads/x/y", answer);
    proxy.get_with(&origin, &path, &[("Authorization", "Bearer t0ken")]).assert_is(&body);
}

#[test]
fn redirects_without_end_or_to_nowhere_are_an_error_in_oci_form() {
    let setup = Setup::new().with(json!({ "limits": { "max_redirects": 3 } }));
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let mut client = proxy.client(&origin);
    for location in ["/v2/loop", "", "ftp://cdn.example/x", "http://", "https://[::1/x"] {
        let body = fresh_body(1_000);
        let path = blob_path("lab/img", &body);
        let to_itself = location == "/v2/loop";
        let location = if to_itself { path.as_str() } else { location };
        origin.get(&path, Answer::redirect(307, location));
        client.get(&path).assert_own_error(&[502, 503]);
        let most = if to_itself { 4 } else { 1 };
        assert!(origin.count("GET", &path) <= most, "{location}");
    }
    let body = fresh_body(1_000);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::redirect(307, "/1"));
    origin.get("/1", Answer::redirect(307, "/2"));
    origin.get("/2", Answer::redirect(307, "/3"));
    origin.get("/3", Answer::ok(&body));
    client.get(&path).assert_is(&body);
}

#[test]
fn a_redirect_of_what_is_no_candidate_goes_to_the_client() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    origin.get("/elsewhere", Answer::redirect(307, "/there?x=%2F"));
    let response = proxy.get(&origin, "/elsewhere");
    assert_eq!((response.status, response.field("Location")), (307, Some("/there?x=%2F")));
    let body = fresh_body(1_000);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::redirect(307, "https://cdn.example/signed-for-get"));
    let head = proxy.client(&origin).request("HEAD", &path, &[], Payload::None);
    assert_eq!(head.status, 307, "the redirect of a HEAD must not be followed");
}

#[test]
fn a_token_challenge_passes_untouched_and_is_never_stored() {
    let setup = Setup::new();
    let proxy = setup.start();
    let registry = Origin::https(names::REGISTRY);
    let auth = Origin::https(names::AUTH);
    let realm = auth.url("/token");
    let challenge = format!(
        "Bearer realm=\"{realm}\",service=\"registry.test\",scope=\"repository:lab/img:pull\""
    );
    let body = fresh_body(60_000);
    let path = blob_path("lab/img", &body);
    registry.get(&path, Answer::ok(&body).wants("Bearer good", &challenge));
    auth.get("/token", Answer::status(200, r#"{"token":"good"}"#));

    for _ in 0..2 {
        let refused = proxy.get(&registry, &path);
        assert_eq!(refused.status, 401);
        assert_eq!(refused.head.fields("WWW-Authenticate"), [challenge.as_str()]);
        assert_eq!(refused.json()["errors"][0]["code"], "UNAUTHORIZED");
    }
    // The token host is not intercepted: the client sees that host's own certificate.
    let trust = support::certs::Trust::pem(support::certs::Authority::trusted().pem());
    let mut tunnel = support::client::Client::secure(proxy.address(), &auth.authority(), &trust);
    assert_eq!(tunnel.get("/token?scope=repository:lab/img:pull").json()["token"], "good");
    assert_eq!(proxy.stat("stores"), 0);
    proxy.get_with(&registry, &path, &[("Authorization", "Bearer good")]).assert_is(&body);
    assert_eq!(registry.count("GET", &path), 3);
    assert_eq!(proxy.stat("stores"), 1);
}

#[test]
fn large_heads_pass() {
    let setup = Setup::new();
    let proxy = setup.start();
    let registry = Registry::https();
    let body = fresh_body(10_000);
    let path = manifest_path("lab/img", &body);
    let long = "x".repeat(9_000);
    let location = registry.cdn.url(&format!("/data?sig={long}"));
    registry.main.get(&path, Answer::redirect(307, location).with("X-Big", "y".repeat(21_000)));
    registry.cdn.get("/data", Answer::ok(&body).with("X-Big", "z".repeat(30_000)));
    let token = format!("Bearer {}", "t".repeat(12_000));
    proxy.get_with(&registry.main, &path, &[("Authorization", &token)]).assert_is(&body);
    assert_eq!(registry.main.only(&path).field("Authorization"), Some(token.as_str()));
    assert_eq!(registry.cdn.only("/data").target, format!("/data?sig={long}"));
}
