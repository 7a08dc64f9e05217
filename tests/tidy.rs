//! Holds `src/` to the rules of the house: layers, doors, unsafe, sizes, leftovers. Each rule is a
//! function over one file's text, and each is shown to catch a planted fault.
//!
//! The rules read lines, not syntax: comments and string literals are blanked first, so that words
//! in them count for nothing; test modules are recognised by `#[cfg(test)]` and by their file name.

#[path = "tidy/source.rs"]
mod source;

use std::fs;
use std::path::Path;

use source::{Source, word};

const FILE_MAX: usize = 600;
const FUNCTION_MAX: usize = 70;
const COLUMNS_MAX: usize = 100;

/// Modules of the crate by layer; a module may import those of lower layers, and within layers 2
/// and 3 each other. Layer 1 is spelt out in [`LAYER_ONE`].
const LAYERS: &[(&str, u8)] = &[
    ("main", 3),
    ("lib", 3),
    ("server", 3),
    ("logging", 3),
    ("doctor", 3),
    ("command", 3),
    ("proxy", 2),
    ("live", 2),
    ("admin", 2),
    ("images", 2),
    ("policy", 1),
    ("cache", 1),
    ("net", 1),
    ("sys", 0),
    ("http", 0),
    ("key", 0),
    ("stats", 0),
    ("config", 0),
];

/// What the modules of layer 1 may import.
const LAYER_ONE: &[(&str, &[&str])] = &[
    ("policy", &["http", "key", "config"]),
    ("cache", &["sys", "key", "stats"]),
    ("net", &["sys", "http"]),
];

/// Where each outside crate may be named: prefixes of paths below `src/`.
const DOORS: &[(&str, &[&str])] = &[
    ("libc", &["sys/"]),
    ("httparse", &["http/"]),
    ("memchr", &["http/"]),
    ("sha2", &["key"]),
    ("rustls", &["net/"]),
    ("rustls_native_certs", &["net/"]),
    ("rcgen", &["net/"]),
    ("x509_parser", &["net/ca/"]),
    ("time", &["net/"]),
    ("regex_automata", &["policy/"]),
    (
        "serde",
        &[
            "config",
            "cache/disk",
            "admin",
            "images/file",
            "proxy/answer",
            "proxy/challenge",
            "policy/rights",
        ],
    ),
    (
        "serde_json",
        &[
            "config",
            "cache/disk",
            "admin",
            "images/file",
            "proxy/answer",
            "proxy/challenge",
            "policy/rights",
            "doctor/",
            "command/",
        ],
    ),
    ("granit_parser", &["config"]),
    ("base64", &["config", "http/basic"]),
    ("bcrypt", &["proxy/users/file"]),
    ("zeroize", &["config", "admin", "http/basic", "net/", "policy/rights", "sys/ktls"]),
    ("bytesize", &["config", "command/"]),
    ("hdrhistogram", &["stats/cores"]),
    ("prometheus_client", &["stats/"]),
    ("hashbrown", &["cache/index"]),
    ("socket2", &["net/", "server", "sys/process"]),
    ("sd_notify", &["server/manager", "sys/process"]),
    ("clap", &["main", "command/"]),
    ("clap_complete", &["main"]),
    ("clap_mangen", &["main"]),
    ("indicatif", &["main", "command/"]),
    ("tracing_subscriber", &["logging"]),
    ("tracing_appender", &["logging"]),
    (
        "monoio",
        &[
            "net/",
            "cache/mod",
            "cache/fill",
            "cache/disk",
            "proxy/",
            "admin",
            "server",
            "doctor/host",
            "main",
        ],
    ),
    ("io_uring", &["server"]),
    ("tracing", &["cache/", "net/", "proxy/", "live/", "admin", "server", "logging", "main"]),
    ("ipnet", &["config", "policy/"]),
    ("humantime", &["config", "logging", "cache/disk", "net/", "proxy/", "admin", "command/"]),
    ("httpdate", &["policy/", "proxy/", "doctor/"]),
];

/// Lines with `unwrap()` or `expect(` that stand for a reason: (path, part of the line, reason).
const UNWRAPS: &[(&str, &str, &str)] =
    &[("stats/cores.rs", "histogram.expect(\"constant bounds\")", "the bounds are constants")];

type Rule = fn(&Source) -> Vec<String>;

const RULES: &[(&str, Rule)] = &[
    ("layers", layers),
    ("doors", doors),
    ("unsafe", unsafe_blocks),
    ("system calls", system_calls),
    ("sizes", sizes),
    ("leftovers", leftovers),
    ("unwraps", unwraps),
    ("module docs", module_docs),
];

#[test]
fn the_house_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    collect(&root, &root, &mut sources);
    assert!(!sources.is_empty(), "no sources below {}", root.display());
    let faults: Vec<String> = RULES
        .iter()
        .flat_map(|(name, rule)| {
            sources.iter().flat_map(rule).map(move |fault| format!("{fault} ({name})"))
        })
        .collect();
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn every_unwrap_that_is_allowed_is_still_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (path, part, reason) in UNWRAPS {
        assert!(!reason.is_empty());
        let text = fs::read_to_string(root.join(path)).unwrap_or_default();
        assert!(text.contains(part), "{path} no longer has {part:?}: take it off the list");
    }
}

fn collect(root: &Path, folder: &Path, sources: &mut Vec<Source>) {
    let mut entries: Vec<_> = fs::read_dir(folder).expect("a source folder").flatten().collect();
    entries.sort_by_key(fs::DirEntry::path);
    for entry in entries {
        let path = entry.path();
        if path.is_dir() {
            collect(root, &path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let below = path.strip_prefix(root).expect("below src").to_string_lossy();
            let text = fs::read_to_string(&path).expect("a source file");
            sources.push(Source::new(&below.replace('\\', "/"), &text));
        }
    }
}

fn layer(module: &str) -> Option<u8> {
    LAYERS.iter().find(|(name, _)| *name == module).map(|(_, layer)| *layer)
}

/// Every module named after `crate::` (or, in `main`, after the crate's name) is one that this
/// module may import.
fn layers(source: &Source) -> Vec<String> {
    let own = source.module();
    let Some(own_layer) = layer(own) else {
        return vec![source.fault(0, &format!("module {own} has no layer"))];
    };
    let mut faults = Vec::new();
    for (number, line) in source.shipped() {
        for other in imported(line) {
            let allowed = match (layer(&other), own_layer) {
                // No module: an item of the crate's root.
                (None, _) => own_layer == 3,
                _ if other == own => true,
                (Some(_), 3) => other != "main",
                (Some(layer), 2) => layer <= 2,
                (Some(_), 1) => LAYER_ONE
                    .iter()
                    .any(|(module, may)| *module == own && may.contains(&other.as_str())),
                (Some(_), _) => false,
            };
            if !allowed {
                faults.push(source.fault(number, &format!("{own} imports {other}")));
            }
        }
    }
    faults
}

/// Modules named in a line: after `crate::` and `discobot_proxy::`, brace groups included.
fn imported(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for root in ["crate::", "discobot_proxy::"] {
        for (at, _) in line.match_indices(root) {
            let rest = &line[at + root.len()..];
            if let Some(group) = rest.strip_prefix('{') {
                let mut depth = 0;
                let mut name = String::new();
                for c in group.chars().chain([',']) {
                    match c {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        ',' if depth <= 0 => found.push(first_word(name.split_off(0).trim())),
                        _ if depth == 0 => name.push(c),
                        _ => {}
                    }
                    if depth < 0 {
                        found.push(first_word(name.trim()));
                        break;
                    }
                }
            } else {
                found.push(first_word(rest));
            }
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

fn first_word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// An outside crate is named only behind its door.
fn doors(source: &Source) -> Vec<String> {
    let mut faults = Vec::new();
    for (number, line) in source.shipped() {
        for (name, places) in DOORS {
            if names_crate(line, name) && !places.iter().any(|place| source.path.starts_with(place))
            {
                faults.push(source.fault(number, &format!("{name} belongs to {places:?}")));
            }
        }
    }
    faults
}

/// Whether a line uses `name::` or `use name`, as a path's beginning.
fn names_crate(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].trim_end();
        let after = &line[at + name.len()..];
        let begins = !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
            && !before.ends_with("::")
            && !before.ends_with('.');
        let used = after.starts_with("::")
            || (before.ends_with("use") && after.starts_with([';', ' ']))
            || before.ends_with("extern crate");
        // `crate::time::…` and `std::time::…` end in `::` before the name; `self::` likewise.
        begins && used
    })
}

/// `unsafe` only in `sys`, and a `SAFETY:` comment before each block.
fn unsafe_blocks(source: &Source) -> Vec<String> {
    let mut faults = Vec::new();
    for (number, line) in source.code.iter().enumerate() {
        let Some(at) = word(line, "unsafe") else { continue };
        if source.path.starts_with("sys/") {
            let said = source.raw[..number]
                .iter()
                .rev()
                .take(12)
                .take_while(|line| {
                    let line = line.trim();
                    line.starts_with("//") || line.ends_with('=') || line.starts_with("#[")
                })
                .any(|line| line.contains("SAFETY:"));
            if line[at..].contains('{') && !said {
                faults.push(source.fault(number, "unsafe without a SAFETY: line"));
            }
        } else {
            faults.push(source.fault(number, "unsafe outside sys"));
        }
    }
    faults
}

/// Each function of `sys` is called by a test beside it: `scripts/sanitize.sh` sees no more of its
/// `unsafe` than these do.
fn system_calls(source: &Source) -> Vec<String> {
    if !source.path.starts_with("sys/") {
        return Vec::new();
    }
    let tests = || source.code.iter().zip(&source.test).filter(|(_, test)| **test);
    let mut faults = Vec::new();
    for (number, line) in source.shipped() {
        let Some((_, rest)) = line.split_once("pub fn ") else { continue };
        let called = format!("{}(", first_word(rest));
        if !tests().any(|(line, _)| line.contains(&called)) {
            faults.push(source.fault(number, &format!("no test calls {called})")));
        }
    }
    faults
}

/// Lines of a file, lines of a function, columns.
fn sizes(source: &Source) -> Vec<String> {
    let mut faults = Vec::new();
    if source.raw.len() > FILE_MAX {
        let what = format!("{} lines, {FILE_MAX} at most", source.raw.len());
        faults.push(source.fault(0, &what));
    }
    for (number, line) in source.raw.iter().enumerate() {
        let columns = line.chars().count();
        if columns > COLUMNS_MAX {
            faults.push(source.fault(number, &format!("{columns} columns")));
        }
    }
    for (start, end) in functions(&source.code) {
        let lines = end - start + 1;
        if lines > FUNCTION_MAX {
            faults.push(source.fault(start, &format!("a function of {lines} lines")));
        }
    }
    faults
}

/// First and last line of every function with a body.
fn functions(code: &[String]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (start, line) in code.iter().enumerate() {
        let Some(at) = word(line, "fn") else { continue };
        let named =
            line[at + 2..].trim_start().starts_with(|c: char| c.is_alphabetic() || c == '_');
        if !named {
            continue;
        }
        let mut depth = 0_i32;
        let mut brackets = 0_i32;
        'body: for (number, line) in code.iter().enumerate().skip(start) {
            let from = if number == start { at } else { 0 };
            for c in line[from..].chars() {
                match c {
                    '(' | '[' => brackets += 1,
                    ')' | ']' => brackets -= 1,
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ';' if depth == 0 && brackets == 0 => break 'body,
                    _ => continue,
                }
                if c == '}' && depth == 0 {
                    found.push((start, number));
                    break 'body;
                }
            }
        }
    }
    found
}

/// What belongs to a desk, not to a commit.
fn leftovers(source: &Source) -> Vec<String> {
    let mut faults = Vec::new();
    for (number, line) in source.code.iter().enumerate() {
        for mark in ["todo!", "dbg!", "unimplemented!", "println!", "eprintln!"] {
            let output = mark.contains("print");
            let allowed = output && (source.module() == "main" || source.test[number]);
            let there = word(line, mark.trim_end_matches('!'))
                .is_some_and(|at| line[at..].starts_with(mark));
            if there && !allowed {
                faults.push(source.fault(number, mark));
            }
        }
    }
    for (number, line) in source.raw.iter().enumerate() {
        if ["TODO", "FIXME", "XXX"].iter().any(|mark| word(line, mark).is_some()) {
            faults.push(source.fault(number, "a note to oneself"));
        }
    }
    faults
}

/// No `unwrap()` and no `expect(` outside tests.
fn unwraps(source: &Source) -> Vec<String> {
    let mut faults = Vec::new();
    for (number, line) in source.shipped() {
        let raw = &source.raw[number];
        let there = line.contains(".unwrap()") || line.contains(".expect(");
        let allowed =
            UNWRAPS.iter().any(|(path, part, _)| *path == source.path && raw.contains(part));
        if there && !allowed {
            faults.push(source.fault(number, "unwrap or expect"));
        }
    }
    faults
}

/// Each module opens with its documentation.
fn module_docs(source: &Source) -> Vec<String> {
    let tests = source.path.ends_with("/tests.rs");
    let first = source.raw.first().map_or("", String::as_str);
    match first.starts_with("//!") || tests {
        true => Vec::new(),
        false => vec![source.fault(0, "no //! documentation at the top")],
    }
}

mod planted {
    //! Every rule against snippets it must refuse and snippets it must let pass.
    use super::source::blank;
    use super::*;

    fn faults(rule: Rule, path: &str, text: &str) -> usize {
        rule(&Source::new(path, text)).len()
    }

    #[test]
    fn layers_are_held() {
        let bad = [
            ("cache/mod.rs", "use crate::http::Fields;\n"),
            ("cache/mod.rs", "use crate::{key::Key, net::Conn};\n"),
            ("net/dial.rs", "fn f(x: crate::policy::Policy) {}\n"),
            ("policy/mod.rs", "use crate::sys;\n"),
            ("http/head.rs", "use crate::key::Key;\n"),
            ("sys/mod.rs", "use crate::http;\n"),
            ("proxy/pass.rs", "use crate::server::Server;\n"),
            ("newmodule.rs", "\n"),
        ];
        for (path, text) in bad {
            assert!(faults(layers, path, text) >= 1, "{path}: {text}");
        }
        let good = [
            ("cache/mod.rs", "use crate::key::Key;\nuse crate::{stats, sys::file};\n"),
            ("cache/mod.rs", "// crate::http\nfn f() { let x = \"crate::http\"; }\n"),
            ("cache/mod.rs", "#[cfg(test)]\nmod tests {\n    use crate::http;\n}\n"),
            ("proxy/pass.rs", "use crate::{admin, cache::{Fill, Lease}, net, policy};\n"),
            ("http/head.rs", "use crate::http::Fields;\n"),
            ("main.rs", "use discobot_proxy::{config::Config, server};\n"),
        ];
        for (path, text) in good {
            assert_eq!(faults(layers, path, text), 0, "{path}: {text}");
        }
    }

    #[test]
    fn doors_are_held() {
        let bad = [
            ("cache/index.rs", "use libc::c_int;\n"),
            ("proxy/pass.rs", "fn f() { sha2::Sha256::new(); }\n"),
            ("http/head.rs", "use tracing::info;\n"),
            ("policy/access.rs", "tracing::warn!(\"x\");\n"),
            ("net/tls.rs", "use serde_json;\n"),
            ("cache/reader.rs", "use monoio::fs::File;\n"),
        ];
        for (path, text) in bad {
            assert_eq!(faults(doors, path, text), 1, "{path}: {text}");
        }
        let good = [
            ("sys/file.rs", "use libc::c_int;\n"),
            ("cache/entry.rs", "use std::time::Duration;\nfn f(time: u64) { x.time::<u8>(); }\n"),
            ("cache/disk.rs", "use serde::Serialize;\n"),
            ("key.rs", "use sha2::{Digest as _, Sha256};\n"),
            ("http/head.rs", "/// tracing::info\nfn f() { my_libc::g(); }\n"),
        ];
        for (path, text) in good {
            assert_eq!(faults(doors, path, text), 0, "{path}: {text}");
        }
    }

    #[test]
    fn unsafe_is_held() {
        let bad = [
            ("net/send.rs", "fn f() { unsafe { g() } }\n"),
            ("sys/file.rs", "fn f() {\n    let x = unsafe { g() };\n}\n"),
            ("sys/file.rs", "// SAFETY: far away\nfn f() {\n    g();\n    unsafe { h() }\n}\n"),
            ("cache/mod.rs", "#[cfg(test)]\nmod tests {\n    fn f() { unsafe { g() } }\n}\n"),
        ];
        for (path, text) in bad {
            assert_eq!(faults(unsafe_blocks, path, text), 1, "{path}: {text}");
        }
        let good = [
            ("sys/file.rs", "fn f() {\n    // SAFETY: g wants nothing\n    unsafe { g() }\n}\n"),
            (
                "sys/file.rs",
                "fn f() {\n    // SAFETY: g\n    // and more\n    let x =\n        unsafe { g() };\n}\n",
            ),
            ("lib.rs", "#![deny(unsafe_code)]\n// unsafe { }\n"),
        ];
        for (path, text) in good {
            assert_eq!(faults(unsafe_blocks, path, text), 0, "{path}: {text}");
        }
    }

    #[test]
    fn system_calls_are_tested() {
        let function = "pub fn f<T>(x: T) {}\nfn g() { f(1) }\n";
        let tested = format!("{function}#[cfg(test)]\nmod tests {{\n    fn h() {{ f(2) }}\n}}\n");
        assert_eq!(faults(system_calls, "sys/file.rs", function), 1);
        assert_eq!(faults(system_calls, "sys/file.rs", &tested), 0);
        assert_eq!(faults(system_calls, "net/send.rs", function), 0);
    }

    #[test]
    fn sizes_are_held() {
        let body = |lines: usize| format!("fn f() {{\n{}}}\n", "    g();\n".repeat(lines - 2));
        assert_eq!(faults(sizes, "a.rs", &body(FUNCTION_MAX)), 0);
        assert_eq!(faults(sizes, "a.rs", &body(FUNCTION_MAX + 1)), 1);
        let inner = format!(
            "impl A {{\n    pub async fn f(x: [u8; 2]) -> u8\n    where\n        A: B,\n    {{\n{}    }}\n}}\n",
            "    \"}\";\n".repeat(FUNCTION_MAX)
        );
        assert_eq!(faults(sizes, "a.rs", &inner), 1);
        assert_eq!(faults(sizes, "a.rs", &"\n".repeat(FILE_MAX)), 0);
        assert_eq!(faults(sizes, "a.rs", &"\n".repeat(FILE_MAX + 1)), 1);
        assert_eq!(faults(sizes, "a.rs", &format!("// {}\n", "é".repeat(97))), 0);
        assert_eq!(faults(sizes, "a.rs", &format!("// {}\n", "x".repeat(98))), 1);
    }

    #[test]
    fn leftovers_are_found() {
        for text in ["todo!()", "dbg!(x)", "unimplemented!()", "println!(\"x\")", "// TODO: later"]
        {
            let text = format!("fn f() {{\n    {text}\n}}\n");
            assert_eq!(faults(leftovers, "net/tls.rs", &text), 1, "{text}");
        }
        let good = "// a todo! in words\nfn f() { let s = \"dbg!(x)\"; my_todo!(); writeln!(f) }\n";
        assert_eq!(faults(leftovers, "net/tls.rs", good), 0);
        assert_eq!(faults(leftovers, "main.rs", "fn f() { println!(\"x\") }\n"), 0);
    }

    #[test]
    fn unwraps_are_found() {
        let bad = "fn f() {\n    x.unwrap();\n    y.expect(\"z\");\n}\n";
        assert_eq!(faults(unwraps, "net/tls.rs", bad), 2);
        let good = "fn f() { x.unwrap_or(1); y.expect_err(2); z.unwrap_or_default() }\n\
                    #[cfg(test)]\nmod tests {\n    fn f() { x.unwrap(); }\n}\n";
        assert_eq!(faults(unwraps, "net/tls.rs", good), 0);
        let behind = "#[cfg(test)]\nmod tests;\n\nfn f() { x.unwrap(); }\n";
        assert_eq!(faults(unwraps, "net/tls.rs", behind), 1);
        assert_eq!(faults(unwraps, "http/head/tests.rs", bad), 0);
    }

    #[test]
    fn module_docs_are_wanted() {
        assert_eq!(faults(module_docs, "net/tls.rs", "use std::io;\n"), 1);
        assert_eq!(faults(module_docs, "net/tls.rs", "//! TLS.\n"), 0);
    }

    #[test]
    fn literals_and_comments_are_blanked() {
        let text =
            "a(\"x\\\"y\"); b('\"', '\\'', r#\"z\"q\"#); /* c /* d */ e */ f<'g>(b\"h\") // i";
        let blanked = blank(text);
        assert_eq!(blanked.len(), text.len());
        for gone in ["x", "y", "z", "q", "c", "d", "e", "h", "i"] {
            assert_eq!(word(&blanked, gone), None, "{gone} in {blanked}");
        }
        for kept in ["a", "f", "g"] {
            assert!(blanked.contains(kept), "{kept} in {blanked}");
        }
    }
}
