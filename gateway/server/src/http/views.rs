//! Rows of the store as they stand in answers.

use std::time::Duration;

use gatepost_api::event::Event;
use gatepost_api::lists::{
    DeliveryItem, Depth, MessageItem, NodeItem, NodeShare, QueueItem, Rate, SenderItem, SenderLimit,
};
use gatepost_api::messages::{DeliveryView, HistoryItem, MessageView};
use gatepost_store::{
    DeliveryRow, HistoryRow, MessageDetail, MessageRow, NODE_SHARES, NodeRow, QueueRow, SenderRow,
};
use serde_json::value::RawValue;

use super::problem::Refusal;
use super::wait::read_reply;
use crate::config::SIZE_BYTES_MAX;

/// Whether a view may show what partners answered: that is payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replies {
    Shown,
    Withheld,
}

pub(crate) fn delivery(row: &DeliveryRow) -> DeliveryItem {
    DeliveryItem {
        id: row.id.0,
        message: row.message.0,
        destination: row.destination.clone(),
        state: row.state.to_owned(),
        reason: row.reason.map(str::to_owned),
        attempts: row.attempts,
        series: row.series,
        in_doubt: row.doubt,
        replayed: row.replayed,
        accepted_at: row.accepted_at.to_rfc3339(),
        changed_at: row.changed_at.to_rfc3339(),
        due_at: row.due.map(gatepost_core::Timestamp::to_rfc3339),
    }
}

pub(crate) fn message(row: &MessageRow) -> MessageItem {
    MessageItem {
        id: row.id.0,
        app: row.sender.name.clone(),
        kind: row.kind.clone(),
        accepted_at: row.accepted_at.to_rfc3339(),
        size: row.size,
        deliveries: row.deliveries.iter().map(delivery).collect(),
    }
}

pub(crate) fn sender(row: SenderRow) -> SenderItem {
    let some = |most: u64| (most < SIZE_BYTES_MAX).then_some(most);
    let limit =
        row.limit.map(|limit| SenderLimit { deliveries: some(limit.messages), bytes: some(limit.bytes) });
    SenderItem { sender: row.sender, deliveries: row.deliveries, bytes: row.bytes, limit }
}

pub(crate) fn node(row: &NodeRow) -> NodeItem {
    NodeItem {
        name: row.name.clone(),
        epoch: format!("{:08x}", row.epoch),
        version: row.version.clone(),
        started_at: row.since.to_rfc3339(),
        here: row.is_here,
        lease_ms: row.lease.map(|lease| u64::try_from(lease.as_millis()).unwrap_or(u64::MAX)),
        sequencer: row.is_sequencer,
        adapters: row.adapters.clone(),
        queues: row
            .shares
            .iter()
            .map(|(queue, buckets)| NodeShare { queue: queue.clone(), buckets: *buckets, of: NODE_SHARES })
            .collect(),
    }
}

pub(crate) fn queue(row: &QueueRow) -> QueueItem {
    let stats = &row.stats;
    QueueItem {
        name: row.name.clone(),
        kind: row.kind.as_str().to_owned(),
        depth: Depth {
            waiting: stats.waiting,
            leased: stats.leased,
            sending: stats.sending,
            in_doubt: stats.in_doubt,
            held: stats.held,
            dead: stats.dead,
        },
        oldest_ms: stats.oldest.map(millis),
        oldest_ready_ms: stats.oldest_ready.map(millis),
        held_lanes: stats.held_lanes,
        paused: stats.paused,
        tripped: stats.tripped.map(|reason| reason.as_str().to_owned()),
        rate: Rate { accepted_per_s: stats.accepted_per_s, settled_per_s: stats.settled_per_s },
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// A message with all that is known of its deliveries.
pub(crate) fn detail(detail: MessageDetail, replies: Replies) -> Result<MessageView, Refusal> {
    let unreadable =
        |_| Refusal::internal(format!("the attributes of message {} are not readable", detail.message.id));
    let attributes: Event = serde_json::from_slice(&detail.message.attributes).map_err(unreadable)?;
    let history = |row: &DeliveryRow| {
        let steps = detail.history.iter().filter(|step| step.delivery == row.id);
        steps.map(step).collect::<Result<Vec<_>, _>>()
    };
    let deliveries = detail.deliveries.iter().map(|(row, reply)| {
        let reply = reply.as_deref().filter(|_| replies == Replies::Shown);
        let reply = reply.map(read_reply).transpose()?;
        Ok::<_, Refusal>(DeliveryView { delivery: delivery(row), reply, history: history(row)? })
    });
    Ok(MessageView {
        id: detail.message.id.0,
        app: detail.message.sender.name.clone(),
        accepted_at: detail.message.accepted_at.to_rfc3339(),
        size: detail.message.size,
        attributes,
        payload_purged: detail.message.purged,
        deliveries: deliveries.collect::<Result<_, _>>()?,
    })
}

fn step(row: &HistoryRow) -> Result<HistoryItem, Refusal> {
    let evidence = row.evidence.clone().map(RawValue::from_string).transpose();
    Ok(HistoryItem {
        at: row.at.to_rfc3339(),
        event: row.event.clone(),
        attempt: row.attempt,
        code: row.code.clone(),
        reason: row.reason.clone(),
        by: row.by.clone(),
        evidence: evidence.map_err(|_| Refusal::internal("stored evidence is not readable"))?,
    })
}
