//! Media that fail for real: a file system that is remounted read-only under the running proxy, and
//! a disk whose blocks can't be read or
//! written. Every pull succeeds, from upstream where it must.

mod support;

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use serde_json::json;
use support::answer::Answer;
use support::body::Body;
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::blob_path;
use support::seccomp::{RENAMES, WRITES};
use support::wait_until;

/// Runs a command; what it printed.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect(program);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Something mounted; unmounted with its value, whoever still uses it.
struct Mount(PathBuf);

impl Mount {
    fn new(at: PathBuf, arguments: &[&str]) -> Mount {
        fs::create_dir_all(&at).expect("the mount point");
        run("mount", &[arguments, &[text(&at)]].concat());
        Mount(at)
    }

    /// Whether the file system lets itself be remounted so.
    fn remount(&self, how: &str) -> bool {
        let option = format!("remount,{how}");
        let status = Command::new("mount").args(["-o", &option, text(&self.0)]).output();
        status.expect("mount").status.success()
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

fn serve(origin: &Origin, len: u64) -> (Body, String) {
    let body = fresh_body(len);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body).ranges());
    (body, path)
}

fn hits(proxy: &Proxy, origin: &Origin, body: &Body, path: &str) -> bool {
    let got = proxy.get(origin, path);
    got.assert_is(body);
    got.field("X-Cache") == Some("HIT")
}

#[test]
fn a_file_system_remounted_read_only_is_read_from_and_written_to_again_later() {
    let setup = Setup::new();
    let mount = Mount::new(setup.path("cache"), &["-t", "tmpfs", "-o", "size=64m", "none"]);
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let (old, old_path) = serve(&origin, 300_000);
    assert!(!hits(&proxy, &origin, &old, &old_path));
    assert!(hits(&proxy, &origin, &old, &old_path));
    // Nothing of the proxy's keeps it from being remounted, once no fill is under way.
    wait_until("the remount", || mount.remount("ro").then_some(()));
    let (new, new_path) = serve(&origin, 2_000_000);
    for _ in 0..3 {
        assert!(!hits(&proxy, &origin, &new, &new_path));
        assert!(hits(&proxy, &origin, &old, &old_path));
    }
    assert!(mount.remount("rw"));
    assert!(!hits(&proxy, &origin, &new, &new_path));
    assert!(hits(&proxy, &origin, &new, &new_path));
    // The log may come a little late.
    proxy.wait_log(&["caching works again"]);
    let log = proxy.output();
    assert_eq!(log.matches("caching fails").count(), 1, "{log}");
    assert_eq!(log.matches("caching works again").count(), 1, "{log}");
}

#[test]
fn what_a_medium_does_not_take_passes_uncached() {
    type Shape = fn(Answer) -> Answer;
    let shapes: [Shape; 3] = [|a| a, Answer::ranges, Answer::chunked];
    // At the first byte of a body; when it is to get its name.
    for calls in [WRITES, RENAMES] {
        let mut setup = Setup::new();
        let origins = [Origin::https(names::REGISTRY), Origin::http(names::SECOND)];
        let proxy = setup.start();
        let (old, old_path) = serve(&origins[0], 300_000);
        assert!(!hits(&proxy, &origins[0], &old, &old_path));
        proxy.stop();
        setup.fail(calls);
        let proxy = setup.start();
        for (shape, len) in shapes.into_iter().flat_map(|shape| [(shape, 700), (shape, 2_000_000)])
        {
            for origin in &origins {
                let body = fresh_body(len);
                let path = blob_path("lab/img", &body);
                origin.get(&path, shape(Answer::ok(&body)));
                thread::scope(|scope| {
                    for _ in 0..6 {
                        scope.spawn(|| assert!(!hits(&proxy, origin, &body, &path)));
                    }
                });
                assert!(!setup.blob(&body.sha256()).exists());
            }
        }
        assert!(hits(&proxy, &origins[0], &old, &old_path), "what is stored is served");
        wait_until("what was begun to be removed", || {
            fs::read_dir(setup.path("cache/partial"))
                .expect("its folder")
                .next()
                .is_none()
                .then_some(())
        });
        assert_eq!(proxy.stat("stores"), 0);
        let log = proxy.stop();
        let said: Vec<_> = log.lines().filter(|line| line.contains("caching fails")).collect();
        assert!(said.len() == 1 && said[0].contains("Input/output error"), "{log}");
        setup.fail(&[]);
        let proxy = setup.start();
        let (new, new_path) = serve(&origins[0], 300_000);
        assert!(!hits(&proxy, &origins[0], &new, &new_path));
        assert!(hits(&proxy, &origins[0], &new, &new_path));
    }
}

/// The number of the middle block of a file on an ext4 image, and bytes per block.
fn middle_block(image: &Path, file: &str) -> (u64, u64) {
    let blocks = run("debugfs", &["-R", &format!("blocks {file}"), text(image)]);
    let blocks: Vec<u64> = blocks.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let stats = run("debugfs", &["-R", "stats", text(image)]);
    let size = stats.lines().find_map(|line| line.strip_prefix("Block size:"));
    (blocks[blocks.len() / 2], size.expect("a block size").trim().parse().expect("a number"))
}

#[test]
fn a_stored_body_whose_blocks_cannot_be_read_is_finished_from_upstream() {
    for origin in [Origin::https(names::REGISTRY), Origin::http(names::SECOND)] {
        for len in [6_000_000, 40_000] {
            let setup = Setup::new().with(json!({ "cache": { "min_free": 0 } }));
            let image = setup.path("disk");
            let file = fs::File::create(&image).expect("an image");
            file.set_len(64 << 20).expect("its size");
            run("mkfs.ext4", &["-q", "-O", "^has_journal", text(&image)]);
            let _mount = Mount::new(setup.path("cache"), &["-o", "loop", text(&image)]);
            let proxy = setup.start();
            let (body, path) = serve(&origin, len);
            assert!(!hits(&proxy, &origin, &body, &path));
            assert!(hits(&proxy, &origin, &body, &path));
            // The disk ends in the middle of the body from now on.
            let blob = setup.blob(&body.sha256());
            run("sync", &["-f", text(&blob)]);
            let (block, size) = middle_block(&image, &format!("/blobs/sha256/{}", body.sha256()));
            let disk = OpenOptions::new().write(true).open(&image).expect("the image");
            disk.set_len(block * size).expect("cutting it");
            run("dd", &[&format!("if={}", text(&blob)), "iflag=nocache", "count=0"]);
            hits(&proxy, &origin, &body, &path);
            proxy.wait_log(&["unreadable cache entry dropped", "Input/output error"]);
            assert!(!hits(&proxy, &origin, &body, &path), "what can't be read is kept");
            assert!(proxy.stat("errors") > 0);
        }
    }
}
