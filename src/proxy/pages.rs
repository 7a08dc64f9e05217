//! What the proxy answers for itself, in origin form: what it is, its CA, and scripts that point a
//! client at it.
//!
//! The address in them is the one the client used. It was read as an authority: its bytes are
//! letters, digits and `-_.:[]`, which mean nothing to a shell, and a page quotes none.

use std::net::SocketAddr;

use super::Worker;
use super::answer::{Answer, Reply};
use super::session::{Client, End};
use crate::http::{Authority, Framing, Method, RequestHead, Scheme, request_framing, split_path};
use crate::net::Conn;

const TEXT: &str = "text/plain; charset=utf-8";

/// Pages name nothing from elsewhere, and a script is not to be taken for one.
const GUARD: &str = "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n\
                     X-Content-Type-Options: nosniff\r\nVary: Accept\r\n";

/// What every set-up script begins with; its last line follows the client's own part.
const COMMON: &str = include_str!("setup/common.sh");

/// What a client's script adds, by its name.
const CLIENTS: [(&str, &str); 5] = [
    ("docker", include_str!("setup/docker.sh")),
    ("containerd", include_str!("setup/containerd.sh")),
    ("podman", include_str!("setup/podman.sh")),
    ("buildkit", include_str!("setup/buildkit.sh")),
    ("ci", include_str!("setup/ci.sh")),
];

/// Answers a request that is for the proxy itself.
pub async fn answer(
    worker: &Worker,
    client: &Client,
    head: &RequestHead,
    target: &str,
    keep_alive: bool,
) -> Result<(), End> {
    let keep = keep_alive && request_framing(head).is_ok_and(|framing| framing == Framing::None);
    let with_body = head.method != Method::HEAD;
    let asks = !with_body || head.method == Method::GET;
    let page = page(worker, &own_address(&client.conn, head), head, split_path(target).0);
    let sent = if let Some((kind, text)) = page.filter(|_| asks) {
        let reply = Reply { status: 200, kind, body: text.as_bytes(), extra: GUARD };
        reply.send_to(client, head.version, keep, with_body).await
    } else {
        let message = "this is a proxy: send it whole URLs (http://host/path) or CONNECT host:443";
        let answer = Answer::new(404, "NOT_FOUND", message);
        answer.send(client, head.version, keep, with_body).await
    };
    match (sent, keep) {
        (Err(_), _) => Err(End::Broken),
        (Ok(()), true) => Ok(()),
        (Ok(()), false) => Err(End::Unread),
    }
}

/// The address under which the client knows this proxy, with its port.
fn own_address(conn: &Conn, head: &RequestHead) -> String {
    let named = head.fields.get_str("host").and_then(|host| Authority::parse(host).ok());
    match (named, conn.local_addr()) {
        (Some(named), _) => format!("{}:{}", named.host, named.port_for(Scheme::Http)),
        (None, Ok(address)) => address.to_string(),
        (None, Err(_)) => "PROXY:17080".to_owned(),
    }
}

fn page(
    worker: &Worker,
    own: &str,
    head: &RequestHead,
    path: &str,
) -> Option<(&'static str, String)> {
    if path == "/ca.crt" {
        return Some(("application/x-pem-file", worker.ca.certificate_pem().to_owned()));
    }
    if path == "/" {
        let (kind, text) = match head.fields.tokens("accept").any(is_html) {
            true => ("text/html; charset=utf-8", include_str!("setup/index.html")),
            false => (TEXT, include_str!("setup/index.txt")),
        };
        return Some((
            kind,
            text.replace("@ADMIN@", &admin_page(worker.admin, own)).replace("@PROXY@", own),
        ));
    }
    let wanted = path.strip_prefix("/setup/")?;
    let (name, part) = CLIENTS.iter().find(|(name, _)| *name == wanted)?;
    // The CA last: what is in its file is no template.
    let script = format!("{COMMON}\n{part}\nmain \"$@\"\n")
        .replace("@CLIENT@", name)
        .replace("@PROXY@", own)
        .replace("@REGISTRIES@", &worker.policy.intercepted_names().join(" "))
        .replace("@PATTERNS@", &worker.policy.intercepted_patterns().join(", "))
        .replace("@CA@", worker.ca.certificate_pem().trim_end());
    Some((TEXT, script))
}

/// Where the admin port's page is, for a client that knows the proxy under `own`.
fn admin_page(admin: SocketAddr, own: &str) -> String {
    match admin.ip().to_canonical() {
        ip if ip.is_loopback() => format!("http://{admin}/ on the proxy's host, and only there"),
        ip if ip.is_unspecified() => {
            let host = own.rsplit_once(':').map_or(own, |(host, _)| host);
            format!("http://{host}:{}/", admin.port())
        }
        _ => format!("http://{admin}/"),
    }
}

/// Whether a member of Accept is HTML, with whatever parameters.
fn is_html(range: &str) -> bool {
    range.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/html"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_admin_port_is_named_as_it_can_be_reached() {
        let shown = |admin: &str, own: &str| admin_page(admin.parse().unwrap(), own);
        for own in ["cache.test:17080", "[2001:db8::1]:17080"] {
            let local = shown("127.0.0.1:17081", own);
            assert_eq!(local, "http://127.0.0.1:17081/ on the proxy's host, and only there");
            assert_eq!(shown("10.0.0.7:81", own), "http://10.0.0.7:81/");
        }
        assert_eq!(shown("0.0.0.0:17081", "cache.test:17080"), "http://cache.test:17081/");
        assert_eq!(shown("[::]:81", "[2001:db8::1]:80"), "http://[2001:db8::1]:81/");
    }
}
