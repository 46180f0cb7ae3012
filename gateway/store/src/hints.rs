//! Lossy hints that something changed. The tables are the truth: whoever waits arms the hint first, then looks, then waits,
//! and looks again after a while in any case.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use gatepost_core::MessageId;
use tokio::sync::Notify;

#[derive(Default)]
pub(crate) struct Hints {
    queues: Mutex<HashMap<String, Arc<Notify>>>,
    messages: Mutex<HashMap<MessageId, Waiters>>,
}

struct Waiters {
    notify: Arc<Notify>,
    count: usize,
}

impl Hints {
    pub(crate) fn queue(&self, queue: &str) -> Arc<Notify> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(notify) = queues.get(queue) {
            return Arc::clone(notify);
        }
        let notify = Arc::new(Notify::new());
        queues.insert(queue.to_owned(), Arc::clone(&notify));
        notify
    }

    /// Whether anybody holds a hint of the queue.
    pub(crate) fn is_awaited(&self, queue: &str) -> bool {
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.get(queue).is_some_and(|notify| Arc::strong_count(notify) > 1)
    }

    pub(crate) fn queue_changed(&self, queue: &str) {
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(notify) = queues.get(queue) {
            notify.notify_waiters();
        }
    }

    pub(crate) fn message(self: &Arc<Self>, message: MessageId) -> MessageHint {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        let waiters =
            messages.entry(message).or_insert_with(|| Waiters { notify: Arc::new(Notify::new()), count: 0 });
        waiters.count += 1;
        MessageHint { hints: Arc::clone(self), message, notify: Arc::clone(&waiters.notify) }
    }

    pub(crate) fn message_changed(&self, message: MessageId) {
        let messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiters) = messages.get(&message) {
            waiters.notify.notify_waiters();
        }
    }

    /// Whether anybody waits for messages at all; saves the look-ups when nobody does.
    pub(crate) fn messages_awaited(&self) -> bool {
        !self.messages.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

/// Registered while it lives.
pub struct MessageHint {
    hints: Arc<Hints>,
    message: MessageId,
    notify: Arc<Notify>,
}

impl MessageHint {
    pub fn notify(&self) -> &Notify {
        &self.notify
    }
}

impl Drop for MessageHint {
    fn drop(&mut self) {
        let mut messages = self.hints.messages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiters) = messages.get_mut(&self.message) {
            waiters.count -= 1;
            if waiters.count == 0 {
                messages.remove(&self.message);
            }
        }
    }
}
