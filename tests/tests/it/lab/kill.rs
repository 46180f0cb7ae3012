//! kill -9 at every point and at random, under load: senders with lanes and batches, adapters that keep state and emit, one that
//! speaks HL7 both ways, apps that come back with leases whose time is over. Afterwards the judge looks at all of it.

use std::path::PathBuf;
use std::time::Duration;

use gatepost_faults::{ADAPTER_POINTS, GATEWAY_POINTS};
use gatepost_tests::lab::{History, Order, Partner, Report, Verdict, check};
use gatepost_tests::{Dice, Gateway, Port, note, on_postgres, until_within};
use nix::sys::signal::Signal;
use serde_json::json;

use super::load::{Reader, Senders};
use super::{PATIENCE, hl7};

const APPS: usize = 2;
/// Calls that are answered between two kills, at most; the kill comes after fewer, so that it hits senders at work.
const CALLS_PER_ROUND: usize = 7;
const DRAINED: Duration = Duration::from_secs(120);
/// Rounds before all work is finished and judged, in the long form.
const ROUNDS_PER_HISTORY: u64 = 100;
/// Of the logs that kills at random leave, one in so many is verified there and then: each verification must also extend the one
/// before, and takes as long as several kills.
const KILLS_PER_VERIFICATION: u64 = 4;
/// Queues with work.
const QUEUES: [&str; 5] = ["resend", "hold", "hl7", "desk", "answers"];
const ADAPTERS: [&str; 3] = ["resend", "hold", "hl7"];

/// A gateway with everything around it.
struct Lab {
    gateway: Gateway,
    partner: hl7::Partner,
    senders: Senders,
    desk: Reader,
    answers: Reader,
    /// The checkpoint that was kept when the log was verified last; every later one must extend it.
    signed: PathBuf,
    kills: u64,
}

impl Lab {
    /// Makes a gateway, which does not start yet.
    fn prepare(faults: &str) -> (Gateway, hl7::Partner, Port) {
        let partner = hl7::Partner::start();
        let listen = Port::reserve();
        let retry = "retry = { initial = \"50ms\", max = \"200ms\", attempts = 1000 }";
        let gateway = Gateway::builder()
            .app("shop", &["*"], &["desk", "answers"])
            .inbox("desk", &format!("order = \"key\"\n{retry}"))
            .inbox("answers", retry)
            .echo(
                "resend",
                &format!("order = \"key\"\nsend = [\"answers.new\"]\n{retry}"),
                "seed = 3\nfail_percent = 5\nemit = true",
            )
            .echo("hold", &format!("order = \"key\"\non_doubt = \"hold\"\n{retry}"), "batch = 4")
            .adapter(
                "hl7",
                &format!("run = \"gatepost-hl7\"\norder = \"key\"\nsend = [\"org.hl7.v2.*\"]\n{retry}"),
                &format!("connect = \"127.0.0.1:{}\"\nlisten = \"127.0.0.1:{listen}\"", partner.port),
            )
            .route_when("shop", "type.startsWith(\"orders.\")", &["resend", "hold", "desk"])
            .route_when("shop", "type.startsWith(\"org.hl7.\")", &["hl7"])
            .route("hl7", &["desk"])
            .route("resend", &["answers"])
            .faults(faults)
            .prepare();
        (gateway, partner, listen)
    }

    /// Starts everything. Before it is up the first time, the gateway dies in each of `deaths`.
    fn start(faults: &str, deaths: usize) -> Self {
        let (mut gateway, partner, listen) = Self::prepare(faults);
        for _ in 0..deaths {
            gateway.spawn();
            assert!(!gateway.becomes_ready(), "it should have died");
        }
        gateway.restart();
        let signed = gateway.path("signed-before");
        std::fs::copy(gateway.path("data/audit/checkpoint"), &signed).unwrap();
        let senders = Senders::start(&gateway.app(), APPS, &listen);
        let desk = Reader::start(gateway.app(), "desk");
        let answers = Reader::start(gateway.app(), "answers");
        let kills = deaths as u64;
        Self { gateway, partner, senders, desk, answers, signed, kills }
    }

    /// The log as it is now verifies, and goes on from what was signed when it was verified before.
    fn verify(&self) {
        self.gateway.cli_ok(&["audit", "verify", "--since", &self.signed.display().to_string()]);
        std::fs::copy(self.gateway.path("data/audit/checkpoint"), &self.signed).unwrap();
    }

    /// A kill at random.
    fn round(&mut self, dice: &mut Dice) {
        self.senders.more(CALLS_PER_ROUND, 1 + dice.below(CALLS_PER_ROUND / 2));
        let victim = ["gateway", "gateway", "gateway", "resend", "hold", "hl7"][dice.below(6)];
        // An adapter that is between two lives cannot be killed; the gateway always can.
        let verify = self.kills.is_multiple_of(KILLS_PER_VERIFICATION);
        if victim != "gateway" && self.gateway.kill_adapter(victim) {
            if verify {
                self.verify();
            }
        } else {
            self.gateway.kill();
            if verify {
                self.verify();
            }
            self.gateway.restart();
        }
        self.kills += 1;
        look_at_the_partner(&self.gateway);
    }

    /// A fault at one point, which must come; what dies is started again.
    fn round_at(&mut self, point: &str, action: &str, nth: usize) {
        self.gateway.kill();
        self.gateway.set_faults(&format!("{point}={action}@{nth}"));
        self.gateway.spawn();
        until_within(PATIENCE, &format!("`{point}` is reached"), || {
            self.senders.more(CALLS_PER_ROUND, 0);
            if point.starts_with("reload.") && self.gateway.admin().send("GET", "/livez", &[], b"").is_ok() {
                // It may have died in this moment.
                self.gateway.try_signal(Signal::SIGHUP);
            }
            self.gateway.fired().iter().any(|fired| fired == point).then_some(())
        });
        // The one at the beginning, and the one that was ordered.
        self.kills += 1 + u64::from(action == "kill");
        if GATEWAY_POINTS.contains(&point) && action == "kill" {
            until_within(PATIENCE, "the gateway has died", || self.gateway.has_ended().then_some(()));
            self.verify();
            self.gateway.restart();
        } else {
            // The point may lie before it listens.
            let livez = || self.gateway.admin().send("GET", "/livez", &[], b"").is_ok();
            until_within(PATIENCE, "the gateway answers", || livez().then_some(()));
        }
        look_at_the_partner(&self.gateway);
    }

    /// Lets everything come to its end, and judges it.
    fn judge(self) -> Verdict {
        let Self { mut gateway, partner, senders, desk, answers, .. } = self;
        if gateway.has_ended() {
            gateway.restart();
        }
        let submissions = senders.finish();
        desk.hurry();
        answers.hurry();
        // Whoever looks at it would do the same: after so many deaths the pauses between restarts are long.
        for adapter in ADAPTERS {
            gateway.admin().post(&format!("/v1/adapters/{adapter}/restart"), &json!({}));
        }
        until_within(DRAINED, "everything is settled", || {
            look_at_the_partner(&gateway);
            QUEUES.iter().all(|queue| gateway.unsettled(queue) == 0).then_some(())
        });
        let counts = || {
            let text = std::fs::read_to_string(gateway.path("resend.counts")).unwrap_or_default();
            (text.lines().count(), text.lines().last().and_then(|line| line.parse::<u64>().ok()))
        };
        // A new session is told the state as it is now.
        let (lives, _) = counts();
        gateway.admin().post("/v1/adapters/resend/restart", &json!({}));
        let count = until_within(DRAINED, "the adapter tells its count", || {
            let (now, count) = counts();
            count.filter(|_| now > lives)
        });
        let mut history = History { submissions, ..History::default() };
        for (inbox, reader) in [("desk", desk), ("answers", answers)] {
            let read = reader.finish();
            history.late.extend(read.late);
            history.partners.insert(inbox.into(), Partner::new(Order::Key, read.effects));
        }
        history.echo(&gateway, "resend", Order::Key);
        history.echo(&gateway, "hold", Order::Key).holds_doubt = true;
        history.partners.insert("hl7".into(), Partner::new(Order::Key, partner.effects()));
        history.counts.insert("resend".into(), count);
        history.close(&gateway);
        let verdict = check(&history);
        // What the judge objects to stays to be looked at.
        assert!(verdict.is_clean(), "{verdict}");
        verdict
    }
}

/// Deliveries held in doubt block their lanes until a person decides; here the person looks at what the partner has.
fn look_at_the_partner(gateway: &Gateway) {
    let held = gateway.list("/v1/deliveries?state=in_doubt&destination=hold", "deliveries");
    if held.is_empty() {
        return;
    }
    let partner = std::fs::read_to_string(gateway.path("hold.effects")).unwrap_or_default();
    for held in held {
        let id = held["id"].as_str().unwrap();
        let decision = if partner.contains(id) { "delivered" } else { "retry" };
        let decision = json!({ "as": decision, "reason": "looked at the partner" });
        gateway.admin().post(&format!("/v1/deliveries/{id}/resolve"), &decision).expect(200);
    }
}

/// The points that a gateway passes before it is up the first time.
const AT_FIRST_START: [&str; 2] = ["store.in_migration", "store.after_migration"];

/// Every point that there is with the store of these tests.
fn points() -> Vec<&'static str> {
    let all = GATEWAY_POINTS.into_iter().chain(ADAPTER_POINTS);
    // PostgreSQL's log is its own affair.
    all.filter(|point| !(on_postgres() && *point == "store.wal_checkpoint")).collect()
}

#[test]
fn a_kill_at_every_point_loses_nothing_and_doubles_only_what_had_begun() {
    let seed = Dice::fresh_seed();
    let mut dice = Dice::new(seed);
    let faults: Vec<_> = AT_FIRST_START.iter().map(|point| format!("{point}=kill")).collect();
    let mut lab = Lab::start(&faults.join(";"), AT_FIRST_START.len());
    let mut fired = lab.gateway.fired();
    let points = points();
    for point in &points {
        if !AT_FIRST_START.contains(point) {
            lab.round_at(point, "kill", 1 + dice.below(2));
            fired.extend(lab.gateway.fired());
        }
    }
    let later = points.into_iter().filter(|point| !AT_FIRST_START.contains(point));
    assert_eq!(fired, AT_FIRST_START.into_iter().chain(later).collect::<Vec<_>>());
    let kills = lab.kills;
    let verdict = lab.judge();
    note(&format!("a kill at every point (seed {seed}): {kills} kills; {verdict}"));
    assert!(verdict.accepted > 40, "the senders were let through: {verdict}");
}

/// The long form: points and moments at random, history after history.
pub(crate) fn kills(budget: Duration, report: &mut Report) {
    while report.has_time(budget) {
        let seed = Dice::fresh_seed();
        report.note(format!("history {}: seed {seed}", report.rounds / ROUNDS_PER_HISTORY));
        let mut dice = Dice::new(seed);
        let mut lab = Lab::start("", 0);
        for _ in 0..ROUNDS_PER_HISTORY {
            if !report.has_time(budget) {
                break;
            }
            let points = points();
            let point = points[dice.below(points.len())];
            // Some are passed seldom, and a migration only once.
            let seldom = AT_FIRST_START.contains(&point) || point.starts_with("audit.files");
            if dice.below(3) == 0 && !seldom {
                let action = ["kill", "kill", "pause:700"][dice.below(3)];
                lab.round_at(point, action, 1 + dice.below(if point.starts_with("store.") { 12 } else { 2 }));
            } else {
                lab.round(&mut dice);
            }
            report.rounds += 1;
        }
        report.kills += std::mem::take(&mut lab.kills);
        report.judge(lab.judge());
    }
}
