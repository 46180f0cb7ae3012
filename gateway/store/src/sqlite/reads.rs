//! Reads of the writer that are more than a statement.

use gatepost_core::principal::{Actor, ActorKind};
use gatepost_core::{DeliveryId, MessageId, Timestamp};
use rusqlite::{Connection, params};

use super::connection::{Cells, rows};
use super::row::{DELIVERY_SUMMED, INDEXED_COLUMNS, MESSAGE_COLUMNS};
use crate::backend::{CommitError, KeyUse, More};
use crate::ops::StoreError;
use crate::recent::{MESSAGE_BYTES_MAX, RecentMessage};
use crate::row::form_of;
use crate::seal::{InPieces, Index, Place, Salt};
use crate::sql;
use crate::writer::Memory;

/// The message that used a key last.
pub(super) fn key_used(
    connection: &Connection,
    memory: &Memory,
    key: &Index,
) -> Result<Option<KeyUse>, CommitError> {
    let seq = match memory.keys.message_of(key) {
        Some(seq) => Some(seq),
        None => rows(connection, sql::KEY_FIND, [key], |mut cells| cells.take())?.pop(),
    };
    let Some(seq) = seq else { return Ok(None) };
    let found = rows(connection, sql::KEY_OF_MESSAGE, [seq], |cells| used_key(cells, key))?;
    let Some(&(fingerprint, id, accepted_at)) = found.first() else {
        return Err(Place { table: "dedup", column: "message", row: seq }.corrupt().into());
    };
    Ok(Some(KeyUse {
        key: *key,
        fingerprint,
        message: MessageId::from_bytes(id),
        accepted_at: Timestamp::from_micros(accepted_at),
        deliveries: deliveries_of(connection, seq)?,
    }))
}

/// The deliveries of a message, each with its queue and the number of its state.
fn deliveries_of(connection: &Connection, seq: i64) -> Result<Vec<(DeliveryId, i64, i64)>, CommitError> {
    rows(connection, sql::DELIVERIES_OF_MESSAGE, [seq], |mut cells| {
        let sound = cells.next_hold_with_added(DELIVERY_SUMMED)?;
        let pos = cells.take()?;
        if !sound {
            return Err(Place { table: "delivery", column: "sum", row: pos }.corrupt());
        }
        let (id, _message, queue): (_, i64, _) = (cells.take()?, cells.take()?, cells.take()?);
        let _lane: Option<Index> = cells.take()?;
        Ok((DeliveryId::from_bytes(id), queue, cells.take()?))
    })
}

/// Fingerprint, id and time of the message that used `key`, if it did and both its sums say so.
fn used_key(mut cells: Cells<'_>, key: &Index) -> Result<(Index, [u8; 16], i64), StoreError> {
    let indexed = cells.next_hold_with_added(INDEXED_COLUMNS)?;
    let (seq, dedup): (i64, Index) = (cells.take()?, cells.take()?);
    let place = |column| Place { table: "message", column, row: seq };
    if !indexed {
        return Err(place("sum_indexed").corrupt());
    }
    if dedup != *key {
        return Err(Place { table: "dedup", ..place("message") }.corrupt());
    }
    let fingerprint = cells.take()?;
    for _ in ["subject", "key", "correlation", "barrier"] {
        cells.take::<Option<Index>>()?;
    }
    let _sum: i64 = cells.take()?;
    if !cells.next_hold(MESSAGE_COLUMNS)? {
        return Err(place("sum").corrupt());
    }
    let _seq: i64 = cells.take()?;
    Ok((fingerprint, cells.take()?, cells.take()?))
}

pub(super) fn messages_small(
    connection: &Connection,
    seqs: &[i64],
    found: &mut dyn FnMut(MessageId, RecentMessage) -> More,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(sql::MESSAGES_BY_SEQ)?;
    let mut rows =
        statement.query(params![sql::seq_list(seqs), seqs.len() as i64, MESSAGE_BYTES_MAX as i64])?;
    while let Some(row) = rows.next()? {
        if let Ok(Some((id, message))) = load(Cells::new(row))
            && found(id, message) == More::No
        {
            break;
        }
    }
    Ok(())
}

/// A row of [`sql::MESSAGES_BY_SEQ`]; `None` if it has no payload of its own or its sum does not fit.
fn load(mut cells: Cells<'_>) -> Result<Option<(MessageId, RecentMessage)>, StoreError> {
    let sound = cells.next_hold(MESSAGE_COLUMNS)?;
    let _seq: i64 = cells.take()?;
    let (id, accepted_at) = (MessageId::from_bytes(cells.take()?), Timestamp::from_micros(cells.take()?));
    let sender = cells.take_text()?.and_then(ActorKind::from_name).zip(cells.take_text()?);
    let _kind = cells.take_text()?;
    let (form, size) = (form_of(cells.take()?), cells.take::<i64>()?);
    let _sum: i64 = cells.take()?;
    let (attributes, salt, data) =
        (cells.take::<Vec<u8>>()?, cells.take::<Option<_>>()?, cells.take::<Option<Vec<u8>>>()?);
    // A reader puts together what stands in pieces.
    let data = data.filter(|data| !InPieces::is(data));
    let (true, Some((kind, name)), Some(form), Ok(size), Some(salt), Some(data)) =
        (sound, sender, form, u64::try_from(size), salt, data)
    else {
        return Ok(None);
    };
    let (attributes, data) = (attributes.into(), data.into());
    let salt = Salt::from_stored(salt);
    let sender = Actor::new(kind, name);
    Ok(Some((id, RecentMessage { sender, accepted_at, form, size, salt, attributes, data })))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use std::path::Path;

    use gatepost_core::{DeliveryId, LeaseToken};
    use rusqlite::types::ToSql;

    use super::*;
    use crate::call::ClaimedDelivery;
    use crate::data_dir::DataDir;
    use crate::recent::Recent;
    use crate::seal::SALT_BYTES;
    use crate::sqlite::Sqlite;
    use crate::sum;
    use crate::writer::fetch;

    const SALT: [u8; SALT_BYTES] = [7; SALT_BYTES];

    fn id(seq: i64) -> MessageId {
        MessageId::from_bytes([u8::try_from(seq).unwrap(); 16])
    }

    fn claimed(seq: i64) -> ClaimedDelivery {
        ClaimedDelivery {
            delivery: DeliveryId::from_bytes([9; 16]),
            token: LeaseToken::from_bytes([9; 16]),
            attempt: 1,
            doubt: false,
            replayed: false,
            lease: Duration::ZERO,
            message: id(seq),
            message_seq: seq,
        }
    }

    fn add(connection: &Connection, seq: i64, data: Option<&[u8]>, sum_is_off_by: i64) {
        let (message, size) = (id(seq), data.map_or(0, <[u8]>::len) as i64);
        let columns: [&dyn ToSql; MESSAGE_COLUMNS] =
            [&seq, message.as_bytes(), &5, &"app", &"ehr", &"t", &1, &size];
        let sum = sum::of(&columns).unwrap() + sum_is_off_by;
        let salt = data.map(|_| &SALT);
        let rest: [&dyn ToSql; 11] = [
            &[0_u8; 16],
            &[0_u8; 16],
            &None::<i64>,
            &None::<i64>,
            &None::<i64>,
            &None::<i64>,
            b"sealed",
            &salt,
            &data,
            &sum,
            &0,
        ];
        let mut statement = connection.prepare(sql::MESSAGE_ADD).unwrap();
        for (number, value) in (1..).zip(columns.iter().chain(&rest)) {
            statement.raw_bind_parameter(number, value).unwrap();
        }
        statement.raw_execute().unwrap();
    }

    #[test]
    fn what_is_not_at_hand_is_brought_if_it_is_sound_and_small() {
        let connection = Connection::open_in_memory().unwrap();
        for (_, migration) in sql::MIGRATIONS {
            connection.execute_batch(migration).unwrap();
        }
        add(&connection, 1, Some(b"one"), 0);
        add(&connection, 2, Some(b"damaged"), 1);
        add(&connection, 3, None, 0);
        add(&connection, 4, Some(&[0; MESSAGE_BYTES_MAX + 1]), 0);
        add(&connection, 5, Some(b"five"), 0);
        let recent = Recent::default();
        let wanted: Vec<_> = [1, 2, 3, 4, 5, 6, 1].into_iter().map(claimed).collect();
        let mut database = Sqlite::new(connection, DataDir::new(Path::new("/nowhere")), None);
        fetch(&mut database, &recent, &wanted, i64::MAX);
        let found = recent.take((1..=6).map(id));
        let seqs: Vec<i64> = (1..=6).filter(|seq| found.contains_key(&id(*seq))).collect();
        assert_eq!(seqs, [1, 5]);
        let one = &found[&id(1)];
        assert_eq!(
            (&one.data[..], &one.attributes[..], *one.salt.stored(), one.size),
            (&b"one"[..], &b"sealed"[..], SALT, 3)
        );
        assert_eq!((one.sender.kind, one.sender.name.as_str()), (ActorKind::App, "ehr"));
        assert!(recent.take((1..=6).map(id)).is_empty(), "for one lease, and no other");
    }
}
