//! The tables against a model that keeps every event and reads them from the last one backwards.

use super::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Event {
    /// Repository, digest, principal.
    Served(usize, usize, usize),
    /// Repository, digest or `None` for a tag, principal, status.
    Answered(usize, Option<usize>, usize, u16),
    /// Repository, digest.
    Named(usize, usize),
    /// Repository, yes or no.
    Public(usize, bool),
}

struct World {
    repositories: Vec<RepositoryId>,
    registries: Vec<usize>,
    digests: Vec<Digest>,
    principals: Vec<Principal>,
    events: Vec<(u64, Event)>,
}

const NOBODY: usize = 0;

impl World {
    fn new() -> World {
        World {
            repositories: vec![
                repository("r.example", "a"),
                repository("r.example", "b"),
                repository("s.example", "a"),
            ],
            registries: vec![0, 0, 1],
            digests: (0..4).map(digest).collect(),
            principals: vec![Principal::ANONYMOUS, holder("Bearer a"), holder("Bearer b")],
            events: Vec::new(),
        }
    }

    /// The last event's verdict, of those that say something.
    fn last<T>(&self, says: impl Fn(u64, Event) -> Option<T>) -> Option<T> {
        self.events.iter().rev().find_map(|(at, event)| says(*at, *event))
    }

    fn proven(status: u16) -> bool {
        matches!(status, 200 | 307)
    }

    fn refused(status: u16) -> bool {
        matches!(status, 401 | 403 | 404)
    }

    fn public(&self, r: usize, life: u64, upto: usize, now: u64) -> bool {
        let events = self.events[..upto].iter().rev();
        let last = events.clone().find_map(|(at, event)| match *event {
            Event::Public(x, yes) if x == r => Some(yes.then_some(*at)),
            Event::Served(x, _, NOBODY) if x == r => Some(Some(*at)),
            Event::Answered(x, _, NOBODY, s) if x == r && World::proven(s) => Some(Some(*at)),
            _ => None,
        });
        last.flatten().is_some_and(|at| now < at + life)
    }

    fn granted(&self, r: usize, p: usize, life: u64, upto: usize, now: u64) -> bool {
        let events = self.events[..upto].iter().rev();
        let mut last = events.filter_map(|(at, event)| match *event {
            Event::Served(x, _, y) if (x, y) == (r, p) => Some(Some(*at)),
            Event::Answered(x, _, y, s) if (x, y) == (r, p) && World::proven(s) => Some(Some(*at)),
            Event::Answered(x, _, y, s) if (x, y) == (r, p) && World::refused(s) => Some(None),
            _ => None,
        });
        p != NOBODY && last.next().flatten().is_some_and(|at| now < at + life)
    }

    /// Whether upstream's last word is that the digest is there; `None` where it has said nothing.
    fn member(&self, r: usize, d: usize) -> Option<bool> {
        let last_word = (0..self.events.len()).rev().find_map(|n| match self.events[n] {
            (_, Event::Served(x, y, _)) if (x, y) == (r, d) => Some(true),
            (_, Event::Answered(x, Some(y), _, s)) if (x, y) == (r, d) && World::proven(s) => {
                Some(true)
            }
            (at, Event::Answered(x, Some(y), p, 404)) if (x, y) == (r, d) => {
                let rights =
                    self.public(r, PUBLIC_MS, n, at) || self.granted(r, p, GRANT_MS, n, at);
                rights.then_some(false)
            }
            _ => None,
        });
        last_word.or_else(|| self.last(|_, event| (event == Event::Named(r, d)).then_some(true)))
    }

    fn evidence(&self, r: usize, d: usize, source: Option<usize>, life: u64, now: u64) -> Evidence {
        let upto = self.events.len();
        let public = |r| self.public(r, life, upto, now);
        let delivered = self.last(|_, event| match event {
            Event::Served(x, y, _) if y == d => {
                (self.registries[x] == self.registries[r]).then_some(())
            }
            _ => None,
        });
        let public_bytes = source.is_some_and(public);
        let own = source.is_some_and(|s| self.registries[s] == self.registries[r]);
        if delivered.is_none() && !public_bytes && !own {
            return Evidence::Elsewhere;
        }
        let silent = source == Some(r) || (public_bytes && public(r));
        match self.member(r, d).unwrap_or(silent) {
            true => Evidence::Member,
            false => Evidence::Unproven,
        }
    }

    fn verdict(&self, r: usize, d: usize, source: Option<usize>, p: usize, now: u64) -> Verdict {
        let upto = self.events.len();
        let may_read =
            self.public(r, PUBLIC_MS, upto, now) || self.granted(r, p, GRANT_MS, upto, now);
        let (repository, principal) = (self.repositories[r], self.principals[p]);
        match (self.evidence(r, d, source, PUBLIC_MS, now), may_read) {
            (Evidence::Elsewhere, _) => Verdict::Fetch,
            (Evidence::Member, true) => Verdict::Allowed,
            (Evidence::Member, false) => {
                Verdict::Ask(Question { repository, principal, digest: None })
            }
            (Evidence::Unproven, _) => {
                let digest = Some(self.digests[d].clone());
                Verdict::Ask(Question { repository, principal, digest })
            }
        }
    }

    fn offline(&self, r: usize, d: usize, source: Option<usize>, p: usize, now: u64) -> bool {
        let upto = self.events.len();
        (self.public(r, GRACE_MS, upto, now) || self.granted(r, p, GRACE_MS, upto, now))
            && self.evidence(r, d, source, GRACE_MS, now) == Evidence::Member
    }

    fn apply(&mut self, rights: &mut Rights, event: Event, now: u64) {
        match event {
            Event::Served(r, d, p) => {
                let (repository, principal) = (&self.repositories[r], &self.principals[p]);
                rights.note_served(repository, &self.digests[d], principal, now);
            }
            Event::Answered(r, d, p, status) => {
                let (repository, principal) = (&self.repositories[r], &self.principals[p]);
                let what = d.map_or(What::Tag, |d| What::Blob(&self.digests[d]));
                let asked = Asked { repository, principal, what };
                rights.note_answer(&asked, status, &registry_says(), now);
            }
            Event::Named(r, d) => {
                let blobs = vec![Part { digest: self.digests[d].clone(), size: 1 }];
                let manifest = Manifest { blobs, manifests: Vec::new() };
                rights.note_manifest(&self.repositories[r], &manifest);
            }
            Event::Public(r, yes) => rights.note_public(&self.repositories[r], yes, now),
        }
        self.events.push((now, event));
    }
}

#[test]
fn the_tables_agree_with_the_model() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1_u64);
    for seed in seed..seed + 100 {
        one_history(seed);
    }
}

fn one_history(seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 8) as usize % below
    };
    let mut world = World::new();
    let mut rights = Rights::new(Listing::default());
    let mut now = NOW;
    for step in 0..40 {
        now += [0, SECOND, 4 * 60 * SECOND, GRANT_MS, HOUR, 11 * HOUR][random(6)];
        let (r, d, p) = (random(3), random(4), random(3));
        let event = match random(8) {
            0 | 1 => Event::Served(r, d, p),
            2..=5 => {
                let status = [200, 307, 401, 403, 404, 404, 429, 500][random(8)];
                Event::Answered(r, (random(3) > 0).then_some(d), p, status)
            }
            6 => Event::Named(r, d),
            _ => Event::Public(r, random(2) == 0),
        };
        world.apply(&mut rights, event, now);
        for all in 0..3 * 4 * 3 * 4 {
            let (r, d, p, s) = (all % 3, all / 3 % 4, all / 12 % 3, all / 36);
            let source = (s < 3).then_some(s);
            let wanted = Wanted {
                repository: &world.repositories[r],
                digest: &world.digests[d],
                source: source.map(|s| &world.repositories[s]),
            };
            let who = &world.principals[p];
            let shown = || format!("SEED={seed} step {step}, {r} {d} {source:?} {p}: {world:?}");
            let expected = world.verdict(r, d, source, p, now);
            assert_eq!(rights.verdict(&wanted, who, now), expected, "{}", shown());
            let offline = world.offline(r, d, source, p, now);
            assert_eq!(rights.allowed_offline(&wanted, who, now), offline, "{}", shown());
        }
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let line = |(at, event): &(u64, Event)| format!("{}s {event:?}", (at - NOW) / SECOND);
        f.debug_list().entries(self.events.iter().map(line)).finish()
    }
}
