use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::*;

const LONG: Duration = Duration::from_secs(3600);
/// How long a test waits for what must happen.
const DEADLINE: Duration = Duration::from_secs(60);

/// A stand-in for the system: names that begin with `slow` hang until it is opened, those that
/// begin with `no` have no address.
#[derive(Clone, Default)]
struct System(Arc<(Mutex<Asked>, Condvar)>);

#[derive(Default)]
struct Asked {
    names: Vec<String>,
    open: bool,
}

impl System {
    fn resolver(&self, limits: Limits) -> Resolver {
        let system = self.clone();
        Resolver::new(limits, move |name| system.ask(name))
    }

    fn ask(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let (asked, changed) = &*self.0;
        let mut asked = asked.lock().unwrap();
        asked.names.push(name.to_owned());
        changed.notify_all();
        while name.starts_with("slow") && !asked.open {
            asked = changed.wait(asked).unwrap();
        }
        match name.starts_with("no") {
            true => Err(io::Error::other("no such name")),
            false => Ok(addresses(&["192.0.2.1", "2001:db8::1"])),
        }
    }

    fn open(&self) {
        self.0.0.lock().unwrap().open = true;
        self.0.1.notify_all();
    }

    fn count(&self, name: &str) -> usize {
        self.0.0.lock().unwrap().names.iter().filter(|asked| *asked == name).count()
    }

    fn wait_asked(&self, count: usize) {
        let (asked, changed) = &*self.0;
        let waiting = |asked: &mut Asked| asked.names.len() < count;
        let (asked, waited) =
            changed.wait_timeout_while(asked.lock().unwrap(), DEADLINE, waiting).unwrap();
        assert!(!waited.timed_out(), "{:?}", asked.names);
    }
}

const TEST: Limits = Limits {
    quick: 2,
    threads: 64,
    queue: 256,
    names: 64,
    slow: Duration::from_millis(5),
    hung: LONG,
    kept: LONG,
    kept_failure: LONG,
    glanced: LONG,
};

fn host(name: &str) -> Host {
    Host::parse(name).unwrap()
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let builder = monoio::RuntimeBuilder::<monoio::FusionDriver>::new().enable_timer();
    builder.build().unwrap().block_on(future)
}

#[test]
fn all_who_ask_for_a_name_share_one_look_up() {
    let system = System::default();
    let resolver = system.resolver(TEST);
    let ask =
        |resolver: Resolver| run(async move { resolver.resolve(&host("slow"), DEADLINE).await });
    let other = resolver.clone();
    let others: Vec<_> = (0..3)
        .map(|_| {
            let resolver = resolver.clone();
            std::thread::spawn(move || ask(resolver))
        })
        .collect();
    let joined = || other.0.lock().lookups.get("slow").map_or(0, |lookup| lookup.wanted_by());
    let begun = Instant::now();
    while joined() < 3 {
        assert!(begun.elapsed() < DEADLINE);
        std::thread::yield_now();
    }
    system.open();
    for other in others {
        assert_eq!(other.join().unwrap().unwrap(), addresses(&["192.0.2.1", "2001:db8::1"]));
    }
    assert_eq!(system.count("slow"), 1);
}

#[test]
fn an_answer_is_kept_for_its_time_and_no_longer() {
    for (name, kept, kept_failure, asked) in [
        ("registry.test", LONG, Duration::ZERO, 1),
        ("registry.test", Duration::ZERO, LONG, 3),
        ("none.test", LONG, Duration::ZERO, 3),
        ("none.test", Duration::ZERO, LONG, 1),
    ] {
        let system = System::default();
        let resolver = system.resolver(Limits { kept, kept_failure, ..TEST });
        for _ in 0..3 {
            let found = run(resolver.resolve(&host(name), DEADLINE));
            match found {
                Ok(found) => assert_eq!(found.len(), 2),
                Err(error) => assert_eq!(
                    error.to_string(),
                    "the name none.test does not resolve: no such name"
                ),
            }
        }
        assert_eq!(system.count(name), asked, "{name} {kept:?}");
        resolver.forget(&host(name));
        let _ = run(resolver.resolve(&host(name), DEADLINE));
        assert_eq!(system.count(name), asked + 1, "forgotten");
    }
}

#[test]
fn names_that_hang_are_let_go_and_keep_no_other_name_from_being_asked_for() {
    let system = System::default();
    let resolver = system.resolver(TEST);
    run(async {
        for n in 0..16 {
            let error = resolver.resolve(&host(&format!("slow{n}")), 4 * TEST.slow).await;
            assert!(matches!(error, Err(NetError::TimedOut { .. })), "{error:?}");
        }
        assert_eq!(resolver.resolve(&host("quick"), DEADLINE).await.unwrap().len(), 2);
        system.open();
        for n in 0..16 {
            let name = format!("slow{n}");
            assert_eq!(resolver.resolve(&host(&name), DEADLINE).await.unwrap().len(), 2);
            assert_eq!(system.count(&name), 1, "whoever comes back waits for the same look-up");
        }
    });
    let begun = Instant::now();
    while resolver.0.lock().idle > TEST.quick || !resolver.0.lock().running.is_empty() {
        assert!(begun.elapsed() < DEADLINE, "threads that were replaced end");
        std::thread::yield_now();
    }
}

#[test]
fn a_look_up_that_waits_behind_hanging_ones_gets_a_thread_when_they_have_become_slow() {
    let system = System::default();
    let resolver = system.resolver(Limits { slow: Duration::from_millis(50), ..TEST });
    let hanging: Vec<Wait> = (0..2).filter_map(|n| resolver.0.ask(&format!("slow{n}"))).collect();
    system.wait_asked(2);
    let found = run(resolver.resolve(&host("quick"), DEADLINE));
    assert_eq!(found.unwrap().len(), 2);
    system.open();
    drop(hanging);
}

#[test]
fn threads_and_queue_are_bounded_and_what_nobody_wants_makes_room() {
    let system = System::default();
    let limits = Limits { threads: 2, queue: 2, slow: Duration::ZERO, ..TEST };
    let resolver = system.resolver(limits);
    let ask = |name: &str| resolver.0.ask(name);
    let running = [ask("slow1").unwrap(), ask("slow2").unwrap()];
    system.wait_asked(2);
    let queued = [ask("a").unwrap(), ask("b").unwrap()];
    assert!(ask("c").is_none());
    let refused = run(resolver.resolve(&host("c"), DEADLINE));
    assert!(matches!(refused, Err(NetError::Busy)), "{refused:?}");
    let joined = ask("a").unwrap();
    drop(queued);
    let next = ask("c").unwrap();
    assert!(ask("d").is_none(), "`a` and `c` are wanted");
    system.open();
    run(async {
        for wait in running.into_iter().chain([joined, next]) {
            assert!(resolver.0.wait(wait, DEADLINE).await.is_some());
        }
    });
    assert_eq!(system.count("b"), 0);
    assert!(!resolver.0.lock().lookups.contains_key("b"));
}

#[test]
fn a_glance_waits_for_no_look_up_longer_than_from_its_beginning() {
    let system = System::default();
    let resolver = system.resolver(TEST);
    let limit = Duration::from_millis(20);
    let name = host("slow");
    run(async {
        assert!(resolver.glance(&name, limit, true).await.is_empty());
        let mut second = pin!(resolver.glance(&name, limit, true));
        let now = second.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(now, Poll::Ready(Vec::new()));
        system.open();
        assert_eq!(resolver.glance(&name, DEADLINE, true).await.len(), 2);
    });
}

#[test]
fn a_glance_takes_what_was_known_before_and_has_it_asked_for_anew() {
    let system = System::default();
    let resolver = system.resolver(Limits { kept: Duration::ZERO, ..TEST });
    let name = host("slow");
    system.open();
    run(async {
        assert_eq!(resolver.resolve(&host("slow"), DEADLINE).await.unwrap().len(), 2);
        system.0.0.lock().unwrap().open = false;
        let mut glance = pin!(resolver.glance(&name, Duration::ZERO, true));
        let now = glance.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(now, Poll::Ready(addresses(&["192.0.2.1", "2001:db8::1"])));
        assert!(resolver.glance(&name, Duration::ZERO, false).await.is_empty());
        system.wait_asked(2);
        let second = resolver.glance(&name, Duration::ZERO, true).await;
        assert_eq!(second.len(), 2);
        assert_eq!(system.count("slow"), 2, "one look-up at a time");
        system.open();
    });
}

#[test]
fn the_names_remembered_are_bounded() {
    let system = System::default();
    let resolver = system.resolver(TEST);
    run(async {
        for n in 0..2 * TEST.names {
            resolver.resolve(&host(&format!("name{n}")), DEADLINE).await.unwrap();
        }
        assert_eq!(resolver.0.lock().lookups.len(), TEST.names);
        let last = format!("name{}", 2 * TEST.names - 1);
        resolver.resolve(&host(&last), DEADLINE).await.unwrap();
        assert_eq!(system.count(&last), 1, "the oldest went");
    });
}

#[test]
fn the_address_that_answered_is_tried_first_from_then_on() {
    let resolver = System::default().resolver(TEST);
    let name = host("registry.test");
    run(async {
        let found = resolver.resolve(&name, DEADLINE).await.unwrap();
        resolver.prefer(&name, found[1]);
        let again = resolver.resolve(&name, DEADLINE).await.unwrap();
        assert_eq!(again, addresses(&["2001:db8::1", "192.0.2.1"]));
        resolver.prefer(&name, "192.0.2.99".parse().unwrap());
        assert_eq!(resolver.resolve(&name, DEADLINE).await.unwrap(), again);
    });
}

#[test]
fn families_take_turns_and_the_preferred_one_begins() {
    let found = addresses(&["2001:db8::1", "2001:db8::2", "192.0.2.1"]);
    assert_eq!(by_turns(&found), addresses(&["2001:db8::1", "192.0.2.1", "2001:db8::2"]));
    let found = addresses(&["192.0.2.1", "192.0.2.2"]);
    assert_eq!(by_turns(&found), found);
    assert!(by_turns(&[]).is_empty());
}

#[test]
fn no_name_fills_the_list() {
    let found: Vec<IpAddr> = (0..100).map(|n| IpAddr::from([192, 0, 2, n])).collect();
    assert_eq!(by_turns(&found).len(), ADDRESSES_MAX);
}
