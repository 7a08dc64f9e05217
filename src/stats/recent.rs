//! The last misses and the last errors, for people who look. Fed by what went upstream or failed:
//! no hit comes here.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Of each kind.
const KEPT_MAX: usize = 50;

/// Bytes of a text in them: a path may be as long as a head.
const TEXT_MAX: usize = 512;

/// One of them. Its texts may be a peer's.
#[derive(Clone, Debug)]
pub struct Event {
    /// When it came to its end.
    pub at: SystemTime,
    /// Whose request it was, if anybody's.
    pub client: Option<IpAddr>,
    /// Whom it was for.
    pub host: String,
    /// Its path as logs have it.
    pub path: String,
    /// Why, as logs name it.
    pub reason: &'static str,
    /// The answer's status.
    pub status: Option<u16>,
    /// What failed, in words.
    pub message: String,
    /// What logs call the request.
    pub request_id: String,
}

impl Event {
    /// One that is of no request.
    pub fn new(reason: &'static str, message: String) -> Event {
        Event {
            at: SystemTime::now(),
            client: None,
            host: String::new(),
            path: String::new(),
            reason,
            status: None,
            message,
            request_id: String::new(),
        }
    }
}

/// Some events, newest last.
#[derive(Default)]
pub struct Recent(Mutex<VecDeque<Event>>);

impl Recent {
    /// Takes in another, and forgets the oldest where there are too many.
    pub fn push(&self, mut event: Event) {
        for text in [&mut event.host, &mut event.path, &mut event.message] {
            shorten(text);
        }
        let mut events = self.events();
        let oldest = if events.len() == KEPT_MAX { events.pop_front() } else { None };
        events.push_back(event);
        drop(events);
        drop(oldest);
    }

    /// All there are, newest first.
    pub fn read(&self) -> Vec<Event> {
        self.events().iter().rev().cloned().collect()
    }

    fn events(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shorten(text: &mut String) {
    if text.len() > TEXT_MAX {
        let end = (0..=TEXT_MAX).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or_default());
        text.push('…');
        text.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(path: String) -> Event {
        Event { path, ..Event::new("first-time", String::new()) }
    }

    #[test]
    fn the_newest_are_kept_and_none_is_long() {
        let recent = Recent::default();
        (0..=KEPT_MAX).for_each(|n| recent.push(event(format!("/{n}"))));
        let read = recent.read();
        assert_eq!(read.len(), KEPT_MAX);
        assert_eq!((&*read[0].path, &*read[KEPT_MAX - 1].path), ("/50", "/1"));
        recent.push(event(format!("/{}", "ä".repeat(TEXT_MAX))));
        let long = &recent.read()[0].path;
        assert!(long.len() < TEXT_MAX + 4 && long.ends_with("ä…"), "{long}");
    }
}
