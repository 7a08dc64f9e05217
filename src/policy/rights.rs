//! Who was shown to have what, so that a shared cache hands out nothing that upstream would not.
//!
//! A *member* is a digest that upstream showed to be in a repository. A *grant* says that upstream
//! let a *principal* read a repository a moment ago. A repository is *public* where upstream let
//! somebody read it who sent no credentials. A *source* is the repository that bytes at hand came
//! from.
//!
//! What must stay true:
//!
//! - **Both doors.** Stored bytes go to who may read the repository that is asked, and only where
//!   the digest is in that repository. A digest is no secret: who has rights in one repository may
//!   not use them for what is in another.
//! - **A registry vouches for its own bytes only.** Anybody can run a registry that says it has
//!   whatever digest it is asked for, and lists it in a manifest. So bytes are given out in the
//!   name of a registry only after that registry itself delivered them, proven by their digest, or
//!   where they came from a public repository. Anything else is fetched ([`Verdict::Fetch`]).
//! - **Listed is less than shown.** A layer or configuration in a manifest counts as a member:
//!   registries take a manifest only where its repository has those blobs. An index may name
//!   manifests that its repository does not have (sparse indexes; the distribution specification
//!   leaves the check to the registry), and these count only under [`Listing::All`].
//! - **Only a registry's word counts.** A login page is a 200 or a 302 just as well: an answer that
//!   bears no mark of a registry proves nothing.
//! - **Bounded.** Every table forgets what was not used for longest; whoever is forgotten is asked
//!   about again, never let in.
//!
//! The delay of a revocation is [`GRANT_MS`] for principals and [`PUBLIC_MS`] for repositories that
//! are no longer public and of which nobody asks upstream; a refused request to a public repository
//! makes the question due at once. A member does not lapse: what is deleted upstream stays readable
//! here for those who may read its repository, until somebody is told that it is gone.

mod manifest;
mod place;
mod principal;
mod table;

use crate::http::{Fields, Method};
use crate::key::Digest;
use place::{Short, short};
use table::Table;

pub use manifest::{DESCRIPTORS_MAX, MANIFEST_MAX, Manifest, Part};
pub use place::{Endpoint, RegistryPath, RepositoryId};
pub use principal::{Principal, Secret};

/// How long a grant holds, unless the credentials say that they end before.
pub const GRANT_MS: u64 = 10 * 60 * 1000;

/// How long what was proven is remembered for when upstream can't be reached.
pub const GRACE_MS: u64 = 24 * 3600 * 1000;

/// How long a repository counts as public.
pub const PUBLIC_MS: u64 = 12 * 3600 * 1000;

/// How long a repository counts as not public, before it is worth asking again.
pub const CLOSED_MS: u64 = 10 * 60 * 1000;

/// How long the question whether a repository is public stays with whom it was given to.
const ASKING_MS: u64 = 60 * 1000;

/// What the clock may go back by. Proof from further ahead counts for nothing: it would hold as
/// much longer as the clock went back.
const SKEW_MS: u64 = 60 * 1000;

/// Rows of (repository, digest) at most, 34 bytes each: 18 MB when full.
pub const MEMBERS_MAX: usize = 2 * 229_376;

/// Rows of (repository, principal) at most, 49 bytes each: 6.5 MB when full. Tokens are new at each
/// pull, so this bounds how many pulls of the last day are remembered.
pub const GRANTS_MAX: usize = 2 * 57_344;

/// Repositories of which it is known whether they are public at most, 41 bytes each: 1.4 MB.
pub const REPOSITORIES_MAX: usize = 2 * 14_336;

/// The first line of what [`Rights::export`] writes; another one is another format.
const EXPORTED: &str = "discobot-proxy public repositories 1";

/// Which digests that a manifest names are members by that alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listing {
    /// Layers and configurations. A manifest of an index is asked about once for each repository,
    /// unless it was fetched from there.
    #[default]
    Blobs,
    /// The manifests of an index, too: for registries that refuse indexes of what they don't have.
    All,
}

/// An entry, and the repository it is asked from.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The repository of the request.
    pub repository: &'a RepositoryId,
    /// The entry's digest.
    pub digest: &'a Digest,
    /// The repository that the entry was filled from, where it is known. While it is being filled:
    /// one that shares the registry with `repository`, or there is nothing to ask.
    pub source: Option<&'a RepositoryId>,
}

/// What a request asked of upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What<'a> {
    /// A manifest by its tag.
    Tag,
    /// A manifest by its digest.
    Manifest(&'a Digest),
    /// A blob.
    Blob(&'a Digest),
}

impl<'a> What<'a> {
    /// What a request asks for, whose path's digest is `digest`. `None` where its answer says
    /// nothing about rights: other endpoints, and other methods. Registries answer OPTIONS with a
    /// 200 to whoever asks, and a DELETE is no proof of what is there.
    pub fn of(
        method: &Method,
        path: &RegistryPath,
        digest: Option<&'a Digest>,
    ) -> Option<What<'a>> {
        if *method != Method::GET && *method != Method::HEAD {
            return None;
        }
        match (path.endpoint, digest) {
            (Endpoint::Manifest, None) => Some(What::Tag),
            (Endpoint::Manifest, Some(digest)) => Some(What::Manifest(digest)),
            (Endpoint::Blob, Some(digest)) => Some(What::Blob(digest)),
            (Endpoint::Blob | Endpoint::Referrers | Endpoint::Tags, _) => None,
        }
    }
}

/// Who asked upstream for what.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The repository.
    pub repository: &'a RepositoryId,
    /// Whose credentials were sent.
    pub principal: &'a Principal,
    /// What was asked for.
    pub what: What<'a>,
}

/// Whether a stored entry is handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Allowed,
    /// One question decides: HEAD of what is wanted with the client's own credentials, redirects
    /// not followed. Note the answer and ask for a verdict again.
    Ask(Question),
    /// No question does: this registry has never delivered these bytes. They are fetched from it as
    /// though nothing was stored.
    Fetch,
}

/// A question to upstream. Equal ones have the same answer: one is asked, the others wait for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// The repository.
    pub repository: RepositoryId,
    /// Whose credentials are sent.
    pub principal: Principal,
    /// What it turns on; `None` where any digest of the repository would do. After a refusal those
    /// who waited ask for a verdict again rather than take it for an answer to their own.
    pub digest: Option<Digest>,
}

/// What an answer of upstream's showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// The principal may read the repository, and what was asked for is in it.
    Proven,
    /// 401, 403 or 404: goes to the client as it is.
    Refused,
    /// 408, 429 or 5xx: as though upstream could not be reached.
    Trouble,
    /// Not the word of a registry, for all one can tell. A GET of `bytes=0-0` that follows
    /// redirects may tell more: note its answer where it is 200 or 206.
    Unclear,
}

/// Rows in use, and how many were forgotten to make room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Rows of (repository, digest).
    pub members: usize,
    /// Rows of (repository, principal).
    pub grants: usize,
    /// Repositories of which something is known.
    pub repositories: usize,
    /// Rows forgotten, of all tables.
    pub evicted: u64,
}

/// The tables. Times are milliseconds since 1970.
pub struct Rights {
    listing: Listing,
    /// By repository and digest; by registry and digest for what a registry delivered.
    members: Table<(Short, Short), Member>,
    grants: Table<(Short, Short), Grant>,
    repositories: Table<Short, Repository>,
    /// Whether an export would say something new.
    unsaved: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Member {
    /// A manifest names it.
    Listed,
    /// Upstream said or showed so.
    Shown,
    /// Upstream said that it is not there to one who may read the repository.
    Gone,
}

#[derive(Clone, Copy)]
struct Grant {
    proven_ms: u64,
    expires_ms: u64,
}

#[derive(Clone, Copy, Default)]
struct Repository {
    standing: Standing,
    proven_ms: u64,
    asked_ms: u64,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Standing {
    #[default]
    Unknown,
    Public,
    /// Public, and somebody was refused since.
    Doubted,
    Closed,
}

/// What the tables say of an entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Evidence {
    Member,
    Unproven,
    /// The registry has not delivered it.
    Elsewhere,
}

/// Whether what was proven then holds now.
fn holds(proven_ms: u64, life_ms: u64, now_ms: u64) -> bool {
    now_ms < proven_ms.saturating_add(life_ms) && now_ms.saturating_add(SKEW_MS) >= proven_ms
}

impl Grant {
    fn is_live(self, now_ms: u64) -> bool {
        holds(self.proven_ms, GRANT_MS, now_ms) && now_ms < self.expires_ms
    }
}

impl Repository {
    fn is_public(self, life_ms: u64, now_ms: u64) -> bool {
        matches!(self.standing, Standing::Public | Standing::Doubted)
            && holds(self.proven_ms, life_ms, now_ms)
    }
}

impl Rights {
    /// Tables that know nothing.
    pub fn new(listing: Listing) -> Rights {
        Rights {
            listing,
            members: Table::new(MEMBERS_MAX),
            grants: Table::new(GRANTS_MAX),
            repositories: Table::new(REPOSITORIES_MAX),
            unsaved: false,
        }
    }

    /// Whether anybody may have the entry, whoever they are: the short way to [`Verdict::Allowed`]
    /// without a principal.
    pub fn open_to_all(&mut self, wanted: &Wanted, now_ms: u64) -> bool {
        self.is_public(wanted.repository, PUBLIC_MS, now_ms)
            && self.evidence(wanted, PUBLIC_MS, now_ms) == Evidence::Member
    }

    /// Whether the principal may have the entry. It holds for the request it was asked for, at its
    /// beginning: a transfer that has begun goes on.
    pub fn verdict(&mut self, wanted: &Wanted, principal: &Principal, now_ms: u64) -> Verdict {
        let evidence = self.evidence(wanted, PUBLIC_MS, now_ms);
        let repository = wanted.repository;
        let may_read = self.is_public(repository, PUBLIC_MS, now_ms)
            || self.grant(repository, principal).is_some_and(|grant| grant.is_live(now_ms));
        match (evidence, may_read) {
            (Evidence::Elsewhere, _) => Verdict::Fetch,
            (Evidence::Member, true) => Verdict::Allowed,
            (evidence, _) => Verdict::Ask(Question {
                repository: *repository,
                principal: *principal,
                digest: (evidence != Evidence::Member).then(|| wanted.digest.clone()),
            }),
        }
    }

    /// The same where upstream can't be reached: public repositories, and whoever had a grant
    /// within [`GRACE_MS`] and was not refused since.
    pub fn allowed_offline(&mut self, wanted: &Wanted, principal: &Principal, now_ms: u64) -> bool {
        let recent = |grant: Grant| holds(grant.proven_ms, GRACE_MS, now_ms);
        let may_read = self.is_public(wanted.repository, GRACE_MS, now_ms)
            || self.grant(wanted.repository, principal).is_some_and(recent);
        may_read && self.evidence(wanted, GRACE_MS, now_ms) == Evidence::Member
    }

    /// Takes in what a registry answered to a request with these credentials: its own first answer,
    /// not one at the end of a redirect, except to what [`Learned::Unclear`] asks for. An answer to
    /// nobody's credentials shows that the repository is public.
    pub fn note_answer(
        &mut self,
        asked: &Asked,
        status: u16,
        fields: &Fields,
        now_ms: u64,
    ) -> Learned {
        match status {
            200 | 206 | 301 | 302 | 303 | 304 | 307 | 308 => {}
            401 | 403 | 404 => {
                self.refuse(asked, status, now_ms);
                return Learned::Refused;
            }
            408 | 429 | 500..=599 => return Learned::Trouble,
            _ => return Learned::Unclear,
        }
        let said = fields.get_str("docker-content-digest").and_then(Digest::parse);
        let digest = match asked.what {
            What::Tag => said.as_ref(),
            What::Manifest(digest) | What::Blob(digest) => {
                if said.is_some_and(|said| said != *digest) {
                    return Learned::Unclear;
                }
                Some(digest)
            }
        };
        if !is_registry(status, fields) {
            return Learned::Unclear;
        }
        self.allow(asked.repository, asked.principal, now_ms);
        if let Some(digest) = digest {
            self.members.insert((asked.repository.place, short(digest)), Member::Shown);
        }
        Learned::Proven
    }

    /// Takes in that the registry delivered the whole of a digest's bytes, and that they hash to
    /// it, to a request with these credentials. `now_ms` is when the request was answered, not when
    /// the last byte came.
    pub fn note_served(
        &mut self,
        repository: &RepositoryId,
        digest: &Digest,
        principal: &Principal,
        now_ms: u64,
    ) {
        self.allow(repository, principal, now_ms);
        self.members.insert((repository.place, short(digest)), Member::Shown);
        self.members.insert((repository.registry, short(digest)), Member::Shown);
    }

    /// Takes in what a manifest names that the registry itself delivered from this repository, just
    /// now or when it was stored. One that was stored from another repository says nothing here.
    pub fn note_manifest(&mut self, repository: &RepositoryId, manifest: &Manifest) {
        let manifests = match self.listing {
            Listing::Blobs => &[][..],
            Listing::All => &manifest.manifests,
        };
        for Part { digest, .. } in manifest.blobs.iter().chain(manifests) {
            let row = (repository.place, short(digest));
            if self.members.get(&row).is_none() {
                self.members.insert(row, Member::Listed);
            }
        }
    }

    /// Whether somebody should ask, with no credentials of any client's, if a repository is public.
    /// True once a minute until [`Rights::note_public`] tells: whoever gets it, asks.
    pub fn public_due(&mut self, repository: &RepositoryId, now_ms: u64) -> bool {
        let row = self.repositories.get(&repository.place).unwrap_or_default();
        let known = match row.standing {
            Standing::Public => holds(row.proven_ms, PUBLIC_MS, now_ms),
            Standing::Closed => holds(row.proven_ms, CLOSED_MS, now_ms),
            Standing::Unknown | Standing::Doubted => false,
        };
        if known || holds(row.asked_ms, ASKING_MS, now_ms) {
            return false;
        }
        self.repositories.insert(repository.place, Repository { asked_ms: now_ms, ..row });
        true
    }

    /// Takes in whether a repository is public. Only a registry's own word counts, as for
    /// [`Rights::note_answer`]; what is unclear is not noted.
    pub fn note_public(&mut self, repository: &RepositoryId, public: bool, now_ms: u64) {
        let standing = if public { Standing::Public } else { Standing::Closed };
        let row = Repository { standing, proven_ms: now_ms, asked_ms: 0 };
        let before = self.repositories.get(&repository.place).unwrap_or_default();
        self.unsaved |= public || before.standing == Standing::Public;
        self.repositories.insert(repository.place, row);
    }

    /// Whether [`Rights::export`] may say something that it did not when this was last called.
    pub fn take_unsaved(&mut self) -> bool {
        std::mem::take(&mut self.unsaved)
    }

    /// Takes back what [`Rights::take_unsaved`] said: the export came to nothing.
    pub fn keep_unsaved(&mut self) {
        self.unsaved = true;
    }

    /// The public repositories as text, for [`Rights::import`] after a restart. There are hashes in
    /// it, no names and no credentials.
    pub fn export(&self, secret: &Secret, now_ms: u64) -> Vec<u8> {
        let mut text = format!("{EXPORTED}\n");
        for (place, row) in self.repositories.iter() {
            if row.standing == Standing::Public && row.is_public(GRACE_MS, now_ms) {
                let place = u128::from_be_bytes(*place);
                text.push_str(&format!("{place:032x} {}\n", row.proven_ms));
            }
        }
        let mac = secret.mac(|hasher| hasher.update(text.as_bytes())).hex();
        text.push_str(&format!("{mac}\n"));
        text.into_bytes()
    }

    /// Takes in what [`Rights::export`] wrote under the same secret, and gives the number of rows.
    /// What is cut short, changed or of another installation is not taken at all.
    pub fn import(&mut self, secret: &Secret, exported: &[u8], now_ms: u64) -> usize {
        let Ok(text) = std::str::from_utf8(exported) else { return 0 };
        let Some((rows, mac)) = text.trim_end_matches('\n').rsplit_once('\n') else { return 0 };
        let signed = text.get(..=rows.len()).unwrap_or_default();
        if secret.mac(|hasher| hasher.update(signed.as_bytes())).hex() != mac {
            return 0;
        }
        let mut lines = rows.lines();
        if lines.next() != Some(EXPORTED) {
            return 0;
        }
        let mut taken = 0;
        for (place, proven_ms) in lines.take(REPOSITORIES_MAX).filter_map(imported) {
            let row = Repository { standing: Standing::Public, proven_ms, asked_ms: 0 };
            if row.is_public(GRACE_MS, now_ms) && self.repositories.get(&place).is_none() {
                self.repositories.insert(place, row);
                taken += 1;
            }
        }
        taken
    }

    /// How full the tables are.
    pub fn sizes(&self) -> Sizes {
        let (members, grants, repositories) = (&self.members, &self.grants, &self.repositories);
        Sizes {
            members: members.len(),
            grants: grants.len(),
            repositories: repositories.len(),
            evicted: members.evicted() + grants.evicted() + repositories.evicted(),
        }
    }

    /// What the tables say of an entry. `life_ms`: for how long public is public.
    fn evidence(&mut self, wanted: &Wanted, life_ms: u64, now_ms: u64) -> Evidence {
        let Wanted { repository, digest, source } = *wanted;
        let digest = short(digest);
        let public_bytes = source.is_some_and(|source| self.is_public(source, life_ms, now_ms));
        let delivered = public_bytes
            || source.is_some_and(|source| source.registry == repository.registry)
            || self.members.get(&(repository.registry, digest)).is_some();
        if !delivered {
            return Evidence::Elsewhere;
        }
        match self.members.get(&(repository.place, digest)) {
            Some(Member::Listed | Member::Shown) => Evidence::Member,
            Some(Member::Gone) => Evidence::Unproven,
            None if source == Some(repository) => Evidence::Member,
            // Anybody could have them from there: where the request is for a public repository too,
            // nothing is given away.
            None if public_bytes && self.is_public(repository, life_ms, now_ms) => Evidence::Member,
            None => Evidence::Unproven,
        }
    }

    fn is_public(&mut self, repository: &RepositoryId, life_ms: u64, now_ms: u64) -> bool {
        let row = self.repositories.get(&repository.place);
        row.is_some_and(|row| row.is_public(life_ms, now_ms))
    }

    fn grant(&mut self, repository: &RepositoryId, principal: &Principal) -> Option<Grant> {
        self.grants.get(&(repository.place, principal.id()))
    }

    fn allow(&mut self, repository: &RepositoryId, principal: &Principal, now_ms: u64) {
        if principal.is_anonymous() {
            self.note_public(repository, true, now_ms);
        } else {
            let grant = Grant { proven_ms: now_ms, expires_ms: principal.expires_ms() };
            self.grants.insert((repository.place, principal.id()), grant);
        }
    }

    /// A 404 says that a digest is gone only to one who may read the repository: to others
    /// registries say it of whatever they hide.
    fn refuse(&mut self, asked: &Asked, status: u16, now_ms: u64) {
        let Asked { repository, principal, what } = *asked;
        let grant = self.grants.remove(&(repository.place, principal.id()));
        let row = self.repositories.get(&repository.place).unwrap_or_default();
        let public = row.is_public(PUBLIC_MS, now_ms);
        if public {
            let doubted = Repository { standing: Standing::Doubted, ..row };
            self.repositories.insert(repository.place, doubted);
            self.unsaved = true;
        }
        let may_read = public || grant.is_some_and(|grant| grant.is_live(now_ms));
        if let What::Manifest(digest) | What::Blob(digest) = what
            && status == 404
            && may_read
        {
            self.members.insert((repository.place, short(digest)), Member::Gone);
        }
    }
}

/// Whether an answer bears the mark of a registry. Pages that ask to log in have neither the fields
/// of the distribution specification nor a content type of its own. A redirect may have a page for
/// its body: registries written in Go have one, by their library's default.
fn is_registry(status: u16, fields: &Fields) -> bool {
    let kind = fields.get("content-type").unwrap_or_default().trim_ascii().to_ascii_lowercase();
    let page = kind.starts_with(b"text/html") && !(300..400).contains(&status);
    !page
        && (fields.contains("docker-distribution-api-version")
            || fields.contains("docker-content-digest")
            || kind.starts_with(b"application/vnd.")
            || kind.starts_with(b"application/octet-stream")
            || kind.starts_with(b"binary/octet-stream"))
}

/// One row of [`Rights::export`].
fn imported(line: &str) -> Option<(Short, u64)> {
    let (place, proven_ms) = line.split_once(' ')?;
    let place = u128::from_str_radix(place, 16).ok()?;
    Some((place.to_be_bytes(), proven_ms.parse().ok()?))
}

#[cfg(test)]
mod tests;
