//! An executor whose every step follows from a seed.
//!
//! Tasks are polled only when something woke them, so a wake-up that is lost is a task that never
//! ends. What the cache gives to helper threads waits here as a *job* until the seed says that it
//! runs: any time later, in any order, or never.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::{Future, poll_fn};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use discobot_proxy::cache::{Cache, Options};
use discobot_proxy::key::Key;
use discobot_proxy::stats::Stats;
use monoio::blocking::{BlockingTask, ThreadPool};

use super::model::Model;
use crate::support::seed::Rng;

/// Steps that no run needs: beyond them something goes round in circles.
const STEPS_MAX: usize = 2_000_000;

/// Faults planted on purpose, each of which a run must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    Nothing,
    /// Readers are shown what is written before it is proven.
    EndShownEarly,
    /// A wake-up is lost now and then.
    WakeLost,
    /// The model forgets uses: another entry is the least recently used one.
    UseForgotten,
    /// An entry is removed behind the model's back, so that its key gets a second lease.
    SecondLease,
    /// The file of an evicted entry comes back.
    FileLeft,
    /// A byte of a stored body changes.
    ByteChanged,
    /// A fill that breaks off never says so.
    EndingUnsaid,
}

/// What a job is for, so that the model can follow when it runs.
#[derive(Debug)]
pub enum Work {
    /// Opens a stored key; afterwards the generation that was found.
    Load(usize, Cell<Loaded>),
    /// Makes the file of a generation.
    Begin(usize),
    /// Makes room for more bytes of a generation.
    Grow,
    /// Names the file of a generation.
    Store(usize),
    /// Removes a key; afterwards the size that was freed.
    Remove(usize, Cell<Option<u64>>),
    /// Removes everything; afterwards entries and bytes.
    Clear(Cell<(usize, u64)>),
    /// Changes nothing that the model knows.
    Plain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    NotYet,
    Refused,
    Found(Option<usize>),
}

/// How a run is driven.
pub struct Mood {
    /// A ready task is taken so many times as often as a job.
    pub tasks_first: usize,
    /// One in so many steps somebody new comes; whenever else there is nothing to do, too.
    pub arrivals: usize,
    /// One in so many steps a task is ended from outside.
    pub kills: Option<usize>,
    /// One in so many jobs is refused.
    pub refusals: Option<usize>,
    /// One in so many steps somebody empties the folder of unfinished files.
    pub sweeps: Option<usize>,
    /// One in so many steps a task is polled though nothing woke it.
    pub spurious: Option<usize>,
}

pub struct World {
    pub cache: Cache,
    pub stats: Arc<Stats>,
    pub dir: PathBuf,
    pub keys: Vec<Key>,
    pub plant: Plant,
    pub model: RefCell<Model>,
    pub rng: RefCell<Rng>,
    tells: bool,
    fault: RefCell<Option<String>>,
    spawned: RefCell<Vec<(String, Task)>>,
    invited: RefCell<VecDeque<(String, Task)>>,
    fresh: Arc<Mutex<Vec<BlockingTask>>>,
    jobs: RefCell<Vec<(Rc<Work>, BlockingTask)>>,
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// The thread pool of the runtime: it only takes jobs down.
pub struct Pool(pub Arc<Mutex<Vec<BlockingTask>>>);

impl ThreadPool for Pool {
    fn schedule_task(&self, task: BlockingTask) {
        self.0.lock().expect("jobs").push(task);
    }
}

struct TaskWaker {
    task: usize,
    woken: Arc<Mutex<BTreeSet<usize>>>,
    /// Wake-ups until one is lost.
    lose: Option<Arc<Mutex<Rng>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        if let Some(rng) = &self.lose
            && rng.lock().expect("rng").one_in(5)
        {
            return;
        }
        self.woken.lock().expect("woken").insert(self.task);
    }
}

impl World {
    pub fn open(
        dir: &Path,
        fresh: Arc<Mutex<Vec<BlockingTask>>>,
        keys: Vec<Key>,
        model: Model,
        (plant, rng): (Plant, Rng),
    ) -> std::io::Result<Rc<World>> {
        let stats = Arc::new(Stats::default());
        let (max_size, open_max) = (model.max_size, 2);
        let options =
            Options { dir: dir.to_owned(), max_size, min_free: 0, open_max, fills_max: 1 << 20 };
        let cache = Cache::open(options, Arc::clone(&stats))?;
        cache.scan()?;
        Ok(Rc::new(World {
            cache,
            stats,
            dir: dir.to_owned(),
            keys,
            plant,
            tells: std::env::var("DISCOBOT_STEPS").is_ok_and(|value| value == "1"),
            model: RefCell::new(model),
            rng: RefCell::new(rng),
            fault: RefCell::new(None),
            spawned: RefCell::default(),
            invited: RefCell::default(),
            fresh,
            jobs: RefCell::default(),
        }))
    }

    pub fn below(&self, bound: usize) -> usize {
        self.rng.borrow_mut().below(bound)
    }

    pub fn one_in(&self, of: usize) -> bool {
        self.rng.borrow_mut().one_in(of)
    }

    /// Tells of a step, where the environment asks for that (`DISCOBOT_STEPS=1`).
    fn say(&self, what: impl FnOnce() -> String) {
        if self.tells {
            println!("{}", what());
        }
    }

    /// Notes what is wrong; the first word counts.
    pub fn fault(&self, what: String) {
        self.fault.borrow_mut().get_or_insert(what);
    }

    /// [`World::fault`] unless `right`.
    pub fn expect(&self, right: bool, what: impl FnOnce() -> String) {
        if !right {
            self.fault(what());
        }
    }

    pub fn spawn(&self, name: String, task: impl Future<Output = ()> + 'static) {
        self.spawned.borrow_mut().push((name, Box::pin(task)));
    }

    /// Spawns `task`, but later.
    pub fn invite(&self, name: String, task: impl Future<Output = ()> + 'static) {
        self.invited.borrow_mut().push_back((name, Box::pin(task)));
    }

    /// Polls what may ask for helper threads; `work` goes with its jobs.
    pub async fn doing<T>(&self, work: &Rc<Work>, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        poll_fn(|cx| self.poll_doing(work, future.as_mut(), cx)).await
    }

    pub fn poll_doing<T>(
        &self,
        work: &Rc<Work>,
        future: Pin<&mut impl Future<Output = T>>,
        cx: &mut Context<'_>,
    ) -> Poll<T> {
        let polled = future.poll(cx);
        let fresh = std::mem::take(&mut *self.fresh.lock().expect("jobs"));
        self.jobs.borrow_mut().extend(fresh.into_iter().map(|job| (Rc::clone(work), job)));
        polled
    }

    /// Gives way to others.
    pub async fn pause(&self) {
        let mut paused = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut paused, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Runs everything that was spawned or invited to its end.
    pub fn run(&self, mood: &Mood) -> Result<(), String> {
        let mut deck = Deck::default();
        for _ in 0..STEPS_MAX {
            deck.take_in(self);
            if !self.step(&mut deck, mood) {
                return deck.verdict();
            }
            if let Some(fault) = self.fault.borrow_mut().take() {
                return Err(fault);
            }
            self.compare()?;
        }
        Err("it goes round in circles".to_owned())
    }

    /// One step; false where there is none to take.
    fn step(&self, deck: &mut Deck, mood: &Mood) -> bool {
        let ready: Vec<usize> = deck.woken.lock().expect("woken").iter().copied().collect();
        let jobs = self.jobs.borrow().len();
        let idle = ready.is_empty() && jobs == 0;
        if (idle || self.one_in(mood.arrivals))
            && let Some(next) = self.invited.borrow_mut().pop_front()
        {
            self.spawned.borrow_mut().push(next);
        } else if idle {
            return false;
        } else if mood.kills.is_some_and(|of| self.one_in(of)) && !deck.tasks.is_empty() {
            let task = deck.nth(self.below(deck.tasks.len()));
            self.say(|| format!("break off {task}"));
            deck.end(task);
        } else if mood.sweeps.is_some_and(|of| self.one_in(of)) {
            self.say(|| "sweep".to_owned());
            self.sweep();
        } else if mood.spurious.is_some_and(|of| self.one_in(of)) && !deck.tasks.is_empty() {
            let task = deck.nth(self.below(deck.tasks.len()));
            self.say(|| format!("poll {} for nothing", deck.name(task)));
            deck.poll(task);
        } else if jobs == 0 || !ready.is_empty() && self.below(mood.tasks_first + 1) > 0 {
            let task = ready[self.below(ready.len())];
            self.say(|| format!("poll {}", deck.name(task)));
            deck.poll(task);
        } else {
            let (work, job) = self.jobs.borrow_mut().swap_remove(self.below(jobs));
            let refused = mood.refusals.is_some_and(|of| self.one_in(of));
            self.say(|| format!("{} {work:?}", if refused { "refuse" } else { "carry out" }));
            self.carry_out(&work, job, refused);
        }
        true
    }

    /// Removes every unfinished file, as somebody may who clears the directory by hand.
    fn sweep(&self) {
        let folder = std::fs::read_dir(self.dir.join("partial")).expect("a folder");
        for part in folder.flatten() {
            // The janitor may be quicker.
            let _ = std::fs::remove_file(part.path());
        }
        self.model.borrow_mut().sweep();
    }

    fn carry_out(&self, work: &Work, job: BlockingTask, refused: bool) {
        if refused {
            // Whoever waits for it is told that it was cancelled.
            drop(job);
            match work {
                Work::Load(_, found) => found.set(Loaded::Refused),
                Work::Store(generation) => self.model.borrow_mut().let_go(*generation),
                _ => {}
            }
            return;
        }
        let late = match work {
            Work::Load(key, _) if self.model.borrow().lingers(*key) => Some(*key),
            _ => None,
        };
        if let Some(key) = late {
            self.link(key, "kept", ".");
        }
        job.run();
        if let Some(key) = late {
            self.unlink(key);
        }
        if let Work::Store(generation) = work {
            let key = self.model.borrow().generations[*generation].key;
            self.link(key, ".", "kept");
        }
        let mut model = self.model.borrow_mut();
        match work {
            Work::Load(key, found) => found.set(Loaded::Found(model.stored(*key))),
            Work::Begin(generation) => model.made(*generation),
            Work::Grow => model.grown(),
            Work::Store(generation) => {
                model.let_go(*generation);
                model.store(*generation);
            }
            Work::Remove(key, freed) => freed.set(model.remove(*key)),
            Work::Clear(freed) => freed.set(model.clear()),
            Work::Plain => {}
        }
    }

    /// Gives the files of a key a second name, or puts them back where they were: as if the janitor
    /// had not come yet.
    fn link(&self, key: usize, from: &str, to: &str) {
        for name in names(&self.keys[key]) {
            let (from, to) = (self.dir.join(from).join(&name), self.dir.join(to).join(&name));
            if to.starts_with(self.dir.join("kept")) {
                std::fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
                let _ = std::fs::remove_file(&to);
            }
            // There is nothing where a commit failed, and it is there where the janitor is late.
            let _ = std::fs::hard_link(from, to);
        }
    }

    fn unlink(&self, key: usize) {
        for name in names(&self.keys[key]) {
            let _ = std::fs::remove_file(self.dir.join(name));
        }
    }

    /// The cache against the model.
    fn compare(&self) -> Result<(), String> {
        let model = self.model.borrow();
        model.check()?;
        let sizes = self.cache.sizes();
        let found = (sizes.entries, sizes.stored, sizes.fills);
        if found != model.sizes() {
            let wanted = model.sizes();
            return Err(format!("sizes (entries, bytes, fills) are {found:?}, not {wanted:?}"));
        }
        Ok(())
    }

    fn waker(&self, task: usize, woken: &Arc<Mutex<BTreeSet<usize>>>) -> Waker {
        let lose = (self.plant == Plant::WakeLost)
            .then(|| Arc::new(Mutex::new(self.rng.borrow().clone())));
        Waker::from(Arc::new(TaskWaker { task, woken: Arc::clone(woken), lose }))
    }
}

/// Body and `.meta` of a key, below the cache directory.
pub fn names(key: &Key) -> [String; 2] {
    let body = match key {
        Key::Digest(digest) => format!("blobs/{}/{}", digest.algorithm().as_str(), key.hex()),
        Key::Url(_) => format!("urls/sha256/{}", key.hex()),
    };
    let meta = format!("{body}.meta");
    [body, meta]
}

/// The tasks of one run.
#[derive(Default)]
struct Deck {
    tasks: BTreeMap<usize, (String, Waker, Task)>,
    woken: Arc<Mutex<BTreeSet<usize>>>,
    next: usize,
}

impl Deck {
    fn take_in(&mut self, world: &World) {
        for (name, task) in world.spawned.borrow_mut().drain(..) {
            let waker = world.waker(self.next, &self.woken);
            self.woken.lock().expect("woken").insert(self.next);
            self.tasks.insert(self.next, (name, waker, task));
            self.next += 1;
        }
    }

    fn nth(&self, n: usize) -> usize {
        self.tasks.keys().nth(n).copied().unwrap_or_default()
    }

    fn name(&self, id: usize) -> &str {
        self.tasks.get(&id).map_or("", |(name, ..)| name)
    }

    fn poll(&mut self, id: usize) {
        self.woken.lock().expect("woken").remove(&id);
        let Some((_, waker, task)) = self.tasks.get_mut(&id) else { return };
        let waker = waker.clone();
        if task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            self.end(id);
        }
    }

    fn end(&mut self, id: usize) {
        self.woken.lock().expect("woken").remove(&id);
        self.tasks.remove(&id);
    }

    fn verdict(&self) -> Result<(), String> {
        if self.tasks.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = self.tasks.values().map(|(name, ..)| name.as_str()).collect();
        Err(format!("never woken again: {}", names.join(", ")))
    }
}
