//! The documents name tests, commands and each other, and show what a script types: all must be there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").flatten().map(|entry| entry.path());
    entries.filter(|path| path.to_string_lossy().ends_with(ending)).collect()
}

/// What stands between backticks and looks like a test: a name, or its beginning before `…`.
fn named(text: &str) -> Vec<&str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted
        .filter(|word| {
            let name = word.trim_matches('…');
            name.matches('_').count() >= 2
                && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        })
        .collect()
}

fn is_there(name: &str, tests: &str) -> bool {
    let beginning = name.trim_end_matches('…');
    if let Some(end) = beginning.strip_prefix('…') {
        return tests.contains(&format!("{end}()"));
    }
    match beginning.len() < name.len() {
        true => tests.contains(&format!("fn {beginning}")),
        false => tests.contains(&format!("fn {name}()")),
    }
}

#[test]
fn every_test_that_a_document_names_is_there() {
    let mut tests = String::new();
    let folders = [root().join("tests"), root().join("tests/clients")];
    for path in folders.iter().filter(|path| path.exists()).flat_map(|path| files(path, ".rs")) {
        tests.push_str(&fs::read_to_string(path).expect("a test file"));
    }
    let mut missing = Vec::new();
    let documents = [files(&root().join("docs"), ".md"), files(&root(), "SECURITY.md")].concat();
    // Keys and counters look the same; the guide to them names no tests.
    for path in documents.iter().filter(|path| !path.ends_with("OPERATING.md")) {
        let text = fs::read_to_string(path).expect("a document");
        let gone = named(&text).into_iter().filter(|name| !is_there(name, &tests));
        missing.extend(gone.map(|name| format!("{}: {name}", path.display())));
    }
    assert!(missing.is_empty(), "no such tests:\n{}", missing.join("\n"));
}

#[test]
fn a_name_that_is_not_there_is_found() {
    let tests = "fn a_test_of_mine() {\nfn dockerd_pulls_twice() {";
    let text = "`a_test_of_mine`, `a_test_…`, `…_pulls_twice`, `max_size`, `a_test_of_yours`";
    let names = named(text);
    assert_eq!(names, ["a_test_of_mine", "a_test_…", "…_pulls_twice", "a_test_of_yours"]);
    let gone: Vec<_> = names.into_iter().filter(|name| !is_there(name, tests)).collect();
    assert_eq!(gone, ["a_test_of_yours"]);
}

/// The places of the blocks of commands, none for one that has no place.
fn places(text: &str) -> Vec<Option<&str>> {
    let opens = text.lines().filter_map(|line| line.trim_start().strip_prefix("```sh"));
    opens.map(|place| place.strip_prefix(' ').filter(|place| !place.is_empty())).collect()
}

/// Whether the script names the document and types its blocks of this place.
fn types(script: &str, document: &str, place: &str) -> bool {
    let typed = |line: &str| {
        let words: Vec<_> = line.split([' ', '(', ')', '"']).filter(|w| !w.is_empty()).collect();
        let verb = words.iter().any(|word| ["typed", "blocks", "block_of"].contains(word));
        verb && words.contains(&place)
    };
    let mut code = script.lines().filter(|line| !line.trim_start().starts_with('#'));
    script.contains(document) && code.any(typed)
}

#[test]
fn every_command_of_a_document_is_typed_by_a_script() {
    let scripts = files(&root().join("scripts"), ".sh");
    let scripts = scripts.iter().map(|path| fs::read_to_string(path).expect("a script"));
    let scripts: Vec<_> = scripts.collect();
    let mut loose = Vec::new();
    for path in [files(&root().join("docs"), ".md"), files(&root(), "README.md")].concat() {
        let text = fs::read_to_string(&path).expect("a document");
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for place in places(&text) {
            let known = |place| scripts.iter().any(|script| types(script, &name, place));
            if !place.is_some_and(known) {
                loose.push(format!("{name}: {}", place.unwrap_or("a block without a place")));
            }
        }
    }
    assert!(loose.is_empty(), "no script types these:\n{}", loose.join("\n"));
}

#[test]
fn a_block_that_no_script_types_is_found() {
    let text = "```sh\nls\n```\n- so:\n  ```sh here\n  ls\n  ```\n```text\nls\n```\n";
    assert_eq!(places(text), [None, Some("here")]);
    let script = "# typed gone\nDOCUMENT=A.md\nsaid=$(typed here)\necho there\n";
    assert!(types(script, "A.md", "here"));
    for (document, place) in [("B.md", "here"), ("A.md", "there"), ("A.md", "gone")] {
        assert!(!types(script, document, place), "{document} {place}");
    }
}

fn documents() -> Vec<PathBuf> {
    [files(&root().join("docs"), ".md"), files(&root(), ".md")].concat()
}

/// The commands of the program that the text names in a line.
fn commands(text: &str) -> Vec<&str> {
    let quoted = text.split('`').skip(1).step_by(2);
    let words = quoted.filter_map(|span| span.strip_prefix("discobot-proxy "));
    let first = words.filter_map(|rest| rest.split_whitespace().next());
    first.filter(|word| word.chars().all(|c| c.is_ascii_lowercase())).collect()
}

#[test]
fn every_command_that_a_document_names_is_there() {
    let mut program = Command::new(env!("CARGO_BIN_EXE_discobot-proxy"));
    let help = program.arg("--help").output().expect("its help").stdout;
    let help = String::from_utf8(help).expect("text");
    let known: Vec<_> = help.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    let is_known = |name: &str| known.iter().any(|line| line.split(' ').next() == Some(name));
    assert!(is_known("warm") && !is_known("wram"));
    for path in documents() {
        let text = fs::read_to_string(&path).expect("a document");
        for name in commands(&text) {
            assert!(is_known(name), "{}: discobot-proxy {name}", path.display());
        }
    }
    assert_eq!(commands("`discobot-proxy wram x` and `discobot-proxy --help`"), ["wram"]);
}

/// A heading as links name it.
fn anchor(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = words.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
    kept.collect::<String>().replace(' ', "-")
}

fn leads_somewhere(link: &str, from: &Path) -> bool {
    let (file, part) = link.split_once('#').unwrap_or((link, ""));
    let to = match file {
        "" => from.to_path_buf(),
        file => from.parent().unwrap_or(from).join(file),
    };
    let heads = |text: String| text.lines().any(|l| l.starts_with('#') && anchor(l) == part);
    to.exists() && (part.is_empty() || fs::read_to_string(&to).is_ok_and(heads))
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    for path in documents() {
        let text = fs::read_to_string(&path).expect("a document");
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.starts_with("http")) {
            assert!(leads_somewhere(link, &path), "{}: {link}", path.display());
        }
    }
    let readme = root().join("README.md");
    assert!(leads_somewhere("docs/OPERATING.md#limits", &readme));
    for link in ["docs/GONE.md", "docs/OPERATING.md#limit", "#limits"] {
        assert!(!leads_somewhere(link, &readme), "{link}");
    }
}
