//! Partners that are up, down, silent and slow behind one queue, which a test plays with its lanes' heads, places and wakings.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::*;
use crate::client::locked;
use crate::evidence::Evidence;
use crate::testing::{Call, Gateway, leased_event};
use gatepost_api::settle::Level;

/// Longer than anything should take; what takes longer hangs.
const HANG: Duration = Duration::from_secs(40);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Up,
    Down,
    /// Takes a message and does not answer; later it is in doubt.
    Silent,
    /// Answers when it is told to go on.
    Slow,
    /// Its worker panics, once the partner behind it has got something.
    Fatal,
}

#[derive(Default)]
struct World {
    moods: Mutex<HashMap<usize, Mood>>,
    go_on: Notify,
    /// By partner: attempts, attempts at a time, and the most of those.
    tried: Mutex<HashMap<usize, usize>>,
    at_once: Mutex<HashMap<usize, (usize, usize)>>,
    workers: AtomicUsize,
}

impl World {
    fn set(&self, partner: usize, mood: Mood) {
        locked(&self.moods).insert(partner, mood);
    }

    fn mood(&self, partner: usize) -> Mood {
        locked(&self.moods).get(&partner).copied().unwrap_or(Mood::Up)
    }

    fn tried(&self, partner: usize) -> usize {
        locked(&self.tried).get(&partner).copied().unwrap_or(0)
    }

    fn most_at_once(&self, partner: usize) -> usize {
        locked(&self.at_once).get(&partner).map_or(0, |(_, most)| *most)
    }
}

struct Played {
    world: Arc<World>,
    partner: usize,
}

impl Worker for Played {
    async fn deliver(&mut self, _: &Delivery) -> Outcome {
        *locked(&self.world.tried).entry(self.partner).or_default() += 1;
        {
            let mut at_once = locked(&self.world.at_once);
            let (now, most) = at_once.entry(self.partner).or_default();
            *now += 1;
            *most = (*most).max(*now);
        }
        let outcome = match self.world.mood(self.partner) {
            Mood::Up => delivered(),
            Mood::Down => Outcome::destination_down("connection refused"),
            Mood::Silent => {
                sleep(Duration::from_millis(700)).await;
                Outcome::in_doubt("no acknowledgement")
            }
            Mood::Slow => {
                self.world.go_on.notified().await;
                delivered()
            }
            Mood::Fatal => {
                while self.world.tried(self.partner + 1) == 0 {
                    sleep(Duration::from_millis(10)).await;
                }
                panic!("a fault of the adapter");
            }
        };
        locked(&self.world.at_once).entry(self.partner).or_default().0 -= 1;
        outcome
    }
}

fn delivered() -> Outcome {
    Outcome::Delivered { evidence: Evidence::new(Level::Transport), reply: None }
}

struct ByNumber(Arc<World>);

impl Dispatch for ByNumber {
    type Worker = Played;

    async fn partner_of(&self, delivery: &Delivery) -> Result<usize, Outcome> {
        let to = delivery.event().text_extension("to");
        to.and_then(|to| to.parse().ok()).ok_or_else(|| Outcome::reject("nobody's"))
    }

    fn worker(&self, partner: usize) -> Played {
        self.0.workers.fetch_add(1, Ordering::Relaxed);
        Played { world: Arc::clone(&self.0), partner }
    }
}

/// What the queue has seen of a delivery.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Seen {
    leases: usize,
    backs: usize,
    woken: usize,
    /// Of the last `retry`.
    scope: Option<String>,
    end: Option<String>,
}

/// A queue of deliveries without keys: gives out no more than `max_in_flight`, takes back, wakes.
struct Queue {
    gateway: Gateway,
    ready: VecDeque<u128>,
    /// Gone back, and not due by itself within a test.
    asleep: HashMap<u128, String>,
    leased: HashMap<u128, String>,
    partners: BTreeMap<u128, usize>,
    polls: VecDeque<Call>,
    max_in_flight: usize,
    leases: usize,
    seen: watch::Sender<BTreeMap<u128, Seen>>,
}

impl Queue {
    fn add(&mut self, number: u128, partner: usize) {
        self.partners.insert(number, partner);
        self.ready.push_back(number);
        self.seen.send_modify(|seen| drop(seen.insert(number, Seen::default())));
    }

    async fn run(mut self) {
        loop {
            let call = self.gateway.next("").await;
            if call.path.ends_with("/lease") {
                self.polls.push_back(call);
            } else if call.path.ends_with("/settle") {
                self.settle(call);
            } else {
                call.answer(200, &json!({}));
            }
            self.give();
        }
    }

    fn give(&mut self) {
        let free = self.max_in_flight - self.leased.len();
        if free == 0 || self.ready.is_empty() {
            return;
        }
        let Some(call) = self.polls.pop_front() else { return };
        let most =
            usize::try_from(call.body["max"].as_u64().unwrap()).unwrap().min(free).min(self.ready.len());
        let mut given = Vec::new();
        for number in self.ready.drain(..most) {
            self.leases += 1;
            let token = format!("t{number}-{}", self.leases);
            let mut leased = leased_event(number, None, "text/plain", json!({"data": "x"}));
            leased["token"] = token.as_str().into();
            leased["event"]["to"] = self.partners[&number].to_string().into();
            self.leased.insert(number, token);
            self.seen.send_modify(|seen| seen.get_mut(&number).unwrap().leases += 1);
            given.push(leased);
        }
        call.answer(200, &json!({ "deliveries": given }));
    }

    fn settle(&mut self, call: Call) {
        let mut results = Vec::new();
        for item in call.body["results"].as_array().unwrap() {
            let number = item["delivery"].as_str().unwrap().parse::<Uuid>().unwrap().as_u128();
            let ok = self.take(number, item);
            let status = if ok { "ok" } else { "stale" };
            results.push(json!({"delivery": item["delivery"], "status": status, "state": "waiting"}));
        }
        call.answer(200, &json!({ "results": results, "emitted": [] }));
    }

    fn take(&mut self, number: u128, item: &Value) -> bool {
        let (outcome, token) = (item["outcome"].as_str().unwrap(), item["token"].as_str().unwrap());
        if outcome == "wake" {
            let asleep = self.asleep.get(&number).is_some_and(|asleep| asleep == token);
            if asleep {
                self.asleep.remove(&number);
                self.ready.push_back(number);
                self.seen.send_modify(|seen| seen.get_mut(&number).unwrap().woken += 1);
            }
            return asleep;
        }
        if self.leased.get(&number).is_none_or(|leased| leased != token) {
            return false;
        }
        if outcome == "extend" {
            return true;
        }
        self.leased.remove(&number);
        self.seen.send_modify(|seen| {
            let seen = seen.get_mut(&number).unwrap();
            match outcome {
                "retry" => {
                    seen.backs += 1;
                    seen.scope = item["scope"].as_str().map(str::to_owned);
                    assert!(item["after_ms"].as_u64().unwrap() >= 60_000, "{item}");
                    self.asleep.insert(number, token.to_owned());
                }
                "release" | "in_doubt" => self.ready.push_back(number),
                end => seen.end = Some(end.to_owned()),
            }
        });
        true
    }
}

struct Rig {
    world: Arc<World>,
    partners: Partners,
    seen: watch::Receiver<BTreeMap<u128, Seen>>,
    playing: JoinHandle<()>,
    working: JoinHandle<Result<(), Failure>>,
    session: Session,
}

impl Rig {
    /// Messages are numbered from 0, each for a partner.
    async fn new(
        partners: usize,
        max_in_flight: usize,
        moods: &[(usize, Mood)],
        messages: impl Iterator<Item = usize>,
    ) -> Self {
        let (gateway, session) = Gateway::open(json!({"max_in_flight": max_in_flight})).await;
        let world = Arc::new(World::default());
        moods.iter().for_each(|(partner, mood)| world.set(*partner, *mood));
        let (sender, seen) = watch::channel(BTreeMap::new());
        let mut queue = Queue {
            gateway,
            ready: VecDeque::new(),
            asleep: HashMap::new(),
            leased: HashMap::new(),
            partners: BTreeMap::new(),
            polls: VecDeque::new(),
            max_in_flight,
            leases: 0,
            seen: sender,
        };
        messages.enumerate().for_each(|(number, partner)| queue.add(number as u128, partner));
        let setups = (0..partners).map(|number| PartnerSetup { name: format!("p{number}"), connections: 2 });
        let (partners, work) = Partners::new(setups);
        let dispatch = ByNumber(Arc::clone(&world));
        let playing = tokio::spawn(queue.run());
        let for_work = session.clone();
        let working = tokio::spawn(async move { for_work.work_for(work, dispatch).await });
        Self { world, partners, seen, playing, working, session }
    }

    async fn until(&mut self, what: &str, holds: impl Fn(&BTreeMap<u128, Seen>) -> bool) {
        let waited = timeout(HANG, self.seen.wait_for(|seen| holds(seen))).await;
        drop(waited.unwrap_or_else(|_| panic!("{what}: not within {HANG:?}")).unwrap());
    }

    fn seen(&self) -> BTreeMap<u128, Seen> {
        self.seen.borrow().clone()
    }

    fn standing(&self, partner: usize) -> &'static str {
        self.partners.states()[partner].standing
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.playing.abort();
        self.working.abort();
    }
}

fn ended(seen: &Seen) -> bool {
    seen.end.as_deref() == Some("delivered")
}

#[tokio::test]
async fn a_partner_that_is_down_holds_up_nobody_is_charged_nothing_and_gets_all_when_it_is_back() {
    // Half of all messages are for the one that is down, and they are at the front.
    let messages = std::iter::repeat_n(0, 100).chain((0..100).map(|n| 1 + n % 5));
    let mut rig = Rig::new(6, 8, &[(0, Mood::Down)], messages).await;
    rig.until("the others have theirs", |seen| seen.iter().skip(100).all(|(_, seen)| ended(seen))).await;
    rig.until("all of it has gone back", |seen| seen.values().take(100).all(|seen| seen.backs > 0)).await;
    assert!(rig.seen().values().take(100).all(|seen| seen.scope.as_deref() == Some("lane")));
    assert_eq!(rig.standing(0), "away");
    assert_eq!(rig.partners.states()[0].last_error.as_deref(), Some("connection refused"));
    // Probes, and one at a time; not everything over and over.
    let tried = rig.world.tried(0);
    assert!(tried <= 6, "{tried} attempts at a partner that is down");
    assert_eq!(rig.world.most_at_once(0), 1);
    rig.world.set(0, Mood::Up);
    rig.until("it has all of its messages", |seen| seen.values().all(ended)).await;
    assert!(
        rig.seen().values().take(100).all(|seen| seen.woken >= 1),
        "by itself it would be due much later"
    );
    assert_eq!((rig.standing(0), rig.partners.states()[0].back), ("up", 0));
}

#[tokio::test]
async fn a_silent_partner_holds_one_message_and_then_one_at_a_time() {
    let messages = std::iter::repeat_n(0, 50).chain((0..50).map(|n| 1 + n % 5));
    let mut rig = Rig::new(6, 8, &[(0, Mood::Silent)], messages).await;
    rig.until("the others have theirs", |seen| seen.iter().skip(50).all(|(_, seen)| ended(seen))).await;
    rig.until("it is known to be silent", |seen| seen.values().take(50).all(|seen| seen.backs > 0)).await;
    assert_eq!(rig.world.most_at_once(0), 1, "it had not answered anything yet");
    rig.world.set(0, Mood::Up);
    rig.until("it has all of its messages", |seen| seen.values().all(ended)).await;
}

#[tokio::test]
async fn a_slow_partner_uses_up_no_more_than_its_share() {
    // Others want places after all of its messages have been leased once.
    let messages = std::iter::once(0).chain(std::iter::repeat_n(0, 60)).chain((0..60).map(|n| 1 + n % 5));
    let mut rig = Rig::new(6, 8, &[(0, Mood::Slow)], messages).await;
    rig.world.go_on.notify_one();
    rig.until("the others have theirs", |seen| seen.iter().skip(61).all(|(_, seen)| ended(seen))).await;
    while !rig.seen().values().take(61).all(ended) {
        rig.world.go_on.notify_waiters();
        rig.world.go_on.notify_one();
        sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(rig.world.most_at_once(0), 2);
}

#[tokio::test]
async fn what_is_nobodys_is_refused_and_connections_are_made_only_where_they_are_needed() {
    let mut rig = Rig::new(300, 64, &[], [0, 299, 300].into_iter()).await;
    rig.until("all has ended", |seen| seen.values().all(|seen| seen.end.is_some())).await;
    let ends: Vec<_> = rig.seen().into_values().map(|seen| seen.end.unwrap()).collect();
    assert_eq!(ends, ["delivered", "delivered", "reject"]);
    assert_eq!(rig.world.workers.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn at_a_stop_what_has_begun_is_finished_and_the_rest_goes_back() {
    let mut rig = Rig::new(2, 16, &[(0, Mood::Slow)], std::iter::repeat_n(0, 10)).await;
    rig.until("all are in hand", |seen| seen.values().all(|seen| seen.leases > 0)).await;
    while rig.world.tried(0) == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    rig.session.lifetime().drain();
    sleep(Duration::from_millis(50)).await;
    assert!(!rig.working.is_finished(), "one is still under way");
    rig.world.go_on.notify_one();
    timeout(HANG, &mut rig.working).await.unwrap().unwrap().unwrap();
    assert_eq!(rig.seen().values().filter(|seen| ended(seen)).count(), 1);
    assert_eq!(rig.world.tried(0), 1);
}

#[tokio::test]
async fn what_somebody_else_learns_of_a_partner_counts() {
    let rig = Rig::new(1, 16, &[], std::iter::empty()).await;
    let told = rig.partners.take_up(0, Outcome::destination_down("busy"));
    assert!(matches!(told, Outcome::Retry { scope: Scope::Lane, .. }));
    assert_eq!(rig.standing(0), "away");
    assert!(matches!(rig.partners.take_up(0, delivered()), Outcome::Delivered { .. }));
    assert_eq!(rig.standing(0), "up");
}

#[tokio::test]
async fn a_worker_that_panics_costs_the_other_partners_nothing() {
    let (mut gateway, session) = Gateway::open(json!({"max_in_flight": 4})).await;
    let world = Arc::new(World::default());
    world.set(0, Mood::Fatal);
    world.set(1, Mood::Slow);
    let setup = |name: &str| PartnerSetup { name: name.to_owned(), connections: 1 };
    let (_partners, work) = Partners::new([setup("a"), setup("b")]);
    let stop = session.stop();
    let working = tokio::spawn({
        let world = Arc::clone(&world);
        async move { session.work_for(work, ByNumber(world)).await }
    });
    let leased = [0_u128, 1].map(|partner| {
        let mut leased = leased_event(partner + 1, None, "text/plain", json!({"data": "x"}));
        leased["event"]["to"] = partner.to_string().into();
        leased
    });
    gateway.lease(&leased).await;
    timeout(HANG, stop.requested()).await.unwrap();
    world.go_on.notify_one();
    let call = gateway.next("/v1/settle").await;
    assert_eq!(call.outcomes(), [("t2", "delivered")], "and nothing of the one that it panicked over");
    assert!(!working.is_finished());
    call.settled("ok");
    assert!(matches!(working.await.unwrap(), Err(Failure::WorkerPanicked)));
}
