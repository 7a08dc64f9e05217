//! What single steps of a request cost: `cargo bench --bench micro`. `cargo test` runs each once,
//! over a small index, so that none of them rots.

use std::fs;
use std::future::{Future, poll_fn};
use std::hint::black_box;
use std::path::Path;
use std::pin::pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use discobot_proxy::cache::{Bounds, Cache, Filler, Lookup, Options};
use discobot_proxy::config::Config;
use discobot_proxy::http::{
    Fields, HeadLimits, Host, Method, Scheme, parse_request, parse_response,
};
use discobot_proxy::key::{Digest, Key};
use discobot_proxy::policy::{Ask, Policy};
use discobot_proxy::stats::Stats;
use monoio::blocking::DefaultThreadPool;
use monoio::{FusionDriver, RuntimeBuilder};

/// Stored entries, and those of them whose files are open.
const ENTRIES: u64 = 1_000_000;
const HOT: u64 = 4096;

/// Who looks entries up.
const NOBODY: Filler = [0; 16];

/// Names of one file that a file system allows at least.
const LINKS: u64 = 60_000;

/// Patterns, and hosts in every list of them.
const RULES: usize = 200;

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

criterion_group!(benches, heads, keys, lookups, shrink, wake, policy);
criterion_main!(benches);

fn heads(c: &mut Criterion) {
    let limits = HeadLimits::default();
    let token = "x".repeat(1500);
    let request = format!(
        "GET /v2/library/debian/blobs/sha256:{HEX} HTTP/1.1\r\nHost: registry-1.docker.io\r\n\
         User-Agent: docker/26.1.5+dfsg1 go/go1.24.4 kernel/6.12.0 os/linux arch/amd64\r\n\
         Accept-Encoding: identity\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    let response = format!(
        "HTTP/1.1 200 OK\r\nDate: Tue, 24 Nov 2026 10:00:00 GMT\r\nContent-Length: 31357624\r\n\
         Content-Type: application/octet-stream\r\nConnection: keep-alive\r\nAge: 25831\r\n\
         Accept-Ranges: bytes\r\nCache-Control: public, max-age=14400\r\nETag: \"{HEX}\"\r\n\
         Docker-Content-Digest: sha256:{HEX}\r\nServer: cloudflare\r\n\r\n"
    );
    c.bench_function("head: a request with a token", |b| {
        b.iter(|| parse_request(black_box(request.as_bytes()), &limits));
    });
    c.bench_function("head: an answer", |b| {
        b.iter(|| parse_response(black_box(response.as_bytes()), &limits));
    });
}

fn keys(c: &mut Criterion) {
    let digest = format!("sha256:{HEX}");
    c.bench_function("key: of a digest", |b| {
        b.iter(|| Digest::parse(black_box(&digest)).map(Key::Digest));
    });
    c.bench_function("key: of a URL", |b| {
        let path = "/v2/library/debian/manifests/bookworm-slim";
        b.iter(|| Key::for_url("https", "registry-1.docker.io", 443, black_box(path)));
    });
}

fn lookups(c: &mut Criterion) {
    // Else `cargo test` runs it: once each.
    let measured = std::env::args().any(|arg| arg == "--bench");
    let (entries, hot) = if measured { (ENTRIES, HOT) } else { (1000, 10) };
    let dir = tempfile::tempdir().expect("a directory");
    store(dir.path(), entries - hot);
    let cache = cache(dir.path(), hot);
    let found = cache.scan().expect("a scan");
    assert_eq!(found as u64, entries - hot);
    in_runtime(async {
        for n in 0..hot {
            fill(&cache, &hot_key(n)).await;
        }
    });
    for threads in [1, 2] {
        c.bench_function(&format!("lookup: a hit, {threads} threads"), |b| {
            b.iter_custom(|times| {
                side_by_side(threads, times, |n| {
                    let found = at_once(cache.lookup(&hot_key(n % hot), NOBODY));
                    assert!(matches!(found, Ok(Lookup::Hit(_))), "no hit");
                })
            });
        });
        c.bench_function(&format!("lookup: nothing there, {threads} threads"), |b| {
            b.iter_custom(|times| {
                side_by_side(threads, times, |n| {
                    let found = at_once(cache.peek(&other_key(n)));
                    assert!(matches!(found, Ok(None)), "something there");
                })
            });
        });
    }
    cache.close();
}

/// How long lookups wait while all else is evicted at once, as by a much smaller `cache.max_size`:
/// the longest wait, which no statistics of Criterion's show. Of one whose file is open, and of
/// ones whose files a helper has to open.
fn shrink(_: &mut Criterion) {
    let measured = std::env::args().any(|arg| arg == "--bench");
    let (entries, pinned) = if measured { (ENTRIES, 64) } else { (1000, 4) };
    for (what, open) in [("open", pinned), ("closed", 1)] {
        let dir = tempfile::tempdir().expect("a directory");
        store(dir.path(), entries);
        let cache = cache(dir.path(), open);
        cache.scan().expect("a scan");
        let keys: Vec<Key> = (0..pinned).map(hot_key).collect();
        in_runtime(async {
            for key in &keys {
                fill(&cache, key).await;
            }
        });
        cache.pin(&keys, &[]);
        let evictor = thread::spawn({
            let cache = cache.clone();
            move || {
                let begin = Instant::now();
                cache.set_bounds(Bounds { max_size: pinned, min_free: 0, fills_max: 16 });
                begin.elapsed()
            }
        });
        let (longest, count) = in_runtime(async {
            let (mut longest, mut count) = (Duration::ZERO, 0_usize);
            while !evictor.is_finished() {
                let begin = Instant::now();
                let found = cache.lookup(&keys[count % keys.len()], NOBODY).await;
                longest = longest.max(begin.elapsed());
                assert!(matches!(found, Ok(Lookup::Hit(_))), "no hit");
                count += 1;
            }
            (longest, count)
        });
        let took = evictor.join().expect("the evictor");
        assert_eq!(cache.sizes().entries as u64, pinned);
        if measured {
            println!(
                "shrink by {entries} entries, {what}: longest of {count} lookups {longest:?}, \
                 done in {took:?}"
            );
        }
        cache.close();
    }
}

/// Makes the files of so many entries, as far as a scan looks at them.
fn store(dir: &Path, entries: u64) {
    // Makes the folders, and is gone again.
    cache(dir, 1).close();
    let folder = dir.join("urls/sha256");
    let mut first = folder.clone();
    for n in 0..entries {
        let path = folder.join(stored_key(n).hex());
        if n % LINKS == 0 {
            fs::write(&path, b"x").expect("a file");
            first = path;
        } else {
            fs::hard_link(&first, &path).expect("a further name");
        }
    }
}

fn cache(dir: &Path, open: u64) -> Cache {
    let options = Options {
        dir: dir.to_owned(),
        max_size: u64::MAX,
        min_free: 0,
        open_max: open as usize,
        fills_max: 16,
    };
    Cache::open(options, Arc::new(Stats::default())).expect("a cache")
}

async fn fill(cache: &Cache, key: &Key) {
    let Ok(Lookup::Miss(lease)) = cache.lookup(key, NOBODY).await else { panic!("no lease") };
    let (mut fill, _reader) = lease.begin(Vec::new(), Some(1), None).await.expect("a fill");
    fill.append(b"x".to_vec()).await.expect("its byte");
    assert!(fill.commit().await.expect("an entry").kept);
    // The first to find it has a helper bring it into memory.
    let found = cache.lookup(key, NOBODY).await;
    assert!(matches!(found, Ok(Lookup::Hit(_))), "no hit");
}

/// Keys are spread like hashes, and cost little to make.
fn key(kind: u8, n: u64) -> Key {
    let mut bytes = [kind; 32];
    for (at, part) in bytes.chunks_exact_mut(8).take(3).enumerate() {
        let spread = (n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(17 * at as u32);
        part.copy_from_slice(&spread.to_be_bytes());
    }
    Key::Url(bytes)
}

fn stored_key(n: u64) -> Key {
    key(0, n)
}

fn hot_key(n: u64) -> Key {
    key(1, n)
}

fn other_key(n: u64) -> Key {
    key(2, n)
}

/// As a worker of the proxy runs it.
fn in_runtime<T>(future: impl Future<Output = T>) -> T {
    let helpers = Box::new(DefaultThreadPool::new(1));
    let builder = RuntimeBuilder::<FusionDriver>::new().enable_timer().attach_thread_pool(helpers);
    builder.build().expect("a runtime").block_on(future)
}

/// What needs not wait.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits"),
    }
}

/// How long `times` steps take on each of so many threads at once.
fn side_by_side(threads: u64, times: u64, step: impl Fn(u64) + Sync) -> Duration {
    let start = Barrier::new(threads as usize);
    thread::scope(|scope| {
        let run = |thread: u64| {
            let (start, step) = (&start, &step);
            scope.spawn(move || {
                start.wait();
                let begin = Instant::now();
                // Neighbours of one thread are no other's.
                (0..times).for_each(|n| step(n.wrapping_mul(31).wrapping_add(thread << 32)));
                begin.elapsed()
            })
        };
        let running: Vec<_> = (0..threads).map(run).collect();
        let ended = running.into_iter().map(|thread| thread.join().expect("a thread"));
        ended.max().unwrap_or_default()
    })
}

/// From a word that a lease ends to the reader's task running on another thread, which slept.
fn wake(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let cache = cache(dir.path(), 1);
    cache.scan().expect("a scan");
    let (order, orders) = channel();
    let (say, said) = channel();
    let reader = thread::spawn({
        let cache = cache.clone();
        move || read(&cache, &orders, &say)
    });
    c.bench_function("publish to wake, across threads", |b| {
        b.iter_custom(|times| {
            let mut total = Duration::ZERO;
            for n in 0..times {
                let Ok(Lookup::Miss(lease)) = at_once(cache.lookup(&other_key(n), NOBODY)) else {
                    panic!("no lease")
                };
                order.send(other_key(n)).expect("a reader");
                said.recv().expect("that it waits");
                // So that its thread sleeps in the kernel.
                thread::sleep(Duration::from_micros(100));
                let begin = Instant::now();
                lease.decline();
                total += said.recv().expect("when it woke").saturating_duration_since(begin);
            }
            total
        });
    });
    drop(order);
    reader.join().expect("the reader");
    cache.close();
}

/// Joins each key it is sent; says when it is about to wait and when it was woken.
fn read(cache: &Cache, orders: &Receiver<Key>, say: &Sender<Instant>) {
    in_runtime(async {
        while let Ok(key) = orders.recv() {
            let Ok(Lookup::Join(mut reader)) = cache.lookup(&key, NOBODY).await else {
                panic!("no fill")
            };
            let mut waits = false;
            poll_fn(|cx| {
                let head = reader.poll_head(cx);
                if head.is_pending() && !std::mem::replace(&mut waits, true) {
                    say.send(Instant::now()).expect("a listener");
                }
                head
            })
            .await
            .expect_err("a lease that was declined");
            say.send(Instant::now()).expect("a listener");
        }
    });
}

fn policy(c: &mut Criterion) {
    let list = |each: &dyn Fn(usize) -> String| (0..RULES).map(each).collect::<String>();
    let hosts = list(&|n| format!("    - '*.region{n}.registry{n}.example'\n"));
    let yaml = format!(
        "cache:\n  patterns:\n{}\
         tls:\n  intercept:\n{hosts}\
         allowlist:\n  enabled: true\n  domains:\n{hosts}\
         headers:\n{}",
        list(&|n| format!("    - '^/team{n}/.*/artifacts/[a-z0-9]+/v[0-9]+$'\n")),
        list(&|n| format!("  '*.region{n}.registry{n}.example': {{set: {{X-Via: build}}}}\n")),
    );
    let config = Config::parse("micro.yaml", &yaml).expect("a configuration");
    let policy = Policy::compile(&config).expect("its policy");
    let host = Host::parse("eu.region199.registry199.example").expect("a host");
    let other = Host::parse("eu.region200.registry200.example").expect("a host");
    let fields = Fields::new();
    let ask = |path| Ask {
        method: &Method::GET,
        scheme: Scheme::Https,
        host: &host,
        port: 443,
        path,
        query: None,
        fields: &fields,
    };
    c.bench_function("policy: the last of 200 patterns", |b| {
        let ask = ask("/team199/app/artifacts/abc/v12");
        b.iter(|| policy.admit(black_box(&ask)));
    });
    c.bench_function("policy: none of 200 patterns", |b| {
        let ask = ask("/team199/app/artifacts/abc/v12/more");
        b.iter(|| policy.admit(black_box(&ask)));
    });
    for (what, host) in [("the last", &host), ("none", &other)] {
        c.bench_function(&format!("policy: {what} of 200 allowed hosts"), |b| {
            b.iter(|| policy.destination_allowed(Scheme::Https, black_box(host), 443));
        });
        c.bench_function(&format!("policy: {what} of 200 intercepted hosts"), |b| {
            b.iter(|| policy.intercepts(black_box(host)));
        });
        c.bench_function(&format!("policy: {what} of 200 hosts with header rules"), |b| {
            b.iter(|| policy.header_rule(Scheme::Https, black_box(host), 443));
        });
    }
}
