//! What neighbours cost, for people and for programs.

use std::time::Duration;

use serde::Serialize;

use super::super::super::failure::Failure;
use super::super::super::text;
use super::super::super::ui::{Style, Ui};
use super::super::machine::Machine;
use super::super::spread::Spread;
use super::kind::Kind;
use super::{Fared, Triple};

/// A neighbour that moves the p99 by more than this, beyond what a machine as busy does, is shown in colour.
const RATIO_MAX: f64 = 1.2;

/// The names are those of `--json`, which scripts depend on.
#[derive(Debug, Serialize)]
pub(in super::super) struct Neighbourhood {
    machine: Machine,
    debug_build: bool,
    payload_bytes: usize,
    span_s: u64,
    /// Messages that the well-behaved client hands in.
    per_s: f64,
    rounds: u32,
    neighbours: Vec<Row>,
    pub(super) elapsed_s: f64,
}

/// One kind of neighbour over all rounds.
#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    #[serde(skip)]
    title: &'static str,
    p50_us: Places,
    p99_us: Places,
    /// Of each round by itself.
    p99_elsewhere_by_alone: Spread,
    p99_beside_by_alone: Spread,
    p99_beside_by_elsewhere: Spread,
    gateway_cpu_percent: Places,
    /// What the neighbour did at the gateway. None of nobody.
    did: Option<Did>,
}

#[derive(Debug, Default, Serialize)]
struct Places {
    alone: Spread,
    elsewhere: Spread,
    beside: Spread,
}

#[derive(Debug, Default, Serialize)]
struct Did {
    connections_per_s: Spread,
    requests_per_s: Spread,
    accepted_per_s: Spread,
    refused_per_s: Spread,
}

impl Places {
    fn add(&mut self, triple: &Triple, figure: impl Fn(&Fared) -> f64) {
        self.alone.add(figure(&triple.alone));
        self.elsewhere.add(figure(&triple.elsewhere));
        self.beside.add(figure(&triple.beside));
    }
}

impl Row {
    fn new(kind: Option<Kind>) -> Self {
        Self {
            name: kind.map_or("nobody", Kind::name),
            title: kind.map_or("nobody: noise", Kind::title),
            p50_us: Places::default(),
            p99_us: Places::default(),
            p99_elsewhere_by_alone: Spread::default(),
            p99_beside_by_alone: Spread::default(),
            p99_beside_by_elsewhere: Spread::default(),
            gateway_cpu_percent: Places::default(),
            did: kind.map(|_| Did::default()),
        }
    }

    fn add(&mut self, triple: &Triple) {
        self.p50_us.add(triple, |fared| fared.p50_us.into());
        self.p99_us.add(triple, |fared| fared.p99_us.into());
        self.gateway_cpu_percent.add(triple, |fared| fared.gateway_cpu_percent);
        let ratio = |of: Fared, by: Fared| f64::from(of.p99_us) / f64::from(by.p99_us.max(1));
        self.p99_elsewhere_by_alone.add(ratio(triple.elsewhere, triple.alone));
        self.p99_beside_by_alone.add(ratio(triple.beside, triple.alone));
        self.p99_beside_by_elsewhere.add(ratio(triple.beside, triple.elsewhere));
        if let (Some(did), Some(done)) = (&mut self.did, triple.beside.done) {
            let per_s = |count: u64| count as f64 * 1e3 / done.elapsed_ms.max(1) as f64;
            did.connections_per_s.add(per_s(done.connections));
            did.requests_per_s.add(per_s(done.requests));
            did.accepted_per_s.add(per_s(done.accepted));
            did.refused_per_s.add(per_s(done.refused));
        }
    }
}

impl Neighbourhood {
    pub(super) fn new(machine: Machine, payload_bytes: usize, span: Duration, per_s: f64) -> Self {
        Self {
            machine,
            debug_build: cfg!(debug_assertions),
            payload_bytes,
            span_s: span.as_secs(),
            per_s,
            rounds: 0,
            neighbours: Vec::new(),
            elapsed_s: 0.0,
        }
    }

    pub(in super::super) fn is_empty(&self) -> bool {
        self.rounds == 0
    }

    /// Takes in a round.
    pub(super) fn add(&mut self, kinds: &[Option<Kind>], found: &[Triple]) {
        if self.rounds == 0 {
            self.neighbours = kinds.iter().copied().map(Row::new).collect();
        }
        self.rounds += 1;
        for (row, triple) in self.neighbours.iter_mut().zip(found) {
            row.add(triple);
        }
    }

    pub(in super::super) fn print(&self, ui: &Ui) -> Result<(), Failure> {
        if ui.json {
            return ui.json(self);
        }
        ui.line(self.machine.line(ui))?;
        let rounds = match self.rounds {
            1 => "one round".to_owned(),
            rounds => format!("medians of {rounds} rounds"),
        };
        let conditions = format!(
            "a well-behaved client hands in {} messages of {} a second; {rounds}, {} s a measurement",
            self.per_s,
            text::bytes(self.payload_bytes as u64),
            self.span_s
        );
        ui.line(ui.paint(Style::Faint, conditions))?;
        let legend = "alone · its neighbour busy elsewhere · its neighbour at the gateway; × with the lowest and highest round";
        ui.line(ui.paint(Style::Faint, legend))?;
        ui.line("")?;
        let mut grid = ui.table(&[
            "A NEIGHBOUR THAT",
            "P50",
            "P99 ALONE",
            "ELSEWHERE",
            "AT THE GATEWAY",
            "× ALONE",
            "",
            "× ELSEWHERE",
            "",
            "CONNECTS",
            "ASKS",
            "REFUSED",
            "GATEWAY CPU",
        ]);
        for row in &self.neighbours {
            grid.row(row.cells());
        }
        grid.print(ui)?;
        ui.line("")?;
        ui.line(ui.paint(Style::Faint, format_args!("{} s in all", self.elapsed_s)))
    }
}

impl Row {
    fn cells(&self) -> Vec<(Style, String)> {
        let micros = |spread: &Spread| text::span(Duration::from_secs_f64(spread.median / 1e6));
        let plain = |text: String| (Style::Plain, text);
        let around = |spread: &Spread| (Style::Faint, format!("{:.2}–{:.2}", spread.min, spread.max));
        let ratio = |spread: &Spread| {
            let style = if spread.median > RATIO_MAX { Style::Warn } else { Style::Good };
            (style, format!("{:.2}", spread.median))
        };
        let rate = |of: fn(&Did) -> &Spread| {
            let rate = |did| format!("{}/s", text::count(of(did).median as u64));
            plain(self.did.as_ref().map_or_else(|| "-".to_owned(), rate))
        };
        vec![
            (Style::Strong, self.title.to_owned()),
            plain(micros(&self.p50_us.beside)),
            plain(micros(&self.p99_us.alone)),
            plain(micros(&self.p99_us.elsewhere)),
            plain(micros(&self.p99_us.beside)),
            plain(format!("{:.2}", self.p99_beside_by_alone.median)),
            around(&self.p99_beside_by_alone),
            ratio(&self.p99_beside_by_elsewhere),
            around(&self.p99_beside_by_elsewhere),
            rate(|did| &did.connections_per_s),
            rate(|did| &did.requests_per_s),
            rate(|did| &did.refused_per_s),
            plain(format!("{:.0} %", self.gateway_cpu_percent.beside.median)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::super::greedy::Done;
    use super::*;

    fn fared(p99_us: u32, done: Option<Done>) -> Fared {
        Fared { p50_us: p99_us / 2, p99_us, gateway_cpu_percent: 10.0, done }
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let machine = Machine::detect(std::path::Path::new("/"));
        let mut report = Neighbourhood::new(machine, 1024, Duration::from_secs(5), 400.0);
        assert!(report.is_empty());
        let done = Done { connections: 4, requests: 30, accepted: 10, refused: 20, elapsed_ms: 2_000 };
        for (alone, elsewhere, beside) in [(100, 200, 300), (100, 100, 110), (1000, 2000, 2000)] {
            let triple = Triple {
                alone: fared(alone, None),
                elsewhere: fared(elsewhere, Some(done)),
                beside: fared(beside, Some(done)),
            };
            report.add(&[Some(Kind::Flood)], &[triple]);
        }
        let [row] = &report.neighbours[..] else { panic!() };
        assert_eq!(row.p99_beside_by_alone.runs, [3.0, 1.1, 2.0]);
        assert_eq!((row.p99_beside_by_elsewhere.median, row.p99_elsewhere_by_alone.median), (1.1, 2.0));
        let did = row.did.as_ref().unwrap();
        assert_eq!((did.refused_per_s.median, did.requests_per_s.median), (10.0, 15.0));
        let (ui, text) = Ui::in_memory(false);
        report.print(&ui).unwrap();
        let text = String::from_utf8(text.lock().unwrap().clone()).unwrap();
        assert!(text.contains("floods, far over its rate"), "{text}");
        assert!(text.contains("1.10–3.00"), "{text}");
    }
}
