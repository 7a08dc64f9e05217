//! The configuration: what the YAML file and the environment say, checked and typed.
//!
//! `tree` reads YAML to nodes that know their lines, `read` turns nodes and variables into a
//! [`Config`], `value` holds the checks of single values, `print` writes a `Config` back as YAML,
//! `change` makes one configuration of another, `source` knows where it comes from. Nothing outside
//! this folder sees YAML.
//!
//! Words: a *key* is the dotted path of a setting (`limits.header_size`), a *place* is where the
//! key was written (a line of the file, a variable, or nowhere: the default).
//!
//! What must stay true: a `Config` that exists has passed every check but the compilation of
//! regular expressions, which is the policy's; secrets never appear in `Debug`
//! output, in [`Config::to_yaml`] or in an error.

mod at;
mod change;
mod defaults;
mod error;
mod header;
mod parent;
mod pattern;
mod pin;
mod ports;
mod print;
mod read;
mod source;
mod tree;
mod value;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;
use zeroize::Zeroizing;

pub use change::{FILE_ALONE, RESTART, differences};
pub use error::ConfigError;
use error::Places;
pub use header::{HeaderField, HeaderRule, HeaderScope};
pub use parent::{Credentials, Direct, ParentProxy};
pub use pattern::HostPattern;
pub use pin::Pin;
pub use ports::Ports;
pub use source::Source;

/// Where the configuration is looked for when nothing names a file.
pub const DEFAULT_FILE: &str = "config.yaml";

/// The whole configuration as it takes effect. Field names are the YAML keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// Listeners and who may use them.
    pub proxy: Proxy,
    /// Interception and trust.
    pub tls: Tls,
    /// What is stored, where, and how much of it.
    pub cache: Cache,
    /// How upstreams are reached.
    pub upstream: Upstream,
    /// Header rules in the order of the file; no two have the same scope.
    pub headers: Vec<HeaderRule>,
    /// Which hosts may be reached at all.
    pub allowlist: Allowlist,
    /// Log output.
    pub logging: Logging,
    /// Bounds on what one peer may take.
    pub limits: Limits,
    /// Where each key was written, for errors. Counts for nothing in comparisons.
    pub places: Places,
}

impl Config {
    /// Reads the file, then the environment over it.
    ///
    /// The file is `file`, else the one `CONFIG_FILE` names, else `./config.yaml` where that
    /// exists. `env` gives a variable's value; an empty value counts as not set.
    ///
    /// # Errors
    /// A file that was named and cannot be read, text that is not YAML, an unknown or repeated
    /// key, a value out of range: the first such fault, in the order of the file.
    pub fn load(
        file: Option<&Path>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Config, ConfigError> {
        read::load(file, &env)
    }

    /// Reads a configuration from YAML text; `name` stands before the line number in errors.
    ///
    /// # Errors
    /// As for [`Config::load`], without the environment.
    pub fn parse(name: &str, yaml: &str) -> Result<Config, ConfigError> {
        read::parse(name, yaml, &|_| None)
    }

    /// The configuration as YAML, every key, secrets masked as `***`. Reads back as a valid
    /// configuration that differs only where a secret was masked.
    pub fn to_yaml(&self) -> String {
        print::yaml(self)
    }

    /// The same for JSON.
    pub fn shown(&self) -> impl Serialize {
        print::json(self)
    }

    /// This configuration with a document over it: a JSON Merge Patch (RFC 7396), written as JSON
    /// or YAML. `null` takes a key back to its default, lists are replaced, mappings merged; hosts
    /// and header names count by what they mean, not by how they are spelt.
    ///
    /// # Errors
    /// As for [`Config::parse`].
    pub fn patched(&self, document: &str) -> Result<Config, ConfigError> {
        change::patched(self, document)
    }

    /// What of this configuration a process can take over that runs with `running`: the keys of
    /// [`RESTART`] stay as they are. With those of them that differ.
    ///
    /// # Errors
    /// Keys that do not go together.
    pub fn beside(self, running: &Config) -> Result<(Config, Vec<&'static str>), ConfigError> {
        change::beside(self, running)
    }

    /// The hosts whose TLS is opened.
    pub fn intercepted(&self) -> impl Iterator<Item = &HostPattern> {
        // A rule for requests without TLS gives no reason to open any.
        let over_tls = self.headers.iter().filter(|rule| rule.scope.plain.is_none());
        self.tls.intercept.iter().chain(over_tls.map(|rule| &rule.scope.pattern))
    }

    /// An error about `key`, with the place where the key was written, for checks that are made
    /// outside this module (a pattern that does not compile, a port that is taken).
    pub fn error(&self, key: &str, found: &str, expected: &str) -> ConfigError {
        self.places.error(key, found, expected)
    }
}

/// Key `proxy`.
#[derive(Clone, Debug, PartialEq)]
pub struct Proxy {
    /// Addresses the proxy listens on; at least one.
    pub bind: Vec<IpAddr>,
    /// Port of the proxy; 0 means any free one.
    pub port: u16,
    /// Address of the admin listener.
    pub api_bind: IpAddr,
    /// Port of the admin listener; 0 means any free one.
    pub api_port: u16,
    /// Further host names of the admin listener, lower case, without port.
    pub api_hosts: Vec<String>,
    /// Bearer token the admin listener wants, if any.
    pub api_token: Option<Secret>,
    /// Worker threads, at most 1024; 0 means one per core.
    pub workers: usize,
    /// Networks whose clients are served.
    pub allow_clients: Vec<IpNet>,
    /// The file of users and hashes of their passwords, if clients are asked for them.
    pub users: Option<PathBuf>,
    /// Networks no connection is made to.
    pub deny_destinations: Vec<IpNet>,
    /// Ports that a CONNECT, a whole URL or a redirect may lead to; plain HTTP also to 80.
    pub connect_ports: Vec<Ports>,
    /// Whether the file is read again whenever it changes.
    pub watch_config: bool,
}

/// Key `tls`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    /// Folder of `ca.crt` and `ca.key`.
    pub cert_dir: PathBuf,
    /// Hosts whose TLS is opened, beside those under `headers`.
    pub intercept: Vec<HostPattern>,
    /// Whether the CA may sign for those hosts alone.
    pub constrain: bool,
    /// PEM files trusted beside the system's store.
    pub upstream_ca: Vec<PathBuf>,
    /// Hosts known by their certificate's key alone; no two have the same pattern.
    pub pins: Vec<PinRule>,
    /// Whether record encryption is handed to the kernel.
    pub ktls: Ktls,
}

/// One host pattern under `tls.pins`.
#[derive(Clone, Debug, PartialEq)]
pub struct PinRule {
    /// The hosts it is for.
    pub pattern: HostPattern,
    /// The keys their certificates may have; at least one.
    pub keys: Vec<Pin>,
}

/// Key `tls.ktls`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ktls {
    /// Where the kernel has it.
    Auto,
    /// Always; a kernel without it is an error.
    On,
    /// Never.
    Off,
}

/// Key `cache`.
#[derive(Clone, Debug, PartialEq)]
pub struct Cache {
    /// False: every request passes.
    pub enabled: bool,
    /// Folder of the entries.
    pub dir: PathBuf,
    /// Bytes of bodies stored at most; never 0.
    pub max_size: u64,
    /// Bytes of the file system left free.
    pub min_free: u64,
    /// Regular expressions on the URL's path, not yet compiled.
    pub patterns: Vec<String>,
    /// Who may have a stored private image.
    pub access: Access,
}

/// Key `cache.access`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Those to whom upstream would give it.
    Verify,
    /// Every client.
    Trust,
}

/// Key `upstream`.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// For one connection attempt, name resolution and TLS included.
    pub connect_timeout: Duration,
    /// Without one byte of progress.
    pub read_timeout: Duration,
    /// Resumptions of one fill.
    pub retries: u32,
    /// A parent HTTP proxy.
    pub proxy: Option<ParentProxy>,
    /// What is reached without the parent proxy.
    pub no_proxy: Vec<Direct>,
}

/// Key `allowlist`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Allowlist {
    /// False: every host is allowed.
    pub enabled: bool,
    /// Hosts that are allowed.
    pub domains: Vec<HostPattern>,
    /// Networks that are allowed.
    pub ips: Vec<IpNet>,
}

/// Key `logging`.
#[derive(Clone, Debug, PartialEq)]
pub struct Logging {
    /// The least severe level that is written.
    pub level: Level,
    /// Lines for people or for machines.
    pub format: Format,
    /// The file; `None` is standard output.
    pub file: Option<PathBuf>,
    /// Which requests get a line.
    pub access: AccessLog,
    /// Bytes at which the file is put aside for a new one; 0: never.
    pub max_size: u64,
    /// Files put aside that are kept.
    pub keep: u32,
}

/// Key `logging.access`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// All of them.
    On,
    /// Those that were refused, failed or broke off.
    Errors,
    /// None.
    Off,
}

/// Key `logging.level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Errors alone.
    Error,
    /// And warnings.
    Warn,
    /// And one line a request.
    Info,
    /// And what led to it.
    Debug,
    /// And everything else.
    Trace,
}

/// Key `logging.format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Key `limits`.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Bytes of a request or response head, 1 KiB to 1 MiB.
    pub header_size: usize,
    /// For a whole request head, from its first byte.
    pub header_timeout: Duration,
    /// For a connection between requests, and for a tunnel without traffic.
    pub idle_timeout: Duration,
    /// Client connections at once.
    pub max_connections: usize,
    /// Of these, those of one client.
    pub max_connections_per_client: usize,
    /// Requests on one client connection, or in one opened tunnel.
    pub max_requests_per_connection: usize,
    /// Connections to the admin listener at once.
    pub max_admin_connections: usize,
    /// Fills at once; beyond them candidates pass uncached.
    pub max_fills: usize,
    /// Redirects followed for one request; 0 follows none.
    pub max_redirects: u32,
    /// How long running transfers may go on after SIGTERM; 0 ends them at once.
    pub shutdown_grace: Duration,
}

/// Text that is not to be shown: `Debug` prints `***`. Its memory is overwritten before it is given
/// back.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(Zeroizing::new(text.into()))
    }

    /// The text itself: for use on the wire or in a comparison, never for output.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
