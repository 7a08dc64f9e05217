//! From nodes and environment variables to a [`Config`]: every key by name, every value checked.
//!
//! A section left empty (`limits:` with nothing below it) is the defaults; a key left empty is
//! refused, since it could mean "none" as well as "the default".

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;

use zeroize::Zeroizing;

use super::at::At;
use super::error::{ConfigError, Place, Places, quoted};
use super::pattern::{self, HostPattern};
use super::tree::{self, Entry, Node, Value};
use super::{
    Access, AccessLog, Allowlist, Cache, Config, DEFAULT_FILE, Format, HeaderField, HeaderRule,
    Ktls, Level, Limits, Logging, PinRule, Proxy, Secret, Tls, Upstream, header, parent, pin,
    ports, value,
};

/// A configuration larger than this is some other file.
const FILE_BYTES: u64 = 1 << 20;

/// A wait longer than this is a mistake; clocks can add it to any time.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Old log files beyond what anybody reads.
const KEEP: u32 = 1000;

/// Threads beyond any machine this runs on.
const WORKERS: usize = 1024;

/// Connections beyond what one machine serves.
const MANY: RangeInclusive<usize> = 1..=1_000_000;

/// Variables that stand over the file, and the keys they set.
const VARIABLES: &[(&str, &str)] = &[
    ("PROXY_PORT", "proxy.port"),
    ("API_PORT", "proxy.api_port"),
    ("CERT_DIR", "tls.cert_dir"),
    ("LOG_LEVEL", "logging.level"),
    ("LOG_FORMAT", "logging.format"),
];

/// The keys of each section, in the order of the contract.
pub(super) const SECTIONS: &[(&str, &[&str])] = &[
    (
        "proxy",
        &[
            "bind",
            "port",
            "api_bind",
            "api_port",
            "api_hosts",
            "api_token",
            "workers",
            "allow_clients",
            "users",
            "deny_destinations",
            "connect_ports",
            "watch_config",
        ],
    ),
    ("tls", &["cert_dir", "intercept", "constrain", "upstream_ca", "pins", "ktls"]),
    ("cache", &["enabled", "dir", "max_size", "min_free", "patterns", "access"]),
    ("upstream", &["connect_timeout", "read_timeout", "retries", "proxy", "no_proxy"]),
    ("headers", &[]),
    ("allowlist", &["enabled", "domains", "ips"]),
    ("logging", &["level", "format", "file", "access", "max_size", "keep"]),
    (
        "limits",
        &[
            "header_size",
            "header_timeout",
            "idle_timeout",
            "max_connections",
            "max_connections_per_client",
            "max_requests_per_connection",
            "max_admin_connections",
            "max_fills",
            "max_redirects",
            "shutdown_grace",
        ],
    ),
];

type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

pub(super) fn load(file: Option<&Path>, env: Env) -> Result<Config, ConfigError> {
    let variable = |name: &str| env(name).filter(|value| !value.is_empty());
    let (path, origin) = find(file, &variable);
    let yaml = read_file(&path, origin)?;
    parse(&path.to_string_lossy(), &yaml, &variable)
}

/// The file that is read, and who says so.
pub(super) fn find(file: Option<&Path>, variable: Env) -> (PathBuf, Origin) {
    match (file, variable("CONFIG_FILE")) {
        (Some(path), _) => (path.to_owned(), Origin::Argument),
        (None, Some(path)) => (PathBuf::from(path), Origin::Variable),
        (None, None) => (PathBuf::from(DEFAULT_FILE), Origin::Default),
    }
}

pub(super) fn parse(name: &str, yaml: &str, env: Env) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    let mut places = Places::default();
    if let Some(node) = &root(name, yaml)? {
        let root = At::line(name, "", node.line, node);
        sections(&mut config, &mut places, &root)?;
    }
    for (variable, key) in VARIABLES {
        if let Some(text) = env(variable) {
            let node = Node { line: 0, value: Value::Text(text.into()) };
            let at = At { place: Place::Variable(variable), key: (*key).to_owned(), node: &node };
            places.note(key, at.place.clone());
            let (section, key) = key.split_once('.').unwrap_or_default();
            set(&mut config, section, key, &at)?;
        }
    }
    config.places = places;
    check_whole(&config)?;
    Ok(config)
}

/// The document; `None` where the text holds nothing but comments.
pub(super) fn root(name: &str, yaml: &str) -> Result<Option<Rc<Node>>, ConfigError> {
    tree::parse(yaml).map_err(|fault| {
        let place = match fault.line {
            0 => Place::File(name.to_owned()),
            line => Place::Line(name.to_owned(), line),
        };
        ConfigError::new(place, &fault.key, &fault.found, fault.expected)
    })
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Origin {
    Argument,
    Variable,
    Default,
}

/// The text is overwritten when it has been read: it may hold secrets.
fn read_file(path: &Path, origin: Origin) -> Result<Zeroizing<String>, ConfigError> {
    let fail = |found: String, expected: &str| {
        let shown = path.to_string_lossy().into_owned();
        match origin {
            Origin::Variable => {
                let found = format!("{shown:?}, {found}");
                ConfigError::new(Place::Variable("CONFIG_FILE"), "", &found, expected)
            }
            _ => ConfigError::new(Place::File(shown), "", &found, expected),
        }
    };
    let mut bytes = Zeroizing::new(Vec::new());
    let read = File::open(path)
        .and_then(|file| {
            // Room for all of it, or the vector leaves copies behind as it grows.
            let len = file.metadata()?.len().min(FILE_BYTES);
            bytes.reserve_exact(len as usize + 1);
            file.take(FILE_BYTES + 1).read_to_end(&mut bytes)
        })
        .map(|len| len as u64);
    match read {
        Err(error) if origin == Origin::Default && error.kind() == ErrorKind::NotFound => {
            return Ok(Zeroizing::default());
        }
        Err(error) => {
            return Err(fail(format!("no readable file ({error})"), "a YAML file"));
        }
        Ok(len) if len > FILE_BYTES => {
            return Err(fail("more than 1 MiB".to_owned(), "a YAML file of at most 1 MiB"));
        }
        Ok(_) => {}
    }
    String::from_utf8(std::mem::take(&mut *bytes)).map(Zeroizing::new).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        let line = error.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1;
        fail(format!("bytes on line {line} that are not UTF-8"), "a YAML file in UTF-8")
    })
}

fn sections(config: &mut Config, places: &mut Places, root: &At) -> Result<(), ConfigError> {
    let names: Vec<&str> = SECTIONS.iter().map(|(name, _)| *name).collect();
    for entry in root.section()? {
        let at = root.below(entry);
        match SECTIONS.iter().find(|(name, _)| *name == entry.key) {
            None => return Err(at.unknown(&names)),
            Some(("headers", _)) => config.headers = headers(&at, places)?,
            Some((section, keys)) => {
                for entry in at.section()? {
                    let at = at.below(entry);
                    if !keys.contains(&entry.key.as_str()) {
                        return Err(at.unknown(keys));
                    }
                    note(places, &at);
                    set(config, section, &entry.key, &at)?;
                }
            }
        }
    }
    Ok(())
}

/// Notes where a key and the items of its list were written.
pub(super) fn note(places: &mut Places, at: &At) {
    places.note(&at.key, at.place.clone());
    at.items().for_each(|item| places.note(&item.key, item.place));
}

/// Sets one key.
pub(super) fn set(
    config: &mut Config,
    section: &str,
    key: &str,
    at: &At,
) -> Result<(), ConfigError> {
    match section {
        "proxy" => proxy(&mut config.proxy, key, at),
        "tls" => tls(&mut config.tls, key, at),
        "cache" => cache(&mut config.cache, key, at),
        "upstream" => upstream(&mut config.upstream, key, at),
        "allowlist" => allowlist(&mut config.allowlist, key, at),
        "logging" => logging(&mut config.logging, key, at),
        _ => limits(&mut config.limits, key, at),
    }
}

fn proxy(out: &mut Proxy, key: &str, at: &At) -> Result<(), ConfigError> {
    const ADDRESS: &str = "an IP address such as 0.0.0.0 or ::";
    let address = |at: &At| at.parsed(ADDRESS, |text| text.parse().ok());
    match key {
        "bind" => {
            out.bind = match at.node.value {
                Value::List(_) => at.list(address)?,
                _ => vec![address(at)?],
            };
            if out.bind.is_empty() {
                return Err(at.error("an empty list", ADDRESS));
            }
        }
        "port" => out.port = at.number(0..=u16::MAX)?,
        "api_bind" => out.api_bind = address(at)?,
        "api_port" => out.api_port = at.number(0..=u16::MAX)?,
        "api_hosts" => {
            out.api_hosts = at.list(|at| {
                at.parsed("a host name such as proxy.corp.example, without port", |text| {
                    let host = text.parse::<HostPattern>().ok().filter(HostPattern::is_exact)?;
                    Some(host.as_str().to_owned())
                })
            })?;
        }
        "api_token" => {
            out.api_token = match at.hidden_text(TOKEN)? {
                "" => None,
                text if value::is_token(text) => Some(Secret::new(text)),
                _ => return Err(at.wrong_hidden(TOKEN)),
            };
        }
        "workers" => out.workers = at.number(0..=WORKERS)?,
        "allow_clients" => out.allow_clients = at.list(At::net)?,
        "users" => out.users = at.path_or_none()?,
        "deny_destinations" => out.deny_destinations = at.list(At::net)?,
        "connect_ports" => {
            out.connect_ports =
                at.list(|at| at.parsed(ports::EXPECTED, |text| text.parse().ok()))?;
        }
        _ => out.watch_config = at.flag()?,
    }
    Ok(())
}

const TOKEN: &str = "visible ASCII characters without blanks, or \"\" for none";

fn tls(out: &mut Tls, key: &str, at: &At) -> Result<(), ConfigError> {
    match key {
        "cert_dir" => out.cert_dir = at.path()?,
        "intercept" => out.intercept = at.list(At::host)?,
        "constrain" => out.constrain = at.flag()?,
        "upstream_ca" => out.upstream_ca = at.list(At::path)?,
        "pins" => out.pins = pins(at)?,
        _ => {
            out.ktls = at.one_of(&[("auto", Ktls::Auto), ("on", Ktls::On), ("off", Ktls::Off)])?;
        }
    }
    Ok(())
}

fn pins(at: &At) -> Result<Vec<PinRule>, ConfigError> {
    let mut rules: Vec<PinRule> = Vec::new();
    for entry in at.section()? {
        let at = at.below(entry);
        let before = rules.iter().map(|rule| &rule.pattern);
        let pattern = host_key(&at, entry, pattern::EXPECTED, before)?;
        let keys = at.list(|at| at.parsed(pin::EXPECTED, |text| text.parse().ok()))?;
        if keys.is_empty() {
            return Err(at.error("an empty list", pin::EXPECTED));
        }
        rules.push(PinRule { pattern, keys });
    }
    Ok(rules)
}

/// Hosts that stand for a key, once.
pub(super) fn host_key<'h, H: FromStr + PartialEq + 'h>(
    at: &At,
    entry: &Entry,
    expected: &str,
    mut before: impl Iterator<Item = &'h H>,
) -> Result<H, ConfigError> {
    let hosts = entry.key.parse().map_err(|_| at.error(&quoted(&entry.key), expected))?;
    match before.any(|other| *other == hosts) {
        true => Err(at.error("the host a second time", "it once")),
        false => Ok(hosts),
    }
}

fn cache(out: &mut Cache, key: &str, at: &At) -> Result<(), ConfigError> {
    match key {
        "enabled" => out.enabled = at.flag()?,
        "dir" => out.dir = at.path()?,
        "max_size" => out.max_size = at.size(1, u64::MAX)?,
        "min_free" => out.min_free = at.size(0, u64::MAX)?,
        "patterns" => {
            out.patterns = at.list(|at| {
                at.parsed("a regular expression on the URL's path", |text| {
                    (!text.is_empty()).then(|| text.to_owned())
                })
            })?;
        }
        _ => {
            out.access = at.one_of(&[("verify", Access::Verify), ("trust", Access::Trust)])?;
        }
    }
    Ok(())
}

fn upstream(out: &mut Upstream, key: &str, at: &At) -> Result<(), ConfigError> {
    match key {
        "connect_timeout" => out.connect_timeout = at.timeout(DAY)?,
        "read_timeout" => out.read_timeout = at.timeout(DAY)?,
        "retries" => out.retries = at.number(0..=100)?,
        "proxy" => {
            out.proxy = match at.hidden_text(parent::EXPECTED)? {
                "" => None,
                text => Some(text.parse().map_err(|_| at.wrong_hidden(parent::EXPECTED))?),
            };
        }
        _ => {
            out.no_proxy =
                at.list(|at| at.parsed(parent::EXPECTED_DIRECT, |text| text.parse().ok()))?;
        }
    }
    Ok(())
}

fn allowlist(out: &mut Allowlist, key: &str, at: &At) -> Result<(), ConfigError> {
    match key {
        "enabled" => out.enabled = at.flag()?,
        "domains" => out.domains = at.list(At::host)?,
        _ => out.ips = at.list(At::net)?,
    }
    Ok(())
}

fn logging(out: &mut Logging, key: &str, at: &At) -> Result<(), ConfigError> {
    match key {
        "level" => out.level = at.one_of(LEVELS)?,
        "format" => out.format = at.one_of(&[("text", Format::Text), ("json", Format::Json)])?,
        "file" => out.file = at.path_or_none()?,
        "max_size" => out.max_size = at.size(0, u64::MAX)?,
        "keep" => out.keep = at.number(1..=KEEP)?,
        _ => {
            out.access = at.one_of(&[
                ("on", AccessLog::On),
                ("errors", AccessLog::Errors),
                ("off", AccessLog::Off),
            ])?;
        }
    }
    Ok(())
}

const LEVELS: &[(&str, Level)] = &[
    ("error", Level::Error),
    ("warn", Level::Warn),
    ("info", Level::Info),
    ("debug", Level::Debug),
    ("trace", Level::Trace),
];

fn limits(out: &mut Limits, key: &str, at: &At) -> Result<(), ConfigError> {
    match key {
        "header_size" => {
            let bytes = at.size(bytesize::KIB, bytesize::MIB)?;
            out.header_size = usize::try_from(bytes).unwrap_or(usize::MAX);
        }
        "header_timeout" => out.header_timeout = at.timeout(DAY)?,
        "idle_timeout" => out.idle_timeout = at.timeout(DAY)?,
        "max_connections" => out.max_connections = at.number(MANY)?,
        "max_connections_per_client" => out.max_connections_per_client = at.number(MANY)?,
        "max_requests_per_connection" => {
            out.max_requests_per_connection = at.number(1..=1_000_000_000)?;
        }
        "max_admin_connections" => out.max_admin_connections = at.number(MANY)?,
        "max_fills" => out.max_fills = at.number(MANY)?,
        "max_redirects" => out.max_redirects = at.number(0..=50)?,
        _ => out.shutdown_grace = at.duration(Duration::ZERO, DAY)?,
    }
    Ok(())
}

fn headers(at: &At, places: &mut Places) -> Result<Vec<HeaderRule>, ConfigError> {
    let mut rules: Vec<HeaderRule> = Vec::new();
    for entry in at.section()? {
        let at = at.below(entry);
        let scope = host_key(&at, entry, header::EXPECTED, rules.iter().map(|rule| &rule.scope))?;
        places.note(&at.key, at.place.clone());
        let mut rule = HeaderRule { scope, set: Vec::new(), append: Vec::new() };
        for entry in at.section()? {
            let at = at.below(entry);
            match entry.key.as_str() {
                "set" => rule.set = fields(&at)?,
                "append" => rule.append = fields(&at)?,
                _ => return Err(at.unknown(&["set", "append"])),
            }
        }
        rules.push(rule);
    }
    Ok(rules)
}

fn fields(at: &At) -> Result<Vec<HeaderField>, ConfigError> {
    let mut fields: Vec<HeaderField> = Vec::new();
    for entry in at.section()? {
        fields.push(field(&at.below(entry), entry, &fields)?);
    }
    Ok(fields)
}

/// One field, none of those before it.
pub(super) fn field(
    at: &At,
    entry: &Entry,
    before: &[HeaderField],
) -> Result<HeaderField, ConfigError> {
    value::field_name(&entry.key).map_err(|expected| at.error(&quoted(&entry.key), expected))?;
    if before.iter().any(|field| field.name.eq_ignore_ascii_case(&entry.key)) {
        return Err(at.error("the header a second time", "it once"));
    }
    let text = at.hidden_text(value::EXPECTED_FIELD_VALUE)?;
    if !value::is_field_value(text) {
        return Err(at.wrong_hidden(value::EXPECTED_FIELD_VALUE));
    }
    Ok(HeaderField { name: entry.key.clone(), value: Secret::new(text) })
}

/// What no key shows alone.
pub(super) fn check_whole(config: &Config) -> Result<(), ConfigError> {
    let Proxy { port, api_port, .. } = config.proxy;
    if port == api_port && port != 0 {
        let (key, other) = match config.places.is_written("proxy.api_port") {
            true => ("proxy.api_port", "proxy.port"),
            false => ("proxy.port", "proxy.api_port"),
        };
        let expected = format!("a port that is not {other}'s too");
        return Err(config.error(key, &port.to_string(), &expected));
    }
    if config.tls.constrain && config.intercepted().any(HostPattern::is_any) {
        let expected = "false, since \"*\" has the TLS of every host opened";
        return Err(config.error("tls.constrain", "true", expected));
    }
    Ok(())
}
