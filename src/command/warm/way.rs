//! The way to registries: through the proxy by CONNECT, as their clients go, and TLS inside. The
//! proxy opens that of most registries, by certificates of its own CA.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::body::Body;
use crate::config::{Config, Secret};
use crate::doctor::ask::{Proxy, Rest, talk};
use crate::doctor::named_proxy;
use crate::http::{Method, ResponseHead, response_framing};
use crate::net::{Secure, Trust};
use crate::proxy::Url;

/// Who asks.
const AGENT: &str = concat!("discobot-proxy/", env!("CARGO_PKG_VERSION"));

/// Why credentials are kept back.
pub const UNSURE: &str = "credentials only go where the proxy's CA is known from a file, not from \
                          what the proxy says: name it by --ca FILE";

/// A proxy, and whom to trust behind it.
pub struct Way {
    proxy: Proxy,
    trust: Trust,
}

/// What came back of a request.
pub struct Answer {
    /// Its head.
    pub head: ResponseHead,
    /// What is to be read of its body.
    pub body: Body<Rest<Secure>>,
    /// Whether it is known for sure who answers: by a file or the system's store.
    pub sure: bool,
    /// Whether it is the proxy that opened the TLS, where that can be told.
    pub opened: Option<bool>,
}

/// What `Authorization` says.
#[derive(Clone, PartialEq, Eq)]
pub struct Grant {
    /// The field's value.
    pub value: Secret,
    /// The source of the login that it came of; a token for nobody has none.
    pub login: Option<String>,
}

/// Why there is no way.
pub enum NoWay {
    /// An argument that can't be meant.
    Usage(String),
    /// The proxy is not there.
    Gone(String),
}

impl Way {
    /// The way through the proxy named, and by the CA named: else by that of this machine's proxy,
    /// and by what the proxy says its CA is.
    pub fn find(config: &Config, named: Option<&str>, ca: Option<&Path>) -> Result<Way, NoWay> {
        let proxy = named_proxy(config, named).map_err(NoWay::Usage)?;
        let gone = |why| NoWay::Gone(format!("the proxy {proxy} can't be reached: {why}"));
        let page = proxy.own("/ca.crt").map_err(gone)?;
        let said = page.body.starts_with(b"-----BEGIN").then_some(&*page.body);
        let files: Vec<PathBuf> = match ca {
            Some(file) => vec![file.to_owned()],
            // Who may not read it has the proxy's word.
            None => {
                let own = config.tls.cert_dir.join("ca.crt");
                File::open(&own).is_ok().then_some(own).into_iter().collect()
            }
        };
        let trust = Trust::new(&files, said, ca.is_none()).map_err(NoWay::Usage)?;
        Ok(Way { proxy, trust })
    }

    /// Asks for `url`, which is an https one. `fields` are whole lines.
    pub fn get(&self, url: &Url, fields: &str, grant: Option<&Grant>) -> Result<Answer, String> {
        let authorization = match grant {
            Some(Grant { value, .. }) => ["Authorization: ", value.expose(), "\r\n"].concat(),
            None => String::new(),
        };
        let authorization = Secret::new(authorization);
        let is_secret = grant.is_some_and(|grant| grant.login.is_some());
        let fields = Secret::new([fields, authorization.expose(), "\r\n"].concat());
        self.ask(&Method::GET, url, &fields, is_secret)
    }

    /// Sends a form that holds a secret to `url`, which is an https one.
    pub fn post(&self, url: &Url, form: &Secret) -> Result<Answer, String> {
        let fields = format!(
            "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n",
            form.expose().len()
        );
        let rest = Secret::new([&*fields, form.expose()].concat());
        self.ask(&Method::POST, url, &rest, true)
    }

    /// `rest` is all that follows the first fields.
    fn ask(
        &self,
        method: &Method,
        url: &Url,
        rest: &Secret,
        is_secret: bool,
    ) -> Result<Answer, String> {
        let origin = url.origin();
        if !origin.tls {
            return Err(format!("{url} is without TLS"));
        }
        let stream = self.proxy.tunnel(&origin.to_string())?;
        let stream = self.trust.connect(&url.host, stream).map_err(|error| {
            let hint = match error.is_unknown_signer() {
                true => ": is --ca the CA of this proxy, and does the system trust the others?",
                false => "",
            };
            format!("{url}: {error}{hint}")
        })?;
        let Secure { sure, opened, .. } = stream;
        if is_secret && !sure {
            return Err(UNSURE.to_owned());
        }
        let head = format!(
            "{} {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: {AGENT}\r\nConnection: close\r\n",
            method.as_str(),
            url.target,
            url.authority()
        );
        let request = Secret::new([&*head, rest.expose()].concat());
        let (head, rest) = talk(stream, request.expose().as_bytes())?;
        let framing = response_framing(method, &head).map_err(|error| error.to_string())?;
        Ok(Answer { head, body: Body::new(rest, framing), sure, opened })
    }
}
