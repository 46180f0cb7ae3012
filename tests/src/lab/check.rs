//! The rules by which a history is judged.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use super::book::{Book, Event, Life};
use super::history::{Answer, History, Order, Partner};
use super::verdict::{Kind, Verdict};

/// Work that could move and has not for so long must show in readiness: the gateway's own limit, and time to look.
const STUCK_MAX: Duration = Duration::from_secs(70);

/// Judges a history.
pub fn check(history: &History) -> Verdict {
    let book = Book::new(history);
    let mut judge = Judge { history, book, arrivals: BTreeMap::new(), verdict: Verdict::default() };
    judge.log();
    judge.arrivals();
    judge.accepted();
    judge.batches();
    judge.ends();
    judge.order();
    judge.combined();
    judge.late();
    judge.health();
    judge.verdict
}

struct Judge<'h> {
    history: &'h History,
    book: Book<'h>,
    /// Destination and event → the deliveries by which it arrived, one for each time.
    arrivals: BTreeMap<(&'h str, usize), Vec<Option<String>>>,
    verdict: Verdict,
}

impl<'h> Judge<'h> {
    fn log(&mut self) {
        self.verdict.log_entries = self.history.log.len() as u64;
        for fault in &self.history.log_faults {
            self.verdict.find(Kind::Log, fault.clone());
        }
    }

    /// What reached partners: sent by somebody, begun before, and no more often than begun.
    fn arrivals(&mut self) {
        for (destination, partner) in &self.history.partners {
            let mut times: BTreeMap<String, u64> = BTreeMap::new();
            for effect in &partner.effects {
                self.verdict.effects += 1;
                let delivery = self.book.delivery_of(destination, effect);
                let Some(number) = self.book.event_of(destination, effect) else {
                    self.verdict
                        .find(Kind::Phantom, format!("{destination} got what nobody sent: {effect:?}"));
                    continue;
                };
                let event = &self.book.events[number];
                if *event.answer == Answer::Refused {
                    self.verdict
                        .find(Kind::Phantom, format!("{destination} got {}, which was refused", event.mark));
                }
                if let Some(delivery) = &delivery {
                    *times.entry(delivery.clone()).or_default() += 1;
                }
                self.arrivals.entry((destination, number)).or_default().push(delivery);
            }
            for (delivery, times) in times {
                self.times(destination, partner, &delivery, times);
            }
        }
        let twins = self.arrivals.iter().filter_map(|((destination, number), deliveries)| {
            let different: BTreeSet<_> = deliveries.iter().flatten().collect();
            let mark = self.book.events[*number].mark;
            (different.len() > 1).then(|| format!("{mark} reached {destination} as {different:?}"))
        });
        for twin in twins.collect::<Vec<_>>() {
            self.verdict.find(Kind::Duplicated, twin);
        }
    }

    fn times(&mut self, destination: &str, partner: &Partner, delivery: &str, times: u64) {
        let Some(life) = self.book.lives.get(delivery) else {
            let what = format!("{delivery} reached {destination}, and the log does not know it");
            return self.verdict.find(Kind::Log, what);
        };
        if life.attempts == 0 {
            let what = format!("{delivery} reached {destination} without an attempt in the log");
            return self.verdict.find(Kind::Log, what);
        }
        if times > life.attempts {
            let what =
                format!("{delivery} reached {destination} {times} times with {} attempts", life.attempts);
            return self.verdict.find(Kind::Duplicated, what);
        }
        if partner.holds_doubt && !life.replayed && times > 1 + life.sent_back {
            let what = format!("{delivery} reached {destination} {times} times without a person's word");
            return self.verdict.find(Kind::Duplicated, what);
        }
        if times > 1 {
            let why = if life.replayed { "replayed" } else { "begun again, same delivery id" };
            *self.verdict.doubled.entry(why.to_owned()).or_default() += times - 1;
        }
    }

    /// What senders were told is accepted is in the log, with every destination; what is in the log was sent.
    fn accepted(&mut self) {
        let mut findings = Vec::new();
        let mut untold = 0;
        for (number, event) in self.book.events.iter().enumerate() {
            if event.messages.len() > 1 {
                findings
                    .push((Kind::Duplicated, format!("{} was accepted as {:?}", event.mark, event.messages)));
            }
            if event.messages.is_empty() && *event.answer != Answer::Refused {
                untold += 1;
            }
            let Answer::Accepted(ids) = event.answer else { continue };
            self.verdict.accepted += 1;
            if event.messages.is_empty() && ids.is_empty() {
                // Only partners can say: one whose protocol tells no ids.
                let missing = event.to.iter().filter(|to| self.is_partner(to) && !self.arrived(to, number));
                findings.extend(missing.map(|to| (Kind::Lost, format!("{} never reached {to}", event.mark))));
            }
            findings.extend(self.recorded(number, event));
        }
        let unasked = self.book.accepted.values().filter(|message| !self.book.is_known(message));
        // A sender that gave up, or is not told ids, accounts for one each.
        for message in unasked.skip(untold) {
            findings.push((Kind::Duplicated, format!("{message} was accepted, and nobody was told so")));
        }
        for (kind, what) in findings {
            self.verdict.find(kind, what);
        }
    }

    fn recorded(&self, number: usize, event: &Event<'_>) -> Vec<(Kind, String)> {
        let mut findings = Vec::new();
        for message in &event.messages {
            let Some(entry) = self.book.entries.get(message) else {
                let arrived = event.to.iter().any(|to| self.arrived(to, number));
                // The batch of a message that is missing alone is judged as a whole.
                if arrived {
                    findings.push((Kind::Log, format!("{message} arrived, and the log does not know it")));
                } else if !self.is_in_torn_batch(number) {
                    findings.push((Kind::Lost, format!("{message} was accepted and is nowhere")));
                }
                continue;
            };
            for to in event.to {
                if !entry.deliveries.contains_key(to) {
                    findings.push((Kind::Lost, format!("{message} has no delivery to {to}")));
                }
            }
            for to in entry.deliveries.keys().filter(|to| !event.to.is_empty() && !event.to.contains(to)) {
                findings.push((Kind::Phantom, format!("{message} goes to {to}, where no route leads")));
            }
        }
        findings
    }

    /// Each delivery in the log has ended or is listed as held, and what is called delivered arrived.
    fn ends(&mut self) {
        let mut findings = Vec::new();
        for (id, life) in &self.book.lives {
            let held = self.history.held.contains(id);
            let how = match (life.has_ended(), life.state.as_str()) {
                (true, "dead") => format!("dead: {}", life.code),
                (true, state) => state.to_owned(),
                (false, "in_doubt") if held => "held".to_owned(),
                (false, state) => {
                    findings.push((
                        Kind::Lost,
                        format!("{id} to {} is {state}, and nobody sees it", life.destination),
                    ));
                    continue;
                }
            };
            *self.verdict.ended.entry(how).or_default() += 1;
            findings.extend(self.believed(id, life));
        }
        for (kind, what) in findings {
            self.verdict.find(kind, what);
        }
    }

    fn believed(&self, id: &str, life: &Life) -> Vec<(Kind, String)> {
        let mut findings = Vec::new();
        if life.delivered_at.is_some() {
            if life.attempts == 0 {
                findings.push((Kind::Log, format!("{id} is delivered without an attempt in the log")));
            }
            // A message that nobody tells of can only be counted.
            let number = self.book.event_of_message(&life.message);
            if number.is_some_and(|number| {
                self.is_partner(&life.destination) && !self.arrived(&life.destination, number)
            }) {
                findings.push((
                    Kind::Lost,
                    format!("{id} is called delivered and never reached {}", life.destination),
                ));
            }
        }
        if life.state == "dead" && life.code == "rejected" && !self.history.rejected.contains(id) {
            findings.push((Kind::StaleSettle, format!("{id} is rejected, which only late settles said")));
        }
        findings
    }

    fn batches(&mut self) {
        let torn = self.book.submissions.iter().filter(|events| self.is_torn(events));
        let torn = torn.map(|events| {
            let missing = events.clone().filter(|number| !self.is_there(*number, events));
            let missing: Vec<_> = missing.map(|number| self.book.events[number].mark).collect();
            format!("of a batch of {} these are missing: {missing:?}", events.len())
        });
        for what in torn.collect::<Vec<_>>() {
            self.verdict.find(Kind::TornBatch, what);
        }
    }

    fn is_torn(&self, events: &std::ops::Range<usize>) -> bool {
        let there = events.clone().filter(|number| self.is_there(*number, events)).count();
        there > 0 && there < events.len()
    }

    fn is_in_torn_batch(&self, number: usize) -> bool {
        self.book.submissions.iter().any(|events| events.contains(&number) && self.is_torn(events))
    }

    /// Whether an event of a batch is in the log, or arrived. A batch is one commit, so that its messages stand in the log one
    /// after the other; that tells of those that neither sender nor partner has told of.
    fn is_there(&self, number: usize, batch: &std::ops::Range<usize>) -> bool {
        let at = |number: usize| self.book.accepted_at(&self.book.events[number]);
        if at(number).is_some() || self.book.events[number].to.iter().any(|to| self.arrived(to, number)) {
            return true;
        }
        batch.clone().any(|other| {
            let expected = at(other).and_then(|index| (index + number).checked_sub(other));
            expected
                .and_then(|index| self.book.accepted.get(&index))
                .is_some_and(|message| !self.book.is_known(message))
        })
    }

    fn order(&mut self) {
        let mut findings = BTreeSet::new();
        for (destination, partner) in &self.history.partners {
            if partner.order == Order::None {
                continue;
            }
            let mut seen = HashSet::new();
            let arrived = partner.effects.iter().filter_map(|effect| {
                let number = self.book.event_of(destination, effect)?;
                seen.insert(number).then_some(number)
            });
            let arrived: Vec<usize> = arrived.collect();
            findings.extend(self.out_of_order(destination, partner.order, arrived));
            findings.extend(self.out_of_order(destination, partner.order, self.delivered(destination)));
            if partner.order == Order::Key {
                findings.extend(self.beside_merges(destination));
            }
        }
        findings.extend(self.senders());
        for what in findings {
            self.verdict.find(Kind::Reordered, what);
        }
    }

    /// Events in the order in which the log calls them delivered there.
    fn delivered(&self, destination: &str) -> Vec<usize> {
        let lives = self.book.lives.values().filter(|life| life.destination == destination);
        let mut delivered: Vec<_> =
            lives.filter_map(|life| Some((life.delivered_at?, &life.message))).collect();
        delivered.sort_unstable();
        delivered.into_iter().filter_map(|(_, message)| self.book.event_of_message(message)).collect()
    }

    fn out_of_order(&self, destination: &str, order: Order, events: Vec<usize>) -> Vec<String> {
        let mut newest: HashMap<&str, usize> = HashMap::new();
        let mut findings = Vec::new();
        for number in events {
            let event = &self.book.events[number];
            let replayed = self.lives_at(destination, event).any(|life| life.replayed);
            let (Some(at), false) = (self.book.accepted_at(event), replayed) else { continue };
            let lanes: Vec<&str> = match order {
                Order::None => Vec::new(),
                Order::Key => event.lanes().collect(),
                Order::Strict => vec!["of all"],
            };
            for lane in lanes {
                let newest = newest.entry(lane).or_insert(at);
                if at < *newest {
                    findings
                        .push(format!("{destination}, lane {lane}: {} came after a later one", event.mark));
                }
                *newest = at.max(*newest);
            }
        }
        findings
    }

    fn lives_at(&self, destination: &str, event: &Event<'_>) -> impl Iterator<Item = &Life> {
        let deliveries = event.messages.iter().filter_map(|message| self.book.delivery(message, destination));
        deliveries.filter_map(|id| self.book.lives.get(id))
    }

    /// A merge begins when all before it in both its lanes has ended, and what stands behind it in either begins when it has. What is
    /// told of arrivals cannot show that: one that was begun too early may arrive in time.
    fn beside_merges(&self, destination: &str) -> Vec<String> {
        let mut lanes: BTreeMap<&str, BTreeMap<usize, (&Event<'_>, &Life)>> = BTreeMap::new();
        for event in &self.book.events {
            let Some(at) = self.book.accepted_at(event) else { continue };
            // Replayed from the dead, it goes beside its lanes.
            for life in self.lives_at(destination, event).filter(|life| !life.replayed) {
                for lane in event.lanes() {
                    lanes.entry(lane).or_default().insert(at, (event, life));
                }
            }
        }
        let mut findings = Vec::new();
        for (lane, events) in lanes {
            // Until when all has ended, and all merges, of those that stand before.
            let (mut all_ended, mut merges_ended) = (0, 0);
            for (event, life) in events.into_values() {
                let (is_merge, begun) = (event.is_merge(), life.begun_at.unwrap_or(usize::MAX));
                if begun < if is_merge { all_ended } else { merges_ended } {
                    let beside = if is_merge { "one" } else { "a merge" };
                    findings.push(format!(
                        "{destination}, lane {lane}: {} began before {beside} in front of it had ended",
                        event.mark
                    ));
                }
                let ended = life.ended_at.unwrap_or(usize::MAX);
                all_ended = all_ended.max(ended);
                if is_merge {
                    merges_ended = merges_ended.max(ended);
                }
            }
        }
        findings
    }

    /// A sender that waits for each answer is accepted in its own order.
    fn senders(&self) -> Vec<String> {
        let mut newest: HashMap<&str, usize> = HashMap::new();
        let mut findings = Vec::new();
        for (submission, events) in self.history.submissions.iter().zip(&self.book.submissions) {
            for number in events.clone() {
                let event = &self.book.events[number];
                let Some(at) = self.book.accepted_at(event) else { continue };
                let newest = newest.entry(&submission.sender).or_insert(at);
                if at < *newest {
                    findings.push(format!(
                        "{} was accepted before what {} sent earlier",
                        event.mark, submission.sender
                    ));
                }
                *newest = at.max(*newest);
            }
        }
        findings
    }

    /// Outcome, emitted message and state go together.
    fn combined(&mut self) {
        let mut settled: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let mut findings = BTreeSet::new();
        let arrived: HashSet<usize> = self.arrivals.keys().map(|(_, number)| *number).collect();
        for combined in &self.history.combined {
            let delivered =
                self.book.lives.get(&combined.delivery).is_some_and(|life| life.delivered_at.is_some());
            let emitted = self.book.event_of_mark(&combined.emitted);
            let emitted = emitted.is_some_and(|number| arrived.contains(&number));
            if delivered != emitted {
                let (settled, there) = (word(delivered), word(emitted));
                findings
                    .insert(format!("{}: delivered {settled}, what it emitted {there}", combined.delivery));
            }
            if delivered {
                settled.entry(&combined.adapter).or_default().insert(&combined.delivery);
            }
        }
        for (adapter, count) in &self.history.counts {
            let settled = settled.get(adapter.as_str()).map_or(0, BTreeSet::len) as u64;
            if settled != *count {
                findings
                    .insert(format!("{adapter} has settled {settled} deliveries, its state counts {count}"));
            }
        }
        for what in findings {
            self.verdict.find(Kind::TornSettle, what);
        }
    }

    fn late(&mut self) {
        for late in self.history.late.iter().filter(|late| late.status == "ok") {
            self.verdict.find(Kind::StaleSettle, format!("a late settle of {} was taken", late.delivery));
        }
    }

    fn health(&mut self) {
        let wrong = self.history.health.iter().filter(|sample| sample.ready && sample.stuck > STUCK_MAX);
        for sample in wrong {
            let stuck = sample.stuck.as_secs();
            self.verdict.find(Kind::FalseHealth, format!("ready, while work has not moved for {stuck} s"));
        }
    }

    fn is_partner(&self, destination: &str) -> bool {
        self.history.partners.contains_key(destination)
    }

    fn arrived(&self, destination: &str, number: usize) -> bool {
        let Some((destination, _)) = self.history.partners.get_key_value(destination) else { return false };
        self.arrivals.contains_key(&(destination.as_str(), number))
    }
}

fn word(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}
