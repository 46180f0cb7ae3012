//! What was measured, for people and for programs.

use serde::Serialize;
use std::time::Duration;

use super::super::failure::Failure;
use super::super::text;
use super::super::ui::{Style, Ui};
use super::machine::Machine;
use super::plan::{Phase, Plan};
use super::run::{Figures, Found};
use super::spread::{Spread, rounded};

/// Width of the longest bar, characters.
const BAR_WIDTH: f64 = 16.0;

/// The names are those of `--json`, which scripts depend on.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) machine: Machine,
    /// Not optimised: the figures are not those of a release.
    pub(super) debug_build: bool,
    pub(super) runs: u32,
    pub(super) ordering_keys: u64,
    pub(super) destinations: u64,
    /// `sqlite` or `postgres`.
    pub(super) store: &'static str,
    pub(super) nodes: u32,
    pub(super) fdatasync_us_p50: Spread,
    pub(super) append_per_s: Spread,
    pub(super) phases: Vec<Row>,
    pub(super) idle_rss_mib: Spread,
    /// Percent of one core.
    pub(super) idle_cpu_percent: Spread,
    /// Most memory that the gateway had at any time.
    pub(super) rss_mib: Spread,
    /// Accepted over all runs, without the warm-ups.
    pub(super) messages: u64,
    pub(super) elapsed_s: f64,
}

/// One phase over all runs.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) name: &'static str,
    #[serde(skip)]
    phase: Phase,
    pub(super) payload_bytes: usize,
    pub(super) senders: u64,
    pub(super) batch: u64,
    pub(super) partner_delay_ms: f64,
    pub(super) messages: u64,
    pub(super) per_s: Spread,
    pub(super) p50_us: Spread,
    pub(super) p99_us: Spread,
    /// Processor time of a message, µs.
    pub(super) gateway_cpu_us: Spread,
    pub(super) adapter_cpu_us: Spread,
    pub(super) client_cpu_us: Spread,
}

impl Row {
    fn new(phase: &Phase) -> Self {
        Self {
            name: phase.want.name(),
            payload_bytes: phase.payload_bytes,
            senders: phase.senders,
            batch: phase.batch,
            partner_delay_ms: phase.partner_delay.as_secs_f64() * 1e3,
            phase: phase.clone(),
            messages: 0,
            per_s: Spread::default(),
            p50_us: Spread::default(),
            p99_us: Spread::default(),
            gateway_cpu_us: Spread::default(),
            adapter_cpu_us: Spread::default(),
            client_cpu_us: Spread::default(),
        }
    }

    fn add(&mut self, figures: &Figures) {
        let per_message = |used: Duration| used.as_secs_f64() * 1e6 / figures.messages.max(1) as f64;
        self.messages += figures.messages;
        self.per_s.add(figures.per_s);
        self.p50_us.add(figures.p50_us.into());
        self.p99_us.add(figures.p99_us.into());
        self.gateway_cpu_us.add(per_message(figures.cpu.gateway));
        self.adapter_cpu_us.add(per_message(figures.cpu.adapter));
        self.client_cpu_us.add(per_message(figures.cpu.client));
    }
}

impl Report {
    pub(super) fn new(machine: Machine, plan: &Plan) -> Self {
        Self {
            machine,
            debug_build: cfg!(debug_assertions),
            runs: plan.runs,
            ordering_keys: plan.keys,
            destinations: plan.destinations,
            store: if plan.postgres.is_some() { "postgres" } else { "sqlite" },
            nodes: plan.nodes,
            fdatasync_us_p50: Spread::default(),
            append_per_s: Spread::default(),
            phases: Vec::new(),
            idle_rss_mib: Spread::default(),
            idle_cpu_percent: Spread::default(),
            rss_mib: Spread::default(),
            messages: 0,
            elapsed_s: 0.0,
        }
    }

    /// Takes in what one run found.
    pub(super) fn add(&mut self, found: &Found) {
        self.fdatasync_us_p50.add(found.fdatasync_us_p50.into());
        self.append_per_s.add(found.append_per_s);
        self.idle_rss_mib.add(mib(found.idle_kib));
        self.idle_cpu_percent.add(found.idle_cpu_percent);
        self.rss_mib.add(mib(found.peak_kib));
        for (phase, figures) in &found.phases {
            self.messages += figures.messages;
            let place = self.phases.iter().position(|row| row.phase == *phase).unwrap_or(self.phases.len());
            if place == self.phases.len() {
                self.phases.push(Row::new(phase));
            }
            self.phases[place].add(figures);
        }
    }

    pub(super) fn print(&self, ui: &Ui, plan: &Plan) -> Result<(), Failure> {
        if ui.json {
            return ui.json(self);
        }
        ui.line(self.machine.line(ui))?;
        ui.line(ui.paint(Style::Faint, self.conditions(plan)))?;
        for payload_bytes in &plan.payloads {
            let rows: Vec<&Row> =
                self.phases.iter().filter(|row| row.payload_bytes == *payload_bytes).collect();
            ui.line("")?;
            ui.line(
                ui.paint(Style::Strong, format_args!("{} of payload", text::bytes(*payload_bytes as u64))),
            )?;
            self.table(ui, &rows)?;
        }
        ui.line("")?;
        ui.line(format_args!(
            "gateway: {} MiB of memory idle, {} MiB at most; {} % of a core idle",
            self.idle_rss_mib.median, self.rss_mib.max, self.idle_cpu_percent.median
        ))?;
        let summary =
            format!("{} in {} s", text::plural(self.messages, "message", "messages"), self.elapsed_s);
        ui.line(ui.paint(Style::Faint, summary))
    }

    fn conditions(&self, plan: &Plan) -> String {
        let runs = match self.runs {
            1 => format!("one run, {} a phase", plan.length()),
            runs => format!("medians of {runs} runs, {} a phase", plan.length()),
        };
        let order = match self.ordering_keys {
            0 => "no order".to_owned(),
            keys => format!("in order per key, {}", text::plural(keys, "key", "keys")),
        };
        let destinations = text::plural(self.destinations, "destination", "destinations");
        let store = match (self.store, self.nodes) {
            ("postgres", 1) => "; in PostgreSQL".to_owned(),
            ("postgres", nodes) => format!("; {nodes} nodes on one PostgreSQL"),
            _ => String::new(),
        };
        format!("every message fsynced and in the audit log{store}; {order}; {destinations}; {runs}")
    }

    fn table(&self, ui: &Ui, rows: &[&Row]) -> Result<(), Failure> {
        let mut grid =
            ui.table(&["WHAT", "RATE", "±", "", "P50", "P99", "CPU/MESSAGE", "ADAPTER", "SENDERS"]);
        let longest = rows.iter().map(|row| row.per_s.median).fold(self.append_per_s.median, f64::max);
        let micros = |us: f64| text::span(Duration::from_secs_f64(us / 1e6));
        let rate = |per_s: &Spread| format!("{}/s", text::count(per_s.median as u64));
        let around =
            |per_s: &Spread| per_s.plus_minus_percent().map_or_else(String::new, |p| format!("{p:.0} %"));
        let cpu = |spread: &Spread| format!("{} µs", spread.median);
        let mut row = |what: String, per_s: &Spread, rest: [String; 5]| {
            let mut cells = vec![
                (Style::Plain, what),
                (Style::Good, rate(per_s)),
                (Style::Faint, around(per_s)),
                (Style::Accent, bar(per_s.median / longest)),
            ];
            cells.extend(rest.into_iter().map(|text| (Style::Plain, text)));
            grid.row(cells);
        };
        let dash = || "-".to_owned();
        row(
            "disk: append 1 KiB + fdatasync".to_owned(),
            &self.append_per_s,
            [micros(self.fdatasync_us_p50.median), dash(), dash(), dash(), dash()],
        );
        for phase in rows {
            row(
                phase.phase.title(),
                &phase.per_s,
                [
                    micros(phase.p50_us.median),
                    micros(phase.p99_us.median),
                    cpu(&phase.gateway_cpu_us),
                    cpu(&phase.adapter_cpu_us),
                    cpu(&phase.client_cpu_us),
                ],
            );
        }
        grid.print(ui)
    }
}

/// A bar of eighths of characters.
fn bar(share: f64) -> String {
    const PARTS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let eighths = (share.clamp(0.0, 1.0) * BAR_WIDTH * 8.0).round() as usize;
    let mut text = "█".repeat(eighths / 8);
    text.push(PARTS[eighths % 8]);
    text.trim_end().to_owned()
}

pub(super) fn mib(kib: u64) -> f64 {
    rounded(kib as f64 / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_share() {
        assert_eq!(bar(1.0), "█".repeat(16));
        assert_eq!(bar(0.5), "█".repeat(8));
        assert_eq!(bar(1.5 / 16.0), "█▌");
        assert_eq!((bar(0.0), bar(f64::NAN)), (String::new(), String::new()));
    }
}
