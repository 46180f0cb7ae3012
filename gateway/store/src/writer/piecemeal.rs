//! Large payloads are written in pieces, ahead of what accepts them: written at once, one keeps everybody else waiting as long as
//! hundreds of small messages do. The pieces ride along with the commits of others, one with each; while nobody else asks for anything they
//! have commits of their own, several in each. Where the database can do two things at a time they are written beside the turns instead, in
//! commits of their own. When all of them are there, the operation joins a group as any other does, and its commit claims them.
//! What was not accepted in the end is removed little by little.
//!
//! Several operations take turns, so that a small one does not wait for all of a large one.

mod pace;
mod sizes;
#[cfg(test)]
mod tests;

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use gatepost_core::MessageId;

pub(super) use pace::Whose;
use pace::{Pace, STEP_PIECES};
pub(crate) use sizes::Sizes;

use crate::call::Op;
use crate::ops::Settle;
use crate::prepared::Prepared;
use crate::seal::{InPieces, Owner};

/// A piece has a row, which takes as long as this part of a whole piece.
const ROW_PART: usize = 16;

/// A part of a message's sealed payload.
pub(crate) struct Piece<'a> {
    pub(crate) message: MessageId,
    /// From 1; 0 is none, and says that the message has not been accepted.
    pub(crate) number: u32,
    pub(crate) bytes: &'a [u8],
}

/// Operations whose payloads are being written in pieces.
#[derive(Default)]
pub(crate) struct Piecemeal {
    sizes: Sizes,
    /// The first one's turn is next.
    waiting: VecDeque<Ahead>,
    /// Those of which all pieces are there, or that need none after all.
    whole: Vec<Op>,
    /// Messages whose accept has claimed their pieces since it was asked last.
    claimed: HashSet<MessageId>,
    /// A commit with pieces of the first one has failed: whose fault that is shows when they stand alone.
    stands_alone: bool,
    /// Pieces are written beside the turns.
    goes_beside: bool,
    beside: Beside,
    pace: Pace,
}

/// What is being written beside the turns.
#[derive(Default)]
enum Beside {
    #[default]
    Nothing,
    /// A step of the first operation that waits, with what will be there then.
    Step { then: Progress, since: Instant },
    /// A step of an operation that was given up.
    GivenUp,
}

struct Ahead {
    op: Op,
    /// `None` until it is known which of its payloads would be added.
    progress: Option<Progress>,
}

impl Ahead {
    fn bytes_to_come(&self) -> u64 {
        let (Some(payloads), Some(progress)) = (prepared(&self.op), &self.progress) else { return 0 };
        progress.left.iter().map(|position| payloads[*position].data.len() as u64).sum()
    }
}

/// How much of an operation has been written.
#[derive(Clone, Default)]
pub(crate) struct Progress {
    /// Payloads that are not, by the positions of their messages; the first one in part.
    left: VecDeque<usize>,
    /// Pieces of the first one that are.
    pieces: u32,
    /// Payloads of which anything is.
    begun: Vec<MessageId>,
}

/// What a commit is to write, and how far things are with that.
pub(crate) struct Step<'a> {
    pub(crate) pieces: Vec<Piece<'a>>,
    pub(crate) then: Progress,
}

impl Piecemeal {
    #[cfg(test)]
    pub(crate) fn new(sizes: Sizes) -> Self {
        Self { sizes, ..Self::default() }
    }

    pub(crate) fn of(goes_beside: bool) -> Self {
        Self { goes_beside, ..Self::default() }
    }

    /// Takes what is to be written in pieces out of `ops`, which are not asked for in any order: none of them has been answered.
    /// The store bounds how many accepts there are at a time, and adapters have few outcomes under way.
    pub(super) fn part(&mut self, ops: &mut Vec<Op>) {
        if !ops.iter().any(|op| self.is_for_pieces(op)) {
            return;
        }
        for op in std::mem::take(ops) {
            if self.is_for_pieces(&op) {
                self.waiting.push_back(Ahead { op, progress: None });
            } else {
                ops.push(op);
            }
        }
    }

    /// Whether it is large, by one payload or by all of them.
    pub(super) fn is_for_pieces(&self, op: &Op) -> bool {
        let Some(payloads) = prepared(op) else { return false };
        let bytes: usize = payloads.iter().map(|prepared| prepared.data.len()).sum();
        bytes >= self.sizes.operation && !self.in_pieces(payloads, |_| true).is_empty()
    }

    fn in_pieces(&self, payloads: &[Prepared], is_added: impl Fn(MessageId) -> bool) -> VecDeque<usize> {
        let added = payloads.iter().enumerate().filter(|(_, prepared)| is_added(prepared.id));
        let sizes: Vec<_> = added.map(|(position, prepared)| (position, prepared.data.len())).collect();
        self.sizes.in_pieces(&sizes)
    }

    /// The operation whose turn it is, if it is not known yet what of it would be added.
    pub(super) fn to_look_at(&self) -> Option<&Op> {
        self.waiting.front().filter(|ahead| ahead.progress.is_none()).map(|ahead| &ahead.op)
    }

    /// These messages of the operation that was looked at would be added.
    pub(super) fn looked_at(&mut self, added: &HashSet<MessageId>) {
        let Some(Ahead { op, .. }) = self.waiting.pop_front() else { return };
        let payloads = prepared(&op).unwrap_or_default();
        let left = self.in_pieces(payloads, |message| added.contains(&message));
        if left.is_empty() {
            // It writes little: it is refused, or was handed in before.
            self.whole.push(op);
        } else {
            let progress = Some(Progress { left, ..Progress::default() });
            self.waiting.push_front(Ahead { op, progress });
        }
    }

    /// Where an accept has just been looked at and nothing of it is written: the bytes of all pieces that are to come, its own and
    /// others', whose payloads that are written in part count whole.
    pub(super) fn bytes_to_come(&self) -> Option<u64> {
        let first = self.waiting.front()?;
        let progress = first.progress.as_ref()?;
        if !matches!(first.op, Op::Accept { .. }) || !progress.begun.is_empty() {
            return None;
        }
        Some(self.waiting.iter().map(Ahead::bytes_to_come).sum())
    }

    /// What rides along with a commit of others.
    pub(super) fn along(&self) -> Option<Step<'_>> {
        if self.stands_alone || self.goes_beside { None } else { self.step(1) }
    }

    /// The next pieces: as much as so many whole ones.
    fn step(&self, most: usize) -> Option<Step<'_>> {
        let Ahead { op, progress } = self.waiting.front()?;
        let (payloads, mut then) = (prepared(op)?, progress.clone()?);
        let (mut pieces, mut room) = (Vec::new(), most * self.sizes.piece);
        let row = self.sizes.piece / ROW_PART;
        while room > 0
            && let Some(position) = then.left.front()
        {
            let Prepared { id: message, data, .. } = &payloads[*position];
            if then.pieces == 0 {
                pieces.push(Piece { message: *message, number: 0, bytes: &[] });
                then.begun.push(*message);
            }
            let mut chunks = data.chunks(self.sizes.piece).skip(then.pieces as usize);
            while room > 0
                && let Some(bytes) = chunks.next()
            {
                then.pieces += 1;
                pieces.push(Piece { message: *message, number: then.pieces, bytes });
                room = room.saturating_sub(bytes.len().max(row));
            }
            if chunks.next().is_none() {
                then.left.pop_front();
                then.pieces = 0;
            }
        }
        (!pieces.is_empty()).then_some(Step { pieces, then })
    }

    /// The pieces of a step are there.
    pub(super) fn written(&mut self, then: Progress) {
        self.stands_alone = false;
        let Some(mut ahead) = self.waiting.pop_front() else { return };
        let before = ahead.progress.as_ref().map_or(0, |progress| progress.left.len());
        let done = before - then.left.len();
        let positions: Vec<usize> =
            ahead.progress.iter().flat_map(|progress| &progress.left).take(done).copied().collect();
        if let Some(payloads) = prepared_mut(&mut ahead.op) {
            for position in positions {
                let Prepared { id, salt, data, .. } = &mut payloads[position];
                let owner = Owner::Data { message: id.as_bytes(), salt };
                let count = u32::try_from(data.chunks(self.sizes.piece).len()).unwrap_or(u32::MAX);
                *data = InPieces::in_place_of(data, owner, count);
            }
        }
        if then.left.is_empty() {
            self.whole.push(ahead.op);
        } else {
            ahead.progress = Some(then);
            self.waiting.push_back(ahead);
        }
    }

    /// A commit with pieces has failed.
    pub(super) fn not_written(&mut self) {
        self.stands_alone = true;
    }

    /// What the first step alone would write.
    pub(super) fn alone(&self, closing: bool, now: Instant) -> Option<Step<'_>> {
        self.step(if closing { STEP_PIECES } else { self.pace.pieces(now) })
    }

    // === beside the turns ===

    /// Whether something is being written beside the turns.
    pub(super) fn is_written_beside(&self) -> bool {
        !matches!(self.beside, Beside::Nothing)
    }

    /// What is to be written beside the turns now.
    pub(super) fn next_beside(&self, closing: bool, now: Instant) -> Option<Step<'_>> {
        let is_due = self.goes_beside && self.due(now).is_some_and(|due| closing || due <= now);
        if is_due { self.alone(closing, now) } else { None }
    }

    pub(super) fn begun_beside(&mut self, then: Progress, since: Instant) {
        self.beside = Beside::Step { then, since };
    }

    /// What was being written beside the turns is there.
    pub(super) fn written_beside(&mut self, now: Instant) {
        if let Beside::Step { then, since } = std::mem::take(&mut self.beside) {
            self.written(then);
            self.pace.committed(Whose::Pieces, now, now.saturating_duration_since(since));
        }
    }

    /// What was being written beside the turns is not there: its operation, to be refused, and the messages of which pieces are.
    pub(super) fn not_written_beside(&mut self) -> Option<(Op, Vec<MessageId>)> {
        match std::mem::take(&mut self.beside) {
            Beside::Step { then, .. } => self.give_up_first().map(|(op, _)| (op, then.begun)),
            Beside::Nothing | Beside::GivenUp => None,
        }
    }

    /// Gives up operations, which are then to be refused; and the messages of which pieces are there, to be removed.
    pub(super) fn give_up(&mut self, is_given_up: impl Fn(&Op) -> bool) -> (Vec<Op>, Vec<MessageId>) {
        let (mut ops, mut begun) = (Vec::new(), Vec::new());
        if self.waiting.front().is_some_and(|first| is_given_up(&first.op)) {
            begun.extend(self.give_up_beside());
        }
        for ahead in std::mem::take(&mut self.waiting) {
            if is_given_up(&ahead.op) {
                begun.extend(ahead.progress.into_iter().flat_map(|progress| progress.begun));
                ops.push(ahead.op);
            } else {
                self.waiting.push_back(ahead);
            }
        }
        self.stands_alone = false;
        (ops, begun)
    }

    /// What is being written beside the turns is of an operation that is given up: messages of which pieces may come to be there.
    fn give_up_beside(&mut self) -> Vec<MessageId> {
        match std::mem::take(&mut self.beside) {
            Beside::Nothing => Vec::new(),
            Beside::GivenUp => {
                self.beside = Beside::GivenUp;
                Vec::new()
            }
            Beside::Step { then, .. } => {
                self.beside = Beside::GivenUp;
                then.begun
            }
        }
    }

    /// As [`Piecemeal::give_up`], of the one whose turn it is, of which nothing is being written beside the turns.
    pub(super) fn give_up_first(&mut self) -> Option<(Op, Vec<MessageId>)> {
        self.stands_alone = false;
        let Ahead { op, progress } = self.waiting.pop_front()?;
        Some((op, progress.map_or_else(Vec::new, |progress| progress.begun)))
    }

    /// Outcomes whose emits are being written.
    pub(super) fn outcomes(&self) -> impl Iterator<Item = &Settle> {
        self.waiting.iter().filter_map(|ahead| match &ahead.op {
            Op::Settle { settle, .. } => Some(settle),
            _ => None,
        })
    }

    /// Operations that can join a group.
    pub(super) fn take_whole(&mut self) -> Vec<Op> {
        std::mem::take(&mut self.whole)
    }

    pub(super) fn claimed(&mut self, messages: impl IntoIterator<Item = MessageId>) {
        self.claimed.extend(messages);
    }

    pub(super) fn take_claimed(&mut self) -> HashSet<MessageId> {
        std::mem::take(&mut self.claimed)
    }

    // === when ===

    /// When pieces are to be written although nobody else is; `None` if there are none.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        if self.waiting.is_empty() || self.is_written_beside() {
            return None;
        }
        Some(match (self.stands_alone, self.goes_beside) {
            (true, _) => now,
            (false, true) => self.pace.due_beside(now),
            (false, false) => self.pace.due(now),
        })
    }

    /// A commit has ended now.
    pub(super) fn committed(&mut self, whose: Whose, now: Instant, took: Duration) {
        self.pace.committed(whose, now, took);
    }
}

/// What an operation would add, if anything.
fn prepared(op: &Op) -> Option<&[Prepared]> {
    match op {
        Op::Accept { prepared, .. } | Op::Settle { prepared, .. } => Some(prepared),
        _ => None,
    }
}

fn prepared_mut(op: &mut Op) -> Option<&mut [Prepared]> {
    match op {
        Op::Accept { prepared, .. } | Op::Settle { prepared, .. } => Some(prepared),
        _ => None,
    }
}

/// Messages of an operation whose payloads stand in pieces.
pub(super) fn in_pieces(op: &Op) -> impl Iterator<Item = MessageId> {
    let prepared = prepared(op).unwrap_or_default().iter();
    prepared.filter(|prepared| InPieces::is(&prepared.data)).map(|prepared| prepared.id)
}
