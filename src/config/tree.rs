//! YAML text to nodes that know the line they stand on. The only code that sees the YAML crate.
//!
//! A scalar is kept as its text: what it means is for the reader of that key to say, so that
//! `0012` and `1.10` stay what was written where text is wanted.

use std::collections::HashMap;
use std::rc::Rc;

use granit_parser::{Event, Options, Parser, ScalarStyle, Tag};
use zeroize::Zeroizing;

use super::error::quoted;

/// Nesting the configuration never needs; a bound on recursion, here and when nodes are dropped.
const DEPTH: usize = 16;

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Node {
    /// Counted from 1.
    pub line: usize,
    pub value: Value,
}

/// What stands there.
#[derive(Debug)]
pub(super) enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// Text, number or truth value; it may be a secret.
    Text(Zeroizing<String>),
    /// In the order of the file.
    List(Vec<Rc<Node>>),
    /// In the order of the file, no key twice.
    Map(Vec<Entry>),
}

/// One key of a mapping.
#[derive(Debug)]
pub(super) struct Entry {
    pub key: String,
    /// Of the key.
    pub line: usize,
    pub node: Rc<Node>,
}

/// Why the text was not read, and the line.
#[derive(Debug, PartialEq)]
pub(super) struct NotYaml {
    pub line: usize,
    /// The path of the key, where there is one.
    pub key: String,
    pub found: String,
    pub expected: &'static str,
}

const EXPECTED_YAML: &str = "YAML";
const EXPECTED_ONE: &str = "one document in the file";

impl Node {
    /// The value as an error repeats it.
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Text(text) => quoted(text),
            _ => self.describe_kind().to_owned(),
        }
    }

    /// The kind of the value alone, where the text may be secret.
    pub fn describe_kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "keys and values",
        }
    }
}

/// Reads one document. `None`: the text holds nothing but comments.
pub(super) fn parse(yaml: &str) -> Result<Option<Rc<Node>>, NotYaml> {
    let mut options = Options::default();
    options.flow_nesting_limit = DEPTH;
    options.block_nesting_limit = DEPTH;
    options.emit_unresolved_aliases = true;
    let mut reader = Reader {
        parser: Parser::new_from_str_with_options(yaml, options),
        anchors: HashMap::new(),
    };
    let mut root = None;
    loop {
        let (event, line) = reader.next()?;
        match event {
            Event::StreamEnd => return Ok(root),
            Event::DocumentStart(..) if root.is_some() => {
                return Err(NotYaml::new(line, "", "a second document".to_owned(), EXPECTED_ONE));
            }
            Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
            event => root = Some(reader.node(event, line, "", DEPTH)?),
        }
    }
}

impl NotYaml {
    fn new(line: usize, key: &str, found: String, expected: &'static str) -> NotYaml {
        NotYaml { line, key: key.to_owned(), found, expected }
    }
}

struct Reader<'a> {
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    anchors: HashMap<usize, Rc<Node>>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, usize), NotYaml> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, span.start.line())),
            Some(Err(error)) => {
                let found = error.info().to_owned();
                Err(NotYaml::new(error.marker().line(), "", found, EXPECTED_YAML))
            }
            None => Ok((Event::StreamEnd, 0)),
        }
    }

    fn node(
        &mut self,
        event: Event<'a>,
        line: usize,
        path: &str,
        depth: usize,
    ) -> Result<Rc<Node>, NotYaml> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(NotYaml::new(line, path, "deep nesting".to_owned(), "less of it"));
        };
        refuse_tag(event.tag(), line, path)?;
        let (anchor, value) = match event {
            Event::Alias(id) => {
                return self.anchors.get(&id).cloned().ok_or_else(|| {
                    let found = "an alias inside what it stands for".to_owned();
                    NotYaml::new(line, path, found, "an anchor before it")
                });
            }
            Event::UnresolvedAlias(name) => {
                let found = format!("the alias {}", quoted(&format!("*{name}")));
                return Err(NotYaml::new(line, path, found, "an anchor of that name before it"));
            }
            Event::Scalar(text, style, anchor, _) => (anchor, scalar(text.into_owned(), style)),
            Event::SequenceStart(_, anchor, _) => (anchor, self.list(path, depth)?),
            Event::MappingStart(_, anchor, _) => (anchor, self.map(path, depth)?),
            _ => return Err(NotYaml::new(line, path, "no value".to_owned(), EXPECTED_YAML)),
        };
        let node = Rc::new(Node { line, value });
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        Ok(node)
    }

    fn list(&mut self, path: &str, depth: usize) -> Result<Value, NotYaml> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Value::List(items)),
                (event, line) => {
                    let path = format!("{path}[{}]", items.len());
                    items.push(self.node(event, line, &path, depth)?);
                }
            }
        }
    }

    fn map(&mut self, path: &str, depth: usize) -> Result<Value, NotYaml> {
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let (key, line) = match self.next()? {
                (Event::MappingEnd, _) => return Ok(Value::Map(entries)),
                (Event::Scalar(key, ..), line) => (key.into_owned(), line),
                (_, line) => {
                    let found = "a key that is no text".to_owned();
                    return Err(NotYaml::new(line, path, found, "a name before the colon"));
                }
            };
            let path = join(path, &key);
            if let Some(first) = entries.iter().find(|entry| entry.key == key) {
                let found = format!("the key a second time (first on line {})", first.line);
                return Err(NotYaml::new(line, &path, found, "it once"));
            }
            let (event, value_line) = self.next()?;
            let node = self.node(event, value_line, &path, depth)?;
            entries.push(Entry { key, line, node });
        }
    }
}

/// The path of a key below another.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Only the plain form of nothing is nothing: `""` is empty text (YAML 1.2.2 10.3.2).
fn scalar(text: String, style: ScalarStyle) -> Value {
    let nothing = ["", "~", "null", "Null", "NULL"].contains(&text.as_str());
    if nothing && style == ScalarStyle::Plain { Value::Null } else { Value::Text(text.into()) }
}

fn refuse_tag(tag: Option<&Tag>, line: usize, path: &str) -> Result<(), NotYaml> {
    match tag {
        Some(tag) if !tag.is_yaml_core_schema() => {
            let found = format!("the tag {}", quoted(&tag.original()));
            Err(NotYaml::new(line, path, found, "no tags"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(node: &Node) -> String {
        let inner = match &node.value {
            Value::Null => "-".to_owned(),
            Value::Text(text) => text.to_string(),
            Value::List(items) => {
                format!("[{}]", items.iter().map(|item| show(item)).collect::<Vec<_>>().join(" "))
            }
            Value::Map(entries) => {
                let entries: Vec<_> = entries
                    .iter()
                    .map(|e| format!("{}/{}={}", e.key, e.line, show(&e.node)))
                    .collect();
                format!("{{{}}}", entries.join(" "))
            }
        };
        format!("{inner}@{}", node.line)
    }

    fn read(yaml: &str) -> String {
        match parse(yaml) {
            Ok(Some(node)) => show(&node),
            Ok(None) => "none".to_owned(),
            Err(e) => format!("{}: {}: {}, expected {}", e.line, e.key, e.found, e.expected),
        }
    }

    #[test]
    fn nodes_know_their_lines_and_keep_their_text() {
        for (yaml, shown) in [
            ("", "none"),
            ("# a\n\n  # b\n", "none"),
            ("---\n", "-@1"),
            ("a: 0012\nb:\n  - 1.10\n  - yes\n", "{a/1=0012@1 b/2=[1.10@3 yes@4]@3}@1"),
            ("a:\n  b: {c: \"\", d: }\n", "{a/1={b/2={c/2=@2 d/2=-@2}@2}@2}@1"),
            ("a: ~\nb: \"~\"\nc: null\nd: 'null'\n", "{a/1=-@1 b/2=~@2 c/3=-@3 d/4=null@4}@1"),
            ("a: &x [1]\nb: *x\n", "{a/1=[1@1]@1 b/2=[1@1]@1}@1"),
            ("a: !!str 5\n", "{a/1=5@1}@1"),
            ("\u{feff}a: 1\r\nb: 2\r\n", "{a/1=1@1 b/2=2@2}@1"),
        ] {
            assert_eq!(read(yaml), shown, "{yaml:?}");
        }
    }

    #[test]
    fn what_is_not_read_is_explained() {
        for (yaml, shown) in [
            ("a: 1\na: 2\n", "2: a: the key a second time (first on line 1), expected it once"),
            (
                "a:\n  b: 1\n  b: 2\n",
                "3: a.b: the key a second time (first on line 2), expected it once",
            ),
            ("a: 1\n---\nb: 2\n", "2: : a second document, expected one document in the file"),
            ("a: !secret x\n", "1: a: the tag \"!secret\", expected no tags"),
            (
                "a: &x [*x]\n",
                "1: a[0]: an alias inside what it stands for, expected an anchor before it",
            ),
            ("? [a]\n: 1\n", "1: : a key that is no text, expected a name before the colon"),
        ] {
            assert_eq!(read(yaml), shown, "{yaml:?}");
        }
        for yaml in
            ["a: [1\n", "a:\n\tb: 1\n", "a: *x\n", "a: b: c\n", "a: \"x\n", "@a\n", "a\0b: 1"]
        {
            assert!(parse(yaml).is_err(), "{yaml:?}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        for yaml in ["[".repeat(100_000), "- ".repeat(100_000), "a: ".repeat(100_000)] {
            assert!(parse(&yaml).is_err());
        }
        let nested =
            (0..100_000).map(|n| format!("{}a:\n", " ".repeat(n.min(500)))).collect::<String>();
        assert!(parse(&nested).is_err());
    }
}
