//! A disk that forgets what was not synced, fills up, and fails, for a program that keeps everything below one directory.
//!
//! A library preloaded into the program (`shim/disk.c`) writes down what it changes and syncs. When the program is dead, a
//! [`Model`] replays that and says what a crash of the machine may have left: contents count from their file's sync, names
//! from their directory's. The directory is then made to look so, and the program started over it.

pub mod failing;
mod journal;
pub mod lost;
mod model;
pub mod traffic;

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::dice::Dice;
use crate::programs::shim;
use journal::Journal;
pub use journal::Record;
use model::Model;
pub use model::{Forgotten, Loss};

/// Members of the shim's `struct control`, by their place.
const FREE_BYTES: u64 = 0;
const KILL_AT: u64 = 8;
const WRITE_ERRORS: u64 = 16;
const SYNC_ERRORS: u64 = 24;
const WRITE_GLOB: u64 = 32;
const SYNC_GLOB: u64 = 288;
const CONTROL_BYTES: u64 = 544;
const GLOB_BYTES_MAX: usize = 255;

/// The disk below one directory. It must be asked for [`Disk::crash`] or [`Disk::differences`] only while no program works
/// on it.
#[derive(Debug)]
pub struct Disk {
    root: PathBuf,
    /// Record and orders, outside of what is recorded.
    aside: TempDir,
    shim: PathBuf,
    before: Model,
}

impl Disk {
    /// `None` where there is no C compiler. Whatever is below `root` now counts as synced.
    pub fn new(root: &Path) -> Option<Self> {
        let shim = shim("disk")?;
        let aside =
            tempfile::Builder::new().prefix("gp-disk-").tempdir().expect("there is a place for files");
        let parent = root.parent().expect("a directory below another");
        let parent = fs::canonicalize(parent).expect("the directory above is there");
        let root = parent.join(root.file_name().expect("a directory has a name"));
        let before = Model::of(&root);
        let disk = Self { root, aside, shim, before };
        File::create(disk.journal()).expect("a record can be kept");
        let control = File::create(disk.control()).expect("orders can be written");
        control.set_len(CONTROL_BYTES).expect("orders can be written");
        disk.unlimited();
        Some(disk)
    }

    /// What a program must have in its environment to use this disk.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        vec![
            ("LD_PRELOAD", self.shim.clone().into()),
            ("GATEPOST_DISK_ROOT", self.root.clone().into()),
            ("GATEPOST_DISK_JOURNAL", self.journal().into()),
            ("GATEPOST_DISK_CONTROL", self.control().into()),
        ]
    }

    fn journal(&self) -> PathBuf {
        self.aside.path().join("journal")
    }

    fn control(&self) -> PathBuf {
        self.aside.path().join("control")
    }

    /// From now on files may grow by so many bytes in all.
    pub fn free_bytes(&self, bytes: u64) {
        self.order(FREE_BYTES, bytes);
    }

    pub fn unlimited(&self) {
        self.order(FREE_BYTES, u64::MAX);
    }

    /// The next `count` writes to files that the pattern matches fail with EIO.
    pub fn fail_writes(&self, pattern: &str, count: u64) {
        self.order_pattern(WRITE_GLOB, pattern);
        self.order(WRITE_ERRORS, count);
    }

    /// The next `count` syncs of files or directories that the pattern matches fail with EIO, and what they should have
    /// made durable never becomes so, as on a real disk.
    pub fn fail_syncs(&self, pattern: &str, count: u64) {
        self.order_pattern(SYNC_GLOB, pattern);
        self.order(SYNC_ERRORS, count);
    }

    /// Failures ordered and not yet met.
    pub fn failures_left(&self) -> u64 {
        self.read_order(WRITE_ERRORS) + self.read_order(SYNC_ERRORS)
    }

    /// Kills the program when it has changed or synced something so many more times; 0 lets it live.
    pub fn kill_at(&self, changes: u64) {
        self.order(KILL_AT, changes);
    }

    fn order(&self, at: u64, value: u64) {
        self.open_control().write_all_at(&value.to_ne_bytes(), at).expect("orders can be written");
    }

    fn order_pattern(&self, at: u64, pattern: &str) {
        assert!(pattern.len() <= GLOB_BYTES_MAX, "a short pattern");
        let mut bytes = pattern.as_bytes().to_vec();
        bytes.resize(GLOB_BYTES_MAX + 1, 0);
        self.open_control().write_all_at(&bytes, at).expect("orders can be written");
    }

    fn read_order(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.open_control().read_exact_at(&mut bytes, at).expect("orders can be read");
        u64::from_ne_bytes(bytes)
    }

    fn open_control(&self) -> File {
        File::options().read(true).write(true).open(self.control()).expect("orders can be written")
    }

    /// What has been changed and synced since the last crash.
    pub fn records(&self) -> Vec<Record> {
        Journal::read(&self.journal()).into_records()
    }

    fn replayed(&self) -> Model {
        let mut model = self.before.clone();
        for (at, record) in Journal::read(&self.journal()).into_placed() {
            model.apply(at, record);
        }
        model
    }

    /// The machine crashes: what was not synced is lost as `loss` says, and the directory looks as it would after that.
    pub fn crash(&mut self, loss: Loss, dice: &mut Dice) -> Forgotten {
        let model = self.replayed();
        let forgotten = model.crash(loss, dice, &self.root);
        self.restart_record();
        forgotten
    }

    /// What is there now counts as synced, and the record begins anew.
    fn restart_record(&mut self) {
        self.before = Model::of(&self.root);
        File::create(self.journal()).expect("a record can be kept");
        self.kill_at(0);
    }

    /// How the files differ from what the record says of them: something has gone past the shim. Only where no failed sync
    /// has been recorded, since what it took with it is unknown.
    pub fn differences(&self) -> Vec<String> {
        self.replayed().differences(&Model::of(&self.root))
    }
}
