//! What the listeners count. Plain atomics: the metrics endpoint reads them, nothing here knows its format.

use std::sync::atomic::{AtomicU64, Ordering};

use super::peer::RefusalCode;

/// Counters of all listeners of one gateway. Relaxed order is enough: each number stands alone.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    accepted: AtomicU64,
    open: AtomicU64,
    refused: [AtomicU64; RefusalCode::ALL.len()],
    accept_errors: AtomicU64,
    cut_slow: AtomicU64,
    panics: AtomicU64,
}

impl Counters {
    /// Connections taken from the kernel, refused ones included.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Connections open now, those that are being refused included.
    pub(crate) fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    pub(crate) fn refused(&self, code: RefusalCode) -> u64 {
        self.refused[code as usize].load(Ordering::Relaxed)
    }

    /// Failures of `accept` itself, mostly for want of file descriptors.
    pub(crate) fn accept_errors(&self) -> u64 {
        self.accept_errors.load(Ordering::Relaxed)
    }

    /// Connections cut because their peer did not send, or did not take, in time.
    pub(crate) fn cut_slow(&self) -> u64 {
        self.cut_slow.load(Ordering::Relaxed)
    }

    /// Panics caught in handlers and in connections.
    pub(crate) fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    pub(super) fn count_refused(&self, code: RefusalCode) {
        self.refused[code as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_accept_error(&self) {
        self.accept_errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_cut_slow(&self) {
        self.cut_slow.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_panic(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_opened(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_closed(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}
