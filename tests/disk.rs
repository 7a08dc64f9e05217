//! Disks that give out under the running proxy: every pull still succeeds, uncached where it must
//! be; the log says so once; and when there is room again caching goes on by itself.

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::json;
use support::answer::{Answer, Gate};
use support::body::Body;
use support::client::{Client, Response, Transfer};
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::{Registry, blob_path};
use support::wait_until;

const FAILS: &str = "caching fails";
const WORKS: &str = "caching works again";

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().expect(program);
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

/// Something mounted; unmounted with its value, whoever still uses it.
struct Mount(PathBuf);

impl Mount {
    /// A file system in memory with these options.
    fn tmpfs(at: PathBuf, options: &str) -> Mount {
        fs::create_dir_all(&at).expect("the mount point");
        run("mount", &["-t", "tmpfs", "-o", options, "none", text(&at)]);
        Mount(at)
    }

    /// The same directory over itself, so that nothing in it can be changed by its name.
    fn read_only(at: PathBuf) -> Mount {
        run("mount", &["--bind", text(&at), text(&at)]);
        let mount = Mount(at);
        run("mount", &["-o", "remount,bind,ro", text(&mount.0)]);
        mount
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Takes all the room a file system has, until it is dropped.
struct Ballast(PathBuf);

impl Ballast {
    fn everything(folder: &Path) -> Ballast {
        let path = folder.join("ballast");
        let mut file = File::create(&path).expect("a file for the ballast");
        for size in [1 << 20, 4096] {
            let piece = vec![7; size];
            while file.write_all(&piece).is_ok() {}
        }
        Ballast(path)
    }

    fn of(folder: &Path, size: u64) -> Ballast {
        let path = folder.join("ballast");
        let piece = vec![7; size as usize];
        fs::write(&path, piece).expect("room for the ballast");
        Ballast(path)
    }

    /// Every file the file system may hold.
    fn files(folder: &Path) -> Ballast {
        let path = folder.join("ballast");
        fs::create_dir(&path).expect("a folder for the ballast");
        let mut number = 0;
        while File::create(path.join(number.to_string())).is_ok() {
            number += 1;
        }
        Ballast(path)
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Registries over both schemes that serve the same blobs.
struct Upstreams {
    secure: Registry,
    plain: Origin,
}

impl Upstreams {
    fn new() -> Upstreams {
        Upstreams { secure: Registry::https(), plain: Origin::http(names::SECOND) }
    }

    fn serve(&self, body: &Body) -> String {
        self.serve_as(body, Answer::ok(body))
    }

    fn serve_as(&self, body: &Body, answer: Answer) -> String {
        self.plain.get(&blob_path("lab/img", body), answer.clone());
        self.secure.blob_as("lab/img", body, answer)
    }

    /// The registry a client of this number talks to.
    fn of(&self, number: usize) -> &Origin {
        if number.is_multiple_of(2) { &self.secure.main } else { &self.plain }
    }

    /// So many clients at once, over TLS and plain; each gets the right bytes.
    fn pull(&self, proxy: &Proxy, body: &Body, clients: usize) -> Vec<Response> {
        let path = blob_path("lab/img", body);
        let ask = |number: usize| proxy.get(self.of(number), &path);
        let ask = &ask;
        let responses: Vec<Response> = thread::scope(|scope| {
            let threads: Vec<_> =
                (0..clients).map(|number| scope.spawn(move || ask(number))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a client")).collect()
        });
        for response in &responses {
            response.assert_is(body);
        }
        responses
    }
}

/// A setup whose cache is a file system of its own.
fn small(options: &str) -> (Setup, Mount) {
    let setup = Setup::new().with(json!({ "cache": { "min_free": 0 } }));
    let mount = Mount::tmpfs(setup.path("cache"), options);
    (setup, mount)
}

fn said(proxy: &Proxy, what: &str) -> usize {
    proxy.log().iter().filter(|line| line.contains(what)).count()
}

/// The log says so often that caching fails, and that it works again; it may come a little late.
#[track_caller]
fn assert_said(proxy: &Proxy, fails: usize, works: usize) {
    let both = || (said(proxy, FAILS), said(proxy, WORKS));
    wait_until("the log to say so", || {
        let (failed, worked) = both();
        (failed >= fails && worked >= works).then_some(())
    });
    assert_eq!(both(), (fails, works), "{}", proxy.output());
}

/// How large the files are that are being filled.
fn partial(setup: &Setup) -> Vec<u64> {
    let folder = fs::read_dir(setup.path("cache/partial")).into_iter().flatten().flatten();
    folder.filter_map(|found| found.metadata().ok()).map(|found| found.len()).collect()
}

/// A fresh blob is stored and then comes from the cache.
#[track_caller]
fn assert_caches(setup: &Setup, proxy: &Proxy, upstreams: &Upstreams) -> Body {
    let body = fresh_body(300_000);
    upstreams.serve(&body);
    let stored = proxy.stat("stores") + 1;
    upstreams.pull(proxy, &body, 1);
    proxy.wait_stat("stores", stored);
    for response in upstreams.pull(proxy, &body, 4) {
        response.assert_hit();
    }
    assert!(setup.blob(&body.sha256()).exists());
    body
}

/// Every pull of a fresh blob succeeds, though nothing can be stored.
#[track_caller]
fn assert_passes(setup: &Setup, proxy: &Proxy, upstreams: &Upstreams) {
    let shapes: [fn(Answer) -> Answer; 2] = [|a| a, Answer::chunked];
    for shape in shapes {
        for len in [3_000, 1_200_000] {
            let body = fresh_body(len);
            upstreams.serve_as(&body, shape(Answer::ok(&body)));
            for response in upstreams.pull(proxy, &body, 8) {
                response.assert_not_hit();
            }
            assert!(!setup.blob(&body.sha256()).exists());
        }
    }
}

/// Clients in the midst of a body that stops at `at`, which is what has been written of it.
struct Midst<'a> {
    setup: &'a Setup,
    body: Body,
    gate: Gate,
    clients: Vec<(Client, Transfer, u64)>,
}

impl<'a> Midst<'a> {
    fn new(
        setup: &'a Setup,
        proxy: &Proxy,
        upstreams: &Upstreams,
        (len, at): (u64, u64),
        shape: impl Fn(Answer) -> Answer,
    ) -> Midst<'a> {
        let body = fresh_body(len);
        let gate = Gate::new();
        let path = upstreams.serve_as(&body, shape(Answer::ok(&body).gate_at(at, &gate)));
        let begin = |number: usize| {
            let origin = upstreams.of(number);
            let mut client = proxy.client(origin);
            // One in the midst of a range of what is there, one waiting for a range behind it.
            let (from, there) = match number % 4 {
                2 => (at + (len - at) / 2, 0),
                3 => (200_000, 100_000),
                _ => (0, 100_000),
            };
            let range = format!("bytes={from}-");
            let fields = if from > 0 { vec![("Range", range.as_str())] } else { Vec::new() };
            let mut transfer = client.begin_with(&origin.url(&path), &fields);
            transfer.read_to(&mut client, there);
            (client, transfer, from)
        };
        let clients = (0..8).map(begin).collect();
        wait_until("what upstream sent to be written", || {
            partial(setup).contains(&at).then_some(())
        });
        Midst { setup, body, gate, clients }
    }

    /// Lets upstream go on: everybody gets the rest, and nothing is stored.
    #[track_caller]
    fn passes(self) {
        self.gate.open();
        for (mut client, transfer, from) in self.clients {
            let response = transfer.finish(&mut client);
            match response.status {
                206 => response.assert_part(&self.body, (from, self.body.len())),
                _ => response.assert_is(&self.body),
            }
        }
        assert!(!self.setup.blob(&self.body.sha256()).exists());
    }
}

type Shape = fn(Answer) -> Answer;

/// By length and chunked, with and without ranges.
const SHAPES: [Shape; 4] =
    [|a| a, Answer::ranges, Answer::chunked, |answer| answer.chunked().ranges()];

fn assert_nothing_partial(setup: &Setup) {
    wait_until("what was begun to be removed", || partial(setup).is_empty().then_some(()));
}

#[test]
fn a_disk_full_at_the_start() {
    let (setup, _mount) = small("size=40m");
    let ballast = Ballast::everything(&setup.path("cache"));
    let proxy = setup.start();
    let upstreams = Upstreams::new();
    assert_passes(&setup, &proxy, &upstreams);
    assert_said(&proxy, 1, 0);
    assert_eq!(proxy.stat("stores"), 0);
    assert_nothing_partial(&setup);

    drop(ballast);
    assert_caches(&setup, &proxy, &upstreams);
    assert_caches(&setup, &proxy, &upstreams);
    assert_said(&proxy, 1, 1);

    let ballast = Ballast::everything(&setup.path("cache"));
    let body = fresh_body(2_000_000);
    upstreams.serve(&body);
    upstreams.pull(&proxy, &body, 8);
    assert_said(&proxy, 2, 1);
    drop(ballast);
    assert_caches(&setup, &proxy, &upstreams);
    assert_said(&proxy, 2, 2);
}

#[test]
fn a_disk_that_becomes_full_in_mid_fill() {
    let (setup, _mount) = small("size=40m");
    let proxy = setup.start();
    let upstreams = Upstreams::new();
    for (number, shape) in SHAPES.into_iter().enumerate() {
        let midst = Midst::new(&setup, &proxy, &upstreams, (3_000_000, 1_000_000), shape);
        let ballast = Ballast::everything(&setup.path("cache"));
        midst.passes();
        assert_nothing_partial(&setup);
        assert_said(&proxy, number + 1, number);
        drop(ballast);
        assert_caches(&setup, &proxy, &upstreams);
        assert_said(&proxy, number + 1, number + 1);
    }
}

#[test]
fn a_small_body_behind_a_redirect_comes_whole_when_the_disk_fills_under_it() {
    let (setup, _mount) = small("size=40m");
    let proxy = setup.start();
    let registry = Registry::https();
    let (body, gate) = (fresh_body(10_000), Gate::new());
    let path = registry.gated_blob("lab/img", &body, 1, &gate);
    thread::scope(|scope| {
        let pull = scope.spawn(|| proxy.get(&registry.main, &path));
        proxy.wait_stat("fills", 1);
        let ballast = Ballast::everything(&setup.path("cache"));
        gate.open();
        // Not the redirect, which the client should not have to follow.
        pull.join().expect("a client").assert_is(&body);
        drop(ballast);
    });
}

#[test]
fn a_disk_full_at_the_commit() {
    let (setup, _mount) = small("size=40m,nr_inodes=100");
    let proxy = setup.start();
    let upstreams = Upstreams::new();
    let folder = setup.path("cache");
    let fills: [fn(&Path) -> Ballast; 2] = [Ballast::everything, Ballast::files];
    for (number, fill) in fills.into_iter().enumerate() {
        // The last byte lies in a page that is there already: only the `.meta` wants room.
        let midst = Midst::new(&setup, &proxy, &upstreams, (1_000_001, 1_000_000), |a| a);
        let ballast = fill(&folder);
        midst.passes();
        assert_nothing_partial(&setup);
        // What was begun has given its room back.
        drop(ballast);
        let ballast = fill(&folder);
        assert_passes(&setup, &proxy, &upstreams);
        assert_said(&proxy, number + 1, number);
        drop(ballast);
        assert_caches(&setup, &proxy, &upstreams);
        assert_said(&proxy, number + 1, number + 1);
    }
}

#[test]
fn min_free_is_left_to_others() {
    let setup = Setup::new().with(json!({ "cache": { "min_free": "20MiB" } }));
    let _mount = Mount::tmpfs(setup.path("cache"), "size=40m");
    let proxy = setup.start();
    let upstreams = Upstreams::new();
    let bodies: Vec<Body> = (0..9).map(|_| fresh_body(3_000_000)).collect();
    for body in &bodies {
        upstreams.serve(body);
        upstreams.pull(&proxy, body, 4);
    }
    // Older entries made room.
    proxy.wait_stat("stores", 9);
    let kept = bodies.iter().filter(|body| setup.blob(&body.sha256()).exists()).count();
    assert!((4..=7).contains(&kept), "{kept}: {}", proxy.stats());
    assert_eq!(said(&proxy, FAILS), 0, "{}", proxy.output());

    let ballast = Ballast::of(&setup.path("cache"), 19 << 20);
    let large = fresh_body(22_000_000);
    upstreams.serve(&large);
    upstreams.pull(&proxy, &large, 4);
    upstreams.pull(&proxy, &large, 4);
    assert!(!setup.blob(&large.sha256()).exists());
    assert_said(&proxy, 1, 0);
    assert!(proxy.log().iter().any(|line| line.contains(FAILS) && line.contains("min_free")));
    let still = bodies.iter().filter(|body| setup.blob(&body.sha256()).exists()).count();
    assert_eq!(still, kept, "given up for what did not fit all the same");
    drop(ballast);
    assert_caches(&setup, &proxy, &upstreams);
    assert_said(&proxy, 1, 1);
}

#[test]
fn a_disk_that_becomes_read_only() {
    let setup = Setup::new();
    let proxy = setup.start();
    let upstreams = Upstreams::new();
    let stored = assert_caches(&setup, &proxy, &upstreams);
    let midst = Midst::new(&setup, &proxy, &upstreams, (3_000_000, 1_000_000), |a| a);
    let mount = Mount::read_only(setup.path("cache"));
    midst.passes();
    assert_passes(&setup, &proxy, &upstreams);
    for response in upstreams.pull(&proxy, &stored, 8) {
        response.assert_hit();
    }
    assert_said(&proxy, 1, 0);
    drop(mount);
    assert_caches(&setup, &proxy, &upstreams);
    assert_said(&proxy, 1, 1);
    assert_nothing_partial(&setup);
}

#[test]
fn a_directory_removed_under_the_running_proxy() {
    for (whole, between) in [(true, false), (false, false), (true, true), (false, true)] {
        let setup = Setup::new();
        let proxy = setup.start();
        let upstreams = Upstreams::new();
        let stored = assert_caches(&setup, &proxy, &upstreams);
        let midst =
            between.then(|| Midst::new(&setup, &proxy, &upstreams, (3_000_000, 1_000_000), |a| a));
        let folder = setup.path("cache");
        fs::remove_dir_all(&folder).expect("removing it");
        if !whole {
            fs::create_dir(&folder).expect("its folder");
        }
        if let Some(midst) = midst {
            midst.passes();
        }
        upstreams.pull(&proxy, &stored, 8);
        assert_caches(&setup, &proxy, &upstreams);
        upstreams.pull(&proxy, &stored, 1);
        for response in upstreams.pull(&proxy, &stored, 4) {
            response.assert_hit();
        }
        assert!(setup.blob(&stored.sha256()).exists());
        let again = usize::from(between);
        assert_said(&proxy, again, again);
        assert_nothing_partial(&setup);
    }
}

#[test]
fn few_descriptors_make_clients_wait_and_nobody_fail() {
    let setup = Setup::new();
    let proxy = setup.start_after("ulimit -n 160");
    let upstreams = Upstreams::new();
    let shared = fresh_body(2_000_000);
    upstreams.serve(&shared);
    let own: Vec<Body> = (0..60).map(|_| fresh_body(150_000)).collect();
    for body in &own {
        upstreams.serve(body);
    }
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..60 {
            scope.spawn(|| {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let origin = upstreams.of(number);
                for body in [&shared, &own[number]] {
                    proxy.get(origin, &blob_path("lab/img", body)).assert_is(body);
                }
            });
        }
    });
    for body in &own {
        upstreams.pull(&proxy, body, 2);
    }
    assert_caches(&setup, &proxy, &upstreams);
    assert!(said(&proxy, FAILS) <= 1, "{}", proxy.output());
}

#[test]
fn a_proxy_out_of_descriptors_passes_what_it_cannot_store() {
    let setup = Setup::new().with(json!({ "proxy": { "workers": 1 } }));
    let proxy = setup.start();
    let upstreams = Upstreams::new();
    let stored = assert_caches(&setup, &proxy, &upstreams);
    let limit = |files: usize| {
        let pid = proxy.pid().to_string();
        let nofile = format!("--nofile={files}:");
        run("prlimit", &["--pid", &pid, &nofile]);
    };
    for secure in [true, false] {
        // Connections both ways are there already; nothing is left for files.
        let origin = upstreams.of(usize::from(!secure));
        let mut client = proxy.client(origin);
        let warm = fresh_body(1_000);
        let first = fresh_body(1_000_000);
        for body in [&warm, &first] {
            client.get(&origin.url(&upstreams.serve(body))).assert_is(body);
        }
        let (fails, works) = (said(&proxy, FAILS), said(&proxy, WORKS));
        // The first ten are its own to the end: none of them becomes free.
        limit(10);
        for _ in 0..10 {
            let body = fresh_body(1_000_000);
            client.get(&origin.url(&upstreams.serve(&body))).assert_is(&body);
            assert!(!setup.blob(&body.sha256()).exists());
        }
        let hit = client.get(&origin.url(&blob_path("lab/img", &stored)));
        hit.assert_is(&stored);
        hit.assert_hit();
        limit(1024);
        drop(client);
        assert_caches(&setup, &proxy, &upstreams);
        assert_said(&proxy, fails + 1, works + 1);
    }
}

#[test]
fn an_object_larger_than_the_cache_passes_to_all_who_want_it() {
    let setup = Setup::new().with(json!({ "cache": { "max_size": 1_000_000 } }));
    let proxy = setup.start();
    let upstreams = Upstreams::new();
    let stored = assert_caches(&setup, &proxy, &upstreams);
    for shape in [(|a| a) as Shape, Answer::chunked, Answer::until_close] {
        let body = fresh_body(3_000_000);
        upstreams.serve_as(&body, shape(Answer::ok(&body)));
        for _ in 0..2 {
            for response in upstreams.pull(&proxy, &body, 10) {
                response.assert_not_hit();
            }
        }
        wait_until("no more than may be stored", || {
            (proxy.stat("current_size") <= 1_000_000).then_some(())
        });
        assert!(!setup.blob(&body.sha256()).exists());
        assert_nothing_partial(&setup);
    }
    upstreams.pull(&proxy, &stored, 4);
    assert_caches(&setup, &proxy, &upstreams);
    assert_eq!(said(&proxy, FAILS), 0, "{}", proxy.output());
}
