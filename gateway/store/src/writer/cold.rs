//! Messages that a lease gives out and that are not at hand any more: read here while their pages are warm, for to ask a
//! reader costs two hand-overs between threads, which is more than the reading.

use crate::backend::{Backend, More};
use crate::call::ClaimedDelivery;
use crate::recent::Recent;

/// Bytes read for one lease; the rest is left to the readers, so that nobody waits long for the writer.
const COLD_BYTES_MAX: usize = 1024 * 1024;

/// Puts the messages of these deliveries beside those that were accepted lately. What is large, purged or damaged, or cannot be
/// read, is left to the readers, which say what is wrong with it. Messages from number `below` on are not in the database yet, and come
/// beside the others with their turn.
pub(crate) fn fetch(
    database: &mut impl Backend,
    recent: &Recent,
    deliveries: &[ClaimedDelivery],
    below: i64,
) {
    let known = deliveries.iter().filter(|delivery| delivery.message_seq < below);
    let cold = recent.missing(known.map(|delivery| (delivery.message, delivery.message_seq)));
    if cold.is_empty() {
        return;
    }
    let mut bytes = 0;
    let read = database.messages_small(&cold, &mut |id, message| {
        bytes += message.bytes();
        recent.keep([(id, message, 1)].into_iter());
        if bytes > COLD_BYTES_MAX { More::No } else { More::Yes }
    });
    if let Err(error) = read {
        tracing::debug!(%error, "messages are left to a reader");
    }
}
