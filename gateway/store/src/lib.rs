//! The store: messages, deliveries, adapter state and the audit log in one database.
//!
//! **Architecture invariant:** this is the only crate that names sqlx and rusqlite and the only one that writes the
//! database. Every transition is decided by `gatepost-core`; the statements here repeat its guard. No change is committed
//! without its audit leaf, no leaf without its change.
//!
//! Where things are: [`Store`] is the handle; `writer/` decides and commits groups of operations, over a [`backend`], which is
//! `sqlite`; `reader/` answers queries; `audit_log` turns leaves into tiles and signed checkpoints; `reconcile` doubts all of
//! it; `salvage` saves what is sound of a damaged directory; `backup` copies all of it while it is used; `migrate` moves all of it from
//! SQLite to PostgreSQL; `sql` holds every statement as a named const.

pub mod archive;
mod audit_log;
mod backend;
pub mod backup;
mod call;
mod clock;
mod data_dir;
#[cfg(test)]
mod dice;
mod durability;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod hints;
mod keyring;
mod leaves;
pub mod migrate;
mod open;
pub mod ops;
mod postgres;
mod prepared;
mod published;
mod random;
mod reader;
mod recent;
pub mod reconcile;
mod row;
pub mod salvage;
mod seal;
mod sql;
mod sqlite;
mod store;
mod sum;
mod writer;

pub use audit_log::LogFault;
pub use data_dir::DataDirError;
pub use durability::Durability;
pub use hints::MessageHint;
pub use keyring::source::SealKeysFrom;
pub use open::{Adopt, Database, Encryption, Engines, KEYS_IN_MEMORY, OpenError, Options, StoreTask, open};
pub use ops::*;
pub use postgres::probe::{ServerFinding, ServerLook, Unfit, Weight, check_address, look as server_look};
pub use postgres::scratch::ScratchDatabase;
pub use reader::{Data, Reader, Receipt};
pub use sqlite::sqlite_version;
pub use store::Store;
pub use writer::Health;
