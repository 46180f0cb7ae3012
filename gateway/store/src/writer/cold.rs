//! Messages that a lease gives out and that are not at hand any more: read here while their pages are warm, for to ask a
//! reader costs two hand-overs between threads, which is more than the reading.

use gatepost_core::principal::{Actor, ActorKind};
use gatepost_core::{MessageId, Timestamp};
use rusqlite::{Connection, params};

use crate::call::ClaimedDelivery;
use crate::database::Cells;
use crate::ops::StoreError;
use crate::recent::{MESSAGE_BYTES_MAX, Recent, RecentMessage};
use crate::row::{MESSAGE_COLUMNS, form_of};
use crate::sql;

/// Bytes read for one lease; the rest is left to the readers, so that nobody waits long for the writer.
const COLD_BYTES_MAX: usize = 1024 * 1024;

/// Puts the messages of these deliveries beside those that were accepted lately. What is large, purged or damaged, or cannot be
/// read, is left to the readers, which say what is wrong with it.
pub(super) fn fetch(connection: &Connection, recent: &Recent, deliveries: &[ClaimedDelivery]) {
    let cold = recent.missing(deliveries.iter().map(|delivery| (delivery.message, delivery.message_seq)));
    if cold.is_empty() {
        return;
    }
    if let Err(error) = read(connection, &cold, |id, message| recent.keep([(id, message, 1)].into_iter())) {
        tracing::debug!(%error, "messages are left to a reader");
    }
}

fn read(
    connection: &Connection,
    seqs: &[i64],
    mut found: impl FnMut(MessageId, RecentMessage),
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(sql::MESSAGES_BY_SEQ)?;
    let mut rows =
        statement.query(params![sql::seq_list(seqs), seqs.len() as i64, MESSAGE_BYTES_MAX as i64])?;
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        if let Ok(Some((id, message))) = load(Cells::new(row)) {
            bytes += message.bytes();
            found(id, message);
        }
        if bytes > COLD_BYTES_MAX {
            break;
        }
    }
    Ok(())
}

/// A row of [`sql::MESSAGES_BY_SEQ`]; `None` if it has no payload or its sum does not fit.
fn load(mut cells: Cells<'_>) -> Result<Option<(MessageId, RecentMessage)>, StoreError> {
    let sound = cells.next_hold(MESSAGE_COLUMNS)?;
    let _seq: i64 = cells.take()?;
    let (id, accepted_at) = (MessageId::from_bytes(cells.take()?), Timestamp::from_micros(cells.take()?));
    let sender = cells.take_text()?.and_then(ActorKind::from_name).zip(cells.take_text()?);
    let _kind = cells.take_text()?;
    let (form, size) = (form_of(cells.take()?), cells.take::<i64>()?);
    let _sum: i64 = cells.take()?;
    let (attributes, salt, data) =
        (cells.take::<Vec<u8>>()?, cells.take::<Option<[u8; 32]>>()?, cells.take::<Option<Vec<u8>>>()?);
    let (true, Some((kind, name)), Some(form), Ok(size), Some(salt), Some(data)) =
        (sound, sender, form, u64::try_from(size), salt, data)
    else {
        return Ok(None);
    };
    let (attributes, data) = (attributes.into(), data.into());
    let sender = Actor::new(kind, name);
    Ok(Some((id, RecentMessage { sender, accepted_at, form, size, salt, attributes, data })))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gatepost_core::{DeliveryId, LeaseToken};
    use rusqlite::types::ToSql;

    use super::*;
    use crate::sum;

    const SALT: [u8; 32] = [7; 32];

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
        let rest: [&dyn ToSql; 10] = [
            &[0_u8; 16],
            &[0_u8; 16],
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
        fetch(&connection, &recent, &wanted);
        let found = recent.take((1..=6).map(id));
        let seqs: Vec<i64> = (1..=6).filter(|seq| found.contains_key(&id(*seq))).collect();
        assert_eq!(seqs, [1, 5]);
        let one = &found[&id(1)];
        assert_eq!(
            (&one.data[..], &one.attributes[..], one.salt, one.size),
            (&b"one"[..], &b"sealed"[..], SALT, 3)
        );
        assert_eq!((one.sender.kind, one.sender.name.as_str()), (ActorKind::App, "ehr"));
        assert!(recent.take((1..=6).map(id)).is_empty(), "for one lease, and no other");
    }
}
