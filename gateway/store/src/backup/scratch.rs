//! A database that is there for a drill alone.

use sqlx::Connection as _;
use sqlx::postgres::PgConnection;

use super::BackupError;
use super::postgres::{options, run};
use crate::open::Database;
use crate::random;

/// A new, empty database beside the one that an address names.
pub struct ScratchDatabase {
    name: String,
    /// Of the database beside which it stands.
    url: String,
}

impl ScratchDatabase {
    pub async fn create(url: &str) -> Result<Self, BackupError> {
        let random: [u8; 8] =
            random::of_thread().map_err(|error| BackupError::Database(error.to_string()))?;
        let name = format!("gatepost_verify_{:016x}", u64::from_be_bytes(random));
        let scratch = Self { name, url: url.to_owned() };
        scratch.ask("CREATE DATABASE", "TEMPLATE template0").await?;
        Ok(scratch)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same, as it would be configured.
    pub fn of(&self, database: &Database) -> Database {
        let mut database = database.clone();
        if let Database::Postgres { url, .. } = &mut database {
            // The last of several counts.
            let sign = if self.url.contains('?') { '&' } else { '?' };
            *url = format!("{}{sign}dbname={}", self.url, self.name);
        }
        database
    }

    pub async fn drop(self) -> Result<(), BackupError> {
        self.ask("DROP DATABASE IF EXISTS", "WITH (FORCE)").await
    }

    async fn ask(&self, verb: &str, more: &str) -> Result<(), BackupError> {
        let mut open = PgConnection::connect_with(&options(&self.url)?).await?;
        let asked = run(&mut open, &format!("{verb} {} {more}", self.name)).await;
        drop(open.close().await);
        asked
    }
}
