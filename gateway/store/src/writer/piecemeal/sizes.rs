//! What of an operation is written in pieces.

use std::collections::VecDeque;

/// Bytes of a piece.
const PIECE_BYTES: usize = 128 * 1024;
/// Payload bytes of an operation from which on it is written in pieces; of its smaller payloads no more stay in its own commit.
const OPERATION_BYTES: usize = 256 * 1024;
/// Smaller payloads of such an operation stay in it, as long as that is not too much.
const PAYLOAD_BYTES: usize = 64 * 1024;
/// Still smaller ones always do: rows of their own would cost more than their bytes.
const LEAST_BYTES: usize = 4 * 1024;

/// What is written in pieces, and how large they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) piece: usize,
    pub(crate) operation: usize,
    pub(crate) payload: usize,
    pub(crate) least: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { piece: PIECE_BYTES, operation: OPERATION_BYTES, payload: PAYLOAD_BYTES, least: LEAST_BYTES }
    }
}

impl Sizes {
    /// Which payloads of a large operation are written in pieces, by their positions, of positions and bytes: all that are large, and of
    /// the others as many as would make its own commit large.
    pub(super) fn in_pieces(&self, payloads: &[(usize, usize)]) -> VecDeque<usize> {
        let others = payloads.iter().filter(|(_, bytes)| *bytes < self.payload);
        let mut stay: usize = others.map(|(_, bytes)| bytes).sum();
        let goes_ahead = |(position, bytes): &(usize, usize)| {
            let is_large = *bytes >= self.payload;
            if !is_large && (*bytes < self.least || stay <= self.operation) {
                return None;
            }
            stay -= if is_large { 0 } else { *bytes };
            Some(*position)
        };
        payloads.iter().filter_map(goes_ahead).collect()
    }
}
