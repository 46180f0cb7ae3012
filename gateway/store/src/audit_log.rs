//! The audit log's outside: leaves that the writer has committed become tiles, entry bundles and signed checkpoints.
//!
//! The writer only numbers and stores leaves, and hands them on once they are durable: so a checkpoint never covers one that
//! is not. What was not handed on is read from the database, which shows a commit to readers after its sync.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gatepost_audit::{
    Checkpoint, DirTiles, FullTile, Hash, SignerKey, TILE_WIDTH, TileEdge, entries_path, leaf_hash,
    tile_path, write_checkpoint,
};
use tokio::sync::{Notify, mpsc, watch};

use crate::leaves::Handed;
use crate::ops::StoreError;
use crate::published::{Published, Signed};
use crate::reader::{Check, Source};
use crate::writer::{Chore, Health};

/// A checkpoint at most this long after the tree has grown.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// Leaves read at a time.
const PAGE_LEAVES: u64 = 4096;
/// Full tiles written to files, and synced, in one go: so many that syncs are rare, so few that they are not remembered long.
const TILES_PER_SYNC: usize = 128;
/// Bundles whose leaf rows the writer drops in one go; it serves others in between.
const BUNDLES_PER_DROP: usize = 8;

/// Levels of full tiles that a tree of 2^63 entries can have.
const TILE_LEVELS: u8 = 7;

/// Why the audit log no longer waits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Paused {
    /// The time is over.
    Out,
    Stopped,
}

/// Why the log that was found is not the one that the last checkpoint signs.
#[derive(Debug, thiserror::Error)]
pub enum LogFault {
    #[error("the checkpoint {0} is missing; the log may have been replaced")]
    CheckpointMissing(PathBuf),
    #[error("the checkpoint {path} is not a checkpoint of this gateway")]
    CheckpointUnreadable { path: PathBuf, source: gatepost_audit::CheckpointError },
    #[error(
        "the database has {found} audit entries, the last checkpoint signs {signed}: it was truncated or rolled back"
    )]
    RolledBack { found: u64, signed: u64 },
    #[error("audit entry {0} is missing from the database")]
    EntryMissing(u64),
    #[error("audit entry {0} is damaged: what the database has of it is not what was written")]
    EntryDamaged(String),
    #[error("the first {0} audit entries are not those that the last checkpoint signs: the log was edited")]
    Edited(u64),
    #[error("the tiles of the audit log cannot be read: {0}")]
    Tiles(String),
    #[error("the checkpoint cannot be written: {0}")]
    Write(String),
}

pub(crate) struct AuditLog {
    dir: PathBuf,
    source: Source,
    signer: SignerKey,
    edge: TileEdge,
    /// Entries that stood in files only when the log was opened.
    filed: u64,
    /// Entries of the tile of level 0 that is being filled.
    bundle: Vec<u8>,
    /// Full tiles in the order of their filling, each of level 0 with its bundle.
    waiting: Vec<(FullTile, Option<Vec<u8>>)>,
    pub(crate) published: Arc<Published>,
    health: Arc<Health>,
    chores: mpsc::Sender<Chore>,
    pub(crate) handed: Arc<Handed>,
}

impl AuditLog {
    /// Takes up the tree from the files and the database. Entries below `filed` stand in files only.
    pub(crate) async fn open(
        dir: PathBuf,
        source: Source,
        signer: SignerKey,
        health: Arc<Health>,
        chores: mpsc::Sender<Chore>,
    ) -> Result<Self, LogFault> {
        let size = source.tree_size().await.map_err(tiles_error)?.unwrap_or(0);
        let filed = source.filed(&dir, size).await.map_err(tiles_error)?;
        if !filed.is_multiple_of(u64::from(TILE_WIDTH)) {
            return Err(LogFault::EntryMissing(filed.saturating_sub(1)));
        }
        let edge = TileEdge::rebuild(&DirTiles::new(&dir), filed).map_err(tiles_error)?;
        let published = Arc::new(Published::default());
        Ok(Self {
            dir,
            source,
            signer,
            edge,
            filed,
            bundle: Vec::new(),
            waiting: Vec::new(),
            published,
            health,
            chores,
            handed: Arc::default(),
        })
    }

    /// Reads the tree up to `size` and compares it with the checkpoint; the rest of the tree follows.
    pub(crate) async fn verify(&mut self, size: u64) -> Result<(), LogFault> {
        let path = self.dir.join("checkpoint");
        let signed = match std::fs::read(&path) {
            Ok(signed) => signed,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(LogFault::CheckpointMissing(path));
            }
            Err(error) => return Err(LogFault::Tiles(error.to_string())),
        };
        let checkpoint = Checkpoint::open(&signed, &[self.signer.verifier()])
            .map_err(|source| LogFault::CheckpointUnreadable { path, source })?;
        if checkpoint.size > size {
            return Err(LogFault::RolledBack { found: size, signed: checkpoint.size });
        }
        let root = if checkpoint.size < self.edge.size() {
            // From full tiles alone: there are files of no other since it was signed.
            TileEdge::rebuild(&DirTiles::new(&self.dir), checkpoint.size).map_err(tiles_error)?.root()
        } else {
            self.read_to(checkpoint.size).await?;
            self.edge.root()
        };
        if root != checkpoint.root {
            return Err(LogFault::Edited(checkpoint.size));
        }
        self.read_to(size).await
    }

    /// Takes up the tree as it is, whatever the checkpoint says. Files of the tree that the checkpoint signs and this one has
    /// not filed are kept aside: whoever verifies the directory must not take them for this log's.
    pub(crate) async fn adopt(&mut self, size: u64) -> Result<(), LogFault> {
        self.set_aside(size).map_err(write_error)?;
        self.read_to(size).await
    }

    fn set_aside(&self, size: u64) -> std::io::Result<()> {
        let aside = self.dir.join(format!("refused-{size}"));
        let moved = |path: &str| -> std::io::Result<bool> {
            let (from, to) = (self.dir.join(path), aside.join(path));
            if !from.exists() {
                return Ok(false);
            }
            if let Some(parent) = to.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::rename(from, to).map(|()| true)
        };
        for level in 0..TILE_LEVELS {
            let first = self.filed.checked_shr(8 * (u32::from(level) + 1)).unwrap_or(0);
            for index in first.. {
                let bundle = level == 0 && moved(&entries_path(index, None))?;
                if !moved(&tile_path(level, index, None))? && !bundle {
                    break;
                }
            }
        }
        sync_all(&self.dir)
    }

    /// Extends the tree by committed leaves until it has `size` of them.
    async fn read_to(&mut self, size: u64) -> Result<(), LogFault> {
        if self.source.places_later() {
            return self.read_placed(size).await;
        }
        for run in self.handed.take() {
            self.read_rows(run.first.min(size)).await?;
            for (index, leaf) in run.leaves().map_err(tiles_error)? {
                // What was read already may come again.
                if index == self.edge.size() {
                    self.push(leaf)?;
                }
            }
        }
        self.read_rows(size).await
    }

    /// As [`AuditLog::read_to`], where leaves get their places after their commit. Those of this node's own commits are at hand.
    async fn read_placed(&mut self, size: u64) -> Result<(), LogFault> {
        while self.edge.size() < size {
            let from = self.edge.size();
            let placed = self.source.placed(from, size.min(from + PAGE_LEAVES)).await.map_err(tiles_error)?;
            let mut others = None;
            for (placed, run) in placed.iter().zip(self.handed.take_placed(&placed)) {
                let Some(run) = run else {
                    others = Some(placed.first + placed.count);
                    continue;
                };
                if let Some(to) = others.take() {
                    self.read_rows(size.min(to)).await?;
                }
                let mut count = 0;
                for (index, leaf) in run.leaves().map_err(tiles_error)? {
                    if index == self.edge.size() {
                        self.push(leaf)?;
                    }
                    count += 1;
                }
                if count != placed.count {
                    return Err(LogFault::EntryDamaged(placed.first.to_string()));
                }
            }
            if let Some(to) = others {
                self.read_rows(size.min(to)).await?;
            }
            if self.edge.size() == from {
                return Err(LogFault::EntryMissing(from));
            }
        }
        Ok(())
    }

    async fn read_rows(&mut self, size: u64) -> Result<(), LogFault> {
        while self.edge.size() < size {
            let from = self.edge.size();
            let to = size.min(from + PAGE_LEAVES);
            let leaves = self.source.leaves(from, to, Check::Sums).await;
            let leaves = leaves.map_err(|error| match error {
                StoreError::Corrupt { row, .. } => LogFault::EntryDamaged(row),
                other => tiles_error(other),
            })?;
            for leaf in leaves {
                let index = self.edge.size();
                if leaf.0 != index {
                    return Err(LogFault::EntryMissing(index));
                }
                self.push(&leaf.1)?;
            }
            if self.edge.size() < to {
                return Err(LogFault::EntryMissing(self.edge.size()));
            }
        }
        Ok(())
    }

    fn push(&mut self, leaf: &[u8]) -> Result<(), LogFault> {
        let index = self.edge.size();
        let within = usize::try_from(index % u64::from(TILE_WIDTH)).unwrap_or(0);
        gatepost_audit::tiles::append_entry(&mut self.bundle, within, leaf).map_err(tiles_error)?;
        let mut full = Vec::new();
        self.edge.push(leaf_hash(leaf), &mut full);
        for tile in full {
            let bundle = (tile.level == 0).then(|| std::mem::take(&mut self.bundle));
            let hashes = Arc::new(tile.hashes.clone());
            self.published.add_unfiled((tile.level, tile.index), hashes);
            self.waiting.push((tile, bundle));
        }
        Ok(())
    }

    pub(crate) fn root(&self) -> Hash {
        self.edge.root()
    }

    /// Signs the tree as it stands, durably, and shows it.
    pub(crate) async fn sign(&mut self) -> Result<(), LogFault> {
        let size = self.edge.size();
        let checkpoint = Checkpoint { origin: self.signer.name().to_owned(), size, root: self.edge.root() };
        let text = checkpoint.sign(&self.signer).map_err(|error| LogFault::Write(error.to_string()))?;
        let (dir, signed) = (self.dir.clone(), text.clone());
        let written = tokio::task::spawn_blocking(move || write_checkpoint(&dir, &signed)).await;
        written.map_err(write_error)?.map_err(write_error)?;
        self.published.publish(Signed { size, text: text.into(), edge: Arc::new(self.edge.clone()) });
        self.health.set_checkpoint_size(size);
        Ok(())
    }

    /// Follows the writer until it stops, with a checkpoint at most each second.
    pub(crate) async fn run(mut self, grown: Arc<Notify>, mut stop: watch::Receiver<bool>) {
        loop {
            // A store that is dropped without being stopped is stopped too.
            let stopping = *stop.borrow() || stop.has_changed().is_err();
            let result = self.step().await;
            if let Err(error) = &result {
                tracing::error!(%error, "the audit log could not be written; trying again");
            }
            // What has failed is tried again after the same second, whether or not the log grows meanwhile.
            let idle = result.is_ok() && self.waiting.is_empty();
            self.health.set_audit_obstacle(result.err().map(|error| error.to_string()));
            if stopping {
                return;
            }
            // Whether or not there is more to file, a second passes before the next checkpoint.
            if self.pause(&mut stop).await == Paused::Stopped {
                continue;
            }
            if idle && self.health.audit_size() <= self.edge.size() {
                tokio::select! {
                    () = grown.notified() => {}
                    _ = stop.changed() => {}
                }
            }
        }
    }

    /// Waits until the next checkpoint may be due. Where much is committed meanwhile, it is taken up and filed, lest it be
    /// remembered.
    async fn pause(&mut self, stop: &mut watch::Receiver<bool>) -> Paused {
        let handed = Arc::clone(&self.handed);
        let until = tokio::time::Instant::now() + CHECKPOINT_INTERVAL;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return Paused::Out,
                _ = stop.changed() => return Paused::Stopped,
                () = handed.due() => {}
            }
            if let Err(error) = self.take_up().await {
                tracing::error!(%error, "the audit log cannot take up what was committed; trying again");
                return Paused::Out;
            }
        }
    }

    async fn step(&mut self) -> Result<(), LogFault> {
        let size = self.health.audit_size();
        if size > self.edge.size() {
            self.read_to(size).await?;
        }
        if self.edge.size() > self.published.signed().size || self.published.signed().text.is_empty() {
            self.sign().await?;
        }
        self.file().await
    }

    async fn take_up(&mut self) -> Result<(), LogFault> {
        self.read_to(self.health.audit_size()).await?;
        while self.waiting.len() >= TILES_PER_SYNC {
            self.file_some().await?;
        }
        Ok(())
    }

    /// Writes full tiles and bundles to files; their leaf rows go afterwards. All that wait: they stand in memory until then, and
    /// a gateway that is busy for long would have more and more of them.
    async fn file(&mut self) -> Result<(), LogFault> {
        while !self.waiting.is_empty() {
            self.file_some().await?;
        }
        Ok(())
    }

    async fn file_some(&mut self) -> Result<(), LogFault> {
        let count = TILES_PER_SYNC.min(self.waiting.len());
        let batch: Vec<(FullTile, Option<Vec<u8>>)> = self.waiting.drain(..count).collect();
        let dir = self.dir.clone();
        let written = tokio::task::spawn_blocking(move || {
            let result = write_files(&dir, &batch);
            (batch, result)
        });
        let (batch, result) = written.await.map_err(write_error)?;
        if let Err(error) = result {
            self.waiting.splice(0..0, batch);
            return Err(write_error(error));
        }
        self.published.are_filed(batch.iter().map(|(tile, _)| (tile.level, tile.index)));
        let bundles: Vec<u64> =
            batch.iter().filter(|(tile, _)| tile.level == 0).map(|(tile, _)| tile.index).collect();
        for part in bundles.chunks(BUNDLES_PER_DROP) {
            if let Some(last) = part.last() {
                let below = (last + 1) * u64::from(TILE_WIDTH);
                // When the writer has stopped, the rows stay, and are filed again at the next start.
                drop(self.chores.send(Chore::LeavesFiled { below }).await);
            }
        }
        Ok(())
    }
}

/// Writes every file under a temporary name and syncs the file system once, which costs about as much as syncing a single
/// file. Only then do the files get their names, so that no crash can leave half of one under it.
fn write_files(dir: &Path, batch: &[(FullTile, Option<Vec<u8>>)]) -> std::io::Result<()> {
    let mut files = Vec::with_capacity(batch.len() * 2);
    for (tile, bundle) in batch {
        files.push(put(dir, &tile.path(), &tile.bytes())?);
        if let Some(bundle) = bundle {
            files.push(put(dir, &entries_path(tile.index, None), bundle)?);
        }
    }
    gatepost_faults::point("audit.files_written");
    sync_all(dir)?;
    for (temporary, path) in files {
        std::fs::rename(temporary, path)?;
    }
    sync_all(dir)?;
    gatepost_faults::point("audit.files_synced");
    Ok(())
}

fn sync_all(dir: &Path) -> std::io::Result<()> {
    let dir = std::fs::File::open(dir)?;
    nix::unistd::syncfs(&dir).map_err(std::io::Error::from)
}

/// Writes a file under a temporary name; both names.
fn put(dir: &Path, path: &str, bytes: &[u8]) -> std::io::Result<(PathBuf, PathBuf)> {
    let path = dir.join(path);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, bytes)?;
    Ok((temporary, path))
}

fn tiles_error(error: impl std::fmt::Display) -> LogFault {
    LogFault::Tiles(error.to_string())
}

fn write_error(error: impl std::fmt::Display) -> LogFault {
    LogFault::Write(error.to_string())
}
