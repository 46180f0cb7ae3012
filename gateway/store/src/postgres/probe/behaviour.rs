//! Trying what several nodes rely on, with two sessions and a table that is dropped again.
//!
//! Probes of several nodes take turns: each holds the advisory lock that it tries.

use std::time::Duration;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row as _};

use super::{ServerFinding, failed};
use crate::open::OpenError;

/// Held during the trial; any number that nobody else's program uses.
const LOCK: i64 = 0x6761_7465_7072_6f62;
/// Longest that the second session waits for a row that it should pass over. Below it the first session's idle transaction is not cut off.
const LOCK_WAIT: Duration = Duration::from_secs(1);

const ADVICE: &str = "nodes that share this database would do the same thing twice: use PostgreSQL itself";

/// Why the trial came to an end before the end.
enum Broken {
    /// The server refused a statement.
    Statement(String),
    Open(OpenError),
}

impl From<sqlx::Error> for Broken {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            // The message alone: a detail may show a row, though here there is nothing to show.
            sqlx::Error::Database(database) => Self::Statement(database.message().to_owned()),
            _ => Self::Open(failed(error)),
        }
    }
}

pub(super) async fn tried(
    one: &mut PgConnection,
    other: &mut PgConnection,
) -> Result<Vec<ServerFinding>, OpenError> {
    // What is tried need not last, so nobody waits for a standby that is away. These sessions do nothing else any more.
    for open in [&mut *one, &mut *other] {
        end(open, "SET synchronous_commit = local".to_owned()).await;
    }
    let mut found = Vec::new();
    let trial = trial(one, other, &mut found).await;
    if trial.is_err() {
        end(one, "ROLLBACK".to_owned()).await;
    }
    // Whatever came of it, nothing stays. What cannot be dropped is dropped by the next probe.
    end(one, "DROP TABLE IF EXISTS gatepost.probe".to_owned()).await;
    end(one, format!("SELECT pg_advisory_unlock({LOCK})")).await;
    match trial {
        Ok(()) => Ok(found),
        Err(Broken::Statement(text)) => {
            found.push(ServerFinding::refused(
                "behaviour",
                format!("a statement that the store needs is refused: {text}"),
                "use PostgreSQL itself, and a role that may create tables in the schema `gatepost`, or the schema itself",
            ));
            Ok(found)
        }
        Err(Broken::Open(error)) => Err(error),
    }
}

async fn trial(
    one: &mut PgConnection,
    other: &mut PgConnection,
    found: &mut Vec<ServerFinding>,
) -> Result<(), Broken> {
    run(other, format!("SET lock_timeout = {}", LOCK_WAIT.as_millis())).await?;
    run(one, format!("SELECT pg_advisory_lock({LOCK})")).await?;
    if value::<bool>(other, format!("SELECT pg_try_advisory_lock({LOCK})")).await? {
        found.push(ServerFinding::refused("advisory locks", "two sessions have the same one", ADVICE));
        run(other, format!("SELECT pg_advisory_unlock({LOCK})")).await?;
    }
    scratch(one).await?;
    run(
        one,
        "BEGIN; SELECT 1 FROM gatepost.probe WHERE id = 1 FOR UPDATE; INSERT INTO gatepost.probe VALUES (3)"
            .to_owned(),
    )
    .await?;
    skip_locked(other, found).await?;
    let seen: i64 = value(other, "SELECT count(*) FROM gatepost.probe".to_owned()).await?;
    if seen != 2 {
        let what = "a session sees rows that another has not committed";
        found.push(ServerFinding::refused("isolation", what, ADVICE));
    }
    run(one, "ROLLBACK".to_owned()).await?;
    returning(one, found).await
}

/// Two rows, 1 and 2.
async fn scratch(one: &mut PgConnection) -> Result<(), Broken> {
    // Asked first, since who may use the schema may not be allowed to make one.
    if !value::<bool>(one, "SELECT to_regnamespace('gatepost') IS NOT NULL".to_owned()).await? {
        run(one, "CREATE SCHEMA IF NOT EXISTS gatepost".to_owned()).await?;
    }
    run(one, "SET client_min_messages = error; DROP TABLE IF EXISTS gatepost.probe".to_owned()).await?;
    run(one, "CREATE UNLOGGED TABLE gatepost.probe (id int PRIMARY KEY)".to_owned()).await?;
    run(one, "INSERT INTO gatepost.probe VALUES (1), (2)".to_owned()).await
}

/// The other session has row 1.
async fn skip_locked(other: &mut PgConnection, found: &mut Vec<ServerFinding>) -> Result<(), Broken> {
    const WHAT: &str = "SKIP LOCKED";
    match ids(other, "SELECT id FROM gatepost.probe ORDER BY id FOR UPDATE SKIP LOCKED").await {
        Ok(ids) if ids == [2] => {}
        Ok(ids) => {
            let what = format!("of the rows 1, which is locked, and 2 it gives {ids:?}");
            found.push(ServerFinding::refused(WHAT, what, ADVICE));
        }
        Err(Broken::Statement(text)) => {
            found.push(ServerFinding::refused(WHAT, format!("it waits or fails: {text}"), ADVICE));
        }
        Err(broken @ Broken::Open(_)) => return Err(broken),
    }
    Ok(())
}

async fn returning(one: &mut PgConnection, found: &mut Vec<ServerFinding>) -> Result<(), Broken> {
    let put = ids(one, "INSERT INTO gatepost.probe VALUES (1), (4) ON CONFLICT (id) DO NOTHING RETURNING id")
        .await?;
    if put != [4] {
        let what = format!("of the rows 1, which is there, and 4 it says it put {put:?}");
        found.push(ServerFinding::refused("ON CONFLICT … RETURNING", what, ADVICE));
    }
    let moved = "WITH gone AS (DELETE FROM gatepost.probe WHERE id = 4 RETURNING id), \
        put AS (INSERT INTO gatepost.probe SELECT id + 1 FROM gone RETURNING id) SELECT id FROM put";
    let moved = ids(one, moved).await?;
    let left = ids(one, "SELECT id FROM gatepost.probe ORDER BY id").await?;
    if moved != [5] || left != [1, 2, 5] {
        let what = format!("row 4 moved to 5 gives {moved:?} and leaves {left:?}");
        found.push(ServerFinding::refused("WITH … DELETE … INSERT", what, ADVICE));
    }
    Ok(())
}

/// As [`run`], where nothing can be done about a failure.
async fn end(open: &mut PgConnection, sql: String) {
    drop(sqlx::raw_sql(AssertSqlSafe(sql)).execute(open).await);
}

async fn run(open: &mut PgConnection, sql: String) -> Result<(), Broken> {
    Ok(sqlx::raw_sql(AssertSqlSafe(sql)).execute(open).await.map(drop)?)
}

async fn value<T>(open: &mut PgConnection, sql: String) -> Result<T, Broken>
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    Ok(sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(open).await?.try_get(0)?)
}

async fn ids(open: &mut PgConnection, sql: &'static str) -> Result<Vec<i32>, Broken> {
    let rows: Vec<PgRow> = sqlx::raw_sql(sql).fetch_all(open).await?;
    Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?)
}
