//! Keys that are to be deleted from the adapter's state: of what is kept no more. A settlement deletes some, so until their turn comes they
//! are there and take their room.

use std::collections::VecDeque;

#[derive(Debug, Default)]
pub(super) struct Garbage {
    keys: VecDeque<(String, usize)>,
    bytes: usize,
}

impl Garbage {
    /// `bytes`: what the key and its value take.
    pub(super) fn add(&mut self, key: String, bytes: usize) {
        self.keys.push_back((key, bytes));
        self.bytes += bytes;
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Up to `most` keys, to be deleted now.
    pub(super) fn take(&mut self, most: usize) -> impl Iterator<Item = String> + use<'_> {
        let count = most.min(self.keys.len());
        self.bytes -= self.keys.iter().take(count).map(|(_, bytes)| bytes).sum::<usize>();
        self.keys.drain(..count).map(|(key, _)| key)
    }
}
