//! The same bytes to nginx and to us. Both refuse what is malformed, and take what is not; where
//! they differ the tables here say why, and an entry that no longer differs is as wrong as a
//! difference without an entry.

#[path = "smuggle/rows.rs"]
mod rows;
mod support;
#[path = "differential/tables.rs"]
mod tables;

use std::fmt;

use rows::{
    BODY, CHUNKS, FIELDS, FRAMINGS, HEADS, STATUS_LINES, chunked, oversize, with_fields,
    without_body,
};
use serde_json::json;
use support::answer::Answer;
use support::client::Client;
use support::names;
use support::nginx::Nginx;
use support::origin::Origin;
use support::proxy::{Proxy, Setup};
use support::raw::{everything, say};
use tables::{ANSWERS, Difference, REQUESTS, VALID};

/// What became of some bytes.
#[derive(PartialEq, Eq)]
struct Outcome {
    /// Classes of the answers' statuses.
    classes: Vec<u16>,
    /// Requests that upstream got to see whole.
    seen: usize,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let classes: Vec<_> = self.classes.iter().map(|class| format!("{class}xx")).collect();
        write!(f, "{}, {} upstream", classes.join(" "), self.seen)
    }
}

/// Us and nginx, each before an upstream of its own that can be reached by the same name.
struct Pair {
    proxy: Proxy,
    nginx: Nginx,
    ours: Origin,
    theirs: Origin,
    _setup: Setup,
}

impl Pair {
    fn start() -> Pair {
        let limits = json!({ "header_timeout": "3s", "idle_timeout": "3s" });
        let setup = Setup::new().with(json!({ "limits": limits, "upstream": { "retries": 0 } }));
        let proxy = setup.start();
        // The bytes name a host and a port: the same for both.
        let ours = Origin::http(names::SECOND);
        let port = ours.address().port();
        let address = names::address(names::OTHER);
        let theirs = Origin::at(names::SECOND, &format!("{address}:{port}"));
        let nginx = Nginx::before(theirs.address());
        Pair { proxy, nginx, ours, theirs, _setup: setup }
    }

    /// Sends the text to both, a whole request behind it, and gives what became of it: here, there.
    fn say(&self, text: &str) -> (Outcome, Outcome) {
        let hidden = "GET {t}?hidden HTTP/1.1\r\nHost: {h}\r\nConnection: close\r\n\r\n";
        let text = format!("{text}{hidden}");
        let text = text
            .replace("{t}", &self.ours.url("/row"))
            .replace("{h}", &self.ours.authority())
            .replace("{H}", &self.ours.authority().to_uppercase());
        let tell = |mut client: Client, origin: &Origin| {
            let whole = || origin.seen().iter().filter(|seen| seen.body_sha256.is_some()).count();
            let before = whole();
            let said = say(&mut client, "GET", text.as_bytes());
            let classes = said.statuses().iter().map(|status| status / 100).collect();
            Outcome { classes, seen: whole() - before }
        };
        let nginx = Client::direct(self.nginx.address(), "");
        (tell(self.proxy.plain(), &self.ours), tell(nginx, &self.theirs))
    }
}

/// Holds what became of each row, here and there, to the table.
fn judge(table: &[Difference], outcomes: &[(&str, String, String)]) {
    let mut faults = Vec::new();
    for (row, ours, theirs) in outcomes {
        let known: Vec<_> = table.iter().filter(|known| known.rows.contains(row)).collect();
        match known[..] {
            [] if ours == theirs => {}
            [] => faults.push(format!("{row}: {ours}, nginx {theirs}, unexplained")),
            [one] if ours == theirs => {
                faults.push(format!("{row}: {ours} both, explained as {:?}", one.why));
            }
            [one] if (one.ours, one.theirs) == (ours, theirs) => {}
            [one] => {
                let (here, there) = (one.ours, one.theirs);
                faults.push(format!("{row}: {ours}, nginx {theirs}, not {here} and {there}"));
            }
            _ => faults.push(format!("{row} is explained twice")),
        }
    }
    for row in table.iter().flat_map(|known| known.rows) {
        let tried = outcomes.iter().filter(|(name, ..)| name == row).count();
        if tried != 1 {
            faults.push(format!("{row} was tried {tried} times"));
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn requests_are_taken_and_refused_as_nginx_does_but_for_what_is_explained() {
    let pair = Pair::start();
    for origin in [&pair.ours, &pair.theirs] {
        for method in ["GET", "POST"] {
            origin.on(method, "/row", Answer::status(200, "reached"));
        }
    }
    let mut rows: Vec<(&str, String)> = Vec::new();
    rows.extend(VALID.iter().map(|(row, text)| (*row, (*text).to_owned())));
    rows.extend(FRAMINGS.iter().map(|(row, lines, _)| (*row, with_fields("POST", lines, false))));
    rows.extend(FIELDS.iter().map(|(row, lines, _)| (*row, without_body("GET", lines))));
    rows.extend(HEADS.iter().map(|(row, text, _)| (*row, (*text).to_owned())));
    rows.extend(CHUNKS.iter().map(|(row, body, _)| (*row, chunked(body))));
    rows.extend(oversize().into_iter().map(|(row, text, _)| (row, text)));
    let outcomes: Vec<_> = rows
        .iter()
        .map(|(row, text)| {
            let (ours, theirs) = pair.say(text);
            (*row, ours.to_string(), theirs.to_string())
        })
        .collect();
    judge(REQUESTS, &outcomes);
}

/// What a client gets of an answer.
fn outcome(bytes: &[u8]) -> &'static str {
    let chunked = bytes.windows(7).any(|part| part == b"chunked");
    match bytes {
        _ if bytes.starts_with(b"HTTP/1.1 503 ") => "503",
        // Nothing, or what visibly breaks off, is no answer either.
        b"" => "refused",
        _ if bytes.starts_with(b"HTTP/1.1 502 ") => "refused",
        _ if chunked && !bytes.ends_with(b"\r\n0\r\n\r\n") => "refused",
        _ => "passed on",
    }
}

#[test]
fn answers_are_taken_and_refused_as_nginx_does_but_for_what_is_explained() {
    let pair = Pair::start();
    let sound = "HTTP/1.1 200 OK\r\n";
    let mut rows = vec![
        ("sound", format!("{sound}Content-Length: 5\r\n\r\nhello")),
        ("until it closes", format!("{sound}\r\nhello")),
        ("HTTP/1.0", "HTTP/1.0 200 OK\r\n\r\nhello".to_owned()),
        ("no reason", "HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello".to_owned()),
        ("beyond ASCII", format!("{sound}X: \u{e9}\r\nContent-Length: 5\r\n\r\nhello")),
        ("chunks", format!("{sound}Transfer-Encoding: chunked\r\n\r\n5;a\r\nhello\r\n0\r\n\r\n")),
        ("no answer at all", String::new()),
    ];
    let body = "Content-Length: 5\r\n\r\nhello";
    rows.extend(STATUS_LINES.iter().map(|(row, line)| (*row, format!("{line}{body}"))));
    rows.extend(FIELDS.iter().map(|(row, lines, _)| (*row, format!("{sound}{lines}{body}"))));
    rows.extend(FRAMINGS.iter().map(|(row, lines, _)| (*row, format!("{sound}{lines}\r\n{BODY}"))));
    let coded = format!("{sound}Transfer-Encoding: chunked\r\n\r\n");
    rows.extend(CHUNKS.iter().map(|(row, body, _)| (*row, format!("{coded}{body}"))));
    let (url, host) = (pair.ours.url("/row"), pair.ours.authority());
    let text = format!("GET {url} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let ask = |mut client: Client| {
        client.wire.send(text.as_bytes()).expect("sending");
        outcome(&everything(&mut client)).to_owned()
    };
    let outcomes: Vec<_> = rows
        .iter()
        .map(|(row, answer)| {
            for origin in [&pair.ours, &pair.theirs] {
                origin.get("/row", Answer::raw(answer.as_bytes()));
            }
            let nginx = Client::direct(pair.nginx.address(), "");
            (*row, ask(pair.proxy.plain()), ask(nginx))
        })
        .collect();
    judge(ANSWERS, &outcomes);
}
