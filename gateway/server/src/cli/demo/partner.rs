//! The demo's partner: `gatepost-hl7 listen`, a process of its own that takes HL7 over MLLP and logs what it took. Its log is
//! the only witness of what arrived.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::super::ADAPTER_EXEC;
use super::super::failure::Failure;
use super::super::scratch::{Ends, program_beside, this_program};

const START_DEADLINE: Duration = Duration::from_secs(10);
/// A partner takes its time to answer: so there is something on the way whenever the gateway dies.
const ANSWER_AFTER_MS: &str = "3";

pub(super) struct Partner {
    _child: Child,
    pub(super) pid: u32,
    /// `127.0.0.1:PORT`
    pub(super) address: String,
    log: PathBuf,
}

/// One line of its log.
#[derive(Deserialize)]
struct Line {
    control_id: String,
}

/// What arrived, in order.
#[derive(Debug, Default)]
pub(super) struct Arrivals(Vec<String>);

impl Partner {
    pub(super) async fn start(dir: &Path, ends: Ends) -> Result<Self, Failure> {
        let program = program_beside("gatepost-hl7")?;
        let log = dir.join("partner.jsonl");
        let errors = dir.join("partner.err");
        let errors = std::fs::File::create(&errors)
            .map_err(Failure::io(format!("cannot write {}", errors.display())))?;
        let mut command = match ends {
            // As the gateway starts its adapters: it then dies with its parent, however that ends.
            Ends::WithUs => {
                let mut command = Command::new(this_program()?);
                command
                    .args([ADAPTER_EXEC, "--parent", &std::process::id().to_string(), "partner", "--"])
                    .arg(&program);
                command
            }
            Ends::Later => Command::new(&program),
        };
        let mut child = command
            .args(["listen", "--port", "0", "--delay-ms", ANSWER_AFTER_MS, "--log"])
            .arg(&log)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .process_group(0)
            .kill_on_drop(ends == Ends::WithUs)
            .spawn()
            .map_err(Failure::io(format!("cannot start {}", program.display())))?;
        let pid = child.id().unwrap_or_default();
        let address = timeout(START_DEADLINE, address(&mut child)).await.ok().flatten();
        let address = address.ok_or_else(|| {
            Failure::unsuccessful(format!("`{} listen` did not say where it listens", program.display()))
        })?;
        Ok(Self { _child: child, pid, address, log })
    }

    pub(super) fn arrivals(&self) -> Result<Arrivals, Failure> {
        // It writes whole lines; before its first message there is no file.
        let text = match std::fs::read_to_string(&self.log) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(Failure::io(format!("cannot read {}", self.log.display()))(error)),
        };
        let ids = text.lines().map(|line| serde_json::from_str::<Line>(line).map(|line| line.control_id));
        let ids = ids.collect::<Result<_, _>>();
        ids.map(Arrivals)
            .map_err(|error| Failure::unsuccessful(format!("the partner's log is not as expected: {error}")))
    }
}

/// Reads what it says until it says where it listens; what it says later is read by nobody, and goes nowhere.
async fn address(child: &mut Child) -> Option<String> {
    let mut lines = BufReader::new(child.stdout.take()?).lines();
    let address = loop {
        let line = lines.next_line().await.ok()??;
        if let Some(address) = line.strip_prefix("listening on ") {
            break address.trim().to_owned();
        }
    };
    // The pipe must be drained, or the partner would stop at a full one.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Some(address)
}

impl Arrivals {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// How often each message arrived.
    pub(super) fn counts(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for id in &self.0 {
            *counts.entry(id.as_str()).or_default() += 1;
        }
        counts
    }

    /// Whether `series` first arrived in this order.
    pub(super) fn in_order<'a>(&self, series: impl IntoIterator<Item = &'a str>) -> bool {
        let first = |id: &str| self.0.iter().position(|arrived| arrived == id);
        let positions: Vec<_> = series.into_iter().map(first).collect();
        positions.is_sorted() && positions.iter().all(Option::is_some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_that_of_first_arrivals() {
        let arrivals = Arrivals(["a1", "b1", "a2", "a2", "b2", "a3"].map(str::to_owned).to_vec());
        assert!(arrivals.in_order(["a1", "a2", "a3"]));
        assert!(arrivals.in_order(["b1", "b2"]));
        assert!(!arrivals.in_order(["a2", "a1"]));
        assert!(!arrivals.in_order(["a1", "a4"]));
        assert_eq!(arrivals.counts()["a2"], 2);
        assert_eq!(arrivals.len(), 6);
    }
}
