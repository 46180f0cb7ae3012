//! The callers: senders, adapters, readers, operators. Each call becomes an operation of the store, as its handle makes it.

use std::time::Duration;

use gatepost_audit::Event as LeafEvent;
use gatepost_core::delivery::{Reason, Resolution};
use gatepost_core::message::{DataForm, NewMessage};
use gatepost_core::policy::BacklogLimit;
use gatepost_core::principal::{
    Actor, ActorKind, OperatorPermit, OperatorRight, OperatorRights, TypePatterns,
};
use gatepost_core::queue::TripReason;
use gatepost_core::{
    DeliveryId, LeaseToken, Level, Outcome, QueuePolicy, RetryPolicy, RetryScope, State, Timestamp,
};
use tokio::sync::oneshot::{Receiver, channel};

use super::laws::Broken;
use super::laws::{Snap, law};
use super::ops::{
    Brakes, Decides, Emits, Ev, FAR, INBOX, Item, Op, PAST, QUEUES, SENDERS, Says, Setup, WIRE,
};
use super::run::{Held, Sim};
use crate::call::{Claimed, Op as StoreOp};
use crate::ops::Pause;
use crate::ops::{
    Accept, AcceptError, Accepted, AuditNote, DeliveryRow, Emit, LeaseError, LeaseRequest, MoveError,
    MoveStep, Moved, OperateError, QueueKind, QueueSetup, Session, SessionEnd, Settle, SettleAnswer,
    SettleError, SettleItem, StoreError, Verb,
};
use crate::prepared::{Prepared, RANDOM_BYTES, Remains};
use crate::seal::Index;

/// So many that a message is written in pieces.
const LARGE_BYTES: usize = 40;

type Answer<T, E> = Receiver<Result<T, E>>;

/// What a sender has handed in.
#[derive(Clone)]
pub(super) struct Request {
    pub(super) sender: usize,
    pub(super) events: Vec<Ev>,
    pub(super) expires: Vec<Option<i64>>,
    /// Digests of the events' keys.
    pub(super) keys: Vec<Index>,
    pub(super) prints: Vec<Index>,
}

/// A settle as a consumer has sent it.
#[derive(Clone, Debug)]
pub(super) struct Past {
    pub(super) queue: usize,
    pub(super) session: Option<u64>,
    pub(super) items: Vec<(DeliveryId, LeaseToken, Outcome)>,
    /// What it emits and sets carries this number.
    pub(super) stamp: u64,
    pub(super) emit: Emits,
    pub(super) emitted: Option<(Index, Index)>,
    pub(super) state: bool,
    pub(super) atomic: bool,
}

impl Past {
    pub(super) fn is_atomic(&self) -> bool {
        self.atomic || self.state || self.emit != Emits::Nothing
    }
}

/// A call on its way, and where its answer comes.
pub(super) enum Asked {
    Send {
        request: usize,
        session: Option<u64>,
        to: Vec<usize>,
        answer: Answer<Vec<Accepted>, AcceptError>,
    },
    Before {
        request: usize,
        answer: Answer<Option<Accepted>, StoreError>,
    },
    Lease {
        queue: usize,
        request: LeaseRequest,
        answer: Answer<Claimed, LeaseError>,
    },
    Settle {
        settle: Past,
        answer: Answer<SettleAnswer, SettleError>,
    },
    Session {
        queue: usize,
        answer: Answer<Session, StoreError>,
    },
    Death {
        queue: usize,
        answer: Answer<(), StoreError>,
    },
    Operate {
        delivery: DeliveryId,
        verb: Verb,
        answer: Answer<DeliveryRow, OperateError>,
    },
    Move {
        to: usize,
        from: usize,
        answer: Answer<Moved, MoveError>,
    },
    Configure {
        setups: Vec<Setup>,
        answer: Answer<(), StoreError>,
    },
    /// A brake or a note, of which nothing depends on the answer.
    Other {
        answer: Answer<(), StoreError>,
    },
}

impl Sim {
    /// Turns a call into the store's operation; `None` when there is nobody to make it.
    pub(super) fn ask(&mut self, op: &Op) -> Option<(Asked, StoreOp)> {
        match op {
            Op::Send { sender, events } => {
                let sender = usize::from(*sender) % SENDERS.len();
                let now = self.now();
                let expires = events
                    .iter()
                    .map(|event| (event.expires_s > 0).then(|| now + i64::from(event.expires_s) * 1_000_000));
                self.requests.push(Request {
                    sender,
                    events: events.clone(),
                    expires: expires.collect(),
                    keys: Vec::new(),
                    prints: Vec::new(),
                });
                self.send(self.requests.len() - 1)
            }
            Op::SendAgain { which } => {
                let request = usize::from(*which).checked_rem(self.requests.len())?;
                self.send(request)
            }
            Op::Before { which } => {
                let request = usize::from(*which).checked_rem(self.requests.len())?;
                let (key, fingerprint) =
                    (*self.requests[request].keys.first()?, *self.requests[request].prints.first()?);
                let (answer, answered) = channel();
                let op = StoreOp::AcceptedBefore { key, fingerprint, answer };
                Some((Asked::Before { request, answer: answered }, op))
            }
            Op::Lease { queue, max, id, secs, earlier_life } => {
                self.lease(usize::from(*queue) % 3, *max, *id, *secs, *earlier_life)
            }
            Op::Settle { queue, items, emit, state, atomic, earlier_life } => {
                let queue = usize::from(*queue) % 3;
                let session = self.session_for(queue, *earlier_life)?;
                let items = items.iter().filter_map(|item| self.item(queue, *item)).collect();
                self.stamp += 1;
                let settle = Past {
                    queue,
                    session,
                    items,
                    stamp: self.stamp,
                    // Readers of an inbox neither emit nor keep state.
                    emit: if queue == INBOX { Emits::Nothing } else { *emit },
                    emitted: None,
                    state: *state && queue != INBOX,
                    atomic: *atomic,
                };
                self.settle(settle)
            }
            Op::SettleAgain { which } => {
                let settle = usize::from(*which).checked_rem(self.settles.len())?;
                let settle = self.settles[settle].clone();
                self.settle(settle)
            }
            Op::Session { queue } => self.open_session(usize::from(*queue) % 3),
            Op::Death { queue, crashed } => {
                let queue = usize::from(*queue) % 3;
                self.consumers[queue].dies();
                // Only the gateway's own children die before its eyes.
                let configured = self.setups.iter().any(|setup| usize::from(setup.queue) == WIRE);
                if queue != WIRE || !configured {
                    return None;
                }
                let (answer, answered) = channel();
                let end = if *crashed { SessionEnd::Crashed } else { SessionEnd::Stopped };
                let op = StoreOp::SessionEnd { adapter: QUEUES[queue].to_owned(), end, answer };
                Some((Asked::Death { queue, answer: answered }, op))
            }
            Op::Operate { which, verb } => self.operate(*which, *verb),
            Op::Brake { queue, brake } => self.brake(usize::from(*queue) % 3, *brake),
            Op::Move { from, to } => {
                let (from, to) = (usize::from(*from) % 3, usize::from(*to) % 3);
                let (answer, answered) = channel();
                let step = MoveStep {
                    operator: operator_actor(),
                    from: QUEUES[from].to_owned(),
                    to: QUEUES[to].to_owned(),
                    after: 0,
                    reason: "elsewhere".to_owned(),
                };
                Some((Asked::Move { to, from, answer: answered }, StoreOp::Move { step, answer }))
            }
            Op::Configure { queues } => {
                let (answer, answered) = channel();
                let setups = queues.clone();
                self.limit(queues);
                let op = StoreOp::Configure { queues: self.queue_setups(queues), answer };
                Some((Asked::Configure { setups, answer: answered }, op))
            }
            Op::Note => {
                let (answer, answered) = channel();
                let note = AuditNote::new(LeafEvent::AuditRead, operator_actor());
                Some((Asked::Other { answer: answered }, StoreOp::Note(vec![note], answer)))
            }
        }
    }

    pub(super) fn sender(sender: usize) -> Actor {
        let kind = if sender < 2 { ActorKind::App } else { ActorKind::Adapter };
        Actor::new(kind, SENDERS[sender])
    }

    fn send(&mut self, request: usize) -> Option<(Asked, StoreOp)> {
        let Request { sender, events, expires, .. } = self.requests[request].clone();
        let to: Vec<usize> = self.setups.iter().map(|setup| usize::from(setup.queue)).collect();
        let session = if sender < 2 { None } else { self.session_for(sender - 2, false)? };
        let actor = Self::sender(sender);
        let mut prepared = Vec::new();
        let mut messages = Vec::new();
        let mut first = Vec::new();
        for (event, expires) in events.iter().zip(expires) {
            let destinations: Vec<usize> =
                (0..3).filter(|queue| event.to & (1 << queue) != 0 && to.contains(queue)).collect();
            if destinations.is_empty() {
                // No route takes it, and the whole request is refused before the store hears of it.
                return None;
            }
            first.push(destinations.len());
            // Some of them stand in pieces.
            let large = if event.key % 3 == 0 { LARGE_BYTES } else { 0 };
            let text = format!("{}.{}{}", event.key, event.content, "x".repeat(large));
            let lane = (event.key % 4 > 0).then(|| (event.key % 4).to_string());
            // Some stand in two lanes, some of those in the same twice, and some have only the second key.
            let barrier = (event.key % 5 == 4).then(|| (1 + event.key / 5 % 3).to_string());
            let id = format!("{}-{}", SENDERS[sender], event.key);
            let mut message = message(&id, &text, [lane, barrier], destinations);
            message.expires_at = expires.map(Timestamp::from_micros);
            prepared.push(self.prepare(&actor, &mut message));
            messages.push(message);
        }
        let noted = &mut self.requests[request];
        noted.keys = prepared.iter().map(|prepared| prepared.key).collect();
        noted.prints = prepared.iter().map(|prepared| prepared.fingerprint).collect();
        let permit = TypePatterns::new(["*"]).permit(&actor, "t")?;
        let (answer, answered) = channel();
        let op =
            StoreOp::Accept { accept: Accept { permit, session, messages }, prepared, place: None, answer };
        Some((Asked::Send { request, session, to: first, answer: answered }, op))
    }

    fn prepare(&mut self, sender: &Actor, message: &mut NewMessage) -> Prepared {
        let mut random = [0; RANDOM_BYTES];
        for byte in &mut random {
            *byte = self.dice.roll().to_be_bytes()[0];
        }
        let text = message.data.clone();
        let now = Timestamp::from_micros(self.now());
        let vault = &self.machine.vault;
        let prepared = Prepared::with(vault, sender, message, now, Remains::Within, &random)
            .expect("a plain seal needs no randomness");
        self.texts.insert(prepared.fingerprint, text);
        prepared
    }

    /// The session that a consumer's call carries; `None` when there is no process to make the call.
    fn session_for(&self, queue: usize, earlier_life: bool) -> Option<Option<u64>> {
        let consumer = &self.consumers[queue];
        match queue {
            INBOX => Some(None),
            _ if earlier_life => consumer.earlier_session.map(Some),
            _ => consumer.session.or(consumer.earlier_session).map(Some),
        }
    }

    fn lease(
        &mut self,
        queue: usize,
        max: u8,
        id: u8,
        secs: u16,
        earlier_life: bool,
    ) -> Option<(Asked, StoreOp)> {
        if !earlier_life && queue != INBOX && self.consumers[queue].session.is_none() {
            return self.open_session(queue);
        }
        let request = LeaseRequest {
            consumer: Self::consumer(queue),
            queue: QUEUES[queue].to_owned(),
            max: u32::from(max),
            max_bytes: 1 << 20,
            lease: Duration::from_secs(u64::from(secs)),
            request_id: (id > 0).then(|| format!("r{id}")),
            session: self.session_for(queue, earlier_life)?,
        };
        self.writer().memory.queue(&request.queue)?;
        let (answer, answered) = channel();
        let op = StoreOp::Lease(request.clone(), answer);
        Some((Asked::Lease { queue, request, answer: answered }, op))
    }

    pub(super) fn consumer(queue: usize) -> Actor {
        match queue {
            INBOX => Actor::new(ActorKind::App, "reader"),
            _ => Actor::new(ActorKind::Adapter, QUEUES[queue]),
        }
    }

    fn open_session(&mut self, queue: usize) -> Option<(Asked, StoreOp)> {
        if queue == INBOX || !self.setups.iter().any(|setup| usize::from(setup.queue) == queue) {
            return None;
        }
        self.consumers[queue].dies();
        let (answer, answered) = channel();
        let op = StoreOp::SessionOpen { adapter: QUEUES[queue].to_owned(), version: None, answer };
        Some((Asked::Session { queue, answer: answered }, op))
    }

    fn item(&self, queue: usize, item: Item) -> Option<(DeliveryId, LeaseToken, Outcome)> {
        let consumer = &self.consumers[queue];
        let from =
            if item.which >= PAST || consumer.held.is_empty() { &consumer.past } else { &consumer.held };
        let Held { delivery, token } = *from.get(usize::from(item.which).checked_rem(from.len())?)?;
        let outcome = match item.says {
            Says::Begin => Outcome::Begin,
            Says::Sent => Outcome::Sent { within: Duration::from_secs(120) },
            Says::Delivered => Outcome::Delivered { level: Level::Transport },
            Says::Weak => Outcome::Delivered { level: Level::Sent },
            Says::InDoubt => Outcome::InDoubt,
            Says::Retry => Outcome::Retry { after: None, scope: RetryScope::Message },
            Says::RetryLater => {
                Outcome::Retry { after: Some(Duration::from_secs(3600)), scope: RetryScope::Message }
            }
            Says::Trouble => Outcome::Retry { after: None, scope: RetryScope::Destination },
            Says::Away => Outcome::Retry { after: Some(Duration::from_secs(600)), scope: RetryScope::Lane },
            Says::Wake => Outcome::Wake,
            Says::Reject => Outcome::Reject,
            Says::Release => Outcome::Release,
            Says::Extend => Outcome::Extend { lease: Duration::from_secs(60) },
        };
        Some((delivery, token, outcome))
    }

    fn settle(&mut self, mut settle: Past) -> Option<(Asked, StoreOp)> {
        let consumer = Self::consumer(settle.queue);
        let items: Vec<SettleItem> = settle
            .items
            .iter()
            .map(|&(delivery, token, outcome)| SettleItem {
                delivery,
                token: Some(token),
                outcome,
                reason: (outcome == Outcome::Reject).then(|| "no".to_owned()),
                evidence: matches!(outcome, Outcome::Delivered { .. }).then(|| b"{\"ack\":\"AA\"}".to_vec()),
                reply: matches!(outcome, Outcome::Delivered { .. } | Outcome::Reject | Outcome::Retry { .. })
                    .then(|| b"{\"data\":1}".to_vec()),
            })
            .collect();
        let (mut emit, mut prepared) = (Vec::new(), Vec::new());
        if settle.emit != Emits::Nothing {
            let name = format!("e{}", settle.stamp);
            let routed = self.setups.iter().any(|setup| usize::from(setup.queue) == INBOX);
            let dead = (settle.emit == Emits::Unrouted || !routed).then_some(Reason::NoRoute);
            let to = if dead.is_some() { Vec::new() } else { vec![INBOX] };
            let mut message = message(&name, &name, [None, None], to);
            let ready = self.prepare(&consumer, &mut message);
            settle.emitted = Some((ready.key, ready.fingerprint));
            prepared.push(ready);
            emit.push(Emit { message, dead });
        }
        if items.is_empty() && emit.is_empty() && !settle.state {
            return None;
        }
        let state =
            settle.state.then(|| (format!("s{}", settle.stamp), Some(settle.stamp.to_be_bytes().to_vec())));
        let call = Settle {
            consumer,
            queues: vec![QUEUES[settle.queue].to_owned()],
            session: settle.session,
            items,
            emit,
            state: state.into_iter().collect(),
            atomic: settle.atomic,
        };
        if self.settles.iter().all(|past| past.stamp != settle.stamp) {
            self.settles.push(settle.clone());
        }
        let (answer, answered) = channel();
        Some((Asked::Settle { settle, answer: answered }, StoreOp::Settle { settle: call, prepared, answer }))
    }

    fn operate(&mut self, which: u8, verb: Decides) -> Option<(Asked, StoreOp)> {
        let stuck = |state: &State| matches!(state, State::Dead { .. } | State::InDoubt { .. });
        let rows = || self.snap.rows.values();
        let mut of: Vec<DeliveryId> =
            rows().filter(|row| stuck(&row.delivery.state)).map(|row| row.id).collect();
        if of.is_empty() || which >= 240 {
            of = rows().map(|row| row.id).collect();
        }
        let delivery = *of.get(usize::from(which).checked_rem(of.len())?)?;
        self.decide(delivery, verb)
    }

    /// An operator's decision about a delivery.
    pub(super) fn decide(&self, delivery: DeliveryId, verb: Decides) -> Option<(Asked, StoreOp)> {
        let verb = match verb {
            Decides::Replay => Verb::Replay,
            Decides::Discard => Verb::Discard,
            Decides::SayDelivered => Verb::Resolve(Resolution::Delivered),
            Decides::SayRetry => Verb::Resolve(Resolution::Retry),
            Decides::SayDead => Verb::Resolve(Resolution::Dead),
        };
        let (answer, answered) = channel();
        let reason = "so it is".to_owned();
        let op = StoreOp::Operate { permit: operator()?, delivery, verb, reason, answer };
        Some((Asked::Operate { delivery, verb, answer: answered }, op))
    }

    fn brake(&mut self, queue: usize, brake: Brakes) -> Option<(Asked, StoreOp)> {
        let name = QUEUES[queue].to_owned();
        self.writer().memory.queue(&name)?;
        let (answer, answered) = channel();
        let op = match brake {
            Brakes::Pause => {
                StoreOp::QueuePause { permit: operator()?, queue: name, pause: Pause::Pause, answer }
            }
            Brakes::Resume => {
                StoreOp::QueuePause { permit: operator()?, queue: name, pause: Pause::Resume, answer }
            }
            Brakes::CrashLoop => {
                StoreOp::QueueTrip { queue: name, trip: Some(TripReason::CrashLoop), answer }
            }
            Brakes::Refused => {
                StoreOp::QueueTrip { queue: name, trip: Some(TripReason::AdapterRefused), answer }
            }
            Brakes::Answered => StoreOp::QueueTrip { queue: name, trip: None, answer },
        };
        Some((Asked::Other { answer: answered }, op))
    }

    /// Takes note of the queues that get a backlog limit.
    fn limit(&mut self, setups: &[Setup]) {
        let limited = setups.iter().filter(|setup| setup.backlog > 0);
        self.limited.extend(limited.map(|setup| QUEUES[usize::from(setup.queue)]));
    }

    pub(super) fn queue_setups(&self, setups: &[Setup]) -> Vec<QueueSetup> {
        let limit = |sender: usize| {
            let setup = setups.iter().find(|setup| usize::from(setup.queue) == sender)?;
            (setup.sent > 0).then_some(BacklogLimit { messages: setup.sent, bytes: 1 << 20 })
        };
        let senders =
            (0..SENDERS.len()).map(|sender| QueueSetup::sender(&Self::sender(sender), limit(sender)));
        setups.iter().map(queue_setup).chain(senders).collect()
    }

    /// Whether a call hands in a message with this key and fingerprint.
    pub(super) fn asks_for(&self, ask: &Asked, key: &Index, print: &Index) -> bool {
        match ask {
            Asked::Send { request, .. } => {
                let request = &self.requests[*request];
                request.keys.iter().zip(&request.prints).any(|pair| pair == (key, print))
            }
            Asked::Settle { settle, .. } => settle.emitted == Some((*key, *print)),
            Asked::Before { .. }
            | Asked::Lease { .. }
            | Asked::Session { .. }
            | Asked::Death { .. }
            | Asked::Operate { .. }
            | Asked::Move { .. }
            | Asked::Configure { .. }
            | Asked::Other { .. } => false,
        }
    }

    /// Nothing is half done: batches, and settles with what they emit and keep.
    pub(super) fn whole(&self, asked: &[Asked], now: &Snap) -> Result<(), Broken> {
        let known =
            |key: &Index, print: &Index| self.known.get(key).is_some_and(|known| known.print == *print);
        let new = now.rows.values().filter(|row| !self.snap.rows.contains_key(&row.pos));
        for row in new {
            let Some((key, _)) = self.known.iter().find(|(_, known)| known.message == row.message) else {
                return Err(Broken::new("a delivery has its message", format!("{row:?}")));
            };
            let whole = asked.iter().any(|ask| match ask {
                Asked::Send { request, .. } => {
                    let Request { keys, prints, .. } = &self.requests[*request];
                    keys.contains(key) && keys.iter().zip(prints).all(|(key, print)| known(key, print))
                }
                Asked::Settle { settle, .. } => settle.emitted.is_some_and(|(emitted, _)| emitted == *key),
                _ => false,
            });
            law("a batch is whole or absent", whole, || format!("{row:?}"))?;
        }
        for ask in asked {
            let Asked::Settle { settle, .. } = ask else { continue };
            let emitted = settle.emitted.map(|(key, print)| known(&key, &print));
            let state = now.state(QUEUES[settle.queue], &format!("s{}", settle.stamp)).is_some();
            let state = settle.state.then_some(state);
            if let (Some(emitted), Some(state)) = (emitted, state) {
                law("emit and state go together", emitted == state, || format!("{settle:?}"))?;
            }
            let Some(done) = emitted.or(state) else { continue };
            let before = |id: &DeliveryId| self.snap.by_id(*id);
            for (id, token, outcome) in &settle.items {
                if !Self::ends(*outcome)
                    || !before(id).is_some_and(|row| Self::token_of(&row.delivery) == Some(*token))
                {
                    continue;
                }
                let ended = now.by_id(*id).is_some_and(|row| Self::token_of(&row.delivery) != Some(*token));
                if done {
                    law("a settle is whole or absent", ended, || format!("{id} of {settle:?}"))?;
                } else if asked.len() == 1 {
                    law("a settle is whole or absent", !ended, || format!("{id} of {settle:?}"))?;
                }
            }
        }
        Ok(())
    }
}

fn queue_setup(setup: &Setup) -> QueueSetup {
    let queue = usize::from(setup.queue) % 3;
    let kind = match queue {
        WIRE => QueueKind::Adapter,
        FAR => QueueKind::ExternalAdapter,
        _ => QueueKind::Inbox,
    };
    let retry = RetryPolicy {
        initial: Duration::from_secs(1),
        max: Duration::from_secs(60),
        attempts: setup.attempts,
        give_up_after: Duration::from_secs(20 * 3600),
    };
    let policy = QueuePolicy {
        order: setup.order,
        on_doubt: setup.on_doubt,
        on_dead: setup.on_dead,
        confirm: (queue != INBOX).then_some(Level::Transport),
        retry,
        window: setup.window,
        max_in_flight: setup.in_flight,
        max_backlog: (setup.backlog > 0).then_some(BacklogLimit { messages: setup.backlog, bytes: 1 << 20 }),
    };
    QueueSetup { name: QUEUES[queue].to_owned(), kind, sessions: Default::default(), policy }
}

pub(super) fn message(
    id: &str,
    text: &str,
    [lane, barrier]: [Option<String>; 2],
    destinations: Vec<usize>,
) -> NewMessage {
    let mut attributes = serde_json::json!({"specversion": "1.0", "id": id, "source": "/sim", "type": "t"});
    if let Some(lane) = &lane {
        attributes["partitionkey"] = lane.as_str().into();
    }
    if let Some(barrier) = &barrier {
        attributes["barrierkey"] = barrier.as_str().into();
    }
    NewMessage {
        kind: "t".into(),
        source: "/sim".into(),
        subject: None,
        partition_key: lane,
        barrier_key: barrier,
        datacontenttype: Some("text/plain".into()),
        correlation_id: None,
        expires_at: None,
        attributes: attributes.to_string().into_bytes(),
        form: DataForm::Text,
        data: text.as_bytes().to_vec(),
        idempotency_key: id.to_owned(),
        destinations: destinations.into_iter().map(|queue| QUEUES[queue].to_owned()).collect(),
    }
}

fn operator_actor() -> Actor {
    Actor::new(ActorKind::Operator, "ops")
}

fn operator() -> Option<OperatorPermit> {
    OperatorRights::new(vec![OperatorRight::Operate]).permit(&operator_actor(), OperatorRight::Operate)
}
