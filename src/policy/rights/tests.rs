use super::*;
use crate::http::{Host, Scheme};

mod model;

/// Some time in 2023.
const NOW: u64 = 1_700_000_000_000;

const SECOND: u64 = 1000;

const HOUR: u64 = 3600 * SECOND;

fn repository(host: &str, name: &str) -> RepositoryId {
    RepositoryId::new(Scheme::Https, &Host::parse(host).unwrap(), 443, name)
}

fn digest(n: u64) -> Digest {
    Digest::parse(&format!("sha256:{n:064x}").replacen("000000", &format!("{:06x}", n % 99), 1))
        .unwrap()
}

fn secret() -> Secret {
    Secret::new([7; 32])
}

fn holder(token: &str) -> Principal {
    let mut fields = Fields::new();
    fields.push("Authorization", token).unwrap();
    Principal::new(&secret(), &fields, None)
}

fn fields(listed: &[(&str, &str)]) -> Fields {
    let mut fields = Fields::new();
    listed.iter().for_each(|(name, value)| fields.push(name, value).unwrap());
    fields
}

fn registry_says() -> Fields {
    fields(&[("Docker-Distribution-Api-Version", "registry/2.0")])
}

fn part(n: u64) -> Part {
    Part { digest: digest(n), size: 1 }
}

fn blobs(numbers: &[u64]) -> Manifest {
    Manifest { blobs: numbers.iter().map(|n| part(*n)).collect(), manifests: Vec::new() }
}

/// One installation, and what is asked of it in short.
struct Bench {
    rights: Rights,
    now: u64,
}

impl Bench {
    fn new() -> Bench {
        Bench { rights: Rights::new(Listing::default()), now: NOW }
    }

    fn answer(&mut self, at: &RepositoryId, who: &Principal, what: What, status: u16) -> Learned {
        let asked = Asked { repository: at, principal: who, what };
        self.rights.note_answer(&asked, status, &registry_says(), self.now)
    }

    fn tag(&mut self, at: &RepositoryId, who: &Principal, status: u16) -> Learned {
        self.answer(at, who, What::Tag, status)
    }

    fn served(&mut self, at: &RepositoryId, n: u64, who: &Principal) {
        self.rights.note_served(at, &digest(n), who, self.now);
    }

    /// What is said where the entry came from `source`.
    fn verdict_of(
        &mut self,
        at: &RepositoryId,
        n: u64,
        source: Option<&RepositoryId>,
        who: &Principal,
    ) -> Verdict {
        let digest = digest(n);
        let wanted = Wanted { repository: at, digest: &digest, source };
        let verdict = self.rights.verdict(&wanted, who, self.now);
        if self.rights.open_to_all(&wanted, self.now) {
            assert_eq!(verdict, Verdict::Allowed);
        }
        verdict
    }

    fn verdict(&mut self, at: &RepositoryId, n: u64, who: &Principal) -> Verdict {
        self.verdict_of(at, n, None, who)
    }

    fn allows(&mut self, at: &RepositoryId, n: u64, who: &Principal) -> bool {
        self.verdict(at, n, who) == Verdict::Allowed
    }

    fn offline(&mut self, at: &RepositoryId, n: u64, who: &Principal) -> bool {
        let digest = digest(n);
        let wanted = Wanted { repository: at, digest: &digest, source: None };
        self.rights.allowed_offline(&wanted, who, self.now)
    }
}

fn ask(at: &RepositoryId, who: &Principal, turns_on: Option<u64>) -> Verdict {
    let (repository, principal, digest) = (*at, *who, turns_on.map(digest));
    Verdict::Ask(Question { repository, principal, digest })
}

#[test]
fn both_doors_must_be_open() {
    let (app, other) = (repository("r.example", "corp/app"), repository("r.example", "corp/other"));
    let (alice, bob) = (holder("Bearer a"), holder("Bearer b"));
    let mut bench = Bench::new();
    assert_eq!(bench.verdict(&app, 1, &alice), Verdict::Fetch);
    bench.served(&app, 1, &alice);
    assert!(bench.allows(&app, 1, &alice));
    assert_eq!(bench.verdict(&app, 1, &bob), ask(&app, &bob, None));
    let nobody = Principal::ANONYMOUS;
    assert_eq!(bench.verdict(&app, 1, &nobody), ask(&app, &nobody, None));
    assert_eq!(bench.verdict(&app, 2, &alice), Verdict::Fetch);
    assert_eq!(bench.verdict(&other, 1, &alice), ask(&other, &alice, Some(1)));
    assert_eq!(bench.tag(&app, &bob, 200), Learned::Proven);
    assert!(bench.allows(&app, 1, &bob));
    assert_eq!(bench.verdict(&other, 1, &bob), ask(&other, &bob, Some(1)));
    let answer = bench.answer(&other, &alice, What::Blob(&digest(1)), 307);
    assert_eq!(answer, Learned::Proven);
    assert!(bench.allows(&other, 1, &alice));
    assert_eq!(bench.verdict(&other, 1, &bob), ask(&other, &bob, None));
}

/// Rights on one repository and the digest of what is private in another, at the same registry.
#[test]
fn a_digest_alone_opens_nothing() {
    let (theirs, own) = (repository("r.example", "victim/app"), repository("r.example", "thief/x"));
    let (victim, thief) = (holder("Basic victim"), holder("Basic thief"));
    let mut bench = Bench::new();
    bench.served(&theirs, 1, &victim);
    bench.tag(&own, &thief, 200);
    bench.served(&own, 2, &thief);
    bench.rights.note_manifest(&own, &blobs(&[2, 3]));
    for source in [None, Some(&theirs)] {
        assert_eq!(bench.verdict_of(&own, 1, source, &thief), ask(&own, &thief, Some(1)));
        assert_eq!(bench.verdict_of(&theirs, 1, source, &thief), ask(&theirs, &thief, None));
    }
    let refused = bench.answer(&own, &thief, What::Blob(&digest(1)), 404);
    assert_eq!(refused, Learned::Refused);
    assert_eq!(bench.verdict(&own, 1, &thief), ask(&own, &thief, Some(1)));
    assert!(!bench.offline(&own, 1, &thief) && !bench.offline(&theirs, 1, &thief));
    // A public repository of the thief's is no better.
    bench.rights.note_public(&own, true, NOW);
    for source in [None, Some(&theirs)] {
        assert_eq!(bench.verdict_of(&own, 1, source, &thief), ask(&own, &thief, Some(1)));
    }
    assert!(bench.allows(&theirs, 1, &victim), "and the owner never notices");
}

/// Anybody can run a registry that says yes to every question.
#[test]
fn a_registry_vouches_only_for_what_it_delivered() {
    let theirs = repository("r.example", "victim/app");
    let own = repository("thief.example", "x");
    let plain =
        RepositoryId::new(Scheme::Http, &Host::parse("r.example").unwrap(), 443, "victim/app");
    let (victim, thief) = (holder("Basic victim"), holder("Basic thief"));
    let mut bench = Bench::new();
    bench.served(&theirs, 1, &victim);
    for liar in [&own, &plain] {
        bench.tag(liar, &thief, 200);
        bench.answer(liar, &thief, What::Blob(&digest(1)), 200);
        bench.rights.note_manifest(liar, &blobs(&[1]));
        bench.rights.note_public(liar, true, NOW);
        for source in [None, Some(&theirs)] {
            assert_eq!(bench.verdict_of(liar, 1, source, &thief), Verdict::Fetch);
        }
        assert!(!bench.offline(liar, 1, &thief));
        assert_eq!(bench.verdict(&theirs, 1, &thief), ask(&theirs, &thief, None));
    }
    // Who delivers them has them.
    bench.served(&own, 1, &thief);
    assert!(bench.allows(&own, 1, &thief));
    // What anybody may have from a public repository may be had elsewhere too, where it is.
    bench.rights.note_public(&theirs, true, NOW);
    let third = repository("third.example", "y");
    assert_eq!(bench.verdict_of(&third, 1, Some(&theirs), &thief), ask(&third, &thief, Some(1)));
    bench.answer(&third, &thief, What::Blob(&digest(1)), 200);
    assert_eq!(bench.verdict_of(&third, 1, Some(&theirs), &thief), Verdict::Allowed);
    assert_eq!(bench.verdict_of(&third, 1, None, &thief), Verdict::Fetch);
}

#[test]
fn the_source_of_an_entry_speaks_for_its_repository() {
    let (app, other) = (repository("r.example", "corp/app"), repository("r.example", "corp/other"));
    let alice = holder("Bearer a");
    let mut bench = Bench::new();
    bench.tag(&app, &alice, 200);
    bench.tag(&other, &alice, 200);
    assert_eq!(bench.verdict_of(&app, 1, Some(&app), &alice), Verdict::Allowed);
    assert_eq!(bench.verdict_of(&other, 1, Some(&app), &alice), ask(&other, &alice, Some(1)));
    bench.answer(&app, &alice, What::Blob(&digest(1)), 404);
    bench.tag(&app, &alice, 200);
    assert_eq!(bench.verdict_of(&app, 1, Some(&app), &alice), ask(&app, &alice, Some(1)));
    bench.answer(&app, &alice, What::Blob(&digest(1)), 200);
    assert_eq!(bench.verdict_of(&app, 1, Some(&app), &alice), Verdict::Allowed);
    // Between two public repositories nothing is given away.
    for (at, public) in [(&app, true), (&other, true), (&other, false)] {
        bench.rights.note_public(at, public, NOW);
    }
    assert_eq!(bench.verdict_of(&other, 2, Some(&app), &alice), ask(&other, &alice, Some(2)));
    bench.rights.note_public(&other, true, NOW);
    assert_eq!(bench.verdict_of(&other, 2, Some(&app), &alice), Verdict::Allowed);
}

#[test]
fn manifests_name_members() {
    let app = repository("r.example", "corp/app");
    let alice = holder("Bearer a");
    let named = Manifest { blobs: vec![part(1)], manifests: vec![part(2)] };
    for (listing, manifest_too) in [(Listing::Blobs, false), (Listing::All, true)] {
        let mut bench = Bench { rights: Rights::new(listing), now: NOW };
        let elsewhere = repository("r.example", "corp/other");
        bench.served(&elsewhere, 1, &alice);
        bench.served(&elsewhere, 2, &alice);
        bench.tag(&app, &alice, 200);
        assert!(!bench.allows(&app, 1, &alice) && !bench.allows(&app, 2, &alice));
        bench.rights.note_manifest(&app, &named);
        assert!(bench.allows(&app, 1, &alice));
        assert_eq!(bench.allows(&app, 2, &alice), manifest_too);
        // What is gone does not come back by being named.
        bench.answer(&app, &alice, What::Blob(&digest(1)), 404);
        bench.tag(&app, &alice, 200);
        bench.rights.note_manifest(&app, &named);
        assert_eq!(bench.verdict(&app, 1, &alice), ask(&app, &alice, Some(1)));
    }
}

#[test]
fn grants_end() {
    let app = repository("r.example", "corp/app");
    let jwt = |exp: &str| {
        // {"exp":1700000060}: a minute from NOW, and {"exp":1800000000}: years from it.
        let claims = match exp {
            "soon" => "eyJleHAiOjE3MDAwMDAwNjB9",
            _ => "eyJleHAiOjE4MDAwMDAwMDB9",
        };
        holder(&format!("Bearer e30.{claims}.c2ln"))
    };
    for (who, life) in [
        (holder("Basic x"), GRANT_MS),
        (holder("Bearer opaque"), GRANT_MS),
        (jwt("late"), GRANT_MS),
        (jwt("soon"), 60 * SECOND),
    ] {
        let mut bench = Bench::new();
        bench.served(&app, 1, &who);
        bench.now = NOW + life - 1;
        assert!(bench.allows(&app, 1, &who));
        bench.now = NOW + life;
        assert_eq!(bench.verdict(&app, 1, &who), ask(&app, &who, None));
        // The clock was set back.
        bench.now = NOW - SKEW_MS;
        assert!(bench.allows(&app, 1, &who));
        bench.now = NOW - SKEW_MS - 1;
        assert!(!bench.allows(&app, 1, &who) && !bench.offline(&app, 1, &who));
    }
}

#[test]
fn refusals_revoke() {
    let (app, other) = (repository("r.example", "corp/app"), repository("r.example", "corp/other"));
    let (alice, bob) = (holder("Bearer a"), holder("Bearer b"));
    for what in [What::Tag, What::Blob(&digest(1)), What::Manifest(&digest(1))] {
        for status in [401, 403, 404] {
            let mut bench = Bench::new();
            for who in [&alice, &bob] {
                bench.served(&app, 1, who);
                bench.served(&other, 1, who);
            }
            assert_eq!(bench.answer(&app, &alice, what, status), Learned::Refused);
            assert!(!bench.allows(&app, 1, &alice) && !bench.offline(&app, 1, &alice));
            assert!(bench.allows(&other, 1, &alice), "another repository");
            let gone = status == 404 && !matches!(what, What::Tag);
            assert_eq!(bench.allows(&app, 1, &bob), !gone, "{status} {what:?}");
        }
        for status in [200, 206, 307, 304, 408, 429, 500, 503, 400, 405, 418, 100, 0, 65535] {
            let mut bench = Bench::new();
            bench.served(&app, 1, &alice);
            bench.answer(&app, &alice, what, status);
            assert!(bench.allows(&app, 1, &alice), "{status}");
        }
    }
    // To one without rights a 404 says nothing about what is there.
    let mut bench = Bench::new();
    bench.served(&app, 1, &alice);
    bench.answer(&app, &bob, What::Blob(&digest(1)), 404);
    assert!(bench.allows(&app, 1, &alice));
}

#[test]
fn only_a_registrys_word_counts() {
    let app = repository("r.example", "corp/app");
    let alice = holder("Bearer a");
    let (one, said) = (digest(1), digest(1).to_string());
    let version = ("Docker-Distribution-API-Version", "registry/2.0");
    let html = ("Content-Type", "Text/HTML; charset=utf-8");
    let other = digest(2).to_string();
    for (status, listed, learned) in [
        (200, &[version][..], Learned::Proven),
        (200, &[("Docker-Content-Digest", &said)], Learned::Proven),
        (206, &[("Content-Type", "application/octet-stream")], Learned::Proven),
        (200, &[("Content-Type", "binary/octet-stream")], Learned::Proven),
        (200, &[("Content-Type", "application/vnd.oci.image.index.v1+json")], Learned::Proven),
        (307, &[("Location", "https://cdn.example/"), version], Learned::Proven),
        (307, &[html, version], Learned::Proven),
        (307, &[html], Learned::Unclear),
        (304, &[version], Learned::Proven),
        (200, &[], Learned::Unclear),
        (302, &[("Location", "https://login.example/")], Learned::Unclear),
        (307, &[("Location", "https://login.example/")], Learned::Unclear),
        (200, &[html], Learned::Unclear),
        (200, &[html, version], Learned::Unclear),
        (200, &[("Content-Type", "application/json")], Learned::Unclear),
        (200, &[("Docker-Content-Digest", &other)], Learned::Unclear),
        (201, &[version], Learned::Unclear),
        (204, &[version], Learned::Unclear),
        (300, &[version], Learned::Unclear),
        (405, &[version], Learned::Unclear),
        (101, &[version], Learned::Unclear),
        (401, &[], Learned::Refused),
        (403, &[html], Learned::Refused),
        (404, &[version], Learned::Refused),
        (408, &[version], Learned::Trouble),
        (429, &[version], Learned::Trouble),
        (500, &[version], Learned::Trouble),
        (599, &[], Learned::Trouble),
    ] {
        for what in [What::Blob(&one), What::Manifest(&one)] {
            for who in [&alice, &Principal::ANONYMOUS] {
                let mut rights = Rights::new(Listing::default());
                let asked = Asked { repository: &app, principal: who, what };
                let got = rights.note_answer(&asked, status, &fields(listed), NOW);
                assert_eq!(got, learned, "{status} {listed:?}");
                let proven = learned == Learned::Proven;
                let wanted = Wanted { repository: &app, digest: &one, source: Some(&app) };
                let allowed = rights.verdict(&wanted, who, NOW) == Verdict::Allowed;
                assert_eq!(allowed, proven, "{status} {listed:?}");
                assert_eq!(rights.sizes().members, usize::from(proven));
            }
        }
    }
    // A tag's manifest is a member under the digest that the registry says it has.
    let mut bench = Bench::new();
    let asked = Asked { repository: &app, principal: &alice, what: What::Tag };
    let said = fields(&[("Docker-Content-Digest", &said)]);
    assert_eq!(bench.rights.note_answer(&asked, 200, &said, NOW), Learned::Proven);
    bench.served(&repository("r.example", "corp/other"), 1, &alice);
    assert!(bench.allows(&app, 1, &alice));
}

#[test]
fn only_what_reads_tells_of_rights() {
    let one = digest(1);
    let of = |method: &Method, path: &str| {
        let path = path.replace("DIGEST", &one.to_string());
        let path = RegistryPath::parse(&path).unwrap();
        What::of(method, &path, path.digest().map(|_| &one))
    };
    for (path, what) in [
        ("/v2/a/b/manifests/latest", Some(What::Tag)),
        ("/v2/a/b/manifests/DIGEST", Some(What::Manifest(&one))),
        ("/v2/a/b/blobs/DIGEST", Some(What::Blob(&one))),
        ("/v2/a/b/referrers/DIGEST", None),
        ("/v2/a/b/tags/list", None),
    ] {
        for method in [Method::GET, Method::HEAD] {
            assert_eq!(of(&method, path), what, "{path}");
        }
        let others = [Method::OPTIONS, Method::DELETE, Method::PUT, Method::POST, Method::PATCH];
        for method in others.into_iter().chain([Method::TRACE, Method::CONNECT]) {
            assert_eq!(of(&method, path), None, "{path}");
        }
    }
}

#[test]
fn public_repositories_need_no_principal() {
    let (app, other) = (repository("r.example", "library/app"), repository("r.example", "corp/x"));
    let (alice, bob) = (holder("Bearer a"), holder("Bearer b"));
    let mut bench = Bench::new();
    bench.served(&app, 1, &alice);
    bench.served(&other, 1, &alice);
    assert!(!bench.allows(&app, 1, &bob));
    assert!(bench.rights.public_due(&app, NOW));
    assert!(!bench.rights.public_due(&app, NOW + ASKING_MS - 1), "somebody asks already");
    assert!(bench.rights.public_due(&app, NOW + ASKING_MS), "who never told");
    bench.rights.note_public(&app, true, NOW);
    for who in [&alice, &bob, &Principal::ANONYMOUS] {
        assert!(bench.allows(&app, 1, who));
    }
    assert!(!bench.allows(&other, 1, &bob) && !bench.allows(&app, 2, &bob));
    bench.now = NOW + PUBLIC_MS - 1;
    assert!(bench.allows(&app, 1, &bob) && !bench.rights.public_due(&app, bench.now));
    bench.now = NOW + PUBLIC_MS;
    assert!(!bench.allows(&app, 1, &bob) && bench.rights.public_due(&app, bench.now));
    bench.rights.note_public(&app, true, bench.now);
    assert!(bench.allows(&app, 1, &bob));
    bench.rights.note_public(&app, false, bench.now);
    assert!(!bench.allows(&app, 1, &bob));
    assert!(!bench.rights.public_due(&app, bench.now + CLOSED_MS - 1));
    assert!(bench.rights.public_due(&app, bench.now + CLOSED_MS));
    // What nobody's credentials open is public.
    assert_eq!(bench.tag(&app, &Principal::ANONYMOUS, 200), Learned::Proven);
    assert!(bench.allows(&app, 1, &bob));
}

#[test]
fn a_refusal_makes_a_public_repository_doubtful() {
    let app = repository("r.example", "library/app");
    let mut bench = Bench::new();
    bench.served(&app, 1, &Principal::ANONYMOUS);
    assert!(!bench.rights.public_due(&app, NOW));
    for (status, due) in [(200, false), (429, false), (500, false), (401, true)] {
        bench.tag(&app, &holder("Bearer old"), status);
        assert_eq!(bench.rights.public_due(&app, NOW), due, "{status}");
    }
    assert!(bench.allows(&app, 1, &Principal::ANONYMOUS), "until it is known");
    assert!(!bench.rights.public_due(&app, NOW), "one asks");
    bench.tag(&app, &holder("Bearer old"), 401);
    assert!(!bench.rights.public_due(&app, NOW + 1), "once a minute at most");
    bench.rights.note_public(&app, false, NOW);
    assert!(!bench.allows(&app, 1, &Principal::ANONYMOUS));
}

#[test]
fn what_was_proven_within_a_day_is_served_offline() {
    let (app, open) = (repository("r.example", "corp/app"), repository("r.example", "library/x"));
    let (alice, bob) = (holder("Bearer a"), holder("Bearer b"));
    let mut bench = Bench::new();
    bench.served(&app, 1, &alice);
    bench.served(&open, 2, &Principal::ANONYMOUS);
    for (passed, served) in [(0, true), (23 * HOUR, true), (24 * HOUR, false)] {
        bench.now = NOW + passed;
        assert_eq!(bench.offline(&app, 1, &alice), served);
        assert_eq!(bench.offline(&open, 2, &bob), served);
        assert!(!bench.offline(&app, 1, &bob));
        assert!(!bench.offline(&app, 2, &alice), "not in this repository");
        assert!(!bench.offline(&app, 3, &alice), "nowhere");
    }
    bench.now = NOW + HOUR;
    bench.rights.note_public(&open, false, bench.now);
    bench.tag(&app, &alice, 403);
    assert!(!bench.offline(&open, 2, &bob) && !bench.offline(&app, 1, &alice));
}

#[test]
fn public_repositories_outlive_a_restart() {
    let (app, closed) = (repository("r.example", "library/app"), repository("r.example", "corp/x"));
    let old = repository("r.example", "library/old");
    let mut bench = Bench::new();
    bench.rights.note_public(&old, true, NOW - GRACE_MS);
    bench.rights.note_public(&app, true, NOW);
    bench.rights.note_public(&closed, false, NOW);
    bench.served(&closed, 1, &holder("Bearer a"));
    let text = bench.rights.export(&secret(), NOW);
    assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 3);
    let import = |text: &[u8], secret: &Secret, now| {
        let mut bench = Bench { rights: Rights::new(Listing::default()), now };
        let taken = bench.rights.import(secret, text, now);
        let allowed = bench.verdict_of(&app, 1, Some(&app), &Principal::ANONYMOUS);
        assert_eq!(taken, bench.rights.sizes().repositories);
        (taken, allowed == Verdict::Allowed)
    };
    assert_eq!(import(&text, &secret(), NOW), (1, true));
    assert_eq!(import(&text, &secret(), NOW + PUBLIC_MS - 1), (1, true));
    assert_eq!(import(&text, &secret(), NOW + PUBLIC_MS), (1, false));
    assert_eq!(import(&text, &secret(), NOW + GRACE_MS), (0, false));
    assert_eq!(import(&text, &secret(), NOW - HOUR), (0, false), "from the future");
    assert_eq!(import(&text, &Secret::new([8; 32]), NOW), (0, false));
    for at in 0..text.len() - 1 {
        let mut changed = text.clone();
        changed[at] ^= 1;
        assert_eq!(import(&changed, &secret(), NOW), (0, false), "byte {at}");
        assert_eq!(import(&text[..at], &secret(), NOW), (0, false), "cut at {at}");
    }
    // What is known by then is not written over.
    bench.rights.note_public(&app, false, NOW + 1);
    assert_eq!(bench.rights.import(&secret(), &text, NOW + 1), 0);
    assert!(!bench.rights.is_public(&app, PUBLIC_MS, NOW + 1));
}

#[test]
fn what_an_export_would_not_show_is_no_reason_for_one() {
    let (app, closed) = (repository("r.example", "library/app"), repository("r.example", "corp/x"));
    let alice = holder("Bearer a");
    let mut bench = Bench::new();
    bench.rights.note_public(&closed, false, NOW);
    bench.served(&closed, 1, &alice);
    bench.tag(&closed, &alice, 403);
    assert!(!bench.rights.take_unsaved());
    bench.rights.note_public(&app, true, NOW);
    assert!(bench.rights.take_unsaved() && !bench.rights.take_unsaved());
    bench.rights.keep_unsaved();
    assert!(bench.rights.take_unsaved());
    // Doubted, and closed.
    bench.tag(&app, &alice, 403);
    assert!(bench.rights.take_unsaved());
    bench.rights.note_public(&app, true, NOW);
    bench.rights.take_unsaved();
    bench.rights.note_public(&app, false, NOW);
    assert!(bench.rights.take_unsaved());
}

#[test]
fn a_million_rows_leave_bounded_tables() {
    let mut rights = Rights::new(Listing::default());
    let base = repository("r.example", "x");
    let (mut rows, mut who) = (0, Principal::ANONYMOUS);
    for n in 0..730_000_u64 {
        let place = place::first_half(&[n.to_le_bytes(), n.to_be_bytes()].concat());
        rights.members.insert((place, base.registry), Member::Shown);
        rows += 1;
        if n % 4 == 0 {
            // A new principal for a hundred rows: it is not their making that is tested.
            who = if n % 400 == 0 { holder(&format!("Bearer {n}")) } else { who };
            rights.allow(&RepositoryId { place, ..base }, &who, NOW);
            rows += 1;
        }
        if n % 8 == 0 {
            rights.note_public(&RepositoryId { place, ..base }, n % 16 == 0, NOW);
            rows += 1;
        }
        let sizes = rights.sizes();
        assert!(sizes.members <= MEMBERS_MAX && sizes.grants <= GRANTS_MAX);
        assert!(sizes.repositories <= REPOSITORIES_MAX);
    }
    let sizes = rights.sizes();
    assert!(rows > 1_000_000);
    assert_eq!((sizes.members + sizes.grants + sizes.repositories) as u64 + sizes.evicted, rows);
    assert!(sizes.members >= MEMBERS_MAX / 2 && sizes.grants >= GRANTS_MAX / 2);
    assert!(sizes.repositories >= REPOSITORIES_MAX / 2);
    // The row and the byte by which the map finds it.
    assert_eq!(size_of::<((Short, Short), Member)>() + 1, 34);
    assert_eq!(size_of::<((Short, Short), Grant)>() + 1, 49);
    assert_eq!(size_of::<(Short, Repository)>() + 1, 41);
}
