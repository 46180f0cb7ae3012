//! Commits of one session on their way into the gateway: gathered, settled together, told apart again when one is refused.
//!
//! Only one settlement of a session is on its way at a time, and what depends on it waits. So a crash at any moment leaves
//! what a prefix of the commits says, and nothing of what would have come after.

use std::collections::{BTreeMap, HashMap, HashSet};

use gatepost_adapter::{
    CallError, Delivery, Evidence, Failure, Lease, Outcome, Scope, Session, SettleError, SettleStatus,
    Settlement,
};
use uuid::Uuid;

use crate::engine::{Commit, Config, Effect, Engine, Owing, Proof, Received, Turn, Verdict, is_owed};
use crate::event::{Origin, content_id, may_be_double};
use crate::link::QUEUE_BYTES_SOFT;

/// Most results, events and state keys of one settlement; a little below the gateway's own limits.
const ITEMS_MAX: usize = 400;
const BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most state keys that go with deliveries that begin: two hundred of these change eight hundred if an earlier epoch left them all, and the
/// gateway takes a thousand.
const KEYS_BESIDE_BEGINS_MAX: usize = 190;
/// What the gateway says of an event whose name another has had.
const NAME_IN_USE: &str = "idempotency_mismatch";

/// Deliveries that the gateway has given to this session and that are not settled yet.
pub(crate) type InHand = HashMap<Uuid, Delivery>;

/// Turns whose commits can be settled together.
#[derive(Default)]
pub(crate) struct Batch {
    commits: Vec<Commit>,
    pub(crate) effects: Vec<Effect>,
    deliveries: HashSet<Uuid>,
    items: usize,
    keys: usize,
    bytes: usize,
    /// Of what is to be written.
    write_bytes: usize,
    /// Messages taken in without an outcome, which the gateway may refuse; with one it keeps them in any case. The two are
    /// not mixed, lest chance decide.
    only_emits: bool,
    results: bool,
}

impl Batch {
    /// Takes a turn in; gives it back if it cannot go with what is here.
    pub(crate) fn add(&mut self, turn: Turn) -> Result<(), Box<Turn>> {
        let commit = &turn.commit;
        let results = !commit.outcomes.is_empty() || !commit.begins.is_empty();
        let only_emits = !commit.emits.is_empty() && !results;
        let deliveries = commit.outcomes.iter().map(|(lease, _)| lease).chain(&commit.begins);
        let deliveries: Vec<Uuid> = deliveries.map(|lease| lease.delivery).collect();
        let items = commit.state.len() + deliveries.len() + commit.emits.len();
        let bytes = commit.state.values().flatten().map(Vec::len).sum::<usize>()
            + commit.emits.iter().map(|received| received.message.bytes().len()).sum::<usize>();
        let mixes = (self.only_emits && results) || (self.results && only_emits);
        let full =
            !self.commits.is_empty() && (self.items + items > ITEMS_MAX || self.bytes + bytes > BYTES_MAX);
        if mixes || full || deliveries.iter().any(|delivery| self.deliveries.contains(delivery)) {
            return Err(Box::new(turn));
        }
        self.deliveries.extend(deliveries);
        self.items += items;
        self.keys += commit.state.len();
        self.bytes += bytes;
        self.only_emits |= only_emits;
        self.results |= results;
        if !commit.is_empty() {
            self.commits.push(turn.commit);
        }
        let written = turn.then.iter().map(|effect| match effect {
            Effect::Write { bytes, .. } => bytes.len(),
            Effect::Begun(_) | Effect::Close(_) | Effect::Alarm(_) => 0,
        });
        self.write_bytes += written.sum::<usize>();
        self.effects.extend(turn.then);
        Ok(())
    }

    /// Whether it has much to write: then it is settled before more is read, lest a partner that asks and asks fills memory.
    pub(crate) fn says_much(&self) -> bool {
        self.write_bytes >= QUEUE_BYTES_SOFT
    }

    /// Whether these deliveries can begin in the same settlement.
    pub(crate) fn takes_begins<'a>(&self, leases: impl Iterator<Item = &'a Lease>) -> bool {
        let is_known = |lease: &Lease| self.deliveries.contains(&lease.delivery);
        let has_room = self.items <= ITEMS_MAX && self.keys <= KEYS_BESIDE_BEGINS_MAX;
        !self.only_emits && has_room && !leases.into_iter().any(is_known)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.commits.is_empty() && self.effects.is_empty()
    }

    pub(crate) fn into_parts(self) -> (Vec<Commit>, Vec<Effect>) {
        (self.commits, self.effects)
    }
}

/// Why a commit cannot be made durable.
#[derive(Debug)]
pub(crate) enum Refused {
    /// These deliveries must not begin: expired, or somebody else's by now. What is not durable comes back.
    Begins {
        deliveries: HashSet<Uuid>,
        commits: Vec<Commit>,
    },
    Fatal(Failure),
}

/// Makes commits durable.
pub(crate) struct Books<'a> {
    pub(crate) gateway: &'a Session,
    pub(crate) config: &'a Config,
    pub(crate) origin: &'a Origin,
}

impl Books<'_> {
    /// Settles commits together. What the gateway refuses of messages that came in, `engine` owes the partner, which is durable with their
    /// numbers.
    pub(crate) async fn settle(
        &self,
        mut commits: Vec<Commit>,
        engine: &mut Engine,
        in_hand: &mut InHand,
    ) -> Result<(), Refused> {
        commits.retain(|commit| !commit.is_empty());
        while !commits.is_empty() {
            let [before, behind] = points(&commits);
            gatepost_faults::point(before);
            match self.gateway.settle(self.settlement(&commits, in_hand)).await {
                Ok(_) => {
                    gatepost_faults::point(behind);
                    if let Some(epoch) = commits.iter().filter_map(|commit| commit.epoch).next_back() {
                        tracing::info!(session = self.config.name, epoch, "the sequence numbers begin anew");
                    }
                    let settled = commits.iter().flat_map(|commit| &commit.outcomes);
                    for (lease, _) in settled {
                        in_hand.remove(&lease.delivery);
                    }
                    return Ok(());
                }
                Err(SettleError::Refused(results)) => {
                    let stale = results.iter().filter(|result| result.status == SettleStatus::Stale);
                    let stale: HashSet<Uuid> = stale.map(|result| result.delivery).collect();
                    let begins = commits.iter().flat_map(|commit| &commit.begins);
                    let refused: HashSet<Uuid> = begins
                        .map(|lease| lease.delivery)
                        .filter(|delivery| stale.contains(delivery))
                        .collect();
                    if !refused.is_empty() {
                        return Err(Refused::Begins { deliveries: refused, commits });
                    }
                    if stale.is_empty() {
                        return Err(fatal(SettleError::Refused(results)));
                    }
                    for commit in &mut commits {
                        engine.take_back(commit, |lease| stale.contains(&lease.delivery));
                    }
                    in_hand.retain(|delivery, _| !stale.contains(delivery));
                }
                Err(error) if is_refusal(&error) && commits.iter().any(|commit| !commit.emits.is_empty()) => {
                    if commits.len() > 1 {
                        // One by one, so that one message that is not taken keeps no other back.
                        for commit in commits {
                            Box::pin(self.settle(vec![commit], engine, in_hand)).await?;
                        }
                        return Ok(());
                    }
                    let (code, title) = match &error {
                        SettleError::Call(CallError::Refused(refusal)) => {
                            (&*refusal.problem.code, &*refusal.problem.title)
                        }
                        _ => ("too_large", "The message is too large"),
                    };
                    for commit in &mut commits {
                        if code == NAME_IN_USE && self.tell_apart(commit) {
                            continue;
                        }
                        for received in std::mem::take(&mut commit.emits) {
                            if let Owing::Kept(key, value) = self.turn_away(&received, code, title, engine) {
                                commit.state.insert(key, Some(value));
                            }
                        }
                    }
                    commits.retain(|commit| !commit.is_empty());
                }
                Err(error) => return Err(fatal(error)),
            }
        }
        Ok(())
    }

    /// An execution has come that was known by its content before. If it is alone, and its sender says that it may have sent it
    /// before, it is the same once more and goes no further. What is not certain goes on, under its number. `false`: it is not that.
    fn tell_apart(&self, commit: &mut Commit) -> bool {
        if !commit.emits.iter().any(|received| content_id(received).is_some()) {
            return false;
        }
        match &mut commit.emits[..] {
            [one] if may_be_double(&one.message) => {
                tracing::info!(
                    session = self.config.name,
                    epoch = one.epoch,
                    seq = one.seq,
                    "an execution that has come before is passed over"
                );
                commit.emits.clear();
            }
            several => several.iter_mut().for_each(|received| received.by_number = true),
        }
        true
    }

    /// What is to be durable of that.
    fn turn_away(&self, received: &Received, code: &str, title: &str, engine: &mut Engine) -> Owing {
        let owing = engine.owe(received, title);
        let then = match owing {
            Owing::Kept(..) | Owing::Unkept => "the partner is told so with a BusinessMessageReject",
            Owing::Untold => "the partner cannot be told: too many of its messages were refused",
        };
        let Received { epoch, seq, .. } = received;
        tracing::error!(
            session = self.config.name,
            epoch,
            seq,
            code,
            "the gateway does not take a message; {then}"
        );
        owing
    }

    fn settlement(&self, commits: &[Commit], in_hand: &InHand) -> Settlement {
        let mut settlement = Settlement::default();
        let mut state: BTreeMap<&str, Option<&[u8]>> = BTreeMap::new();
        for commit in commits {
            for lease in &commit.begins {
                if let Some(delivery) = in_hand.get(&lease.delivery) {
                    settlement.begin(delivery);
                }
            }
            for (lease, verdict) in &commit.outcomes {
                let outcome = self.outcome(verdict);
                match in_hand.get(&lease.delivery).filter(|delivery| delivery.lease() == *lease) {
                    Some(delivery) => settlement.outcome(delivery, outcome),
                    None => settlement.late(lease, outcome),
                }
            }
            for received in &commit.emits {
                settlement.emit(self.origin.event(received));
            }
            state.extend(commit.state.iter().map(|(key, value)| (key.as_str(), value.as_deref())));
        }
        for (key, value) in state {
            match value {
                Some(value) => settlement.state.set(key, value),
                None => settlement.state.delete(key),
            }
        }
        settlement
    }

    fn outcome(&self, verdict: &Verdict) -> Outcome {
        let evidence = |proof: &Proof| {
            let with_session = Evidence::new(proof.level).with("session", self.config.name.as_str());
            proof
                .shown
                .iter()
                .fold(with_session, |evidence, (name, value)| evidence.with(name, value.clone()))
        };
        match verdict {
            Verdict::Sent(proof) => {
                Outcome::Sent { evidence: evidence(proof), within: self.config.confirm_within }
            }
            Verdict::Delivered(proof) => Outcome::Delivered { evidence: evidence(proof), reply: None },
            Verdict::Reject(reason, proof) => {
                Outcome::Reject { reason: reason.clone(), evidence: Some(evidence(proof)), reply: None }
            }
            Verdict::Retry(reason) => {
                Outcome::Retry { scope: Scope::Message, after: None, reason: reason.clone(), reply: None }
            }
            Verdict::InDoubt(reason) => Outcome::in_doubt(reason.clone()),
        }
    }
}

/// The gateway's final word on a settlement, or ours in its place: it would be the same again. That the adapter's state is full
/// says nothing of what came in.
fn is_refusal(error: &SettleError) -> bool {
    matches!(error, SettleError::Call(CallError::Refused(_)) | SettleError::OverLimit { .. })
}

/// Where the fault laboratory lets the process die: before and behind the commit of these.
fn points(commits: &[Commit]) -> [&'static str; 2] {
    let any = |has: fn(&Commit) -> bool| commits.iter().any(has);
    if any(|commit| commit.epoch.is_some()) {
        ["fix.before_reset", "fix.after_reset"]
    } else if any(|commit| !commit.begins.is_empty()) {
        ["fix.before_begin", "fix.after_begin"]
    } else if any(|commit| !commit.emits.is_empty()) {
        ["fix.before_receive", "fix.after_receive"]
    } else if any(|commit| commit.state.iter().any(|(key, value)| is_owed(key) && value.is_some())) {
        ["fix.before_refusal", "fix.after_refusal"]
    } else if any(|commit| !commit.outcomes.is_empty()) {
        ["fix.before_outcome", "fix.after_outcome"]
    } else {
        ["fix.before_numbers", "fix.after_numbers"]
    }
}

fn fatal(error: SettleError) -> Refused {
    Refused::Fatal(Failure::new("the gateway does not take a settlement", error))
}

#[cfg(test)]
mod tests;
