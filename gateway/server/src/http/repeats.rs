//! Events that rights or routes refuse now, although the same hand-in was accepted before: those are answered as the first
//! time. The store is asked only about what would be refused.

use gatepost_core::message::NewMessage;
use gatepost_core::principal::Actor;
use gatepost_store::{Accepted, Store};

use super::problem::Refusal;

/// An event with what rights and routes say of it.
pub(crate) struct Drafted {
    pub(crate) message: NewMessage,
    pub(crate) refusal: Option<Box<Refusal>>,
}

/// The events of a request: what the store is to accept, and what it has accepted before.
pub(crate) struct Sorted {
    pub(crate) routed: Vec<NewMessage>,
    /// By their place in the request, ascending.
    known: Vec<(usize, Accepted)>,
}

impl Sorted {
    /// Fails with the first refusal of an event that is not a repetition.
    pub(crate) async fn of(store: &Store, sender: &Actor, drafts: Vec<Drafted>) -> Result<Self, Refusal> {
        let mut sorted = Self { routed: Vec::with_capacity(drafts.len()), known: Vec::new() };
        for (index, draft) in drafts.into_iter().enumerate() {
            let Some(refusal) = draft.refusal else {
                sorted.routed.push(draft.message);
                continue;
            };
            match store.accepted_before(sender, &draft.message).await? {
                Some(accepted) => sorted.known.push((index, accepted)),
                None => return Err(*refusal),
            }
        }
        Ok(sorted)
    }

    /// Puts what was known into its places among what the store has answered for the others.
    pub(crate) fn merged<T>(self, mut answered: Vec<T>, answer: impl Fn(Accepted) -> T) -> Vec<T> {
        for (index, accepted) in self.known {
            answered.insert(index.min(answered.len()), answer(accepted));
        }
        answered
    }
}
