//! A look at a PostgreSQL server before anything is trusted to it: what it is, whether it keeps what it confirms, and whether it
//! does what several nodes rely on. It finds everything that is wrong in one go.
//!
//! It must never send a password to a server that is not verified, so an address that allows that is refused before anything is
//! asked; and it must never say what the address holds besides host and port.

mod address;
mod behaviour;
mod engine;
mod facts;
mod findings;
mod watch;

use std::fmt;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection as _, Row as _};

pub(crate) use address::address;
pub use address::check_address;
pub(crate) use watch::Watch;

use super::connection::commit_error;
use crate::durability::Durability;
use crate::open::{Engines, OpenError};

/// Longest that the whole look may take.
const LOOK_WAIT: Duration = Duration::from_secs(30);

/// What a look at a server has found.
#[derive(Debug)]
pub struct ServerLook {
    /// As it calls itself.
    pub server: String,
    pub durability: Durability,
    /// What somebody should know, the worst first.
    pub findings: Vec<ServerFinding>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct ServerFinding {
    pub weight: Weight,
    pub what: &'static str,
    pub found: String,
    /// What to do.
    pub advice: String,
}

/// What a finding means for a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// It does not start.
    Refused,
    /// It works, but somebody should know.
    Warning,
}

impl ServerFinding {
    fn refused(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { weight: Weight::Refused, what, found: found.into(), advice: advice.into() }
    }

    fn warning(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { weight: Weight::Warning, what, found: found.into(), advice: advice.into() }
    }
}

impl fmt::Display for ServerFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.what, self.found, self.advice)
    }
}

/// Why a server is not used: all of it.
#[derive(Debug)]
pub struct Unfit(pub Vec<ServerFinding>);

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Vec<String> = self.0.iter().map(|finding| format!("  {finding}")).collect();
        f.write_str(&each.join("\n"))
    }
}

/// Looks at a server, and says what it found, refused or not. `url` may hold a password.
pub async fn look(url: &str, engines: Engines) -> Result<ServerLook, OpenError> {
    look_at(&super::options(&address(url)?), engines).await
}

/// As [`look`], over connections like the store's own. A server that must not be used is an error that names all reasons.
pub(crate) async fn fit(options: &PgConnectOptions, engines: Engines) -> Result<Durability, OpenError> {
    let look = look_at(options, engines).await?;
    if look.findings.iter().any(|finding| finding.weight == Weight::Refused) {
        return Err(OpenError::Unfit(Unfit(look.findings)));
    }
    for finding in &look.findings {
        tracing::warn!(found = finding.found, advice = finding.advice, "the database: {}", finding.what);
    }
    tracing::info!(server = look.server, durability = look.durability.as_str(), "the database");
    Ok(look.durability)
}

async fn look_at(options: &PgConnectOptions, engines: Engines) -> Result<ServerLook, OpenError> {
    let looked = tokio::time::timeout(LOOK_WAIT, look_with(options, engines)).await;
    looked.unwrap_or_else(|_| Err(OpenError::Postgres("it does not answer".to_owned())))
}

async fn look_with(options: &PgConnectOptions, engines: Engines) -> Result<ServerLook, OpenError> {
    let mut one = PgConnection::connect_with(options).await.map_err(failed)?;
    let mut other = PgConnection::connect_with(options).await.map_err(failed)?;
    let facts = facts::gather(&mut one).await?;
    let durability = durability(&mut one).await;
    let mut findings = findings::judge(&facts, engines);
    // On a standby nothing can be written, so nothing could be tried.
    if !facts.is_standby() {
        findings.extend(behaviour::tried(&mut one, &mut other).await?);
    }
    findings.sort_by_key(|finding| finding.weight);
    for open in [one, other] {
        drop(open.close().await);
    }
    Ok(ServerLook { server: facts.version, durability, findings })
}

/// Whether a synchronous standby confirms what these sessions commit. Who may not see that, gets the lesser word.
async fn durability(open: &mut PgConnection) -> Durability {
    const CONFIRMED: &str = "/* durability */ SELECT current_setting('synchronous_standby_names') <> '' \
        AND current_setting('synchronous_commit') IN ('on', 'remote_apply') \
        AND EXISTS (SELECT 1 FROM pg_stat_replication WHERE state = 'streaming' AND sync_state IN ('sync', 'quorum'))";
    match sqlx::raw_sql(CONFIRMED).fetch_one(open).await.and_then(|row| row.try_get(0)) {
        Ok(true) => Durability::Quorum,
        Ok(false) | Err(_) => Durability::Fsync,
    }
}

fn failed(error: sqlx::Error) -> OpenError {
    super::NodeError::from(commit_error(error)).into()
}
