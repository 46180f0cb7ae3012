//! Store time: microseconds since the Unix epoch. It comes from the store, never from the process's wall clock.

use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Time since `earlier`, zero if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }

    /// RFC 3339 in UTC with six decimals.
    pub fn to_rfc3339(self) -> String {
        let nanos = i128::from(self.0) * 1000;
        let Ok(time) = time::OffsetDateTime::from_unix_timestamp_nanos(nanos) else {
            return "out of range".to_owned();
        };
        format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
            time.year(),
            u8::from(time.month()),
            time.day(),
            time.hour(),
            time.minute(),
            time.second(),
            time.microsecond()
        )
    }

    /// Parses RFC 3339 with any offset; fractions beyond microseconds are cut.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let time = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()?;
        i64::try_from(time.unix_timestamp_nanos() / 1000).ok().map(Self)
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(micros(span)))
    }
}

/// What a destination's clock of idle time showed when a delivery's series began, microseconds. Each pause that only the delivery had
/// puts it back by as much, perhaps below zero, so that the pause counts as idle time for it alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IdleMark(i64);

impl IdleMark {
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Idle time from there to `total`.
    pub fn until(self, total: Duration) -> Duration {
        Duration::from_micros(u64::try_from(micros(total).saturating_sub(self.0)).unwrap_or(0))
    }

    #[must_use]
    pub fn put_back(self, pause: Duration) -> Self {
        Self(self.0.saturating_sub(micros(pause)))
    }

    /// Of a pause that was put back, what is not to count: it was not waited for, or counts as the destination's.
    #[must_use]
    pub fn put_forward(self, span: Duration) -> Self {
        Self(self.0.saturating_add(micros(span)))
    }
}

impl From<Duration> for IdleMark {
    fn from(total: Duration) -> Self {
        Self(micros(total))
    }
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3339_round_trip() {
        let text = "2026-11-23T08:50:12.123456Z";
        let time = Timestamp::parse_rfc3339(text).unwrap();
        assert_eq!(time.to_rfc3339(), text);
        assert_eq!(Timestamp::parse_rfc3339("2026-11-23T09:50:12.123456+01:00"), Some(time));
        assert_eq!(Timestamp::parse_rfc3339("yesterday"), None);
    }
}
