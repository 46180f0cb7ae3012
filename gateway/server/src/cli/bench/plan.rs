//! What is to be measured, as the command line says it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use gatepost_core::message::INLINE_DATA_BYTES_MAX;

use super::super::text;
use super::neighbours::kind::Kind as Neighbour;
use super::request::PAYLOAD_BYTES_MIN;
use super::senders::Until;
use super::site::Layout;

/// Seconds of a phase.
const SECONDS_DEFAULT: u64 = 5;
const SECONDS_QUICK: u64 = 1;
const RUNS_DEFAULT: u32 = 3;
const RUNS_QUICK: u32 = 1;
/// A phase is warmed up for this part of its length, which is not counted.
const WARM_UP_PART: u32 = 5;
const WARM_UP_MESSAGES_MAX: u64 = 2_000;
pub(super) const SENDERS_BATCH: u64 = 8;
/// Messages of a batch, fewer if they are large.
const BATCH: u64 = 100;
const BATCH_BYTES_MAX: u64 = 16 * 1024 * 1024;
const PARTNER_DELAY_MAX: Duration = Duration::from_secs(10);
/// One sender alone is slow: a tenth of the messages says as much.
const SERIAL_PART: u64 = 10;

#[derive(Debug, clap::Args)]
pub(crate) struct Bench {
    /// Length of each phase under load, seconds [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: Option<u64>,
    /// Messages of each phase under load, in place of a time
    #[arg(long, value_name = "N", conflicts_with_all = ["seconds", "quick"], value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    messages: Option<u64>,
    /// One run of one second for each phase
    #[arg(long, conflicts_with = "seconds")]
    quick: bool,
    /// Runs, each on a gateway with an empty store; medians are shown [default: 3, with --quick 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: Option<u32>,
    /// Only these phases
    #[arg(long, value_name = "PHASE", value_enum, value_delimiter = ',')]
    only: Vec<Want>,
    /// Senders of single messages, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=512))]
    senders: u64,
    /// Sizes of the payload; each is measured
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_value = "1024", value_parser = payload_bytes)]
    payload: Vec<usize>,
    /// Give the messages one of N ordering keys and deliver in order per key (0: no order)
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=1_000_000_000))]
    keys: u64,
    /// Spread what is delivered over N destinations, each with an adapter process of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100))]
    destinations: u64,
    /// How long the partner takes for a delivery; each is measured
    #[arg(long, value_name = "TIME", value_delimiter = ',', default_value = "0ms", value_parser = partner_delay)]
    partner_delay: Vec<Duration>,
    /// Measure with 0, 10,000, 100,000 … N messages waiting instead: latencies, start after kill -9, memory
    #[arg(long, value_name = "N", conflicts_with_all = ["messages", "runs", "only", "senders", "destinations", "partner_delay"], value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub(super) backlog: Option<u64>,
    /// Measure what greedy or broken clients cost a well-behaved one instead: its latencies alone and beside each kind, or those that are named
    #[arg(long, value_name = "KIND", value_enum, value_delimiter = ',', num_args = 0.., require_equals = true, conflicts_with_all = ["messages", "only", "senders", "keys", "destinations", "partner_delay", "backlog", "nodes", "plain"])]
    pub(super) neighbours: Option<Vec<Neighbour>>,
    /// Keep the messages in PostgreSQL: FILE holds the address of a server, on which a database is made and dropped again
    #[arg(long, value_name = "FILE")]
    pub(super) postgres: Option<PathBuf>,
    /// So many gateways on that database, each with adapters of its own; the senders are spread over them
    #[arg(long, value_name = "N", requires = "postgres", conflicts_with = "backlog", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    nodes: u32,
    /// Without encryption at rest and without the adapters' sandbox, to see what they cost
    #[arg(long, conflicts_with = "backlog")]
    plain: bool,
    /// Where to put the temporary data: the disk that is measured [default: the directory for temporary files]
    #[arg(long, value_name = "DIR")]
    pub(super) dir: Option<PathBuf>,
}

/// Messages of a batch with such payloads.
pub(super) fn batch(payload_bytes: usize) -> u64 {
    BATCH.min(BATCH_BYTES_MAX / payload_bytes as u64).max(1)
}

fn payload_bytes(text: &str) -> Result<usize, String> {
    let max = INLINE_DATA_BYTES_MAX as usize;
    let bytes = text.parse().ok().filter(|bytes| (PAYLOAD_BYTES_MIN..=max).contains(bytes));
    bytes.ok_or_else(|| format!("a number of bytes from {PAYLOAD_BYTES_MIN} to {max}"))
}

fn partner_delay(text: &str) -> Result<Duration, String> {
    let delay = humantime::parse_duration(text).ok().filter(|delay| *delay <= PARTNER_DELAY_MAX);
    delay.ok_or_else(|| format!("a time up to {} s, like 0ms or 25ms", PARTNER_DELAY_MAX.as_secs()))
}

/// The phases by the names that `--json` gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum Want {
    /// Accept: one sender, one message at a time
    #[value(name = "accept_serial")]
    Serial,
    /// Accept: many senders, single messages
    Accept,
    /// Accept: 8 senders, batches of 100
    AcceptBatch,
    /// Accepted, delivered by the adapter, settled: single messages
    #[value(name = "e2e")]
    EndToEnd,
    /// The same in batches
    #[value(name = "e2e_batch")]
    EndToEndBatch,
    /// From one settle to the next in a queue in strict order
    Strict,
}

impl Want {
    const ALL: [Self; 6] =
        [Self::Serial, Self::Accept, Self::AcceptBatch, Self::EndToEnd, Self::EndToEndBatch, Self::Strict];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Serial => "accept_serial",
            Self::Accept => "accept",
            Self::AcceptBatch => "accept_batch",
            Self::EndToEnd => "e2e",
            Self::EndToEndBatch => "e2e_batch",
            Self::Strict => "strict",
        }
    }
}

/// One row of the report.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Phase {
    pub(super) want: Want,
    pub(super) payload_bytes: usize,
    pub(super) senders: u64,
    /// Messages of one request.
    pub(super) batch: u64,
    pub(super) partner_delay: Duration,
    /// Which of the plan's delays that is.
    pub(super) delay_index: usize,
}

impl Phase {
    pub(super) fn title(&self) -> String {
        let senders = text::plural(self.senders, "sender", "senders");
        let batches = format!("{senders}, batches of {}", self.batch);
        let partner = match self.partner_delay {
            Duration::ZERO => String::new(),
            delay => format!(", partner {}", text::span(delay)),
        };
        match self.want {
            Want::Serial => "accept, one sender".to_owned(),
            Want::Accept => format!("accept, {senders}"),
            Want::AcceptBatch => format!("accept, {batches}"),
            Want::EndToEnd => format!("end to end, {senders}{partner}"),
            Want::EndToEndBatch => format!("end to end, {batches}{partner}"),
            Want::Strict => "strict order, settle to settle".to_owned(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) runs: u32,
    pub(super) senders: u64,
    pub(super) payloads: Vec<usize>,
    pub(super) keys: u64,
    pub(super) destinations: u64,
    pub(super) partner_delays: Vec<Duration>,
    /// Where the address of the PostgreSQL server is; without it SQLite.
    pub(super) postgres: Option<PathBuf>,
    pub(super) nodes: u32,
    /// Nothing is encrypted at rest, and adapters have no sandbox.
    pub(super) plain: bool,
    /// Length of a measurement that has no messages to count.
    pub(super) span: Duration,
    wanted: BTreeSet<Want>,
    until: Until,
}

impl Plan {
    pub(super) fn new(args: &Bench) -> Self {
        let seconds = if args.quick { SECONDS_QUICK } else { args.seconds.unwrap_or(SECONDS_DEFAULT) };
        let span = Duration::from_secs(seconds);
        let only = if args.only.is_empty() { &Want::ALL[..] } else { &args.only };
        Self {
            runs: args.runs.unwrap_or(if args.quick { RUNS_QUICK } else { RUNS_DEFAULT }),
            senders: args.senders,
            payloads: args.payload.clone(),
            keys: args.keys,
            destinations: args.destinations,
            partner_delays: args.partner_delay.clone(),
            postgres: args.postgres.clone(),
            nodes: args.nodes,
            plain: args.plain,
            wanted: only.iter().copied().collect(),
            span,
            until: args.messages.map_or(Until::Elapsed(span), Until::Messages),
        }
    }

    /// Where only one size is measured, the first.
    pub(super) fn payload_bytes(&self) -> usize {
        self.payloads.first().copied().unwrap_or_default()
    }

    pub(super) fn layout(&self) -> Layout<'_> {
        Layout {
            keys: self.keys,
            destinations: self.destinations,
            partner_delays: &self.partner_delays,
            plain: self.plain,
        }
    }

    /// The phases of a run with payloads of one size, in their order.
    pub(super) fn phases(&self, payload_bytes: usize) -> Vec<Phase> {
        let batch = batch(payload_bytes);
        let one = |want, senders, batch| Phase {
            want,
            payload_bytes,
            senders,
            batch,
            partner_delay: Duration::ZERO,
            delay_index: 0,
        };
        let mut phases = Vec::new();
        for want in &self.wanted {
            match want {
                Want::Serial => phases.push(one(*want, 1, 1)),
                Want::Strict => phases.push(one(*want, 0, 1)),
                Want::Accept => phases.push(one(*want, self.senders, 1)),
                Want::AcceptBatch => phases.push(one(*want, SENDERS_BATCH, batch)),
                Want::EndToEnd => self.for_each_partner(&mut phases, &one(*want, self.senders, 1)),
                Want::EndToEndBatch => self.for_each_partner(&mut phases, &one(*want, SENDERS_BATCH, batch)),
            }
        }
        phases
    }

    fn for_each_partner(&self, phases: &mut Vec<Phase>, phase: &Phase) {
        for (delay_index, &partner_delay) in self.partner_delays.iter().enumerate() {
            phases.push(Phase { partner_delay, delay_index, ..phase.clone() });
        }
    }

    /// How long the phase is.
    pub(super) fn until(&self, phase: &Phase) -> Until {
        match (self.until, phase.want) {
            (Until::Messages(messages), Want::Serial | Want::Strict) => {
                Until::Messages(messages.div_ceil(SERIAL_PART))
            }
            (until, _) => until,
        }
    }

    /// How long it runs before that without being counted.
    pub(super) fn warm_up(&self, phase: &Phase) -> Option<Until> {
        match (self.until(phase), phase.want) {
            // It fills its queue first, which is warm-up enough.
            (_, Want::Strict) => None,
            (Until::Elapsed(span), _) => Some(Until::Elapsed(span / WARM_UP_PART)),
            (Until::Messages(messages), _) => {
                Some(Until::Messages((messages / u64::from(WARM_UP_PART)).clamp(1, WARM_UP_MESSAGES_MAX)))
            }
        }
    }

    /// For people: how long a phase is.
    pub(super) fn length(&self) -> String {
        match self.until {
            Until::Elapsed(span) => format!("{} s", span.as_secs()),
            Until::Messages(messages) => text::plural(messages, "message", "messages"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        bench: Bench,
    }

    fn plan(line: &str) -> Plan {
        Plan::new(&Line::try_parse_from(line.split(' ')).map_err(|error| error.to_string()).unwrap().bench)
    }

    fn names(plan: &Plan) -> Vec<&'static str> {
        plan.phases(1024).iter().map(|phase| phase.want.name()).collect()
    }

    #[test]
    fn everything_is_measured_unless_only_some_phases_are_wanted() {
        assert_eq!(
            names(&plan("bench")),
            ["accept_serial", "accept", "accept_batch", "e2e", "e2e_batch", "strict"]
        );
        assert_eq!(names(&plan("bench --only e2e,accept")), ["accept", "e2e"]);
    }

    #[test]
    fn the_names_on_the_command_line_are_those_of_json() {
        use clap::ValueEnum as _;
        for want in Want::ALL {
            assert_eq!(want.to_possible_value().unwrap().get_name(), want.name());
        }
    }

    #[test]
    fn each_partner_has_its_end_to_end_phases() {
        let plan = plan("bench --partner-delay 0ms,25ms --senders 16");
        let phases = plan.phases(1024);
        assert_eq!(
            names(&plan),
            ["accept_serial", "accept", "accept_batch", "e2e", "e2e", "e2e_batch", "e2e_batch", "strict"]
        );
        assert_eq!((phases[4].delay_index, phases[4].partner_delay), (1, Duration::from_millis(25)));
        assert_eq!(phases[4].title(), "end to end, 16 senders, partner 25.0 ms");
    }

    #[test]
    fn batches_of_large_payloads_stay_within_the_limit() {
        let phases = plan("bench --only accept_batch").phases(1024 * 1024);
        assert_eq!(phases[0].batch, 16);
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        for line in
            ["bench --payload 1", "bench --payload 2000000", "bench --partner-delay soon", "bench --keys -1"]
        {
            assert!(Line::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn lengths_are_as_asked_for_and_warm_ups_shorter() {
        let plan = plan("bench --messages 1000 --runs 2");
        let phases = plan.phases(1024);
        assert!(matches!(plan.until(&phases[0]), Until::Messages(100)));
        assert!(matches!(plan.until(&phases[1]), Until::Messages(1000)));
        assert!(matches!(plan.warm_up(&phases[1]), Some(Until::Messages(200))));
        assert!(plan.warm_up(&phases[5]).is_none());
        assert_eq!(plan.runs, 2);
    }
}
