//! From one configuration to another while the process runs: what a document over it makes of it,
//! what of it can be taken over, and which keys differ.

use std::rc::Rc;

use super::at::At;
use super::error::{ConfigError, Places};
use super::print::{self, MASK, Shown};
use super::read::{self, SECTIONS};
use super::tree::{self, Node, Value};
use super::{Config, HeaderField, HeaderRule, HeaderScope, header};

/// Keys that are settled when the process starts. Their values are no secrets.
pub const RESTART: &[&str] = &[
    "proxy.bind",
    "proxy.port",
    "proxy.api_bind",
    "proxy.api_port",
    "proxy.workers",
    "proxy.watch_config",
    "tls.cert_dir",
    "tls.constrain",
    "tls.ktls",
    "cache.dir",
    "cache.access",
    "logging.format",
    "logging.file",
    "logging.max_size",
    "logging.keep",
];

/// Keys that only the file changes: they have the proxy read files of this machine, or say whom it
/// trusts, which is not for everybody who reaches the admin listener.
pub const FILE_ALONE: &[&str] = &[
    "proxy.api_hosts",
    "proxy.api_token",
    "proxy.users",
    "tls.upstream_ca",
    "tls.pins",
    "upstream.proxy",
    "upstream.no_proxy",
];

/// What errors call the document of a patch.
const DOCUMENT: &str = "body";

const EXPECTED: &str = "keys and values, as in the configuration's file";

/// See [`Config::patched`].
pub(super) fn patched(base: &Config, document: &str) -> Result<Config, ConfigError> {
    let nothing = Node { line: 1, value: Value::Null };
    let root = read::root(DOCUMENT, document)?;
    let node = root.as_deref().unwrap_or(&nothing);
    let root = At::line(DOCUMENT, "", node.line, node);
    let Value::Map(sections) = &node.value else {
        return Err(root.error(node.describe_kind(), EXPECTED));
    };
    let mut config = base.clone();
    let defaults = Printed::of(&Config::default())?;
    for entry in sections {
        let at = root.below(entry);
        match SECTIONS.iter().find(|(name, _)| *name == entry.key) {
            None => {
                let names: Vec<_> = SECTIONS.iter().map(|(name, _)| *name).collect();
                return Err(at.unknown(&names));
            }
            Some(("headers", _)) => {
                merge_headers(&mut config.headers, &mut config.places, &at)?;
            }
            Some((section, keys)) => match &at.node.value {
                Value::Null => {
                    keys.iter().try_for_each(|key| defaults.give(&mut config, section, key))?;
                }
                _ => merge(&mut config, &defaults, (section, keys), &at)?,
            },
        }
    }
    read::check_whole(&config)?;
    Ok(config)
}

/// See [`Config::beside`].
pub(super) fn beside(
    mut config: Config,
    running: &Config,
) -> Result<(Config, Vec<&'static str>), ConfigError> {
    let differ = differences(running, &config);
    let differs = |key: &&str| differ.iter().any(|differing| differing == key);
    let restart: Vec<_> = RESTART.iter().copied().filter(differs).collect();
    let printed = Printed::of(running)?;
    for key in &restart {
        let (section, key) = key.split_once('.').unwrap_or_default();
        printed.give(&mut config, section, key)?;
    }
    read::check_whole(&config)?;
    Ok((config, restart))
}

/// The keys whose values differ, in the order of the contract; `headers` counts as one.
pub fn differences(one: &Config, other: &Config) -> Vec<String> {
    let mut differ = Vec::new();
    for ((section, keys), (_, others)) in print::sections(one).iter().zip(print::sections(other)) {
        let (Shown::Map(keys), Shown::Map(others)) = (keys, others) else { continue };
        if section == "headers" {
            differ.extend((one.headers != other.headers).then(|| section.clone()));
            continue;
        }
        for ((key, value), (_, other_value)) in keys.iter().zip(others) {
            // What is masked looks the same whatever it is.
            let same = match (section.as_str(), key.as_str()) {
                ("proxy", "api_token") => one.proxy.api_token == other.proxy.api_token,
                ("upstream", "proxy") => one.upstream.proxy == other.upstream.proxy,
                _ => *value == other_value,
            };
            differ.extend((!same).then(|| tree::join(section, key)));
        }
    }
    differ
}

/// The keys of a section that a document names.
fn merge(
    config: &mut Config,
    defaults: &Printed,
    (section, keys): (&str, &[&str]),
    at: &At,
) -> Result<(), ConfigError> {
    for entry in at.section()? {
        let at = at.below(entry);
        if !keys.contains(&entry.key.as_str()) {
            return Err(at.unknown(keys));
        }
        if matches!(at.node.value, Value::Null) {
            defaults.give(config, section, &entry.key)?;
            continue;
        }
        read::note(&mut config.places, &at);
        read::set(config, section, &entry.key, &at)?;
    }
    Ok(())
}

fn merge_headers(
    rules: &mut Vec<HeaderRule>,
    places: &mut Places,
    at: &At,
) -> Result<(), ConfigError> {
    if matches!(at.node.value, Value::Null) {
        rules.clear();
    }
    let mut seen: Vec<HeaderScope> = Vec::new();
    for entry in at.section()? {
        let at = at.below(entry);
        let scope = read::host_key(&at, entry, header::EXPECTED, seen.iter())?;
        seen.push(scope.clone());
        if matches!(at.node.value, Value::Null) {
            rules.retain(|rule| rule.scope != scope);
            continue;
        }
        places.note(&at.key, at.place.clone());
        let known = rules.iter().position(|rule| rule.scope == scope);
        let mut rule = match known.and_then(|at| rules.get(at)) {
            Some(rule) => rule.clone(),
            None => HeaderRule { scope, set: Vec::new(), append: Vec::new() },
        };
        for entry in at.section()? {
            let at = at.below(entry);
            match entry.key.as_str() {
                "set" => merge_fields(&mut rule.set, &at)?,
                "append" => merge_fields(&mut rule.append, &at)?,
                _ => return Err(at.unknown(&["set", "append"])),
            }
        }
        match known.and_then(|at| rules.get_mut(at)) {
            Some(known) => *known = rule,
            None => rules.push(rule),
        }
    }
    Ok(())
}

fn merge_fields(fields: &mut Vec<HeaderField>, at: &At) -> Result<(), ConfigError> {
    if matches!(at.node.value, Value::Null) {
        fields.clear();
    }
    let mut seen: Vec<HeaderField> = Vec::new();
    for entry in at.section()? {
        let at = at.below(entry);
        if matches!(at.node.value, Value::Null) {
            fields.retain(|field| !field.name.eq_ignore_ascii_case(&entry.key));
            continue;
        }
        let field = read::field(&at, entry, &seen)?;
        if field.value.expose() == MASK {
            return Err(at.error(MASK, "the value, which that only stands for, or no such key"));
        }
        seen.push(field.clone());
        match fields.iter_mut().find(|known| known.name.eq_ignore_ascii_case(&field.name)) {
            Some(known) => *known = field,
            None => fields.push(field),
        }
    }
    Ok(())
}

/// A configuration as it is printed, from which single keys are read. For keys without secrets: of
/// these there are but masks.
struct Printed(Option<Rc<Node>>);

impl Printed {
    fn of(config: &Config) -> Result<Printed, ConfigError> {
        read::root("", &config.to_yaml()).map(Printed)
    }

    /// Has another configuration take a key over.
    fn give(&self, to: &mut Config, section: &str, key: &str) -> Result<(), ConfigError> {
        let below = |node: &Rc<Node>, key: &str| match &node.value {
            Value::Map(entries) => {
                entries.iter().find(|entry| entry.key == key).map(|entry| Rc::clone(&entry.node))
            }
            _ => None,
        };
        let section_node = self.0.as_ref().and_then(|root| below(root, section));
        let Some(node) = section_node.and_then(|node| below(&node, key)) else { return Ok(()) };
        let at = At::line("", &tree::join(section, key), node.line, &node);
        to.places.forget(&at.key);
        read::set(to, section, key, &at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(yaml: &str) -> Config {
        Config::parse("test.yaml", yaml).unwrap()
    }

    #[test]
    fn a_document_over_a_configuration_is_a_merge_patch() {
        let base = parse(
            "limits: {max_redirects: 1, max_fills: 7}\ncache: {patterns: [a, b]}\n\
             headers: {ghcr.io: {set: {Authorization: x, A: '1'}}, quay.io: {append: {B: '2'}}}\n",
        );
        for (document, same_as) in [
            ("{}", "limits: {max_redirects: 1, max_fills: 7}"),
            (r#"{"limits": {"max_redirects": 2}}"#, "limits: {max_redirects: 2, max_fills: 7}"),
            ("limits:\n  max_fills: null\n", "limits: {max_redirects: 1}"),
            ("limits: null", "{}"),
        ] {
            let patched = base.patched(document).unwrap();
            assert_eq!(patched.limits, parse(same_as).limits, "{document}");
            assert_eq!(patched.headers, base.headers);
        }
        let patched = base.patched("cache: {patterns: [c]}").unwrap();
        assert_eq!(patched.cache.patterns, ["c"], "lists are replaced");
        for (document, same_as) in [
            (
                "GHCR.io: {set: {a: '3'}}",
                "ghcr.io: {set: {Authorization: x, a: '3'}}, quay.io: {append: {B: '2'}}",
            ),
            ("ghcr.io: null", "quay.io: {append: {B: '2'}}"),
            (
                "ghcr.io: {set: {authorization: null}, append: {C: d}}",
                "ghcr.io: {set: {A: '1'}, append: {C: d}}, quay.io: {append: {B: '2'}}",
            ),
            ("ghcr.io: {set: null}", "ghcr.io: {}, quay.io: {append: {B: '2'}}"),
        ] {
            let patched = base.patched(&format!("headers: {{{document}}}")).unwrap();
            assert_eq!(patched.headers, parse(&format!("headers: {{{same_as}}}")).headers);
        }
        assert!(base.patched("headers: null").unwrap().headers.is_empty());
    }

    #[test]
    fn a_bad_document_says_what_is_wrong_with_it_and_where() {
        let base = parse("headers: {ghcr.io: {set: {Authorization: sup3r}}}");
        for (document, error) in [
            ("", "body:1: found nothing, expected keys and values, as in"),
            ("[1]", "body:1: found a list, expected keys and values"),
            ("{\"limits\": ", "body:"),
            ("limits:\n  max_fills: many\n", "body:2: limits.max_fills: found \"many\", expected"),
            ("logging:\n  lvl: x\n", "body:2: logging.lvl: found an unknown key, expected level"),
            ("logs: x\n", "body:1: logs: found an unknown key, expected proxy"),
            ("limits: [1]", "body:1: limits: found a list, expected keys"),
            ("headers: {a b: {}}", "body:1: headers.a b: found \"a b\", expected a host"),
            ("headers: {a: {}, A: {}}", "body:1: headers.A: found the host a second time"),
            ("headers: {a: {set: {Host: x}}}", "body:1: headers.a.set.Host: found \"Host\""),
            (
                "headers: {ghcr.io: {set: {Authorization: '***'}}}",
                "body:1: headers.ghcr.io.set.Authorization: found ***, expected the value",
            ),
        ] {
            let found = base.patched(document).unwrap_err().to_string();
            assert!(found.starts_with(error), "{document}: {found}");
        }
    }

    #[test]
    fn each_key_that_stays_is_known_by_its_name() {
        let changed = parse(
            "proxy: {bind: '::1', port: 1, api_bind: '::2', api_port: 2, workers: 3, \
             watch_config: true}\n\
             tls: {cert_dir: a, constrain: true, ktls: off}\ncache: {dir: b, access: trust}\n\
             logging: {format: json, file: c, max_size: 1, keep: 2}\n",
        );
        let default = Config::default();
        assert_eq!(differences(&default, &changed), RESTART);
        let (kept, restart) = changed.beside(&default).unwrap();
        assert_eq!((kept, restart.as_slice()), (default, RESTART));
    }

    #[test]
    fn what_is_masked_is_compared_all_the_same() {
        let with = |secret: &str| {
            parse(&format!(
                "proxy: {{api_token: {secret}}}\nupstream: {{proxy: 'http://u:{secret}@p:1'}}\n\
                 headers: {{a: {{set: {{Authorization: {secret}}}}}}}\n"
            ))
        };
        let keys = ["proxy.api_token", "upstream.proxy", "headers"];
        assert_eq!(differences(&with("x"), &with("y")), keys);
        assert!(differences(&with("x"), &with("x")).is_empty());
    }
}
