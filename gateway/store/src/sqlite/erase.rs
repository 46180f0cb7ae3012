//! Erasing messages: which they are, what is sealed of them, and what of their rows goes.

use gatepost_core::MessageId;
use rusqlite::params;

use super::Sqlite;
use super::connection::{Cells, rows};
use crate::backend::{CommitError, Erasable, EraseFind, Erasing, ToErase, some_to_erase};
use crate::ops::StoreError;
use crate::seal::{Index, Place};
use crate::{sql, sum};

impl Sqlite {
    pub(super) fn find_to_erase(
        &self,
        what: &EraseFind,
        after: i64,
        most: u32,
    ) -> Result<ToErase, CommitError> {
        let looked = what.looked_through(most);
        let row = |mut cells: Cells<'_>| Ok((cells.take()?, cells.take()?));
        let found: Vec<(i64, bool)> = match what {
            EraseFind::Message(id) => {
                rows(&self.connection, sql::ERASE_BY_ID, [id.as_bytes().as_slice()], row)?
            }
            EraseFind::Subject(subject) => {
                rows(&self.connection, sql::ERASE_BY_SUBJECT, params![subject, after, looked], row)?
            }
            EraseFind::App(app) => {
                rows(&self.connection, sql::ERASE_BY_APP, params![app, after, looked], row)?
            }
        };
        let (seqs, through, more) = some_to_erase(what, &found, after, most);
        let messages = seqs.into_iter().map(|seq| self.erasable(seq)).collect::<Result<_, _>>()?;
        Ok(ToErase { messages, through, more })
    }

    fn erasable(&self, seq: i64) -> Result<Erasable, CommitError> {
        let read = rows(&self.connection, sql::ERASE_READ, [seq], |mut cells| {
            let id = MessageId::from_bytes(cells.take()?);
            let (_dedup, fingerprint): (Index, Index) = (cells.take()?, cells.take()?);
            Ok(Erasable {
                seq,
                id,
                attributes: cells.take()?,
                is_erased: fingerprint == *id.as_bytes(),
                sealed: cells.take::<Option<Vec<u8>>>()?.into_iter().collect(),
                is_settled: cells.take()?,
            })
        })?;
        let gone = || Place { table: "message", column: "seq", row: seq }.corrupt();
        let mut message = read.into_iter().next().ok_or_else(gone)?;
        let beside = rows(&self.connection, sql::ERASE_READ_SEALED, [seq], |mut cells| cells.take())?;
        message.sealed.extend(beside);
        Ok(message)
    }

    pub(super) fn erase_messages(&self, messages: &[Erasing]) -> Result<(), CommitError> {
        for Erasing { seq, id, remains } in messages {
            let read = rows(&self.connection, sql::ERASE_READ, [seq], |mut cells| {
                let _id: [u8; 16] = cells.take()?;
                cells.take::<Index>()
            })?;
            let dedup = read.first().copied().unwrap_or_default();
            // As of a message that nothing is the same as.
            let fingerprint = id.as_bytes();
            let none = None::<Index>;
            let indexed = sum::of(params![seq, dedup, fingerprint, none, none, none])?;
            self.execute(sql::PURGE_PIECES, [seq])?;
            self.execute(sql::ERASE_REPLIES, [seq])?;
            self.execute(sql::ERASE_DETAILS, [seq])?;
            let changed = self.execute(sql::ERASE_MESSAGE, params![seq, fingerprint, indexed, remains])?;
            if changed != 1 {
                return Err(
                    StoreError::Database("a message that is to be erased is not there".to_owned()).into()
                );
            }
        }
        Ok(())
    }
}
