//! The audit log and the senders' answers, indexed: which message is which event, and what became of each delivery.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

use super::history::{Answer, Effect, History, text};

/// What the log says of one delivery.
#[derive(Debug, Default)]
pub(super) struct Life {
    pub(super) destination: String,
    pub(super) message: String,
    pub(super) attempts: u64,
    /// The entry of the first of them.
    pub(super) begun_at: Option<usize>,
    /// The newest entry with which it ended.
    pub(super) ended_at: Option<usize>,
    /// The entry with which a settle ended it as delivered.
    pub(super) delivered_at: Option<usize>,
    pub(super) state: String,
    /// The code of its end, if it is dead.
    pub(super) code: String,
    pub(super) replayed: bool,
    /// How often a person said that it may be sent again.
    pub(super) sent_back: u64,
}

impl Life {
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state.as_str(), "delivered" | "dead" | "expired" | "discarded")
    }
}

/// What the log says of one message.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its place in the order of acceptance.
    pub(super) index: usize,
    /// Destination → delivery.
    pub(super) deliveries: BTreeMap<String, String>,
}

/// One event that was handed in or emitted.
#[derive(Debug)]
pub(super) struct Event<'h> {
    pub(super) mark: &'h str,
    pub(super) lane: Option<&'h str>,
    pub(super) barrier: Option<&'h str>,
    pub(super) to: &'h [String],
    pub(super) answer: &'h Answer,
    /// The messages that it has become: one, if all is well.
    pub(super) messages: BTreeSet<String>,
}

impl<'h> Event<'h> {
    /// The lanes that it stands in where keys make lanes.
    pub(super) fn lanes(&self) -> impl Iterator<Item = &'h str> {
        self.lane.into_iter().chain(self.barrier.filter(|barrier| Some(*barrier) != self.lane))
    }

    pub(super) fn is_merge(&self) -> bool {
        self.lanes().count() > 1
    }
}

pub(super) struct Book<'h> {
    pub(super) events: Vec<Event<'h>>,
    /// The events of each submission, by their position in `events`.
    pub(super) submissions: Vec<std::ops::Range<usize>>,
    pub(super) lives: BTreeMap<String, Life>,
    pub(super) entries: HashMap<String, Entry>,
    /// Accepted messages by their place in the log.
    pub(super) accepted: BTreeMap<usize, String>,
    by_mark: HashMap<&'h str, usize>,
    by_message: HashMap<String, usize>,
}

static UNKNOWN: Answer = Answer::Unknown;

impl<'h> Book<'h> {
    pub(super) fn new(history: &'h History) -> Self {
        let mut book = Self {
            events: Vec::new(),
            submissions: Vec::new(),
            lives: BTreeMap::new(),
            entries: HashMap::new(),
            accepted: BTreeMap::new(),
            by_mark: HashMap::new(),
            by_message: HashMap::new(),
        };
        for (index, leaf) in history.log.iter().enumerate() {
            book.read(index, leaf);
        }
        for submission in &history.submissions {
            let first = book.events.len();
            for (at, event) in submission.events.iter().enumerate() {
                let number = book.event(&event.mark, &event.to, &submission.answer);
                book.events[number].lane = event.lane.as_deref();
                book.events[number].barrier = event.barrier.as_deref();
                if let Answer::Accepted(ids) = &submission.answer
                    && let Some(id) = ids.get(at)
                {
                    book.is_message_of(number, id);
                }
            }
            book.submissions.push(first..book.events.len());
        }
        for combined in &history.combined {
            if !book.by_mark.contains_key(combined.emitted.as_str()) {
                book.event(&combined.emitted, &[], &UNKNOWN);
            }
        }
        // What senders are not told, partners may know.
        for (destination, partner) in &history.partners {
            for effect in &partner.effects {
                let number = effect.mark.as_deref().and_then(|mark| book.by_mark.get(mark).copied());
                if let (Some(number), Some(message)) = (number, book.message_of(destination, effect)) {
                    book.is_message_of(number, &message);
                }
            }
        }
        book
    }

    /// In no lane.
    fn event(&mut self, mark: &'h str, to: &'h [String], answer: &'h Answer) -> usize {
        let number = self.events.len();
        self.events.push(Event { mark, lane: None, barrier: None, to, answer, messages: BTreeSet::new() });
        self.by_mark.insert(mark, number);
        number
    }

    fn is_message_of(&mut self, number: usize, message: &str) {
        self.events[number].messages.insert(message.to_owned());
        self.by_message.insert(message.to_owned(), number);
    }

    fn read(&mut self, index: usize, leaf: &Value) {
        let event = leaf["event"].as_str().unwrap_or_default();
        if matches!(event, "accepted" | "emitted") {
            return self.read_accepted(index, leaf);
        }
        let Some(id) = text(&leaf["delivery"]) else { return };
        // One that was never accepted is the verifier's to find.
        let Some(life) = self.lives.get_mut(&id) else { return };
        if let Some(state) = text(&leaf["state"]) {
            life.state = state;
            life.code = text(&leaf["code"]).unwrap_or_default();
            life.ended_at = life.has_ended().then_some(index);
        }
        match event {
            "attempt" => {
                life.attempts += 1;
                life.begun_at.get_or_insert(index);
                life.state = "sending".to_owned();
            }
            "delivered" => life.delivered_at = Some(index),
            "replayed" => life.replayed = true,
            "moved" => life.destination = text(&leaf["destination"]).unwrap_or_default(),
            "resolved" if life.state == "waiting" => life.sent_back += 1,
            _ => {}
        }
    }

    fn read_accepted(&mut self, index: usize, leaf: &Value) {
        let Some(message) = text(&leaf["message"]) else { return };
        let mut deliveries = BTreeMap::new();
        for delivery in leaf["deliveries"].as_array().map(Vec::as_slice).unwrap_or_default() {
            let (Some(id), Some(to)) = (text(&delivery["id"]), text(&delivery["to"])) else { continue };
            let life = Life {
                destination: to.clone(),
                message: message.clone(),
                state: "waiting".to_owned(),
                ..Life::default()
            };
            self.lives.insert(id.clone(), life);
            deliveries.insert(to, id);
        }
        self.accepted.insert(index, message.clone());
        self.entries.insert(message, Entry { index, deliveries });
    }

    /// The message that a partner saw, as far as it or the log knows.
    fn message_of(&self, destination: &str, effect: &Effect) -> Option<String> {
        let by_delivery =
            || effect.delivery.as_ref().and_then(|id| self.lives.get(id)).map(|life| life.message.clone());
        let by_mark = || {
            let number = self.by_mark.get(effect.mark.as_deref()?)?;
            let messages = &self.events[*number].messages;
            messages.iter().find(|id| self.delivery(id, destination).is_some()).cloned()
        };
        effect.message.clone().or_else(by_delivery).or_else(by_mark)
    }

    /// The event that a partner saw.
    pub(super) fn event_of(&self, destination: &str, effect: &Effect) -> Option<usize> {
        let by_message = || self.by_message.get(&self.message_of(destination, effect)?).copied();
        effect.mark.as_deref().and_then(|mark| self.by_mark.get(mark).copied()).or_else(by_message)
    }

    /// The delivery that a partner saw.
    pub(super) fn delivery_of(&self, destination: &str, effect: &Effect) -> Option<String> {
        let told = || {
            let message = self.message_of(destination, effect)?;
            self.delivery(&message, destination).map(str::to_owned)
        };
        effect.delivery.clone().or_else(told)
    }

    pub(super) fn delivery(&self, message: &str, destination: &str) -> Option<&str> {
        let deliveries = &self.entries.get(message)?.deliveries;
        let is_here = |id: &str| self.lives.get(id).is_some_and(|life| life.destination == destination);
        // Where it was accepted for, unless an operator has moved it.
        let named = deliveries.get(destination).filter(|id| is_here(id));
        named.or_else(|| deliveries.values().find(|id| is_here(id))).map(String::as_str)
    }

    pub(super) fn is_known(&self, message: &str) -> bool {
        self.by_message.contains_key(message)
    }

    /// The event's place in the order of acceptance.
    pub(super) fn accepted_at(&self, event: &Event<'_>) -> Option<usize> {
        event.messages.iter().filter_map(|id| Some(self.entries.get(id)?.index)).min()
    }

    pub(super) fn event_of_message(&self, message: &str) -> Option<usize> {
        self.by_message.get(message).copied()
    }

    pub(super) fn event_of_mark(&self, mark: &str) -> Option<usize> {
        self.by_mark.get(mark).copied()
    }
}
