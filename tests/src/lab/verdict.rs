//! What the judge says.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

/// Findings of one kind that are shown; all are counted.
const SHOWN_MAX: usize = 12;

/// What can be wrong, each counted by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An accepted message has not ended and is not listed as held, or is called delivered and never arrived.
    Lost,
    /// It was accepted twice, or arrived more often than it was begun, or again without a person's word where one is needed.
    Duplicated,
    /// First arrivals or first successes of a lane in another order than that of acceptance.
    Reordered,
    /// Something arrived or was recorded that nobody sent, or that was refused.
    Phantom,
    TornBatch,
    /// Outcome, emitted message and state of one settle are not all there or all absent.
    TornSettle,
    /// A settle whose token was not the newest changed something.
    StaleSettle,
    /// The log does not verify, does not agree with the database, or lacks what happened.
    Log,
    /// Called ready while work did not move.
    FalseHealth,
}

impl Kind {
    pub const ALL: [Self; 9] = [
        Self::Lost,
        Self::Duplicated,
        Self::Reordered,
        Self::Phantom,
        Self::TornBatch,
        Self::TornSettle,
        Self::StaleSettle,
        Self::Log,
        Self::FalseHealth,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Duplicated => "duplicated",
            Self::Reordered => "reordered",
            Self::Phantom => "phantom",
            Self::TornBatch => "torn batches",
            Self::TornSettle => "torn settles",
            Self::StaleSettle => "stale settles that changed something",
            Self::Log => "faults of the audit log",
            Self::FalseHealth => "false health",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub kind: Kind,
    pub what: String,
}

#[derive(Clone, Debug, Default)]
pub struct Verdict {
    pub findings: Vec<Finding>,
    /// Messages that senders were told are accepted.
    pub accepted: u64,
    /// How their deliveries ended: `delivered`, `dead: poison`, …; `held` are those that wait for a person.
    pub ended: BTreeMap<String, u64>,
    /// Arrivals at partners.
    pub effects: u64,
    /// Arrivals beyond the first that are allowed, by why.
    pub doubled: BTreeMap<String, u64>,
    pub log_entries: u64,
}

impl Verdict {
    pub(super) fn find(&mut self, kind: Kind, what: impl Into<String>) {
        self.findings.push(Finding { kind, what: what.into() });
    }

    pub fn count(&self, kind: Kind) -> usize {
        self.findings.iter().filter(|finding| finding.kind == kind).count()
    }

    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// Fails the test that asks, with everything that was found.
    #[track_caller]
    pub fn expect_clean(&self) {
        assert!(self.is_clean(), "{self}");
    }

    pub fn to_json(&self) -> Value {
        let counts = Kind::ALL.map(|kind| (kind.as_str().to_owned(), json!(self.count(kind))));
        let findings =
            self.findings.iter().map(|finding| format!("{}: {}", finding.kind.as_str(), finding.what));
        json!({
            "accepted": self.accepted,
            "ended": self.ended,
            "effects": self.effects,
            "doubled": self.doubled,
            "log_entries": self.log_entries,
            "counts": Value::Object(counts.into_iter().collect()),
            "findings": findings.collect::<Vec<_>>(),
        })
    }

    /// Adds another round's.
    pub fn add(&mut self, other: Self) {
        self.findings.extend(other.findings);
        self.accepted += other.accepted;
        self.effects += other.effects;
        self.log_entries += other.log_entries;
        for (how, count) in other.ended {
            *self.ended.entry(how).or_default() += count;
        }
        for (why, count) in other.doubled {
            *self.doubled.entry(why).or_default() += count;
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} messages accepted", self.accepted)?;
        for (how, count) in &self.ended {
            write!(f, ", {count} {how}")?;
        }
        write!(f, "; {} arrivals", self.effects)?;
        for (why, count) in &self.doubled {
            write!(f, ", {count} again ({why})")?;
        }
        write!(f, "; {} log entries", self.log_entries)?;
        for kind in Kind::ALL {
            write!(f, "; {} = {}", kind.as_str(), self.count(kind))?;
        }
        for kind in Kind::ALL {
            let findings = self.findings.iter().filter(|finding| finding.kind == kind);
            for finding in findings.take(SHOWN_MAX) {
                write!(f, "\n  {}: {}", kind.as_str(), finding.what)?;
            }
        }
        Ok(())
    }
}
