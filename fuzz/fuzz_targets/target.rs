#![no_main]
#![allow(dead_code)] // one target of those in the file

#[path = "../../tests/fuzz/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::target(data));
