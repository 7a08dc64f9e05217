//! Credential helpers: programs `docker-credential-NAME` that keep logins for Docker and podman.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::Shows;
use crate::config::Secret;
use crate::http::Basic;
use crate::sys::sync::lock;

/// How long a helper may take: some ask a cloud, or a person.
const LIMIT: Duration = Duration::from_secs(60);

/// Bytes that it may answer.
const ANSWER_MAX: u64 = 64 * 1024;

/// The user that stands for an identity token.
const IDENTITY: &str = "<token>";

/// What helpers have answered so far.
#[derive(Default)]
pub struct Helpers(Mutex<BTreeMap<(String, String), Option<Shows>>>);

impl Helpers {
    /// What the helper of this name knows of a server; asked once.
    pub fn ask(&self, name: &str, server: &str) -> Result<Option<Shows>, String> {
        let mut asked = lock(&self.0);
        let key = (name.to_owned(), server.to_owned());
        if let Some(known) = asked.get(&key) {
            return Ok(known.clone());
        }
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if !name.bytes().all(is_name) {
            return Err(format!("{name:?} names no credential helper"));
        }
        let program = format!("docker-credential-{name}");
        let shows = ask(&program, server, LIMIT).map_err(|why| format!("{program} get: {why}"))?;
        asked.insert(key, shows.clone());
        Ok(shows)
    }
}

fn ask(program: &str, server: &str, limit: Duration) -> Result<Option<Shows>, String> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // Whatever it says there, it may be a password.
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| error.to_string())?;
    let answer = exchange(&mut child, server, limit);
    // It has ended, as a rule, and has nothing more to say in any case.
    let _ = child.kill();
    let _ = child.wait();
    let answer = answer?;
    if answer.expose().len() as u64 > ANSWER_MAX {
        return Err(format!("it answers more than {ANSWER_MAX} bytes"));
    }
    let answer = answer.expose().trim();
    if answer.contains("credentials not found") {
        return Ok(None);
    }
    let document: Value = serde_json::from_str(answer).unwrap_or_default();
    match (document["Username"].as_str(), document["Secret"].as_str()) {
        (Some(_), Some("")) => Ok(None),
        (Some(IDENTITY), Some(secret)) => Ok(Some(Shows::Identity(Secret::new(secret)))),
        (Some(user), Some(secret)) => {
            Ok(Some(Shows::Password(Secret::new(Basic::new(user, secret).value().as_str()))))
        }
        // It may be a password: it is not shown.
        _ => Err("it answers no login".to_owned()),
    }
}

/// Tells it the server, and reads what it answers, for so long.
fn exchange(child: &mut Child, server: &str, limit: Duration) -> Result<Secret, String> {
    let (Some(mut to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
        return Err("it has no pipes".to_owned());
    };
    // Shorter than a pipe: this does not wait. One that does not read it may answer all the same.
    let _ = to.write_all(format!("{server}\n").as_bytes());
    drop(to);
    let (sender, receiver) = mpsc::channel();
    // Not waited for: what the helper has started may keep the pipe open.
    thread::spawn(move || {
        let mut text = String::new();
        let read = from.take(ANSWER_MAX + 1).read_to_string(&mut text);
        let text = Secret::new(text);
        // Where nobody waits any more, it is too late.
        let _ = sender.send(read.map(|_| text).map_err(|error| error.to_string()));
    });
    receiver.recv_timeout(limit).unwrap_or_else(|_| {
        Err(format!("it took longer than {}", humantime::format_duration(limit)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a helper of this shell text answers.
    fn answer(script: &str, limit: Duration) -> Result<Option<Shows>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("helper");
        // By a process of its own: what this one has open for writing, another test's may inherit,
        // and such a file can't be run (ETXTBSY).
        let write = "printf '#!/bin/sh\\n%s\\n' \"$2\" >\"$1\" && chmod 755 \"$1\"";
        let mut command = Command::new("sh");
        command.args(["-c", write, "sh"]).arg(&path).arg(script);
        assert!(command.status().unwrap().success());
        ask(path.to_str().unwrap(), "r.test", limit)
    }

    #[test]
    fn answers_are_read() {
        let says = |text: &str| answer(&format!("cat >/dev/null; echo '{text}'"), LIMIT);
        let password = Shows::Password(Secret::new("Basic dTpw"));
        let identity = Shows::Identity(Secret::new("s"));
        assert_eq!(says(r#"{"Username":"u","Secret":"p"}"#), Ok(Some(password)));
        assert_eq!(says(r#"{"Username":"<token>","Secret":"s"}"#), Ok(Some(identity)));
        assert_eq!(says(r#"{"Username":"","Secret":""}"#), Ok(None));
        let none = "echo credentials not found in native keychain; exit 1";
        assert_eq!(answer(none, LIMIT), Ok(None));
        for wrong in ["s3cret", "{}", "[]", r#"{"Username":"s3cret"}"#] {
            assert_eq!(says(wrong), Err("it answers no login".to_owned()), "{wrong}");
        }
        // One that reads nothing.
        let deaf = r#"exec <&-; echo '{"Username":"u","Secret":"p"}'"#;
        assert!(answer(deaf, LIMIT).is_ok_and(|shows| shows.is_some()));
    }

    #[test]
    fn answers_have_an_end() {
        let error = answer("exec tr '\\0' x </dev/zero", LIMIT).unwrap_err();
        assert_eq!(error, "it answers more than 65536 bytes");
        // It never answers, so that any limit is reached.
        let error = answer("exec tail -f /dev/null", Duration::from_millis(1)).unwrap_err();
        assert_eq!(error, "it took longer than 1ms");
    }

    #[test]
    fn no_path_is_a_helper() {
        for name in ["../x", "a/b", "a b", "$x"] {
            let error = Helpers::default().ask(name, "r.test").unwrap_err();
            assert_eq!(error, format!("{name:?} names no credential helper"));
        }
    }
}
