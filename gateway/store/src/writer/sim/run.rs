//! One run: the steps are done to a real writer, and after each of them the laws are asked.

use std::any::Any;
use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash as _, Hasher as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use gatepost_audit::{Checkpoint, Event as LeafEvent, Options, SignerKey, Tail, verify_dir};
use gatepost_core::principal::{Actor, ActorKind};
use gatepost_core::{Delivery, DeliveryId, LeaseToken, MessageId, OnDead, OnDoubt, Order, Outcome};
use rusqlite::Connection;

use super::ask::{Asked, Past, Request};
use super::book::Book;
use super::laws::{self, Broken, Snap, law};
use super::machine::{DEDUP_WINDOW, Machine, ORIGIN};
use super::ops::{Fault, Kind, Op, QUEUES, Setup, Step, WIRE};
use super::power::{self, Crash};
use crate::call::Op as StoreOp;
use crate::dice::Dice;
use crate::ops::AuditNote;
use crate::seal::Index;
use crate::sqlite::Sqlite;
use crate::writer::bulk::Bulk;
use crate::writer::{Chore, Condition, Writer};

/// Starts that may fail in a row before a run is stuck.
const STARTS_MAX: u32 = 4;

/// What a run came to, from which two runs of one seed are told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Trace {
    pub(super) digest: u64,
    pub(super) commits: u64,
    pub(super) crashes: u64,
    pub(super) struck: u64,
    pub(super) deliveries: u64,
}

/// Where a run failed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Failure {
    /// The step; behind the last one, what comes after all of them.
    pub(super) step: usize,
    pub(super) broken: Broken,
}

/// A use of an idempotency key.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) print: Index,
    pub(super) message: MessageId,
    pub(super) at: i64,
}

/// A lease that a consumer was given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) delivery: DeliveryId,
    pub(super) token: LeaseToken,
}

/// Who takes deliveries from a queue: what dies with the process.
#[derive(Default)]
pub(super) struct Consumer {
    pub(super) session: Option<u64>,
    pub(super) earlier_session: Option<u64>,
    pub(super) held: Vec<Held>,
    /// Leases that are over, or whose holder is.
    pub(super) past: Vec<Held>,
}

impl Consumer {
    pub(super) fn dies(&mut self) {
        self.past.append(&mut self.held);
        self.earlier_session = self.session.take().or(self.earlier_session);
    }
}

pub(super) struct Sim {
    pub(super) machine: Machine,
    pub(super) writer: Option<Box<Writer<Sqlite>>>,
    pub(super) dice: Dice,
    pub(super) setups: Vec<Setup>,
    pub(super) requests: Vec<Request>,
    pub(super) settles: Vec<Past>,
    pub(super) consumers: [Consumer; 3],
    /// By the key's digest.
    pub(super) known: HashMap<Index, Known>,
    /// Payloads by the fingerprint of their messages.
    pub(super) texts: HashMap<Index, Vec<u8>>,
    pub(super) promised: HashSet<DeliveryId>,
    pub(super) snap: Snap,
    pub(super) newest: i64,
    pub(super) book: Book,
    /// Queues whose leases outlived the gateway when it started last.
    lasting: HashSet<i64>,
    /// Queues that have had a backlog limit.
    pub(super) limited: HashSet<&'static str>,
    pub(super) stamp: u64,
    /// Rows that the connection had written when the tables were looked at last.
    changes: Option<u64>,
    trace: Trace,
    hasher: DefaultHasher,
}

/// What became of a call into the writer.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Lives,
    Crashed,
}

/// Runs the steps and then whatever it takes to bring everything to its end.
pub(super) fn run(seed: u64, steps: &[Step]) -> Result<Trace, Failure> {
    run_under(seed, steps, |_| Ok(()))
}

/// As [`run`], with a law of its own that must hold after each of the steps.
pub(super) fn run_under(
    seed: u64,
    steps: &[Step],
    law: impl Fn(&Snap) -> Result<(), Broken>,
) -> Result<Trace, Failure> {
    let mut sim = Sim::new(seed);
    sim.boot(None).map_err(|broken| Failure { step: 0, broken })?;
    for (step, what) in steps.iter().enumerate() {
        sim.step(what).and_then(|()| law(&sim.snap)).map_err(|broken| Failure { step, broken })?;
    }
    sim.drain().map_err(|broken| Failure { step: steps.len(), broken })?;
    Ok(sim.end())
}

impl Sim {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            machine: Machine::new(seed),
            writer: None,
            dice: Dice(!seed),
            setups: Vec::new(),
            requests: Vec::new(),
            settles: Vec::new(),
            consumers: Default::default(),
            known: HashMap::new(),
            texts: HashMap::new(),
            promised: HashSet::new(),
            snap: Snap::default(),
            newest: 0,
            book: Book::default(),
            lasting: HashSet::new(),
            limited: HashSet::new(),
            stamp: 0,
            changes: None,
            trace: Trace::default(),
            hasher: DefaultHasher::new(),
        }
    }

    fn end(mut self) -> Trace {
        format!("{:?}", self.snap).hash(&mut self.hasher);
        for leaf in &self.book.leaves {
            leaf.hash(&mut self.hasher);
        }
        self.trace.deliveries = self.snap.rows.len() as u64;
        Trace { digest: self.hasher.finish(), ..self.trace }
    }

    pub(super) fn note(&mut self, what: &impl std::fmt::Debug) {
        format!("{what:?}").hash(&mut self.hasher);
    }

    pub(super) fn writer(&self) -> &Writer<Sqlite> {
        self.writer.as_ref().expect("the gateway runs")
    }

    pub(super) fn now(&self) -> i64 {
        self.machine.now(self.writer())
    }

    pub(super) fn step(&mut self, step: &Step) -> Result<(), Broken> {
        match step {
            Step::Together { ops, fault } => self.together(ops, *fault),
            Step::Pass { ms, fault } => self.pass(Duration::from_millis(*ms), *fault),
            Step::Crash { down_ms, wall_ms, fault } => {
                let writer = self.writer.take().expect("the gateway runs");
                self.machine.cut(writer);
                self.machine.pass(Duration::from_millis(*down_ms));
                self.machine.step_wall(*wall_ms);
                self.crashed();
                let connection = self.machine.look();
                self.log_is_as_it_was(&connection)?;
                let disk = Snap::take(&connection)?;
                law("a power cut between commits leaves everything", self.snap == disk, || {
                    format!("{:?}, {disk:?}", self.snap)
                })?;
                drop(connection);
                self.boot(*fault)
            }
            Step::Sign { fault } => {
                self.book.signed.push((self.book.edge.size(), self.book.edge.root()));
                // As if a bundle had eight entries.
                let below = self.book.edge.size() / 8 * 8;
                self.beside(*fault, |writer| writer.chore(Chore::LeavesFiled { below }))
            }
        }
    }

    pub(super) fn pass(&mut self, span: Duration, fault: Option<Fault>) -> Result<(), Broken> {
        self.machine.pass(span);
        if self.writer().condition == Condition::Full {
            self.machine.keep_reserve();
        }
        self.beside(fault, |writer| writer.look_at_time(&Bulk::new(Instant::now())))
    }

    /// What the writer does for nobody in particular.
    fn beside(&mut self, fault: Option<Fault>, act: impl FnOnce(&mut Writer<Sqlite>)) -> Result<(), Broken> {
        let condition = self.writer().condition.clone();
        power::arm(fault);
        let fate = self.drive(act);
        let struck = power::disarm();
        self.count(struck);
        if fate? == Fate::Crashed {
            return self.restart(struck, &[]);
        }
        if struck.is_some() || condition != self.writer().condition {
            self.changes = None;
        }
        self.take_stock(&[])
    }

    fn count(&mut self, struck: Option<Fault>) {
        self.trace.struck += u64::from(struck.is_some());
        self.trace.commits += 1;
    }

    /// Calls into the writer. A simulated crash takes it away.
    fn drive(&mut self, act: impl FnOnce(&mut Writer<Sqlite>)) -> Result<Fate, Broken> {
        let mut writer = self.writer.take().expect("the gateway runs");
        let called = catch_unwind(AssertUnwindSafe(|| act(&mut writer)));
        match called {
            Ok(()) => {
                self.writer = Some(writer);
                Ok(Fate::Lives)
            }
            Err(payload) if payload.is::<Crash>() => {
                self.machine.cut(writer);
                self.machine.pass(Duration::from_millis(1500));
                Ok(Fate::Crashed)
            }
            Err(payload) => Err(Broken::new("nothing panics", said(payload.as_ref()))),
        }
    }

    /// After a crash within a commit: the disk has all of it or nothing.
    fn restart(&mut self, struck: Option<Fault>, asked: &[Asked]) -> Result<(), Broken> {
        self.crashed();
        let connection = self.machine.look();
        self.log_is_as_it_was(&connection)?;
        let disk = Snap::take(&connection)?;
        if struck.is_some_and(|fault| fault.kind == Kind::CrashBefore && fault.at == 0) {
            law("a commit that did not happen leaves no trace", disk == self.snap, || {
                format!("{disk:?}, {:?}", self.snap)
            })?;
        }
        self.take_in(&connection, asked)?;
        drop(connection);
        self.boot(None)
    }

    /// The gateway is gone, and so are the adapters that it had started.
    fn crashed(&mut self) {
        self.trace.crashes += 1;
        self.consumers[WIRE].dies();
    }

    /// What the database still has of the log is what was seen there before.
    fn log_is_as_it_was(&self, connection: &Connection) -> Result<(), Broken> {
        for (index, leaf) in laws::leaves(connection, 0) {
            let before = usize::try_from(index).ok().and_then(|index| self.book.leaves.get(index));
            law("the log is as it was", before.is_none_or(|before| *before == leaf), || {
                format!("leaf {index}")
            })?;
        }
        Ok(())
    }

    /// Starts the gateway as `serve` does: open, say so, configure. A start that fails ends, and is tried again.
    pub(super) fn boot(&mut self, mut fault: Option<Fault>) -> Result<(), Broken> {
        for _ in 0..STARTS_MAX {
            power::arm(fault.take());
            let started = self.start();
            let struck = power::disarm();
            self.count(struck);
            if started? {
                self.changes = None;
                self.take_stock(&[])?;
                laws::own_leases_are_over(&self.snap, &self.writer().memory, &self.lasting)?;
                return self.keys_are_known();
            }
        }
        Err(Broken::new("the gateway starts", "again and again it did not"))
    }

    fn start(&mut self) -> Result<bool, Broken> {
        let writer = self.machine.start().map_err(|text| Broken::new("the gateway starts", text))?;
        let first = writer.memory.leaf_count == 0;
        let queues = writer.memory.queues.values();
        self.lasting =
            queues.filter(|queue| !queue.leases_end_with_gateway()).map(|queue| queue.id).collect();
        self.writer = Some(Box::new(writer));
        let gateway = || Actor::new(ActorKind::Gateway, ORIGIN);
        let mut notes = Vec::new();
        if first {
            notes.push(AuditNote::new(LeafEvent::LogOpened, gateway()));
        }
        notes.push(AuditNote::new(LeafEvent::GatewayStarted, gateway()));
        let queues = self.queue_setups(&self.setups);
        for op in [
            |notes, _, answer| StoreOp::Note(notes, answer),
            |_, queues, answer| StoreOp::Configure { queues, answer },
        ] {
            let (answer, mut answered) = tokio::sync::oneshot::channel();
            let op = op(notes.clone(), queues.clone(), answer);
            if self.drive(|writer| writer.groups(vec![op]))? == Fate::Crashed {
                self.crashed();
                return Ok(false);
            }
            if !matches!(answered.try_recv(), Ok(Ok(()))) {
                // The program ends, and is started again.
                let writer = self.writer.take().expect("the gateway runs");
                self.machine.cut(writer);
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn together(&mut self, ops: &[Op], fault: Option<Fault>) -> Result<(), Broken> {
        let asked: Vec<(Asked, StoreOp)> = ops.iter().filter_map(|op| self.ask(op)).collect();
        // What is written in pieces is done behind all else that comes with it. So that the order is known in which it is heard of, one of
        // them rides along with the others, and each of the rest comes alone.
        let is_for_pieces = |(_, op): &(Asked, StoreOp)| self.writer().piecemeal.is_for_pieces(op);
        let (large, mut together): (Vec<_>, Vec<_>) = asked.into_iter().partition(is_for_pieces);
        let mut large = large.into_iter();
        together.extend(large.next());
        let crashes = self.trace.crashes;
        let (mut fault, mut next) = (fault, together);
        while !next.is_empty() && self.trace.crashes == crashes {
            let (asked, sent) = std::mem::take(&mut next).into_iter().unzip();
            self.deliver(asked, sent, fault.take())?;
            next.extend(large.next());
        }
        Ok(())
    }

    pub(super) fn deliver(
        &mut self,
        asked: Vec<Asked>,
        sent: Vec<StoreOp>,
        fault: Option<Fault>,
    ) -> Result<(), Broken> {
        let condition = self.writer().condition.clone();
        let sessions = self.sessions();
        power::arm(fault);
        let fate = self.drive(|writer| writer.all_at_once(sent));
        let struck = power::disarm();
        self.count(struck);
        if fate? == Fate::Crashed {
            return self.restart(struck, &asked);
        }
        let before = self.snap.clone();
        let troubled = struck.is_some() || condition != Condition::Working;
        if troubled {
            self.changes = None;
        }
        self.take_stock(&asked)?;
        self.hear(asked, &before, sessions, troubled)
    }

    /// Reads what a step has left in the tables, and asks whether it could be so.
    pub(super) fn take_stock(&mut self, asked: &[Asked]) -> Result<(), Broken> {
        let writer = self.writer.take().expect("the gateway runs");
        if self.is_quiet(&writer.database.connection) {
            self.writer = Some(writer);
            return Ok(());
        }
        let stock = self.take_in(&writer.database.connection, asked).and_then(|()| {
            if matches!(writer.condition, Condition::Broken(_)) {
                // Memory may be behind what the disk has after all; it is read anew before it is used again.
                return Ok(());
            }
            laws::memory_is_the_tables(&writer)?;
            laws::pieces_are_somebodys(&writer)?;
            laws::counts_are_right(&self.snap, &writer.memory)?;
            laws::ready_is_right(&self.snap, &writer.memory)
        });
        self.writer = Some(writer);
        stock
    }

    /// Whether nothing was written since the tables were looked at last.
    fn is_quiet(&mut self, connection: &Connection) -> bool {
        let changes = Some(connection.total_changes());
        std::mem::replace(&mut self.changes, changes) == changes
    }

    fn take_in(&mut self, connection: &Connection, asked: &[Asked]) -> Result<(), Broken> {
        let now = Snap::take(connection)?;
        self.book.read(laws::leaves(connection, self.book.leaves.len() as u64))?;
        self.book.agrees(&now)?;
        let time = self.writer.as_ref().map_or(i64::MAX / 2, |writer| self.machine.now(writer));
        laws::the_past_stays(&self.snap, &now, time)?;
        laws::lanes_are_kept(&now)?;
        let there: HashSet<DeliveryId> = now.rows.values().map(|row| row.id).collect();
        law("what was accepted is there", self.promised.is_subset(&there), || {
            format!("{:?}", self.promised.difference(&there))
        })?;
        self.learn(connection, asked)?;
        self.whole(asked, &now)?;
        self.snap = now;
        Ok(())
    }

    /// Each new message was asked for, and only once.
    fn learn(&mut self, connection: &Connection, asked: &[Asked]) -> Result<(), Broken> {
        let window = i64::try_from(DEDUP_WINDOW.as_micros()).unwrap_or(i64::MAX);
        for stored in laws::messages(connection, self.newest) {
            let asked_for = asked.iter().any(|ask| self.asks_for(ask, &stored.key, &stored.fingerprint));
            law("a message was handed in", asked_for, || format!("message {}", stored.seq))?;
            if let Some(known) = self.known.get(&stored.key) {
                let over = stored.accepted_at - known.at >= window;
                law("a key is accepted once in its window", over, || {
                    format!("message {} and {known:?}", stored.seq)
                })?;
            }
            let text = self.texts.get(&stored.fingerprint).map(Vec::as_slice);
            let data = stored.data.as_deref().and_then(|data| data.get(9..));
            law("a payload is the one that was handed in", data.is_none() || data == text, || {
                format!("message {}", stored.seq)
            })?;
            self.newest = stored.seq;
            let message = MessageId::from_bytes(stored.id);
            self.known
                .insert(stored.key, Known { print: stored.fingerprint, message, at: stored.accepted_at });
        }
        Ok(())
    }

    /// Every key within its window is found by a gateway that has just started.
    fn keys_are_known(&mut self) -> Result<(), Broken> {
        let now = self.now();
        let writer = self.writer.as_mut().expect("the gateway runs");
        for (key, known) in &self.known {
            if now - known.at >= i64::try_from(DEDUP_WINDOW.as_micros()).unwrap_or(i64::MAX) {
                continue;
            }
            let found = writer.accepted_before(*key, known.print).ok().flatten();
            law(
                "a key is known in its window",
                found.as_ref().is_some_and(|found| found.id == known.message),
                || format!("{known:?}: {found:?}"),
            )?;
        }
        Ok(())
    }

    /// Sessions by queue.
    pub(super) fn sessions(&self) -> [u64; 3] {
        QUEUES.map(|name| self.writer().memory.queue(name).map_or(0, |queue| queue.session))
    }

    /// Every queue, each as it was configured last, or simply.
    pub(super) fn all_queues(&self) -> Vec<Setup> {
        let plain = |queue| Setup {
            queue,
            order: Order::Key,
            on_doubt: OnDoubt::Resend,
            on_dead: OnDead::Continue,
            window: 1,
            in_flight: 256,
            attempts: 5,
            backlog: 0,
            sent: 0,
        };
        let last = |queue| self.setups.iter().find(|setup| setup.queue == queue).cloned();
        (0..3).map(|queue| last(queue).unwrap_or_else(|| plain(queue))).collect()
    }

    /// The auditor finds nothing wrong with the log.
    pub(super) fn log_verifies(&self) -> Result<(), Broken> {
        let fail = |error: &dyn std::fmt::Display| Broken::new("the log verifies", error);
        let signer = SignerKey::from_seed(ORIGIN, &[9; 32]).map_err(|error| fail(&error))?;
        let size = self.book.edge.size();
        let checkpoint = Checkpoint { origin: ORIGIN.to_owned(), size, root: self.book.edge.root() };
        let text = checkpoint.sign(&signer).map_err(|error| fail(&error))?;
        std::fs::write(self.machine.beside().join("checkpoint"), text).map_err(|error| fail(&error))?;
        let mut options = Options::new(signer.verifier());
        let leaves = self.book.leaves.clone();
        options.tail = Some(Box::new(move |start| {
            let from = usize::try_from(start).unwrap_or(usize::MAX).min(leaves.len());
            Ok(Tail { start, leaves: leaves[from..].to_vec() })
        }));
        let report =
            verify_dir(self.machine.beside(), options, &mut |_, _| {}).map_err(|fault| fail(&fault))?;
        law("the log leaves no delivery open", report.deliveries_open == 0, || format!("{report:?}"))
    }

    /// Whether an outcome ends the lease of which it is told.
    pub(super) fn ends(outcome: Outcome) -> bool {
        !matches!(outcome, Outcome::Begin | Outcome::Sent { .. } | Outcome::Extend { .. })
    }

    pub(super) fn token_of(delivery: &Delivery) -> Option<LeaseToken> {
        delivery.lease().map(|lease| lease.token)
    }
}

fn said(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}
