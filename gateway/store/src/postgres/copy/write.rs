//! The rows of a copy, written as a turn's commit would have left them.

use std::collections::HashMap;

use gatepost_core::Timestamp;

use super::super::commit::{
    Values, bind_counts, bind_rows, change_queue, day_of, each as each_ref, exactly, queue_id, queues_of,
    sender_of, small, whole,
};
use super::super::connection::Connection;
use super::super::row::{BUCKETS, bucket_of};
use super::super::sql::{BUCKETS_ADD, QUEUE_ADD, STATES_PUT};
use super::sql;
use crate::backend::CommitError;
use crate::migrate::batch::{Content, Delivery, Detail, Entries, Message, Reply, Rows, State};
use crate::ops::QueueKind;
use crate::row::Row;
use crate::seal::Index;
use crate::writer::Queue;

/// The tables that are partitioned by day in which rows will stand, each with its days.
pub(super) fn days(rows: &Rows) -> Vec<(&'static str, i32)> {
    let of = |table, times: Vec<i64>| times.into_iter().map(move |at| (table, day(at))).collect();
    match rows {
        Rows::Messages(rows) => of("payload", rows.iter().map(|row| row.accepted_at).collect()),
        Rows::Details(rows) => of("detail", rows.iter().map(|row| row.accepted_at).collect()),
        Rows::Replies(rows) => of("reply", rows.iter().map(|row| row.accepted_at).collect()),
        Rows::Entries(rows) => of("leaf", rows.iter().map(|row| row.at).collect()),
        Rows::Queues(_) | Rows::Deliveries(_) | Rows::States(_) => Vec::new(),
    }
}

/// Writes them in the open transaction.
pub(super) fn write(connection: &mut Connection, rows: &Rows) -> Result<(), CommitError> {
    match rows {
        Rows::Queues(rows) => rows.iter().try_for_each(|queue| write_queue(connection, queue)),
        Rows::Messages(rows) => messages(connection, rows),
        Rows::Deliveries(rows) => deliveries(connection, rows),
        Rows::Details(rows) => details(connection, rows),
        Rows::Replies(rows) => replies(connection, rows),
        Rows::States(rows) => states(connection, rows),
        Rows::Entries(rows) => entries(connection, rows),
    }
}

fn write_queue(connection: &mut Connection, queue: &Queue) -> Result<(), CommitError> {
    let statement = sqlx::query(QUEUE_ADD)
        .bind(queue_id(queue.id))
        .bind(queue.setup.name.as_str())
        .bind(queue.setup.kind.as_str());
    exactly(connection, statement, 1, "queue_add")?;
    change_queue(connection, queue, 1)?;
    let added = [(queue.id, queue.counts)];
    let mut counts = Values::default();
    bind_counts(counts.bind(queues_of(&added)), &added);
    exactly(connection, counts.of(sql::COPY_QUEUE_COUNTS)?, 1, "copy_queue_counts")?;
    if queue.setup.kind == QueueKind::Sender {
        return Ok(());
    }
    let buckets = sqlx::query(BUCKETS_ADD).bind(queue_id(queue.id)).bind(i32::from(BUCKETS));
    exactly(connection, buckets, usize::from(BUCKETS), "buckets_add")
}

fn messages(connection: &mut Connection, rows: &[Message]) -> Result<(), CommitError> {
    let index = |column: fn(&Message) -> Option<&Index>| -> Vec<Option<&[u8]>> {
        rows.iter().map(|row| column(row).map(Index::as_slice)).collect()
    };
    let positions = |row: &Message| i32::try_from(row.positions).unwrap_or(i32::MAX);
    let statement = sqlx::query(sql::COPY_MESSAGES)
        .bind(each(rows, |row| row.seq))
        .bind(each(rows, |row| row.id.as_slice()))
        .bind(each(rows, |row| day(row.accepted_at)))
        .bind(each(rows, |row| row.accepted_at))
        .bind(each(rows, |row| row.sender_kind.as_str()))
        .bind(each(rows, |row| row.sender.as_str()))
        .bind(each(rows, |row| row.kind.as_str()))
        .bind(each(rows, |row| small(row.form)))
        .bind(each(rows, |row| row.size))
        .bind(index(|row| Some(&row.dedup)))
        .bind(index(|row| Some(&row.fingerprint)))
        .bind(index(|row| row.subject.as_ref()))
        .bind(index(|row| row.key.as_ref()))
        .bind(index(|row| row.correlation.as_ref()))
        .bind(index(|row| row.barrier.as_ref()))
        .bind(each(rows, |row| row.first_pos))
        .bind(each(rows, positions))
        .bind(each(rows, |row| row.remains.as_slice()));
    exactly(connection, statement, rows.len(), "copy_messages")?;
    payloads(connection, rows)?;
    keys(connection, rows)
}

fn payloads(connection: &mut Connection, rows: &[Message]) -> Result<(), CommitError> {
    let there = rows.iter().filter_map(|row| row.content.as_ref().map(|content| (row, content)));
    let there: Vec<(&Message, &Content)> = there.collect();
    let statement = sqlx::query(sql::COPY_PAYLOADS)
        .bind(each(&there, |(row, _)| day(row.accepted_at)))
        .bind(each(&there, |(row, _)| row.seq))
        .bind(each(&there, |(_, content)| content.attributes.as_slice()))
        .bind(each(&there, |(_, content)| content.salt.stored().as_slice()))
        .bind(each(&there, |(_, content)| content.data.as_slice()));
    exactly(connection, statement, there.len(), "copy_payloads")
}

fn keys(connection: &mut Connection, rows: &[Message]) -> Result<(), CommitError> {
    // One statement puts a key once: where a window has passed within the batch, the later message has it.
    let held: HashMap<&Index, &Message> =
        rows.iter().filter(|row| row.holds_key).map(|row| (&row.dedup, row)).collect();
    let mut held: Vec<&Message> = held.into_values().collect();
    held.sort_unstable_by_key(|row| row.dedup);
    let statement = sqlx::query(sql::COPY_KEYS)
        .bind(each(&held, |row| row.dedup.as_slice()))
        .bind(each(&held, |row| row.seq))
        .bind(each(&held, |row| row.accepted_at));
    exactly(connection, statement, held.len(), "copy_keys")
}

fn deliveries(connection: &mut Connection, copied: &[Delivery]) -> Result<(), CommitError> {
    let rows: Vec<&Row> = copied.iter().map(|delivery| &delivery.row).collect();
    let mut values = Values::default();
    bind_rows(&mut values, &rows)
        .bind(each_ref(&rows, |row| row.id.as_bytes().as_slice()))
        .bind(each_ref(&rows, |row| row.message_seq))
        .bind(each_ref(&rows, |row| row.delivery.expires_at.map(Timestamp::as_micros)))
        .bind(each_ref(&rows, |row| bucket_of(row.lane.as_ref(), &row.id)))
        .bind(each(copied, |delivery| delivery.is_ready))
        .bind(each_ref(&rows, sender_of));
    exactly(connection, values.of(sql::COPY_DELIVERIES)?, rows.len(), "copy_deliveries")?;
    let leased = rows.iter().filter(|row| row.delivery.lease().is_some());
    let leased: Vec<i64> = leased.map(|row| row.pos).collect();
    let Some(group) = leased.first().copied() else { return Ok(()) };
    let statement = sqlx::query(sql::COPY_LEASES).bind(group).bind(leased);
    exactly(connection, statement, 1, "copy_leases")
}

fn details(connection: &mut Connection, rows: &[Detail]) -> Result<(), CommitError> {
    let statement = sqlx::query(sql::COPY_DETAILS)
        .bind(each(rows, |row| day(row.accepted_at)))
        .bind(each(rows, |row| row.delivery))
        .bind(each(rows, |row| row.leaf))
        .bind(each(rows, |row| row.body.as_slice()));
    exactly(connection, statement, rows.len(), "copy_details")
}

fn replies(connection: &mut Connection, rows: &[Reply]) -> Result<(), CommitError> {
    let statement = sqlx::query(sql::COPY_REPLIES)
        .bind(each(rows, |row| day(row.accepted_at)))
        .bind(each(rows, |row| row.delivery))
        .bind(each(rows, |row| row.body.as_slice()));
    exactly(connection, statement, rows.len(), "copy_replies")
}

fn states(connection: &mut Connection, rows: &[State]) -> Result<(), CommitError> {
    let statement = sqlx::query(STATES_PUT)
        .bind(each(rows, |row| row.adapter.as_str()))
        .bind(each(rows, |row| row.key.as_str()))
        .bind(each(rows, |row| row.value.as_slice()));
    exactly(connection, statement, rows.len(), "states_put")
}

fn entries(connection: &mut Connection, rows: &[Entries]) -> Result<(), CommitError> {
    let statement = sqlx::query(sql::COPY_ENTRIES)
        .bind(each(rows, |row| day(row.at)))
        .bind(each(rows, |row| whole(row.run.first)))
        .bind(each(rows, |row| row.count))
        .bind(each(rows, |row| row.run.bytes.as_slice()));
    exactly(connection, statement, rows.len(), "copy_entries")
}

fn day(at: i64) -> i32 {
    day_of(Timestamp::from_micros(at))
}

fn each<'r, R, T>(rows: &'r [R], column: impl Fn(&'r R) -> T) -> Vec<T> {
    rows.iter().map(column).collect()
}
