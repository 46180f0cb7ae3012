//! Large payloads are written in pieces, ahead of what accepts them: written at once, one keeps everybody else waiting as long as
//! hundreds of small messages do. The pieces ride along with the commits of others, one with each; while nobody else asks for anything they
//! have commits of their own, several in each. When all of them are there, the operation joins a group as any other does, and its commit
//! claims them. What was not accepted in the end is removed little by little.
//!
//! Several operations take turns, so that a small one does not wait for all of a large one.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use gatepost_core::MessageId;

use crate::call::Op;
use crate::prepared::Prepared;
use crate::seal::{InPieces, Owner};

/// Bytes of a piece.
const PIECE_BYTES: usize = 128 * 1024;
/// Payload bytes of an operation from which on it is written in pieces.
const OPERATION_BYTES: usize = 256 * 1024;
/// Smaller payloads of such an operation stay in one.
const PAYLOAD_BYTES: usize = 64 * 1024;
/// Pieces in one commit while nobody else asks for anything.
const STEP_PIECES: usize = 8;
/// For how long others are expected to come again.
const OTHERS_STAY: Duration = Duration::from_millis(100);
/// How long a piece waits for a commit of theirs, times what the last commit took.
const PATIENCE: u32 = 4;
/// Most operations that wait here; further ones are taken as they come.
const WAITING_MAX: usize = 64;

/// What is written in pieces, and how large they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) piece: usize,
    pub(crate) operation: usize,
    pub(crate) payload: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { piece: PIECE_BYTES, operation: OPERATION_BYTES, payload: PAYLOAD_BYTES }
    }
}

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
    pace: Pace,
}

struct Ahead {
    op: Op,
    /// `None` until it is known which of its payloads would be added.
    progress: Option<Progress>,
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

    /// Takes what is to be written in pieces out of `ops`, which are not asked for in any order: none of them has been answered.
    pub(super) fn part(&mut self, ops: &mut Vec<Op>) {
        if !ops.iter().any(|op| self.is_for_pieces(op)) {
            return;
        }
        for op in std::mem::take(ops) {
            if self.waiting.len() < WAITING_MAX && self.is_for_pieces(&op) {
                self.waiting.push_back(Ahead { op, progress: None });
            } else {
                ops.push(op);
            }
        }
    }

    /// Whether it is large, and has a large payload.
    pub(super) fn is_for_pieces(&self, op: &Op) -> bool {
        let Some(prepared) = prepared(op) else { return false };
        let bytes: usize = prepared.iter().map(|prepared| prepared.data.len()).sum();
        bytes >= self.sizes.operation
            && prepared.iter().any(|prepared| prepared.data.len() >= self.sizes.payload)
    }

    /// The operation whose turn it is, if it is not known yet what of it would be added.
    pub(super) fn to_look_at(&self) -> Option<&Op> {
        self.waiting.front().filter(|ahead| ahead.progress.is_none()).map(|ahead| &ahead.op)
    }

    /// These messages of the operation that was looked at would be added.
    pub(super) fn looked_at(&mut self, added: &HashSet<MessageId>) {
        let Some(ahead) = self.waiting.front_mut() else { return };
        let payloads = prepared(&ahead.op).unwrap_or_default().iter().enumerate();
        let large = payloads.filter(|(_, prepared)| {
            prepared.data.len() >= self.sizes.payload && added.contains(&prepared.id)
        });
        let left: VecDeque<usize> = large.map(|(position, _)| position).collect();
        if !left.is_empty() {
            ahead.progress = Some(Progress { left, ..Progress::default() });
        } else if let Some(Ahead { op, .. }) = self.waiting.pop_front() {
            // It writes little: it is refused, or was handed in before.
            self.whole.push(op);
        }
    }

    /// What rides along with a commit of others.
    pub(super) fn along(&self) -> Option<Step<'_>> {
        if self.stands_alone { None } else { self.step(1) }
    }

    /// The next pieces, at most so many.
    fn step(&self, most: usize) -> Option<Step<'_>> {
        let Ahead { op, progress } = self.waiting.front()?;
        let (payloads, mut then) = (prepared(op)?, progress.clone()?);
        let (mut pieces, mut room) = (Vec::new(), most);
        while room > 0
            && let Some(position) = then.left.front()
        {
            let Prepared { id: message, data, .. } = &payloads[*position];
            if then.pieces == 0 {
                pieces.push(Piece { message: *message, number: 0, bytes: &[] });
                then.begun.push(*message);
            }
            let chunks = data.chunks(self.sizes.piece);
            let is_last = then.pieces as usize + room >= chunks.len();
            for bytes in chunks.skip(then.pieces as usize).take(room) {
                then.pieces += 1;
                pieces.push(Piece { message: *message, number: then.pieces, bytes });
                room -= 1;
            }
            if is_last {
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

    /// Gives up operations, which are then to be refused; and the messages of which pieces are there, to be removed.
    pub(super) fn give_up(&mut self, is_given_up: impl Fn(&Op) -> bool) -> (Vec<Op>, Vec<MessageId>) {
        let (mut ops, mut begun) = (Vec::new(), Vec::new());
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

    /// As [`Piecemeal::give_up`], of the one whose turn it is.
    pub(super) fn give_up_first(&mut self) -> Option<(Op, Vec<MessageId>)> {
        self.stands_alone = false;
        let Ahead { op, progress } = self.waiting.pop_front()?;
        Some((op, progress.map_or_else(Vec::new, |progress| progress.begun)))
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
        (!self.waiting.is_empty()).then(|| if self.stands_alone { now } else { self.pace.due(now) })
    }

    /// A commit has ended now.
    pub(super) fn committed(&mut self, whose: Whose, now: Instant, took: Duration) {
        self.pace.committed(whose, now, took);
    }
}

/// Whose commit it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    Others,
    Pieces,
}

/// How many pieces are written, and when. Pure; time is a parameter.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    others: Option<Instant>,
    /// The end of the newest commit, and what it took.
    newest: Option<(Instant, Duration)>,
}

impl Pace {
    fn committed(&mut self, whose: Whose, now: Instant, took: Duration) {
        self.newest = Some((now, took));
        if whose == Whose::Others {
            self.others = Some(now);
        }
    }

    fn others_are_near(&self, now: Instant) -> bool {
        self.others.is_some_and(|others| now.saturating_duration_since(others) < OTHERS_STAY)
    }

    fn due(&self, now: Instant) -> Instant {
        match self.newest {
            Some((newest, took)) if self.others_are_near(now) => newest + PATIENCE * took,
            Some(_) | None => now,
        }
    }

    fn pieces(&self, now: Instant) -> usize {
        if self.others_are_near(now) { 1 } else { STEP_PIECES }
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

#[cfg(test)]
mod tests {
    use gatepost_core::Timestamp;
    use gatepost_core::message::{DataForm, NewMessage};
    use gatepost_core::principal::{Actor, ActorKind, TypePatterns};
    use tokio::sync::oneshot;

    use super::*;
    use crate::ops::Accept;
    use crate::prepared::Remains;
    use crate::seal::Vault;

    const SIZES: Sizes = Sizes { piece: 100, operation: 1000, payload: 300 };

    /// An operation with payloads of which the sealed forms have so many bytes.
    fn accept(sealed: &[usize]) -> Op {
        let (vault, sender) = (Vault::new(&[1; 32]), Actor::new(ActorKind::App, "ehr"));
        let mut prepared = Vec::new();
        for (number, bytes) in sealed.iter().enumerate() {
            let mut message = NewMessage {
                kind: "t".into(),
                source: "/test".into(),
                subject: None,
                partition_key: None,
                barrier_key: None,
                datacontenttype: None,
                correlation_id: None,
                expires_at: None,
                attributes: b"{}".to_vec(),
                form: DataForm::Text,
                // Nine bytes come with the seal.
                data: vec![b'x'; bytes.saturating_sub(9)],
                idempotency_key: number.to_string(),
                destinations: Vec::new(),
            };
            let at = Timestamp::from_micros(1);
            prepared.push(Prepared::new(&vault, &sender, &mut message, at, Remains::Within).unwrap());
        }
        let permit = TypePatterns::new(["*"]).permit(&sender, "t").unwrap();
        let accept = Accept { permit, session: None, messages: Vec::new() };
        Op::Accept { accept, prepared, answer: oneshot::channel().0 }
    }

    fn ids(op: &Op) -> Vec<MessageId> {
        prepared(op).unwrap().iter().map(|prepared| prepared.id).collect()
    }

    fn of(ops: Vec<Op>) -> Piecemeal {
        let (mut ops, mut piecemeal) = (ops, Piecemeal::new(SIZES));
        piecemeal.part(&mut ops);
        assert!(ops.is_empty());
        piecemeal
    }

    /// Looks at the one whose turn it is, and takes all of it for new.
    fn look(piecemeal: &mut Piecemeal) {
        let added = piecemeal.to_look_at().map(ids).unwrap_or_default();
        piecemeal.looked_at(&added.into_iter().collect());
    }

    /// Numbers and lengths of the pieces of a step that then is written.
    fn write(piecemeal: &mut Piecemeal, most: usize) -> Vec<(u32, usize)> {
        let step = piecemeal.step(most).unwrap();
        let pieces = step.pieces.iter().map(|piece| (piece.number, piece.bytes.len())).collect();
        let then = step.then;
        piecemeal.written(then);
        pieces
    }

    #[test]
    fn only_what_is_large_and_has_a_large_payload_is_parted_from_the_rest() {
        let mut piecemeal = Piecemeal::new(SIZES);
        let mut ops = vec![accept(&[999]), accept(&[1000]), accept(&[250; 4]), accept(&[300, 700])];
        piecemeal.part(&mut ops);
        let sizes: Vec<usize> = ops.iter().map(|op| prepared(op).unwrap().len()).collect();
        assert_eq!((sizes, piecemeal.waiting.len()), (vec![1, 4], 2));
        let mut many: Vec<Op> = (0..WAITING_MAX).map(|_| accept(&[1000])).collect();
        piecemeal.part(&mut many);
        assert_eq!((many.len(), piecemeal.waiting.len()), (2, WAITING_MAX), "only so many wait here");
    }

    #[test]
    fn a_payload_is_cut_into_pieces_that_are_numbered_and_the_first_says_that_nothing_is_accepted() {
        let mut piecemeal = of(vec![accept(&[1050])]);
        assert!(piecemeal.step(9).is_none(), "nothing before it was looked at");
        look(&mut piecemeal);
        assert_eq!(write(&mut piecemeal, 1), [(0, 0), (1, 100)]);
        assert_eq!(write(&mut piecemeal, 2), [(2, 100), (3, 100)]);
        assert!(piecemeal.take_whole().is_empty());
        let rest = write(&mut piecemeal, 100);
        assert_eq!((rest[0], rest[7], rest.len()), ((4, 100), (11, 50), 8));
        let whole = piecemeal.take_whole();
        assert_eq!(in_pieces(&whole[0]).count(), 1);
        assert!(piecemeal.due(Instant::now()).is_none());
    }

    /// What it is cut into is the sealed value.
    #[test]
    fn the_pieces_are_the_payload() {
        for bytes in [1000, 1001, 1099, 1100] {
            let mut piecemeal = of(vec![accept(&[bytes])]);
            look(&mut piecemeal);
            let sealed = prepared(&piecemeal.waiting[0].op).unwrap()[0].data.clone();
            let mut found = Vec::new();
            while let Some(step) = piecemeal.step(3) {
                found.extend(step.pieces.iter().flat_map(|piece| piece.bytes).copied());
                let then = step.then;
                piecemeal.written(then);
            }
            assert_eq!(found, sealed);
            let whole = piecemeal.take_whole();
            let Prepared { id, salt, data, .. } = &prepared(&whole[0]).unwrap()[0];
            let owner = Owner::Data { message: id.as_bytes(), salt };
            let count = u32::try_from(bytes.div_ceil(100)).unwrap();
            assert_eq!(InPieces::read(data, owner), Some(InPieces { count, bytes: bytes as u64 }));
        }
    }

    #[test]
    fn of_a_batch_what_is_small_or_known_stays_as_it_is() {
        let mut piecemeal = of(vec![accept(&[250, 400, 350, 300])]);
        let all = piecemeal.to_look_at().map(ids).unwrap();
        piecemeal.looked_at(&[all[0], all[1], all[3]].into());
        assert_eq!(
            write(&mut piecemeal, 5),
            [(0, 0), (1, 100), (2, 100), (3, 100), (4, 100), (0, 0), (1, 100)]
        );
        assert_eq!(write(&mut piecemeal, 5), [(2, 100), (3, 100)]);
        let whole = piecemeal.take_whole();
        assert_eq!(in_pieces(&whole[0]).collect::<Vec<_>>(), [all[1], all[3]]);
        // Where nothing would be added, nothing is written.
        let mut piecemeal = of(vec![accept(&[1000])]);
        piecemeal.looked_at(&HashSet::new());
        assert_eq!(piecemeal.take_whole().len(), 1);
    }

    #[test]
    fn they_take_turns_and_what_is_given_up_says_what_of_it_is_there() {
        let mut piecemeal = of(vec![accept(&[1000]), accept(&[2000])]);
        look(&mut piecemeal);
        let first = ids(&piecemeal.waiting[0].op);
        write(&mut piecemeal, 1);
        assert!(piecemeal.to_look_at().is_some(), "the other one's turn");
        look(&mut piecemeal);
        write(&mut piecemeal, 1);
        assert_eq!(write(&mut piecemeal, 1), [(2, 100)], "the first one's again");
        let (ops, begun) = piecemeal.give_up(|op| ids(op) == first);
        assert_eq!((ops.len(), begun), (1, first));
        let (op, begun) = piecemeal.give_up_first().unwrap();
        assert_eq!(begun, ids(&op));
        assert!(piecemeal.give_up_first().is_none());
    }

    #[test]
    fn what_has_failed_among_others_stands_alone() {
        let mut piecemeal = of(vec![accept(&[1000])]);
        look(&mut piecemeal);
        assert!(piecemeal.along().is_some());
        piecemeal.not_written();
        let now = Instant::now();
        piecemeal.committed(Whose::Others, now, Duration::from_secs(1));
        assert!(piecemeal.along().is_none());
        assert_eq!(piecemeal.due(now), Some(now), "and does not wait for them");
        write(&mut piecemeal, 1);
        assert!(piecemeal.along().is_some());
    }

    #[test]
    fn pieces_wait_for_others_that_come_often_and_are_larger_while_nobody_does() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!((pace.due(start), pace.pieces(start)), (start, STEP_PIECES));
        let took = Duration::from_millis(2);
        pace.committed(Whose::Others, start, took);
        assert_eq!((pace.due(start), pace.pieces(start)), (start + PATIENCE * took, 1));
        let (later, took) = (start + Duration::from_millis(20), Duration::from_millis(3));
        pace.committed(Whose::Pieces, later, took);
        assert_eq!((pace.due(later), pace.pieces(later)), (later + PATIENCE * took, 1));
        let gone = start + OTHERS_STAY;
        assert_eq!((pace.due(gone), pace.pieces(gone)), (gone, STEP_PIECES));
    }
}
