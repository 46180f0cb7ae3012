//! Everything at once and at random: programs stopped and killed, clocks moved, a partner in changing moods, reloads, all under
//! load. What is left in doubt is decided by looking at what the partners have.

use std::time::{Duration, Instant};

use gatepost_tests::lab::{self, History, Order, Partner as Seen, Verdict};
use gatepost_tests::partner::{Manner, Partner, Protocol};
use gatepost_tests::{Clock, Dice, Gateway, note, skipped, until, until_within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::Traffic;
use super::clocks::effects;

const QUICK: &str = "order = \"key\"\nretry = { initial = \"50ms\", max = \"200ms\", attempts = 100000 }";
const DESTINATIONS: [&str; 3] = ["lab", "held", "hook"];
const MOODS: [Manner; 12] = [
    Manner::Good,
    Manner::Good,
    Manner::Good,
    Manner::Hang,
    Manner::Late(Duration::from_millis(900)),
    Manner::Close,
    Manner::Reset,
    Manner::Garbage,
    Manner::Half,
    Manner::Status(429, None),
    Manner::Status(503, Some(1)),
    Manner::Status(500, None),
];
const DRAINED: Duration = Duration::from_secs(180);

struct Weather {
    gateway: Gateway,
    clock: Clock,
    partner: Partner,
    dice: Dice,
    kills: u64,
}

impl Weather {
    fn new(clock: Clock, seed: u64) -> Self {
        let partner = Partner::start(Protocol::Http, Manner::Good);
        let gateway = Gateway::builder()
            .environment(clock.environment())
            .app("shop", &["*"], &[])
            .echo("lab", QUICK, "lease_ms = 300\nfail_percent = 5\nseed = 21")
            .echo("held", &format!("{QUICK}\non_doubt = \"hold\""), "lease_ms = 300\nbatch = 4")
            .adapter(
                "hook",
                &format!("run = \"gatepost-http\"\n{QUICK}"),
                &format!("url = \"http://{}/\"\ntimeout_ms = 300", partner.address()),
            )
            .route("shop", &DESTINATIONS)
            .start();
        Self { gateway, clock, partner, dice: Dice::new(seed), kills: 0 }
    }

    fn change(&mut self, traffic: &Traffic) {
        match self.dice.below(8) {
            0 => self.stand_still(Pid::from_raw(self.gateway.pid().cast_signed())),
            1 => {
                let name = DESTINATIONS[self.dice.below(3)];
                let pid = self.gateway.adapter(name)["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
                // Between two lives it has none.
                if let Some(pid) = pid {
                    self.stand_still(Pid::from_raw(pid));
                }
            }
            2 => self.clock.set_wall([0, 3600, -3600, 1, -1][self.dice.below(5)]),
            3 => self.clock.pass(Duration::from_secs([1, 40, 600][self.dice.below(3)])),
            4 => {
                self.gateway.kill();
                self.gateway.restart();
                self.kills += 1;
            }
            5 => {
                let name = DESTINATIONS[self.dice.below(3)];
                self.kills += u64::from(self.gateway.kill_adapter(name));
            }
            6 => self.gateway.signal(Signal::SIGHUP),
            _ => {}
        }
        self.partner.behave(MOODS[self.dice.below(MOODS.len())]);
        self.decide();
        traffic.go_on(1 + self.dice.below(4));
    }

    /// Sometimes past the lease, sometimes not.
    fn stand_still(&mut self, pid: Pid) {
        // It may have ended by itself in this moment.
        if kill(pid, Signal::SIGSTOP).is_err() {
            return;
        }
        let (since, span) = (Instant::now(), Duration::from_millis([100, 700, 3000][self.dice.below(3)]));
        until("it has stood still long enough", || (since.elapsed() > span).then_some(()));
        let _ = kill(pid, Signal::SIGCONT);
    }

    /// A person looks at what the partners have.
    fn decide(&self) {
        let held = self.gateway.list("/v1/deliveries?state=held", "deliveries");
        if held.is_empty() {
            return;
        }
        let noted = std::fs::read_to_string(self.gateway.path("held.effects")).unwrap_or_default();
        for held in held {
            let id = held["id"].as_str().unwrap();
            let took = noted.contains(id) || self.partner.taken().iter().any(|(taken, _)| taken == id);
            let decision = json!({ "as": if took { "delivered" } else { "retry" }, "reason": "looked" });
            self.gateway.admin().post(&format!("/v1/deliveries/{id}/resolve"), &decision).expect(200);
        }
    }

    fn clear_up(&self) {
        self.partner.behave(Manner::Good);
        // After so many deaths the pauses between restarts are long.
        for name in DESTINATIONS {
            self.gateway.admin().post(&format!("/v1/adapters/{name}/restart"), &json!({}));
        }
        until_within(DRAINED, "everything is settled", || {
            self.decide();
            DESTINATIONS.iter().all(|name| self.gateway.unsettled(name) == 0).then_some(())
        });
    }
}

/// Some changes of the weather, then the judge; with the number of processes killed. `None` where clocks cannot be moved.
pub(crate) fn weather(changes: usize, seed: u64) -> Option<(Verdict, u64)> {
    let mut weather = Weather::new(Clock::new()?, seed);
    let traffic = Traffic::start(&weather.gateway.app(), 2, &DESTINATIONS);
    for _ in 0..changes {
        weather.change(&traffic);
    }
    let submissions = traffic.finish();
    weather.clear_up();
    super::clocks::log_is_in_order(&weather.gateway);
    let mut history = History { submissions, ..History::default() };
    history.echo(&weather.gateway, "lab", Order::Key);
    history.echo(&weather.gateway, "held", Order::Key).holds_doubt = true;
    history.partners.insert("hook".into(), Seen::new(Order::Key, effects(&weather.partner)));
    history.close(&weather.gateway);
    Some((lab::check(&history), weather.kills))
}

#[test]
fn nothing_is_lost_or_reordered_whatever_the_weather() {
    let seed = Dice::fresh_seed();
    let Some((verdict, kills)) = weather(25, seed) else { return skipped("needs a C compiler") };
    note(&format!("seed {seed}, {kills} kills: {verdict}"));
    verdict.expect_clean();
}
