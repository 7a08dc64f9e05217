//! A source file as the rules of the house see it: lines, with comments and literals blanked.

/// A source file as the rules see it.
pub struct Source {
    /// Below `src/`, with `/`.
    pub path: String,
    pub raw: Vec<String>,
    /// The same lines with comments and literals blanked.
    pub code: Vec<String>,
    /// Which lines belong to tests.
    pub test: Vec<bool>,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Source {
        let raw: Vec<String> = text.lines().map(str::to_owned).collect();
        let blanked = blank(text);
        let code: Vec<String> = blanked.lines().map(str::to_owned).collect();
        let whole = path.ends_with("/tests.rs") || path.contains("/tests/");
        let test = if whole { vec![true; code.len()] } else { test_lines(&code) };
        Source { path: path.to_owned(), raw, code, test }
    }

    /// `net` for `net/tls.rs`, `key` for `key.rs`.
    pub fn module(&self) -> &str {
        self.path.split('/').next().unwrap_or("").trim_end_matches(".rs")
    }

    pub fn fault(&self, line: usize, what: &str) -> String {
        format!("src/{}:{}: {what}", self.path, line + 1)
    }

    /// Code lines outside tests, with their numbers.
    pub fn shipped(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.code.iter().zip(&self.test).enumerate();
        lines.filter(|(_, (_, test))| !**test).map(|(number, (line, _))| (number, line.as_str()))
    }
}

/// Where `wanted` stands in a line as a whole word. Lint names such as `unsafe_code` are others.
pub fn word(line: &str, wanted: &str) -> Option<usize> {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(wanted).map(|(at, _)| at).find(|at| {
        !part(line[..*at].chars().next_back()) && !part(line[at + wanted.len()..].chars().next())
    })
}

/// Marks the lines of items under `#[cfg(test)]`, to the closing brace or the semicolon.
fn test_lines(code: &[String]) -> Vec<bool> {
    let mut marks = vec![false; code.len()];
    let mut number = 0;
    while number < code.len() {
        if !code[number].contains("#[cfg(test)]") {
            number += 1;
            continue;
        }
        let mut depth = 0_i32;
        'item: while number < code.len() {
            marks[number] = true;
            let line = code[number].replace("#[cfg(test)]", "");
            number += 1;
            for c in line.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ';' if depth == 0 => break 'item,
                    _ => continue,
                }
                if c == '}' && depth == 0 {
                    break 'item;
                }
            }
        }
    }
    marks
}

/// The text with comments and the insides of string and character literals blanked; lines stay.
pub fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = match (chars[at], chars.get(at + 1)) {
            ('/', Some('/')) => until(&chars, at, |i| chars[i] == '\n'),
            ('/', Some('*')) => block_comment(&chars, at),
            ('"', _) => string(&chars, at, 0),
            ('r', Some('"' | '#')) if !is_word(&chars, at) => match raw_string(&chars, at) {
                Some(end) => end,
                None => at,
            },
            ('\'', _) => character(&chars, at),
            _ => at,
        };
        if end == at {
            out.push(chars[at]);
            at += 1;
            continue;
        }
        for c in &chars[at..end] {
            out.push(if *c == '\n' { '\n' } else { ' ' });
        }
        at = end;
    }
    out
}

fn is_word(chars: &[char], at: usize) -> bool {
    at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_') && chars[at - 1] != 'b'
}

fn until(chars: &[char], from: usize, end: impl Fn(usize) -> bool) -> usize {
    (from..chars.len()).find(|i| end(*i)).unwrap_or(chars.len())
}

fn block_comment(chars: &[char], from: usize) -> usize {
    let mut depth = 0;
    let mut at = from;
    while at + 1 < chars.len() {
        match (chars[at], chars[at + 1]) {
            ('/', '*') => (depth, at) = (depth + 1, at + 2),
            ('*', '/') => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    chars.len()
}

/// The end of a string whose quote stands at `from`; closed by a quote and `hashes` hashes.
fn string(chars: &[char], from: usize, hashes: usize) -> usize {
    let mut at = from + 1;
    while at < chars.len() {
        if chars[at] == '\\' && hashes == 0 {
            at += 2;
            continue;
        }
        let closes = chars[at] == '"' && (1..=hashes).all(|i| chars.get(at + i) == Some(&'#'));
        at += 1;
        if closes {
            return at + hashes;
        }
    }
    chars.len()
}

fn raw_string(chars: &[char], from: usize) -> Option<usize> {
    let quote = until(chars, from + 1, |i| chars[i] != '#');
    if chars.get(quote) != Some(&'"') {
        return None;
    }
    let hashes = quote - from - 1;
    // Without hashes a raw string still has no escapes.
    match hashes {
        0 => Some(until(chars, quote + 1, |i| chars[i] == '"') + 1),
        _ => Some(string(chars, quote, hashes)),
    }
}

/// The end of a character literal at `from`; `from` itself where it is a lifetime.
fn character(chars: &[char], from: usize) -> usize {
    match (chars.get(from + 1), chars.get(from + 2)) {
        (Some('\\'), _) => until(chars, from + 3, |i| chars[i] == '\'') + 1,
        (Some(_), Some('\'')) => from + 3,
        _ => from,
    }
}
