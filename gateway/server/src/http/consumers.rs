//! Who asks for work: when each queue's consumer was last heard of. So an adapter that somebody else runs is known to be there
//! or not. Times are this process's; nothing of it is stored.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gatepost_api::lists::AdapterItem;

/// An adapter that the gateway does not run is absent when nothing was heard of it for this long. An open long poll counts.
pub(crate) const ABSENT_AFTER: Duration = Duration::from_secs(60);
/// States of an adapter that the gateway does not run.
pub(crate) const EXTERNAL: &str = "external";
pub(crate) const EXTERNAL_ABSENT: &str = "external_absent";

/// Bounded by the queues that configurations have named.
#[derive(Debug, Default)]
pub(crate) struct Consumers {
    heard: Mutex<HashMap<String, Heard>>,
}

#[derive(Debug)]
struct Heard {
    polls: usize,
    last: Instant,
}

/// An open poll. Dropped when it is answered or its client has gone.
#[derive(Debug)]
pub(crate) struct Poll {
    consumers: Arc<Consumers>,
    queue: String,
}

impl Consumers {
    /// The queue's consumer has just done something.
    pub(crate) fn saw(&self, queue: &str) {
        self.note(queue, |_| {});
    }

    /// The queue's consumer waits for work.
    pub(crate) fn poll(self: &Arc<Self>, queue: &str) -> Poll {
        self.note(queue, |heard| heard.polls += 1);
        Poll { consumers: Arc::clone(self), queue: queue.to_owned() }
    }

    /// How long nothing was heard of the queue's consumer; `None` if nothing ever was.
    pub(crate) fn silent_for(&self, queue: &str) -> Option<Duration> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = heard.get(queue)?;
        Some(if heard.polls > 0 { Duration::ZERO } else { heard.last.elapsed() })
    }

    pub(crate) fn seen_within(&self, queue: &str, span: Duration) -> bool {
        self.silent_for(queue).is_some_and(|silent| silent <= span)
    }

    /// An adapter as the supervisor shows it, with what is known here of one that the gateway does not run.
    pub(crate) fn observed(&self, adapter: AdapterItem) -> AdapterItem {
        if adapter.state != EXTERNAL {
            return adapter;
        }
        let why = match self.silent_for(&adapter.name) {
            Some(silent) if silent <= ABSENT_AFTER => return adapter,
            Some(silent) => format!("nothing heard of it for {} s", silent.as_secs()),
            None => "nothing heard of it since the gateway started".to_owned(),
        };
        AdapterItem { state: EXTERNAL_ABSENT.to_owned(), last_error: Some(why), ..adapter }
    }

    fn note(&self, queue: &str, change: impl FnOnce(&mut Heard)) {
        let mut all = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match all.get_mut(queue) {
            Some(heard) => {
                heard.last = now;
                change(heard);
            }
            None => change(all.entry(queue.to_owned()).or_insert(Heard { polls: 0, last: now })),
        }
    }

    #[cfg(test)]
    pub(crate) fn backdate(&self, queue: &str, span: Duration) {
        self.heard.lock().unwrap().get_mut(queue).unwrap().last -= span;
    }
}

impl Drop for Poll {
    fn drop(&mut self) {
        self.consumers.note(&self.queue, |heard| heard.polls = heard.polls.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_is_there_while_it_polls_and_for_a_while_after() {
        let consumers = Arc::new(Consumers::default());
        assert_eq!(consumers.silent_for("lab"), None);
        let poll = consumers.poll("lab");
        consumers.backdate("lab", ABSENT_AFTER * 2);
        assert!(consumers.seen_within("lab", ABSENT_AFTER), "its poll is open");
        drop(poll);
        assert!(consumers.seen_within("lab", ABSENT_AFTER), "it has just ended");
        consumers.backdate("lab", ABSENT_AFTER * 2);
        assert!(!consumers.seen_within("lab", ABSENT_AFTER));
        consumers.saw("lab");
        assert!(consumers.seen_within("lab", ABSENT_AFTER));
    }
}
