//! Whether the entries can follow one another: a delivery lives only between its acceptance and its end.
//!
//! An ended delivery is forgotten, so memory follows the open ones. That is enough to refuse every later event of it:
//! there is then no open delivery of that id.

use std::collections::HashMap;
use std::fmt::Write as _;

use crate::leaf::{Event, Leaf, State};

type DeliveryId = [u8; 16];

#[derive(Debug, Clone, Default)]
pub(super) struct Semantics {
    open: HashMap<DeliveryId, Open>,
    /// Names of destinations, by the number that deliveries remember.
    destinations: Vec<String>,
}

/// What is remembered of a delivery that has not ended.
#[derive(Debug, Clone, Copy)]
struct Open {
    dead: bool,
    /// Its bytes may be with the partner: the last word was an attempt, or a doubt.
    out: bool,
    /// Position of its destination's name.
    to: usize,
    series: u32,
    attempt: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SemanticError {
    #[error("the log must begin with log_opened, not {0}")]
    NotOpened(Event),
    #[error("log_opened may only be the first leaf")]
    OpenedAgain,
    #[error("{event} names no delivery")]
    NoDelivery { event: Event },
    #[error("delivery {} is accepted a second time", uuid(.delivery))]
    AcceptedAgain { delivery: [u8; 16] },
    #[error("{event} of delivery {}, which was never accepted or has already ended", uuid(.delivery))]
    NotOpen { delivery: [u8; 16], event: Event },
    #[error("{event} of delivery {}, which is dead: only replayed, discarded or moved may follow", uuid(.delivery))]
    AfterDead { delivery: [u8; 16], event: Event },
    #[error("delivery {} is replayed, but is not dead", uuid(.delivery))]
    NotDead { delivery: [u8; 16] },
    #[error("delivery {} is moved while a partner may have it", uuid(.delivery))]
    MovedInFlight { delivery: [u8; 16] },
    #[error("{event} of delivery {} at {at:?}, but it is at {is:?}", uuid(.delivery))]
    Elsewhere { delivery: [u8; 16], event: Event, at: String, is: String },
    #[error("{event} of delivery {} leaves it {state}", uuid(.delivery))]
    WrongState { delivery: [u8; 16], event: Event, state: State },
    #[error(
        "the attempts of delivery {} go back: from {}.{} to {}.{} (series.attempt)",
        uuid(.delivery), .from.0, .from.1, .to.0, .to.1
    )]
    AttemptsBack { delivery: [u8; 16], from: (u32, u32), to: (u32, u32) },
}

impl Semantics {
    pub(super) fn deliveries_open(&self) -> u64 {
        self.open.len() as u64
    }

    pub(super) fn apply(&mut self, index: u64, leaf: &Leaf<'_>) -> Result<(), SemanticError> {
        match (index, leaf.event) {
            (0, Event::LogOpened) => return Ok(()),
            (0, other) => return Err(SemanticError::NotOpened(other)),
            (_, Event::LogOpened) => return Err(SemanticError::OpenedAgain),
            _ => {}
        }
        match leaf.event {
            Event::Accepted | Event::Emitted => self.accept(leaf),
            Event::Attempt
            | Event::Sent
            | Event::Delivered
            | Event::Retry
            | Event::Released
            | Event::InDoubt
            | Event::Dead
            | Event::Expired
            | Event::Replayed
            | Event::Discarded
            | Event::Resolved
            | Event::Moved => self.advance(leaf),
            Event::PayloadRead
            | Event::Searched
            | Event::AuditRead
            | Event::AuditExported
            | Event::AuditAdopted
            | Event::QueuePaused
            | Event::QueueResumed
            | Event::BreakerTripped
            | Event::BreakerResumed
            | Event::AdapterStarted
            | Event::AdapterSandboxed
            | Event::AdapterExited
            | Event::AdapterRestarted
            | Event::SessionOpened
            | Event::ConfigChanged
            | Event::GatewayStarted
            | Event::GatewayStopped
            | Event::Refused
            | Event::PayloadPurged
            | Event::MessageErased
            | Event::SealKeyRotated
            | Event::DamageFound
            | Event::Salvaged
            | Event::AdapterCalled
            | Event::AdapterAnswered
            | Event::LogOpened => Ok(()),
        }
    }

    fn accept(&mut self, leaf: &Leaf<'_>) -> Result<(), SemanticError> {
        for delivery in &leaf.deliveries {
            let to = self.destination(&delivery.to);
            let fresh = Open { dead: false, out: false, to, series: 0, attempt: 0 };
            if self.open.insert(delivery.id, fresh).is_some() {
                return Err(SemanticError::AcceptedAgain { delivery: delivery.id });
            }
        }
        Ok(())
    }

    /// The number of a destination's name. There are as many as configurations have named: few.
    fn destination(&mut self, name: &str) -> usize {
        let known = self.destinations.iter().position(|known| known == name);
        known.unwrap_or_else(|| {
            self.destinations.push(name.to_owned());
            self.destinations.len() - 1
        })
    }

    fn advance(&mut self, leaf: &Leaf<'_>) -> Result<(), SemanticError> {
        let event = leaf.event;
        let delivery = leaf.delivery.ok_or(SemanticError::NoDelivery { event })?;
        let moved_to = leaf.destination.as_deref().filter(|_| event == Event::Moved);
        let moved_to = moved_to.map(|name| self.destination(name));
        let open = self.open.get_mut(&delivery).ok_or(SemanticError::NotOpen { delivery, event })?;
        let at = if event == Event::Moved { &leaf.subject_of } else { &leaf.destination };
        let is = &self.destinations[open.to];
        if let Some(at) = at.as_deref().filter(|at| at != is) {
            let (at, is) = (at.to_owned(), is.clone());
            return Err(SemanticError::Elsewhere { delivery, event, at, is });
        }
        match event {
            Event::Replayed if !open.dead => return Err(SemanticError::NotDead { delivery }),
            Event::Moved if open.out => return Err(SemanticError::MovedInFlight { delivery }),
            Event::Replayed | Event::Discarded | Event::Moved => {}
            _ if open.dead => return Err(SemanticError::AfterDead { delivery, event }),
            _ => {}
        }
        open.count(delivery, leaf)?;
        let state =
            state_after(leaf).map_err(|state| SemanticError::WrongState { delivery, event, state })?;
        if event == Event::Moved {
            // It is what it was, elsewhere.
            let was = if open.dead { State::Dead } else { State::Waiting };
            if let Some(state) = state.filter(|state| *state != was) {
                return Err(SemanticError::WrongState { delivery, event, state });
            }
            open.to = moved_to.unwrap_or(open.to);
            return Ok(());
        }
        open.out = matches!(event, Event::Attempt | Event::Sent | Event::InDoubt);
        match state {
            Some(State::Delivered | State::Expired | State::Discarded) => {
                self.open.remove(&delivery);
            }
            Some(State::Dead) => open.dead = true,
            Some(State::Waiting | State::Leased | State::Sending | State::InDoubt) | None => {
                open.dead = false
            }
        }
        Ok(())
    }
}

impl Open {
    fn count(&mut self, delivery: DeliveryId, leaf: &Leaf<'_>) -> Result<(), SemanticError> {
        let series = leaf.series.unwrap_or(self.series);
        let kept = if series == self.series { self.attempt } else { 0 };
        let attempt = leaf.attempt.unwrap_or(kept);
        let (from, to) = ((self.series, self.attempt), (series, attempt));
        if to < from {
            return Err(SemanticError::AttemptsBack { delivery, from, to });
        }
        (self.series, self.attempt) = to;
        Ok(())
    }
}

/// The state that the event leads to, as far as it is known. `Err` is a state that contradicts the event.
fn state_after(leaf: &Leaf<'_>) -> Result<Option<State>, State> {
    let implied = match leaf.event {
        Event::Delivered => State::Delivered,
        Event::Dead => State::Dead,
        Event::Expired => State::Expired,
        Event::Discarded => State::Discarded,
        _ => return Ok(leaf.state),
    };
    match leaf.state {
        Some(state) if state != implied => Err(state),
        _ => Ok(Some(implied)),
    }
}

fn uuid(id: &DeliveryId) -> String {
    let mut text = String::with_capacity(36);
    for (position, byte) in id.iter().enumerate() {
        let dash = if matches!(position, 4 | 6 | 8 | 10) { "-" } else { "" };
        // Writing to a String cannot fail.
        let _ = write!(text, "{dash}{byte:02x}");
    }
    text
}
