//! Images as people name them: listed, removed and pinned by way of the admin port.

mod support;

use serde_json::{Value, json};
use support::answer::Answer;
use support::body::Body;
use support::client::{Client, Payload};
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::{blob_path, manifest_path};
use support::wait_until;

const MEGA: u64 = 1_000_000;
const REPOSITORY: &str = "lab/app";

fn descriptor(body: &Body) -> Value {
    json!({"mediaType": "a/b", "size": body.len(), "digest": body.digest()})
}

fn serve_manifest(origin: &Origin, tag: Option<&str>, document: &Value) -> Body {
    let body = Body::bytes(document.to_string());
    let answer = Answer::ok(&body)
        .with("Content-Type", "application/vnd.oci.image.manifest.v1+json")
        .with("Docker-Content-Digest", body.digest());
    origin.get(&manifest_path(REPOSITORY, &body), answer.clone());
    if let Some(tag) = tag {
        origin.get(&format!("/v2/{REPOSITORY}/manifests/{tag}"), answer);
    }
    body
}

/// Serves an image with a configuration of its own and these layers; manifest and parts.
fn image(origin: &Origin, tag: Option<&str>, layers: &[&Body]) -> (Body, Vec<Body>) {
    let config = fresh_body(100);
    let mut parts = vec![config.clone()];
    parts.extend(layers.iter().map(|layer| (*layer).clone()));
    for part in &parts {
        origin.get(&blob_path(REPOSITORY, part), Answer::ok(part));
    }
    let layers: Vec<Value> = layers.iter().map(|layer| descriptor(layer)).collect();
    let document = json!({"schemaVersion": 2, "config": descriptor(&config), "layers": layers});
    (serve_manifest(origin, tag, &document), parts)
}

/// As docker and containerd do: HEAD of the tag, then all by digest.
fn pull(proxy: &Proxy, origin: &Origin, tag: &str, manifests: &[&Body], parts: &[Body]) {
    let url = origin.url(&format!("/v2/{REPOSITORY}/manifests/{tag}"));
    assert_eq!(proxy.client(origin).request("HEAD", &url, &[], Payload::None).status, 200);
    for manifest in manifests {
        proxy.get(origin, &manifest_path(REPOSITORY, manifest)).assert_is(manifest);
    }
    fetch(proxy, origin, parts);
}

fn fetch(proxy: &Proxy, origin: &Origin, parts: &[Body]) {
    for part in parts {
        proxy.get(origin, &blob_path(REPOSITORY, part)).assert_is(part);
    }
}

fn name(origin: &Origin) -> String {
    format!("{}/{REPOSITORY}", origin.authority())
}

fn get(proxy: &Proxy, path: &str) -> Value {
    let answer = proxy.admin("GET", path, &[]);
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    answer.json()
}

fn images(proxy: &Proxy) -> Vec<Value> {
    get(proxy, "/api/cache/images")["images"].as_array().expect("a list").clone()
}

/// Waits until the image with this tag is listed like this.
#[track_caller]
fn listed(proxy: &Proxy, tag: &str, stored: u64) -> Value {
    wait_until(&format!("{tag} with {stored} bytes"), || {
        images(proxy).into_iter().find(|image| {
            let tags = image["tags"].as_array().expect("tags");
            tags.contains(&json!(tag)) && image["stored"] == json!(stored)
        })
    })
}

fn delete(proxy: &Proxy, query: &str) -> (u16, Value) {
    let answer = proxy.admin("DELETE", &format!("/api/cache?{query}"), &[]);
    (answer.status, answer.json())
}

fn pin(proxy: &Proxy, method: &str, image: &str) -> u16 {
    proxy.admin(method, &format!("/api/cache/pins?image={image}"), &[]).status
}

fn pinned_entries(proxy: &Proxy) -> usize {
    let entries = get(proxy, "/api/cache/entries")["entries"].take();
    entries.as_array().expect("a list").iter().filter(|entry| entry["pinned"] == true).count()
}

fn len(parts: &[Body]) -> u64 {
    parts.iter().map(Body::len).sum()
}

#[test]
fn images_are_listed_however_they_are_pulled_and_over_a_restart() {
    let setup = Setup::new();
    let origin = Origin::http(names::REGISTRY);
    let proxy = setup.start();
    let base = fresh_body(50_000);
    let (docker, docker_parts) = image(&origin, Some("docker"), &[&base, &fresh_body(1000)]);
    pull(&proxy, &origin, "docker", &[&docker], &docker_parts);
    // As podman and skopeo do: GET of the tag, which is passed and not stored.
    let (podman, podman_parts) = image(&origin, Some("podman"), &[&base, &fresh_body(2000)]);
    proxy.get(&origin, &format!("/v2/{REPOSITORY}/manifests/podman")).assert_is(&podman);
    fetch(&proxy, &origin, &podman_parts);
    // Two platforms, one of them pulled.
    let (amd, amd_parts) = image(&origin, None, &[&fresh_body(3000)]);
    let (arm, _) = image(&origin, None, &[&fresh_body(4000)]);
    let both = json!({"schemaVersion": 2, "manifests": [descriptor(&amd), descriptor(&arm)]});
    let index = serve_manifest(&origin, Some("both"), &both);
    pull(&proxy, &origin, "both", &[&index, &amd], &amd_parts);

    let check = |proxy: &Proxy| {
        let all = docker.len() + len(&docker_parts);
        let image = listed(proxy, "docker", all);
        assert_eq!(image["image"], json!(name(&origin)));
        assert_eq!(image["digest"], json!(docker.digest()));
        assert_eq!((&image["size"], &image["shared"]), (&json!(all), &json!(50_000)));
        assert!(image["last_use"].as_str().is_some_and(|time| time.ends_with('Z')), "{image}");
        let image = listed(proxy, "podman", len(&podman_parts));
        assert_eq!(image["size"], json!(podman.len() + len(&podman_parts)));
        let stored = index.len() + amd.len() + len(&amd_parts);
        let image = listed(proxy, "both", stored);
        assert_eq!(image["size"], json!(stored + arm.len()));
        assert_eq!(images(proxy).len(), 3, "{:#?}", images(proxy));
    };
    check(&proxy);
    proxy.stop();
    let proxy = setup.start();
    wait_until("the scan", || (get(&proxy, "/health")["scanning"] == false).then_some(()));
    check(&proxy);
}

#[test]
fn a_lost_list_is_made_anew_from_what_is_stored() {
    let patterns = json!(["^/v2/.*/blobs/sha256:.*", "^/v2/.*/manifests/.*"]);
    let setup = Setup::new().with(json!({ "cache": { "patterns": patterns } }));
    let origin = Origin::http(names::REGISTRY);
    let proxy = setup.start();
    // A tag that is stored; two of another repository, of which only the digests are.
    let (tagged, parts) = image(&origin, Some("1"), &[&fresh_body(1000)]);
    pull(&proxy, &origin, "1", &[], &parts);
    proxy.get(&origin, &format!("/v2/{REPOSITORY}/manifests/1")).assert_is(&tagged);
    let other = |n: u64| {
        let document = json!({"schemaVersion": 2, "layers": [descriptor(&fresh_body(n))]});
        let body = Body::bytes(document.to_string());
        let answer =
            Answer::ok(&body).with("Content-Type", "application/vnd.oci.image.manifest.v1+json");
        origin.get(&manifest_path("lab/other", &body), answer);
        proxy.get(&origin, &manifest_path("lab/other", &body)).assert_is(&body);
        body
    };
    let (first, second) = (other(7), other(8));
    wait_until("all three", || (images(&proxy).len() == 3).then_some(()));
    proxy.stop();
    std::fs::remove_file(setup.path("cache").join("images")).expect("the list");

    let proxy = setup.start();
    // Its manifest is stored under the tag alone.
    let image = listed(&proxy, "1", len(&parts));
    assert_eq!(image["image"], json!(name(&origin)));
    assert_eq!(images(&proxy).len(), 1, "{:#?}", images(&proxy));
    // Whoever asks for the one names the repository of both.
    let path = manifest_path("lab/other", &first);
    let url = origin.url(&path.replace(&first.digest(), "latest"));
    origin.get(
        &path.replace(&first.digest(), "latest"),
        Answer::ok(&first)
            .with("Content-Type", "application/vnd.oci.image.manifest.v1+json")
            .with("Cache-Control", "no-store"),
    );
    proxy.client(&origin).get(&url).assert_is(&first);
    let digests = wait_until("the other repository", || {
        let images = images(&proxy);
        let digests = images.iter().map(|image| image["digest"].clone()).collect::<Vec<_>>();
        (digests.len() == 3).then_some(digests)
    });
    assert!(digests.contains(&json!(second.digest())), "{digests:?}");
}

/// As registry.k8s.io does it: the tag is asked for there, and answered by another registry.
#[test]
fn an_image_behind_a_redirect_is_listed_under_the_name_that_was_asked_for() {
    let setup = Setup::new();
    let (front, back) = (Origin::http(names::REGISTRY), Origin::http(names::SECOND));
    let proxy = setup.start();
    let config = fresh_body(100);
    let parts = [config.clone(), fresh_body(3000)];
    let layers = json!([descriptor(&parts[1])]);
    let document = json!({"schemaVersion": 2, "config": descriptor(&config), "layers": layers});
    let body = Body::bytes(document.to_string());
    let answer = Answer::ok(&body)
        .with("Content-Type", "application/vnd.oci.image.manifest.v1+json")
        .with("Docker-Content-Digest", body.digest());
    let path = |name: &str, reference: &str| format!("/v2/{name}/manifests/{reference}");
    for reference in ["1", "2", &body.digest()] {
        let behind = path("mirror/lab/app", reference);
        front.get(&path(REPOSITORY, reference), Answer::redirect(307, back.url(&behind)));
        back.get(&behind, answer.clone());
    }
    for part in &parts {
        front.get(&blob_path(REPOSITORY, part), Answer::ok(part));
    }
    // As containerd does: HEAD of the tag wherever it leads, then all by digest.
    let url = front.url(&path(REPOSITORY, "1"));
    let told = proxy.client(&front).request("HEAD", &url, &[], Payload::None);
    assert_eq!(told.status, 307);
    let url = told.field("Location").expect("where to").to_owned();
    assert_eq!(proxy.client(&back).request("HEAD", &url, &[], Payload::None).status, 200);
    proxy.get(&front, &path(REPOSITORY, &body.digest())).assert_is(&body);
    fetch(&proxy, &front, &parts);
    let image = listed(&proxy, "1", body.len() + len(&parts));
    assert_eq!(image["image"], json!(name(&front)));
    assert_eq!(images(&proxy).len(), 1, "{:#?}", images(&proxy));
    // Whoever asks that registry itself means its image.
    proxy.get(&back, &path("mirror/lab/app", "2")).assert_is(&body);
    let image = listed(&proxy, "2", body.len() + len(&parts));
    assert_eq!(image["image"], json!(format!("{}/mirror/lab/app", back.authority())));
}

#[test]
fn a_purge_takes_what_no_other_image_has() {
    let setup = Setup::new();
    let origin = Origin::http(names::REGISTRY);
    let proxy = setup.start();
    let base = fresh_body(50_000);
    let (one, one_parts) = image(&origin, Some("1"), &[&base, &fresh_body(1000)]);
    let (two, two_parts) = image(&origin, Some("2"), &[&base, &fresh_body(2000)]);
    pull(&proxy, &origin, "1", &[&one], &one_parts);
    pull(&proxy, &origin, "2", &[&two], &two_parts);
    listed(&proxy, "1", one.len() + len(&one_parts));
    listed(&proxy, "2", two.len() + len(&two_parts));
    let all = proxy.stat("current_size");
    let own = one.len() + 100 + 1000;
    let image = format!("image={}:1", name(&origin));

    let (status, dry) = delete(&proxy, &format!("{image}&dry_run=1"));
    assert_eq!((status, &dry["removed"], &dry["freed"]), (200, &json!(3), &json!(own)));
    assert_eq!((&dry["dry_run"], proxy.stat("current_size")), (&json!(true), all));
    let (status, none) = delete(&proxy, &format!("{image}&older_than=7d"));
    assert_eq!((status, &none["removed"]), (200, &json!(0)));
    let (status, done) = delete(&proxy, &image);
    assert_eq!((status, &done["removed"], &done["freed"]), (200, &json!(3), &json!(own)));
    assert_eq!(proxy.stat("current_size"), all - own);
    assert_eq!(delete(&proxy, &image).0, 404, "its name is forgotten");
    listed(&proxy, "2", two.len() + len(&two_parts));
    proxy.get(&origin, &blob_path(REPOSITORY, &base)).assert_hit();

    let (status, dry) = delete(&proxy, "dry_run=1");
    assert_eq!((status, &dry["removed"]), (200, &json!(4)));
    let (status, done) = delete(&proxy, &format!("repository={}", name(&origin)));
    assert_eq!((status, &done["removed"]), (200, &json!(4)), "{done}");
    assert_eq!(proxy.stat("current_size"), 0);
}

#[test]
fn what_is_old_goes_and_nothing_else() {
    let setup = Setup::new();
    let origin = Origin::http(names::REGISTRY);
    let proxy = setup.start();
    let (old, new) = (fresh_body(1000), fresh_body(2000));
    for body in [&old, &new] {
        origin.get(&blob_path(REPOSITORY, body), Answer::ok(body));
        fetch(&proxy, &origin, std::slice::from_ref(body));
    }
    proxy.stop();
    let file = std::fs::File::open(setup.blob(&old.sha256())).expect("the blob");
    let week = std::time::Duration::from_secs(8 * 24 * 3600);
    file.set_modified(std::time::SystemTime::now() - week).expect("its time");
    let proxy = setup.start();
    wait_until("the scan", || (get(&proxy, "/health")["scanning"] == false).then_some(()));
    let (status, done) = delete(&proxy, "older_than=7d");
    assert_eq!((status, &done["removed"], &done["freed"]), (200, &json!(1), &json!(1000)));
    assert!(!setup.blob(&old.sha256()).exists() && setup.blob(&new.sha256()).exists());
}

#[test]
fn what_is_pinned_outlives_evictions_a_restart_and_a_purge() {
    let setup = Setup::new().with(json!({ "cache": { "max_size": 3 * MEGA } }));
    let origin = Origin::http(names::REGISTRY);
    let proxy = setup.start();
    let (manifest, parts) = image(&origin, Some("kept"), &[&fresh_body(MEGA)]);
    let kept = format!("{}:kept", name(&origin));
    // Before anything of it is known.
    assert_eq!((pin(&proxy, "POST", &kept), pin(&proxy, "POST", &kept)), (201, 200));
    pull(&proxy, &origin, "kept", &[&manifest], &parts);
    let stored = manifest.len() + len(&parts);
    assert_eq!(listed(&proxy, "kept", stored)["pinned"], json!(true));
    let flood = |proxy: &Proxy| {
        for _ in 0..4 {
            let body = fresh_body(MEGA);
            origin.get(&blob_path(REPOSITORY, &body), Answer::ok(&body));
            fetch(proxy, &origin, &[body]);
        }
        for part in &parts {
            proxy.get(&origin, &blob_path(REPOSITORY, part)).assert_hit();
        }
    };
    wait_until("the pin of all its parts", || {
        let bytes = get(&proxy, "/api/cache/pins")["pins"][0]["bytes"].clone();
        (bytes == json!(stored) && pinned_entries(&proxy) == 3).then_some(())
    });
    flood(&proxy);
    proxy.stop();
    let proxy = setup.start();
    wait_until("the scan", || (get(&proxy, "/health")["scanning"] == false).then_some(()));
    flood(&proxy);

    assert_eq!(delete(&proxy, &format!("image={kept}")).0, 409);
    let answer = proxy.admin("DELETE", "/api/cache", &[]);
    assert_eq!((answer.status, &answer.json()["pinned"]), (200, &json!(3)));
    assert_eq!(proxy.stat("current_size"), stored);
    assert_eq!((pin(&proxy, "DELETE", &kept), pin(&proxy, "DELETE", &kept)), (200, 404));
    assert_eq!(delete(&proxy, &format!("image={kept}")).1["freed"], json!(stored));
}

#[test]
fn where_pins_leave_no_room_answers_pass() {
    let setup = Setup::new().with(json!({ "cache": { "max_size": 3 * MEGA } }));
    let origin = Origin::http(names::REGISTRY);
    let proxy = setup.start();
    let (manifest, parts) = image(&origin, Some("kept"), &[&fresh_body(5 * MEGA / 2)]);
    assert_eq!(pin(&proxy, "POST", &format!("{}:kept", name(&origin))), 201);
    pull(&proxy, &origin, "kept", &[&manifest], &parts);
    wait_until("the pin of all its parts", || (pinned_entries(&proxy) == 3).then_some(()));
    for _ in 0..2 {
        let body = fresh_body(MEGA);
        origin.get(&blob_path(REPOSITORY, &body), Answer::ok(&body));
        fetch(&proxy, &origin, std::slice::from_ref(&body));
        assert!(!setup.blob(&body.sha256()).exists());
    }
    for part in &parts {
        proxy.get(&origin, &blob_path(REPOSITORY, part)).assert_hit();
    }
    let said = |line: &&String| line.contains("what is pinned fills cache.max_size");
    assert_eq!(proxy.log().iter().filter(said).count(), 1, "{}", proxy.output());
}

#[test]
fn entries_are_listed_by_pages() {
    let setup = Setup::new();
    let origin = Origin::http(names::REGISTRY);
    let proxy = setup.start();
    let bodies: Vec<Body> = (1..=5).map(|n| fresh_body(n * 1000)).collect();
    for body in &bodies {
        origin.get(&blob_path(REPOSITORY, body), Answer::ok(body));
    }
    fetch(&proxy, &origin, &bodies);
    fetch(&proxy, &origin, &bodies[1..2]);
    let sizes = |query: &str| -> Vec<u64> {
        let page = get(&proxy, &format!("/api/cache/entries?{query}"));
        let rows = page["entries"].as_array().expect("a list");
        rows.iter().filter_map(|row| row["size"].as_u64()).collect()
    };
    assert_eq!(sizes("sort=size&limit=2"), [5000, 4000]);
    assert_eq!(sizes("sort=size&limit=2&page=2"), [3000, 2000]);
    assert_eq!(sizes("sort=size&limit=2&page=3"), [1000]);
    assert_eq!(sizes("sort=size&limit=2&page=4"), [0; 0]);
    assert_eq!(sizes("sort=size&order=asc&limit=2&page=2"), [3000, 4000]);
    assert_eq!(sizes("sort=hits&limit=1"), [2000]);
    assert_eq!(sizes(&format!("q={}", &bodies[2].sha256()[..12])), [3000]);
    let (manifest, parts) = image(&origin, Some("1"), &[&bodies[1]]);
    pull(&proxy, &origin, "1", &[&manifest], &parts);
    listed(&proxy, "1", manifest.len() + len(&parts));
    let page = get(&proxy, "/api/cache/entries?sort=hits&limit=1");
    let row = &page["entries"][0];
    let url = format!("{}{}", origin.authority(), blob_path(REPOSITORY, &bodies[1]));
    assert_eq!((&row["url"], &row["key"]), (&json!(url), &json!(bodies[1].digest())));
    assert_eq!((&row["hits"], &page["total"], &page["page"]), (&json!(2), &json!(7), &json!(1)));
}

#[test]
fn what_is_not_understood_removes_nothing() {
    let setup = Setup::new();
    let origin = Origin::http(names::REGISTRY);
    let proxy = setup.start();
    let body = fresh_body(1000);
    origin.get(&blob_path(REPOSITORY, &body), Answer::ok(&body));
    fetch(&proxy, &origin, std::slice::from_ref(&body));
    for query in [
        "imgae=alpine",
        "image=",
        "image",
        "image=a%20b",
        "image=%zz",
        "image=%",
        "image=a&image=b",
        "repository=alpine:1",
        "older_than=7",
        "older_than=-7d",
        "older_than=soon",
        "dry_run=yes",
        "dry_run=1&x=1",
        "force=2",
        // What a shell leaves of an address that is not quoted.
        "force=1",
        "dry_run=0",
        "all=0",
    ] {
        let (status, answer) = delete(&proxy, query);
        assert_eq!(status, 400, "{query}: {answer}");
        assert!(answer["errors"][0]["message"].is_string(), "{answer}");
    }
    let body = Body::bytes(r#"{"image":"alpine"}"#);
    let body = Payload::Length(&body);
    let mut client = Client::plain(proxy.admin_address());
    assert_eq!(client.request("DELETE", "/api/cache", &[], body).status, 400);
    assert_eq!(delete(&proxy, "image=alpine").0, 404);
    for path in [
        "images?sort=stored",
        "images?page=0",
        "images?limit=1001",
        "entries?sort=image",
        "entries?order=up",
        "entries?limit=x",
        "pins?x=1",
    ] {
        assert_eq!(proxy.admin("GET", &format!("/api/cache/{path}"), &[]).status, 400, "{path}");
    }
    for path in ["/api/cache/pins", "/api/cache/pins?image=a%20b"] {
        assert_eq!(proxy.admin("POST", path, &[]).status, 400, "{path}");
    }
    let foreign = [("Origin", "http://evil.test")];
    assert_eq!(proxy.admin("POST", "/api/cache/pins?image=alpine", &foreign).status, 403);
    assert_eq!(proxy.admin("POST", "/api/cache/images", &[]).status, 405);
    assert_eq!(proxy.stat("current_size"), 1000);
}
