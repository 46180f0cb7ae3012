//! The rows of the new database: those that are sound, and those that the log makes good.

use std::collections::BTreeMap;

use gatepost_core::{DeliveryId, MessageId};
use rusqlite::params_from_iter;
use rusqlite::types::Value;

use super::super::record::RecordedMessage;
use super::super::rows::{FoundRow, Rows, Worth};
use super::super::table::{
    DELIVERY_READY, MESSAGE_ATTRIBUTES, MESSAGE_BARRIER, MESSAGE_DATA, MESSAGE_DEDUP, MESSAGE_SALT,
    MESSAGE_SUM_INDEXED, Table, indexed,
};
use super::super::{Damage, Fate, SalvageError, at};
use super::{Building, sum_of};
use crate::keyring::WrappedTree;
use crate::seal::{Owner, locator_of};
use crate::sql;

impl Building<'_> {
    pub(super) fn copy_rows(&mut self) -> Result<(), SalvageError> {
        let survey = self.survey;
        let mut failed = None;
        let read = Rows::new(&survey.image).read(&mut |row| {
            self.copy_row(row).map_err(|error| {
                failed = Some(error);
                std::io::ErrorKind::Other.into()
            })
        });
        match (failed, read) {
            (Some(error), _) => Err(error),
            (None, read) => read.map_err(at(&survey.data.database())),
        }
    }

    /// The trees of data keys that can be unwrapped; nothing else is of use.
    pub(super) fn keep_trees(&mut self) -> Result<(), SalvageError> {
        let learnt = |tree: &&WrappedTree| self.vault.learn(tree).is_ok();
        let trees: Vec<WrappedTree> = self.survey.trees.values().filter(learnt).cloned().collect();
        self.add_trees(&trees)
    }

    /// Those with which something has been sealed anew.
    pub(super) fn keep_new_trees(&mut self) -> Result<(), SalvageError> {
        let trees = self.vault.unsaved().map_err(|error| SalvageError::Database(error.to_string()))?;
        self.add_trees(&trees)
    }

    fn add_trees(&self, trees: &[WrappedTree]) -> Result<(), SalvageError> {
        for WrappedTree { tree, key, body } in trees {
            let mut values = vec![
                Value::Integer(i64::try_from(*tree).unwrap_or(i64::MAX)),
                Value::Integer(i64::from(*key)),
                Value::Blob(body.clone()),
            ];
            values.push(Value::Integer(sum_of(values.iter())?));
            self.insert(Table::Keyring, &values)?;
            self.insert(Table::KeyringCopy, &values)?;
        }
        Ok(())
    }

    /// What is sound and sealed with a key that is gone is damaged all the same.
    fn readable(&self, table: Table, values: &[Value], worth: Worth) -> Worth {
        if !matches!(worth, Worth::Sound | Worth::Mended) {
            return worth;
        }
        let sealed: &[(usize, &'static str)] = match table {
            Table::Message => &[(MESSAGE_ATTRIBUTES, "attributes"), (MESSAGE_DATA, "data")],
            Table::Detail => &[(2, "body")],
            Table::Reply => &[(1, "body")],
            Table::State => &[(2, "value")],
            _ => &[],
        };
        let is_lost = |column: usize| match values.get(column) {
            Some(Value::Blob(sealed)) => {
                locator_of(sealed).is_some_and(|locator| !self.vault.knows(locator.tree))
            }
            _ => false,
        };
        match sealed.iter().find(|(column, _)| is_lost(*column)) {
            Some((_, name)) => Worth::Damaged(name),
            None => worth,
        }
    }

    fn copy_row(&mut self, row: FoundRow) -> Result<(), SalvageError> {
        let FoundRow { table, row, mut values, worth } = row;
        let in_bits = table == Table::Message && row.is_some_and(|seq| self.survey.in_bits.contains(&seq));
        let worth = match self.readable(table, &values, worth) {
            Worth::Sound | Worth::Mended if in_bits => Worth::Damaged("data"),
            worth => worth,
        };
        let sound = worth == Worth::Sound || worth == Worth::Mended;
        match table {
            // They are made anew from the others.
            Table::Store | Table::Queue | Table::Dedup | Table::Leaf => return Ok(()),
            // Those of which it says that nothing has been accepted are not needed.
            Table::Piece => {
                if !sound || values.get(2) == Some(&Value::Integer(0)) {
                    return Ok(());
                }
            }
            // They stand there already.
            Table::Keyring | Table::KeyringCopy => return Ok(()),
            Table::Message => {
                values.resize(table.columns(), Value::Null);
                match worth {
                    Worth::Damaged("attributes" | "data" | "sum_indexed") => {
                        self.mend_message(&mut values, worth)?
                    }
                    Worth::Damaged(_) => return Ok(()),
                    Worth::Sound | Worth::Mended => {}
                }
            }
            Table::Delivery => {
                if !(sound || worth == Worth::Damaged("ready")) {
                    return Ok(());
                }
                values.resize(table.columns(), Value::Null);
                let unordered = values[4] == Value::Null;
                values[DELIVERY_READY] =
                    if unordered { values[DELIVERY_READY - 1].clone() } else { Value::Null };
            }
            // They belong to entries of the log.
            Table::Detail if !self.continued => return Ok(()),
            Table::Detail | Table::Reply | Table::State => {
                if !sound {
                    return Ok(());
                }
            }
        }
        self.insert(table, &values)
    }

    pub(super) fn insert(&self, table: Table, values: &[Value]) -> Result<(), SalvageError> {
        let places = vec!["?"; values.len()].join(", ");
        let statement = format!("INSERT OR IGNORE INTO {} VALUES ({places})", table.name());
        self.connection.prepare_cached(&statement)?.execute(params_from_iter(values))?;
        Ok(())
    }

    /// Takes from a message what does not verify.
    fn mend_message(&mut self, values: &mut [Value], worth: Worth) -> Result<(), SalvageError> {
        let (Value::Integer(seq), Value::Blob(id)) = (&values[0], &values[1]) else { return Ok(()) };
        let (seq, id) = (*seq, id.clone());
        let Ok(message) = <&[u8; 16]>::try_from(id.as_slice()) else { return Ok(()) };
        if worth != Worth::Damaged("sum_indexed") {
            let kind = match &values[5] {
                Value::Text(kind) => kind.clone(),
                _ => String::new(),
            };
            values[MESSAGE_ATTRIBUTES] = Value::Blob(self.remains(message, &kind)?);
            values[MESSAGE_SALT] = Value::Null;
            values[MESSAGE_DATA] = Value::Null;
            self.emptied.insert(seq);
        }
        if values[MESSAGE_SUM_INDEXED] != Value::Integer(sum_of(indexed(values))?) {
            self.forget_index(values)?;
        }
        Ok(())
    }

    /// A message's idempotency key and what it is found by, in a form that nothing matches.
    fn forget_index(&self, values: &mut [Value]) -> Result<(), SalvageError> {
        for column in [MESSAGE_DEDUP, MESSAGE_DEDUP + 1] {
            values[column] = values[1].clone();
        }
        for value in &mut values[MESSAGE_DEDUP + 2..MESSAGE_SUM_INDEXED] {
            *value = Value::Null;
        }
        if let Some(barrier) = values.get_mut(MESSAGE_BARRIER) {
            *barrier = Value::Null;
        }
        values[MESSAGE_SUM_INDEXED] = Value::Integer(sum_of(indexed(values))?);
        Ok(())
    }

    /// What is left of an event, sealed: which message it was.
    fn remains(&self, message: &[u8; 16], kind: &str) -> Result<Vec<u8>, SalvageError> {
        let id = MessageId::from_bytes(*message).to_string();
        let kind = if kind.is_empty() { "unknown" } else { kind };
        let event =
            serde_json::json!({"specversion": "1.0", "id": id, "source": "gatepost:salvage", "type": kind});
        let sealed = self.vault.seal(event.to_string().as_bytes(), Owner::Attributes { message });
        sealed.map_err(|error| SalvageError::Database(error.to_string()))
    }

    /// Rows for messages that only the log knows: they had been accepted, and it must be seen what became of them.
    pub(super) fn place_messages(&mut self) -> Result<(), SalvageError> {
        if !self.continued {
            return Ok(());
        }
        let survey = self.survey;
        let numbers: BTreeMap<[u8; 16], i64> = survey
            .record
            .messages_by_delivery
            .iter()
            .filter_map(|(delivery, message)| Some((*message, survey.deliveries.get(delivery)?.message)))
            .collect();
        let mut next = numbers.values().copied().fold(survey.last.0, i64::max) + 1;
        for (id, recorded) in &survey.record.missing_messages {
            let seq = numbers.get(id).copied().unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            let values = self.placeholder(seq, id, recorded)?;
            self.insert(Table::Message, &values)?;
            self.placed.insert(*id, seq);
            self.emptied.insert(seq);
        }
        Ok(())
    }

    fn placeholder(
        &self,
        seq: i64,
        id: &[u8; 16],
        recorded: &RecordedMessage,
    ) -> Result<Vec<Value>, SalvageError> {
        let (kind, name) = &recorded.by;
        let size = i64::try_from(recorded.size).unwrap_or(i64::MAX);
        let mut values = vec![
            Value::Integer(seq),
            Value::Blob(id.to_vec()),
            Value::Integer(recorded.at),
            Value::Text(kind.as_str().to_owned()),
            Value::Text(name.clone()),
            Value::Text("unknown".to_owned()),
            Value::Integer(0),
            Value::Integer(size),
        ];
        values.push(Value::Integer(sum_of(values.iter())?));
        values.resize(MESSAGE_SUM_INDEXED + 1, Value::Null);
        self.forget_index(&mut values)?;
        values.push(Value::Blob(self.remains(id, "")?));
        values.resize(Table::Message.columns(), Value::Null);
        Ok(values)
    }

    /// Rows for deliveries that only the log knows, as it left them; and which deliveries are to end as dead.
    pub(super) fn place_deliveries(&mut self) -> Result<Vec<i64>, SalvageError> {
        let survey = self.survey;
        let emptied = |known: &&super::super::found::KnownDelivery| self.emptied.contains(&known.message);
        let mut dead: Vec<i64> = survey.deliveries.values().filter(emptied).map(|known| known.pos).collect();
        dead.sort_unstable();
        if !self.continued {
            return Ok(dead);
        }
        let numbers: BTreeMap<[u8; 16], i64> =
            survey.messages.iter().map(|(seq, known)| (known.id, *seq)).collect();
        let mut pos = survey.last.1;
        for (id, recorded) in &survey.record.missing_deliveries {
            let message =
                numbers.get(&recorded.message).or_else(|| self.placed.get(&recorded.message)).copied();
            let queue = self.queues.iter().find(|(_, name)| **name == recorded.to).map(|(id, _)| *id);
            let (Some(message_seq), Some(queue)) = (message, queue) else { continue };
            pos += 1;
            let row = recorded.row(pos, *id, message_seq, queue);
            let mut add = self.connection.prepare_cached(sql::DELIVERY_ADD)?;
            row.add(&mut add)?;
            if !row.delivery.state.is_terminal() {
                dead.push(pos);
            }
        }
        Ok(dead)
    }

    /// Deliveries of messages of which not even the id is known, and what belongs to deliveries, or payloads, that are not there.
    pub(super) fn drop_the_unattached(&mut self) -> Result<(), SalvageError> {
        let lost: Vec<(i64, Vec<u8>)> = {
            let mut statement = self.connection.prepare(
                "SELECT d.pos, d.id FROM delivery d LEFT JOIN message m ON m.seq = d.message WHERE m.seq IS NULL",
            )?;
            let found = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            found.collect::<rusqlite::Result<_>>()?
        };
        for (pos, id) in lost {
            self.connection.execute("DELETE FROM delivery WHERE pos = ?1", [pos])?;
            let id = <[u8; 16]>::try_from(id).ok().map(|id| DeliveryId::from_bytes(id).to_string());
            self.damage.push(Damage::row(Table::Delivery, pos, id, Fate::Lost, "its message is not there"));
        }
        let pieces = "DELETE FROM piece WHERE message NOT IN (SELECT id FROM message WHERE data IS NOT NULL)";
        self.connection.execute(pieces, [])?;
        for table in ["detail", "reply"] {
            let statement = format!("DELETE FROM {table} WHERE delivery NOT IN (SELECT pos FROM delivery)");
            self.connection.execute(&statement, [])?;
        }
        Ok(())
    }

    /// Under another key the old identifiers mean nothing. Lanes stay: they keep their order among themselves.
    pub(super) fn forget_keys(&self) -> Result<(), SalvageError> {
        self.connection.execute("DELETE FROM dedup", [])?;
        Ok(())
    }
}
