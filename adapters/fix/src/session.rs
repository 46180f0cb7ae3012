//! One FIX session at work: the engine, its connection, and the gateway that everything durable happens in.
//!
//! One task does it all, one step after the other: what has come in goes to the engine, what the engine wants durable is
//! settled, and only then is acted on. What comes meanwhile gathers, and goes into the next settlement.

mod away;
mod connection;
#[cfg(test)]
mod gathering;
mod held_up;
mod operators;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use gatepost_adapter::tls::{Connector, Stream, explain};
use gatepost_adapter::{Backoff, Failure, Session};
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use uuid::Uuid;

use crate::batch::{Batch, Books, InHand, Refused};
use crate::calls::Asked;
use crate::engine::{Commit, Config, Effect, Engine, Now, Outgoing, Turn};
use crate::event::Origin;
use crate::intake::Order;
use crate::link::{Heard, Link};
use crate::message::Message;
use crate::settings::{Plan, Way};
use away::Away;
use held_up::HeldUp;
pub(crate) use held_up::places;

const TICK: Duration = Duration::from_millis(100);
/// Pauses between tries to connect.
const RECONNECT_FIRST: Duration = Duration::from_millis(500);
const RECONNECT_MAX: Duration = Duration::from_secs(60);
/// A connection that lasted so long was a good one: the next try comes soon.
const GOOD_AFTER: Duration = Duration::from_secs(10);
/// Most messages that are taken in before what has come of them is settled.
const STEP_MESSAGES_MAX: usize = 256;
/// Most deliveries that begin in one settlement.
const BEGINS_MAX: usize = 200;
/// Most content of theirs, bytes; one alone may have more.
const BEGINS_BYTES_MAX: usize = 1024 * 1024;

/// A connection that a partner has made, and the Logon that it began with.
pub(crate) struct Arrival {
    pub(crate) stream: Stream,
    pub(crate) logon: Message,
    /// What was read behind it.
    pub(crate) rest: Vec<u8>,
}

/// Where the work of a session comes from, besides its connection.
pub(crate) struct Inputs {
    pub(crate) orders: mpsc::Receiver<Order>,
    pub(crate) arrivals: mpsc::Receiver<Arrival>,
    pub(crate) asked: mpsc::Receiver<Asked>,
    /// To be told that a session has logged on.
    pub(crate) up: watch::Sender<bool>,
    /// Most deliveries that have gone back and are remembered, to be woken.
    pub(crate) away_max: usize,
    /// Most deliveries that the session keeps in hand while it cannot send them: the others have theirs.
    pub(crate) places: usize,
}

pub(crate) struct Driver {
    gateway: Session,
    config: Arc<Config>,
    origin: Origin,
    /// Where this side connects to, if it is the one that does.
    connector: Option<Arc<Connector>>,
    message_bytes_max: usize,
    enabled: bool,
    engine: Engine,
    started: Instant,
    link: Option<Link>,
    connecting: JoinSet<Result<Stream, String>>,
    connect_at: Instant,
    backoff: Backoff,
    failing: bool,
    up_since: Option<Instant>,
    /// Not to be connected any more: numbers differ, and a new connection would only say so again. The window in which that was
    /// found, if there are windows.
    halted: Option<Option<i64>>,
    orders: mpsc::Receiver<Order>,
    arrivals: mpsc::Receiver<Arrival>,
    asked: mpsc::Receiver<Asked>,
    up: watch::Sender<bool>,
    /// Read, and not begun.
    waiting: VecDeque<Order>,
    held_up: HeldUp,
    places: usize,
    in_hand: InHand,
    away: Away,
    batch: Batch,
}

/// What a step begins with.
enum Input {
    Heard(Heard),
    Order(Box<Order>),
    Arrival(Box<Arrival>),
    Connected(Box<Result<Stream, String>>),
    Asked(Asked),
    Tick,
    Stop,
}

impl Driver {
    pub(crate) fn new(gateway: Session, plan: Plan, inputs: Inputs) -> Result<Self, Failure> {
        let Inputs { orders, arrivals, asked, up, away_max, places } = inputs;
        let engine = Engine::restore(Arc::clone(&plan.config), gateway.state())
            .map_err(|error| Failure::new("a session cannot be taken up again", error))?;
        let connector = match &plan.way {
            Way::Connect { address, tls } => Some(Arc::new(Connector::new(address, tls.as_ref())?)),
            Way::Listen(_) => None,
        };
        let now = Instant::now();
        Ok(Self {
            gateway,
            config: plan.config,
            origin: plan.origin,
            connector,
            message_bytes_max: plan.message_bytes_max,
            enabled: plan.enabled,
            engine,
            started: now,
            link: None,
            connecting: JoinSet::new(),
            connect_at: now,
            backoff: Backoff::new(RECONNECT_FIRST, RECONNECT_MAX),
            failing: false,
            up_since: None,
            halted: None,
            orders,
            arrivals,
            asked,
            up,
            waiting: VecDeque::new(),
            held_up: HeldUp::default(),
            places,
            in_hand: InHand::new(),
            away: Away::new(away_max),
            batch: Batch::default(),
        })
    }

    /// Keeps the session until the adapter is asked to stop, then logs out.
    pub(crate) async fn run(mut self) -> Result<(), Failure> {
        let stop = self.gateway.stop();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopping = false;
        loop {
            let input = tokio::select! {
                heard = heard(&mut self.link) => Input::Heard(heard),
                Some(order) = self.orders.recv(), if !stopping => Input::Order(Box::new(order)),
                Some(arrival) = self.arrivals.recv(), if !stopping => Input::Arrival(Box::new(arrival)),
                Some(made) = self.connecting.join_next() => {
                    Input::Connected(Box::new(made.unwrap_or_else(|error| Err(error.to_string()))))
                }
                Some(asked) = self.asked.recv() => Input::Asked(asked),
                _ = ticks.tick() => Input::Tick,
                () = stop.requested(), if !stopping => Input::Stop,
            };
            stopping |= matches!(input, Input::Stop);
            self.step(input).await?;
            if stopping && self.link.is_none() {
                return Ok(());
            }
        }
    }

    fn now(&self) -> Now {
        Now { utc: OffsetDateTime::now_utc(), tick: self.started.elapsed() }
    }

    /// Takes an input in, and everything else that is here already; then settles, acts, and sends.
    async fn step(&mut self, input: Input) -> Result<(), Failure> {
        self.take_in(input).await?;
        for _ in 0..STEP_MESSAGES_MAX {
            let Some(heard) = self.link.as_mut().and_then(Link::ready) else { break };
            self.heard(heard).await?;
            if self.batch.says_much() {
                break;
            }
        }
        while let Ok(order) = self.orders.try_recv() {
            self.waiting.push_back(order);
        }
        if self.engine.has_more() {
            self.flush().await?;
            self.go_on().await?;
        }
        self.give_back().await?;
        self.send_waiting().await?;
        self.look_at_what_waits().await?;
        self.flush().await
    }

    async fn take_in(&mut self, input: Input) -> Result<(), Failure> {
        match input {
            Input::Heard(heard) => self.heard(heard).await,
            Input::Order(order) => {
                self.waiting.push_back(*order);
                Ok(())
            }
            Input::Arrival(arrival) => self.arrive(*arrival).await,
            Input::Connected(made) => self.connected(*made).await,
            Input::Asked(Asked { wish, answer }) => {
                let said = self.grant(wish).await?;
                // Whoever asked may have been stopped meanwhile.
                let _ = answer.send(said);
                Ok(())
            }
            Input::Tick => self.tick().await,
            Input::Stop => self.stop().await,
        }
    }

    async fn heard(&mut self, heard: Heard) -> Result<(), Failure> {
        let now = self.now();
        match heard {
            Heard::Message(message) => self.engine.received(&message, now),
            Heard::Written(places) => places.into_iter().for_each(|place| self.engine.written(place)),
            Heard::End(why) => {
                match why {
                    Some(error) => {
                        tracing::warn!(
                            session = self.config.name,
                            error = explain(&error),
                            "the connection has ended"
                        );
                    }
                    None => {
                        tracing::info!(session = self.config.name, "the partner has closed the connection")
                    }
                }
                return self.disconnected(None).await;
            }
        }
        self.gather().await
    }

    /// Puts what has come of the last input to the rest.
    async fn gather(&mut self) -> Result<(), Failure> {
        // Nothing is on its way into the gateway here.
        let now = self.now();
        self.engine.tell_owed(now);
        loop {
            let turn = self.engine.take();
            if let Err(turn) = self.batch.add(turn) {
                self.flush_before(*turn).await?;
                continue;
            }
            if !self.engine.catches_up() {
                return Ok(());
            }
            let now = self.now();
            self.engine.go_on(now);
        }
    }

    /// Makes durable and acts on what has gathered, for a turn that cannot go with it. What comes of acting goes behind that
    /// turn: it may say numbers that count in what the turn takes in, and must not be durable without it.
    async fn flush_before(&mut self, turn: Turn) -> Result<(), Failure> {
        let (commits, effects) = std::mem::take(&mut self.batch).into_parts();
        self.settle_gathered(commits).await?;
        // An empty batch takes anything.
        let _ = self.batch.add(turn);
        Box::pin(self.act(effects)).await
    }

    /// Makes durable what has gathered, and acts on it; then on what has come of that.
    async fn flush(&mut self) -> Result<(), Failure> {
        loop {
            if self.batch.is_empty() {
                return Ok(());
            }
            let (commits, effects) = std::mem::take(&mut self.batch).into_parts();
            self.settle_gathered(commits).await?;
            Box::pin(self.act(effects)).await?;
            Box::pin(self.gather()).await?;
        }
    }

    async fn settle_gathered(&mut self, commits: Vec<Commit>) -> Result<(), Failure> {
        match self.settle(commits).await {
            Ok(()) => Ok(()),
            Err(Refused::Fatal(failure)) => Err(failure),
            // Only `send_waiting` begins anything.
            Err(Refused::Begins { .. }) => {
                let source = io::Error::other("a delivery begins out of turn");
                Err(Failure::new("the session has lost its way", source))
            }
        }
    }

    async fn settle(&mut self, commits: Vec<Commit>) -> Result<(), Refused> {
        let books = Books { gateway: &self.gateway, config: &self.config, origin: &self.origin };
        books.settle(commits, &mut self.engine, &mut self.in_hand).await
    }

    async fn act(&mut self, effects: Vec<Effect>) -> Result<(), Failure> {
        for effect in effects {
            match effect {
                Effect::Write { bytes, carries } => {
                    if let Some(link) = &mut self.link
                        && !link.write(bytes, carries)
                    {
                        tracing::warn!(
                            session = self.config.name,
                            "the partner takes too little; closing the connection"
                        );
                        self.disconnected(None).await?;
                    }
                }
                Effect::Begun(lease) => self.engine.begun(&lease),
                Effect::Alarm(alarm) => tracing::error!(session = self.config.name, "{alarm}"),
                Effect::Close(why) => self.disconnected(Some(why)).await?,
            }
        }
        Ok(())
    }

    /// Goes on with the answer to a ResendRequest, as long as the partner takes it.
    async fn go_on(&mut self) -> Result<(), Failure> {
        while self.engine.has_more() && self.link.as_ref().is_some_and(|link| !link.is_busy()) {
            let now = self.now();
            self.engine.go_on(now);
            self.gather().await?;
            self.flush().await?;
        }
        Ok(())
    }

    /// Begins what waits, as much of it as may leave now; together with what has gathered, which spares a settlement.
    async fn send_waiting(&mut self) -> Result<(), Failure> {
        let mut missing = None;
        while !self.waiting.is_empty() && self.may_begin() {
            let count = together(self.waiting.iter().map(|order| order.outgoing.content.bytes()));
            let count = count.min(self.places - self.in_hand.len());
            let leases = self.waiting.iter().take(count).map(|order| &order.outgoing.lease);
            if !self.batch.takes_begins(leases) {
                // An empty one takes them.
                self.flush().await?;
                continue;
            }
            let now = self.now();
            let count = self.engine.admit(self.waiting.iter().take(count).map(|order| &order.outgoing), now);
            if count == 0 {
                if self.make_room().await? {
                    continue;
                }
                missing = self.waiting.front().map(|order| self.engine.cost(&order.outgoing, now));
                break;
            }
            self.held_up.goes_on(Instant::now());
            let (mut commits, mut effects) = std::mem::take(&mut self.batch).into_parts();
            let mut deliveries: Vec<Outgoing> = newest(self.waiting.drain(..count), Order::id)
                .into_iter()
                .filter(|order| !order.delivery.is_lost())
                .map(|order| in_hand(&mut self.in_hand, order))
                .collect();
            let then = loop {
                let undo = self.engine.send(&deliveries, now);
                let Turn { commit, then } = self.engine.take();
                commits.push(commit);
                match self.settle(commits).await {
                    Ok(()) => break then,
                    Err(Refused::Begins { deliveries: refused, commits: left }) => {
                        commits = left;
                        // The one that begins them is the last.
                        commits.pop();
                        tracing::info!(
                            session = self.config.name,
                            count = refused.len(),
                            "deliveries must not be sent any more"
                        );
                        self.engine.undo(undo);
                        deliveries.retain(|outgoing| !refused.contains(&outgoing.lease.delivery));
                        self.in_hand.retain(|delivery, _| !refused.contains(delivery));
                    }
                    Err(Refused::Fatal(failure)) => return Err(failure),
                }
            };
            effects.extend(then);
            self.act(effects).await?;
            self.gather().await?;
        }
        self.held_up.missing = missing;
        Ok(())
    }

    /// Whether a delivery may begin now, if there is room for it.
    fn may_begin(&self) -> bool {
        self.engine.can_send()
            && self.in_hand.len() < self.places
            && self.link.as_ref().is_some_and(|link| !link.is_busy())
    }

    /// Deletes what is kept no more. Whether that has made room.
    async fn make_room(&mut self) -> Result<bool, Failure> {
        let before = self.engine.bytes_kept();
        self.gather().await?;
        self.flush().await?;
        self.go_on().await?;
        Ok(self.engine.bytes_kept() < before)
    }

    async fn tick(&mut self) -> Result<(), Failure> {
        let now = self.now();
        self.engine.tick(now);
        self.gather().await?;
        self.expire(now).await?;
        if self.link.is_none() {
            self.connect(now);
        }
        if self.engine.is_up() && self.up_since.is_none() {
            self.up_since = Some(Instant::now());
            self.up.send_replace(true);
            self.failing = false;
            let numbers = self.engine.numbers();
            tracing::info!(
                session = self.config.name,
                epoch = numbers.epoch,
                next_out = numbers.next_out,
                next_in = numbers.next_in,
                "logged on"
            );
        }
        Ok(())
    }

    /// Gives up what has waited past its `expirytime`, and lets go of leases that have been lost.
    async fn expire(&mut self, now: Now) -> Result<(), Failure> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        // What may have left begins, or is refused: then a person decides.
        let engine = &self.engine;
        let late = |order: &Order| {
            order.outgoing.expires.is_some_and(|at| at <= now.unix_ms()) && !engine.knows(order.id())
        };
        let (expired, kept): (VecDeque<_>, VecDeque<_>) = self.waiting.drain(..).partition(late);
        self.waiting = kept;
        for order in expired {
            let outgoing = in_hand(&mut self.in_hand, order);
            // Said as of any that is late: by the engine.
            self.engine.send(&[outgoing], now);
            self.gather().await?;
        }
        self.waiting.retain(|order| !order.delivery.is_lost());
        Ok(())
    }

    async fn stop(&mut self) -> Result<(), Failure> {
        self.connecting.shutdown().await;
        // Let go of, what has not begun goes back.
        self.waiting.clear();
        let now = self.now();
        self.engine.log_out_now("", now);
        self.gather().await
    }
}

/// Takes a delivery that is about to begin in hand.
fn in_hand(in_hand: &mut InHand, Order { delivery, outgoing }: Order) -> Outgoing {
    in_hand.insert(delivery.id(), delivery);
    outgoing
}

/// How many of those that wait, of these sizes, begin in one settlement.
fn together(sizes: impl Iterator<Item = usize>) -> usize {
    let mut bytes = 0;
    let fits = |(at, size): &(usize, usize)| {
        bytes += size;
        *at == 0 || bytes <= BEGINS_BYTES_MAX
    };
    sizes.take(BEGINS_MAX).enumerate().take_while(fits).count()
}

/// Of several leases of a delivery only the last: the others have been recalled.
fn newest<T>(items: impl IntoIterator<Item = T>, id: impl Fn(&T) -> Uuid) -> Vec<T> {
    let items: Vec<T> = items.into_iter().collect();
    let last: HashMap<Uuid, usize> = items.iter().map(&id).zip(0..).collect();
    let is_last = |(position, item): &(usize, T)| last.get(&id(item)) == Some(position);
    items.into_iter().enumerate().filter(is_last).map(|(_, item)| item).collect()
}

/// What happens on the connection; never comes back without one.
async fn heard(link: &mut Option<Link>) -> Heard {
    match link {
        Some(link) => link.next().await,
        None => std::future::pending().await,
    }
}
