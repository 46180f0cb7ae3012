//! Tables whose rows go by whole days: their partitions are made ahead.

use gatepost_core::Timestamp;

use super::commit::day_of;
use super::connection::Connection;
use crate::backend::CommitError;

/// Tables that are partitioned by day.
const TABLES: [&str; 4] = ["payload", "detail", "reply", "leaf"];
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
    let to = day + 1;
    format!(
        "SET LOCAL client_min_messages = error; CREATE TABLE IF NOT EXISTS {table}_{day} PARTITION OF {table} FOR VALUES FROM ({day}) TO ({to})"
    )
}
