//! A database of one's own on a server, for as long as something is measured or tried.

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};

use super::connection::commit_error;
use super::{NodeError, probe};
use crate::open::OpenError;
use crate::random;

/// An empty database with a random name. It stays when it is not dropped with [`ScratchDatabase::remove`].
pub struct ScratchDatabase {
    server: PgConnectOptions,
    name: String,
    url: String,
}

impl ScratchDatabase {
    /// Makes one on the server that `url` names, which may hold a password; its name begins with `gatepost_` and `purpose`.
    ///
    /// # Errors
    ///
    /// The server is away, is not one that a gateway would use, or lets this role make no database.
    pub async fn create(url: &str, purpose: &str) -> Result<Self, OpenError> {
        let server = super::options(&probe::address(url)?);
        let random: [u8; 8] = random::of_thread()
            .map_err(|error| OpenError::Postgres(format!("no random numbers: {error}")))?;
        let name = format!("gatepost_{purpose}_{:016x}", u64::from_be_bytes(random));
        run(&server, format!("CREATE DATABASE {name} TEMPLATE template0")).await?;
        let url = server.clone().database(&name).to_url_lossy().to_string();
        Ok(Self { server, name, url })
    }

    /// Its address, with the password of the server's.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Drops it, whoever is still connected.
    ///
    /// # Errors
    ///
    /// The server is away: the database stays.
    pub async fn remove(self) -> Result<(), OpenError> {
        run(&self.server, format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name)).await
    }
}

async fn run(server: &PgConnectOptions, statement: String) -> Result<(), OpenError> {
    let failed = |error| OpenError::from(NodeError::from(commit_error(error)));
    let mut open = PgConnection::connect_with(server).await.map_err(failed)?;
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut open).await.map_err(failed)?;
    drop(open.close().await);
    Ok(())
}
