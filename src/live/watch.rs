//! Follows the configuration's file (`proxy.watch_config`).
//!
//! The folder is watched and not the file: editors put another file in its place, and Kubernetes
//! swaps a link beside it to which the file's own link leads. Where the file is a link to another
//! folder, that one is watched too. What counts is what the file says when the folder has come to
//! rest, so nothing depends on which events there were.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Live, say_refused};
use crate::config::ConfigError;
use crate::sys::watch::Watch;

/// The folder is at rest when nothing has happened in it for so long.
const REST: Duration = Duration::from_millis(200);

/// One that never is has its file read all the same.
const UNREST_MAX: Duration = Duration::from_secs(2);

/// How long until a folder that can't be watched, one that is being replaced say, is tried again.
const RETRY: Duration = Duration::from_secs(2);

impl Live {
    /// Has a thread of its own follow the file, if `proxy.watch_config` says so.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn watch(self: &Arc<Live>) -> io::Result<()> {
        if !self.config().proxy.watch_config {
            return Ok(());
        }
        let live = Arc::clone(self);
        let follow = move || follow(&live);
        std::thread::Builder::new().name("watch".to_owned()).spawn(follow).map(drop)
    }
}

fn follow(live: &Live) {
    let path = live.source.path();
    let (mut complained, mut refused): (bool, Option<ConfigError>) = (false, None);
    loop {
        // Before the file is read, so that no later change is missed.
        let watch = watch(&path);
        match live.follow() {
            Ok(_) => refused = None,
            // Said once, not whenever something else happens in the folder.
            Err(error) => {
                if refused.as_ref() != Some(&error) {
                    say_refused(&error);
                }
                refused = Some(error);
            }
        }
        match watch.and_then(|watch| come_to_rest(&watch)) {
            Ok(()) => complained = false,
            Err(error) => {
                if !std::mem::replace(&mut complained, true) {
                    let path = path.display();
                    tracing::warn!(%path, %error, "the configuration's folder can't be watched");
                }
                std::thread::sleep(RETRY);
            }
        }
    }
}

/// Watches the folder of the file, and that of what it is a link to.
fn watch(path: &Path) -> io::Result<Watch> {
    let watch = Watch::new()?;
    let folder = |path: &Path| match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    watch.add(&folder(path))?;
    if let Ok(target) = path.canonicalize() {
        watch.add(&folder(&target))?;
    }
    Ok(watch)
}

/// Waits until something has happened, and then until nothing does any more.
fn come_to_rest(watch: &Watch) -> io::Result<()> {
    while !watch.wait(None)? {}
    let begun = Instant::now();
    while begun.elapsed() < UNREST_MAX && watch.wait(Some(REST))? {}
    Ok(())
}
