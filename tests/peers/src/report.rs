//! Medians over the rounds, the ratios that count, and the table for docs/measurements.md.

use serde::Serialize;
use serde_json::Value;

use crate::gatepost::Figures;

/// One figure over all rounds.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    min: f64,
    max: f64,
    rounds: Vec<f64>,
}

impl Spread {
    pub(crate) fn add(&mut self, value: f64) {
        self.rounds.push(value.round());
        let mut sorted = self.rounds.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        self.median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        (self.min, self.max) = (sorted[0], sorted[sorted.len() - 1]);
    }
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct System {
    pub(crate) name: &'static str,
    pub(crate) version: String,
    pub(crate) durability: &'static str,
    pub(crate) serial_us_p50: Spread,
    pub(crate) publish_64_per_s: Spread,
    pub(crate) publish_256_per_s: Spread,
    pub(crate) end_to_end: Vec<EndToEnd>,
}

#[derive(Debug, Serialize)]
pub(crate) struct EndToEnd {
    pub(crate) consumers: usize,
    pub(crate) per_s: Spread,
}

impl System {
    fn with_one(&self) -> f64 {
        self.end_to_end.first().map_or(0.0, |found| found.per_s.median)
    }

    fn best(&self) -> f64 {
        self.end_to_end.iter().map(|found| found.per_s.median).fold(0.0, f64::max)
    }
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Ours {
    pub(crate) fdatasync_us_p50: Spread,
    pub(crate) serial_us_p50: Spread,
    pub(crate) singles_64_per_s: Spread,
    pub(crate) batches_per_s: Spread,
    pub(crate) end_to_end_singles_per_s: Spread,
    pub(crate) end_to_end_batches_per_s: Spread,
    pub(crate) strict_us_p50: Spread,
}

impl Ours {
    pub(crate) fn add(&mut self, found: &Figures) {
        self.fdatasync_us_p50.add(found.fdatasync_us_p50);
        self.serial_us_p50.add(found.serial_us_p50);
        self.singles_64_per_s.add(found.singles_64_per_s);
        self.batches_per_s.add(found.batches_per_s);
        self.end_to_end_singles_per_s.add(found.end_to_end_singles_per_s);
        self.end_to_end_batches_per_s.add(found.end_to_end_batches_per_s);
        self.strict_us_p50.add(found.strict_us_p50);
    }

    /// Its rates, by what they are of.
    fn rates(&self) -> [(&'static str, f64); 5] {
        [
            ("serial accept", 1e6 / self.serial_us_p50.median),
            ("64 single-message senders", self.singles_64_per_s.median),
            ("batch accept", self.batches_per_s.median),
            ("end to end, singles", self.end_to_end_singles_per_s.median),
            ("end to end, batches", self.end_to_end_batches_per_s.median),
        ]
    }
}

/// Gatepost with so many nodes on the PostgreSQL server of the plain queue.
#[derive(Debug, Serialize)]
pub(crate) struct OnPostgres {
    pub(crate) nodes: u32,
    pub(crate) figures: Ours,
}

#[derive(Debug, Serialize)]
pub(crate) struct Ratio {
    pub(crate) what: String,
    pub(crate) ratio: f64,
    pub(crate) goal: &'static str,
    pub(crate) met: bool,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Value,
    pub(crate) debug_build: bool,
    pub(crate) rounds: u32,
    pub(crate) seconds: u64,
    pub(crate) payload_bytes: usize,
    pub(crate) gatepost: Ours,
    pub(crate) on_postgres: Vec<OnPostgres>,
    pub(crate) peers: Vec<System>,
    pub(crate) skipped: Vec<String>,
    pub(crate) ratios: Vec<Ratio>,
}

impl Report {
    /// What the medians say, once all rounds are in.
    pub(crate) fn compare(&mut self) {
        let ours = &self.gatepost;
        let mut ratios = Vec::new();
        let mut at_most = |what: &str, value: f64, of: f64, limit: f64, goal| {
            let ratio = two_digits(value / of);
            ratios.push(Ratio { what: what.to_owned(), ratio, goal, met: ratio <= limit });
        };
        at_most(
            "serial accept p50 / fdatasync p50",
            ours.serial_us_p50.median,
            ours.fdatasync_us_p50.median,
            2.0,
            "≤ 2",
        );
        at_most("strict order, settle to settle p50 / 1 ms", ours.strict_us_p50.median, 1000.0, 1.0, "≤ 1");
        let mut at_least = |what: String, value: f64, of: f64, limit: f64, goal| {
            if of > 0.0 {
                let ratio = two_digits(value / of);
                ratios.push(Ratio { what, ratio, goal, met: ratio >= limit });
            }
        };
        for peer in &self.peers {
            let name = peer.name;
            let (redis, nats) = (name.starts_with("Redis"), name.starts_with("NATS"));
            if redis {
                let what = format!("64 single-message senders / {name}, 64 in flight");
                at_least(what, ours.singles_64_per_s.median, peer.publish_64_per_s.median, 0.75, "≥ 0.75");
            }
            let (limit, goal) = if nats {
                (20.0, "≥ 20")
            } else if redis {
                (1.0, "≥ 1.0")
            } else {
                (1.0, "-")
            };
            let what = format!("batch accept / {name}, 256 in flight");
            at_least(what, ours.batches_per_s.median, peer.publish_256_per_s.median, limit, goal);
            let (limit, goal) = if name.starts_with("Redis") || name.starts_with("Post") {
                (1.2, "≥ 1.2")
            } else {
                (1.2, "-")
            };
            let batches = ours.end_to_end_batches_per_s.median;
            at_least(
                format!("end to end, batches / {name}, one consumer"),
                batches,
                peer.with_one(),
                limit,
                goal,
            );
            let singles = ours.end_to_end_singles_per_s.median;
            at_least(
                format!("end to end, singles / {name}, one consumer"),
                singles,
                peer.with_one(),
                1.0,
                "-",
            );
            if peer.end_to_end.len() > 1 {
                let what = format!("end to end, batches / {name}, best number of consumers");
                at_least(what, batches, peer.best(), 1.0, if redis { "≥ 1.0 (moonshot)" } else { "-" });
            }
        }
        self.ratios = ratios;
        self.compare_on_postgres();
    }

    /// One node on PostgreSQL against SQLite, and against a plain queue on the same server.
    fn compare_on_postgres(&mut self) {
        let Some(one) = self.on_postgres.iter().find(|on| on.nodes == 1).map(|on| &on.figures) else {
            return;
        };
        let mut ratios = Vec::new();
        let mut at_least = |what: String, value: f64, of: f64, limit: f64, goal| {
            let ratio = two_digits(value / of);
            ratios.push(Ratio { what, ratio, goal, met: ratio >= limit });
        };
        for ((what, on_postgres), (_, on_sqlite)) in one.rates().into_iter().zip(self.gatepost.rates()) {
            at_least(format!("{what}: on PostgreSQL / on SQLite"), on_postgres, on_sqlite, 0.6, "≥ 0.6");
        }
        let batches = one.end_to_end_batches_per_s.median;
        for peer in self.peers.iter().filter(|peer| peer.name.starts_with("Post")) {
            for found in &peer.end_to_end {
                let consumers = if found.consumers == 1 { "consumer" } else { "consumers" };
                let what = format!(
                    "end to end, batches: on PostgreSQL / {}, {} {consumers}",
                    peer.name, found.consumers
                );
                at_least(what, batches, found.per_s.median, 1.0, "≥ 1.0");
            }
        }
        self.ratios.extend(ratios);
    }

    /// As Markdown.
    pub(crate) fn text(&self) -> String {
        let machine = |key: &str| match &self.machine[key] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let ours = &self.gatepost;
        let mut text = format!(
            "{} × {}, Linux {}, {}, fdatasync p50 {} µs; {} bytes of payload; medians of {} interleaved rounds of {} s a phase{}\n\n",
            machine("cores"),
            machine("cpu"),
            machine("kernel"),
            machine("filesystem"),
            ours.fdatasync_us_p50.median,
            self.payload_bytes,
            self.rounds,
            self.seconds,
            if self.debug_build { "; a DEBUG build of gatepost" } else { "" },
        );
        text += "| system | durable by | serial confirm p50 | 64 in flight | 256 in flight | end to end, 1 consumer | … 4 consumers |\n|---|---|---|---|---|---|---|\n";
        text += &format!(
            "| **Gatepost**, single messages over HTTP | fsync, audit log | {} µs | {} | | {} | |\n| **Gatepost**, batches of 100, 8 senders | | | | {} | {} | |\n",
            ours.serial_us_p50.median,
            rate(ours.singles_64_per_s.median),
            rate(ours.end_to_end_singles_per_s.median),
            rate(ours.batches_per_s.median),
            rate(ours.end_to_end_batches_per_s.median),
        );
        for on in &self.on_postgres {
            let (ours, nodes) = (&on.figures, if on.nodes == 1 { "node" } else { "nodes" });
            text += &format!(
                "| **Gatepost on PostgreSQL**, {} {nodes}: single messages | synchronous_commit on, audit log | {} µs | {} | | {} | |\n| … batches of 100, 8 senders | | | | {} | {} | |\n",
                on.nodes,
                ours.serial_us_p50.median,
                rate(ours.singles_64_per_s.median),
                rate(ours.end_to_end_singles_per_s.median),
                rate(ours.batches_per_s.median),
                rate(ours.end_to_end_batches_per_s.median),
            );
        }
        for peer in &self.peers {
            let of = |consumers| {
                let found = peer.end_to_end.iter().find(|found| found.consumers == consumers);
                found.map_or_else(String::new, |found| rate(found.per_s.median))
            };
            text += &format!(
                "| {} {} | {} | {} µs | {} | {} | {} | {} |\n",
                peer.name,
                peer.version,
                peer.durability,
                peer.serial_us_p50.median,
                rate(peer.publish_64_per_s.median),
                rate(peer.publish_256_per_s.median),
                of(1),
                of(4),
            );
        }
        text += "\n| ratio | measured | goal | |\n|---|---|---|---|\n";
        for ratio in &self.ratios {
            let verdict = match (ratio.goal, ratio.met) {
                ("-", _) => "",
                (_, true) => "met",
                (_, false) => "not met",
            };
            text += &format!("| {} | {} | {} | {verdict} |\n", ratio.what, ratio.ratio, ratio.goal);
        }
        for skipped in &self.skipped {
            text += &format!("\nSKIPPED {skipped}");
        }
        text
    }
}

fn two_digits(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// `36 k/s`, `3.9 k/s`, `870/s`.
fn rate(per_s: f64) -> String {
    match per_s {
        10_000.0.. => format!("{:.0} k/s", per_s / 1e3),
        1_000.0.. => format!("{:.1} k/s", per_s / 1e3),
        _ => format!("{per_s:.0}/s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(value: f64) -> Spread {
        let mut spread = Spread::default();
        spread.add(value);
        spread
    }

    #[test]
    fn ratios_are_held_against_their_goals() {
        let mut report = Report {
            gatepost: Ours {
                fdatasync_us_p50: spread(200.0),
                serial_us_p50: spread(500.0),
                singles_64_per_s: spread(48_000.0),
                batches_per_s: spread(90_000.0),
                strict_us_p50: spread(900.0),
                end_to_end_batches_per_s: spread(50_000.0),
                ..Ours::default()
            },
            peers: vec![System {
                name: "Redis streams",
                publish_64_per_s: spread(64_000.0),
                publish_256_per_s: spread(80_000.0),
                end_to_end: vec![EndToEnd { consumers: 1, per_s: spread(40_000.0) }],
                ..System::default()
            }],
            ..Report::default()
        };
        report.compare();
        let verdicts: Vec<(f64, bool)> = report.ratios.iter().map(|ratio| (ratio.ratio, ratio.met)).collect();
        assert_eq!(verdicts[..5], [(2.5, false), (0.9, true), (0.75, true), (1.13, true), (1.25, true)]);
        assert!(
            report.text().contains("| Redis streams  |  | 0 µs | 64 k/s | 80 k/s | 40 k/s |  |"),
            "{}",
            report.text()
        );
    }

    #[test]
    fn rates_are_as_long_as_they_are_worth() {
        assert_eq!(
            (rate(870.4), rate(3_940.0), rate(36_400.0)),
            ("870/s".into(), "3.9 k/s".into(), "36 k/s".into())
        );
    }
}
