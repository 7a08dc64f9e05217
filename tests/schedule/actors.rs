//! Who uses the cache: clients that read, fills good and bad, and those who remove things.

use std::cell::Cell;
use std::future::poll_fn;
use std::os::unix::fs::FileExt;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use discobot_proxy::cache::{
    Body, CacheError, Failure, Fill, HELD_BACK, Lease, Lookup, NoHead, NoLease, Reader, Seen,
};
use discobot_proxy::key::Key;

use super::model::{Append, Commit, State};
use super::world::{Loaded, Plant, Work, World};

/// One word for each reason.
fn word(why: &Failure) -> &'static str {
    match why {
        Failure::Digest => "digest",
        Failure::Length => "length",
        Failure::Source(_) => "source",
        Failure::Storage(_) => "storage",
        Failure::NoAnswer(_) => "no answer",
        Failure::NeverBegun => "never begun",
    }
}

/// A stored head says which generation it belongs to.
fn generation_of(body: &Body) -> usize {
    std::str::from_utf8(&body.head).ok().and_then(|text| text.parse().ok()).unwrap_or(usize::MAX)
}

/// Looks a key up and compares what it gets; a lease comes with its generation.
async fn look_up(world: &World, key: usize) -> Option<(Lookup, Option<usize>)> {
    let work = Rc::new(Work::Load(key, Cell::new(Loaded::NotYet)));
    let Work::Load(_, found) = &*work else { return None };
    let mut future = pin!(world.cache.lookup(&world.keys[key], [0; 16]));
    let (mut first, mut loads) = (true, 0);
    poll_fn(|cx| {
        let loaded = found.replace(Loaded::NotYet);
        loads += usize::from(loaded != Loaded::NotYet);
        let looks = std::mem::take(&mut first) || loaded == Loaded::Found(None);
        if looks {
            world.model.borrow_mut().use_key(key);
        }
        let polled = world.poll_doing(&work, future.as_mut(), cx);
        let Poll::Ready(result) = polled else { return Poll::Pending };
        let mut model = world.model.borrow_mut();
        let (stored, filling) = (model.stored(key), model.filling(key));
        let gave = match &result {
            Ok(Lookup::Hit(reader)) => {
                let generation = reader.glance().map(|seen| generation_of(&seen.body));
                let wanted = match loaded {
                    Loaded::Found(Some(there)) => Some(there),
                    _ => stored.filter(|_| looks),
                };
                let right = generation.is_some() && generation == wanted;
                world.expect(right, || format!("a hit on {generation:?}, not {wanted:?}"));
                None
            }
            Ok(Lookup::Join(_)) => {
                let right = looks && stored.is_none() && filling.is_some();
                world.expect(right, || format!("a join of key {key}, which nobody fills"));
                filling
            }
            Ok(Lookup::Miss(_)) => {
                let right = looks && stored.is_none();
                world.expect(right, || format!("a miss of key {key}, which is stored"));
                model.lease(key).map_err(|what| world.fault(what)).ok()
            }
            Ok(Lookup::Crowded) => {
                world.expect(false, || "there is room for every fill".to_owned());
                None
            }
            Err(CacheError::Busy) => {
                world.expect(loaded == Loaded::Refused, || "busy for no reason".to_owned());
                None
            }
            Err(error) => {
                let unsettled = matches!(error, CacheError::Unsettled) && loads >= 4;
                world.expect(unsettled, || format!("the look-up failed: {error}"));
                None
            }
        };
        Poll::Ready(result.ok().map(|lookup| (lookup, gave)))
    })
    .await
}

/// Asks for a key as a client does, until there is an answer.
pub async fn client(world: Rc<World>, key: usize) {
    for _ in 0..4 {
        match look_up(&world, key).await {
            Some((Lookup::Hit(reader), _)) => {
                read(&world, reader, None).await;
                return;
            }
            Some((Lookup::Join(reader), generation)) => {
                if !read(&world, reader, generation).await {
                    return;
                }
            }
            Some((Lookup::Miss(lease), Some(generation))) => {
                let held = Held { world: Rc::clone(&world), generation, lease: Some(lease) };
                if let Some(reader) = hold(held).await {
                    read(&world, reader, Some(generation)).await;
                }
                return;
            }
            Some((Lookup::Miss(_), None) | (Lookup::Crowded, _)) | None => return,
        }
    }
}

/// Looks, but never fills.
pub async fn peeker(world: Rc<World>, key: usize) {
    let work = Rc::new(Work::Load(key, Cell::new(Loaded::NotYet)));
    let stored = {
        let mut model = world.model.borrow_mut();
        model.use_key(key);
        model.stored(key)
    };
    let result = world.doing(&work, world.cache.peek(&world.keys[key])).await;
    let Work::Load(_, found) = &*work else { return };
    let wanted = match found.get() {
        Loaded::NotYet => stored,
        Loaded::Found(there) => there,
        Loaded::Refused => return world.expect(result.is_err(), || "busy is not said".to_owned()),
    };
    let got = result.ok().flatten();
    let seen = got.as_ref().and_then(Reader::glance).map(|seen| generation_of(&seen.body));
    world.expect(seen == wanted, || format!("a peek found {seen:?}, not {wanted:?}"));
    if let Some(reader) = got {
        read(&world, reader, None).await;
    }
}

/// Fills a key though it may be stored.
pub async fn refiller(world: Rc<World>, key: usize) {
    let lease = world.cache.refill(&world.keys[key], [0; 16]);
    let filling = world.model.borrow().filling(key);
    let right = lease.is_ok() == filling.is_none();
    world.expect(right, || format!("a second lease for key {key}, or none though none is out"));
    let lease = match lease {
        Ok(lease) if right => lease,
        Err(NoLease::Taken(reader)) if right => {
            read(&world, reader, filling).await;
            return;
        }
        _ => return,
    };
    let Ok(generation) = world.model.borrow_mut().lease(key) else { return };
    let held = Held { world: Rc::clone(&world), generation, lease: Some(lease) };
    if let Some(reader) = hold(held).await {
        read(&world, reader, Some(generation)).await;
    }
}

pub async fn remover(world: Rc<World>, key: usize) {
    let work = Rc::new(Work::Remove(key, Cell::new(None)));
    let result = world.doing(&work, world.cache.remove(&world.keys[key])).await;
    let Work::Remove(_, freed) = &*work else { return };
    let Ok(said) = result else { return };
    // What was evicted a moment ago may lie there still.
    let lies_there = said.is_some_and(|len| {
        let model = world.model.borrow();
        model.generations.iter().any(|other| other.key == key && other.at == len)
    });
    let right = said == freed.get() || freed.get().is_none() && lies_there;
    world.expect(right, || format!("removed {said:?} bytes, not {:?}", freed.get()));
}

pub async fn clearer(world: Rc<World>) {
    let work = Rc::new(Work::Clear(Cell::default()));
    let result = world.doing(&work, world.cache.clear()).await;
    let Work::Clear(freed) = &*work else { return };
    if let Ok(removed) = result {
        let said = (removed.count, removed.freed);
        world.expect(said == freed.get(), || format!("cleared {said:?}, not {:?}", freed.get()));
    }
}

/// A lease and its place in the model.
struct Held {
    world: Rc<World>,
    generation: usize,
    lease: Option<Lease>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            drop(lease);
            self.world.model.borrow_mut().end_lease(self.generation, State::Abandoned);
        }
    }
}

/// Decides what becomes of a lease.
async fn hold(mut held: Held) -> Option<Reader> {
    let world = Rc::clone(&held.world);
    for _ in 0..world.below(6) {
        world.pause().await;
    }
    let choice = world.below(20);
    if choice < 2 {
        let lease = held.lease.take()?;
        let state = if choice == 0 {
            lease.decline();
            State::Declined
        } else {
            lease.fail(Failure::NoAnswer(Arc::new(CacheError::Busy)));
            State::Failed("no answer")
        };
        world.model.borrow_mut().end_lease(held.generation, state);
        return None;
    }
    if choice == 2 {
        return None;
    }
    begin(held).await
}

/// What upstream sends for a key, and how long it says that is.
fn script(world: &World, key: usize, generation: usize) -> (Vec<u8>, Option<u64>) {
    let truth = world.model.borrow().truths[key].clone();
    let mut source = truth.unwrap_or_else(|| crate::noise(generation * 31, world.below(40_000)));
    let mut announced = (!world.one_in(8)).then_some(source.len() as u64);
    match world.below(16) {
        0 if !source.is_empty() => {
            let at = world.below(source.len());
            source[at] ^= 1;
        }
        1 => source.truncate(world.below(source.len() + 1)),
        2 => source.extend(std::iter::repeat_n(7, 1 + world.below(20_000))),
        3 => announced = announced.map(|len| len + 1 + world.below(20_000) as u64),
        _ => {}
    }
    (source, announced)
}

/// Has the file made, and somebody to fill it.
async fn begin(mut held: Held) -> Option<Reader> {
    let world = Rc::clone(&held.world);
    let generation = held.generation;
    let key = world.model.borrow().generations[generation].key;
    let (source, announced) = script(&world, key, generation);
    let digest = match &world.keys[key] {
        Key::Digest(digest) => Some(digest.clone()),
        Key::Url(_) => None,
    };
    world.model.borrow_mut().begin(generation, source, announced);
    let lease = held.lease.take()?;
    let under_way = UnderWay(Some((Rc::clone(&world), generation)));
    let head = generation.to_string().into_bytes();
    let work = Rc::new(Work::Begin(generation));
    let begun = world.doing(&work, lease.begin(head, announced, digest)).await;
    under_way.over();
    match begun {
        Ok((fill, reader)) => {
            world.model.borrow_mut().begun(generation);
            let filler = Filler { world: Rc::clone(&world), generation, fill: Some(fill) };
            world.spawn(format!("fill of {generation}"), pour(filler));
            Some(reader)
        }
        Err(_) => {
            world.model.borrow_mut().end_lease(generation, State::Declined);
            None
        }
    }
}

/// A begin or a commit that may be broken off from outside.
struct UnderWay(Option<(Rc<World>, usize)>);

impl UnderWay {
    fn over(mut self) {
        self.0 = None;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some((world, generation)) = self.0.take() {
            let mut model = world.model.borrow_mut();
            match model.generations[generation].state {
                State::Pending => model.end_lease(generation, State::Abandoned),
                _ => model.fail(generation, "source"),
            }
        }
    }
}

/// A fill and its place in the model.
struct Filler {
    world: Rc<World>,
    generation: usize,
    fill: Option<Fill>,
}

impl Drop for Filler {
    fn drop(&mut self) {
        if let Some(fill) = self.fill.take() {
            if self.world.plant == Plant::EndingUnsaid {
                std::mem::forget(fill);
                return;
            }
            drop(fill);
            self.world.model.borrow_mut().fail(self.generation, "source");
        }
    }
}

/// Appends what upstream sends, and commits; or breaks off.
async fn pour(mut filler: Filler) {
    let world = Rc::clone(&filler.world);
    let id = filler.generation;
    let source = world.model.borrow().generations[id].source.clone();
    let leaves_at = world.one_in(10).then(|| world.below(source.len() + 1));
    let piece_max = [700, 5_000, 20_000, 100_000][world.below(4)];
    let mut rest = &source[..];
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(1 + world.below(piece_max)));
        rest = after;
        if leaves_at.is_some_and(|at| source.len() - rest.len() > at) {
            return;
        }
        let wanted = world.model.borrow_mut().append(id, piece.len() as u64);
        let Some(fill) = &mut filler.fill else { return };
        let work = Rc::new(if wanted == Append::Grows { Work::Grow } else { Work::Plain });
        let appended = world.doing(&work, fill.append(piece.to_vec())).await;
        match appended {
            Ok(_) => {
                let right = !matches!(wanted, Append::Fails(_));
                world.expect(right, || format!("generation {id} took what is {wanted:?}"));
                world.model.borrow_mut().appended(id, piece.len() as u64);
            }
            Err(why) => {
                let word = word(&why);
                let right = match wanted {
                    Append::Fails(wanted) => word == wanted,
                    _ => word == "storage",
                };
                world.expect(right, || format!("an append failed: {why}, not {wanted:?}"));
                if world.one_in(2) {
                    fill.fail(why);
                    filler.fill = None;
                    world.model.borrow_mut().fail(id, word);
                }
                return;
            }
        }
        for _ in 0..world.below(3) {
            world.pause().await;
        }
    }
    commit(filler).await;
}

async fn commit(mut filler: Filler) {
    let (world, id) = (Rc::clone(&filler.world), filler.generation);
    let wanted = world.model.borrow_mut().commit(id);
    let Some(fill) = filler.fill.take() else { return };
    let under_way = UnderWay(Some((Rc::clone(&world), id)));
    let committed = world.doing(&Rc::new(Work::Store(id)), fill.commit()).await;
    under_way.over();
    let mut model = world.model.borrow_mut();
    match (&committed, wanted) {
        (Err(why), Commit::Fails(word_wanted)) if word(why) == word_wanted => {
            model.fail(id, word_wanted);
        }
        (Ok(done), Commit::Passes | Commit::Stores) => {
            let len = model.generations[id].at;
            let kept_wrongly = done.kept && wanted == Commit::Passes;
            world.expect(done.len == len && !kept_wrongly, || format!("{done:?}, not {wanted:?}"));
            model.complete(id);
        }
        _ => world.fault(format!("the commit of {id} gave {committed:?}, not {wanted:?}")),
    }
}

/// What one reader has had.
struct Had {
    generation: usize,
    from: u64,
    at: u64,
    end: Option<u64>,
}

/// Reads some or all of an entry. True where it is to be looked up again.
async fn read(world: &World, mut reader: Reader, joined: Option<usize>) -> bool {
    let seen = match reader.head().await {
        Ok(seen) => seen,
        Err(no_head) => return headless(world, &no_head, joined),
    };
    let generation = generation_of(&seen.body);
    let right = joined.is_none_or(|joined| joined == generation);
    world.expect(right, || format!("joined {joined:?} and got {generation}"));
    check_seen(world, generation, &seen, joined.is_some());
    if world.one_in(12) {
        wait_for_the_end(world, &mut reader, generation).await;
    }
    let (from, end) = match world.below(5) {
        0 => (world.below(50_000) as u64, None),
        1 => {
            let from = world.below(30_000) as u64;
            (from, Some(from + world.below(30_000) as u64))
        }
        _ => (0, None),
    };
    reader.seek(from, end);
    let mut had = Had { generation, from, at: from, end };
    let max = [1_000, 7_000, HELD_BACK, 1 << 20][world.below(4)];
    let leaves = world.one_in(8);
    loop {
        match reader.next(max).await {
            Ok(Some(span)) => {
                world.expect(span.offset == had.at && span.len > 0 && span.len <= max, || {
                    format!("{span:?} where {} was next", had.at)
                });
                take(world, &seen.body, &mut had, span.len);
            }
            Ok(None) => return ended_well(world, &had),
            Err(why) => return ended_badly(world, &had, &seen.body, &why),
        }
        if leaves && world.one_in(4) {
            return false;
        }
        for _ in 0..world.below(3) {
            world.pause().await;
        }
    }
}

/// Compares what a reader sees with how far the generation is.
fn check_seen(world: &World, generation: usize, seen: &Seen, own_entry: bool) {
    let model = world.model.borrow();
    let Some(found) = model.generations.get(generation) else {
        return world.fault(format!("a head that nobody wrote: {:?}", seen.body.head));
    };
    // A hit sees the whole of what its own readers may be waiting for.
    let whole = Seen { body: Arc::clone(&seen.body), len: Some(found.at), written: found.at };
    let (len, written) = match own_entry && found.state != State::Complete {
        true => (found.announced, found.written),
        false => (whole.len, whole.written),
    };
    let right = (seen.len, seen.written) == (len, written);
    world.expect(right, || {
        let (has, of) = (seen.written, seen.len);
        format!("generation {generation} shows {has} of {of:?}, not {written} of {len:?}")
    });
}

/// Reads a span and compares it with what upstream sent.
fn take(world: &World, body: &Body, had: &mut Had, len: u64) {
    let model = world.model.borrow();
    let generation = &model.generations[had.generation];
    let end = had.at + len;
    let whole = generation.announced.unwrap_or(generation.at).max(end);
    if !generation.proven && end > whole.saturating_sub(HELD_BACK) {
        let id = had.generation;
        return world.fault(format!("the end of {id} was read before it was proven"));
    }
    let mut bytes = vec![0; len as usize];
    let read = body.file.read_exact_at(&mut bytes, had.at);
    let sent = generation.source.get(had.at as usize..end as usize);
    let right = read.is_ok() && sent.is_some_and(|sent| sent == bytes);
    world.expect(right, || format!("wrong bytes of {} at {}..{end}", had.generation, had.at));
    had.at = end;
}

fn ended_well(world: &World, had: &Had) -> bool {
    let model = world.model.borrow();
    let generation = &model.generations[had.generation];
    let stop = had.end.unwrap_or(u64::MAX);
    let whole = generation.at.min(stop).max(had.from);
    // Up to its own end a reader may come before the entry does.
    let right = had.at == whole && (generation.proven || had.at >= stop);
    world.expect(right, || {
        format!("{} ended well at {} of {whole}: {:?}", had.generation, had.at, generation.state)
    });
    false
}

fn ended_badly(world: &World, had: &Had, body: &Body, why: &Failure) -> bool {
    if world.plant == Plant::EndShownEarly {
        let mut early = Had { ..*had };
        let len = body.file.metadata().map_or(0, |file| file.len());
        take(world, body, &mut early, len.saturating_sub(had.at));
    }
    let state = world.model.borrow().generations[had.generation].state;
    let right = state == State::Failed(word(why));
    world.expect(right, || format!("{} failed with {why} but is {state:?}", had.generation));
    false
}

fn headless(world: &World, no_head: &NoHead, joined: Option<usize>) -> bool {
    let model = world.model.borrow();
    let state = joined.and_then(|id| model.generations.get(id)).map(|found| found.state);
    let said = match no_head {
        NoHead::Declined => State::Declined,
        NoHead::Abandoned => State::Abandoned,
        NoHead::Failed(why) => State::Failed(word(why)),
    };
    world.expect(state == Some(said), || format!("{joined:?} said {said:?} and is {state:?}"));
    said == State::Abandoned
}

async fn wait_for_the_end(world: &World, reader: &mut Reader, generation: usize) {
    let said = match reader.ended().await {
        Ok(()) => State::Complete,
        Err(why) => State::Failed(word(&why)),
    };
    let model = world.model.borrow();
    let found = &model.generations[generation];
    // What is stored is complete for a hit before its fill has said so.
    let right = found.state == said || said == State::Complete && found.proven;
    world.expect(right, || format!("{generation} ended as {said:?} and is {:?}", found.state));
}
