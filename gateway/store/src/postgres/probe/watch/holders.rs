//! Who keeps the server from removing dead rows: queues are made of rows that die soon, and slow down as those pile up.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::PgConnection;
use tokio::time::Instant;

/// A holder that is older than this is reported.
const AGE_MAX: Duration = Duration::from_secs(5 * 60);

/// Sessions, prepared transactions and replication slots by what they hold, with the seconds since then where that is told. Who may
/// not see other sessions' times sees what they hold. A snapshot counts rows of its own database; what writes counts everywhere.
/// A VACUUM holds back nobody. At most 100 of them are looked at, oldest first.
const HOLDERS: &str = "/* holders */ SELECT * FROM (\
    SELECT format('session %s of %s', a.pid, coalesce(a.usename, a.backend_type)), coalesce(a.backend_xid, a.backend_xmin)::text, \
        extract(epoch FROM clock_timestamp() - CASE WHEN a.backend_xid IS NOT NULL OR a.state LIKE 'idle in transaction%' \
            THEN a.xact_start ELSE a.query_start END)::float8 AS seconds, \
        format('end it, or SELECT pg_terminate_backend(%s)', a.pid) FROM pg_stat_activity a \
    WHERE (a.backend_xid IS NOT NULL OR a.backend_xmin IS NOT NULL AND (a.datid IS NULL OR a.datname = current_database())) \
        AND a.pid <> pg_backend_pid() AND NOT EXISTS (SELECT 1 FROM pg_stat_progress_vacuum v WHERE v.pid = a.pid) \
    UNION ALL SELECT format('prepared transaction %L', p.gid), p.transaction::text, \
        extract(epoch FROM clock_timestamp() - p.prepared)::float8, 'COMMIT PREPARED or ROLLBACK PREPARED it' FROM pg_prepared_xacts p \
    UNION ALL SELECT format('replication slot %L', s.slot_name), concat(s.xmin, '/', s.catalog_xmin), NULL, \
        'have its reader catch up, or drop it' FROM pg_replication_slots s WHERE s.xmin IS NOT NULL OR s.catalog_xmin IS NOT NULL\
    ) AS h (who, held, seconds, advice) ORDER BY seconds DESC NULLS LAST LIMIT 100";

/// Holders as they were seen.
#[derive(Default)]
pub(super) struct Holders(HashMap<String, Seen>);

struct Seen {
    /// What it holds; a new one is a new beginning.
    held: String,
    since: Instant,
    is_reported: bool,
}

/// A holder as the server shows it now.
struct Holder {
    who: String,
    held: String,
    /// Time that the server says it has held on.
    told: Duration,
    advice: String,
}

impl Holders {
    /// How long the oldest has held on; nothing where nobody does. One that gets too old is logged, once.
    pub(super) async fn look(&mut self, open: &mut PgConnection) -> Result<Duration, sqlx::Error> {
        let rows = sqlx::raw_sql(HOLDERS).fetch_all(open).await?;
        let holder = |row: &sqlx::postgres::PgRow| {
            let seconds = row.try_get::<Option<f64>, _>(2)?.unwrap_or(0.0);
            Ok::<_, sqlx::Error>(Holder {
                who: row.try_get(0)?,
                held: row.try_get(1)?,
                told: Duration::try_from_secs_f64(seconds).unwrap_or_default(),
                advice: row.try_get(3)?,
            })
        };
        let now: Vec<Holder> = rows.iter().map(holder).collect::<Result<_, _>>()?;
        Ok(self.take_note(now, Instant::now(), |holder, age| {
            let (held_s, who, advice) = (age.as_secs(), &holder.who, &holder.advice);
            tracing::warn!(held_s, advice, "{who} keeps the database from removing dead rows");
        }))
    }

    fn take_note(
        &mut self,
        holders: Vec<Holder>,
        now: Instant,
        mut report: impl FnMut(&Holder, Duration),
    ) -> Duration {
        let mut before = std::mem::take(&mut self.0);
        let mut oldest = Duration::ZERO;
        for holder in holders {
            let seen = before.remove(&holder.who).filter(|seen| seen.held == holder.held);
            let mut seen =
                seen.unwrap_or_else(|| Seen { held: holder.held.clone(), since: now, is_reported: false });
            let age = holder.told.max(now.duration_since(seen.since));
            oldest = oldest.max(age);
            if age > AGE_MAX && !seen.is_reported {
                seen.is_reported = true;
                report(&holder, age);
            }
            self.0.insert(holder.who, seen);
        }
        oldest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(who: &str, held: &str, told_s: u64) -> Holder {
        let told = Duration::from_secs(told_s);
        Holder { who: who.to_owned(), held: held.to_owned(), told, advice: String::new() }
    }

    #[test]
    fn a_holder_is_reported_once_and_its_age_is_told_or_seen() {
        let (mut holders, begun) = (Holders::default(), Instant::now());
        let mut reported = Vec::new();
        let mut look = |minutes: u64, now: Vec<Holder>| {
            let at = begun + Duration::from_secs(minutes * 60);
            let oldest = holders.take_note(now, at, |holder, age| reported.push((holder.who.clone(), age)));
            oldest.as_secs()
        };
        // A slot has no time, so it counts from when it was seen first.
        assert_eq!(look(0, vec![holder("slot", "7/", 0), holder("session", "8", 200)]), 200);
        assert_eq!(look(4, vec![holder("slot", "7/", 0), holder("session", "8", 440)]), 440);
        assert_eq!(look(6, vec![holder("slot", "7/", 0), holder("session", "8", 560)]), 560);
        // It has moved on, and the session is gone.
        assert_eq!(look(7, vec![holder("slot", "9/", 0)]), 0);
        assert_eq!(look(8, vec![]), 0);
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        assert_eq!(
            reported,
            [("session".to_owned(), Duration::from_secs(440)), ("slot".to_owned(), minutes(6))]
        );
    }
}
