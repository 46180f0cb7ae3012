//! The domain's words in the audit log's vocabulary.

use gatepost_audit::{By, Event as LeafEvent, Leaf, LeafDelivery, Level as LeafLevel, State as LeafState};
use gatepost_core::delivery::Record;
use gatepost_core::principal::{Actor, ActorKind};
use gatepost_core::{Level, MessageId, State, Timestamp};

/// The leaf of an accepted message.
pub(super) fn accepted_leaf<'l>(
    at: Timestamp,
    sender: &'l Actor,
    message: &MessageId,
    size: u64,
    content: [u8; 32],
    deliveries: Vec<LeafDelivery<'l>>,
) -> Leaf<'l> {
    let mut leaf = Leaf::new(at.as_micros(), actor(sender), LeafEvent::Accepted);
    leaf.message = Some(*message.as_bytes());
    leaf.size = Some(size);
    leaf.content = Some(content);
    leaf.deliveries = deliveries;
    leaf
}

pub(crate) fn actor(actor: &Actor) -> By<'_> {
    let kind = match actor.kind {
        ActorKind::Gateway => gatepost_audit::ActorKind::Gateway,
        ActorKind::App => gatepost_audit::ActorKind::App,
        ActorKind::Adapter => gatepost_audit::ActorKind::Adapter,
        ActorKind::Operator => gatepost_audit::ActorKind::Operator,
        ActorKind::Peer => gatepost_audit::ActorKind::Peer,
    };
    By::new(kind, actor.name.as_str())
}

pub(super) fn event_of(record: Record) -> LeafEvent {
    match record {
        Record::Attempt => LeafEvent::Attempt,
        Record::Sent => LeafEvent::Sent,
        Record::Delivered => LeafEvent::Delivered,
        Record::Retry => LeafEvent::Retry,
        Record::Released => LeafEvent::Released,
        Record::InDoubt => LeafEvent::InDoubt,
        Record::Dead => LeafEvent::Dead,
        Record::Expired => LeafEvent::Expired,
        Record::Resolved => LeafEvent::Resolved,
        Record::Replayed => LeafEvent::Replayed,
        Record::Discarded => LeafEvent::Discarded,
        Record::Moved => LeafEvent::Moved,
    }
}

pub(super) fn leaf_level(level: Level) -> LeafLevel {
    match level {
        Level::Sent => LeafLevel::Sent,
        Level::Transport => LeafLevel::Transport,
        Level::Business => LeafLevel::Business,
    }
}

pub(crate) fn leaf_state(state: &State) -> LeafState {
    match state {
        State::Waiting { .. } => LeafState::Waiting,
        State::Leased { .. } => LeafState::Leased,
        State::Sending { .. } => LeafState::Sending,
        State::InDoubt { .. } => LeafState::InDoubt,
        State::Delivered => LeafState::Delivered,
        State::Dead { .. } => LeafState::Dead,
        State::Expired => LeafState::Expired,
        State::Discarded => LeafState::Discarded,
    }
}
