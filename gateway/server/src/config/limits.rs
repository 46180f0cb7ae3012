//! `limits` of an app or an adapter: what one principal may take, so that the others go on.

use std::num::NonZeroU64;
use std::time::Duration;

use gatepost_core::policy::BacklogLimit;

use super::fault::Report;
use super::section::{Item, Section};
use super::units::SIZE_BYTES_MAX;

/// What one principal may take. What is not limited here is bounded by what every principal may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PrincipalLimits {
    pub(crate) rate: Option<Rate>,
    /// Request bodies that have begun to come in and are not answered, bytes.
    pub(crate) bytes_in_flight: Option<u64>,
    /// Open requests.
    pub(crate) requests: Option<usize>,
    /// Open connections, over all listeners.
    pub(crate) connections: Option<usize>,
    /// Deliveries that it has handed in and that are not settled, and their bytes.
    pub(crate) backlog: Option<BacklogLimit>,
}

/// Messages handed in: on average, and at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) messages: NonZeroU64,
    pub(crate) per: Duration,
    pub(crate) burst: NonZeroU64,
}

pub(super) const RATE_PATTERN: &str = "^[1-9][0-9]{0,6}/(s|m)$";
/// More than any store takes; seven digits, as in the pattern.
const RATE_MAX: u64 = 9_999_999;

pub(super) fn read(owner: &Section<'_>, report: &mut Report<'_>) -> PrincipalLimits {
    let Some(section) = owner.table("limits") else { return PrincipalLimits::default() };
    let rate = section.text("rate").and_then(|rate| self::rate(&rate, &section, report));
    if let Some(burst) = section.count("burst")
        && !section.has("rate")
    {
        report.add(&burst.spot, "says how far `rate` may be exceeded for a moment: add rate = \"100/s\"");
    }
    let count = |key| section.count(key).and_then(|count| usize::try_from(count.value).ok());
    PrincipalLimits {
        rate,
        bytes_in_flight: section.size("bytes_in_flight").map(|size| size.value),
        requests: count("requests"),
        connections: count("connections"),
        backlog: section.table("backlog").and_then(|section| backlog(&section, report)),
    }
}

/// Of a sender or of a queue.
pub(super) fn backlog(section: &Section<'_>, report: &mut Report<'_>) -> Option<BacklogLimit> {
    if !section.has("messages") && !section.has("bytes") {
        report.add(&section.spot, "limits nothing: give `messages`, `bytes` or both");
        return None;
    }
    let messages = section.count("messages").map_or(SIZE_BYTES_MAX, |count| count.value);
    Some(BacklogLimit { messages, bytes: section.size("bytes").map_or(SIZE_BYTES_MAX, |size| size.value) })
}

fn rate(text: &Item<&str>, section: &Section<'_>, report: &mut Report<'_>) -> Option<Rate> {
    let parsed = text.value.split_once('/').and_then(|(number, unit)| {
        let per = match unit {
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            _ => return None,
        };
        let digits = number.bytes().all(|byte| byte.is_ascii_digit());
        let messages = number.parse::<u64>().ok().filter(|messages| digits && *messages <= RATE_MAX)?;
        Some((NonZeroU64::new(messages)?, per))
    });
    let Some((messages, per)) = parsed else {
        report.add(
            &text.spot,
            "not a rate: write messages per second or minute, such as \"100/s\" or \"6000/m\"",
        );
        return None;
    };
    // What it may send in a second.
    let usual = NonZeroU64::new(messages.get().div_ceil(per.as_secs())).unwrap_or(NonZeroU64::MIN);
    let burst = section.count("burst").and_then(|burst| NonZeroU64::new(burst.value)).unwrap_or(usual);
    Some(Rate { messages, per, burst })
}
