//! A random run: a sender, an adapter with every kind of outcome, crashes, restarts and an operator, all from one seed.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use gatepost_core::{DeliveryId, OnDead, OnDoubt, Outcome, QueuePolicy, Resolution};
use gatepost_store::{DeliveryFilter, DeliveryRow, Leased, Pause, SessionEnd, Verb};

use crate::check::assert_sound;
use crate::dice::Dice;
use crate::fixture::{
    BEGIN, DELIVERED, Fixture, RETRY, TROUBLE, item, merge, message, operator, queue, text,
};

/// Longest that one run may take.
const RUN_MAX: Duration = Duration::from_secs(50);
const QUEUE: &str = "lab";

pub(crate) struct Run {
    seed: u64,
    dice: Dice,
    fixture: Option<Fixture>,
    policy: QueuePolicy,
    session: u64,
    /// Lane and number of what is still to be accepted, in accept order.
    to_accept: Vec<(u64, u64)>,
    lanes: u64,
    /// Percent of the deliveries that stand in another lane besides.
    merges: u64,
    names: HashMap<DeliveryId, (u64, u64)>,
    /// The lanes of each, and when it was accepted: a count.
    order: HashMap<DeliveryId, (Vec<u64>, usize)>,
    /// When those were accepted that have succeeded, in the order of that, by lane; without those that a replay took out of their lane.
    successes: HashMap<u64, Vec<usize>>,
    succeeded: HashSet<DeliveryId>,
    /// Those that a replay put beside their lane.
    beside: HashSet<DeliveryId>,
    /// Percent of the steps in which a session or the gateway ends.
    mishaps: u64,
}

impl Run {
    pub(crate) async fn new(seed: u64, policy: QueuePolicy, lanes: u64, per_lane: u64, mishaps: u64) -> Self {
        let fixture = Fixture::new(vec![queue(QUEUE, policy)]).await;
        let session = fixture.session(QUEUE).await;
        let mut dice = Dice(seed);
        let mut next = vec![0; usize::try_from(lanes).unwrap()];
        let mut to_accept = Vec::new();
        while to_accept.len() < usize::try_from(lanes * per_lane).unwrap() {
            let lane = dice.below(lanes);
            let number = &mut next[usize::try_from(lane).unwrap()];
            if *number < per_lane {
                to_accept.push((lane, *number));
                *number += 1;
            }
        }
        to_accept.reverse();
        Self {
            seed,
            dice,
            fixture: Some(fixture),
            policy,
            session,
            to_accept,
            lanes,
            merges: 0,
            names: HashMap::new(),
            order: HashMap::new(),
            successes: HashMap::new(),
            succeeded: HashSet::new(),
            beside: HashSet::new(),
            mishaps,
        }
    }

    pub(crate) fn with_merges(self, percent: u64) -> Self {
        Self { merges: percent, ..self }
    }

    fn store(&self) -> &Fixture {
        self.fixture.as_ref().unwrap()
    }

    fn context(&self) -> String {
        format!("seed {}", self.seed)
    }

    /// Runs to the end of every delivery and gives the store back, with everybody's number by delivery.
    pub(crate) async fn finish(mut self) -> (Fixture, HashMap<DeliveryId, (u64, u64)>) {
        let started = Instant::now();
        let mut idle = 0;
        loop {
            assert!(started.elapsed() < RUN_MAX, "{}: not done in {RUN_MAX:?}", self.context());
            if !self.to_accept.is_empty() && self.dice.chance(40) {
                self.accept_some().await;
            }
            if self.dice.chance(self.mishaps) {
                self.mishap().await;
            }
            if self.work().await {
                idle = 0;
                continue;
            }
            idle += 1;
            if self.to_accept.is_empty() {
                self.decide_what_is_stuck().await;
                if self.is_over().await {
                    break;
                }
                if idle > 20 {
                    // What was kept and never settled comes back with a new session.
                    self.session = self.store().session(QUEUE).await;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let context = self.context();
        for (lane, numbers) in &self.successes {
            assert!(
                numbers.windows(2).all(|pair| pair[0] < pair[1]),
                "{context}: lane {lane} succeeded in the order {numbers:?}"
            );
        }
        (self.fixture.take().unwrap(), std::mem::take(&mut self.names))
    }

    async fn accept_some(&mut self) {
        let count = usize::try_from(self.dice.below(60) + 1).unwrap().min(self.to_accept.len());
        let batch = self.to_accept.split_off(self.to_accept.len() - count);
        let batch: Vec<(u64, u64)> = batch.into_iter().rev().collect();
        let mut messages = Vec::new();
        let mut lanes = Vec::new();
        for (lane, number) in &batch {
            let id = format!("{lane}:{number}");
            if self.merges > 0 && self.dice.chance(self.merges) {
                let other = self.dice.below(self.lanes);
                messages.push(merge(&id, [&lane.to_string(), &other.to_string()], &[QUEUE]));
                lanes.push(if other == *lane { vec![*lane] } else { vec![*lane, other] });
            } else {
                messages.push(message(&id, Some(&lane.to_string()), &id, &[QUEUE]));
                lanes.push(vec![*lane]);
            }
        }
        let accepted = self.store().accept(messages).await.unwrap();
        for ((name, lanes), accepted) in batch.into_iter().zip(lanes).zip(accepted) {
            let id = accepted.deliveries[0].id;
            self.order.insert(id, (lanes, self.names.len()));
            self.names.insert(id, name);
        }
    }

    /// A session or the gateway ends, in order or not.
    async fn mishap(&mut self) {
        match self.dice.below(6) {
            0 => {}
            1 => self.store().store.session_end(QUEUE.into(), SessionEnd::Crashed).await.unwrap(),
            2 => self.store().store.session_end(QUEUE.into(), SessionEnd::Stopped).await.unwrap(),
            3 => {
                for pause in [Pause::Pause, Pause::Resume] {
                    self.store().store.queue_pause(&operator(), QUEUE.into(), pause).await.unwrap();
                }
            }
            kind => {
                let fixture = self.fixture.take().unwrap();
                let place = if kind == 4 { fixture.stop().await } else { fixture.crash().await };
                assert_sound(&place, &self.context()).await;
                self.fixture = Some(place.open().await.unwrap());
            }
        }
        self.session = self.store().session(QUEUE).await;
    }

    /// Whether there was anything to do.
    async fn work(&mut self) -> bool {
        let max = u32::try_from(self.dice.below(40) + 1).unwrap();
        let leased = self.store().lease(QUEUE, self.session, max).await;
        if leased.is_empty() {
            return false;
        }
        if self.policy.window > 1 {
            self.settle_in_order(&leased).await;
        } else {
            self.settle_together(&leased).await;
        }
        true
    }

    fn outcome(&mut self) -> Option<Outcome> {
        Some(match self.dice.below(100) {
            0..70 => DELIVERED,
            70..80 => RETRY,
            80..86 => Outcome::Release,
            86..91 => Outcome::InDoubt,
            91..95 => Outcome::Reject,
            95..97 => TROUBLE,
            97..99 => Outcome::Sent { within: Duration::from_millis(self.dice.below(400)) },
            _ => return None,
        })
    }

    /// One settle for all of them, as an adapter without a pipeline does.
    async fn settle_together(&mut self, leased: &[Leased]) {
        let mut items = Vec::new();
        for leased in leased {
            let Some(outcome) = self.outcome() else { continue };
            if self.policy.on_doubt != OnDoubt::Resend {
                items.push(item(leased, BEGIN));
            }
            items.push(item(leased, outcome));
        }
        let delivered: Vec<bool> = items.iter().map(|item| item.outcome == DELIVERED).collect();
        let settle = self.store().settling(QUEUE, self.session, items);
        let answer = self.store().store.delivery_settle(settle).await.unwrap();
        for (answer, delivered) in answer.items.iter().zip(delivered) {
            assert!(answer.ok, "{}: {answer:?}", self.context());
            if delivered {
                self.succeeded(answer.delivery);
            }
        }
    }

    /// One after the other: when one goes back, those behind it must not be able to begin.
    async fn settle_in_order(&mut self, leased: &[Leased]) {
        let mut gone_back = HashSet::new();
        for leased in leased {
            let name = text(leased);
            // A replayed one stands beside its lane.
            let lane =
                if leased.replayed { name.clone() } else { name.split(':').next().unwrap().to_owned() };
            let begun = self.store().settle(QUEUE, self.session, leased, BEGIN).await.unwrap().items[0].ok;
            assert_eq!(begun, !gone_back.contains(&lane), "{}: {name} begins: {begun}", self.context());
            if !begun {
                continue;
            }
            // Behind one that waits for its proof others may succeed before it: that is what a pipeline is for.
            let outcome = self.outcome().filter(|outcome| !matches!(outcome, Outcome::Sent { .. }));
            let outcome = outcome.unwrap_or(Outcome::Release);
            let answer = self.store().settle(QUEUE, self.session, leased, outcome).await.unwrap();
            assert!(answer.items[0].ok, "{}: {outcome:?} of {name}", self.context());
            match outcome {
                DELIVERED => self.succeeded(leased.delivery),
                Outcome::Reject if self.policy.on_dead == OnDead::Continue => {}
                _ if answer.items[0].state == "dead" && self.policy.on_dead == OnDead::Continue => {}
                _ => drop(gone_back.insert(lane)),
            }
        }
    }

    fn succeeded(&mut self, delivery: DeliveryId) {
        assert!(self.succeeded.insert(delivery), "{}: {delivery} succeeded twice", self.context());
        let (lanes, accepted) = &self.order[&delivery];
        if !self.beside.contains(&delivery) {
            for lane in lanes {
                self.successes.entry(*lane).or_default().push(*accepted);
            }
        }
    }

    /// An operator looks at what nobody else can move.
    async fn decide_what_is_stuck(&mut self) {
        for row in self.listed("in_doubt").await {
            if row.reason != Some("held") {
                continue;
            }
            let resolution = match self.dice.below(3) {
                0 => Resolution::Delivered,
                1 => Resolution::Retry,
                _ => Resolution::Dead,
            };
            self.store().resolve(row.id, resolution).await;
            if resolution == Resolution::Delivered {
                self.succeeded(row.id);
            }
        }
        for row in self.listed("dead").await {
            let verb = if row.series < 2 && self.dice.chance(60) { Verb::Replay } else { Verb::Discard };
            if self.store().operate(row.id, verb).await.unwrap().replayed {
                self.beside.insert(row.id);
            }
        }
    }

    async fn listed(&self, state: &str) -> Vec<DeliveryRow> {
        let filter = DeliveryFilter { state: Some(state.into()), ..DeliveryFilter::default() };
        self.store().store.read().delivery_list(&filter, None, 1000).await.unwrap().items
    }

    async fn is_over(&self) -> bool {
        let stats = self.store().stats(QUEUE).await;
        stats.waiting + stats.leased + stats.sending + stats.in_doubt + stats.dead == 0
    }
}
