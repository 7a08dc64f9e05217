//! Registries that send clients elsewhere for a manifest (registry.k8s.io to a mirror near them).
//! A client that follows asks another host, by another name; what it wants is what it asked for
//! first, and under that it is listed. Pure: the time is an argument.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::key::Image;

/// Redirects remembered at most, some hundred bytes each; the oldest are forgotten first.
const REDIRECTS_MAX: usize = 1024;

/// Clients follow at once; whoever asks later asks of itself.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(30);

/// Redirects that clients were told of and have not followed yet.
#[derive(Default)]
pub(super) struct Redirects(VecDeque<Redirect>);

struct Redirect {
    /// Who was told, and so may follow: what one registry says changes nobody else's names.
    client: IpAddr,
    asked: Image,
    told: Image,
    at: Instant,
}

impl Redirects {
    /// A client that asked for one image was sent to another.
    pub(super) fn note(&mut self, client: IpAddr, asked: Image, told: Image, now: Instant) {
        if asked == told {
            return;
        }
        // There may be several on the way.
        let asked = self.follow(client, asked, now);
        if self.0.len() >= REDIRECTS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Redirect { client, asked, told, at: now });
    }

    /// What a client that asks for `image` asked for first. A redirect is followed once.
    pub(super) fn follow(&mut self, client: IpAddr, image: Image, now: Instant) -> Image {
        let is_over = |redirect: &Redirect| now.duration_since(redirect.at) > FOLLOWED_WITHIN;
        while self.0.front().is_some_and(is_over) {
            self.0.pop_front();
        }
        let is_it = |redirect: &Redirect| redirect.client == client && redirect.told == image;
        let found = self.0.iter().position(is_it).and_then(|at| self.0.remove(at));
        found.map_or(image, |redirect| redirect.asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn image(text: &str) -> Image {
        Image::parse(text).unwrap()
    }

    #[test]
    fn whoever_follows_a_redirect_asks_for_what_it_asked_first() {
        let (front, back) = (image("front.test/pause:1"), image("back.test/k8s/pause:1"));
        let (mut redirects, now) = (Redirects::default(), Instant::now());
        redirects.note(CLIENT, front.clone(), back.clone(), now);
        assert_eq!(redirects.follow(OTHER, back.clone(), now), back);
        assert_eq!(
            redirects.follow(CLIENT, image("back.test/k8s/pause:2"), now).to_string(),
            "back.test/k8s/pause:2"
        );
        assert_eq!(redirects.follow(CLIENT, back.clone(), now), front);
        assert_eq!(redirects.follow(CLIENT, back.clone(), now), back, "once");
        redirects.note(CLIENT, front.clone(), back.clone(), now);
        let late = now + FOLLOWED_WITHIN + Duration::from_secs(1);
        assert_eq!(redirects.follow(CLIENT, back.clone(), late), back, "too late");
        assert!(redirects.0.is_empty());
    }

    #[test]
    fn several_redirects_lead_to_the_first_name() {
        let names = ["a.test/x:1", "b.test/x:1", "c.test/x:1"].map(image);
        let (mut redirects, now) = (Redirects::default(), Instant::now());
        redirects.note(CLIENT, names[0].clone(), names[1].clone(), now);
        redirects.note(CLIENT, names[1].clone(), names[2].clone(), now);
        assert_eq!(redirects.follow(CLIENT, names[2].clone(), now), names[0]);
        redirects.note(CLIENT, names[0].clone(), names[0].clone(), now);
        assert!(redirects.0.is_empty(), "to itself");
    }

    #[test]
    fn there_is_an_end_to_what_is_remembered() {
        let (mut redirects, now) = (Redirects::default(), Instant::now());
        for n in 0..2 * REDIRECTS_MAX {
            let told = image(&format!("back.test/x:{n}"));
            redirects.note(CLIENT, image("front.test/x:1"), told, now);
        }
        assert_eq!(redirects.0.len(), REDIRECTS_MAX);
    }
}
