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
    /// Messages handed in.
    pub(crate) rate: Option<Rate>,
    /// Requests of any kind.
    pub(crate) request_rate: Option<Rate>,
    /// Request bodies that have begun to come in and are not answered, bytes.
    pub(crate) bytes_in_flight: Option<u64>,
    /// Open requests.
    pub(crate) requests: Option<usize>,
    /// Open connections, over all listeners.
    pub(crate) connections: Option<usize>,
    /// Deliveries that it has handed in and that are not settled, and their bytes.
    pub(crate) backlog: Option<BacklogLimit>,
}

/// Of messages or requests: on average, and at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) count: NonZeroU64,
    pub(crate) per: Duration,
    pub(crate) burst: NonZeroU64,
}

pub(super) const RATE_PATTERN: &str = "^[1-9][0-9]{0,6}/(s|m)$";
/// More than any store takes; seven digits, as in the pattern.
const RATE_MAX: u64 = 9_999_999;

pub(super) fn read(owner: &Section<'_>, report: &mut Report<'_>) -> PrincipalLimits {
    let Some(section) = owner.table("limits") else { return PrincipalLimits::default() };
    let mut rate = section.text("rate").and_then(|text| self::rate(&text, report));
    if let Some(burst) = section.count("burst") {
        match (&mut rate, NonZeroU64::new(burst.value)) {
            (Some(rate), Some(burst)) => rate.burst = burst,
            _ if section.has("rate") => {}
            _ => report
                .add(&burst.spot, "says how far `rate` may be exceeded for a moment: add rate = \"100/s\""),
        }
    }
    let count = |key| section.count(key).and_then(|count| usize::try_from(count.value).ok());
    PrincipalLimits {
        rate,
        request_rate: section.text("request_rate").and_then(|text| self::rate(&text, report)),
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

/// With as much at once as there is in a second.
fn rate(text: &Item<&str>, report: &mut Report<'_>) -> Option<Rate> {
    let parsed = text.value.split_once('/').and_then(|(number, unit)| {
        let per = match unit {
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            _ => return None,
        };
        let digits = number.bytes().all(|byte| byte.is_ascii_digit());
        let count = number.parse::<u64>().ok().filter(|count| digits && *count <= RATE_MAX)?;
        Some((NonZeroU64::new(count)?, per))
    });
    let Some((count, per)) = parsed else {
        report.add(
            &text.spot,
            "not a rate: write how many per second or minute, such as \"100/s\" or \"6000/m\"",
        );
        return None;
    };
    let burst = NonZeroU64::new(count.get().div_ceil(per.as_secs())).unwrap_or(NonZeroU64::MIN);
    Some(Rate { count, per, burst })
}
