//! The documents name tests: each of them must be there.

use std::fs;
use std::path::{Path, PathBuf};

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
    for path in documents {
        let text = fs::read_to_string(&path).expect("a document");
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
