//! Erasing messages: which they are, what is sealed of them, and what of their rows goes.

use gatepost_core::MessageId;
use sqlx::postgres::PgRow;

use super::commit::exactly;
use super::row::Cells;
use super::{Postgres, sql};
use crate::backend::{CommitError, Erasable, EraseFind, Erasing, ToErase, some_to_erase};
use crate::ops::StoreError;
use crate::seal::{Place, locator_of};

impl Postgres {
    pub(super) fn find_to_erase(
        &mut self,
        what: &EraseFind,
        after: i64,
        most: u32,
    ) -> Result<ToErase, CommitError> {
        let looked = i64::from(what.looked_through(most));
        let found = match what {
            EraseFind::Message(id) => sqlx::query(sql::ERASE_BY_ID).bind(id.as_bytes().as_slice()),
            EraseFind::Subject(subject) => {
                sqlx::query(sql::ERASE_BY_SUBJECT).bind(subject.as_slice()).bind(after).bind(looked)
            }
            EraseFind::App(app) => sqlx::query(sql::ERASE_BY_APP).bind(app.as_str()).bind(after).bind(looked),
        };
        let rows = self.connection.rows(found)?;
        let found = rows.iter().map(|row| {
            let mut cells = Cells::new(row);
            Ok((cells.take()?, cells.take()?))
        });
        let found: Vec<(i64, bool)> = found.collect::<Result<_, StoreError>>()?;
        let (seqs, through, more) = some_to_erase(what, &found, after, most);
        let read = self.connection.rows(sqlx::query(sql::ERASE_READ).bind(seqs))?;
        let mut messages = Vec::with_capacity(read.len());
        for row in &read {
            let (mut message, (day, first_pos, deliveries)) = erasable(row)?;
            let beside = sqlx::query(sql::ERASE_READ_SEALED).bind(day).bind(first_pos).bind(deliveries);
            for row in self.connection.rows(beside)? {
                message.sealed.push(Cells::new(&row).take()?);
            }
            let sealed = std::iter::once(&message.attributes).chain(&message.sealed);
            let locators: Vec<_> = sealed.filter_map(|sealed| locator_of(sealed)).collect();
            self.know(locators.into_iter())?;
            messages.push(message);
        }
        Ok(ToErase { messages, through, more })
    }

    pub(super) fn erase_messages(&mut self, messages: &[Erasing]) -> Result<(), CommitError> {
        for Erasing { seq, id, remains } in messages {
            let statement = sqlx::query(sql::ERASE_MESSAGE)
                .bind(*seq)
                .bind(id.as_bytes().as_slice())
                .bind(remains.as_slice());
            exactly(&mut self.connection, statement, 1, "erase_message")?;
        }
        Ok(())
    }
}

/// A message, and where what stands beside it is: day, first position, how many.
fn erasable(row: &PgRow) -> Result<(Erasable, (i32, i64, i32)), StoreError> {
    let mut cells = Cells::new(row);
    let seq: i64 = cells.take()?;
    let place = Place { table: "message", column: "id", row: seq };
    let id = MessageId::from_bytes(cells.take_bytes(place)?);
    let day = cells.take()?;
    let fingerprint: [u8; 16] = cells.take_bytes(Place { column: "fingerprint", ..place })?;
    let remains: Vec<u8> = cells.take()?;
    let (attributes, data): (Option<Vec<u8>>, Option<Vec<u8>>) = (cells.take()?, cells.take()?);
    let beside = (day, cells.take()?, cells.take()?);
    let is_settled = cells.take()?;
    // Without content what stays of its attributes is all of them.
    let (attributes, others) = match attributes {
        Some(attributes) => (attributes, Some(remains)),
        None => (remains, None),
    };
    let sealed = others.into_iter().chain(data).collect();
    Ok((
        Erasable { seq, id, is_settled, is_erased: fingerprint == *id.as_bytes(), attributes, sealed },
        beside,
    ))
}
