//! The fault laboratory's judge: from what senders were answered, what partners saw and what the audit log says, and from nothing
//! else, it says what was lost, doubled, reordered or misreported. It never looks into the gateway's tables.

mod book;
mod check;
mod history;
mod report;
mod verdict;

pub use check::check;
pub use history::{
    Answer, Combined, Effect, HealthSample, History, LateSettle, Order, Partner, Submission, Submitted,
};
pub use report::Report;
pub use verdict::{Finding, Kind, Verdict};

#[cfg(test)]
mod tests;
