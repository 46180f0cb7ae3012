//! The tables, and whether a row of one of them is what was written: its checksum holds, and its seals open.

use rusqlite::types::{ToSql, Value};

use super::page::{Cell, values};
use crate::seal::{InPieces, Owner, SALT_BYTES, Salt, Vault};
use crate::sqlite::row::{
    DELIVERY_SUMMED, INDEXED_COLUMNS, KEYRING_COLUMNS, MESSAGE_COLUMNS, PIECE_COLUMNS, QUEUE_COLUMNS,
    STORE_COLUMNS,
};
use crate::sum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Table {
    Store,
    Queue,
    Message,
    Dedup,
    Delivery,
    Detail,
    Reply,
    State,
    Leaf,
    Keyring,
    KeyringCopy,
    Piece,
}

/// Columns of a message by their place.
pub(super) const MESSAGE_SUM: usize = MESSAGE_COLUMNS;
pub(super) const MESSAGE_DEDUP: usize = MESSAGE_SUM + 1;
pub(super) const MESSAGE_SUM_INDEXED: usize = MESSAGE_DEDUP + INDEXED_COLUMNS - 1;
pub(super) const MESSAGE_ATTRIBUTES: usize = MESSAGE_SUM_INDEXED + 1;
pub(super) const MESSAGE_SALT: usize = MESSAGE_ATTRIBUTES + 1;
pub(super) const MESSAGE_DATA: usize = MESSAGE_SALT + 1;
/// The column that the table got later: rows that are older end before it.
pub(super) const MESSAGE_BARRIER: usize = MESSAGE_DATA + 1;
/// The one column of a delivery that its sum does not cover.
pub(super) const DELIVERY_READY: usize = 8;
/// The last one that every sum covers, and the sum.
pub(super) const DELIVERY_SENDER: usize = DELIVERY_SUMMED;
const DELIVERY_SUM: usize = DELIVERY_SENDER + 1;
/// As [`MESSAGE_BARRIER`].
const DELIVERY_BARRIER: usize = DELIVERY_SUM + 1;

impl Table {
    pub(super) const ALL: [Self; 12] = [
        Self::Store,
        Self::Queue,
        Self::Message,
        Self::Dedup,
        Self::Delivery,
        Self::Detail,
        Self::Reply,
        Self::State,
        Self::Leaf,
        Self::Keyring,
        Self::KeyringCopy,
        Self::Piece,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Queue => "queue",
            Self::Message => "message",
            Self::Dedup => "dedup",
            Self::Delivery => "delivery",
            Self::Detail => "detail",
            Self::Reply => "reply",
            Self::State => "adapter_state",
            Self::Leaf => "leaf",
            Self::Keyring => "keyring",
            Self::KeyringCopy => "keyring_copy",
            Self::Piece => "piece",
        }
    }

    pub(super) const fn columns(self) -> usize {
        match self {
            Self::Store => STORE_COLUMNS + 1,
            Self::Queue => QUEUE_COLUMNS + 1,
            Self::Message => MESSAGE_BARRIER + 1,
            Self::Delivery => DELIVERY_BARRIER + 1,
            Self::Detail | Self::State | Self::Leaf => 3,
            Self::Keyring | Self::KeyringCopy => KEYRING_COLUMNS + 1,
            Self::Dedup | Self::Reply => 2,
            Self::Piece => PIECE_COLUMNS + 2,
        }
    }

    /// Whether a row may have so many: one that was written before the table got a column ends before that.
    pub(super) const fn has_columns(self, count: usize) -> bool {
        let older = match self {
            Self::Message => MESSAGE_BARRIER,
            Self::Delivery => DELIVERY_BARRIER,
            _ => self.columns(),
        };
        count == self.columns() || count == older
    }

    /// Whether its rows have a number; the others are kept in the order of their key.
    pub(super) const fn has_row_numbers(self) -> bool {
        !matches!(self, Self::Dedup | Self::State)
    }
}

/// The table as whose row a cell verifies, and the row.
pub(super) fn table_of(cell: &Cell) -> Option<(Table, Vec<Value>)> {
    let values = values(cell.record.as_deref()?, cell.row)?;
    let mut fitting = Table::ALL.into_iter().filter(|table| {
        // A key alone has nothing that tells it from chance.
        *table != Table::Dedup && table.has_row_numbers() == cell.row.is_some()
    });
    Some((fitting.find(|table| verdict(*table, &values).is_none())?, values))
}

/// The column that is not what was written, or none.
pub(super) fn verdict(table: Table, values: &[Value]) -> Option<&'static str> {
    if !table.has_columns(values.len()) {
        return Some("record");
    }
    let opens = |sealed: &Value, owner| match sealed {
        Value::Blob(sealed) => Vault::is_sound(sealed, owner),
        _ => false,
    };
    let (sound, column) = match table {
        Table::Store => (summed(&values[..STORE_COLUMNS], &values[STORE_COLUMNS]), "sum"),
        Table::Queue => (summed(&values[..QUEUE_COLUMNS], &values[QUEUE_COLUMNS]), "sum"),
        Table::Leaf => (summed(&values[..2], &values[2]), "sum"),
        Table::Keyring | Table::KeyringCopy => {
            (summed(&values[..KEYRING_COLUMNS], &values[KEYRING_COLUMNS]), "sum")
        }
        Table::Piece => (summed(&values[1..=PIECE_COLUMNS], &values[PIECE_COLUMNS + 1]), "sum"),
        Table::Delivery => {
            let covered: Vec<&Value> = values[..DELIVERY_READY]
                .iter()
                .chain(&values[DELIVERY_READY + 1..=DELIVERY_SENDER])
                .chain(values.get(DELIVERY_BARRIER).filter(|barrier| **barrier != Value::Null))
                .collect();
            let summed = is_sum(&covered, &values[DELIVERY_SUM]);
            let ready = &values[DELIVERY_READY];
            if summed && *ready != Value::Null && *ready != values[DELIVERY_READY - 1] {
                return Some("ready");
            }
            (summed, "sum")
        }
        Table::Message => return message_verdict(values),
        // Nothing is known of it but by its message.
        Table::Dedup => (matches!(values, [Value::Blob(_), Value::Integer(_)]), "key"),
        Table::Detail => match values {
            [Value::Integer(leaf), Value::Integer(delivery), body] => {
                (opens(body, Owner::Detail { leaf: *leaf, delivery: *delivery }), "body")
            }
            _ => (false, "body"),
        },
        Table::Reply => match values {
            [Value::Integer(delivery), body] => (opens(body, Owner::Reply { delivery: *delivery }), "body"),
            _ => (false, "body"),
        },
        Table::State => match values {
            [Value::Text(adapter), Value::Text(key), value] => {
                (opens(value, Owner::State { adapter, key }), "value")
            }
            _ => (false, "value"),
        },
    };
    (!sound).then_some(column)
}

/// The message whose payload stands in pieces, and how many.
pub(super) fn in_pieces(values: &[Value]) -> Option<([u8; 16], InPieces)> {
    let (Value::Blob(id), Value::Blob(salt), Value::Blob(data)) =
        (values.get(1)?, values.get(MESSAGE_SALT)?, values.get(MESSAGE_DATA)?)
    else {
        return None;
    };
    let (message, salt) = (id.as_slice().try_into().ok()?, salt.as_slice().try_into().ok()?);
    let owner = Owner::Data { message: &message, salt: &Salt::from_stored(salt) };
    Some((message, InPieces::read(data, owner)?))
}

fn message_verdict(values: &[Value]) -> Option<&'static str> {
    if !summed(&values[..MESSAGE_SUM], &values[MESSAGE_SUM]) {
        return Some("sum");
    }
    content_verdict(values).or_else(|| {
        let indexed: Vec<&Value> = indexed(values).collect();
        (!is_sum(&indexed, &values[MESSAGE_SUM_INDEXED])).then_some("sum_indexed")
    })
}

/// What the second sum of a message covers.
pub(super) fn indexed(values: &[Value]) -> impl Iterator<Item = &Value> {
    let barrier = values.get(MESSAGE_BARRIER).filter(|barrier| **barrier != Value::Null);
    values[..1].iter().chain(&values[MESSAGE_DEDUP..MESSAGE_SUM_INDEXED]).chain(barrier)
}

fn content_verdict(values: &[Value]) -> Option<&'static str> {
    let Value::Blob(id) = &values[1] else { return Some("id") };
    let Ok(message) = <&[u8; 16]>::try_from(id.as_slice()) else { return Some("id") };
    let attributes = match &values[MESSAGE_ATTRIBUTES] {
        Value::Blob(sealed) => Vault::is_sound(sealed, Owner::Attributes { message }),
        _ => false,
    };
    if !attributes {
        return Some("attributes");
    }
    let data = match (&values[MESSAGE_SALT], &values[MESSAGE_DATA]) {
        (Value::Null, Value::Null) => true,
        (Value::Blob(salt), Value::Blob(sealed)) => {
            <[u8; SALT_BYTES]>::try_from(salt.as_slice()).is_ok_and(|salt| {
                Vault::is_sound(sealed, Owner::Data { message, salt: &Salt::from_stored(salt) })
            })
        }
        _ => false,
    };
    (!data).then_some("data")
}

fn summed(values: &[Value], sum: &Value) -> bool {
    is_sum(&values.iter().collect::<Vec<_>>(), sum)
}

fn is_sum(values: &[&Value], found: &Value) -> bool {
    let values: Vec<&dyn ToSql> = values.iter().map(|value| *value as &dyn ToSql).collect();
    sum::of(&values).is_ok_and(|sum| *found == Value::Integer(sum))
}
