//! Everything that a stranger may hand over, mutated from a seed: heads, chunked bodies, ranges,
//! targets and hosts, the configuration, stored `.meta` files.
//!
//! Shown of each: no input panics or hangs; cut anywhere it is read as the whole is; what is
//! accepted and written again reads as the same thing; a slow second reading of the same grammar
//! agrees; stored files that do not agree are no hit and are gone afterwards. `targets.rs` has the
//! particulars, and `fuzz/` lets libFuzzer loose on them.
//!
//! `DISCOBOT_SEED=N cargo test --test fuzz` begins with that seed; `DISCOBOT_LONG=1` goes on for
//! minutes. `DISCOBOT_CORPUS=DIR` writes the seeds as files for libFuzzer and does nothing else.

mod support;

#[path = "fuzz/seeds.rs"]
mod seeds;
#[path = "fuzz/targets.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use discobot_proxy::config::Config;
use discobot_proxy::http::range::{ByteRange, parse_range};
use discobot_proxy::http::{Host, Malformed, Parsed, parse_request, parse_response};
use seeds::Seeds;
use support::seed::{Rng, seeds};
use targets::stored::{self, Found};
use targets::{Decoded, INPUT_MAX, Verdict};

/// For each target: seven of them share two cores.
const TIME: Duration = Duration::from_millis(2500);

/// Inputs per seed.
const ROUND: usize = 50;

/// What no input may take, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Inputs until a planted fault must have shown.
const PLANT_TRIES: u64 = 20_000;

macro_rules! targets {
    ($($name:ident: $target:ident;)*) => {
        $(#[test]
        fn $name() {
            run(stringify!($target), &seeds::$target(), targets::$target);
        })*
    };
}

targets! {
    a_request_head_is_read_in_one_way_or_refused: head;
    a_response_head_is_read_in_one_way_or_refused: response_head;
    a_chunked_body_is_read_as_the_slow_decoder_reads_it: chunks;
    a_range_means_what_the_slow_reading_says: range;
    a_target_has_one_spelling_and_hides_no_address: target;
    a_configuration_is_refused_in_a_line_or_reads_back: config;
    stored_files_that_do_not_agree_are_no_hit: meta;
}

fn run(name: &'static str, from: &Seeds, target: fn(&[u8])) {
    if let Some(dir) = std::env::var_os("DISCOBOT_CORPUS") {
        return write_corpus(&Path::new(&dir).join(name), from);
    }
    for input in &from.inputs {
        try_one(input, target, "an unchanged input");
    }
    for seed in seeds(name, TIME) {
        let mut rng = Rng::new(seed);
        for _ in 0..ROUND {
            let input = mutated(&mut rng, from);
            try_one(&input, target, &format!("DISCOBOT_SEED={seed}"));
        }
    }
}

fn try_one(input: &[u8], target: fn(&[u8]), again: &str) {
    let begun = Instant::now();
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
        println!("to see it again: {again}; the input: \"{}\"", input.escape_ascii());
        resume_unwind(panic);
    }
    let took = begun.elapsed();
    assert!(took < PATIENCE, "{took:?} for \"{}\" ({again})", input.escape_ascii());
}

/// One of the inputs with one to eight changes.
fn mutated(rng: &mut Rng, from: &Seeds) -> Vec<u8> {
    let mut input = from.inputs[rng.below(from.inputs.len())].clone();
    for _ in 0..1 + rng.below(8) {
        let at = rng.below(input.len() + 1);
        let end = (at + 1 + rng.below(12)).min(input.len());
        match rng.below(9) {
            0 => input.truncate(at),
            1 => drop(input.drain(at..end)),
            2 => input.insert(at, rng.next() as u8),
            3 if at < input.len() => input[at] ^= 1 << rng.below(8),
            4 if at < input.len() => input[at] = rng.next() as u8,
            5 => {
                let copy = input[at..end].repeat(1 + rng.below(3));
                insert(&mut input, rng, &copy);
            }
            6 => {
                let other = &from.inputs[rng.below(from.inputs.len())];
                let cut = rng.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[cut..]);
            }
            7 if rng.one_in(20) => {
                let word = rng.pick(from.words).repeat(1 + rng.below(300));
                insert(&mut input, rng, word.as_bytes());
            }
            _ => {
                let word = rng.pick(from.words);
                insert(&mut input, rng, word.as_bytes());
            }
        }
        input.truncate(INPUT_MAX);
    }
    input
}

fn insert(input: &mut Vec<u8>, rng: &mut Rng, what: &[u8]) {
    let at = rng.below(input.len() + 1);
    input.splice(at..at, what.iter().copied());
}

fn write_corpus(dir: &Path, from: &Seeds) {
    std::fs::create_dir_all(dir).expect("a directory");
    for (number, input) in from.inputs.iter().enumerate() {
        std::fs::write(dir.join(format!("seed-{number}")), input).expect("a file");
    }
}

/// The judge must notice that what it judges is broken, and for the reason given.
fn must_notice(from: &Seeds, signs: &[&str], judge: impl Fn(&[u8]) -> Verdict) {
    let said = (0..PLANT_TRIES).find_map(|seed| judge(&mutated(&mut Rng::new(seed), from)).err());
    let said = said.unwrap_or_else(|| panic!("not noticed: {signs:?}"));
    let right = signs.iter().any(|sign| said.contains(sign));
    assert!(right, "{signs:?} was planted, and this noticed: {said}");
}

#[test]
fn a_parser_that_takes_a_bare_line_feed_is_caught() {
    let lenient = |data: &[u8], limits: &_| match parse_request(data, limits) {
        Err(Malformed::LineEnd) => parse_request(&mended(data), limits),
        result => result,
    };
    must_notice(&seeds::head(), &["a head that is none", "give a head", "bytes, not"], |data| {
        targets::judge_request(data, &lenient)
    });
}

/// Every bare LF made CR LF.
fn mended(data: &[u8]) -> Vec<u8> {
    let lines =
        data.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    lines.collect::<Vec<_>>().join(&b"\r\n"[..])
}

#[test]
fn a_parser_that_depends_on_how_bytes_are_cut_is_caught() {
    // A head whose last byte has not come yet is taken for whole.
    let hasty = |data: &[u8], limits: &_| match parse_request(data, limits) {
        Ok(Parsed::Incomplete) => {
            parse_request(&[data, b"\n"].concat(), limits).or(Ok(Parsed::Incomplete))
        }
        result => result,
    };
    must_notice(&seeds::head(), &["give a head"], |data| targets::judge_request(data, &hasty));
}

#[test]
fn a_parser_that_loses_a_field_is_caught() {
    let forgetful = |data: &[u8], limits: &_| match parse_response(data, limits) {
        Ok(Parsed::Complete { mut head, len }) => {
            head.fields.remove("vary");
            Ok(Parsed::Complete { head, len })
        }
        result => result,
    };
    must_notice(&seeds::response_head(), &["other fields"], |data| {
        targets::judge_response(data, &forgetful)
    });
}

#[test]
fn a_decoder_that_forgets_where_it_was_is_caught() {
    // A size that is cut in two is read as two sizes.
    let forgetful = |pieces: &[&[u8]]| match pieces {
        [_] => targets::decode(pieces),
        pieces => {
            let whole = pieces.iter().filter(|piece| **piece != b"1").copied().collect::<Vec<_>>();
            targets::decode(&whole)
        }
    };
    must_notice(&seeds::chunks(), &["in pieces"], |data| targets::judge_chunks(data, &forgetful));
}

#[test]
fn a_decoder_that_takes_a_bare_line_feed_is_caught() {
    let lenient = |pieces: &[&[u8]]| match targets::decode(pieces) {
        Decoded { ends: Err(_), .. } => targets::decode(&[&mended(&pieces.concat())]),
        decoded => decoded,
    };
    must_notice(&seeds::chunks(), &["ends as", "another body"], |data| {
        targets::judge_chunks(data, &lenient)
    });
}

#[test]
fn a_range_that_ends_one_byte_early_is_caught() {
    let early = |value: &[u8]| match parse_range(value) {
        Some(ByteRange::FromTo(first, last)) if first < last => {
            Some(ByteRange::FromTo(first, last - 1))
        }
        range => range,
    };
    must_notice(&seeds::range(), &["of"], |data| targets::judge_range(data, &early));
}

#[test]
fn a_host_that_is_an_address_in_disguise_is_caught() {
    let trusting = |text: &str| {
        Host::parse(text).or_else(|why| {
            match text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'.' || b == b'x') {
                true if !text.is_empty() => Ok(Host::Name(text.to_ascii_lowercase().into())),
                _ => Err(why),
            }
        })
    };
    must_notice(&seeds::target(), &["is an address"], |data| {
        targets::judge_target(data, &trusting)
    });
}

#[test]
fn a_configuration_that_is_printed_without_a_key_is_caught() {
    let print = |config: &Config| {
        let text = config.to_yaml();
        text.lines().filter(|line| !line.contains("retries")).collect::<Vec<_>>().join("\n")
    };
    must_notice(&seeds::config(), &["read again it is"], |data| {
        targets::judge_config(data, &print)
    });
}

#[test]
fn a_look_up_that_believes_every_meta_file_is_caught() {
    let trusting = |shelf: &stored::Shelf, key: &_| {
        stored::look(shelf, key).or_else(|| Some(Found { head: Vec::new(), len: 0 }))
    };
    must_notice(&seeds::meta(), &["a hit though the files do not agree"], |data| {
        stored::judge(data, &trusting)
    });
}
