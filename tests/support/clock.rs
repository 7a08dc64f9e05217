//! A wall clock that a test moves while the program runs. Timers, which are about how long something
//! takes, stay with the machine's.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use super::proxy::Setup;

/// Days of 24 hours, in seconds.
pub const DAY: i64 = 24 * 3600;

/// The clock of one setup.
pub struct Clock {
    offset: File,
}

impl Clock {
    /// Has everything that `setup` starts from now on go by this clock.
    pub fn of(setup: Setup) -> (Setup, Clock) {
        let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/support/clock.c");
        let (library, file) = (setup.path("clock.so"), setup.path("clock"));
        let mut command = Command::new("cc");
        command.args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(source);
        let status = command.status().expect("cc");
        assert!(status.success(), "{command:?}");
        fs::write(&file, [0; 8]).expect("the clock's file");
        let offset = File::options().write(true).open(&file).expect("the clock's file");
        let text = |path: &PathBuf| path.to_str().expect("UTF-8").to_owned();
        let setup = setup.env("LD_PRELOAD", &text(&library)).env("TEST_CLOCK", &text(&file));
        (setup, Clock { offset })
    }

    /// Fails from now on when the first worker asks it how long something took.
    pub fn fail_first_worker(&self) {
        self.set(i64::MIN);
    }

    /// Sets it to so many seconds after the machine's.
    pub fn set(&self, seconds: i64) {
        self.offset.write_all_at(&seconds.to_ne_bytes(), 0).expect("the clock's file");
    }
}
