//! How a session stands in the adapter's state.
//!
//! | key | value |
//! |---|---|
//! | `n/SESSION` | [`Numbers`] as JSON |
//! | `m/SESSION/EPOCH/SEQ` | a sent message: expiry in milliseconds since 1970 or nothing, a line feed, the message |
//! | `p/SESSION/EPOCH/SEQ` | [`Pending`] as JSON: the delivery that waits for proof of that message |
//! | `o/SESSION/EPOCH/SEQ` | [`Order`] as JSON: that delivery has been settled, and the order that it began lives on |
//! | `j/SESSION/EPOCH/SEQ` | [`Refusal`] as JSON: the partner has still to be told that this message of its is not taken |
//! | `k/SESSION/DELIVERY` | [`Verdict`] as JSON: an outcome that the gateway has not taken yet |

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use uuid::Uuid;

use super::Verdict;
use super::known::Known;
use super::numbers::Numbers;
use super::orders::{Order, Orders};
use super::outbox::{Outbox, Pending, Place, Record};
use super::owed::{Owed, Refusal};

/// The state of one session cannot be read: somebody else wrote it, or a newer version of this program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the adapter's state under `{0}` cannot be read")]
pub(crate) struct Unreadable(pub(crate) String);

pub(crate) fn numbers_key(session: &str) -> String {
    format!("n/{session}")
}

pub(crate) fn message_key(session: &str, (epoch, seq): Place) -> String {
    format!("m/{session}/{epoch}/{seq}")
}

pub(crate) fn pending_key(session: &str, (epoch, seq): Place) -> String {
    format!("p/{session}/{epoch}/{seq}")
}

pub(super) fn order_key(session: &str, (epoch, seq): Place) -> String {
    format!("o/{session}/{epoch}/{seq}")
}

pub(super) fn owed_key(session: &str, (epoch, seq): Place) -> String {
    format!("j/{session}/{epoch}/{seq}")
}

/// Whether it is a session's numbers.
pub(crate) fn is_numbers(key: &str) -> bool {
    key.starts_with("n/")
}

/// Whether it is of a delivery that waits for proof.
pub(crate) fn is_pending(key: &str) -> bool {
    key.starts_with("p/")
}

/// Whether something is owed under this key.
pub(crate) fn is_owed(key: &str) -> bool {
    key.starts_with("j/")
}

pub(crate) fn known_key(session: &str, delivery: Uuid) -> String {
    format!("k/{session}/{delivery}")
}

pub(crate) fn message_value(record: &Record) -> Vec<u8> {
    let mut value = record.expires.map(|at| at.to_string()).unwrap_or_default().into_bytes();
    value.push(b'\n');
    value.extend_from_slice(&record.bytes);
    value
}

pub(crate) fn pending_value(pending: &Pending) -> Vec<u8> {
    serde_json::json!(pending).to_string().into_bytes()
}

pub(super) fn order_value(order: &Order) -> Vec<u8> {
    serde_json::json!(order).to_string().into_bytes()
}

fn read_message(value: &[u8]) -> Option<Record> {
    let end = memchr::memchr(b'\n', value)?;
    let (expires, bytes) = (std::str::from_utf8(&value[..end]).ok()?, &value[end + 1..]);
    let expires = if expires.is_empty() { None } else { Some(expires.parse().ok()?) };
    Some(Record { bytes: Bytes::copy_from_slice(bytes), expires, pending: None })
}

/// Longest key of a session with an epoch and a number, or with a delivery.
pub(super) fn bytes_max(session: &str) -> usize {
    session.len() + "m///".len() + 2 * "18446744073709551615".len()
}

/// What a session left behind.
pub(super) struct Restored {
    pub(super) numbers: Numbers,
    pub(super) outbox: Outbox,
    pub(super) known: Known,
    pub(super) orders: Orders,
    pub(super) owed: Owed,
}

/// Reads it from the adapter's state; numbers that begin where there is nothing yet.
pub(super) fn restore(session: &str, state: &BTreeMap<String, Vec<u8>>) -> Result<Restored, Unreadable> {
    let unreadable = |key: &str| Unreadable(key.to_owned());
    let key = numbers_key(session);
    let numbers: Numbers = match state.get(&key) {
        Some(value) => serde_json::from_slice(value).map_err(|_| unreadable(&key))?,
        None => Numbers::default(),
    };
    let (mut outbox, mut orders) = (Outbox::new(session), Orders::new(session));
    for (rest, key, value) in under(state, &format!("o/{session}/")) {
        let place = place(rest).ok_or_else(|| unreadable(key))?;
        orders.insert(place, serde_json::from_slice(value).map_err(|_| unreadable(key))?);
    }
    for (rest, key, value) in under(state, &format!("m/{session}/")) {
        let place = place(rest).ok_or_else(|| unreadable(key))?;
        let mut record = read_message(value).ok_or_else(|| unreadable(key))?;
        if let Some(value) = state.get(&pending_key(session, place)) {
            let pending: Pending = serde_json::from_slice(value).map_err(|_| unreadable(key))?;
            record.pending = Some(pending);
        }
        outbox.insert(place, record);
    }
    let mut known = Known::default();
    for (delivery, key, value) in under(state, &format!("k/{session}/")) {
        let delivery = delivery.parse().map_err(|_| unreadable(key))?;
        let verdict: Verdict = serde_json::from_slice(value).map_err(|_| unreadable(key))?;
        known.insert(delivery, verdict, key.len() + value.len());
    }
    let mut owed = Owed::default();
    for (rest, key, value) in under(state, &format!("j/{session}/")) {
        let place = place(rest).ok_or_else(|| unreadable(key))?;
        let refusal: Refusal = serde_json::from_slice(value).map_err(|_| unreadable(key))?;
        owed.insert(place, refusal);
    }
    Ok(Restored { numbers, outbox, known, orders, owed })
}

fn place(text: &str) -> Option<Place> {
    let (epoch, seq) = text.split_once('/')?;
    Some((epoch.parse().ok()?, seq.parse().ok()?))
}

/// What stands under a prefix: the rest of the key, the key, the value.
fn under<'a>(
    state: &'a BTreeMap<String, Vec<u8>>,
    prefix: &str,
) -> impl Iterator<Item = (&'a str, &'a str, &'a [u8])> {
    let from = state.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
    from.map_while(move |(key, value)| Some((key.strip_prefix(prefix)?, key.as_str(), value.as_slice())))
}
