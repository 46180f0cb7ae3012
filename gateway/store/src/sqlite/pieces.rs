//! Sealed payloads in pieces: written ahead of their message, claimed by its accept, put together again, or removed.

use gatepost_core::MessageId;
use rusqlite::{Connection, params};

use super::Sqlite;
use super::commit::each;
use super::connection::rows;
use crate::backend::{CommitError, More};
use crate::seal::{InPieces, Owner};
use crate::sql;
use crate::sum;
use crate::writer::{Piece, Turn};

/// Rows removed in one step.
const DROPPED_MAX: u32 = 8;

/// Writes the turn's pieces, and takes from those of its messages the row that says that they have none.
pub(super) fn write(connection: &Connection, turn: &Turn<'_>) -> Result<(), CommitError> {
    each(connection, sql::PIECE_ADD, &turn.pieces, |statement, piece| {
        let Piece { message, number, bytes } = piece;
        let columns = params![message.as_bytes(), number, bytes];
        statement.execute(params![message.as_bytes(), number, bytes, sum::of(columns)?])
    })?;
    let in_pieces = turn.messages.iter().filter(|row| InPieces::is(&row.prepared.data));
    let in_pieces: Vec<_> = in_pieces.map(|row| row.prepared.id).collect();
    each(connection, sql::PIECES_CLAIM, &in_pieces, |statement, message| {
        statement.execute(params![message.as_bytes()])
    })
}

/// Messages whose pieces were not claimed by an accept.
pub(crate) fn ahead(connection: &Connection) -> Result<Vec<MessageId>, CommitError> {
    rows(connection, sql::PIECES_AHEAD, [], |mut cells| Ok(MessageId::from_bytes(cells.take()?)))
}

/// A payload as it was sealed, where `data` says that it stands in pieces; `None` if they are not what was written.
pub(crate) fn whole(
    connection: &Connection,
    data: Vec<u8>,
    owner: Owner<'_>,
) -> Result<Option<Vec<u8>>, CommitError> {
    let Owner::Data { message, .. } = owner else { return Ok(Some(data)) };
    if !InPieces::is(&data) {
        return Ok(Some(data));
    }
    let Some(pieces) = InPieces::read(&data, owner) else { return Ok(None) };
    let (mut sealed, mut count) = (Vec::new(), 0);
    rows(connection, sql::PIECES_OF_MESSAGE, [message], |mut cells| {
        sealed.extend_from_slice(cells.take_bytes()?);
        count += 1;
        Ok(())
    })?;
    Ok((count == pieces.count && sealed.len() as u64 == pieces.bytes).then_some(sealed))
}

impl Sqlite {
    /// Nothing leads to what was never accepted, so that nobody could erase it later: zeros are written in its place when it goes. A disk
    /// that has no room for them gets the pages back all the same.
    pub(super) fn drop_some_pieces(&self, message: &MessageId) -> Result<More, CommitError> {
        let drop_some = || self.execute(sql::PIECES_DROP, params![message.as_bytes(), DROPPED_MAX]);
        self.set("PRAGMA secure_delete = ON")?;
        let dropped = drop_some();
        self.set("PRAGMA secure_delete = OFF")?;
        let dropped = match dropped {
            Err(CommitError::Full) => drop_some()?,
            dropped => dropped?,
        };
        Ok(if dropped < DROPPED_MAX as usize { More::No } else { More::Yes })
    }

    fn set(&self, pragma: &'static str) -> Result<(), CommitError> {
        Ok(self.connection.query_row(pragma, [], |_| Ok(()))?)
    }
}
