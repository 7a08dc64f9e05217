//! What is wrong with a configuration, on one line, and where each key was written.

use std::collections::HashMap;
use std::fmt;

/// Longest stretch of a faulty value that an error repeats, in characters.
const SHOWN: usize = 60;

/// A configuration that is refused. `Display` gives one line:
/// `FILE:LINE: KEY: found WHAT, expected WHAT`, with the variable's name for `FILE:LINE: KEY`
/// where the value came from the environment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.line())]
pub struct ConfigError {
    pub(super) place: Place,
    pub(super) key: String,
    pub(super) problem: String,
}

impl ConfigError {
    /// The dotted path of the key, empty where the file as a whole is meant.
    pub fn key(&self) -> &str {
        &self.key
    }

    pub(super) fn new(place: Place, key: &str, found: &str, expected: &str) -> ConfigError {
        let problem = format!("found {found}, expected {expected}");
        ConfigError { place, key: key.to_owned(), problem }
    }

    fn line(&self) -> String {
        let problem = one_line(&self.problem);
        let key = one_line(&self.key);
        match (&self.place, key.as_str()) {
            (Place::Variable(name), _) => format!("{name}: {problem}"),
            (Place::Default, "") => problem,
            (Place::Default, key) => format!("{key}: {problem}"),
            (place, "") => format!("{place}: {problem}"),
            (place, key) => format!("{place}: {key}: {problem}"),
        }
    }
}

/// Where a key was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere.
    Default,
    /// In this file as a whole.
    File(String),
    /// In this file on this line, counted from 1.
    Line(String, usize),
    /// In this environment variable.
    Variable(&'static str),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Default => Ok(()),
            Place::File(name) => f.write_str(&one_line(name)),
            Place::Line(name, line) => write!(f, "{}:{line}", one_line(name)),
            Place::Variable(name) => f.write_str(name),
        }
    }
}

/// The places of all keys that were written. Two configurations that say the same are equal
/// wherever they say it, so all `Places` are equal.
#[derive(Clone, Debug, Default)]
pub struct Places(HashMap<String, Place>);

impl PartialEq for Places {
    fn eq(&self, _: &Places) -> bool {
        true
    }
}

impl Places {
    pub(super) fn note(&mut self, key: &str, place: Place) {
        self.0.insert(key.to_owned(), place);
    }

    pub(super) fn forget(&mut self, key: &str) {
        self.0.remove(key);
    }

    pub(super) fn is_written(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    pub(super) fn error(&self, key: &str, found: &str, expected: &str) -> ConfigError {
        let place = self.0.get(key).cloned().unwrap_or(Place::Default);
        ConfigError::new(place, key, found, expected)
    }
}

/// A faulty value as an error repeats it: quoted, escaped, cut.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_one_line_whatever_they_repeat() {
        let place = Place::Line("a\nb.yaml".to_owned(), 3);
        let error = ConfigError::new(place, "x.y\r", &quoted("1\n2"), "no\ttabs");
        assert_eq!(error.to_string(), r#"a b.yaml:3: x.y : found "1\n2", expected no tabs"#);
    }

    #[test]
    fn long_values_are_cut() {
        let text = quoted(&"é".repeat(200));
        assert_eq!(text.chars().count(), SHOWN + 3);
    }

    #[test]
    fn the_place_stands_in_front() {
        let error = |place| ConfigError::new(place, "a.b", "1", "2").to_string();
        assert_eq!(error(Place::Default), "a.b: found 1, expected 2");
        assert_eq!(error(Place::Variable("LOG_LEVEL")), "LOG_LEVEL: found 1, expected 2");
        assert_eq!(error(Place::File("f".to_owned())), "f: a.b: found 1, expected 2");
    }
}
