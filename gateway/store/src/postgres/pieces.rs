//! Sealed payloads in pieces: written ahead of their message beside the writer's turns, in short transactions on a connection of their
//! own; claimed by its accept, or removed.
//!
//! Row `piece_ahead` of a message counts its pieces, in the transactions that write them. So an accept that finds the count finds
//! all of them: also after a failover to a standby, which has what was committed first or nothing that came later. What
//! a node has begun and does not accept is its own to remove, and anybody's when the node is gone.

mod scribe;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use gatepost_core::MessageId;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::commit::{Values, count, day_of, in_pieces};
use super::connection::Statement;
use super::row::Cells;
use super::{Postgres, sql};
use crate::backend::{Backend as _, CommitError, More};
use crate::seal::Place;
use crate::writer::{Holds, Memory, Piece, Turn};
use scribe::Scribe;

/// Rows removed in one step.
const DROPPED_MAX: i64 = 16;
/// How often it is looked for what nobody will accept: of nodes that are gone, and of this one where it was not known what had been
/// written.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

pub(super) struct Pieces {
    scribe: Scribe,
    /// Those that this node has begun and not heard of as accepted or removed, with the days that their pieces are under.
    days: HashMap<MessageId, i32>,
    looked_at: Option<Instant>,
}

impl Pieces {
    pub(super) fn new(options: PgConnectOptions) -> Self {
        Self { scribe: Scribe::new(options), days: HashMap::new(), looked_at: None }
    }

    pub(super) fn bell(&self) -> Arc<Notify> {
        self.scribe.bell()
    }

    /// See [`Scribe::connect_anew`].
    pub(super) fn connect_anew(&mut self) {
        self.scribe.connect_anew();
    }

    /// Waits for what is being written; how that has ended stays to be asked for.
    pub(super) fn wait(&mut self) {
        self.scribe.wait();
    }
}

impl Postgres {
    pub(super) fn start_pieces(&mut self, pieces: &[Piece<'_>]) {
        let today = day_of(self.clock.now());
        for piece in pieces.iter().filter(|piece| piece.number == 0) {
            self.pieces.days.insert(piece.message, today);
        }
        // Those of a message that was begun on another day are moved here, where only that message waits for it.
        let messages: BTreeSet<MessageId> = pieces.iter().map(|piece| piece.message).collect();
        let date = self.date_of(messages.iter(), today);
        let days = messages.into_iter().map(|message| (message, today));
        self.pieces.days.extend(days);
        let written = self.write_pieces(pieces);
        self.pieces.scribe.write(written.map(|written| date.into_iter().chain([written]).collect()));
    }

    pub(super) fn end_of_pieces(&mut self) -> Option<Result<(), CommitError>> {
        self.pieces.scribe.ended()
    }

    /// The statement that writes pieces and counts them.
    fn write_pieces(&self, pieces: &[Piece<'_>]) -> Result<Statement<'static>, CommitError> {
        // How many are written now of messages that begin with them, and of others.
        let (mut begun, mut grown): (BTreeMap<MessageId, i32>, BTreeMap<MessageId, i32>) = Default::default();
        for piece in pieces {
            match (piece.number, begun.get_mut(&piece.message)) {
                (0, _) => drop(begun.insert(piece.message, 0)),
                (_, Some(count)) => *count += 1,
                (_, None) => *grown.entry(piece.message).or_default() += 1,
            }
        }
        let written: Vec<&Piece<'_>> = pieces.iter().filter(|piece| piece.number > 0).collect();
        let day = |message: &MessageId| self.pieces.days.get(message).copied().unwrap_or_default();
        let mut values = Values::default();
        values
            .bind(self.node())
            .bind(begun.keys().map(|message| message.as_bytes().as_slice()).collect::<Vec<&[u8]>>())
            .bind(begun.keys().map(day).collect::<Vec<i32>>())
            .bind(begun.values().copied().collect::<Vec<i32>>())
            .bind(grown.keys().map(|message| message.as_bytes().as_slice()).collect::<Vec<&[u8]>>())
            .bind(grown.values().copied().collect::<Vec<i32>>())
            .bind(written.iter().map(|piece| day(&piece.message)).collect::<Vec<i32>>())
            .bind(written.iter().map(|piece| piece.message.as_bytes().as_slice()).collect::<Vec<&[u8]>>())
            .bind(written.iter().map(|piece| count(piece.number)).collect::<Vec<i32>>())
            .bind(written.iter().map(|piece| piece.bytes).collect::<Vec<&[u8]>>());
        values.of(sql::PIECES_WRITE)
    }

    /// Pieces go with the content of the day of their accept. That it is another one than when the last of them were written is rare.
    pub(super) fn date_pieces(&mut self, turn: &Turn<'_>) -> Result<(), CommitError> {
        let messages: Vec<MessageId> = in_pieces(&turn.messages).map(|(message, _)| message).collect();
        match self.date_of(messages.iter(), day_of(turn.now)) {
            Some(date) => self.connection.execute(date).map(drop),
            None => Ok(()),
        }
    }

    /// The statement that moves to `today` what there is of these messages and was written on another day; `None` if nothing was.
    fn date_of<'m>(
        &self,
        messages: impl Iterator<Item = &'m MessageId>,
        today: i32,
    ) -> Option<Statement<'static>> {
        let days = &self.pieces.days;
        let older = messages.filter(|message| days.get(message).is_some_and(|day| *day != today));
        let older: Vec<Vec<u8>> = older.map(|message| message.as_bytes().to_vec()).collect();
        (!older.is_empty()).then(|| sqlx::query(sql::PIECES_DATE).bind(older).bind(self.node()).bind(today))
    }

    pub(super) fn forget_pieces(&mut self, claimed: &HashSet<MessageId>) {
        self.pieces.days.retain(|message, _| !claimed.contains(message));
    }

    pub(super) fn drop_some_pieces(&mut self, message: &MessageId) -> Result<More, CommitError> {
        self.begin(&Holds::default())?;
        let dropped = self.drop_open(message);
        let dropped = self.end(dropped)?;
        if dropped == More::No {
            self.pieces.days.remove(message);
        }
        Ok(dropped)
    }

    fn drop_open(&mut self, message: &MessageId) -> Result<More, CommitError> {
        let message = message.as_bytes().as_slice();
        let ahead = sqlx::query(sql::PIECES_HOLD).bind(message).bind(self.node());
        // None: it is being written to still, and is found later, or there is nothing.
        let Some(row) = self.connection.row(ahead)? else { return Ok(More::No) };
        let day: i32 = Cells::new(&row).take()?;
        let some = sqlx::query(sql::PIECES_DROP).bind(day).bind(message).bind(DROPPED_MAX);
        if self.connection.execute(some)? == DROPPED_MAX.unsigned_abs() {
            return Ok(More::Yes);
        }
        self.connection.execute(sqlx::query(sql::PIECES_END).bind(message))?;
        Ok(More::No)
    }

    /// Lists what nobody will accept, now and then.
    pub(super) fn look_for_pieces(&mut self, memory: &mut Memory) -> Result<(), CommitError> {
        let is_due = self.pieces.looked_at.is_none_or(|at| at.elapsed() >= LOOK_INTERVAL);
        if !is_due || !memory.unclaimed.is_empty() {
            return Ok(());
        }
        self.pieces.looked_at = Some(Instant::now());
        let known: Vec<Vec<u8>> =
            self.pieces.days.keys().map(|message| message.as_bytes().to_vec()).collect();
        let statement = sqlx::query(sql::PIECES_ADOPT).bind(self.node()).bind(known);
        for row in self.connection.rows(statement)? {
            let place = Place { table: "piece_ahead", column: "message", row: 0 };
            memory.unclaimed.push_back(MessageId::from_bytes(Cells::new(&row).take_bytes(place)?));
        }
        Ok(())
    }

    /// As after a start: this node writes nothing now.
    pub(super) fn find_pieces(&mut self, memory: &mut Memory) -> Result<(), CommitError> {
        self.pieces.wait();
        self.pieces.connect_anew();
        self.pieces.days.clear();
        self.pieces.looked_at = None;
        self.look_for_pieces(memory)
    }
}
