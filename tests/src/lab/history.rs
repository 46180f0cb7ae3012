//! What was seen from outside while a gateway ran.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

use crate::gateway::Gateway;

/// Everything that the judge may know. It is complete when senders have ended and all work is done.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// What was handed in, each sender's in the order in which it did so; a sender does one at a time.
    pub submissions: Vec<Submission>,
    /// The partners, by the destination that they stand behind. Readers of inboxes are partners too.
    pub partners: BTreeMap<String, Partner>,
    /// The audit log's entries.
    pub log: Vec<Value>,
    /// What `audit verify` and `audit reconcile` found wrong, in their words.
    pub log_faults: Vec<String>,
    /// Deliveries that the API lists as in doubt and held.
    pub held: BTreeSet<String>,
    /// Deliveries whose adapter or reader itself refused them, rightly.
    pub rejected: BTreeSet<String>,
    /// Settles with a token whose time was over, all of which must have been refused.
    pub late: Vec<LateSettle>,
    /// Settles that carried an emitted message and a count in the adapter's state.
    pub combined: Vec<Combined>,
    /// That count at the end, by adapter.
    pub counts: BTreeMap<String, u64>,
    pub health: Vec<HealthSample>,
}

/// One call of a sender: one event, or a batch.
#[derive(Clone, Debug)]
pub struct Submission {
    pub sender: String,
    pub events: Vec<Submitted>,
    pub answer: Answer,
}

#[derive(Clone, Debug)]
pub struct Submitted {
    /// A text in the payload that no other event has.
    pub mark: String,
    /// The ordering key.
    pub lane: Option<String>,
    /// The second one, of a merge.
    pub barrier: Option<String>,
    /// Every destination that its routes lead to.
    pub to: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Accepted: the messages' ids in the events' order, or nothing if the sender's protocol does not tell them.
    Accepted(Vec<String>),
    /// Refused for good.
    Refused,
    /// The sender gave up before it knew.
    Unknown,
}

#[derive(Clone, Debug)]
pub struct Partner {
    pub order: Order,
    /// Whether a delivery in doubt waits for a person's word (`on_doubt = "hold"`).
    pub holds_doubt: bool,
    /// What it saw, oldest first.
    pub effects: Vec<Effect>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    None,
    Key,
    Strict,
}

/// One message that arrived once. A partner knows it by the delivery id, the message id or the mark, and some by several.
#[derive(Clone, Debug, Default)]
pub struct Effect {
    pub delivery: Option<String>,
    pub message: Option<String>,
    pub mark: Option<String>,
}

#[derive(Clone, Debug)]
pub struct LateSettle {
    pub delivery: String,
    /// What the gateway answered.
    pub status: String,
}

#[derive(Clone, Debug)]
pub struct Combined {
    pub adapter: String,
    pub delivery: String,
    /// The mark of the message that it emitted.
    pub emitted: String,
}

#[derive(Clone, Debug)]
pub struct HealthSample {
    pub ready: bool,
    /// How long work that could move has not moved.
    pub stuck: Duration,
}

impl Submission {
    pub fn one(sender: &str, mark: &str, lane: Option<&str>, to: &[&str], answer: Answer) -> Self {
        Self { sender: sender.to_owned(), events: vec![Submitted::new(mark, lane, to)], answer }
    }
}

impl Submitted {
    pub fn new(mark: &str, lane: Option<&str>, to: &[&str]) -> Self {
        Self {
            mark: mark.to_owned(),
            lane: lane.map(str::to_owned),
            barrier: None,
            to: to.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    /// Which has a second ordering key.
    #[must_use]
    pub fn beside(self, barrier: Option<&str>) -> Self {
        Self { barrier: barrier.map(str::to_owned), ..self }
    }
}

impl Answer {
    /// The answer to an accepted `POST /v1/messages`.
    pub fn accepted(answer: &Value) -> Self {
        let messages = answer["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
        Self::Accepted(messages.iter().filter_map(|message| text(&message["id"])).collect())
    }
}

impl Partner {
    pub fn new(order: Order, effects: Vec<Effect>) -> Self {
        Self { order, holds_doubt: false, effects }
    }
}

impl Effect {
    /// What `gatepost-echo` noted, or a lease of an inbox that was taken for delivered; the mark is `data.mark`.
    pub fn noted(line: &Value) -> Self {
        Self {
            delivery: text(&line["delivery"]),
            message: text(&line["message"]),
            mark: text(&line["data"]["mark"]),
        }
    }
}

impl History {
    /// Takes what the gateway says of itself at the end: its log, whether that verifies and agrees with the database, what it
    /// lists as held.
    pub fn close(&mut self, gateway: &Gateway) {
        self.log = gateway.audit_log();
        for command in [["audit", "verify"], ["audit", "reconcile"]] {
            let output = gateway.cli(&command);
            if !output.status.success() {
                let said = [output.stdout, output.stderr].concat();
                let said = String::from_utf8_lossy(&said).trim().to_owned();
                self.log_faults.push(format!("{}: {said}", command.join(" ")));
            }
        }
        let listed = gateway.list("/v1/deliveries?state=in_doubt", "deliveries");
        self.held = listed.iter().filter_map(|delivery| text(&delivery["id"])).collect();
    }

    /// Adds a destination whose partner is `gatepost-echo`, with what that settled together with emits.
    pub fn echo(&mut self, gateway: &Gateway, name: &str, order: Order) -> &mut Partner {
        let lines = gateway.effects(name);
        for line in &lines {
            if let (Some(delivery), Some(emitted)) = (text(&line["delivery"]), text(&line["emitted"])) {
                self.combined.push(Combined { adapter: name.to_owned(), delivery, emitted });
            }
        }
        let effects = lines.iter().map(Effect::noted).collect();
        self.partners.entry(name.to_owned()).insert_entry(Partner::new(order, effects)).into_mut()
    }
}

pub(super) fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}
