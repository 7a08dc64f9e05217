//! One image's registry: its parts, with the token that it wants, from wherever it sends to.

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::way::{Answer, Way};
use crate::doctor::ask::Asked;
use crate::doctor::pull;
use crate::http::{Authority, Fields, Scheme};
use crate::key::{Image, Reference};
use crate::proxy::{Challenge, Url, bearer_challenge, token_in};

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
    image: &'a Image,
    home: Url,
    /// What `Authorization` is to say.
    grant: Mutex<Option<String>>,
}

impl<'a> Registry<'a> {
    /// The registry of this image, not asked yet.
    pub fn new(way: &'a Way, image: &'a Image) -> Result<Registry<'a>, String> {
        let authority = Authority::parse(image.repository.authority());
        let Authority { host, port } = authority.map_err(|error| error.to_string())?;
        let (scheme, port) = (Scheme::Https, port.unwrap_or(443));
        let home = Url { scheme, host, port, target: "/".into() };
        Ok(Registry { way, image, home, grant: Mutex::default() })
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
            let answer = self.fetch(&url, grant.as_deref())?;
            match answer.head.status {
                200 => return Ok(answer),
                401 if !granted => {
                    // Another thread may have been granted something meanwhile.
                    if self.granted() == grant {
                        let new = self.authorize(&answer.head.fields)?;
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
                            return refused(answer);
                        }
                        (Some(seconds), _) => Duration::from_secs(seconds),
                        (None, _) => Duration::from_secs(1 << attempt.min(6)),
                    };
                    thread::sleep(pause.min(PAUSE_MAX));
                }
                _ => return refused(answer),
            }
        }
        Err("it never answers".to_owned())
    }

    fn granted(&self) -> Option<String> {
        lock(&self.grant).clone()
    }

    /// What it answers, or the one that it redirects to: `grant` goes to no other than itself.
    fn fetch(&self, url: &Url, grant: Option<&str>) -> Result<Answer, String> {
        let mut url = url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let mut fields = pull::ACCEPT.to_owned();
            let at_home = url.same_origin(&self.home);
            if let Some(grant) = grant.filter(|_| at_home) {
                fields.push_str(&format!("Authorization: {grant}\r\n"));
            }
            let answer = self.way.get(&url, &fields)?;
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

    /// What `Authorization` is to say after this challenge.
    fn authorize(&self, fields: &Fields) -> Result<String, String> {
        let challenges = fields.all("www-authenticate");
        let mut challenges = challenges.filter_map(|value| std::str::from_utf8(value).ok());
        match challenges.find_map(bearer_challenge) {
            Some(challenge) => self.token(&challenge),
            None => Err("401: it wants credentials; only public images are warmed".to_owned()),
        }
    }

    fn token(&self, challenge: &Challenge) -> Result<String, String> {
        let url = challenge.url(&self.home).ok_or("it wants tokens without TLS")?;
        let answer = self.way.get(&url, "")?;
        let answer = pull::succeeded(Asked::read((answer.head, answer.body))?)?;
        let token = token_in(&answer.body).ok_or_else(|| format!("{url} answers no token"))?;
        Ok(format!("Bearer {token}"))
    }
}

fn refused(answer: Answer) -> Result<Answer, String> {
    let answer = Asked::read((answer.head, answer.body))?;
    Err(crate::doctor::ask::refusal(&answer))
}

/// A thread that ended by a bug left whole values all the same.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
