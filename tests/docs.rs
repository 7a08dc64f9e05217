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
    script.contains(document) && code(script).any(typed)
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

/// What the program says of itself.
fn help() -> String {
    let mut program = Command::new(env!("CARGO_BIN_EXE_discobot-proxy"));
    let help = program.arg("--help").output().expect("its help").stdout;
    String::from_utf8(help).expect("text")
}

/// The commands that it names there.
fn program_commands(help: &str) -> Vec<&str> {
    let lines = help.lines().filter_map(|line| line.strip_prefix("  "));
    lines.filter_map(|line| line.split(' ').next().filter(|word| !word.is_empty())).collect()
}

#[test]
fn every_command_that_a_document_names_is_there() {
    let help = help();
    let known = program_commands(&help);
    assert!(known.contains(&"warm") && !known.contains(&"wram"));
    for path in documents() {
        let text = fs::read_to_string(&path).expect("a document");
        for name in commands(&text) {
            assert!(known.contains(&name), "{}: discobot-proxy {name}", path.display());
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

/// Documents whose commands in sentences are held to be run, as those in blocks are.
const SAID: [&str; 3] = ["README.md", "docs/DEVELOPMENT.md", "docs/TROUBLESHOOTING.md"];

/// Programs of others with which a command in a sentence begins.
const PROGRAMS: [&str; 14] = [
    "apt",
    "cargo",
    "curl",
    "docker",
    "journalctl",
    "kill",
    "man",
    "npm",
    "podman",
    "rm",
    "skopeo",
    "ss",
    "sudo",
    "systemctl",
];

/// Commands that no script types as they are said: a script that the CI runs, and its line that does the
/// same. A script of a sentence is run where the CI comes to it, and needs no line here.
const DONE_BY: [(&str, &str, &str); 9] = [
    ("cargo run --release", "scripts/e2e-readme.sh", "typed host"),
    ("cargo build --release", "scripts/bench/build.sh", "cargo build --profile"),
    ("cargo doc --open", "scripts/check.sh", "cargo doc --locked"),
    ("cargo test --lib", "scripts/test.sh", "cargo test --locked"),
    ("cargo test --test hit", "scripts/test.sh", "cargo test --locked"),
    ("DISCOBOT_SECCOMP=1 cargo test", "scripts/test.sh", "DISCOBOT_SECCOMP=1 cargo test"),
    // The same tests, for as long as a run of all tests may take.
    (
        "DISCOBOT_LONG=1 cargo test --test kill --test soak --test clients",
        "scripts/test.sh",
        "cargo test --locked",
    ),
    // `test = true` in Cargo.toml: each step once.
    ("cargo bench --bench micro", "scripts/test.sh", "cargo test --locked"),
    ("scripts/ktls-vm.sh [KERNEL...]", "scripts/test.sh", "scripts/ktls-vm.sh"),
];

/// The sentences of a text, and what stands in its blocks.
fn apart(text: &str) -> (String, String) {
    let (mut sentences, mut blocks, mut fenced) = (String::new(), String::new(), false);
    for line in text.lines() {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        let to = if fenced { &mut blocks } else { &mut sentences };
        *to += if fence { "" } else { line };
        to.push('\n');
    }
    (sentences, blocks)
}

/// The commands in sentences: between backticks, and begun by a script, by one of
/// these programs or by a command of ours.
fn said(sentences: &str, ours: &[&str]) -> Vec<String> {
    let spans = sentences.split('`').skip(1).step_by(2);
    let spans = spans.map(|span| span.split_whitespace().collect::<Vec<_>>());
    spans.filter(|words| is_command(words, ours)).map(|words| words.join(" ")).collect()
}

fn is_command(words: &[&str], ours: &[&str]) -> bool {
    // The rest of a pipe, and variables that are set for it.
    let before = |word: &&&str| ["…", "|"].contains(*word) || word.contains('=');
    let mut rest = words.iter().skip_while(before);
    let Some(first) = rest.next() else { return false };
    let known = PROGRAMS.contains(first) || ours.contains(first) || *first == "discobot-proxy";
    // A name alone is one of a program.
    (first.starts_with("scripts/") && first.ends_with(".sh")) || (known && rest.next().is_some())
}

/// The lines of a script that do something.
fn code(script: &str) -> impl Iterator<Item = &str> {
    script.lines().filter(|line| !line.trim_start().starts_with('#'))
}

/// The scripts that the CI comes to from its first one, with their texts.
fn run_by_ci() -> Vec<(String, String)> {
    let read = |name: &str| fs::read_to_string(root().join(name)).expect("a script");
    let folders = ["scripts", "scripts/bench"].map(|folder| files(&root().join(folder), ".sh"));
    let mut others: Vec<String> = folders
        .concat()
        .iter()
        .filter_map(|path| Some(path.strip_prefix(root()).ok()?.to_str()?.to_owned()))
        .collect();
    let mut found = vec![(".ci/run".to_owned(), read(".ci/run"))];
    let mut at = 0;
    while at < found.len() {
        let text = found[at].1.clone();
        let named = |name: &String| {
            let last = name.trim_start_matches("scripts");
            code(&text).any(|line| line.contains(last))
        };
        let (new, rest) = others.into_iter().partition(named);
        others = rest;
        found.extend(Vec::into_iter(new).map(|name| (name.clone(), read(&name))));
        at += 1;
    }
    found
}

/// Whether one of the scripts runs the command as it is said, or what does the same.
fn is_run(command: &str, scripts: &[(String, String)]) -> bool {
    let quoted = format!("'{command}'");
    let typed = |line: &str| line.contains("inline ") && line.contains(&quoted);
    let does = |name: &str, part: &str| {
        let mut of_that_name = scripts.iter().filter(|(script, _)| script == name);
        of_that_name.any(|(_, text)| code(text).any(|line| line.contains(part)))
    };
    let words: Vec<_> = command.split(' ').collect();
    scripts.iter().any(|(name, text)| name == words[0] || code(text).any(typed))
        || DONE_BY.iter().any(|(said, name, part)| *said == command && does(name, part))
}

#[test]
fn every_command_in_a_sentence_is_run() {
    let scripts = run_by_ci();
    let help = help();
    let ours = program_commands(&help);
    let (mut all, mut blocks) = (Vec::new(), String::new());
    for name in SAID {
        let text = fs::read_to_string(root().join(name)).expect("a document");
        let (sentences, commands) = apart(&text);
        all.extend(said(&sentences, &ours));
        blocks += &commands;
    }
    let in_block = |command: &str| blocks.lines().any(|line| line.starts_with(command));
    let is_run = |command: &&String| in_block(command) || is_run(command, &scripts);
    let loose: Vec<_> = all.iter().filter(|command| !is_run(command)).collect();
    assert!(loose.is_empty(), "no script types these: {loose:#?}");
    let gone = DONE_BY.iter().filter(|(command, ..)| !all.iter().any(|said| said == command));
    assert_eq!(gone.count(), 0, "DONE_BY has what no document says");
}

#[test]
fn a_command_in_a_sentence_that_no_script_runs_is_found() {
    let text = "`stats`, `stats --watch 1`, `A=1 cargo\ntest`, `scripts/a.sh`, `A=1`, `… | sudo sh`\n\
                ```sh here\ncargo run\n```\n`cargo b`, `Cargo.toml`, `a cargo`, `curl`";
    let (sentences, blocks) = apart(text);
    assert_eq!(blocks.trim(), "cargo run");
    let all = said(&sentences, &["stats"]);
    let expected = ["stats --watch 1", "A=1 cargo test", "scripts/a.sh", "… | sudo sh", "cargo b"];
    assert_eq!(all, expected);
    let script = "# inline 'cargo b'\ninline 'stats --watch 1' >out\necho 'A=1 cargo test'\n";
    let scripts = [("scripts/a.sh".to_owned(), script.to_owned())];
    let loose: Vec<_> = all.iter().filter(|command| !is_run(command, &scripts)).collect();
    assert_eq!(loose, ["A=1 cargo test", "… | sudo sh", "cargo b"]);
    let names: Vec<_> = run_by_ci().into_iter().map(|(name, _)| name).collect();
    assert!(names.iter().any(|name| name == "scripts/registry.sh"), "{names:?}");
    assert!(!names.iter().any(|name| name == "scripts/plot.sh"), "{names:?}");
}
