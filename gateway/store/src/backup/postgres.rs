//! A shared database's part of a backup: every table as it was in one snapshot, in PostgreSQL's own binary form, one file each.
//!
//! The connection is this call's own and ends with it, whatever becomes of the call. Restoring is one transaction, tables and all:
//! what ends in the middle has not happened.

use std::path::Path;

use futures_util::TryStreamExt as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection as _, Row as _};

use super::files::{Contents, Reading, Recorded, Sink};
use super::{BackupError, Snapshot, Taken};
use crate::postgres::{self, MIGRATIONS, partitions, probe, sql};

/// All that a gateway writes there; which migrations have been applied is in the manifest.
pub(super) const TABLES: [&str; 28] = [
    "store",
    "node",
    "queue",
    "queue_count",
    "message",
    "payload",
    "piece",
    "piece_ahead",
    "day_purge",
    "dedup",
    "delivery",
    "ready",
    "lane",
    "lane_changed",
    "bucket",
    "consumer",
    "copy",
    "lease_group",
    "expiry",
    "stuck",
    "detail",
    "reply",
    "adapter_state",
    "keyring",
    "leaf",
    "leaf_new",
    "leaf_place",
    "role",
];
/// What a backup's connection may take as long as it needs for; nobody waits for it.
const PATIENCE: &[(&str, &str)] = &[
    ("application_name", "gatepost backup"),
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("tcp_user_timeout", "0"),
];

fn file_of(table: &str) -> String {
    format!("postgres/{table}.copy")
}

pub(super) fn options(url: &str) -> Result<PgConnectOptions, BackupError> {
    Ok(postgres::options(&probe::address(url)?).options(PATIENCE.iter().copied()))
}

/// Writes every table into the backup.
pub(super) async fn take(url: &str, contents: &mut Contents<'_>) -> Result<Taken, BackupError> {
    let mut open = PgConnection::connect_with(&options(url)?).await?;
    make_partitions(&mut open).await?;
    run(&mut open, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await?;
    // The first question takes the snapshot.
    let entries: i64 = value(&mut open, sql::TREE_SIZE).await?;
    let migration = value(&mut open, "SELECT max(version) FROM migration").await?;
    for table in TABLES {
        let name = file_of(table);
        let mut sink = Sink::create(&contents.path(&name))?;
        let copy = format!("COPY (SELECT * FROM {table}) TO STDOUT (FORMAT binary)");
        let mut rows = open.copy_out_raw(&copy).await?;
        while let Some(chunk) = rows.try_next().await? {
            sink.write(&chunk)?;
        }
        drop(rows);
        contents.add(&name, sink.finish());
    }
    // A sequence is in no snapshot: read last, it is beyond every number that was copied.
    let turn = value(&mut open, "SELECT last_value FROM turn").await?;
    let days = partitioned_days(&mut open).await?;
    run(&mut open, "ROLLBACK").await?;
    drop(open.close().await);
    let snapshot = Snapshot::Postgres { migration, turn, days };
    Ok(Taken { snapshot, entries: u64::try_from(entries).unwrap_or(0), filed: 0 })
}

/// A partition that is made waits for everybody who reads its table, and everybody else for it. So those that a node would make
/// while this backup runs are made before; one that is there already costs no lock.
async fn make_partitions(open: &mut PgConnection) -> Result<(), BackupError> {
    let now: i64 = value(open, "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").await?;
    let today = postgres::day_of(gatepost_core::Timestamp::from_micros(now));
    for day in *partitions::days_from(today).start()..=*partitions::days_from(today + 1).end() {
        for script in partitions::scripts(day) {
            run(open, &script).await?;
        }
    }
    Ok(())
}

async fn partitioned_days(open: &mut PgConnection) -> Result<Vec<i32>, BackupError> {
    let rows = sqlx::query(sql::PARTITIONED_DAYS).fetch_all(open).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Fills an empty database with the tables of a backup, whose files are below `dir`; `recorded` says what they must hold.
pub(super) async fn lay<'r>(
    options: &PgConnectOptions,
    dir: &Path,
    snapshot: (i64, i64, &[i32]),
    recorded: impl Fn(&str) -> Option<&'r Recorded>,
) -> Result<(), BackupError> {
    let (migration, turn, days) = snapshot;
    let mut open = PgConnection::connect_with(options).await?;
    run(&mut open, "SET client_min_messages = error; BEGIN").await?;
    if value::<bool>(&mut open, sql::TABLES_ARE_THERE).await? {
        return Err(BackupError::DatabaseTaken);
    }
    if !value::<bool>(&mut open, "SELECT to_regnamespace('gatepost') IS NOT NULL").await? {
        run(&mut open, "CREATE SCHEMA gatepost").await?;
    }
    run(&mut open, "CREATE TABLE gatepost.migration (version bigint PRIMARY KEY)").await?;
    for (version, text) in MIGRATIONS.iter().filter(|(version, _)| *version <= migration) {
        run(&mut open, text).await?;
        run(&mut open, &format!("INSERT INTO migration (version) VALUES ({version})")).await?;
    }
    for day in days {
        for script in partitions::scripts(*day) {
            run(&mut open, &script).await?;
        }
    }
    for table in TABLES {
        let name = file_of(table);
        // Looked at once more, since it is this reading of the file that counts.
        if recorded(&name) != Some(&copy_in(&mut open, table, &dir.join(&name)).await?) {
            let how = "it is another now than a moment ago".to_owned();
            return Err(BackupError::Changed { file: name, how });
        }
    }
    // Nodes of the backup are gone: whoever comes takes their places at once.
    run(&mut open, "UPDATE node SET until = 0").await?;
    run(&mut open, &format!("SELECT setval('turn', {turn})")).await?;
    run(&mut open, "COMMIT").await?;
    drop(open.close().await);
    Ok(())
}

async fn copy_in(open: &mut PgConnection, table: &str, file: &Path) -> Result<Recorded, BackupError> {
    let mut reading = Reading::open(file)?;
    let mut rows = open.copy_in_raw(&format!("COPY {table} FROM STDIN (FORMAT binary)")).await?;
    while let Some(chunk) = reading.next()? {
        rows.send(chunk).await?;
    }
    rows.finish().await?;
    Ok(reading.recorded())
}

/// Takes everything of a gateway out of a database, which [`lay`] has put there.
pub(super) async fn clear(options: &PgConnectOptions) -> Result<(), BackupError> {
    let mut open = PgConnection::connect_with(options).await?;
    let tables = TABLES.join(", ");
    // In one transaction, as everything that is sent at once.
    let rest = "DROP SEQUENCE turn; DROP FUNCTION refuse(text, text)";
    run(&mut open, &format!("DROP TABLE {tables}, migration; {rest}")).await?;
    drop(open.close().await);
    Ok(())
}

async fn run(open: &mut PgConnection, sql: &str) -> Result<(), BackupError> {
    Ok(sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(open).await.map(drop)?)
}

async fn value<T>(open: &mut PgConnection, sql: &'static str) -> Result<T, BackupError>
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    Ok(sqlx::query(sql).fetch_one(open).await?.try_get(0)?)
}

impl From<sqlx::Error> for BackupError {
    /// The message alone: the detail may show a row.
    fn from(error: sqlx::Error) -> Self {
        let text = match &error {
            sqlx::Error::Database(database) => database.message().to_owned(),
            other => other.to_string(),
        };
        match error.as_database_error().and_then(|error| error.code()).as_deref() {
            Some("42501") => Self::NotPermitted(text),
            _ => Self::Database(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a new migration brings must be in the list, or it would be missing after a restore.
    #[tokio::test]
    async fn the_list_names_every_table_of_a_fresh_database() {
        let url = gatepost_postgres::fresh_database().expect("a PostgreSQL server for the tests");
        let mut open = PgConnection::connect(&url).await.unwrap();
        run(&mut open, "CREATE SCHEMA gatepost; SET search_path = gatepost").await.unwrap();
        for (_, migration) in MIGRATIONS {
            run(&mut open, migration).await.unwrap();
        }
        let named = |kinds: &str| {
            format!(
                "SELECT coalesce(string_agg(relname, ' ' ORDER BY relname), '') FROM pg_class \
                 WHERE relnamespace = 'gatepost'::regnamespace AND NOT relispartition AND relkind IN ({kinds})"
            )
        };
        let mut found = Vec::new();
        for kinds in ["'r', 'p'", "'S'", "'v', 'm', 'f'"] {
            let row = sqlx::raw_sql(AssertSqlSafe(named(kinds))).fetch_one(&mut open).await.unwrap();
            found.push(row.get::<String, _>(0));
        }
        let mut tables = TABLES;
        tables.sort_unstable();
        assert_eq!(found, [tables.join(" "), "turn".to_owned(), String::new()]);
    }
}
