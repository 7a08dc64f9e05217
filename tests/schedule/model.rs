//! What the cache ought to hold and say: a list, a few numbers, and every body that was ever begun.
//!
//! A *generation* is one lease and what became of it. The model knows the rules of `src/cache` in
//! their plainest form and none of its machinery.

use std::collections::{BTreeMap, BTreeSet};

use discobot_proxy::cache::HELD_BACK;

/// Room set aside at a time, as a body comes.
const GROWTH: u64 = 16 * 1024 * 1024;

/// How far a generation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Pending,
    Growing,
    Complete,
    Declined,
    Abandoned,
    /// Why, in one word.
    Failed(&'static str),
}

impl State {
    pub fn is_ending(self) -> bool {
        !matches!(self, State::Pending | State::Growing)
    }
}

pub struct Generation {
    pub key: usize,
    /// What upstream sends, whole or broken.
    pub source: Vec<u8>,
    pub announced: Option<u64>,
    pub state: State,
    /// Bytes appended.
    pub at: u64,
    /// Bytes that readers may have.
    pub written: u64,
    /// Length and digest have been found right.
    pub proven: bool,
    doomed: bool,
    file: File,
    reserved: u64,
    /// Room that a commit took along to its helper thread.
    handed_over: u64,
}

/// The file of a generation, until it has its final name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum File {
    None,
    There,
    Swept,
}

struct Stored {
    key: usize,
    generation: usize,
    len: u64,
}

/// What an append ought to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Append {
    Fails(&'static str),
    /// Within what is set aside.
    Fits,
    /// Room is made for it first.
    Grows,
}

/// What a commit ought to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    Fails(&'static str),
    /// Delivered, but not kept.
    Passes,
    Stores,
}

#[derive(Default)]
pub struct Model {
    pub max_size: u64,
    /// The body a key's digest is of; `None` for a key that has none.
    pub truths: Vec<Option<Vec<u8>>>,
    pub generations: Vec<Generation>,
    /// Uses are forgotten: the fault that makes the model wrong.
    pub forgetful: bool,
    pub evictions: u64,
    pub stores: u64,
    /// Least recently used first.
    stored: Vec<Stored>,
    reserved: u64,
    /// Keys that were evicted: their files may lie there until the janitor comes.
    lingering: BTreeSet<usize>,
    /// Leases and fills, by their key.
    current: BTreeMap<usize, usize>,
}

impl Model {
    /// An empty cache that keeps `max_size` bytes, of keys with these bodies.
    pub fn new(max_size: u64, truths: Vec<Option<Vec<u8>>>) -> Model {
        Model { max_size, truths, ..Model::default() }
    }

    /// The generation stored under a key.
    pub fn stored(&self, key: usize) -> Option<usize> {
        self.stored.iter().find(|stored| stored.key == key).map(|stored| stored.generation)
    }

    /// Whether the janitor may not have come yet to the files of a key.
    pub fn lingers(&self, key: usize) -> bool {
        self.lingering.contains(&key)
    }

    /// The lease or fill that whoever asks for a key joins.
    pub fn filling(&self, key: usize) -> Option<usize> {
        self.current.get(&key).copied()
    }

    /// Keys and generations that are stored.
    pub fn entries(&self) -> impl Iterator<Item = (usize, usize)> {
        self.stored.iter().map(|stored| (stored.key, stored.generation))
    }

    /// Entries, their bytes, fills.
    pub fn sizes(&self) -> (usize, u64, usize) {
        (self.stored.len(), self.bytes(), self.current.len())
    }

    /// What must hold whatever happens.
    pub fn check(&self) -> Result<(), String> {
        if self.reserved == 0 && self.bytes() > self.max_size {
            return Err(format!("{} bytes stored, {} allowed", self.bytes(), self.max_size));
        }
        Ok(())
    }

    pub fn use_key(&mut self, key: usize) {
        if self.forgetful {
            return;
        }
        if let Some(at) = self.stored.iter().position(|stored| stored.key == key) {
            let stored = self.stored.remove(at);
            self.stored.push(stored);
        }
    }

    /// A lease was given out.
    pub fn lease(&mut self, key: usize) -> Result<usize, String> {
        if let Some(other) = self.current.get(&key) {
            return Err(format!("a second lease for key {key} beside generation {other}"));
        }
        let id = self.generations.len();
        self.generations.push(Generation {
            key,
            source: Vec::new(),
            announced: None,
            state: State::Pending,
            at: 0,
            written: 0,
            proven: false,
            doomed: false,
            file: File::None,
            reserved: 0,
            handed_over: 0,
        });
        self.current.insert(key, id);
        Ok(id)
    }

    /// A lease ends without a fill.
    pub fn end_lease(&mut self, id: usize, state: State) {
        let room = std::mem::take(&mut self.generations[id].reserved);
        self.reserved -= room;
        self.leave(id);
        self.generations[id].state = state;
    }

    /// A lease asks for a file.
    pub fn begin(&mut self, id: usize, source: Vec<u8>, announced: Option<u64>) {
        let generation = &mut self.generations[id];
        generation.source = source;
        generation.announced = announced;
        generation.reserved = announced.unwrap_or(self.max_size).min(GROWTH);
        self.reserved += self.generations[id].reserved;
    }

    /// A helper thread makes the file, and room for its first bytes.
    pub fn made(&mut self, id: usize) {
        if self.generations[id].announced.is_some_and(|len| len > self.max_size) {
            return;
        }
        self.generations[id].file = File::There;
        self.shrink();
    }

    /// A helper thread makes room for more bytes.
    pub fn grown(&mut self) {
        self.shrink();
    }

    /// Somebody removes all unfinished files.
    pub fn sweep(&mut self) {
        for generation in &mut self.generations {
            if generation.file == File::There {
                generation.file = File::Swept;
            }
        }
    }

    /// The lease has become a fill.
    pub fn begun(&mut self, id: usize) {
        self.generations[id].state = State::Growing;
    }

    /// Bytes come.
    pub fn append(&mut self, id: usize, count: u64) -> Append {
        let generation = &mut self.generations[id];
        let end = generation.at + count;
        if generation.announced.is_some_and(|len| end > len) {
            return Append::Fails("length");
        }
        if end > self.max_size {
            return Append::Fails("storage");
        }
        if end <= generation.reserved {
            return Append::Fits;
        }
        let most = generation.announced.unwrap_or(self.max_size);
        let more = (most - generation.reserved).min(GROWTH).max(end - generation.reserved);
        generation.reserved += more;
        self.reserved += more;
        Append::Grows
    }

    /// They are written.
    pub fn appended(&mut self, id: usize, count: u64) {
        let generation = &mut self.generations[id];
        generation.at += count;
        let end = generation.announced.unwrap_or(generation.at);
        generation.written = generation.at.min(end.saturating_sub(HELD_BACK));
    }

    pub fn commit(&mut self, id: usize) -> Commit {
        let generation = &self.generations[id];
        let body = &generation.source[..generation.at as usize];
        if generation.announced.is_some_and(|len| len != generation.at) {
            return Commit::Fails("length");
        }
        if self.truths[generation.key].as_ref().is_some_and(|truth| truth != body) {
            return Commit::Fails("digest");
        }
        let generation = &mut self.generations[id];
        generation.proven = true;
        if generation.doomed {
            return Commit::Passes;
        }
        generation.handed_over = std::mem::take(&mut generation.reserved);
        Commit::Stores
    }

    /// A helper thread is done with a commit, or refuses it: the room goes with the work.
    pub fn let_go(&mut self, id: usize) {
        self.reserved -= std::mem::take(&mut self.generations[id].handed_over);
    }

    /// A helper thread gives a committed fill its name, or finds that it can't.
    pub fn store(&mut self, id: usize) {
        let generation = &self.generations[id];
        if generation.doomed {
            return;
        }
        let (key, len, file) = (generation.key, generation.at, generation.file);
        self.take(key);
        if file == File::There {
            self.generations[id].file = File::None;
            self.stored.push(Stored { key, generation: id, len });
            self.stores += 1;
            self.shrink();
        }
    }

    /// A commit has come to its end.
    pub fn complete(&mut self, id: usize) {
        self.release(id);
        self.leave(id);
        let generation = &mut self.generations[id];
        generation.state = State::Complete;
        generation.written = generation.at;
    }

    pub fn fail(&mut self, id: usize, why: &'static str) {
        self.release(id);
        self.leave(id);
        let generation = &mut self.generations[id];
        generation.doomed = true;
        if !generation.state.is_ending() {
            generation.state = State::Failed(why);
        }
    }

    /// A helper thread removes a key; its size, where it was stored.
    pub fn remove(&mut self, key: usize) -> Option<u64> {
        if let Some(id) = self.current.remove(&key) {
            self.generations[id].doomed = true;
        }
        self.take(key)
    }

    /// A helper thread removes everything; entries and bytes.
    pub fn clear(&mut self) -> (usize, u64) {
        for (_, id) in std::mem::take(&mut self.current) {
            self.generations[id].doomed = true;
        }
        let freed = self.bytes();
        let count = self.stored.len();
        self.stored.clear();
        self.lingering.clear();
        (count, freed)
    }

    fn bytes(&self) -> u64 {
        self.stored.iter().map(|stored| stored.len).sum()
    }

    fn take(&mut self, key: usize) -> Option<u64> {
        self.lingering.remove(&key);
        let at = self.stored.iter().position(|stored| stored.key == key)?;
        Some(self.stored.remove(at).len)
    }

    fn shrink(&mut self) {
        while self.bytes() + self.reserved > self.max_size && !self.stored.is_empty() {
            let evicted = self.stored.remove(0);
            self.lingering.insert(evicted.key);
            self.evictions += 1;
        }
    }

    fn release(&mut self, id: usize) {
        self.reserved -= std::mem::take(&mut self.generations[id].reserved);
    }

    fn leave(&mut self, id: usize) {
        let key = self.generations[id].key;
        if self.current.get(&key) == Some(&id) {
            self.current.remove(&key);
        }
    }
}
