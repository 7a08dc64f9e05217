//! A [`Config`] as YAML: every key, in the order of the contract, secrets masked.

use std::fmt::{Display, Write};
use std::path::Path;

use super::{
    Access, AccessLog, Allowlist, Cache, Config, Format, HeaderField, HeaderRule, Ktls, Level,
    Limits, Logging, PinRule, Proxy, Tls, Upstream, value,
};

const MASK: &str = "***";

pub(super) fn yaml(config: &Config) -> String {
    let mut out = Out::default();
    proxy(&mut out, &config.proxy);
    tls(&mut out, &config.tls);
    cache(&mut out, &config.cache);
    upstream(&mut out, &config.upstream);
    headers(&mut out, &config.headers);
    allowlist(&mut out, &config.allowlist);
    logging(&mut out, &config.logging);
    limits(&mut out, &config.limits);
    out.0
}

fn proxy(out: &mut Out, proxy: &Proxy) {
    out.section("proxy");
    out.list("bind", &proxy.bind);
    out.bare("port", proxy.port);
    out.text("api_bind", proxy.api_bind);
    out.bare("api_port", proxy.api_port);
    out.list("api_hosts", &proxy.api_hosts);
    out.text("api_token", proxy.api_token.as_ref().map_or("", |_| MASK));
    out.bare("workers", proxy.workers);
    out.list("allow_clients", &proxy.allow_clients);
    out.path("users", proxy.users.as_deref().unwrap_or(Path::new("")));
    out.list("deny_destinations", &proxy.deny_destinations);
    out.list("connect_ports", &proxy.connect_ports);
}

fn tls(out: &mut Out, tls: &Tls) {
    out.section("tls");
    out.path("cert_dir", &tls.cert_dir);
    out.list("intercept", &tls.intercept);
    out.bare("constrain", tls.constrain);
    out.list("upstream_ca", tls.upstream_ca.iter().map(|path| path.display()));
    pins(out, &tls.pins);
    out.bare(
        "ktls",
        match tls.ktls {
            Ktls::Auto => "auto",
            Ktls::On => "\"on\"",
            Ktls::Off => "\"off\"",
        },
    );
}

fn pins(out: &mut Out, rules: &[PinRule]) {
    if rules.is_empty() {
        return out.bare("pins", "{}");
    }
    let _ = writeln!(out.0, "  pins:");
    for rule in rules {
        let keys: Vec<String> = rule.keys.iter().map(|pin| quote(&pin.to_string())).collect();
        let _ = writeln!(out.0, "    {}: [{}]", quote(rule.pattern.as_str()), keys.join(", "));
    }
}

fn cache(out: &mut Out, cache: &Cache) {
    out.section("cache");
    out.bare("enabled", cache.enabled);
    out.path("dir", &cache.dir);
    out.bare("max_size", cache.max_size);
    out.bare("min_free", value::size_text(cache.min_free));
    out.list("patterns", &cache.patterns);
    out.bare(
        "access",
        match cache.access {
            Access::Verify => "verify",
            Access::Trust => "trust",
        },
    );
}

fn upstream(out: &mut Out, upstream: &Upstream) {
    out.section("upstream");
    out.bare("connect_timeout", humantime::format_duration(upstream.connect_timeout));
    out.bare("read_timeout", humantime::format_duration(upstream.read_timeout));
    out.bare("retries", upstream.retries);
    let parent = upstream.proxy.as_ref().map(|parent| parent.masked());
    out.text("proxy", parent.unwrap_or_default());
    out.list("no_proxy", &upstream.no_proxy);
}

fn headers(out: &mut Out, rules: &[HeaderRule]) {
    if rules.is_empty() {
        out.0.push_str("headers: {}\n");
        return;
    }
    out.section("headers");
    for rule in rules {
        let _ = writeln!(out.0, "  {}:", quote(&rule.scope.to_string()));
        fields(out, "set", &rule.set);
        fields(out, "append", &rule.append);
    }
}

fn fields(out: &mut Out, key: &str, fields: &[HeaderField]) {
    if fields.is_empty() {
        let _ = writeln!(out.0, "    {key}: {{}}");
        return;
    }
    let _ = writeln!(out.0, "    {key}:");
    for field in fields {
        let value = if field.is_credential() { MASK } else { field.value.expose() };
        let _ = writeln!(out.0, "      {}: {}", quote(&field.name), quote(value));
    }
}

fn allowlist(out: &mut Out, allowlist: &Allowlist) {
    out.section("allowlist");
    out.bare("enabled", allowlist.enabled);
    out.list("domains", &allowlist.domains);
    out.list("ips", &allowlist.ips);
}

fn logging(out: &mut Out, logging: &Logging) {
    out.section("logging");
    out.bare("level", logging.level.as_str());
    out.bare(
        "format",
        match logging.format {
            Format::Text => "text",
            Format::Json => "json",
        },
    );
    out.path("file", logging.file.as_deref().unwrap_or(Path::new("")));
    out.bare(
        "access",
        match logging.access {
            AccessLog::On => "on",
            AccessLog::Errors => "errors",
            AccessLog::Off => "off",
        },
    );
    out.bare("max_size", value::size_text(logging.max_size));
    out.bare("keep", logging.keep);
}

fn limits(out: &mut Out, limits: &Limits) {
    out.section("limits");
    out.bare("header_size", value::size_text(limits.header_size as u64));
    out.bare("header_timeout", humantime::format_duration(limits.header_timeout));
    out.bare("idle_timeout", humantime::format_duration(limits.idle_timeout));
    out.bare("max_connections", limits.max_connections);
    out.bare("max_connections_per_client", limits.max_connections_per_client);
    out.bare("max_requests_per_connection", limits.max_requests_per_connection);
    out.bare("max_admin_connections", limits.max_admin_connections);
    out.bare("max_fills", limits.max_fills);
    out.bare("max_redirects", limits.max_redirects);
    out.bare("shutdown_grace", humantime::format_duration(limits.shutdown_grace));
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

/// Lines of block YAML, two levels deep. Writing to a `String` cannot fail.
#[derive(Default)]
struct Out(String);

impl Out {
    fn section(&mut self, name: &str) {
        let _ = writeln!(self.0, "{name}:");
    }

    /// A value that reads the same with and without quotes.
    fn bare(&mut self, key: &str, value: impl Display) {
        let _ = writeln!(self.0, "  {key}: {value}");
    }

    fn text(&mut self, key: &str, value: impl Display) {
        let _ = writeln!(self.0, "  {key}: {}", quote(&value.to_string()));
    }

    fn path(&mut self, key: &str, path: &Path) {
        self.text(key, path.display());
    }

    fn list(&mut self, key: &str, items: impl IntoIterator<Item = impl Display>) {
        let mut items = items.into_iter().peekable();
        if items.peek().is_none() {
            let _ = writeln!(self.0, "  {key}: []");
            return;
        }
        let _ = writeln!(self.0, "  {key}:");
        for item in items {
            let _ = writeln!(self.0, "    - {}", quote(&item.to_string()));
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
