//! Messages accepted lately, sealed as they were stored, so that the lease that usually follows at once need not read them; and
//! those that the writer has just read for a lease.
//!
//! Only a shortcut: what is not here is read from the database, which holds the same.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use crate::seal::Salt;
use bytes::Bytes;
use gatepost_core::message::DataForm;
use gatepost_core::principal::Actor;
use gatepost_core::{MessageId, Timestamp};

/// Bytes of sealed content kept in all.
const RECENT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Larger messages are not kept: reading them costs little beside sending them.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// A message as it stands in its row.
#[derive(Clone)]
pub(crate) struct RecentMessage {
    pub(crate) sender: Actor,
    pub(crate) accepted_at: Timestamp,
    pub(crate) form: DataForm,
    /// Payload bytes.
    pub(crate) size: u64,
    pub(crate) salt: Salt,
    /// Sealed.
    pub(crate) attributes: Bytes,
    /// Sealed.
    pub(crate) data: Bytes,
}

impl RecentMessage {
    pub(crate) fn bytes(&self) -> usize {
        self.attributes.len() + self.data.len()
    }
}

#[derive(Default)]
pub(crate) struct Recent(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// With the number of leases that are still to come.
    messages: HashMap<MessageId, (RecentMessage, usize)>,
    /// Oldest first; some may be gone already.
    order: VecDeque<MessageId>,
    bytes: usize,
}

impl Recent {
    /// Keeps messages, each for as many leases as it has deliveries, and forgets the oldest ones that no longer fit.
    pub(crate) fn keep(&self, messages: impl Iterator<Item = (MessageId, RecentMessage, usize)>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, message, deliveries) in messages {
            if message.bytes() > MESSAGE_BYTES_MAX || deliveries == 0 {
                continue;
            }
            kept.bytes += message.bytes();
            kept.messages.insert(id, (message, deliveries));
            kept.order.push_back(id);
        }
        while kept.bytes > RECENT_BYTES_MAX || kept.order.len() > 2 * kept.messages.len() + 1024 {
            let Some(oldest) = kept.order.pop_front() else { return };
            kept.forget(oldest);
        }
    }

    /// The numbers of those messages that are not kept.
    pub(crate) fn missing(&self, messages: impl Iterator<Item = (MessageId, i64)>) -> Vec<i64> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        messages.filter(|(id, _)| !kept.messages.contains_key(id)).map(|(_, seq)| seq).collect()
    }

    /// Those of `ids` that are kept.
    pub(crate) fn take(&self, ids: impl Iterator<Item = MessageId>) -> HashMap<MessageId, RecentMessage> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = HashMap::new();
        for id in ids {
            let Some((message, leases)) = kept.messages.get_mut(&id) else { continue };
            *leases -= 1;
            let last = *leases == 0;
            found.insert(id, message.clone());
            if last {
                kept.forget(id);
            }
        }
        found
    }
}

impl Kept {
    fn forget(&mut self, id: MessageId) {
        if let Some((message, _)) = self.messages.remove(&id) {
            self.bytes -= message.bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use gatepost_core::principal::ActorKind;

    use super::*;
    use crate::seal::Salt;

    fn message(bytes: usize) -> RecentMessage {
        RecentMessage {
            salt: Salt::from_stored([0; crate::seal::SALT_BYTES]),
            sender: Actor::new(ActorKind::App, "ehr"),
            accepted_at: Timestamp::from_micros(1),
            form: DataForm::Base64,
            size: bytes as u64,
            attributes: Bytes::new(),
            data: vec![0; bytes].into(),
        }
    }

    fn id(n: u32) -> MessageId {
        MessageId(uuid::Uuid::from_u128(n.into()))
    }

    #[test]
    fn a_message_is_there_for_each_of_its_deliveries_and_then_forgotten() {
        let recent = Recent::default();
        recent.keep([(id(1), message(10), 2), (id(2), message(10), 1)].into_iter());
        assert_eq!(recent.take([id(1), id(2), id(3)].into_iter()).len(), 2);
        assert_eq!(recent.take([id(1), id(2)].into_iter()).len(), 1);
        assert_eq!(recent.take([id(1), id(2)].into_iter()).len(), 0);
        assert_eq!(recent.0.lock().unwrap().bytes, 0);
    }

    #[test]
    fn it_is_bounded_whoever_reads_and_whoever_does_not() {
        let recent = Recent::default();
        recent.keep([(id(0), message(MESSAGE_BYTES_MAX + 1), 1)].into_iter());
        for n in 1..=1000 {
            recent.keep(std::iter::once((id(n), message(MESSAGE_BYTES_MAX), 1)));
        }
        let fit = RECENT_BYTES_MAX / MESSAGE_BYTES_MAX;
        assert_eq!(recent.0.lock().unwrap().messages.len(), fit);
        assert_eq!(recent.take((0..=1000).map(id)).len(), fit);
        for n in 0..10_000 {
            recent.keep(std::iter::once((id(n), message(1), 1)));
            recent.take(std::iter::once(id(n)));
        }
        assert!(recent.0.lock().unwrap().order.len() < 2000);
    }
}
