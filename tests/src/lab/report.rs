//! What a long run reports.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::verdict::Verdict;

/// What one scenario has done in its time.
#[derive(Debug)]
pub struct Report {
    name: String,
    started: Instant,
    took: Option<Duration>,
    pub rounds: u64,
    /// Processes killed.
    pub kills: u64,
    /// All rounds' verdicts together.
    pub verdict: Verdict,
    notes: Vec<String>,
    failures: Vec<String>,
}

impl Report {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            started: Instant::now(),
            took: None,
            rounds: 0,
            kills: 0,
            verdict: Verdict::default(),
            notes: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Whether there is time for more.
    pub fn has_time(&self, budget: Duration) -> bool {
        self.started.elapsed() < budget
    }

    /// Adds a judged history.
    pub fn judge(&mut self, verdict: Verdict) {
        self.verdict.add(verdict);
    }

    /// A figure worth telling.
    pub fn note(&mut self, line: impl Into<String>) {
        self.notes.push(line.into());
    }

    /// Something that the judge does not look for has failed; `what` says how to see it again, with the seed.
    pub fn fail(&mut self, what: impl Into<String>) {
        self.failures.push(what.into());
    }

    /// Its time is over.
    pub fn end(&mut self) {
        self.took = Some(self.started.elapsed());
    }

    fn seconds(&self) -> u64 {
        self.took.unwrap_or_else(|| self.started.elapsed()).as_secs()
    }

    pub fn is_clean(&self) -> bool {
        self.failures.is_empty() && self.verdict.is_clean()
    }

    pub fn to_json(&self) -> Value {
        json!({
            "scenario": self.name,
            "seconds": self.seconds(),
            "rounds": self.rounds,
            "kills": self.kills,
            "verdict": self.verdict.to_json(),
            "notes": self.notes,
            "failures": self.failures,
        })
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = if self.is_clean() { "clean" } else { "FAILED" };
        let (name, seconds) = (&self.name, self.seconds());
        write!(f, "{name}: {word} in {seconds} s")?;
        if self.rounds > 0 {
            write!(f, "; {} rounds, {} kills", self.rounds, self.kills)?;
        }
        if self.verdict.log_entries > 0 {
            write!(f, "\n  {}", self.verdict)?;
        }
        for line in &self.notes {
            write!(f, "\n  {line}")?;
        }
        for failure in &self.failures {
            write!(f, "\n  FAILED: {failure}")?;
        }
        Ok(())
    }
}
