//! One image's registry: its parts, with the token that it wants, from wherever it sends to.

use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use super::way::{Answer, Grant, UNSURE, Way};
use crate::command::login::{Login, Logins, Shows};
use crate::config::Secret;
use crate::doctor::ask::{Asked, refusal};
use crate::doctor::pull;
use crate::http::{Authority, Scheme};
use crate::key::{Image, Reference};
use crate::proxy::{Challenge, Url, bearer_challenge, token_in};
use crate::sys::sync::lock;

/// Requests for one part at most, as long as the registry asks for patience.
const TRIES: u32 = 5;

/// Requests at most where it fails without saying when to come back: the proxy has tried, too.
const FAILED_TRIES: u32 = 3;

/// What is waited before the next request at most, whatever the registry asks for.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Redirects followed for one request.
const REDIRECTS_MAX: u32 = 5;

/// An image where it is asked for.
pub struct Registry<'a> {
    way: &'a Way,
    logins: &'a Logins,
    image: &'a Image,
    home: Url,
    grant: Mutex<Option<Grant>>,
}

impl<'a> Registry<'a> {
    /// The registry of this image, not asked yet.
    pub fn new(way: &'a Way, logins: &'a Logins, image: &'a Image) -> Result<Registry<'a>, String> {
        let authority = Authority::parse(image.repository.authority());
        let Authority { host, port } = authority.map_err(|error| error.to_string())?;
        let (scheme, port) = (Scheme::Https, port.unwrap_or(443));
        let home = Url { scheme, host, port, target: "/".into() };
        Ok(Registry { way, logins, image, home, grant: Mutex::default() })
    }

    /// Which image of its repository it is.
    pub fn reference(&self) -> &Reference {
        &self.image.reference
    }

    /// The answer of 200 with a part of the image: of its `manifests` or `blobs`, the one of this
    /// name.
    pub fn open(&self, kind: &str, name: &str) -> Result<Answer, String> {
        let target = format!("/v2/{}/{kind}/{name}", self.image.repository.name());
        let url = Url { target: target.into(), ..self.home.clone() };
        let mut granted = false;
        for attempt in 1.. {
            let grant = self.granted();
            let answer = self.fetch(&url, pull::ACCEPT, grant.as_ref())?;
            match answer.head.status {
                200 => return Ok(answer),
                401 if !granted => {
                    // Another thread may have been granted something meanwhile.
                    if self.granted() == grant {
                        let new = self.authorize(&answer)?;
                        *lock(&self.grant) = Some(new);
                        granted = true;
                    }
                }
                429 | 503 | 504 => {
                    let after = answer.head.fields.get_str("retry-after");
                    let after = after.and_then(|after| after.trim().parse().ok());
                    let is_busy = after.is_some() || answer.head.status == 429;
                    let pause = match (after, attempt) {
                        _ if attempt >= if is_busy { TRIES } else { FAILED_TRIES } => {
                            return self.refused(answer, grant);
                        }
                        (Some(seconds), _) => Duration::from_secs(seconds),
                        (None, _) => Duration::from_secs(1 << attempt.min(6)),
                    };
                    thread::sleep(pause.min(PAUSE_MAX));
                }
                _ => return self.refused(answer, grant),
            }
        }
        Err("it never answers".to_owned())
    }

    fn granted(&self) -> Option<Grant> {
        lock(&self.grant).clone()
    }

    /// What it answers, or the one that it redirects to: `grant` goes to no other than itself.
    fn fetch(&self, url: &Url, fields: &str, grant: Option<&Grant>) -> Result<Answer, String> {
        let (mut url, mut at_home) = (url.clone(), true);
        for _ in 0..=REDIRECTS_MAX {
            // Whoever sends back here does not choose what is asked for with it.
            at_home &= url.same_origin(&self.home);
            let answer = self.way.get(&url, fields, grant.filter(|_| at_home))?;
            if at_home && answer.opened == Some(false) {
                return Err(format!(
                    "the proxy does not open the TLS of {} and stores nothing of it: see \
                     tls.intercept",
                    url.host
                ));
            }
            if !matches!(answer.head.status, 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            let location = answer.head.fields.get("location").unwrap_or_default();
            url = url.resolve(location).ok_or("it redirects to no URL")?;
        }
        Err(format!("it redirects more than {REDIRECTS_MAX} times"))
    }

    /// What opens what this answer refuses.
    fn authorize(&self, answer: &Answer) -> Result<Grant, String> {
        let challenges = || {
            let values = answer.head.fields.all("www-authenticate");
            values.filter_map(|value| std::str::from_utf8(value).ok())
        };
        let login = match answer.sure {
            true => self.logins.find(&self.image.repository)?,
            false => None,
        };
        if let Some(challenge) = challenges().find_map(bearer_challenge) {
            return self.token(&challenge, login.as_ref(), answer.sure);
        }
        if !challenges().any(is_basic) {
            return Err("401: it wants credentials of a kind that is not known here".to_owned());
        }
        match login {
            Some(Login { shows: Shows::Password(value), source }) => {
                Ok(Grant { value, login: Some(source) })
            }
            Some(Login { source, .. }) => {
                Err(format!("401: it wants a password, and the login of {source} has none"))
            }
            None => Err(self.no_login(answer.sure)),
        }
    }

    fn token(
        &self,
        challenge: &Challenge,
        login: Option<&Login>,
        sure: bool,
    ) -> Result<Grant, String> {
        let insecure = "it wants tokens without TLS";
        let url = challenge.url(&self.home).ok_or(insecure)?;
        let source = login.map(|login| login.source.clone());
        let answer = match login.map(|login| &login.shows) {
            None => self.fetch(&url, "", None)?,
            Some(Shows::Password(value)) => {
                let grant = Grant { value: value.clone(), login: source.clone() };
                self.way.get(&url, "", Some(&grant))?
            }
            Some(Shows::Identity(token)) => {
                let service = challenge.realm_url(&self.home).ok_or(insecure)?;
                let form = Secret::new(challenge.refresh_form(token.expose()));
                self.way.post(&service, &form)?
            }
        };
        let answer = Asked::read((answer.head, answer.body))?;
        match (answer.status(), source) {
            (200, login) => {
                let token = token_in(&answer.body);
                let token = token.ok_or_else(|| format!("{url} answers no token"))?;
                Ok(Grant { value: Secret::new(format!("Bearer {token}")), login })
            }
            (400 | 401 | 403, Some(source)) => {
                let why = refusal(&answer);
                Err(format!("{url} refuses the credentials of {source}: {why}"))
            }
            (401 | 403, None) => Err(self.no_login(sure)),
            _ => Err(format!("{url}: {}", refusal(&answer))),
        }
    }

    /// The error of an answer that is no success.
    fn refused(&self, answer: Answer, grant: Option<Grant>) -> Result<Answer, String> {
        let sure = answer.sure;
        let answer = Asked::read((answer.head, answer.body))?;
        let why = refusal(&answer);
        match (answer.status(), grant.and_then(|grant| grant.login)) {
            (401 | 403, Some(source)) => Err(format!("{why}, to the credentials of {source}")),
            (401, None) => Err(format!("{why}: {}", self.no_login(sure))),
            _ => Err(why),
        }
    }

    fn no_login(&self, sure: bool) -> String {
        match sure {
            true => format!(
                "it wants credentials, and none for {} are in {}",
                self.image.repository, self.logins
            ),
            false => format!("it wants credentials: {UNSURE}"),
        }
    }
}

/// Whether a `WWW-Authenticate` value asks for user and password (RFC 7617, section 2).
fn is_basic(challenge: &str) -> bool {
    challenge.split_whitespace().next().is_some_and(|scheme| scheme.eq_ignore_ascii_case("basic"))
}
