//! A file of logins: Docker's `config.json`, or `auth.json` (containers-auth.json(5)).

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde_json::Value;

use super::helper::Helpers;
use super::{Login, Shows};
use crate::config::Secret;
use crate::http::Basic;
use crate::key::Repository;

/// Bytes of such a file at most.
const FILE_MAX: u64 = 1024 * 1024;

/// What Docker calls the Hub in its file, and to helpers.
const HUB_URL: &str = "https://index.docker.io/v1/";

/// What was read of it.
pub struct File<'a> {
    path: &'a Path,
    document: Value,
}

impl File<'_> {
    /// Reads it; `None` where it is not there, or empty.
    pub fn read(path: &Path) -> Result<Option<File<'_>>, String> {
        let failed = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) => {
                let gone = matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
                return if gone { Ok(None) } else { Err(failed(&error)) };
            }
        };
        let mut text = String::new();
        let read = file.take(FILE_MAX + 1).read_to_string(&mut text);
        let text = Secret::new(text);
        read.map_err(|error| failed(&error))?;
        if text.expose().len() as u64 > FILE_MAX {
            return Err(failed(&format_args!("more than {FILE_MAX} bytes")));
        }
        if text.expose().trim().is_empty() {
            return Ok(None);
        }
        // Where, not what: that may be a password.
        let document = serde_json::from_str(text.expose()).map_err(|error| {
            failed(&format_args!("no JSON at line {}, column {}", error.line(), error.column()))
        })?;
        Ok(Some(File { path, document }))
    }

    /// The login that it has, or that a helper has which it names.
    pub fn find(
        &self,
        repository: &Repository,
        helpers: &Helpers,
    ) -> Result<Option<Login>, String> {
        let name = repository.to_string();
        let registry = name.split('/').next().unwrap_or_default();
        if let Some(helper) = self.helper(registry) {
            // Docker asks for the Hub by its URL, others by its name.
            let servers = if is_hub(registry) { vec![HUB_URL, registry] } else { vec![registry] };
            for server in servers {
                let at = self.path.display();
                let shows = helpers.ask(helper, server).map_err(|why| format!("{at}: {why}"))?;
                if let Some(shows) = shows {
                    let source = format!("docker-credential-{helper}, which {at} names");
                    return Ok(Some(Login { shows, source }));
                }
            }
        }
        let Some(entry) = self.entry(&name, registry) else { return Ok(None) };
        let source = self.path.display().to_string();
        match shown(entry) {
            Ok(shows) => Ok(shows.map(|shows| Login { shows, source })),
            Err(()) => Err(format!("{source}: the auth for {registry} is no user and password")),
        }
    }

    fn helper(&self, registry: &str) -> Option<&str> {
        let of_registry = self.document["credHelpers"].as_object().and_then(|helpers| {
            let mut helpers = helpers.iter();
            helpers.find_map(|(key, name)| name.as_str().filter(|_| is_for(key, registry)))
        });
        let of_all = || self.document["credsStore"].as_str();
        of_registry.or_else(of_all).filter(|name| !name.is_empty())
    }

    /// The entry of `auths` for the repository, or else for the folder nearest to it, or else for
    /// its registry; that may be named by a URL.
    fn entry(&self, name: &str, registry: &str) -> Option<&Value> {
        let auths = self.document["auths"].as_object()?;
        let mut key = name;
        loop {
            if let Some(entry) = auths.get(key) {
                return Some(entry);
            }
            match key.rsplit_once('/') {
                Some((folder, _)) => key = folder,
                None => break,
            }
        }
        auths.iter().find_map(|(key, entry)| is_for(key, registry).then_some(entry))
    }
}

/// Whether a key of the file stands for all of a registry. The path is a URL's, or else a
/// repository's.
fn is_for(key: &str, registry: &str) -> bool {
    let url = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let host = match url {
        Some(url) => url.split('/').next().unwrap_or_default(),
        None => key,
    };
    let host = host.to_ascii_lowercase();
    let host = host.strip_suffix(":443").unwrap_or(&host);
    host == registry || is_hub(host) && is_hub(registry)
}

fn is_hub(host: &str) -> bool {
    matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io")
}

/// What an entry has to show; `None` where that lies elsewhere. The error is an `auth` that can't
/// be read.
fn shown(entry: &Value) -> Result<Option<Shows>, ()> {
    let text = |name: &str| entry[name].as_str().filter(|text| !text.is_empty());
    if let Some(token) = text("identitytoken") {
        return Ok(Some(Shows::Identity(Secret::new(token))));
    }
    let known = match (text("auth"), text("username")) {
        (Some(auth), _) => Basic::decode(auth).ok_or(())?,
        (None, Some(user)) => Basic::new(user, text("password").unwrap_or_default()),
        (None, None) => return Ok(None),
    };
    Ok(Some(Shows::Password(Secret::new(known.value().as_str()))))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(document: &Value, repository: &str) -> Option<Shows> {
        let file = File { path: Path::new("f"), document: document.clone() };
        let repository = Repository::parse(repository).unwrap();
        file.find(&repository, &Helpers::default()).unwrap().map(|login| login.shows)
    }

    fn user(name: &str) -> Option<Shows> {
        Some(Shows::Password(Secret::new(Basic::new(name, "p").value().as_str())))
    }

    fn auth(name: &str) -> Value {
        let value = Basic::new(name, "p").value();
        json!({"auth": value.strip_prefix("Basic ").unwrap()})
    }

    #[test]
    fn the_nearest_key_counts() {
        let document = json!({"auths": {
            "reg.test": auth("all"),
            "reg.test/org": auth("org"),
            "reg.test/org/app": auth("app"),
            "https://url.test/v2/": auth("url"),
            "Upper.test:443": auth("upper"),
            "port.test:5000": auth("port"),
            "scoped.test/org": auth("scoped"),
            "https://index.docker.io/v1/": auth("hub"),
            "empty.test": {},
        }});
        for (repository, expected) in [
            ("reg.test/org/app", user("app")),
            ("reg.test/org/app/part", user("app")),
            ("reg.test/org/other", user("org")),
            ("reg.test/organic", user("all")),
            ("url.test/x", user("url")),
            ("upper.test/x", user("upper")),
            ("port.test:5000/x", user("port")),
            ("port.test/x", None),
            ("scoped.test/x", None),
            ("scoped.test/org/x", user("scoped")),
            ("alpine", user("hub")),
            ("org/app", user("hub")),
            ("empty.test/x", None),
            ("other.test/x", None),
        ] {
            assert_eq!(found(&document, repository), expected, "{repository}");
        }
        let podman = json!({"auths": {"docker.io": auth("hub"), "docker.io/org": auth("org")}});
        assert_eq!(found(&podman, "alpine"), user("hub"));
        assert_eq!(found(&podman, "org/app"), user("org"));
    }

    #[test]
    fn entries_are_read_in_each_of_their_ways() {
        for (entry, expected) in [
            (json!({"username": "u", "password": "p"}), user("u")),
            (json!({"auth": "", "username": "u", "password": "p"}), user("u")),
            (
                json!({"auth": "dTpw", "identitytoken": "secret"}),
                Some(Shows::Identity(Secret::new("secret"))),
            ),
            (json!({"auth": "dTpw", "identitytoken": ""}), user("u")),
            (json!({"email": "e"}), None),
            (json!(null), None),
        ] {
            assert_eq!(found(&json!({"auths": {"r.test": entry}}), "r.test/x"), expected);
        }
        for document in [json!([]), json!({"auths": []}), json!({"credHelpers": 1}), json!(7)] {
            assert_eq!(found(&document, "r.test/x"), None);
        }
        let file = File {
            path: Path::new("f"),
            document: json!({"auths": {"r.test": {"auth": "s3cret"}}}),
        };
        let repository = Repository::parse("r.test/x").unwrap();
        let error = file.find(&repository, &Helpers::default()).unwrap_err();
        assert_eq!(error, "f: the auth for r.test is no user and password");
    }
}
