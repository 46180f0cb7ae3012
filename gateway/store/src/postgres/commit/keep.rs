//! What a commit does for messages whose day is old: their partitions may be about to go.
//!
//! Retention walks a day before it drops the day's partitions, and moves what is not settled to day 0. What was settled then may
//! be made unsettled again before the drop, by a replay of a dead delivery or by moving it elsewhere: that commit moves the content
//! itself. It holds the row of retention's role until its end, and so does each step of retention: either the step has ended, and
//! this commit sees whether the content is still there, or it comes later, and finds the content in day 0. The drop excludes it
//! twice: it takes ACCESS EXCLUSIVE on the tables, of which this commit has read.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::super::connection::Connection;
use super::super::row::Cells;
use super::super::{ROLE_RETENTION, sql};
use super::{day_of, exactly};
use crate::backend::CommitError;
use crate::row::Row;
use crate::writer::{Touched, Turn};

/// Messages and the days their content is kept under, where that is not the day of their accept for certain.
pub(super) type Days = HashMap<i64, i32>;

/// The first day whose messages need no care: retention never drops a day as young as yesterday.
fn first_young(turn: &Turn<'_>) -> i32 {
    day_of(turn.now).saturating_sub(1)
}

/// Moves the content of messages to day 0, all of which it must find under that day.
pub(in crate::postgres) fn keep(
    connection: &mut Connection,
    day: i32,
    messages: &[i64],
) -> Result<(), CommitError> {
    if messages.is_empty() {
        return Ok(());
    }
    // First their own rows: who writes beside the content holds these until its end, and what it has written is seen afterwards.
    connection.execute(sqlx::query(sql::MESSAGES_KEEP).bind(messages).bind(day))?;
    let content = sqlx::query(sql::CONTENT_KEEP).bind(messages).bind(day);
    exactly(connection, content, messages.len(), "content_keep")
}

/// Makes sure that what is to be delivered again has its content, whenever its message was accepted, and no answer.
pub(super) fn keep_unsettled(
    connection: &mut Connection,
    turn: &Turn<'_>,
    touched: &[&Touched],
) -> Result<(), CommitError> {
    let again: Vec<&Row> =
        touched.iter().filter(|touched| touched.is_unsettled_again()).map(|touched| &touched.was).collect();
    if again.is_empty() {
        return Ok(());
    }
    connection.row(sqlx::query(sql::RETENTION_HOLD).bind(ROLE_RETENTION))?;
    // In one order for every node: two that move the same messages would wait for each other.
    let messages: BTreeSet<i64> = again.iter().map(|row| row.message_seq).collect();
    let messages: Vec<i64> = messages.into_iter().collect();
    let mut days = HashMap::with_capacity(messages.len());
    for row in connection.rows(sqlx::query(sql::CONTENT_LOOK).bind(messages))? {
        let mut cells = Cells::new(&row);
        let (seq, day, has_content): (i64, i32, bool) = (cells.take()?, cells.take()?, cells.take()?);
        if has_content {
            days.insert(seq, day);
        }
    }
    if again.iter().any(|row| row.salt.is_some() && !days.contains_key(&row.message_seq)) {
        return Err(CommitError::Stale("the content of a message has been purged meanwhile".to_owned()));
    }
    let mut old: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
    for (seq, day) in days {
        if day != 0 && day < first_young(turn) {
            old.entry(day).or_default().push(seq);
        }
    }
    for (day, mut messages) in old {
        messages.sort_unstable();
        keep(connection, day, &messages)?;
        connection.execute(sqlx::query(sql::DAY_PURGE_LESS).bind(day).bind(messages))?;
    }
    let (positions, messages): (Vec<i64>, Vec<i64>) =
        again.iter().map(|row| (row.pos, row.message_seq)).unzip();
    connection.execute(sqlx::query(sql::REPLIES_DROP).bind(positions).bind(messages)).map(drop)
}

/// Deliveries of old messages about which something is written that goes with the content.
pub(super) fn beside_old(turn: &Turn<'_>) -> impl Iterator<Item = i64> {
    let beside = turn.details.iter().map(|detail| (detail.delivery, detail.accepted_at));
    let beside = beside.chain(turn.replies.iter().map(|reply| (reply.delivery, reply.accepted_at)));
    let old = beside.filter(|(_, accepted_at)| day_of(*accepted_at) < first_young(turn));
    old.map(|(delivery, _)| delivery)
}

/// Deliveries about which something is written that goes with the content, and the days under which it is found: those of old
/// messages, which may have been moved, and are not until this commit has ended.
pub(super) fn days_beside(connection: &mut Connection, turn: &Turn<'_>) -> Result<Days, CommitError> {
    let old: BTreeSet<i64> = beside_old(turn).collect();
    if old.is_empty() {
        return Ok(Days::new());
    }
    let rows = turn.touched.values().map(|touched| &touched.now).filter(|row| old.contains(&row.pos));
    let message_of: BTreeMap<i64, i64> = rows.map(|row| (row.pos, row.message_seq)).collect();
    let messages: BTreeSet<i64> = message_of.values().copied().collect();
    let messages: Vec<i64> = messages.into_iter().collect();
    let mut days = HashMap::with_capacity(messages.len());
    for row in connection.rows(sqlx::query(sql::DAYS_HOLD).bind(messages))? {
        let mut cells = Cells::new(&row);
        days.insert(cells.take::<i64>()?, cells.take::<i32>()?);
    }
    Ok(message_of.into_iter().filter_map(|(pos, message)| Some((pos, *days.get(&message)?))).collect())
}
