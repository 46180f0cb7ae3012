//! The machine under the simulated gateway: its clocks, and a disk of which a power cut leaves what is written.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use gatepost_core::principal::{Actor, ActorKind};
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::sync::Notify;

use crate::clock::{Clock, Simulated, Source};
use crate::data_dir::{DataDir, RESERVE_BYTES};
use crate::hints::Hints;
use crate::random::Random;
use crate::seal::Vault;
use crate::sqlite::Sqlite;
use crate::sqlite::{Opened, open_database};
use crate::writer::{Condition, Health, Piecemeal, Sizes, Writer};

pub(super) const DEDUP_WINDOW: Duration = Duration::from_secs(86_400);
pub(super) const PAYLOAD_RETENTION: Duration = Duration::from_secs(2 * 86_400);
pub(super) const ORIGIN: &str = "sim";
/// So few that keys are moved into their index all the time.
const KEYS_IN_MEMORY: usize = 3;
/// So small that there are pieces all the time, and a batch has some payloads in pieces and others not.
const SIZES: Sizes = Sizes { piece: 16, operation: 40, payload: 40, least: 10 };
/// 2026-01-01.
const STARTED_MICROS: i64 = 1_767_225_600_000_000;

pub(super) struct Machine {
    seed: u64,
    clocks: &'static Simulated,
    dir: TempDir,
    /// Which of its directories is the disk; a crash moves on to another.
    disk: u32,
    starts: u64,
    pub(super) vault: Vault,
}

thread_local! {
    /// One for each thread that simulates: the clock of a gateway is handed about as a plain value.
    static CLOCKS: &'static Simulated = Box::leak(Box::default());
}

impl Machine {
    pub(super) fn new(seed: u64) -> Self {
        let clocks = CLOCKS.with(|clocks| *clocks);
        clocks.wall.store(STARTED_MICROS, Ordering::Relaxed);
        clocks.boot.store(0, Ordering::Relaxed);
        let root = Some(Path::new("/dev/shm")).filter(|path| path.is_dir());
        let root = root.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let dir = tempfile::Builder::new().prefix("gatepost-sim-").tempdir_in(root).expect("a directory");
        let machine = Self { seed, clocks, dir, disk: 0, starts: 0, vault: Vault::new(&[7; 32]) };
        std::fs::create_dir(machine.disk()).expect("a disk");
        std::fs::write(machine.database(), template()).expect("a database");
        machine
    }

    fn disk(&self) -> PathBuf {
        self.dir.path().join(self.disk.to_string())
    }

    pub(super) fn database(&self) -> PathBuf {
        self.disk().join("gatepost.db")
    }

    /// A directory that no crash takes away.
    pub(super) fn beside(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn clock(&self) -> Source {
        Source::Simulated(self.clocks)
    }

    pub(super) fn pass(&self, span: Duration) {
        let micros = i64::try_from(span.as_micros()).expect("a short span");
        self.clocks.wall.fetch_add(micros, Ordering::Relaxed);
        self.clocks.boot.fetch_add(micros, Ordering::Relaxed);
    }

    pub(super) fn step_wall(&self, millis: i64) {
        self.clocks.wall.fetch_add(millis * 1000, Ordering::Relaxed);
    }

    /// Opens the disk's database as a start of the gateway does.
    pub(super) fn start(&mut self) -> Result<Writer<Sqlite>, String> {
        self.starts += 1;
        self.keep_reserve();
        let Opened { connection, clock, instance_epoch, memory } =
            open_database(&self.database(), &self.vault, self.clock(), KEYS_IN_MEMORY)
                .map_err(|error| error.to_string())?;
        // Durability is not the point here, and a file system in memory has none.
        let health = Arc::new(Health::default());
        health.set_audit_size(memory.leaf_count);
        Ok(Writer {
            database: Sqlite::new(connection, DataDir::new(&self.disk()), None),
            clock,
            instance_epoch,
            memory,
            vault: self.vault.clone(),
            random: Random::seeded(self.seed ^ self.starts.wrapping_mul(0x5bd1_e995_0000_0001)),
            gateway: Actor::new(ActorKind::Gateway, ORIGIN),
            hints: Arc::new(Hints::default()),
            health,
            leaves_added: Arc::new(Notify::new()),
            leaves_handed: Arc::default(),
            recent: Arc::default(),
            dedup_window: DEDUP_WINDOW,
            payload_retention: PAYLOAD_RETENTION,
            keys_in_memory: KEYS_IN_MEMORY,
            condition: Condition::Working,
            asked: Default::default(),
            under_way: None,
            piecemeal: Piecemeal::new(SIZES),
            decides_ahead: true,
            own_leases_ended: false,
        })
    }

    /// A reserve that takes no space, so that none is written when the disk is said to have space again.
    pub(super) fn keep_reserve(&self) {
        let reserve = std::fs::File::create(self.disk().join("reserve"));
        reserve.and_then(|file| file.set_len(RESERVE_BYTES)).expect("a reserve");
    }

    /// Ends the gateway where it stands. What is on the disk stays: the database, and its WAL as far as it was written.
    pub(super) fn cut(&mut self, writer: Box<Writer<Sqlite>>) {
        let from = self.disk();
        self.disk += 1;
        let to = self.disk();
        std::fs::create_dir(&to).expect("a disk");
        for name in ["gatepost.db", "gatepost.db-wal"] {
            if from.join(name).exists() {
                std::fs::copy(from.join(name), to.join(name)).expect("a copy");
            }
        }
        // Closing it now tidies up a disk that nobody reads any more.
        drop(writer);
        std::fs::remove_dir_all(from).expect("the old disk");
    }

    /// Looks at the disk while nobody has it open.
    pub(super) fn look(&self) -> Connection {
        crate::sqlite::connection::connect(&self.database()).expect("the database opens")
    }

    pub(super) fn now(&self, writer: &Writer<Sqlite>) -> i64 {
        let clock: &Clock = &writer.clock;
        clock.now().as_micros()
    }
}

/// A database with its tables and nothing in them.
fn template() -> &'static [u8] {
    static TEMPLATE: OnceLock<Vec<u8>> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("gatepost.db");
        let connection = crate::sqlite::connection::connect(&path).expect("a database");
        for (version, migration) in crate::sql::MIGRATIONS {
            connection.execute_batch(migration).expect("a migration");
            connection.pragma_update(None, "user_version", version).expect("its number");
        }
        connection.close().expect("a closed database");
        std::fs::read(path).expect("its bytes")
    })
}
