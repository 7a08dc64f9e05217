//! Private images (`cache.access: verify`): asks upstream whether this client may have what is
//! stored, where [`Rights`] can't tell, and tells them what upstream answered.
//!
//! Public repositories are found out once, by a question of our own without credentials, and cost
//! nothing from then on. Identical questions on one core are asked once.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs;
use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Mutex, MutexGuard};
use std::task::{Poll, Waker};
use std::time::Duration;

use super::challenge::{anonymous_token, bearer_challenge};
use super::drain::guarded;
use super::exchange::Request;
use super::fetch::{Recipe, outgoing};
use super::url::Url;
use super::{Terms, Worker};
use crate::cache::Seen;
use crate::http::{Fields, Method};
use crate::key::Digest;
use crate::policy::rights::{
    Asked, Learned, Listing, MANIFEST_MAX, Manifest, Principal, Question, RegistryPath,
    RepositoryId, Rights, Secret, Verdict, Wanted, What,
};
use crate::policy::{self, Injected};
use crate::stats::Stats;
use crate::sys::clock::now_ms;
use crate::sys::sync::lock;

/// Questions one request asks at most before it goes upstream by itself.
const QUESTIONS_MAX: usize = 3;

/// How long a client waits for the answer to a question at most: upstream is then as good as away.
const QUESTION_TIME: Duration = Duration::from_secs(10);

/// The name under which an entry's head says which repository its bytes came from. It never leaves
/// the proxy.
pub const SOURCE: &str = "X-Discobot-Source";

/// Who was shown what, for the whole process.
pub struct Access {
    secret: Secret,
    rights: Mutex<Rights>,
    /// Held while they are being written down.
    saving: Mutex<()>,
    /// Where public repositories are remembered over restarts.
    file: PathBuf,
}

impl Access {
    /// Reads or makes the secret in `certs`, and reads what is known of public repositories from
    /// `dir`. The error names the file.
    pub fn open(certs: &Path, dir: &Path) -> io::Result<Access> {
        let path = certs.join("grants.key");
        let secret = read_secret(&path).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
        let mut rights = Rights::new(Listing::Blobs);
        let file = dir.join("public");
        // Without the file everything is asked anew.
        if let Ok(exported) = fs::read(&file) {
            rights.import(&secret, &exported, now_ms());
        }
        Ok(Access { secret, rights: Mutex::new(rights), saving: Mutex::default(), file })
    }

    /// Writes down which repositories are public, where that has changed; blocks.
    pub fn save(&self) -> io::Result<()> {
        let _saving = lock(&self.saving);
        let exported = {
            let mut rights = self.rights();
            if !rights.take_unsaved() {
                return Ok(());
            }
            rights.export(&self.secret, now_ms())
        };
        let part = self.file.with_extension("part");
        let written = fs::write(&part, exported).and_then(|()| fs::rename(part, &self.file));
        written.inspect_err(|_| self.rights().keep_unsaved())
    }

    /// Rows of members, grants and repositories.
    pub fn sizes(&self) -> policy::rights::Sizes {
        self.rights().sizes()
    }

    fn rights(&self) -> MutexGuard<'_, Rights> {
        lock(&self.rights)
    }
}

/// Bytes that nobody can guess.
pub fn random_bytes() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn read_secret(path: &Path) -> io::Result<Secret> {
    let mut bytes = [0; 32];
    match fs::File::open(path) {
        Ok(mut file) => {
            let mode = file.metadata()?.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                let why = "lets others at the secret of grants; run chmod 600 on it, or remove it";
                return Err(io::Error::other(format!("mode {mode:04o} {why}")));
            }
            file.read_exact(&mut bytes)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bytes = random_bytes()?;
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(&bytes)?;
        }
        Err(error) => return Err(error),
    }
    Ok(Secret::new(bytes))
}

/// Questions under way on this core, and who waits for their answer.
#[derive(Default)]
pub struct Asking(RefCell<HashMap<Question, Rc<Pending>>>);

#[derive(Default)]
struct Pending {
    waiting: RefCell<Vec<Waker>>,
    over: Cell<bool>,
    heard: Cell<Option<Heard>>,
}

/// What came of a question.
#[derive(Clone, Copy, Debug)]
enum Heard {
    /// Upstream answered.
    Answer(Learned),
    /// It could not be asked.
    Nothing,
}

/// What is done with a stored entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// It is handed out, as it is to everybody.
    Public,
    /// It is handed out to this client.
    Open,
    /// Its bytes are fetched as though nothing was stored.
    Fetch,
    /// Upstream is to answer the client's own request itself: with no, or with what ails it.
    Refused,
    /// Upstream can't be asked, and nothing is known that would do.
    Unknown,
}

/// A request as the rights look at it.
struct Door<'a> {
    worker: &'a Rc<Worker>,
    access: &'a Access,
    request: &'a Request,
    principal: Principal,
}

/// Whether this client may have the entry of `digest`, which came from `source`.
pub async fn gate(
    worker: &Rc<Worker>,
    request: &Request,
    digest: &Digest,
    source: Option<&RepositoryId>,
) -> Gate {
    let Some(access) = worker.access.as_deref() else { return Gate::Public };
    let wanted = Wanted { repository: request.repository(), digest, source };
    if access.rights().open_to_all(&wanted, now_ms()) {
        return Gate::Public;
    }
    let Some(door) = Door::at(worker, access, request) else { return Gate::Refused };
    door.find_out_public();
    for _ in 0..QUESTIONS_MAX {
        let verdict = access.rights().verdict(&wanted, &door.principal, now_ms());
        let question = match verdict {
            Verdict::Allowed => return Gate::Open,
            Verdict::Fetch => return Gate::Fetch,
            Verdict::Ask(question) => question,
        };
        let heard = match worker.asking.turn(&question) {
            Turn::Wait(pending) => {
                Stats::add(&worker.stats.questions_shared, 1);
                pending.heard().await
            }
            Turn::Ask(asker) => Some(asker.tell(door.ask_in_time(digest).await)),
        };
        let allowed_offline =
            || access.rights().allowed_offline(&wanted, &door.principal, now_ms());
        match heard {
            // Whoever asked left before the answer.
            None | Some(Heard::Answer(Learned::Proven)) => {}
            Some(Heard::Answer(Learned::Refused)) => return Gate::Refused,
            Some(Heard::Answer(Learned::Unclear)) => return Gate::Fetch,
            Some(Heard::Answer(Learned::Trouble)) if allowed_offline() => return Gate::Open,
            Some(Heard::Answer(Learned::Trouble)) => return Gate::Refused,
            Some(Heard::Nothing) if allowed_offline() => return Gate::Open,
            Some(Heard::Nothing) => return Gate::Unknown,
        }
    }
    Gate::Fetch
}

/// Takes in the first answer of a registry to a client's request, before any redirect is followed.
pub fn note_answer(worker: &Rc<Worker>, request: &Request, status: u16, fields: &Fields) {
    let Some(access) = worker.access.as_deref() else { return };
    let Some(path) = RegistryPath::parse(request.url.path()) else { return };
    let digest = path.digest();
    let Some(what) = What::of(&request.head.method, &path, digest.as_ref()) else { return };
    if let Some(door) = Door::at(worker, access, request) {
        let asked =
            Asked { repository: door.request.repository(), principal: &door.principal, what };
        access.rights().note_answer(&asked, status, fields, now_ms());
        door.find_out_public();
    }
}

/// Takes in that the bytes of `digest` were delivered whole to this request's credentials, which
/// upstream answered at `answered_ms`.
pub fn note_served(worker: &Rc<Worker>, request: &Request, digest: &Digest, answered_ms: u64) {
    let Some(access) = worker.access.as_deref() else { return };
    if let Some(door) = Door::at(worker, access, request) {
        access.rights().note_served(
            door.request.repository(),
            digest,
            &door.principal,
            answered_ms,
        );
    }
}

/// Takes in what an entry names that this request's repository delivered, where it is a manifest.
pub fn note_manifest(worker: &Worker, request: &Request, seen: &Seen) {
    let Some(access) = worker.access.as_deref() else { return };
    if !request.url.path().contains("/manifests/") || seen.written > MANIFEST_MAX as u64 {
        return;
    }
    // At most MANIFEST_MAX.
    let mut body = vec![0; seen.written as usize];
    if seen.body.file.read_exact_at(&mut body, 0).is_ok()
        && let Some(manifest) = Manifest::parse(&body)
    {
        access.rights().note_manifest(request.repository(), &manifest);
    }
}

fn what<'a>(request: &Request, digest: Option<&'a Digest>) -> Option<What<'a>> {
    What::of(&request.head.method, &RegistryPath::parse(request.url.path())?, digest)
}

impl<'a> Door<'a> {
    /// `None` where the request can't be sent as it is.
    fn at(worker: &'a Rc<Worker>, access: &'a Access, request: &'a Request) -> Option<Door<'a>> {
        let mut fields = request.head.fields.clone();
        policy::pass_request(&mut fields);
        let (method, received) = (request.head.method.clone(), request.head.version);
        let injected = request.terms.injected;
        let head = outgoing(worker, received, method, &request.url, fields, injected).ok()?;
        let principal = Principal::new(&access.secret, &head.fields, request.url.query());
        Some(Door { worker, access, request, principal })
    }

    /// HEAD of what is wanted with the client's own credentials, redirects not followed.
    async fn ask(&self, digest: &Digest) -> Heard {
        Stats::add(&self.worker.stats.questions, 1);
        let recipe = Recipe { method: Method::HEAD, ..self.request.recipe() };
        let answer = match recipe.fetch_first(self.worker).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::info!(host = %self.request.url.host, %error, "access can't be asked");
                return Heard::Nothing;
            }
        };
        let what = what(self.request, Some(digest)).unwrap_or(What::Blob(digest));
        let asked =
            Asked { repository: self.request.repository(), principal: &self.principal, what };
        let (status, fields) = (answer.head.status, answer.head.fields.clone());
        answer.recycle(self.worker);
        Heard::Answer(self.access.rights().note_answer(&asked, status, &fields, now_ms()))
    }

    async fn ask_in_time(&self, digest: &Digest) -> Heard {
        Box::pin(monoio::time::timeout(QUESTION_TIME, self.ask(digest))).await.unwrap_or_else(
            |_| {
                let host = &self.request.url.host;
                tracing::info!(%host, "access can't be asked: no answer in {QUESTION_TIME:?}");
                Heard::Nothing
            },
        )
    }

    /// Has somebody ask whether the repository is public, where that is due.
    fn find_out_public(&self) {
        if self.principal.is_anonymous()
            || RegistryPath::parse(self.request.url.path()).is_none()
            || !self.access.rights().public_due(self.request.repository(), now_ms())
        {
            return;
        }
        let (worker, request) = (Rc::clone(self.worker), self.request.clone());
        monoio::spawn(guarded(async move { find_out_public(&worker, &request).await }));
    }
}

/// Asks as anybody could, with a token for nobody where the registry wants one.
async fn find_out_public(worker: &Worker, request: &Request) {
    let Some(access) = worker.access.as_deref() else { return };
    let Some((status, fields)) = ask_as_nobody(worker, request.recipe()).await else { return };
    let digest = RegistryPath::parse(request.url.path()).and_then(|path| path.digest());
    let Some(what) = what(request, digest.as_ref()) else { return };
    let repository = request.repository();
    let asked = Asked { repository, principal: &Principal::ANONYMOUS, what };
    let mut rights = access.rights();
    if rights.note_answer(&asked, status, &fields, now_ms()) == Learned::Refused {
        rights.note_public(repository, false, now_ms());
    }
}

/// Status and fields of what anybody is answered; `None`: unclear.
async fn ask_as_nobody(worker: &Worker, client: Recipe) -> Option<(u16, Fields)> {
    Stats::add(&worker.stats.questions, 1);
    let mut fields = Fields::new();
    for accept in client.fields.all("accept") {
        fields.push("Accept", accept).ok()?;
    }
    // Without the query, in which some registries take tokens.
    let url = Url { target: client.url.path().into(), ..client.url.clone() };
    let terms = Terms { injected: Injected::Nothing, ..client.terms };
    let mut bare = Recipe { method: Method::HEAD, url, fields, terms, ..client };
    let first = head_of(worker, &bare).await?;
    if first.0 != 401 {
        return Some(first);
    }
    // Asked for a password, or without a token for nobody: not for everybody.
    let Some(challenge) = first.1.get_str("www-authenticate").and_then(bearer_challenge) else {
        return Some(first);
    };
    match anonymous_token(worker, &bare.url, &challenge).await? {
        Some(token) => {
            bare.fields.set("Authorization", format!("Bearer {token}")).ok()?;
            head_of(worker, &bare).await
        }
        None => Some(first),
    }
}

async fn head_of(worker: &Worker, recipe: &Recipe) -> Option<(u16, Fields)> {
    let answer = recipe.fetch_first(worker).await.ok()?;
    let found = (answer.head.status, answer.head.fields.clone());
    answer.recycle(worker);
    Some(found)
}

/// What a request does about its question.
enum Turn<'a> {
    Ask(Asker<'a>),
    Wait(Rc<Pending>),
}

impl Asking {
    fn turn(&self, question: &Question) -> Turn<'_> {
        let mut asking = self.0.borrow_mut();
        if let Some(pending) = asking.get(question) {
            return Turn::Wait(Rc::clone(pending));
        }
        let pending = Rc::<Pending>::default();
        asking.insert(question.clone(), Rc::clone(&pending));
        Turn::Ask(Asker { asking: self, question: question.clone(), pending })
    }
}

impl Pending {
    /// Waits for what whoever asks is told; `None` where that one leaves without a word.
    async fn heard(self: Rc<Pending>) -> Option<Heard> {
        poll_fn(|cx| {
            if self.over.get() {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
        self.heard.get()
    }
}

/// Whoever asks; those who wait go on when it ends, however it ends.
struct Asker<'a> {
    asking: &'a Asking,
    question: Question,
    pending: Rc<Pending>,
}

impl Asker<'_> {
    /// Tells those who wait.
    fn tell(self, heard: Heard) -> Heard {
        self.pending.heard.set(Some(heard));
        heard
    }
}

impl Drop for Asker<'_> {
    fn drop(&mut self) {
        self.asking.0.borrow_mut().remove(&self.question);
        self.pending.over.set(true);
        let waiting = self.pending.waiting.take();
        waiting.into_iter().for_each(Waker::wake);
    }
}
