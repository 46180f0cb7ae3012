//! An outcome whose emits are written in pieces takes a while. Its lease is not lost meanwhile: the partner has the message.

use std::time::{Duration, Instant};

use gatepost_core::principal::{Actor, ActorKind, TypePatterns};
use gatepost_core::{DeliveryId, LeaseToken, Level, OnDoubt, Outcome, QueuePolicy, Timestamp};
use tokio::sync::oneshot::{Receiver, channel};

use super::ask::message;
use super::machine::Machine;
use super::ops::{INBOX, QUEUES};
use crate::call::Op;
use crate::ops::{
    Accept, Emit, LeaseRequest, QueueKind, QueueSetup, Settle, SettleAnswer, SettleError, SettleItem,
};
use crate::prepared::{Prepared, Remains};
use crate::sqlite::Sqlite;
use crate::writer::bulk::Bulk;
use crate::writer::{Reported, Writer};

const LEASE: Duration = Duration::from_secs(30);

fn consumer() -> Actor {
    Actor::new(ActorKind::App, "app")
}

fn prepared(machine: &Machine, id: &str, text: &str) -> (gatepost_core::message::NewMessage, Prepared) {
    let mut message = message(id, text, [None, None], vec![INBOX]);
    let at = Timestamp::from_micros(1);
    let prepared = Prepared::new(&machine.vault, &consumer(), &mut message, at, Remains::Within).unwrap();
    (message, prepared)
}

/// A queue with one message, which is leased.
fn leased(machine: &Machine, writer: &mut Writer<Sqlite>) -> (DeliveryId, LeaseToken) {
    let policy = QueuePolicy { on_doubt: OnDoubt::Resend, ..QueuePolicy::default() };
    let name = QUEUES[INBOX].to_owned();
    let setup = QueueSetup { name, kind: QueueKind::Inbox, sessions: Default::default(), policy };
    let (answer, mut configured) = channel();
    writer.groups(vec![Op::Configure { queues: vec![setup], answer }]);
    configured.try_recv().unwrap().unwrap();
    let (message, prepared) = prepared(machine, "1", "text");
    let permit = TypePatterns::new(["*"]).permit(&consumer(), "t").unwrap();
    let accept = Accept { permit, session: None, messages: vec![message] };
    let (answer, mut accepted) = channel();
    writer.groups(vec![Op::Accept { accept, prepared: vec![prepared], place: None, answer }]);
    accepted.try_recv().unwrap().unwrap();
    let request = LeaseRequest {
        consumer: consumer(),
        queue: QUEUES[INBOX].to_owned(),
        max: 1,
        max_bytes: 1 << 20,
        lease: LEASE,
        request_id: None,
        session: None,
    };
    let (answer, mut claimed) = channel();
    writer.groups(vec![Op::Lease(request, answer)]);
    let claimed = claimed.try_recv().unwrap().unwrap().deliveries;
    (claimed[0].delivery, claimed[0].token)
}

/// It is delivered, and what came of it is so long that it is written in many pieces.
fn delivered(
    machine: &Machine,
    (delivery, token): (DeliveryId, LeaseToken),
) -> (Op, Receiver<Result<SettleAnswer, SettleError>>) {
    let (message, prepared) = prepared(machine, "2", &"x".repeat(1000));
    let item = SettleItem {
        delivery,
        token: Some(token),
        outcome: Outcome::Delivered { level: Level::Transport },
        reason: None,
        evidence: None,
        reply: None,
    };
    let settle = Settle {
        consumer: consumer(),
        queues: vec![QUEUES[INBOX].to_owned()],
        session: None,
        items: vec![item],
        emit: vec![Emit { message, dead: None }],
        state: Vec::new(),
        atomic: true,
    };
    let (answer, answered) = channel();
    (Op::Settle { settle, prepared: vec![prepared], answer }, answered)
}

/// Some of the pieces are written, the lease ends, then the rest of them are.
fn settled(reported: fn(&Writer<Sqlite>) -> Reported) -> Result<SettleAnswer, SettleError> {
    let mut machine = Machine::new(1);
    let mut writer = machine.start().unwrap();
    let lease = leased(&machine, &mut writer);
    let (settle, mut answered) = delivered(&machine, lease);
    let mut ops = vec![settle];
    writer.piecemeal.part(&mut ops);
    assert!(ops.is_empty(), "it is written in pieces");
    writer.pieces_alone(false);
    assert!(writer.piecemeal.due(Instant::now()).is_some(), "not all of them at once");
    machine.pass(3 * LEASE);
    let reported = reported(&writer);
    writer.sweep(&reported);
    while writer.piecemeal.due(Instant::now()).is_some() {
        writer.pieces_alone(false);
    }
    answered.try_recv().unwrap()
}

#[test]
fn a_lease_whose_outcome_has_come_is_not_ended_by_time() {
    let answer = settled(|writer| writer.reported(&Bulk::new(Instant::now()))).unwrap();
    assert!(answer.items[0].ok, "{:?}", answer.items[0]);
    assert_eq!((answer.items[0].state, answer.emitted.len()), ("delivered", 1));
}

/// So it would be, and the answer would be that it came too late.
#[test]
fn a_lease_of_which_nothing_has_come_is_ended_by_time() {
    let answer = settled(|_| Reported::new());
    assert!(matches!(&answer, Err(SettleError::Refused(items)) if !items[0].ok), "{answer:?}");
}
