//! What is large and not written in pieces (`piecemeal.rs`) waits for its turn. Writing it takes as long as hundreds of small ones, and meanwhile everybody else waits: so after
//! each turn of theirs the others have the writer for as long, if there are any. Pure; time is a parameter.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Payload bytes from which on an operation is bulk.
const BULK_BYTES: usize = 1024 * 1024;
/// Most operations that wait here; further ones are taken as they come.
const WAITING_MAX: usize = 64;

pub(super) struct Bulk<T> {
    waiting: VecDeque<(T, usize)>,
    /// Not before.
    turn: Instant,
}

impl<T> Bulk<T> {
    pub(super) fn new(now: Instant) -> Self {
        Self { waiting: VecDeque::new(), turn: now }
    }

    /// Takes what is large out of `ops`, which are not asked for in any order: none of them has been answered.
    pub(super) fn part(&mut self, ops: &mut Vec<T>, bytes: impl Fn(&T) -> usize) {
        if !ops.iter().any(|op| bytes(op) >= BULK_BYTES) {
            return;
        }
        for op in std::mem::take(ops) {
            match bytes(&op) {
                large @ BULK_BYTES.. if self.waiting.len() < WAITING_MAX => {
                    self.waiting.push_back((op, large))
                }
                _ => ops.push(op),
            }
        }
    }

    pub(super) fn waiting(&self) -> impl Iterator<Item = &T> {
        self.waiting.iter().map(|(op, _)| op)
    }

    /// When something is to be written; `None` if nothing waits.
    pub(super) fn turn(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.turn)
    }

    /// Of what waits, at least one and then as many as `bytes_max` allows.
    pub(super) fn take(&mut self, bytes_max: usize) -> Vec<T> {
        let mut taken = Vec::new();
        let mut sum = 0;
        while let Some((op, bytes)) =
            self.waiting.pop_front_if(|(_, bytes)| sum == 0 || sum + *bytes <= bytes_max)
        {
            sum += bytes;
            taken.push(op);
        }
        taken
    }

    /// A turn has ended that took so long; whether others are waiting by now.
    pub(super) fn ended(&mut self, now: Instant, took: Duration, others_wait: bool) {
        self.turn = if others_wait { now + took } else { now };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    fn bytes(op: &usize) -> usize {
        *op
    }

    #[test]
    fn what_is_large_is_parted_from_the_rest_and_both_stay_in_order() {
        let mut bulk = Bulk::new(Instant::now());
        let mut ops = vec![1, 2 * MIB, 2, MIB, MIB - 1];
        assert_eq!(bulk.turn(), None);
        bulk.part(&mut ops, bytes);
        assert_eq!(ops, [1, 2, MIB - 1]);
        assert_eq!(bulk.take(16 * MIB), [2 * MIB, MIB]);
        assert_eq!(bulk.turn(), None);
    }

    #[test]
    fn a_turn_is_one_at_least_and_no_more_than_a_group() {
        let mut bulk = Bulk::new(Instant::now());
        bulk.part(&mut vec![64 * MIB, 10 * MIB, 6 * MIB, MIB], bytes);
        assert_eq!(bulk.take(16 * MIB), [64 * MIB]);
        assert_eq!(bulk.take(16 * MIB), [10 * MIB, 6 * MIB]);
        assert_eq!(bulk.take(16 * MIB), [MIB]);
        assert!(bulk.take(16 * MIB).is_empty());
    }

    #[test]
    fn only_so_much_waits_here() {
        let mut bulk = Bulk::new(Instant::now());
        let mut ops = vec![MIB; WAITING_MAX + 2];
        bulk.part(&mut ops, bytes);
        assert_eq!(ops, [MIB, MIB]);
    }

    #[test]
    fn who_waits_has_the_writer_for_as_long_and_else_nobody_waits() {
        let start = Instant::now();
        let mut bulk = Bulk::new(start);
        bulk.part(&mut vec![MIB, MIB], bytes);
        assert_eq!(bulk.turn(), Some(start));
        let (now, took) = (start + Duration::from_millis(300), Duration::from_millis(300));
        bulk.ended(now, took, false);
        assert_eq!(bulk.turn(), Some(now));
        bulk.ended(now, took, true);
        assert_eq!(bulk.turn(), Some(now + took));
    }
}
