//! Clocks of a gateway that a test moves: a library preloaded into it (`shim/clock.c`) adds what this says. Adapters have an
//! environment of their own and keep the machine's time.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use crate::programs::shim;

/// Members of the shim's `struct control`, by their place.
const WALL: u64 = 0;
const RUNNING: u64 = 8;
const CONTROL_BYTES: u64 = 16;

#[derive(Debug)]
pub struct Clock {
    dir: TempDir,
    shim: PathBuf,
    wall_ns: i64,
    running_ns: i64,
}

impl Clock {
    /// `None` where there is no C compiler.
    pub fn new() -> Option<Self> {
        let shim = shim("clock")?;
        let dir = tempfile::Builder::new().prefix("gp-clock-").tempdir().expect("there is a place for files");
        let clock = Self { dir, shim, wall_ns: 0, running_ns: 0 };
        let control = File::create(clock.control()).expect("orders can be written");
        control.set_len(CONTROL_BYTES).expect("orders can be written");
        Some(clock)
    }

    /// What a program must have in its environment to go by these clocks.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        vec![("LD_PRELOAD", self.shim.clone().into()), ("GATEPOST_CLOCK", self.control().into())]
    }

    fn control(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    /// Somebody sets the wall clock to so many seconds from the true time.
    pub fn set_wall(&mut self, seconds: i64) {
        self.wall_ns = seconds * 1_000_000_000;
        self.write(WALL, self.wall_ns);
    }

    /// Time passes: on the wall, and on the clocks that only count.
    pub fn pass(&mut self, span: Duration) {
        let span = i64::try_from(span.as_nanos()).expect("less than centuries");
        self.wall_ns += span;
        self.running_ns += span;
        self.write(WALL, self.wall_ns);
        self.write(RUNNING, self.running_ns);
    }

    fn write(&self, at: u64, value: i64) {
        let control = File::options().write(true).open(self.control()).expect("orders can be written");
        control.write_all_at(&value.to_ne_bytes(), at).expect("orders can be written");
    }
}
