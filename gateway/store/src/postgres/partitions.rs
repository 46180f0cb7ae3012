//! Tables whose rows go by whole days, and the audit log's, which stay: their partitions are made ahead.

use gatepost_core::Timestamp;

use super::commit::day_of;
use super::connection::Connection;
use crate::backend::CommitError;

/// Tables that are partitioned by day …
const TABLES: [&str; 5] = ["payload", "piece", "detail", "reply", LEAVES];
/// … and the one whose partitions are never dropped, and hold so many days each: every statement locks all of a table's partitions that
/// it was planned for, and a gateway may live for many years.
const LEAVES: &str = "leaf";
const DAYS_OF_LEAVES: i32 = 30;
/// Bytes of a run of leaves. Its row stays in one piece, in a page: in pieces, each had a row and an index entry of its own.
pub(super) const RUN_BYTES: usize = 8000;
/// Bytes of the largest row that stays in one piece: as many as the server allows.
const ROW_BYTES: usize = 8160;
/// Days made ahead.
const DAYS_AHEAD: i32 = 3;

#[derive(Default)]
pub(super) struct Partitions {
    made_through: Option<i32>,
}

impl Partitions {
    /// Makes the partitions of today and of the next days, unless that has been done. What finds none goes into a default one.
    pub(super) fn tend(&mut self, connection: &mut Connection, now: Timestamp) -> Result<(), CommitError> {
        let today = day_of(now);
        if self.made_through.is_some_and(|through| through > today) {
            return Ok(());
        }
        for day in days_from(today) {
            for script in scripts(day) {
                connection.script(script)?;
            }
        }
        self.made_through = Some(today + DAYS_AHEAD);
        Ok(())
    }
}

/// Days that have partitions once a day is tended.
pub(crate) fn days_from(today: i32) -> std::ops::RangeInclusive<i32> {
    today..=today + DAYS_AHEAD
}

/// Makes the partitions of a day, one by one: each takes a lock that everybody else waits for.
pub(crate) fn scripts(day: i32) -> impl Iterator<Item = String> {
    TABLES.into_iter().map(move |table| script(table, day))
}

/// Makes the partition of a table for a day, if it is not there.
pub(super) fn make(connection: &mut Connection, table: &str, day: i32) -> Result<(), CommitError> {
    connection.script(script(table, day))
}

fn script(table: &str, day: i32) -> String {
    let days = if table == LEAVES { DAYS_OF_LEAVES } else { 1 };
    let from = day - day.rem_euclid(days);
    let to = from + days;
    let rows =
        if table == LEAVES { format!(" WITH (toast_tuple_target = {ROW_BYTES})") } else { String::new() };
    format!(
        "SET LOCAL client_min_messages = error; CREATE TABLE IF NOT EXISTS {table}_{from} PARTITION OF {table} FOR VALUES FROM ({from}) TO ({to}){rows}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_partitions_of_their_own_and_leaves_one_for_a_month() {
        let made: Vec<String> = scripts(20_789).collect();
        assert!(
            made[0].contains("payload_20789 PARTITION OF payload FOR VALUES FROM (20789) TO (20790)"),
            "{made:?}"
        );
        assert!(
            made[4].contains("leaf_20760 PARTITION OF leaf FOR VALUES FROM (20760) TO (20790)"),
            "{made:?}"
        );
        assert!(scripts(20_790).any(|script| script.contains("leaf_20790")));
    }
}
