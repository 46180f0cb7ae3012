//! The audit log and the database as files, for commands that work whether the gateway runs or not. Reads only.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gatepost_audit::{Checkpoint, DirTiles, Exporter, Fault, Report, Tail, VerifierKey, verify_dir};
use gatepost_core::DeliveryId;
use sqlx::PgPool;

use crate::clock::{self, Clock};
use crate::data_dir::DataDir;
use crate::open::Database;
use crate::ops::StoreError;
use crate::postgres;
use crate::published::{Published, Signed};
use crate::reader::{Check, Reader, Receipt, Source};
use crate::seal::Vault;
use crate::writer::Health;

/// Entries of a full bundle.
const BUNDLE_ENTRIES: u64 = gatepost_audit::TILE_WIDTH as u64;
/// Entries read at a time.
const PAGE_ENTRIES: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("{0} has no gateway's data: there is no database in it")]
    NoData(PathBuf),
    #[error(
        "the messages are in {0}, and the configuration says PostgreSQL: `gatepost migrate --to postgres` brings them there"
    )]
    NotMoved(PathBuf),
    #[error("the messages were moved to PostgreSQL, and what was here is {0}")]
    Moved(PathBuf),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{0} is not the public key of an audit log")]
    BadKey(PathBuf),
    #[error("the checkpoint: {0}")]
    Checkpoint(#[from] gatepost_audit::CheckpointError),
    /// The database has later entries, but not this one.
    #[error("entry {0} is missing")]
    Missing(u64),
    /// The checkpoint signs this entry and maybe later ones, the database has none of them.
    #[error("the database ends before entry {0}, which the checkpoint signs")]
    Ends(u64),
    #[error("the audit log's tiles")]
    Tiles(#[from] gatepost_audit::TreeError<gatepost_audit::TileError>),
    #[error("the export: {0}")]
    Export(#[from] gatepost_audit::ExportError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A data directory's log.
pub struct Archive {
    dir: PathBuf,
    database: Place,
    source: Source,
    reader: Reader,
    key: VerifierKey,
    signed: Vec<u8>,
}

/// Where the rows are.
#[derive(Clone)]
pub(crate) enum Place {
    Sqlite(PathBuf),
    Postgres(PgPool),
}

impl Archive {
    pub async fn open(data_dir: &Path, database: &Database) -> Result<Self, ArchiveError> {
        let data = DataDir::new(data_dir);
        let failed = |error: sqlx::Error| StoreError::Database(error.to_string());
        let (database, source) = match database {
            Database::Sqlite => {
                if !data.database().exists() {
                    if data.moved().exists() {
                        return Err(ArchiveError::Moved(data.moved()));
                    }
                    return Err(ArchiveError::NoData(data_dir.to_path_buf()));
                }
                let pool = crate::sqlite::readers(&data.database()).await.map_err(failed)?;
                (Place::Sqlite(data.database()), Source::sqlite(pool))
            }
            Database::Postgres { url, .. } => {
                if data.database().exists() {
                    return Err(ArchiveError::NotMoved(data.database()));
                }
                if !data.node().exists() && !data.moved().exists() {
                    return Err(ArchiveError::NoData(data_dir.to_path_buf()));
                }
                let pool = postgres::readers(postgres::options(&url.parse().map_err(failed)?));
                (Place::Postgres(pool.clone()), Source::postgres(pool))
            }
        };
        let dir = data.audit();
        let read = |path: PathBuf| std::fs::read(&path).map_err(|source| ArchiveError::Io { path, source });
        let key_path = dir.join("vkey");
        let key = String::from_utf8(read(key_path.clone())?).ok();
        let key = key
            .and_then(|text| VerifierKey::parse(text.trim()).ok())
            .ok_or(ArchiveError::BadKey(key_path))?;
        let signed = read(dir.join("checkpoint"))?;
        let published = Arc::new(Published::default());
        // Nothing sealed is read here, so no key is needed.
        let vault = Vault::new(&[0; 32]);
        let clock = Clock::start(clock::Source::Machine, gatepost_core::Timestamp::default());
        let health = Arc::new(Health::default());
        let reader = Reader::new(source.clone(), vault, dir.clone(), Arc::clone(&published), health, clock);
        let archive = Self { dir, database, source, reader, key, signed };
        published.publish(archive.edge().await?);
        Ok(archive)
    }

    pub fn key(&self) -> &VerifierKey {
        &self.key
    }

    pub(crate) fn database(&self) -> &Place {
        &self.database
    }

    /// The newest checkpoint, a signed note, as it was when the archive was opened.
    pub fn checkpoint(&self) -> &[u8] {
        &self.signed
    }

    fn opened_checkpoint(&self) -> Result<Checkpoint, ArchiveError> {
        Ok(Checkpoint::open(&self.signed, std::slice::from_ref(&self.key))?)
    }

    /// The edge of the tree that the checkpoint signs.
    async fn edge(&self) -> Result<Signed, ArchiveError> {
        let size = self.opened_checkpoint()?.size;
        let mut next = self.filed(size).await?;
        let mut edge = gatepost_audit::TileEdge::rebuild(&DirTiles::new(&self.dir), next)?;
        let mut full = Vec::new();
        while next < size {
            // One bundle at a time: a gateway at work may make it a file meanwhile, and its rows go.
            let end = size.min((next / BUNDLE_ENTRIES + 1) * BUNDLE_ENTRIES);
            let entries = match self.reader.entry_range(next, end).await {
                Ok(entries) => entries,
                // Damaged ones are taken as they are: the verifier says what they are not.
                Err(StoreError::Corrupt { .. }) => self.as_they_are(next, end).await?,
                Err(_) => return Err(self.gap(next, end).await?),
            };
            for entry in entries {
                edge.push(gatepost_audit::leaf_hash(&entry), &mut full);
            }
            next = end;
        }
        let text = String::from_utf8_lossy(&self.signed).into_owned();
        Ok(Signed { size, text: text.into(), edge: Arc::new(edge) })
    }

    async fn as_they_are(&self, from: u64, to: u64) -> Result<Vec<Vec<u8>>, ArchiveError> {
        let rows = self.source.leaves(from, to, Check::Nothing).await?;
        if rows.len() as u64 != to - from {
            return Err(self.gap(from, to).await?);
        }
        Ok(rows.into_iter().map(|(_, bytes)| bytes).collect())
    }

    /// What is wrong with `from..to`, which the database has not as a whole.
    async fn gap(&self, from: u64, to: u64) -> Result<ArchiveError, ArchiveError> {
        let rows = self.source.leaves(from, to, Check::Nothing).await?;
        let present = (from..).zip(&rows).take_while(|(expected, (index, _))| expected == index).count();
        let missing = from + present as u64;
        let later = self.source.leaves(missing, u64::MAX >> 1, Check::Nothing).await?;
        Ok(if later.is_empty() { ArchiveError::Ends(missing) } else { ArchiveError::Missing(missing) })
    }

    /// The first entry that stands in the database, at a tile's border.
    async fn filed(&self, size: u64) -> Result<u64, ArchiveError> {
        let filed = self.source.filed(&self.dir, size).await?;
        Ok(filed.min(size) / BUNDLE_ENTRIES * BUNDLE_ENTRIES)
    }

    /// Entries committed so far, signed or not.
    pub async fn size(&self) -> Result<u64, ArchiveError> {
        let size = self.source.tree_size().await?;
        Ok(size.ok_or_else(|| StoreError::Database("the store has no row".to_owned()))?)
    }

    /// Entries `from..to`, at most as many as one page holds.
    pub async fn entries(&self, from: u64, to: u64) -> Result<Vec<Vec<u8>>, ArchiveError> {
        let to = to.min(self.size().await?);
        let mut entries = Vec::new();
        let mut next = from;
        while next < to && (entries.len() as u64) < PAGE_ENTRIES {
            // Up to the end of a bundle: a range never spans a file and the database.
            let end = to.min((next / BUNDLE_ENTRIES + 1) * BUNDLE_ENTRIES);
            entries.extend(self.reader.entry_range(next, end).await?);
            next = end;
        }
        Ok(entries)
    }

    /// Verifies the whole log as it is now: files, the entries that only the database has, checkpoint.
    pub async fn verify(
        self,
        since: Option<(String, Vec<u8>)>,
        mut progress: impl FnMut(u64, u64) + Send + 'static,
    ) -> Result<Report, Fault> {
        let runtime = tokio::runtime::Handle::current();
        let verified = tokio::task::spawn_blocking(move || {
            let source = self.source.clone();
            let tail = move |from: u64| -> io::Result<Tail> {
                let leaves = runtime
                    .block_on(source.leaves(from, u64::MAX >> 1, Check::Nothing))
                    .map_err(io::Error::other)?;
                let start = leaves.first().map_or(from, |(index, _)| *index);
                // What stands behind a gap is not the next entry.
                let unbroken = (start..).zip(leaves).take_while(|(expected, (index, _))| expected == index);
                Ok(Tail { start, leaves: unbroken.map(|(_, (_, leaf))| leaf).collect() })
            };
            let mut options = gatepost_audit::Options::new(self.key.clone());
            options.since = since;
            options.tail = Some(Box::new(tail));
            verify_dir(&self.dir, options, &mut progress)
        });
        match verified.await {
            Ok(verdict) => verdict,
            Err(error) => {
                Err(Fault::Unreadable { path: "the log".to_owned(), source: io::Error::other(error) })
            }
        }
    }

    /// Writes the signed log into a new directory that any verifier can read.
    pub async fn export(
        &self,
        into: &Path,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Checkpoint, ArchiveError> {
        let size = self.opened_checkpoint()?.size;
        let mut exporter = Exporter::create(into)?;
        let mut next = 0;
        while next < size {
            let entries = self.entries(next, size).await?;
            if entries.is_empty() {
                return Err(ArchiveError::Missing(next));
            }
            for entry in &entries {
                exporter.push(entry)?;
            }
            next += entries.len() as u64;
            progress(next, size);
        }
        let signed = String::from_utf8_lossy(&self.signed).into_owned();
        Ok(exporter.finish(&signed, &self.key)?)
    }

    /// Proofs of every entry about a delivery.
    pub async fn receipt(&self, delivery: DeliveryId) -> Result<Receipt, ArchiveError> {
        Ok(self.reader.receipt(delivery).await?)
    }

    /// The deliveries of a message.
    pub async fn deliveries_of(
        &self,
        message: gatepost_core::MessageId,
    ) -> Result<Vec<DeliveryId>, ArchiveError> {
        Ok(self.source.delivery_ids_of_message(message).await?)
    }
}
