//! One key as it is read: its place, its path, its node, and the checks that end in an error
//! naming all three.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::error::{ConfigError, Place};
use super::pattern::{self, HostPattern};
use super::tree::{self, Entry, Node, Value};
use super::value;

/// A key and its value.
pub(super) struct At<'n> {
    pub place: Place,
    pub key: String,
    pub node: &'n Node,
}

impl<'n> At<'n> {
    /// A key that stands on a line of a file.
    pub fn line(file: &str, key: &str, line: usize, node: &'n Node) -> At<'n> {
        At { place: Place::Line(file.to_owned(), line), key: key.to_owned(), node }
    }

    fn at_line(&self, key: String, line: usize, node: &'n Node) -> At<'n> {
        let place = match &self.place {
            Place::Line(file, _) => Place::Line(file.clone(), line),
            other => other.clone(),
        };
        At { place, key, node }
    }

    /// A key of the mapping that stands here.
    pub fn below(&self, entry: &'n Entry) -> At<'n> {
        self.at_line(tree::join(&self.key, &entry.key), entry.line, &entry.node)
    }

    /// The keys that stand here; nothing counts as none.
    pub fn section(&self) -> Result<&'n [Entry], ConfigError> {
        match &self.node.value {
            Value::Map(entries) => Ok(entries),
            Value::Null => Ok(&[]),
            _ => Err(self
                .error(self.node.describe_kind(), "keys and values (`key: value`, one on a line)")),
        }
    }

    /// Reads every item of the list that stands here.
    pub fn list<T>(
        &self,
        item: impl Fn(&At<'n>) -> Result<T, ConfigError>,
    ) -> Result<Vec<T>, ConfigError> {
        let Value::List(_) = self.node.value else {
            return Err(self.wrong("a list (`[a, b]`, or `- a` on lines of their own)"));
        };
        self.items().map(|at| item(&at)).collect()
    }

    /// The items of the list that stands here, none where something else does.
    pub fn items(&self) -> impl Iterator<Item = At<'n>> {
        let items = match &self.node.value {
            Value::List(items) => items.as_slice(),
            _ => &[],
        };
        let named = items.iter().enumerate();
        named.map(|(n, node)| self.at_line(format!("{}[{n}]", self.key), node.line, node))
    }

    /// A value that `read` understands.
    pub fn parsed<T>(
        &self,
        expected: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<T, ConfigError> {
        match &self.node.value {
            Value::Text(text) => read(text).ok_or_else(|| self.wrong(expected)),
            _ => Err(self.wrong(expected)),
        }
    }

    /// Text that errors do not repeat.
    pub fn hidden_text(&self, expected: &str) -> Result<&'n str, ConfigError> {
        match &self.node.value {
            Value::Text(text) => Ok(text),
            _ => Err(self.wrong(expected)),
        }
    }

    /// `true` or `false`.
    pub fn flag(&self) -> Result<bool, ConfigError> {
        self.parsed("true or false", value::boolean)
    }

    /// A whole number in the range.
    pub fn number<N>(&self, range: RangeInclusive<N>) -> Result<N, ConfigError>
    where
        N: std::str::FromStr + PartialOrd + Display,
    {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.parsed(&expected, |text| value::digits(text).filter(|number| range.contains(number)))
    }

    /// A number of bytes from `least` to `most`.
    pub fn size(&self, least: u64, most: u64) -> Result<u64, ConfigError> {
        let bytes = self.parsed(value::EXPECTED_SIZE, value::size)?;
        if (least..=most).contains(&bytes) {
            return Ok(bytes);
        }
        Err(self.wrong(&match most {
            u64::MAX => format!("a size of at least {}", value::size_text(least)),
            _ => format!("a size from {} to {}", value::size_text(least), value::size_text(most)),
        }))
    }

    /// A duration from `least` to `most`.
    pub fn duration(&self, least: Duration, most: Duration) -> Result<Duration, ConfigError> {
        let time = self.parsed(value::EXPECTED_DURATION, value::duration)?;
        if (least..=most).contains(&time) {
            return Ok(time);
        }
        let show = humantime::format_duration;
        Err(self.wrong(&format!("a duration from {} to {}", show(least), show(most))))
    }

    /// A duration of which a wait can be made: none is no wait but a failure.
    pub fn timeout(&self, most: Duration) -> Result<Duration, ConfigError> {
        self.duration(Duration::from_millis(1), most)
    }

    /// One of the named values; letter case does not count.
    pub fn one_of<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, ConfigError> {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        self.parsed(&either(&names), |text| {
            let found = choices.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
            found.map(|(_, value)| *value)
        })
    }

    /// A path of the file system.
    pub fn path(&self) -> Result<PathBuf, ConfigError> {
        self.parsed("a path", |text| {
            let sound = !text.is_empty() && !text.contains('\0');
            sound.then(|| PathBuf::from(text))
        })
    }

    /// A path of the file system; empty text stands for none.
    pub fn path_or_none(&self) -> Result<Option<PathBuf>, ConfigError> {
        match &self.node.value {
            Value::Text(text) if text.is_empty() => Ok(None),
            _ => self.path().map(Some),
        }
    }

    /// A network.
    pub fn net(&self) -> Result<IpNet, ConfigError> {
        self.parsed(value::EXPECTED_NET, value::net)
    }

    /// A host pattern.
    pub fn host(&self) -> Result<HostPattern, ConfigError> {
        self.parsed(pattern::EXPECTED, |text| text.parse().ok())
    }

    /// The error that another value was expected here.
    pub fn wrong(&self, expected: &str) -> ConfigError {
        self.error(&self.node.describe(), expected)
    }

    /// The same, where the value found may be secret.
    pub fn wrong_hidden(&self, expected: &str) -> ConfigError {
        self.error("something else (not shown)", expected)
    }

    /// The error that there is no such key.
    pub fn unknown(&self, keys: &[&str]) -> ConfigError {
        self.error("an unknown key", &either(keys))
    }

    /// An error about this key.
    pub fn error(&self, found: &str, expected: &str) -> ConfigError {
        ConfigError::new(self.place.clone(), &self.key, found, expected)
    }
}

fn either(names: &[&str]) -> String {
    match names {
        [rest @ .., last] if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.concat(),
    }
}
