//! Writing payloads ahead of what accepts them, and removing those that nothing has accepted.

use std::collections::HashSet;
use std::time::Instant;

use gatepost_core::MessageId;

use super::group::decide;
use super::needs::Holds;
use super::piecemeal::{Step, Whose, in_pieces};
use super::refuse::refuse_all;
use super::turn::Turn;
use super::{Condition, Writer, unavailable};
use crate::backend::{Adds, Backend, CommitError, More, Need};
use crate::call::Op;
use crate::ops::StoreError;

/// Messages that were not accepted and of which pieces may be left to be removed little by little; more of them go at once.
const UNCLAIMED_MAX: usize = 16;

impl<B: Backend> Writer<B> {
    /// As [`Writer::groups`]; pieces of what is large ride along.
    pub(super) fn groups_with_pieces(&mut self, ops: Vec<Op>) {
        let others = !ops.is_empty();
        let began = Instant::now();
        self.look_at_pieces();
        self.groups(ops);
        if others {
            self.piecemeal.committed(Whose::Others, Instant::now(), began.elapsed());
        }
        self.whole_ops();
    }

    /// Does what is asked for until nothing waits, as the writer's loop does it while nobody asks for more.
    #[cfg(test)]
    pub(super) fn all_at_once(&mut self, mut ops: Vec<Op>) {
        self.piecemeal.part(&mut ops);
        self.groups_with_pieces(ops);
        while self.piecemeal.due(Instant::now()).is_some() {
            self.pieces_alone(false);
        }
    }

    /// Finds out what of the operation whose turn it is would be added: what is refused, or was handed in before, needs no pieces; and
    /// what there is no room for is refused alone, before any of it takes what others need.
    pub(super) fn look_at_pieces(&mut self) {
        if let Some(error) = unavailable(&self.condition) {
            self.give_up_pieces(&error, |_| true);
        }
        if self.condition == Condition::Full {
            self.give_up_pieces(&StoreError::Full, is_accept);
        }
        while self.piecemeal.to_look_at().is_some() {
            self.settle_under_way();
            match self.would_be_added() {
                Ok(added) => {
                    self.piecemeal.looked_at(&added);
                    self.refuse_without_room();
                }
                // Its own group says what is wrong.
                Err(error) => {
                    tracing::debug!(?error, "what is large cannot be looked at");
                    self.piecemeal.looked_at(&HashSet::new());
                }
            }
        }
    }

    /// Refuses the accept that was looked at if the disk has no room for it. Outcomes of what was accepted are not refused: they are
    /// settled from the reserve.
    fn refuse_without_room(&mut self) {
        let Some(bytes) = self.piecemeal.bytes_to_come() else { return };
        match self.database.has_room(bytes) {
            Ok(true) => {}
            Ok(false) => {
                if let Some((op, _)) = self.piecemeal.give_up_first() {
                    refuse_all(vec![op], &StoreError::Full);
                }
            }
            // Its commits say what is wrong.
            Err(error) => tracing::debug!(?error, "the room for what is large cannot be looked at"),
        }
    }

    fn would_be_added(&mut self) -> Result<HashSet<MessageId>, CommitError> {
        self.database.begin_turn(&Holds::default(), Adds::Too)?;
        let added = self.would_be_added_open();
        self.database.roll_back()?;
        added
    }

    /// Decides it in a turn that is dropped, which is as if nothing had happened.
    fn would_be_added_open(&mut self) -> Result<HashSet<MessageId>, CommitError> {
        let piecemeal = std::mem::take(&mut self.piecemeal);
        let ops = piecemeal.to_look_at().map(std::slice::from_ref).unwrap_or_default();
        let found = self.find(ops, Need::Sure);
        let added = found.and_then(|found| {
            let (now, known) = (self.now(), found.keys.unwrap_or_default());
            let mut turn = Turn::new(
                now,
                self.instance_epoch,
                &self.memory,
                &self.vault,
                &mut self.random,
                &self.gateway,
            );
            turn.loaded = found.rows;
            for op in ops {
                decide(&mut turn, op, &known)?;
            }
            Ok(turn.messages.iter().map(|row| row.prepared.id).collect())
        });
        self.piecemeal = piecemeal;
        added
    }

    /// Writes pieces with a commit of their own, and does what can be done then.
    pub(super) fn pieces_alone(&mut self, closing: bool) {
        self.look_at_pieces();
        let began = Instant::now();
        let mut attempted = self.attempt_pieces(closing);
        if let Err(CommitError::Full) = attempted {
            attempted = match self.database.make_room() {
                Ok(true) => self.attempt_pieces(closing),
                Ok(false) => attempted,
                Err(error) => Err(error),
            };
        }
        match attempted {
            Ok(false) => {}
            Ok(true) => self.piecemeal.committed(Whose::Pieces, Instant::now(), began.elapsed()),
            Err(error) => {
                if let Some((op, begun)) = self.piecemeal.give_up_first() {
                    self.memory.unclaimed.extend(begun);
                    self.failed(&error);
                    refuse_all(vec![op], &error.into());
                }
            }
        }
        self.whole_ops();
    }

    /// Whether there were any.
    fn attempt_pieces(&mut self, closing: bool) -> Result<bool, CommitError> {
        self.keep_keys()?;
        self.database.begin_turn(&Holds::default(), Adds::Nothing)?;
        let written = self.attempt_pieces_open(closing);
        self.database.roll_back()?;
        written
    }

    fn attempt_pieces_open(&mut self, closing: bool) -> Result<bool, CommitError> {
        let now = self.number()?;
        let Some(step) = self.piecemeal.alone(closing, Instant::now()) else { return Ok(false) };
        let mut turn =
            Turn::new(now, self.instance_epoch, &self.memory, &self.vault, &mut self.random, &self.gateway);
        turn.pieces = step.pieces;
        let committed = super::outcome::conclude(&mut self.database, turn)?;
        let then = step.then;
        self.install(committed, 0);
        self.piecemeal.written(then);
        gatepost_faults::point("store.pieces_written");
        Ok(true)
    }

    /// Where pieces are written beside the turns: takes note of those that have been, does what can be done then, and has the next ones
    /// written.
    pub(super) fn pieces_beside(&mut self, closing: bool) {
        match self.database.pieces_ended() {
            None => {}
            Some(Ok(())) => {
                self.piecemeal.written_beside(Instant::now());
                self.whole_ops();
            }
            Some(Err(error)) => self.pieces_failed(error),
        }
        if self.piecemeal.due(Instant::now()).is_none() || !self.database.writes_beside() {
            return;
        }
        self.look_at_pieces();
        self.whole_ops();
        let now = Instant::now();
        if let Some(Step { pieces, then }) = self.piecemeal.next_beside(closing, now) {
            self.database.pieces_start(&pieces);
            self.piecemeal.begun_beside(then, now);
        }
    }

    /// One operation pays for it. Whether the database is away shows the next turn.
    fn pieces_failed(&mut self, error: CommitError) {
        let Some((op, begun)) = self.piecemeal.not_written_beside() else { return };
        tracing::warn!(?error, "a part of a large message could not be written");
        self.memory.unclaimed.extend(begun);
        if matches!(error, CommitError::Full | CommitError::Fenced(_) | CommitError::Lost(_)) {
            self.failed(&error);
        }
        refuse_all(vec![op], &error.into());
    }

    /// Does the operations of which all pieces are there. What of them has not been accepted is to be removed.
    pub(super) fn whole_ops(&mut self) {
        loop {
            let ops = self.piecemeal.take_whole();
            if ops.is_empty() {
                break;
            }
            let there: Vec<MessageId> = ops.iter().flat_map(in_pieces).collect();
            // The last pieces of another one may ride along with them.
            self.groups(ops);
            self.settle_under_way();
            let claimed = self.piecemeal.take_claimed();
            self.database.pieces_claimed(&claimed);
            self.memory.unclaimed.extend(there.into_iter().filter(|message| !claimed.contains(message)));
        }
        // Whoever hands in the same again and again leaves no more than is removed.
        for _ in UNCLAIMED_MAX..self.memory.unclaimed.len() {
            self.drop_all_pieces();
        }
    }

    /// Refuses what waits to be written in pieces.
    pub(super) fn give_up_pieces(&mut self, error: &StoreError, which: impl Fn(&Op) -> bool) {
        let (ops, begun) = self.piecemeal.give_up(which);
        self.memory.unclaimed.extend(begun);
        refuse_all(ops, error);
    }

    /// Removes what is left of one message.
    fn drop_all_pieces(&mut self) {
        let Some(message) = self.memory.unclaimed.front().copied() else { return };
        while self.memory.unclaimed.front() == Some(&message) && self.drop_pieces() {}
    }

    /// A step of removing the pieces of what was not accepted; whether one was made.
    pub(super) fn drop_pieces(&mut self) -> bool {
        let Some(message) = self.memory.unclaimed.front().copied() else { return false };
        match self.database.pieces_drop(&message) {
            Ok(More::Yes) => {}
            Ok(More::No) => drop(self.memory.unclaimed.pop_front()),
            Err(error) => {
                self.failed(&error);
                return false;
            }
        }
        true
    }
}

/// What a full disk has no room for; the outcomes of what has been accepted are settled from the reserve.
fn is_accept(op: &Op) -> bool {
    matches!(op, Op::Accept { .. })
}
