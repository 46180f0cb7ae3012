//! Rows as the first pass finds them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use gatepost_core::{DeliveryId, MessageId};
use rusqlite::types::Value;

use super::damage::{Damage, Fate};
use super::rows::{FoundRow, Worth};
use super::table::{DELIVERY_SENDER, MESSAGE_DEDUP, Table, in_pieces};
use crate::keyring::WrappedTree;
use crate::leaves::Run;

/// A message whose row is there.
pub(super) struct KnownMessage {
    pub(super) id: [u8; 16],
    pub(super) dedup: Value,
}

/// A delivery whose row is there.
pub(super) struct KnownDelivery {
    pub(super) pos: i64,
    pub(super) message: i64,
    pub(super) queue: i64,
    pub(super) sender: Option<i64>,
}

/// A row of a message or a delivery that does not verify.
pub(super) struct Unsound {
    pub(super) table: Table,
    pub(super) row: Option<i64>,
    /// As it stands there, for what it is worth.
    pub(super) id: Option<[u8; 16]>,
    pub(super) column: &'static str,
}

/// Rows as the first pass finds them.
#[derive(Default)]
pub(super) struct Found {
    pub(super) store: Option<Vec<Value>>,
    pub(super) queues: BTreeMap<i64, Vec<Value>>,
    pub(super) messages: BTreeMap<i64, KnownMessage>,
    pub(super) deliveries: HashMap<[u8; 16], KnownDelivery>,
    pub(super) positions: HashSet<i64>,
    pub(super) keys: Vec<(Value, i64)>,
    /// Messages whose payloads stand in pieces: their numbers, and how many there must be.
    in_pieces: HashMap<[u8; 16], (i64, u32)>,
    /// The numbers of the sound pieces of each.
    pieces: HashMap<[u8; 16], HashSet<i64>>,
    /// Messages of whose payloads not all pieces are there.
    pub(super) in_bits: BTreeSet<i64>,
    pub(super) runs: BTreeMap<u64, Vec<u8>>,
    /// Trees of data keys; each stands there twice.
    pub(super) trees: BTreeMap<u64, WrappedTree>,
    /// Rows of trees that do not verify.
    unsound_trees: Vec<(Table, String, Option<u64>)>,
    pub(super) unsound: Vec<Unsound>,
    pub(super) damage: Vec<Damage>,
}

impl Found {
    pub(super) fn take(&mut self, row: FoundRow) {
        let FoundRow { table, row: number, values, worth } = row;
        let key = number.map_or_else(|| name_of(table, &values), |number| number.to_string());
        match &worth {
            Worth::Sound => {}
            Worth::Mended => {
                let id = id_of(table, &values);
                self.damage.push(Damage::row(table, key, id, Fate::Mended, "one bit had flipped"));
            }
            Worth::Damaged(column) => return self.take_damaged(table, number, key, values, column),
        }
        self.keep(table, values);
    }

    fn keep(&mut self, table: Table, values: Vec<Value>) {
        match (table, &values[..]) {
            (Table::Store, _) => self.store = Some(values),
            (Table::Queue, [Value::Integer(id), ..]) => drop(self.queues.entry(*id).or_insert(values)),
            (Table::Message, [Value::Integer(seq), Value::Blob(id), ..]) => {
                if let Ok(id) = id.as_slice().try_into() {
                    let message = KnownMessage { id, dedup: values[MESSAGE_DEDUP].clone() };
                    self.messages.entry(*seq).or_insert(message);
                }
                if let Some((id, pieces)) = in_pieces(&values) {
                    self.in_pieces.insert(id, (*seq, pieces.count));
                }
            }
            (Table::Piece, [_, Value::Blob(message), Value::Integer(number), ..]) => {
                if let Ok(message) = message.as_slice().try_into() {
                    self.pieces.entry(message).or_default().insert(*number);
                }
            }
            (
                Table::Delivery,
                [Value::Integer(pos), Value::Blob(id), Value::Integer(message), Value::Integer(queue), ..],
            ) => {
                if let Ok(id) = id.as_slice().try_into() {
                    let sender = match values.get(DELIVERY_SENDER) {
                        Some(Value::Integer(sender)) => Some(*sender),
                        _ => None,
                    };
                    let delivery = KnownDelivery { pos: *pos, message: *message, queue: *queue, sender };
                    self.deliveries.entry(id).or_insert(delivery);
                    self.positions.insert(*pos);
                }
            }
            (Table::Dedup, [key, Value::Integer(message)]) => self.keys.push((key.clone(), *message)),
            (Table::Leaf, [Value::Integer(first), Value::Blob(bytes), _]) => {
                self.runs.insert(first.cast_unsigned(), bytes.clone());
            }
            (
                Table::Keyring | Table::KeyringCopy,
                [Value::Integer(tree), Value::Integer(key), Value::Blob(body), ..],
            ) => {
                if let (Ok(tree), Ok(key)) = (u64::try_from(*tree), u32::try_from(*key)) {
                    self.trees.entry(tree).or_insert(WrappedTree { tree, key, body: body.clone() });
                }
            }
            _ => {}
        }
    }

    fn take_damaged(
        &mut self,
        table: Table,
        number: Option<i64>,
        key: String,
        values: Vec<Value>,
        column: &'static str,
    ) {
        let id = id_of(table, &values);
        match (table, column) {
            // What it says of itself verifies, its content does not.
            (Table::Message, "attributes" | "data") => {
                self.damage.push(Damage::row(
                    table,
                    key,
                    id,
                    Fate::Dead,
                    format!("its {column} cannot be opened"),
                ));
                self.keep(table, values);
            }
            (Table::Message, "sum_indexed") => {
                let why = "its idempotency key and what it is found by are damaged";
                self.damage.push(Damage::row(table, key, id, Fate::Lost, why));
                self.keep(table, values);
            }
            (Table::Delivery, "ready") => {
                self.damage.push(Damage::row(
                    table,
                    key,
                    id,
                    Fate::Rebuilt,
                    "when it may be leased is damaged",
                ));
                self.keep(table, values);
            }
            (Table::Message | Table::Delivery, _) => {
                let id = match values.get(1) {
                    Some(Value::Blob(id)) => id.as_slice().try_into().ok(),
                    _ => None,
                };
                self.unsound.push(Unsound { table, row: number, id, column });
            }
            (Table::Store | Table::Leaf, _) => {
                self.damage.push(Damage::row(
                    table,
                    key,
                    None,
                    Fate::Rebuilt,
                    format!("its {column} does not fit"),
                ));
            }
            (Table::Queue, _) => {
                let why = "a pause, an open breaker and what it counted are forgotten";
                self.damage.push(Damage::row(table, key, None, Fate::Lost, why));
            }
            (Table::Dedup, _) => {
                self.damage.push(Damage::row(table, key, None, Fate::Rebuilt, "it is not readable"));
            }
            (Table::Keyring | Table::KeyringCopy, _) => {
                let tree = number.and_then(|number| u64::try_from(number).ok());
                self.unsound_trees.push((table, key, tree));
            }
            // Its message is named, if it has one.
            (Table::Piece, _) => {
                let why = format!("its {column} does not fit");
                self.damage.push(Damage::row(table, key, None, Fate::Lost, why));
            }
            (Table::Detail | Table::Reply | Table::State, _) => {
                let why = format!("its {column} cannot be opened");
                self.damage.push(Damage::row(table, key, None, Fate::Lost, why));
            }
        }
    }

    /// What becomes of damaged trees: their twins have it all.
    pub(super) fn check_trees(&mut self) {
        for (table, key, tree) in std::mem::take(&mut self.unsound_trees) {
            let (fate, why) = match tree.is_some_and(|tree| self.trees.contains_key(&tree)) {
                true => (Fate::Rebuilt, "it stands there twice"),
                false => (Fate::Lost, "what is sealed with keys of it cannot be read any more"),
            };
            self.damage.push(Damage::row(table, key, None, fate, why));
        }
    }

    /// A payload in pieces is there when all of them are.
    pub(super) fn check_pieces(&mut self) {
        for (id, (seq, count)) in std::mem::take(&mut self.in_pieces) {
            let there = self.pieces.get(&id);
            if !(1..=i64::from(count)).all(|number| there.is_some_and(|there| there.contains(&number))) {
                self.in_bits.insert(seq);
                let id = Some(id_text(Table::Message, id));
                let why = "a piece of its data is damaged or missing";
                self.damage.push(Damage::row(Table::Message, seq, id, Fate::Dead, why));
            }
        }
        self.pieces = HashMap::new();
    }

    /// Idempotency keys must be those of their messages.
    pub(super) fn check_keys(&mut self) {
        for (key, message) in std::mem::take(&mut self.keys) {
            if self.messages.get(&message).is_none_or(|known| known.dedup != key) {
                let why = "it is not the key of its message";
                self.damage.push(Damage::row(Table::Dedup, message, None, Fate::Rebuilt, why));
            }
        }
    }

    pub(super) fn leaf_rows(&mut self) -> BTreeMap<u64, Vec<u8>> {
        let mut rows = BTreeMap::new();
        for (first, bytes) in std::mem::take(&mut self.runs) {
            let run = Run { first, bytes };
            match run.leaves() {
                Ok(leaves) => rows.extend(leaves.map(|(index, leaf)| (index, leaf.to_vec()))),
                Err(error) => {
                    self.damage.push(Damage::row(Table::Leaf, first, None, Fate::Lost, error.to_string()));
                }
            }
        }
        rows
    }
}

fn name_of(table: Table, values: &[Value]) -> String {
    match (table, values) {
        (Table::State, [Value::Text(adapter), Value::Text(key), ..]) => format!("{adapter}/{key}"),
        (_, [.., Value::Integer(message)]) => message.to_string(),
        _ => "?".to_owned(),
    }
}

fn id_of(table: Table, values: &[Value]) -> Option<String> {
    let id: [u8; 16] = match (table, values.get(1)) {
        (Table::Message | Table::Delivery, Some(Value::Blob(id))) => id.as_slice().try_into().ok()?,
        _ => return None,
    };
    Some(id_text(table, id))
}

pub(super) fn id_text(table: Table, id: [u8; 16]) -> String {
    if table == Table::Message {
        MessageId::from_bytes(id).to_string()
    } else {
        DeliveryId::from_bytes(id).to_string()
    }
}
