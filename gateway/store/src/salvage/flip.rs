//! The one flipped bit of a frame of the write-ahead log, which SQLite's checksum tells from most others of the frame, and not from all.
//!
//! The checksum adds words up, modulo 2^32: what a flip of one of their highest bits does to the sums comes again every few words. What it
//! leaves open the rows say, each of which has a sum of its own: no frame has more rows that verify than the one that was written.

use super::mend::candidates;
use super::page::{Page, Pages};
use super::table::table_of;
use crate::sqlite::wal::{FRAME_HEADER_BYTES, number};

/// Of a frame's header, what its checksum covers: the page's number, and how many there are.
const COVERED_BYTES: usize = 8;

pub(super) enum Flip {
    /// It is not one bit.
    None,
    /// As it was written, but for bytes that mean nothing.
    PutRight(Vec<u8>),
    /// One bit of the page, and nothing says which. With one of those put right, so that the chain goes on.
    Somewhere(Vec<u8>),
    /// It may be one of the page's number.
    Anywhere,
}

impl Flip {
    /// Of a frame that does not fit.
    pub(super) fn find(pages: &dyn Pages, frame: &[u8], fits: impl Fn(&[u8]) -> bool) -> Self {
        let mut candidates: Vec<_> = candidates(frame, fits).collect();
        if candidates.len() > 1 {
            let scores: Vec<_> = candidates.iter().map(|frame| rows_that_verify(pages, frame)).collect();
            let best = scores.iter().copied().max();
            let mut scores = scores.into_iter();
            candidates.retain(|_| scores.next() == best);
        }
        let Some(first) = candidates.pop() else { return Self::None };
        let meaning = meaning(&first);
        if candidates.iter().all(|other| self::meaning(other) == meaning) {
            Self::PutRight(first)
        } else if candidates.iter().all(|other| other[..COVERED_BYTES] == frame[..COVERED_BYTES])
            && first[..COVERED_BYTES] == frame[..COVERED_BYTES]
        {
            Self::Somewhere(first)
        } else {
            Self::Anywhere
        }
    }
}

fn rows_that_verify(pages: &dyn Pages, frame: &[u8]) -> usize {
    let page = Page::read(pages, number(frame, 0), &frame[FRAME_HEADER_BYTES..]);
    page.map_or(0, |page| page.cells.iter().filter(|cell| table_of(cell).is_some()).count())
}

/// A frame without what nobody reads: its checksum, and what is unused of its page.
fn meaning(frame: &[u8]) -> Vec<u8> {
    let mut meaning = frame.to_vec();
    meaning[COVERED_BYTES..FRAME_HEADER_BYTES].fill(0);
    if let Some(unused) = Page::unused(number(frame, 0), &frame[FRAME_HEADER_BYTES..]) {
        meaning[FRAME_HEADER_BYTES..][unused].fill(0);
    }
    meaning
}
