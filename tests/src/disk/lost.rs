//! Kill under load, forget what was not synced, start again, and look whether what was promised is there; many times.

use std::path::Path;

use super::traffic::{Promises, Traffic};
use super::{Disk, Forgotten, Loss};
use crate::builder::Builder;
use crate::dice::Dice;
use crate::gateway::Gateway;

/// The gateway dies after at most so many changes and syncs of its files; a commit has some dozens.
const CHANGES_PER_ROUND: usize = 1500;

/// What many crashes came to.
#[derive(Debug, Default)]
pub struct Lost {
    pub rounds: usize,
    pub accepted: usize,
    pub settled: usize,
    pub writes_forgotten: usize,
    pub names_forgotten: usize,
    /// Promises that were not kept, and starts that were refused.
    pub broken: Vec<String>,
}

/// A gateway with an inbox, and an adapter whose partner is a file.
pub fn gateway() -> Builder {
    Gateway::builder()
        .app("shop", &["*"], &["desk"])
        .inbox("desk", "order = \"key\"\nretry = { initial = \"50ms\", max = \"200ms\", attempts = 1000 }")
        .echo("echo", "order = \"key\"\nretry = { initial = \"50ms\", max = \"200ms\" }", "")
        .route("shop", &["desk", "echo"])
}

/// A gateway on such a disk with traffic, and what has become of it.
pub struct Run {
    pub gateway: Gateway,
    pub disk: Disk,
    pub traffic: Traffic,
    lost: Lost,
    /// Promises looked at so far.
    accepted: usize,
    settled: usize,
}

impl Run {
    /// `gateway` runs on `disk`. Payloads have about `bytes`.
    pub fn start(gateway: Gateway, disk: Disk, bytes: usize) -> Self {
        let traffic = Traffic::start(&gateway.app(), &gateway.admin(), bytes);
        Self { gateway, disk, traffic, lost: Lost::default(), accepted: 0, settled: 0 }
    }

    /// Rounds of crashes while `going_on` says so, until the first broken promise.
    pub fn rounds(&mut self, dice: &mut Dice, mut going_on: impl FnMut(&Lost) -> bool) {
        while self.lost.broken.is_empty() && going_on(&self.lost) {
            self.disk.kill_at(1 + dice.below(CHANGES_PER_ROUND) as u64);
            self.gateway.ended();
            let loss = [Loss::All, Loss::Some, Loss::Torn][self.lost.rounds % 3];
            self.crash(loss, dice);
        }
    }

    /// The machine crashes, whether or not the gateway still runs; it starts again, and what was promised is looked for.
    pub fn crash(&mut self, loss: Loss, dice: &mut Dice) {
        self.gateway.kill();
        self.traffic.pause();
        let forgotten = self.disk.crash(loss, dice);
        self.lost.add(forgotten);
        // What was promised before it died; the last answers may have been on their way.
        let promised = {
            let promises = self.traffic.promises();
            let messages = promises.accepted[self.accepted..].to_vec();
            let deliveries = promises.settled[self.settled..].to_vec();
            (self.accepted, self.settled) = (promises.accepted.len(), promises.settled.len());
            Promised { messages, deliveries, checkpoint: promises.checkpoint.clone() }
        };
        let when = format!("round {}, {loss:?}", self.lost.rounds);
        self.lost.look(&mut self.gateway, &promised, &when);
        self.traffic.go_on();
    }

    /// Lets everything come to its end and looks at all of it.
    #[must_use]
    pub fn finish(self) -> Lost {
        let Self { gateway, traffic, mut lost, .. } = self;
        if lost.broken.is_empty() {
            traffic.drain();
            gateway.until_settled("desk");
            gateway.until_settled("echo");
        }
        let promises = traffic.finish();
        lost.accepted = promises.accepted.len();
        lost.settled = promises.settled.len();
        lost.broken.extend(promises.wrong.iter().cloned());
        if lost.broken.is_empty() {
            lost.look_at_the_end(&gateway, &promises);
        }
        lost
    }
}

struct Promised {
    messages: Vec<(String, String)>,
    deliveries: Vec<String>,
    checkpoint: Option<String>,
}

impl Lost {
    fn add(&mut self, forgotten: Forgotten) {
        self.rounds += 1;
        self.writes_forgotten += forgotten.writes;
        self.names_forgotten += forgotten.names;
    }

    fn look(&mut self, gateway: &mut Gateway, promised: &Promised, when: &str) {
        // Before anything could mend it.
        self.verify(gateway, promised.checkpoint.as_deref(), when);
        gateway.spawn();
        if !gateway.becomes_ready() {
            let log = gateway.log();
            let said = log.lines().rev().find(|line| line.contains("error")).unwrap_or_default();
            return self.broken.push(format!("{when}: it does not start: {said}"));
        }
        for (message, event) in &promised.messages {
            let answer = gateway.admin().get(&format!("/v1/messages/{message}"));
            if answer.status != 200 {
                self.broken.push(format!("{when}: message {message} ({event}) is lost: {}", answer.text()));
            }
        }
        for delivery in &promised.deliveries {
            let answer = gateway.admin().get(&format!("/v1/deliveries/{delivery}"));
            if answer.status != 200 || answer.json()["state"] != "delivered" {
                self.broken.push(format!("{when}: {delivery} is not settled any more: {}", answer.text()));
            }
        }
    }

    fn verify(&mut self, gateway: &Gateway, since: Option<&str>, when: &str) {
        let mut arguments = vec!["audit", "verify"];
        let signed = gateway.path("signed-before").display().to_string();
        if let Some(checkpoint) = since {
            std::fs::write(Path::new(&signed), checkpoint).expect("a file can be written");
            arguments.extend(["--since", &signed]);
        }
        let output = gateway.cli(&arguments);
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            self.broken.push(format!("{when}: the audit log does not verify: {said}"));
        }
    }

    /// Everything is delivered, and every effect at the partner has its attempt in the audit log.
    fn look_at_the_end(&mut self, gateway: &Gateway, promises: &Promises) {
        self.verify(gateway, promises.checkpoint.as_deref(), "at the end");
        let log = gateway.audit_log();
        let mut begun = std::collections::HashMap::<String, usize>::new();
        for leaf in log.iter().filter(|leaf| leaf["event"] == "attempt") {
            *begun.entry(leaf["delivery"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
        }
        let mut arrived = std::collections::HashMap::<String, String>::new();
        for effect in gateway.effects("echo") {
            let text = |member: &str| effect[member].as_str().unwrap_or_default().to_owned();
            let left = begun.entry(text("delivery")).or_default();
            match left.checked_sub(1) {
                Some(fewer) => *left = fewer,
                None => self.broken.push(format!("an effect without an attempt: {effect}")),
            }
            arrived.insert(text("message"), text("delivery"));
        }
        for (message, event) in &promises.accepted {
            if !arrived.contains_key(message) {
                self.broken.push(format!("message {message} ({event}) never reached the partner"));
            }
        }
    }
}
