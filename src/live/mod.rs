//! The configuration in force, and how another one takes its place while the proxy runs.
//!
//! Words: what is *filed* is what the file and the environment say, as they were read last; what is
//! *in force* is that, with the patches since; *settings* are a configuration with what was made
//! of it.
//!
//! # How it changes
//!
//! - **Reload** ([`Live::reload`]: SIGHUP, `POST /api/config/reload`): the file is read again, the
//!   environment stands over it, and what comes of it takes the place of what is in force, patches
//!   included. The files that it names (`proxy.users`, `tls.upstream_ca`) are read again, too.
//! - **Follow** ([`Live::follow`]: `proxy.watch_config`): the same, if the file says something else
//!   than it did. A file that was only touched leaves patches in force.
//! - **Patch** ([`Live::patch`]: `PATCH /api/config`): a document over what is in force
//!   ([`Config::patched`]), for the time being: the next reload or restart ends it.
//!
//! # What must stay true
//!
//! - All or nothing: a configuration and the files it names are read, checked and compiled as a
//!   whole before any of it counts. What does not pass changes nothing.
//! - One change at a time, each made of the one before it: two patches side by side are both in
//!   force.
//! - Settings never change. Each core makes a worker of them ([`Desk`](crate::proxy::Desk)); a
//!   request keeps the one it began with, and a fill the bounds. The next request on the same
//!   connection has the new one; a client that may not come any more is refused there. Tunnels that
//!   are relayed, and transfers, go on to their end.
//! - The keys of [`RESTART`] are settled at the start: a reload leaves them and says so, a patch
//!   that would change one is refused, as is one that would change any of [`FILE_ALONE`].

mod watch;

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use thiserror::Error;

use crate::config::{Config, ConfigError, FILE_ALONE, RESTART, Source, differences};
use crate::http::Host;
use crate::net::{Pinned, TlsSetup, client_config};
use crate::policy::Policy;
use crate::proxy::{Generation, Users, refuse_own_parent};
use crate::sys::sync::lock;

/// A configuration with what was made of it.
pub struct Settings {
    /// The configuration.
    pub config: Arc<Config>,
    /// Its rules.
    pub policy: Policy,
    /// How TLS is spoken with upstreams.
    pub tls: Arc<TlsSetup>,
    /// The users, where there are any.
    pub users: Option<Arc<Users>>,
}

/// What a change came to.
#[derive(Debug)]
pub struct Change {
    /// Keys whose values are others than before.
    pub changed: Vec<String>,
    /// Keys that the file has other values for, which count from the next start on.
    pub restart: Vec<&'static str>,
}

/// Why a patch is not taken.
#[derive(Debug, Error)]
pub enum Refused {
    /// The document is wrong.
    #[error("{0}")]
    Document(#[from] ConfigError),
    /// It would change what is settled at the start.
    #[error("{}: not while the proxy runs: edit the file and restart", .0.join(", "))]
    Restart(Vec<&'static str>),
    /// It would change what is the file's.
    #[error("{}: not by a patch: edit the file and reload", .0.join(", "))]
    FileAlone(Vec<&'static str>),
}

type Apply = Box<dyn Fn(&Config, &Config) + Send + Sync>;

/// The configuration in force; shared by all threads.
pub struct Live {
    source: Source,
    generation: Generation,
    settings: Mutex<Arc<Settings>>,
    /// What is filed; held while another configuration is made.
    filed: Mutex<Arc<Config>>,
    apply: Apply,
}

impl Settings {
    /// Makes them of a configuration.
    ///
    /// # Errors
    /// What no check of a single key finds.
    pub fn compile(config: Config) -> Result<Settings, ConfigError> {
        Settings::following(config, None, None)
    }

    /// `users`, `tls`: those that still count.
    fn following(
        config: Config,
        users: Option<Arc<Users>>,
        tls: Option<Arc<TlsSetup>>,
    ) -> Result<Settings, ConfigError> {
        let policy = Policy::compile(&config)?;
        refuse_own_parent(&config)?;
        let tls = match tls {
            Some(tls) => tls,
            None => Arc::new(upstream_tls(&config, &policy)?),
        };
        let users = match users {
            Some(users) => Some(users),
            None => Users::open(&config)?.map(Arc::new),
        };
        Ok(Settings { config: Arc::new(config), policy, tls, users })
    }
}

impl Live {
    /// `settings`: what `source` says. `apply`: has everything that is no core's own take a
    /// configuration over, given the one before.
    pub fn new(
        source: Source,
        settings: Settings,
        apply: impl Fn(&Config, &Config) + Send + Sync + 'static,
    ) -> Live {
        let filed = Mutex::new(Arc::clone(&settings.config));
        let settings = Mutex::new(Arc::new(settings));
        Live { source, generation: Generation::default(), settings, filed, apply: Box::new(apply) }
    }

    /// Counts the changes.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// What is in force.
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(&lock(&self.settings))
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.settings().config)
    }

    /// Reads the configuration and the files it names again. Blocks.
    ///
    /// # Errors
    /// Why nothing has changed.
    pub fn reload(&self) -> Result<Change, ConfigError> {
        let mut filed = lock(&self.filed);
        let read = self.source.reload(&filed);
        self.take_over(read, &mut filed).inspect_err(say_refused)
    }

    /// Reads the configuration again if it says something else than before. Blocks.
    ///
    /// # Errors
    /// As for [`Live::reload`]; the log has not been told.
    pub fn follow(&self) -> Result<Option<Change>, ConfigError> {
        let mut filed = lock(&self.filed);
        let read = self.source.reload(&filed)?;
        if read == **filed {
            tracing::debug!("the configuration's file says what it did");
            return Ok(None);
        }
        self.take_over(Ok(read), &mut filed).map(Some)
    }

    /// Puts a document over what is in force. Blocks.
    ///
    /// # Errors
    /// Why nothing has changed.
    pub fn patch(&self, document: &str) -> Result<Change, Refused> {
        let _one_at_a_time = lock(&self.filed);
        let before = self.settings();
        let config = before.config.patched(document)?;
        let changed = differences(&before.config, &config);
        let among = |keys: &[&'static str]| -> Vec<&'static str> {
            keys.iter().copied().filter(|key| changed.iter().any(|other| other == key)).collect()
        };
        match (among(RESTART), among(FILE_ALONE)) {
            (keys, _) if !keys.is_empty() => return Err(Refused::Restart(keys)),
            (_, keys) if !keys.is_empty() => return Err(Refused::FileAlone(keys)),
            _ => {}
        }
        let (users, tls) = (before.users.clone(), Arc::clone(&before.tls));
        let settings = Settings::following(config, users, Some(tls))?;
        let change = Change { changed, restart: Vec::new() };
        self.put_in_force(settings);
        tracing::info!(changed = %change, "configuration patched until the next reload or restart");
        Ok(change)
    }

    fn take_over(
        &self,
        read: Result<Config, ConfigError>,
        filed: &mut Arc<Config>,
    ) -> Result<Change, ConfigError> {
        let (read, before) = (read?, self.settings());
        let (config, restart) = read.clone().beside(&before.config)?;
        let changed = differences(&before.config, &config);
        let same_users = config.proxy.users == before.config.proxy.users;
        let users = before.users.clone().filter(|_| same_users);
        let reread = match &users {
            Some(users) => Some((Arc::clone(users), Users::read_again(&config)?)),
            None => None,
        };
        let settings = Settings::following(config, users, None)?;
        let change = Change { changed, restart };
        self.put_in_force(settings);
        if let Some((users, reread)) = reread {
            users.replace(reread);
        }
        *filed = Arc::new(read);
        tracing::info!(changed = %change, "configuration read");
        if !change.restart.is_empty() {
            let keys = change.restart.join(",");
            tracing::warn!(keys, "configuration: these keys count from the next restart on");
        }
        Ok(change)
    }

    fn put_in_force(&self, settings: Settings) {
        let before = self.settings();
        (self.apply)(&before.config, &settings.config);
        *lock(&self.settings) = Arc::new(settings);
        self.generation.fetch_add(1, Ordering::Release);
    }
}

/// The keys that changed.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.changed.is_empty() {
            true => f.write_str("nothing"),
            false => f.write_str(&self.changed.join(",")),
        }
    }
}

/// How TLS is spoken with upstreams; reads the files of `tls.upstream_ca`.
///
/// # Errors
/// Names the file.
pub fn upstream_tls(config: &Config, policy: &Policy) -> Result<TlsSetup, ConfigError> {
    let pins = policy.clone();
    let pinned: Pinned = Arc::new(move |host: &Host, key: &[u8]| pins.pinned(host, key));
    let pinned = policy.has_pins().then_some(pinned);
    client_config(&config.tls.upstream_ca, pinned).map_err(|(n, why)| {
        config.error(&format!("tls.upstream_ca[{n}]"), &why, "a file of PEM certificates")
    })
}

fn say_refused(error: &ConfigError) {
    tracing::error!(%error, "the configuration stays as it was");
}
