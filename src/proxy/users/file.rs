//! The file of users: lines `USER:HASH` as `htpasswd -B` writes them, with bcrypt alone.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A file larger than this is some other file.
const FILE_BYTES: u64 = 1 << 20;

/// The length of every bcrypt hash.
const HASH_BYTES: usize = 60;

/// What bcrypt costs at most: 2^15 rounds are some seconds, and each further step doubles them.
const COST_MAX: u32 = 15;

/// The least there is.
const COST_MIN: u32 = 4;

const EXPECTED_FILE: &str = "a readable file of lines USER:HASH, at most 1 MiB";
const EXPECTED_LINE: &str =
    "USER:HASH with a bcrypt hash ($2y$, $2a$ or $2b$) of a cost from 4 to 15, from `htpasswd -B`";

/// Users and the hashes of their passwords; at least one.
pub struct Table {
    users: HashMap<Vec<u8>, Hash>,
    /// In the order of the file.
    hashes: Vec<Hash>,
}

/// A bcrypt hash.
#[derive(Clone)]
pub struct Hash(Box<str>);

impl Hash {
    fn parse(text: &str) -> Option<Hash> {
        let version = ["$2y$", "$2a$", "$2b$"].iter().any(|prefix| text.starts_with(prefix));
        let cost = text.get(4..6).filter(|cost| cost.bytes().all(|byte| byte.is_ascii_digit()))?;
        let cost = cost.parse().ok()?;
        let rest = text.get(6..)?.strip_prefix('$')?;
        let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'/');
        let sound = version
            && text.len() == HASH_BYTES
            && (COST_MIN..=COST_MAX).contains(&cost)
            && rest.bytes().all(is_digit)
            // Digits alone are not enough: the last of each part stands for a few bits only.
            && text.parse::<bcrypt::HashParts>().is_ok();
        sound.then(|| Hash(text.into()))
    }

    /// Whether this is the hash of the password; the comparison takes the same time whichever byte
    /// differs. What holds a NUL is no password: bcrypt repeats one with a NUL behind it, so that
    /// some would be the same as a shorter one.
    pub fn is_of(&self, password: &[u8]) -> bool {
        let same = bcrypt::verify(password, &self.0).unwrap_or(false);
        same & !password.contains(&0)
    }
}

/// What is wrong with a file.
#[derive(Debug)]
pub struct Wrong {
    /// Counted from 1; 0 for the file as a whole.
    line: usize,
    what: String,
    /// What would be right.
    pub expected: &'static str,
}

impl Wrong {
    fn file(what: impl Into<String>) -> Wrong {
        Wrong { line: 0, what: what.into(), expected: EXPECTED_FILE }
    }

    /// What was found, with the file and its line; never a part of a hash.
    pub fn found(&self, path: &Path) -> String {
        match self.line {
            0 => format!("{:?}: {}", path.display().to_string(), self.what),
            line => format!("{:?}: {} on line {line}", path.display().to_string(), self.what),
        }
    }
}

impl Table {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Table, Wrong> {
        let mut bytes = Vec::new();
        let read = File::open(path)
            .and_then(|file| file.take(FILE_BYTES + 1).read_to_end(&mut bytes))
            .map_err(|error| Wrong::file(format!("no readable file ({error})")))?;
        if read as u64 > FILE_BYTES {
            return Err(Wrong::file("more than 1 MiB"));
        }
        let text = String::from_utf8(bytes).map_err(|_| Wrong::file("bytes that are no UTF-8"))?;
        Table::parse(&text)
    }

    fn parse(text: &str) -> Result<Table, Wrong> {
        let mut table = Table { users: HashMap::new(), hashes: Vec::new() };
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_end();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |what: &str| {
                let what = what.to_owned();
                Err(Wrong { line: number + 1, what, expected: EXPECTED_LINE })
            };
            let Some((user, rest)) = line.split_once(':') else {
                return wrong("no colon");
            };
            // nginx allows a comment behind the hash.
            let hash = rest.split_once(':').map_or(rest, |(hash, _)| hash);
            let Some(hash) = Hash::parse(hash) else {
                return wrong("no bcrypt hash");
            };
            if user.is_empty() {
                return wrong("no user's name");
            }
            if table.users.insert(user.as_bytes().to_vec(), hash.clone()).is_some() {
                return wrong("a user for the second time");
            }
            table.hashes.push(hash);
        }
        if table.hashes.is_empty() { Err(Wrong::file("no user")) } else { Ok(table) }
    }

    /// How many users there are.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// The hash of a user's password.
    pub fn hash_of(&self, user: &[u8]) -> Option<&Hash> {
        self.users.get(user)
    }

    /// The hash to compare with for a user who does not exist: always the same one for the same
    /// `mark`, so that it costs what some user's would, and always that.
    pub fn stand_in(&self, mark: &[u8; 32]) -> &Hash {
        let [a, b, c, d, ..] = *mark;
        let at = u32::from_le_bytes([a, b, c, d]) as usize % self.hashes.len();
        &self.hashes[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$2y$04$abcdefghijklmnopqrstuuchfW6qKGHPmWbpYPB8NwI5L.KjFn0Ti";

    #[test]
    fn lines_of_htpasswd_are_read() {
        let text = format!("# users\n\nann:{HASH}\r\nbob:{HASH}:a comment\n  \nbüb:{HASH}");
        let table = Table::parse(&text).unwrap();
        assert_eq!((table.len(), table.hashes.len()), (3, 3));
        for user in ["ann", "bob", "büb"] {
            assert!(table.hash_of(user.as_bytes()).unwrap().is_of(b"right-2y"), "{user}");
        }
        assert!(table.hash_of(b"").is_none() && table.hash_of(b"# users").is_none());
        for mark in 0..=u8::MAX {
            assert!(!table.stand_in(&[mark; 32]).is_of(b"any"));
        }
    }

    #[test]
    fn every_line_that_is_none_is_refused_without_showing_it() {
        for (line, what) in [
            ("ann", "no colon"),
            (&format!(":{HASH}"), "no user's name"),
            (&format!("eve:{HASH}"), "a user for the second time"),
            ("ann:$apr1$s3cret..$s3crets3crets3crets3c", "no bcrypt hash"),
            ("ann:{SHA}s3cret=", "no bcrypt hash"),
            ("ann:s3cret", "no bcrypt hash"),
            ("ann:", "no bcrypt hash"),
            (&format!("ann:{}", HASH.replace("2y", "2x")), "no bcrypt hash"),
            (&format!("ann:{}", HASH.replace("2y", "2z")), "no bcrypt hash"),
            (&format!("ann:{}", HASH.replace("$04", "$03")), "no bcrypt hash"),
            (&format!("ann:{}", HASH.replace("$04", "$16")), "no bcrypt hash"),
            (&format!("ann:{}", HASH.replace("$04", "$+4")), "no bcrypt hash"),
            (&format!("ann:{HASH}x"), "no bcrypt hash"),
            (&format!("ann:{}", &HASH[..59]), "no bcrypt hash"),
            (&format!("ann:{}", HASH.replace("Ti", "é")), "no bcrypt hash"),
            (&format!("ann:{}", HASH.replace("Ti", "T!")), "no bcrypt hash"),
            (&format!("ann:{}", HASH.replace("Ti", "Tj")), "no bcrypt hash"),
        ] {
            let wrong = Table::parse(&format!("eve:{HASH}\n{line}\n")).err().unwrap();
            let found = wrong.found(Path::new("/f"));
            assert_eq!(found, format!("\"/f\": {what} on line 2"), "{line}");
        }
        for text in ["", "\n# none\n"] {
            assert_eq!(Table::parse(text).err().unwrap().found(Path::new("f")), "\"f\": no user");
        }
    }

    #[test]
    fn a_file_is_read_without_comparing_anything() {
        // Comparing would take the better part of an hour.
        let hash = HASH.replace("$04", "$15");
        let text: String = (0..1000).map(|n| format!("user{n}:{hash}\n")).collect();
        assert_eq!(Table::parse(&text).unwrap().len(), 1000);
    }

    #[test]
    fn a_nul_makes_no_other_password_of_one() {
        let hash = Hash::parse(HASH).unwrap();
        assert!(hash.is_of(b"right-2y"));
        assert!(bcrypt::verify(b"right-2y\0right-2y", &hash.0).unwrap(), "why it is looked for");
        for password in [&b"right-2y\0right-2y"[..], b"right-2y\0", b"right-2", b""] {
            assert!(!hash.is_of(password));
        }
    }
}
