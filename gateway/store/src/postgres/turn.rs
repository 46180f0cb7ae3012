//! A turn from its first read to its commit: in a transaction, or in one call.
//!
//! What nothing else writes at the same time needs no transaction while it is decided: its one statement makes sure of everything.
//! A transaction is opened where a turn needs statements of its own, and while buckets change hands.

use std::ops::Range;
use std::sync::atomic::Ordering;

use gatepost_core::{MessageId, Timestamp};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::ahead::leaves_of;
use super::commit::{self, Context, Simple, Written, queue_id};
use super::connection::Statement;
use super::row::{self, Cells};
use super::{Postgres, TURN_BITS, WARY_TURNS, node, sql};
use crate::backend::{Adds, Backend as _, CommitError};
use crate::row::Row;
use crate::writer::{Holds, Memory, Turn};

/// A turn's number, and store time when it was drawn.
pub(super) struct Drawn {
    number: i64,
    pub(super) now: Timestamp,
}

impl Drawn {
    pub(super) fn read(cells: &mut Cells<'_>) -> Result<Self, CommitError> {
        let (number, now) = (cells.take::<i64>()?, cells.take()?);
        Ok(Self { number: number << TURN_BITS, now: Timestamp::from_micros(now) })
    }
}

/// What the beginning of a transaction has shown.
struct Begun {
    drawn: Drawn,
    /// When the node's right ends.
    until: Timestamp,
    /// How many of the queues are held that were asked for, and how many of the sessions are their adapters' newest.
    held: usize,
}

impl Begun {
    fn read(rows: &[PgRow]) -> Result<Self, CommitError> {
        // Those of queues have one column.
        let node = rows
            .first()
            .filter(|row| row.len() > 1)
            .ok_or_else(|| CommitError::Broken("another node has taken this one's place".to_owned()))?;
        let mut cells = Cells::new(node);
        let drawn = Drawn::read(&mut cells)?;
        Ok(Self { drawn, until: Timestamp::from_micros(cells.take()?), held: rows.len() - 1 })
    }
}

/// A turn that is decided without a transaction: the one call that writes it makes sure of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unopened {
    /// It only adds messages, and counts from 0: the call draws its number.
    Adds,
    Reads {
        /// It adds messages too.
        adds: bool,
    },
}

/// Says what was found of a commit at which the connection was lost.
fn found<T>(there: Option<T>, text: &str) -> Result<T, CommitError> {
    let found = there.is_some();
    tracing::warn!(found, error = text, "the connection was lost at a commit; it was looked for");
    there.ok_or_else(|| CommitError::Stale("the connection was lost before the commit".to_owned()))
}

impl Postgres {
    pub(super) fn open_transaction(&mut self, holds: &Holds) -> Result<(), CommitError> {
        let begun = self.connection.script_rows(sql::begin(self.node(), holds));
        self.is_open = true;
        (self.read_through, self.spare) = (0, None);
        let begun = begun.and_then(|rows| Begun::read(&rows));
        let checked = begun.and_then(|begun| {
            if begun.drawn.now >= begun.until {
                return Err(CommitError::Broken("this node's lease is over".to_owned()));
            }
            if begun.held != holds.count() {
                return Err(CommitError::Stale(
                    "an adapter has opened its next session elsewhere".to_owned(),
                ));
            }
            Ok(begun)
        });
        match checked {
            Ok(begun) => {
                self.clock.follow(begun.drawn.now);
                self.drawn = Some(begun.drawn);
                Ok(())
            }
            Err(error) => {
                self.roll_back()?;
                Err(error)
            }
        }
    }

    pub(super) fn begin_unopened(&mut self, holds: &Holds, adds: Adds) -> Result<(), CommitError> {
        self.keys_are_known = true;
        // What it does not know yet the call finds out, but nothing can be decided on it before.
        let has_number = self.is_alone && (self.spare.is_some() || self.ahead.has_number());
        if adds == Adds::Only && self.wary == 0 && !has_number {
            self.unopened = Some(Unopened::Adds);
            return Ok(());
        }
        if self.is_handing_over() {
            return self.open_transaction(holds);
        }
        self.unopened = Some(Unopened::Reads { adds: adds != Adds::Nothing });
        self.held.clone_from(holds);
        (self.drawn, self.read_through) = (None, 0);
        Ok(())
    }

    pub(super) fn draw(&mut self, memory: &mut Memory) -> Result<Option<Timestamp>, CommitError> {
        if self.unopened == Some(Unopened::Adds) {
            (memory.next_seq, memory.next_pos, memory.leaf_count) = (0, 0, 0);
            self.by_own_clock = true;
            return Ok(Some(self.newest().max(self.clock.now())));
        }
        // What depends on something has the larger number: one that was drawn before something was read must be larger than all
        // that was found.
        let is_begun = self.is_open || self.unopened.is_some();
        let drawn = self.drawn.take().filter(|drawn| is_begun && self.read_through < drawn.number);
        (self.by_own_clock, self.must_be_newest, self.last_drawn) = (false, false, None);
        let drawn = match drawn {
            Some(drawn) => drawn,
            None => match self.number_at_hand() {
                Some((number, last)) => {
                    self.by_own_clock = true;
                    self.last_drawn = Some(last);
                    self.must_be_newest = self.unopened == Some(Unopened::Reads { adds: true });
                    Drawn { number, now: self.clock.now() }
                }
                None => {
                    let row = self.connection.row(sqlx::query(sql::TURN_NEXT))?;
                    let row = row.ok_or_else(|| CommitError::Broken("there is no sequence".to_owned()))?;
                    let drawn = Drawn::read(&mut Cells::new(&row))?;
                    self.clock.follow(drawn.now);
                    self.spare = None;
                    drawn
                }
            },
        };
        self.number = drawn.number;
        memory.next_seq = self.number;
        memory.next_pos = self.number;
        memory.leaf_count = u64::try_from(self.number).unwrap_or(0);
        // The server's clock may have been set back by less than what was noted of it last.
        Ok(Some(self.newest().max(drawn.now)))
    }

    /// When the newest turn was, the one that is under way included.
    fn newest(&self) -> Timestamp {
        self.newest.max(self.ahead.at())
    }

    pub(super) fn commit_turn(&mut self, turn: &Turn<'_>) -> Result<i64, CommitError> {
        self.sent_has_come_about()?;
        self.date_pieces(turn)?;
        // Of the turn before and of no other: what is decided next may depend on this one.
        self.spare = None;
        // What only adds leaves the ends of leases to others.
        let takes_leases = self.unopened != Some(Unopened::Adds);
        let written = match self.unopened.take() {
            Some(Unopened::Adds) => self.add(turn),
            Some(Unopened::Reads { .. }) => match commit::if_one_call(turn, &self.owned) {
                Some(lanes) => self.write_at_once(turn, &lanes).map(|()| 0),
                None => self.write(turn).map(|()| 0),
            },
            None => self.write(turn).map(|()| 0),
        };
        // It may be one of its guesses that was wrong. What has made none has nothing to be wary of.
        let has_guessed = self.by_own_clock || !self.keys_are_known;
        if has_guessed && matches!(written, Err(CommitError::Stale(_))) {
            self.wary = WARY_TURNS;
        }
        if written.is_err() {
            self.known.forget();
        }
        let base = written?;
        gatepost_faults::point("store.after_commit");
        if takes_leases {
            self.leases.over.clear();
        }
        self.newest = turn.now;
        self.note(turn, base);
        Ok(base)
    }

    /// Takes note of what a turn does; `base` is by how much the numbers of what it adds are larger than the turn has them.
    pub(super) fn note(&mut self, turn: &Turn<'_>, base: i64) {
        self.bell.ring(self.others(turn));
        let (owned, of) = (&self.owned, |row: &Row| row::bucket_of(None, &row.id));
        self.known.committed(turn, base, |row| owned.get(&row.queue).is_some_and(|owned| owned.has(of(row))));
        for touched in turn.touched.values() {
            let (was, now) = (touched.was.delivery.lease(), touched.now.delivery.lease());
            match now {
                Some(lease) if was.map(|was| was.token) != Some(lease.token) => {
                    self.leases.lease(touched.now.pos, self.number);
                }
                Some(_) => {}
                None => self.leases.end(touched.now.pos),
            }
        }
        for queue in turn.queues.values() {
            let before = turn.memory.queues.get(&queue.id);
            if before.is_some_and(|before| before.has_changed(queue)) {
                *self.versions.entry(queue.id).or_default() += 1;
            }
        }
    }

    /// Queues of which this node has made something ready, or has left a note of something, for others who own it.
    fn others(&self, turn: &Turn<'_>) -> Vec<i32> {
        if self.is_alone {
            return Vec::new();
        }
        let is_others =
            |queue: i64, bucket: i16| !self.owned.get(&queue).is_some_and(|owned| owned.has(bucket));
        let lanes = turn.lanes.iter().map(|(queue, lane)| (*queue, row::bucket_of_lane(lane)));
        let rows = turn.new_rows.iter().chain(turn.touched.values().map(|touched| &touched.now));
        let unordered = rows.filter(|row| row.lane.is_none() && row.delivery.state.due().is_some());
        let unordered = unordered.map(|row| (row.queue, row::bucket_of(None, &row.id)));
        let others = lanes.chain(unordered).filter(|(queue, bucket)| is_others(*queue, *bucket));
        others.map(|(queue, _)| queue_id(queue)).collect()
    }

    /// Idempotency keys that were used until then may be used again.
    fn dedup_before(&self, now: Timestamp) -> i64 {
        now.as_micros().saturating_sub(i64::try_from(self.dedup_window.as_micros()).unwrap_or(i64::MAX))
    }

    /// What a turn for which no transaction was opened is written with.
    pub(super) fn context<'c>(&'c self, turn: &Turn<'_>, sessions: &'c [(i64, u64)]) -> Context<'c> {
        Context {
            epoch: self.node(),
            number: self.number,
            sessions,
            owned: &self.owned,
            versions: &self.versions,
            keys_are_known: self.keys_are_known,
            by_own_clock: self.by_own_clock,
            newest_drawn: self.newest_drawn(),
            leases_over: &self.leases.over,
            dedup_before: self.dedup_before(turn.now),
        }
    }

    /// Which number must be the last that anybody has drawn when the turn is written, if that matters.
    fn newest_drawn(&self) -> Option<i64> {
        self.last_drawn.filter(|_| self.must_be_newest)
    }

    /// Writes a turn in a transaction, in the open one if there is one, and commits it.
    fn write(&mut self, turn: &Turn<'_>) -> Result<(), CommitError> {
        if !self.is_open {
            let held = std::mem::take(&mut self.held);
            self.open_transaction(&held)?;
            // The transaction has drawn one too.
            let drawn = self.drawn.as_ref().map(|drawn| drawn.number >> TURN_BITS);
            if self.newest_drawn().is_some_and(|last| drawn != Some(last + 1)) {
                return self.end(Err(CommitError::Stale(commit::NOT_NEWEST.to_owned())));
            }
        }
        // As `context` does, beside the connection. The sessions are held since the transaction was opened.
        let context = Context {
            epoch: self.epoch.load(Ordering::Relaxed),
            number: self.number,
            sessions: &[],
            owned: &self.owned,
            versions: &self.versions,
            keys_are_known: self.keys_are_known,
            by_own_clock: self.by_own_clock,
            newest_drawn: None,
            leases_over: &self.leases.over,
            dedup_before: self.dedup_before(turn.now),
        };
        let written = commit::write(&mut self.connection, turn, &context);
        gatepost_faults::point("store.before_commit");
        if let Err(error) = written {
            return self.end(Err(error));
        }
        match self.connection.script("COMMIT".to_owned()) {
            Ok(()) => {
                self.is_open = false;
                Ok(())
            }
            Err(CommitError::Broken(text)) => self.look_up_turn(leaves_of(turn, self.number), &text),
            Err(error) => {
                self.roll_back()?;
                Err(error)
            }
        }
    }

    /// Writes and commits a turn for which no transaction was opened, in one call.
    fn write_at_once(&mut self, turn: &Turn<'_>, lanes: &Simple<'_>) -> Result<(), CommitError> {
        gatepost_faults::point("store.before_commit");
        let Some(statement) = commit::at_once(turn, lanes, &self.context(turn, &self.held.sessions))? else {
            return Ok(());
        };
        match self.connection.row(statement).and_then(Written::read) {
            Ok(written) => {
                self.spare = Some(written.next);
                self.left_notes |= written.left_notes;
                Ok(())
            }
            Err(CommitError::Broken(text)) => self.look_up_turn(leaves_of(turn, self.number), &text),
            Err(error) => Err(error),
        }
    }

    /// A number that was drawn before, and which one was drawn last. It is as good as a new one where nothing was read that has a larger
    /// one. Where messages are added, nobody may have drawn one since: of these, one that is handed in later than another stands behind it,
    /// whichever node takes them.
    fn number_at_hand(&mut self) -> Option<(i64, i64)> {
        let Some(Unopened::Reads { adds }) = self.unopened else { return None };
        let may_use = self.wary == 0 && (self.is_alone || !adds);
        if !may_use {
            return None;
        }
        if let Some(following) = self.ahead.take_number(self.read_through) {
            return Some(following);
        }
        // The end of the turn that is under way gives one.
        self.wait_for_sent();
        let spare = self.spare.take_if(|number| self.read_through < *number);
        spare.map(|number| (number, number >> TURN_BITS))
    }

    /// Looks for a turn by the numbers of its leaves.
    pub(super) fn look_up_turn(&mut self, leaves: Range<i64>, text: &str) -> Result<(), CommitError> {
        self.reopen_connection(text)?;
        let statement = sqlx::query(sql::TURN_IS_THERE).bind(leaves.start).bind(leaves.end);
        let there = self.look_up(statement, text)?;
        let is_there = Cells::new(&there).take::<bool>()?;
        found(is_there.then_some(()), text)
    }

    /// The number of a message, whose turn's begin with that.
    fn look_up_message(&mut self, message: MessageId, text: &str) -> Result<i64, CommitError> {
        let statement = sqlx::query(sql::MESSAGE_IS_THERE).bind(message.as_bytes().as_slice());
        let there = self.look_up(statement, text)?;
        let seq = Cells::new(&there).take::<Option<i64>>()?;
        found(seq, text)
    }

    fn reopen_connection(&mut self, text: &str) -> Result<(), CommitError> {
        self.is_open = false;
        self.pieces.connect_anew();
        self.connection.reopen().map_err(|_| CommitError::Broken(text.to_owned()))
    }

    /// Buckets have changed hands so lately that one who has lost its own may not know it yet: what is ready is read under locks, and
    /// what others have locked is passed over.
    fn is_handing_over(&self) -> bool {
        !self.is_alone && self.handed_over_at.elapsed() < node::LEASE
    }

    /// Writes and commits a turn that only adds messages, in one call; the number that its own begin with.
    fn add(&mut self, turn: &Turn<'_>) -> Result<i64, CommitError> {
        gatepost_faults::point("store.before_commit");
        let statement = commit::adding(turn, &self.context(turn, &[]))?;
        match self.connection.row(statement).and_then(Written::read) {
            Ok(written) => {
                self.spare = Some(written.next);
                Ok(written.base)
            }
            Err(CommitError::Broken(text)) => {
                let Some(first) = turn.messages.first() else { return Err(CommitError::Broken(text)) };
                self.reopen_connection(&text)?;
                self.look_up_message(first.prepared.id, &text)
            }
            Err(error) => Err(error),
        }
    }

    /// The connection was lost at a commit, and nobody knows whether that came about: looks, before anything is done again.
    ///
    /// The transaction held a lock on this node's row. Whoever gets that lock knows that it has ended; and since to lock is to
    /// write, a synchronous standby has confirmed everything up to there when the answer comes.
    fn look_up(&mut self, statement: Statement<'_>, text: &str) -> Result<PgRow, CommitError> {
        let away = |_| CommitError::Broken(text.to_owned());
        self.connection.row(sqlx::query(sql::NODE_LOCK).bind(self.node())).map_err(away)?;
        self.connection.row(statement).map_err(away)?.ok_or_else(|| CommitError::Broken(text.to_owned()))
    }
}
