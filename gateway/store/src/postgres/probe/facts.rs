//! What a server says of itself.

use gatepost_core::Timestamp;
use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};

use super::failed;
use crate::clock;
use crate::open::OpenError;

/// Settings that were asked for. `None`: the server does not know such a thing.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// `version()`.
    pub(super) version: String,
    /// An engine that its catalogue gives away.
    pub(super) catalogue: Option<&'static str>,
    /// Major and minor, as one number.
    pub(super) number: Option<u32>,
    pub(super) fsync: Option<String>,
    pub(super) full_page_writes: Option<String>,
    /// Of this session, as is the next.
    pub(super) synchronous_commit: Option<String>,
    pub(super) isolation: Option<String>,
    pub(super) checksums: Option<String>,
    pub(super) access_method: Option<String>,
    pub(super) in_recovery: Option<bool>,
    /// `synchronous_standby_names`, where commits wait for one of them and none is there.
    pub(super) waits_for: Option<String>,
    /// Connections that may still come.
    pub(super) room: Option<i64>,
    pub(super) clocks: Option<Clocks>,
}

/// What the server's clock said, and this host's before and after.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clocks {
    pub(super) server: Timestamp,
    pub(super) before: Timestamp,
    pub(super) after: Timestamp,
}

impl Facts {
    pub(super) fn is_standby(&self) -> bool {
        self.in_recovery == Some(true)
    }
}

const VERSION: &str = "/* version */ SELECT version()";
const SETTINGS: &str = "/* settings */ SELECT current_setting('server_version_num', true), current_setting('fsync', true), \
    current_setting('full_page_writes', true), current_setting('synchronous_commit', true), \
    current_setting('transaction_isolation', true), current_setting('data_checksums', true), \
    current_setting('default_table_access_method', true)";
const RECOVERY: &str = "/* recovery */ SELECT pg_is_in_recovery()";
const CLOCK: &str = "/* clock */ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
/// The least of what the server, the role and the database leave.
const ROOM: &str = "/* room */ SELECT least(\
    current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint \
    - coalesce(current_setting('reserved_connections', true), '0')::bigint - (SELECT sum(numbackends) FROM pg_stat_database)::bigint, \
    (SELECT CASE WHEN rolconnlimit >= 0 THEN rolconnlimit::bigint END FROM pg_roles WHERE rolname = current_user), \
    (SELECT CASE WHEN datconnlimit >= 0 THEN datconnlimit::bigint END FROM pg_database WHERE datname = current_database()))";
/// Who may not see the standbys does not know.
const WAITS_FOR: &str = "/* waits_for */ SELECT current_setting('synchronous_standby_names') \
    WHERE current_setting('synchronous_standby_names') <> '' AND pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') \
    AND NOT EXISTS (SELECT 1 FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum'))";
/// What only one engine has. Asked one by one, since each lacks some of the catalogues.
const CATALOGUE: &[(&str, &str)] = &[
    ("YugabyteDB", "/* yugabyte */ SELECT EXISTS (SELECT 1 FROM pg_settings WHERE name LIKE 'yb\\_%')"),
    (
        "Greenplum or one of its kin",
        "/* greenplum */ SELECT EXISTS (SELECT 1 FROM pg_settings WHERE name = 'gp_role')",
    ),
    (
        "Aurora DSQL",
        "/* dsql */ SELECT EXISTS (SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = 'sys' AND c.relname = 'iam_pg_role_mappings')",
    ),
    (
        "CockroachDB",
        "/* cockroach */ SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = 'crdb_internal')",
    ),
];
const CITUS: &str = "/* citus */ SELECT EXISTS (SELECT 1 FROM pg_extension WHERE extname = 'citus')";
/// Distributed tables of ours.
const DISTRIBUTED: &str = "/* distributed */ SELECT EXISTS (SELECT 1 FROM pg_dist_partition p JOIN pg_class c ON c.oid = p.logicalrelid \
    JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'gatepost')";

pub(super) async fn gather(open: &mut PgConnection) -> Result<Facts, OpenError> {
    let mut facts = Facts::default();
    if let Some(row) = ask(open, VERSION).await? {
        facts.version = text(&row, 0).unwrap_or_default();
    }
    if let Some(row) = ask(open, SETTINGS).await? {
        facts.number = text(&row, 0).and_then(|number| number.parse().ok());
        facts.fsync = text(&row, 1);
        facts.full_page_writes = text(&row, 2);
        facts.synchronous_commit = text(&row, 3);
        facts.isolation = text(&row, 4);
        facts.checksums = text(&row, 5);
        facts.access_method = text(&row, 6);
    }
    facts.in_recovery = ask(open, RECOVERY).await?.and_then(|row| row.try_get(0).ok());
    facts.waits_for = ask(open, WAITS_FOR).await?.and_then(|row| text(&row, 0));
    facts.room = ask(open, ROOM).await?.and_then(|row| row.try_get(0).ok());
    facts.catalogue = catalogue(open).await?;
    let before = Timestamp::from_micros(clock::wall_micros());
    let server: Option<i64> = ask(open, CLOCK).await?.and_then(|row| row.try_get(0).ok());
    let after = Timestamp::from_micros(clock::wall_micros());
    facts.clocks = server.map(|server| Clocks { server: Timestamp::from_micros(server), before, after });
    Ok(facts)
}

async fn catalogue(open: &mut PgConnection) -> Result<Option<&'static str>, OpenError> {
    for (name, sql) in CATALOGUE {
        if yes(open, sql).await? {
            return Ok(Some(name));
        }
    }
    let distributed = yes(open, CITUS).await? && yes(open, DISTRIBUTED).await?;
    Ok(distributed.then_some("PostgreSQL with tables of the gateway distributed by Citus"))
}

async fn yes(open: &mut PgConnection, sql: &'static str) -> Result<bool, OpenError> {
    Ok(ask(open, sql).await?.and_then(|row| row.try_get(0).ok()).unwrap_or(false))
}

/// An answer; none where the server refuses the question, which another engine may.
async fn ask(open: &mut PgConnection, sql: &'static str) -> Result<Option<PgRow>, OpenError> {
    match sqlx::raw_sql(sql).fetch_optional(open).await {
        Ok(row) => Ok(row),
        Err(sqlx::Error::Database(_)) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

fn text(row: &PgRow, column: usize) -> Option<String> {
    row.try_get::<Option<String>, _>(column).ok().flatten()
}
