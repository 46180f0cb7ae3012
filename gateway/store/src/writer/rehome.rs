//! Giving a destination's deliveries to another one at an operator's word: what waits, and what is dead.
//!
//! Order is kept: a delivery takes its accept position with it, so that it stands in the new lane where it was accepted,
//! and of a lane nothing is moved past a delivery that must stay because its bytes may be with the old partner. A step is
//! one transaction; between two, everything is in one place or the other, so that stopping half way loses nothing, and
//! asking again moves the rest.

use std::collections::HashMap;

use super::accept::{OrderKeys, lanes_of, ordered_by};
use super::candidates::WINDOW_MAX;
use super::needs::{Holds, Needs};
use super::outcome::conclude;
use super::recall::Fronts;
use super::turn::{Extra, Turn};
use super::{Writer, unavailable};
use crate::backend::{Attributes, Backend, CommitError, ToMove};
use crate::ops::{MoveError, MoveStep, Moved, QueueKind, StoreError};
use crate::row::Row;
use crate::seal::{Index, Owner, Place};
use gatepost_core::Order;
use gatepost_core::delivery::{Change, Event, Record};
use gatepost_core::principal::Actor;
use serde_json::Value;

/// Most deliveries moved in one commit.
const STEP_DELIVERIES_MAX: u32 = 250;

impl<B: Backend> Writer<B> {
    /// One step: moves what stands next after a position, and says where to go on.
    pub(super) fn rehome(&mut self, step: &MoveStep) -> Result<Moved, MoveError> {
        if let Some(error) = unavailable(&self.condition) {
            return Err(error.into());
        }
        let (from, to) = self.ends(step)?;
        let moved = self.with_needs(|writer, needs| {
            writer.database.begin(&Holds { sessions: Vec::new(), queues: needs.queues.clone() })?;
            writer.follow_held(&needs.queues)?;
            writer.rehome_open(step, from, to, needs)
        });
        moved.map_err(|error| {
            self.failed(&error);
            StoreError::from(error).into()
        })
    }

    fn ends(&self, step: &MoveStep) -> Result<(i64, i64), MoveError> {
        let queue = |name: &str| {
            self.memory.queue(name).ok_or_else(|| MoveError::from(StoreError::NoQueue(name.to_owned())))
        };
        let (from, to) = (queue(&step.from)?, queue(&step.to)?);
        match to.setup.kind {
            QueueKind::Builtin | QueueKind::Removed | QueueKind::Sender => {
                Err(MoveError::NotServed(step.to.clone()))
            }
            _ if from.id == to.id => Err(MoveError::Same(step.to.clone())),
            QueueKind::Adapter | QueueKind::ExternalAdapter | QueueKind::Inbox => Ok((from.id, to.id)),
        }
    }

    /// Leaves the transaction open when there is nothing to write, or on an error. `None`: see [`Writer::with_needs`].
    fn rehome_open(
        &mut self,
        step: &MoveStep,
        from: i64,
        to: i64,
        needs: &mut Needs,
    ) -> Result<Option<Moved>, CommitError> {
        let in_flight = self.in_flight(&needs.lanes)?;
        let ToMove { rows: found, through, more } =
            self.database.to_move(from, step.after, STEP_DELIVERIES_MAX)?;
        let mut stuck: HashMap<Index, bool> = HashMap::new();
        let mut going = Vec::with_capacity(found.len());
        for row in found {
            let mut stays = false;
            for lane in row.lanes() {
                stays |= match stuck.get(&lane) {
                    Some(stuck) => *stuck,
                    // It may stand behind the ones looked at: to move those would be in order, but its lane is soon asked for
                    // again anyway.
                    None => self.database.lane_stuck(from, &lane, step.after, through)?,
                };
            }
            // One that stays for one of its lanes keeps those behind it in the other.
            stuck.extend(row.lanes().map(|lane| (lane, stays)));
            if stays {
                continue;
            }
            let lanes = self.lanes_at(to, &row)?;
            going.push((row, lanes));
        }
        let now = self.number()?;
        let mut turn =
            Turn::new(now, self.instance_epoch, &self.memory, &self.vault, &mut self.random, &self.gateway);
        turn.read_lanes(&needs.lanes, in_flight);
        let mut moved = Moved { next: more.then_some(through), ..Moved::default() };
        turn.rehome(&step.operator, to, going, &step.reason, &mut moved)?;
        let held = needs.queues.clone();
        if turn.lacks(needs, &held) {
            return Ok(None);
        }
        let committed = conclude(&mut self.database, turn)?;
        self.install(committed, 1);
        Ok(Some(moved))
    }

    /// The lanes that the delivery has at its new destination, by that one's order.
    fn lanes_at(&mut self, to: i64, row: &Row) -> Result<[Option<Index>; 2], CommitError> {
        let Some(queue) = self.memory.queues.get(&to) else { return Ok([None, None]) };
        let (order, name) = (queue.setup.policy.order, queue.setup.name.clone());
        // It has lost its place in a lane once, by a replay, and goes beside the others here too.
        if row.delivery.replayed && row.lane.is_none() {
            return Ok([None, None]);
        }
        let [partition, barrier] = match order {
            Order::Key => self.order_keys(row.message_seq)?,
            Order::None | Order::Strict => [None, None],
        };
        let keys = OrderKeys { partition: partition.as_deref(), barrier: barrier.as_deref() };
        Ok(lanes_of(&self.vault, name.as_bytes(), ordered_by(order, keys)))
    }

    /// The ordering keys of a message. They stand in the sealed attributes only; a purged message has none any more.
    fn order_keys(&mut self, seq: i64) -> Result<[Option<String>; 2], CommitError> {
        let Some(Attributes { message, sealed, .. }) = self.database.attributes(seq)? else {
            return Ok([None, None]);
        };
        let place = Place { table: "message", column: "attributes", row: seq };
        let attributes = self.vault.open(&sealed, Owner::Attributes { message: &message }, place)?;
        let attributes: Value = serde_json::from_slice(&attributes).map_err(|_| place.corrupt())?;
        Ok(["partitionkey", "barrierkey"].map(|name| key_text(&attributes[name])))
    }
}

/// An ordering key as an accept takes it: an attribute may be an integer or a boolean too.
fn key_text(attribute: &Value) -> Option<String> {
    match attribute {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(is) => Some(is.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

impl Turn<'_> {
    fn rehome(
        &mut self,
        operator: &Actor,
        to: i64,
        going: Vec<(Row, [Option<Index>; 2])>,
        reason: &str,
        moved: &mut Moved,
    ) -> Result<(), StoreError> {
        let mut widths: HashMap<Index, u32> = HashMap::new();
        for (row, lanes) in going {
            // What no partner can have is all that was read.
            let Ok(change) = self.at_moment(to, |moment| row.delivery.apply(Event::Move, moment))? else {
                continue;
            };
            let extra = Extra { reason: Some(reason), ..Extra::default() };
            match change.record {
                Some((Record::Moved, _)) => {
                    if change.delivery.state.is_terminal() {
                        moved.dead += 1;
                    } else {
                        moved.waiting += 1;
                    }
                    for lane in lanes.into_iter().flatten() {
                        *widths.entry(lane).or_default() += 1;
                    }
                    self.rehome_one(row, &change, (to, lanes), operator, &extra)?;
                }
                _ => {
                    moved.expired += 1;
                    let gateway = self.gateway.clone();
                    self.change(row, &change, &gateway, &extra)?;
                }
            }
        }
        // Those that come stand before some that were ready: their lanes are looked through that much further.
        let widest = widths.into_values().max().unwrap_or(0);
        self.width_before = WINDOW_MAX.min(self.queue(to)?.setup.policy.window.max(1)) + widest;
        Ok(())
    }

    fn rehome_one(
        &mut self,
        was: Row,
        change: &Change,
        (to, [lane, barrier]): (i64, [Option<Index>; 2]),
        operator: &Actor,
        extra: &Extra<'_>,
    ) -> Result<(), StoreError> {
        let from = self.queue(was.queue)?.setup.name.clone();
        let mut row = Row { delivery: change.delivery, queue: to, lane, barrier, ..was.clone() };
        if let Some((record, reason)) = change.record {
            let index = self.moved_leaf(&row, record, reason, &from, operator)?;
            row.add_leaf(index);
            self.detail(index, &row, extra)?;
        }
        self.recount(Some(&was), &row)?;
        for row in [&was, &row] {
            self.lanes.extend(row.lanes().map(|lane| (row.queue, lane)));
        }
        self.touch(was, row.clone());
        // It was accepted before those that have been leased there and have not begun: they wait behind it again.
        if row.delivery.state.blocks_lane() { self.recall_behind(&Fronts::lost(&row)) } else { Ok(()) }
    }
}
