//! A [`Config`] as it is shown: every key, in the order of the contract, secrets masked; as YAML
//! and as JSON.

use std::fmt::{Display, Write};
use std::path::Path;

use serde::{Serialize, Serializer};

use super::{
    Access, AccessLog, Allowlist, Cache, Config, Format, HeaderField, HeaderRule, Ktls, Level,
    Limits, Logging, PinRule, Proxy, Tls, Upstream, value,
};

/// What stands for a secret.
pub(super) const MASK: &str = "***";

/// A value as it is shown.
#[derive(PartialEq)]
pub(super) enum Shown {
    Flag(bool),
    Number(u64),
    /// Reads the same with and without quotes in YAML.
    Word(String),
    Text(String),
    List(Vec<Shown>),
    /// In the order of the contract, or of the file.
    Map(Vec<(String, Shown)>),
}

/// The sections.
pub(super) fn sections(config: &Config) -> Vec<(String, Shown)> {
    let section = |name: &str, keys: Out| (name.to_owned(), Shown::Map(keys.0));
    vec![
        section("proxy", proxy(&config.proxy)),
        section("tls", tls(&config.tls)),
        section("cache", cache(&config.cache)),
        section("upstream", upstream(&config.upstream)),
        section("headers", headers(&config.headers)),
        section("allowlist", allowlist(&config.allowlist)),
        section("logging", logging(&config.logging)),
        section("limits", limits(&config.limits)),
    ]
}

pub(super) fn yaml(config: &Config) -> String {
    let mut text = String::new();
    write_map(&mut text, &sections(config), 0);
    text
}

pub(super) fn json(config: &Config) -> impl Serialize {
    Shown::Map(sections(config))
}

fn proxy(proxy: &Proxy) -> Out {
    let mut out = Out::default();
    out.list("bind", &proxy.bind);
    out.number("port", proxy.port.into());
    out.text("api_bind", proxy.api_bind);
    out.number("api_port", proxy.api_port.into());
    out.list("api_hosts", &proxy.api_hosts);
    out.text("api_token", proxy.api_token.as_ref().map_or("", |_| MASK));
    out.number("workers", proxy.workers as u64);
    out.list("allow_clients", &proxy.allow_clients);
    out.path("users", proxy.users.as_deref().unwrap_or(Path::new("")));
    out.list("deny_destinations", &proxy.deny_destinations);
    out.list("connect_ports", &proxy.connect_ports);
    out.flag("watch_config", proxy.watch_config);
    out
}

fn tls(tls: &Tls) -> Out {
    let mut out = Out::default();
    out.path("cert_dir", &tls.cert_dir);
    out.list("intercept", &tls.intercept);
    out.flag("constrain", tls.constrain);
    out.list("upstream_ca", tls.upstream_ca.iter().map(|path| path.display()));
    out.put("pins", pins(&tls.pins));
    match tls.ktls {
        Ktls::Auto => out.word("ktls", "auto"),
        Ktls::On => out.text("ktls", "on"),
        Ktls::Off => out.text("ktls", "off"),
    }
    out
}

fn pins(rules: &[PinRule]) -> Shown {
    let rule = |rule: &PinRule| (rule.pattern.to_string(), list(&rule.keys));
    Shown::Map(rules.iter().map(rule).collect())
}

fn cache(cache: &Cache) -> Out {
    let mut out = Out::default();
    out.flag("enabled", cache.enabled);
    out.path("dir", &cache.dir);
    out.number("max_size", cache.max_size);
    out.word("min_free", value::size_text(cache.min_free));
    out.list("patterns", &cache.patterns);
    let access = match cache.access {
        Access::Verify => "verify",
        Access::Trust => "trust",
    };
    out.word("access", access);
    out
}

fn upstream(upstream: &Upstream) -> Out {
    let mut out = Out::default();
    out.word("connect_timeout", humantime::format_duration(upstream.connect_timeout));
    out.word("read_timeout", humantime::format_duration(upstream.read_timeout));
    out.number("retries", upstream.retries.into());
    let parent = upstream.proxy.as_ref().map(|parent| parent.masked());
    out.text("proxy", parent.unwrap_or_default());
    out.list("no_proxy", &upstream.no_proxy);
    out
}

fn headers(rules: &[HeaderRule]) -> Out {
    let mut out = Out::default();
    for rule in rules {
        let both = [("set", fields(&rule.set)), ("append", fields(&rule.append))];
        let both = both.map(|(key, fields)| (key.to_owned(), fields));
        out.put(&rule.scope.to_string(), Shown::Map(both.into()));
    }
    out
}

fn fields(fields: &[HeaderField]) -> Shown {
    let field = |field: &HeaderField| {
        let value = if field.is_credential() { MASK } else { field.value.expose() };
        (field.name.clone(), Shown::Text(value.to_owned()))
    };
    Shown::Map(fields.iter().map(field).collect())
}

fn allowlist(allowlist: &Allowlist) -> Out {
    let mut out = Out::default();
    out.flag("enabled", allowlist.enabled);
    out.list("domains", &allowlist.domains);
    out.list("ips", &allowlist.ips);
    out
}

fn logging(logging: &Logging) -> Out {
    let mut out = Out::default();
    out.word("level", logging.level.as_str());
    let format = match logging.format {
        Format::Text => "text",
        Format::Json => "json",
    };
    out.word("format", format);
    out.path("file", logging.file.as_deref().unwrap_or(Path::new("")));
    let access = match logging.access {
        AccessLog::On => "on",
        AccessLog::Errors => "errors",
        AccessLog::Off => "off",
    };
    out.word("access", access);
    out.word("max_size", value::size_text(logging.max_size));
    out.number("keep", logging.keep.into());
    out
}

fn limits(limits: &Limits) -> Out {
    let mut out = Out::default();
    out.word("header_size", value::size_text(limits.header_size as u64));
    out.word("header_timeout", humantime::format_duration(limits.header_timeout));
    out.word("idle_timeout", humantime::format_duration(limits.idle_timeout));
    out.number("max_connections", limits.max_connections as u64);
    out.number("max_connections_per_client", limits.max_connections_per_client as u64);
    out.number("max_requests_per_connection", limits.max_requests_per_connection as u64);
    out.number("max_admin_connections", limits.max_admin_connections as u64);
    out.number("max_fills", limits.max_fills as u64);
    out.number("max_redirects", limits.max_redirects.into());
    out.word("shutdown_grace", humantime::format_duration(limits.shutdown_grace));
    out
}

impl Level {
    /// The level as the file has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
            Level::Trace => "trace",
        }
    }
}

/// The keys of a section.
#[derive(Default)]
struct Out(Vec<(String, Shown)>);

impl Out {
    fn put(&mut self, key: &str, value: Shown) {
        self.0.push((key.to_owned(), value));
    }

    fn flag(&mut self, key: &str, value: bool) {
        self.put(key, Shown::Flag(value));
    }

    fn number(&mut self, key: &str, value: u64) {
        self.put(key, Shown::Number(value));
    }

    fn word(&mut self, key: &str, value: impl Display) {
        self.put(key, Shown::Word(value.to_string()));
    }

    fn text(&mut self, key: &str, value: impl Display) {
        self.put(key, Shown::Text(value.to_string()));
    }

    fn path(&mut self, key: &str, path: &Path) {
        self.text(key, path.display());
    }

    fn list(&mut self, key: &str, items: impl IntoIterator<Item = impl Display>) {
        self.put(key, list(items));
    }
}

fn list(items: impl IntoIterator<Item = impl Display>) -> Shown {
    Shown::List(items.into_iter().map(|item| Shown::Text(item.to_string())).collect())
}

/// Lines of block YAML. Writing to a `String` cannot fail.
fn write_map(out: &mut String, entries: &[(String, Shown)], depth: usize) {
    let indent = "  ".repeat(depth);
    for (key, value) in entries {
        // Those that are no names of ours may hold anything.
        let key = match key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
            true => key.clone(),
            false => quote(key),
        };
        match value {
            Shown::Map(entries) if !entries.is_empty() => {
                let _ = writeln!(out, "{indent}{key}:");
                write_map(out, entries, depth + 1);
            }
            Shown::List(items) if !items.is_empty() => {
                let _ = writeln!(out, "{indent}{key}:");
                for item in items {
                    let _ = writeln!(out, "{indent}  - {}", scalar(item));
                }
            }
            value => {
                let _ = writeln!(out, "{indent}{key}: {}", scalar(value));
            }
        }
    }
}

/// A value that stands on one line.
fn scalar(value: &Shown) -> String {
    match value {
        Shown::Flag(flag) => flag.to_string(),
        Shown::Number(number) => number.to_string(),
        Shown::Word(word) => word.clone(),
        Shown::Text(text) => quote(text),
        Shown::List(_) => "[]".to_owned(),
        Shown::Map(_) => "{}".to_owned(),
    }
}

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Shown::Flag(flag) => to.serialize_bool(*flag),
            Shown::Number(number) => to.serialize_u64(*number),
            Shown::Word(text) | Shown::Text(text) => to.serialize_str(text),
            Shown::List(items) => to.collect_seq(items),
            Shown::Map(entries) => to.collect_map(entries.iter().map(|(key, value)| (key, value))),
        }
    }
}

/// A double-quoted scalar (YAML 1.2.2 7.3.1), which can hold any text.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            c => {
                let _ = write!(out, "\\U{:08x}", u32::from(c));
            }
        }
    }
    out.push('"');
    out
}
