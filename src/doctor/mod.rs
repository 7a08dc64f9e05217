//! `doctor`: looks at a client, or at the proxy's own host, and says of each thing that a pull
//! through the proxy needs whether it is as it should be, and what mends it.
//!
//! It changes nothing and uses blocking calls: it is a command, not a part of the proxy.

pub(crate) mod ask;
mod clients;
mod host;
pub(crate) mod pull;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use self::ask::{Asked, Proxy};
use crate::config::Config;
use crate::key::Image;

/// How far a clock may be off before leaf certificates, which begin a day early, are at risk.
const CLOCK_WARN_SECS: u64 = 5 * 60;
const CLOCK_FAIL_SECS: u64 = 23 * 60 * 60;

/// What to look at.
#[derive(Debug)]
pub struct Options {
    /// `http://HOST:PORT`; else `HTTPS_PROXY`, else the configured port of this machine.
    pub proxy: Option<String>,
    /// The system that is looked at.
    pub root: PathBuf,
    /// An image to pull a little of.
    pub image: Option<String>,
}

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// As it should be.
    Ok,
    /// Works, and may not for long, or for all.
    Warn,
    /// Pulls don't work, or don't go through the proxy.
    Fail,
}

/// What was seen of one thing.
#[derive(Debug)]
pub struct Finding {
    /// How it is.
    pub state: State,
    what: &'static str,
    seen: String,
    /// A command.
    mend: Option<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Ok => "ok",
            State::Warn => "warn",
            State::Fail => "fail",
        };
        writeln!(f, "{state:<5} {}: {}", self.what, self.seen)?;
        match &self.mend {
            Some(mend) => writeln!(f, "      mend: {mend}"),
            None => Ok(()),
        }
    }
}

fn ok(what: &'static str, seen: impl Into<String>) -> Finding {
    Finding { state: State::Ok, what, seen: seen.into(), mend: None }
}

fn warn(what: &'static str, seen: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { state: State::Warn, what, seen: seen.into(), mend: Some(mend.into()) }
}

fn fail(what: &'static str, seen: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { state: State::Fail, ..warn(what, seen, mend) }
}

/// Looks at everything, telling each finding as it is made; `false` where one failed.
///
/// # Errors
/// A proxy or an image that can't be meant, in one line.
pub fn examine(
    config: &Config,
    options: &Options,
    tell: &mut dyn FnMut(&Finding),
) -> Result<bool, String> {
    let proxy = named_proxy(config, options.proxy.as_deref())?;
    let image = options.image.as_deref().map(Image::parse).transpose()?;
    let mut well = true;
    let mut note = |finding: Finding| {
        well &= finding.state != State::Fail;
        tell(&finding);
    };
    let page = proxy.own("/ca.crt");
    note(reached(&proxy, &page));
    if let Ok(page) = &page {
        note(clock(page));
        let ca = String::from_utf8_lossy(&page.body);
        clients::look(&options.root, &proxy, &ca).into_iter().for_each(&mut note);
        if let Some(image) = &image {
            note(pull::try_twice(&proxy, image));
        }
    }
    if options.root == Path::new("/") {
        host::look(config).into_iter().for_each(&mut note);
    }
    Ok(well)
}

/// Asks the running proxy's admin port whether it is well: what it says, or why it does not.
///
/// # Errors
/// Where it can't be asked or does not answer 200, in one line.
pub fn health(config: &Config) -> Result<String, String> {
    let admin = own_admin(config)?;
    match admin.own("/health") {
        Ok(said) if said.status() == 200 => Ok(String::from_utf8_lossy(&said.body).into_owned()),
        Ok(said) => Err(format!("{admin} answers {}", said.status())),
        Err(error) => Err(format!("{admin} does not answer: {error}")),
    }
}

/// The admin port that the configuration names, as it is reached from this machine.
pub(crate) fn own_admin(config: &Config) -> Result<Proxy, String> {
    let ip = match config.proxy.api_bind {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let address = SocketAddr::new(ip, config.proxy.api_port);
    Proxy::parse(&format!("http://{address}"))
        .ok_or_else(|| format!("{address} is no address to ask: see proxy.api_port"))
}

pub(crate) fn named_proxy(config: &Config, named: Option<&str>) -> Result<Proxy, String> {
    if let Some(named) = named {
        // It may hold a password.
        return Proxy::parse(named).ok_or_else(|| "--proxy wants http://HOST:PORT".to_owned());
    }
    for name in ["HTTPS_PROXY", "https_proxy"] {
        if let Ok(value) = std::env::var(name)
            && !value.is_empty()
        {
            return Proxy::parse(&value)
                .ok_or_else(|| format!("{name} is not http://HOST:PORT; name it by --proxy"));
        }
    }
    let own = format!("http://127.0.0.1:{}", config.proxy.port);
    Proxy::parse(&own).ok_or_else(|| format!("{own} is no address"))
}

fn reached(proxy: &Proxy, page: &Result<Asked, String>) -> Finding {
    let what = "proxy";
    match page {
        Ok(page) if page.status() == 200 && page.body.starts_with(b"-----BEGIN") => {
            ok(what, format!("{proxy} answers"))
        }
        Ok(page) => fail(
            what,
            format!(
                "{proxy} answers {} and is no discobot-proxy, or does not let us in",
                page.status()
            ),
            format!(
                "curl -i {proxy}/   # proxy.allow_clients of its configuration says who may come"
            ),
        ),
        Err(error) => fail(
            what,
            format!("{proxy} can't be reached: {error}"),
            "systemctl start discobot-proxy   # on the proxy's host; or name another by --proxy",
        ),
    }
}

fn clock(page: &Asked) -> Finding {
    let what = "clock";
    let theirs = page.field("date").and_then(|date| httpdate::parse_http_date(date).ok());
    let Some(theirs) = theirs else {
        return warn(what, "the proxy does not say the time", "date -u   # compare them by hand");
    };
    let off = match SystemTime::now().duration_since(theirs) {
        Ok(ahead) => ahead,
        Err(behind) => behind.duration(),
    };
    let seen = format!("{} s from the proxy's", off.as_secs());
    let mend = "timedatectl set-ntp true";
    match off.as_secs() {
        CLOCK_FAIL_SECS.. => fail(what, seen, mend),
        CLOCK_WARN_SECS..CLOCK_FAIL_SECS => warn(what, seen, mend),
        _ => ok(what, seen),
    }
}
