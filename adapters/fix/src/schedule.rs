//! When a session is open: windows in one time zone, daily or weekly.
//!
//! A window is known by the moment at which it begins. Sequence numbers begin anew with a new window, never because a
//! process starts or a window ends.

use jiff::civil::{Date, DateTime, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// As it stands in the settings.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScheduleSettings {
    /// IANA time zone of `start` and `end`, like `America/New_York`.
    zone: String,
    /// When a window begins, `HH:MM` or `HH:MM:SS`.
    start: String,
    /// When it ends; at or before `start` means the next day.
    end: String,
    /// On which days windows begin. Default: every day. Not with `start_day` and `end_day`.
    #[serde(default)]
    days: Option<Vec<Day>>,
    /// One window a week: the day on which it begins.
    #[serde(default)]
    start_day: Option<Day>,
    /// One window a week: the day on which it ends.
    #[serde(default)]
    end_day: Option<Day>,
    /// Whether sequence numbers begin at 1 again with each window.
    #[serde(default = "yes")]
    reset: bool,
}

fn yes() -> bool {
    true
}

/// A moment of the day, as it stands in the settings.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MomentSettings {
    /// IANA time zone of `time`, like `America/New_York`.
    zone: String,
    /// `HH:MM` or `HH:MM:SS`.
    time: String,
    /// On which days. Default: every day.
    #[serde(default)]
    days: Option<Vec<Day>>,
}

impl MomentSettings {
    /// The days that begin with these moments: a moment is the beginning of such a window.
    pub(crate) fn windows(&self) -> Result<Schedule, Vec<ScheduleFault>> {
        let days = ScheduleSettings {
            zone: self.zone.clone(),
            start: self.time.clone(),
            end: self.time.clone(),
            days: self.days.clone(),
            start_day: None,
            end_day: None,
            reset: false,
        };
        let named = |fault: ScheduleFault| match fault.key {
            "start" => Some(ScheduleFault { key: "time", ..fault }),
            // The same once more.
            "end" => None,
            _ => Some(fault),
        };
        Schedule::try_from(&days).map_err(|faults| faults.into_iter().filter_map(named).collect())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl Day {
    const ALL: [Self; 7] = [Self::Mon, Self::Tue, Self::Wed, Self::Thu, Self::Fri, Self::Sat, Self::Sun];

    fn weekday(self) -> Weekday {
        match self {
            Self::Mon => Weekday::Monday,
            Self::Tue => Weekday::Tuesday,
            Self::Wed => Weekday::Wednesday,
            Self::Thu => Weekday::Thursday,
            Self::Fri => Weekday::Friday,
            Self::Sat => Weekday::Saturday,
            Self::Sun => Weekday::Sunday,
        }
    }
}

/// What is wrong with a schedule: the key and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScheduleFault {
    pub(crate) key: &'static str,
    pub(crate) message: String,
}

#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    zone: TimeZone,
    start: Time,
    end: Time,
    /// Days on which windows begin.
    days: Vec<Weekday>,
    /// Days between the date on which a window begins and the one on which it ends.
    length_days: i64,
    reset: bool,
}

/// An open window, seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) start: i64,
    pub(crate) end: i64,
}

impl TryFrom<&ScheduleSettings> for Schedule {
    type Error = Vec<ScheduleFault>;

    fn try_from(settings: &ScheduleSettings) -> Result<Self, Vec<ScheduleFault>> {
        let mut faults = Vec::new();
        let mut fault = |key, message: &str| faults.push(ScheduleFault { key, message: message.to_owned() });
        let zone = TimeZone::get(&settings.zone).ok();
        if zone.is_none() {
            fault("zone", "is no time zone that is known; it is written like America/New_York or UTC");
        }
        let start = time_of(&settings.start);
        if start.is_none() {
            fault("start", "must be a time of day like 08:00 or 08:00:00");
        }
        let end = time_of(&settings.end);
        if end.is_none() {
            fault("end", "must be a time of day like 17:00 or 17:00:00");
        }
        let weekly = match (settings.start_day, settings.end_day) {
            (None, None) => None,
            (Some(first), Some(last)) => {
                if settings.days.is_some() {
                    fault("days", "does not go with `start_day` and `end_day`; leave it out");
                }
                Some((first, last))
            }
            (Some(_), None) | (None, Some(_)) => {
                fault("start_day", "goes with `end_day`; set both or neither");
                None
            }
        };
        if settings.days.as_ref().is_some_and(Vec::is_empty) {
            fault("days", "must name a day; leave it out for every day");
        }
        let (Some(zone), Some(start), Some(end), true) = (zone, start, end, faults.is_empty()) else {
            return Err(faults);
        };
        let overnight = i64::from(end <= start);
        let (days, length_days) = match weekly {
            Some((first, last)) => {
                let apart = first.weekday().until(last.weekday());
                let apart = i64::from(apart);
                (vec![first.weekday()], if apart == 0 && overnight == 1 { 7 } else { apart })
            }
            None => {
                let days = settings.days.as_deref().unwrap_or(&Day::ALL);
                (days.iter().map(|day| day.weekday()).collect(), overnight)
            }
        };
        Ok(Self { zone, start, end, days, length_days, reset: settings.reset })
    }
}

impl Schedule {
    /// The window that is open at `now`, seconds since 1970.
    pub(crate) fn window_at(&self, now: i64) -> Option<Window> {
        let today = Timestamp::from_second(now).ok()?.to_zoned_datetime(self.zone.clone()).date();
        // The window began today, or so many days before as it is long; one more for what zones make of midnight.
        (-1..=self.length_days)
            .filter_map(|back| today.checked_sub(back.days()).ok())
            .filter_map(|date| self.window_from(date))
            .find(|window| (window.start..window.end).contains(&now))
    }

    pub(crate) fn resets(&self) -> bool {
        self.reset
    }

    fn window_from(&self, date: Date) -> Option<Window> {
        if !self.days.contains(&date.weekday()) {
            return None;
        }
        let start = self.moment(date.to_datetime(self.start))?;
        let end = self.moment(date.checked_add(self.length_days.days()).ok()?.to_datetime(self.end))?;
        Some(Window { start, end })
    }

    /// A time that a change to summer time leaves out is taken as if the clock had not changed; of one that comes twice, the
    /// first counts.
    fn moment(&self, at: DateTime) -> Option<i64> {
        Some(self.zone.to_ambiguous_zoned_datetime(at).compatible().ok()?.timestamp().as_second())
    }
}

fn time_of(text: &str) -> Option<Time> {
    let mut parts = text.split(':').map(|part| {
        let digits = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| part.parse::<i8>().ok()).flatten()
    });
    let (hour, minute) = (parts.next()??, parts.next()??);
    let second = parts.next().map_or(Some(0), |second| second)?;
    if parts.next().is_some() {
        return None;
    }
    Time::new(hour, minute, second, 0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(json: &str) -> Schedule {
        let settings: ScheduleSettings = serde_json::from_str(json).unwrap();
        Schedule::try_from(&settings).unwrap()
    }

    fn at(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_second()
    }

    fn window(schedule: &Schedule, now: &str) -> Option<(String, String)> {
        let text = |seconds| Timestamp::from_second(seconds).unwrap().to_string();
        schedule.window_at(at(now)).map(|window| (text(window.start), text(window.end)))
    }

    fn some(start: &str, end: &str) -> Option<(String, String)> {
        Some((start.to_owned(), end.to_owned()))
    }

    #[test]
    fn a_day_of_work_in_new_york() {
        let day = schedule(
            r#"{"zone":"America/New_York","start":"08:00","end":"17:00","days":["mon","tue","wed","thu","fri"]}"#,
        );
        // Winter, summer, and the Friday before and the Monday after a change.
        for (now, expected) in [
            ("2026-01-05T12:59:59Z", None),
            ("2026-01-05T13:00:00Z", some("2026-01-05T13:00:00Z", "2026-01-05T22:00:00Z")),
            ("2026-01-05T21:59:59Z", some("2026-01-05T13:00:00Z", "2026-01-05T22:00:00Z")),
            ("2026-01-05T22:00:00Z", None),
            ("2026-07-06T12:00:00Z", some("2026-07-06T12:00:00Z", "2026-07-06T21:00:00Z")),
            ("2026-03-06T13:30:00Z", some("2026-03-06T13:00:00Z", "2026-03-06T22:00:00Z")),
            ("2026-03-09T12:30:00Z", some("2026-03-09T12:00:00Z", "2026-03-09T21:00:00Z")),
            ("2026-01-04T15:00:00Z", None),
        ] {
            assert_eq!(window(&day, now), expected, "{now}");
        }
    }

    #[test]
    fn a_night_belongs_to_the_day_on_which_it_began() {
        let night = schedule(r#"{"zone":"Europe/Berlin","start":"22:00","end":"06:00","days":["fri"]}"#);
        for (now, expected) in [
            ("2026-01-02T20:59:59Z", None),
            ("2026-01-02T21:00:00Z", some("2026-01-02T21:00:00Z", "2026-01-03T05:00:00Z")),
            ("2026-01-03T04:59:59Z", some("2026-01-02T21:00:00Z", "2026-01-03T05:00:00Z")),
            ("2026-01-03T05:00:00Z", None),
            ("2026-01-03T22:00:00Z", None),
            // The night of the change to summer time is an hour shorter, and ends at the same time of day.
            ("2026-03-28T04:59:59Z", some("2026-03-27T21:00:00Z", "2026-03-28T05:00:00Z")),
        ] {
            assert_eq!(window(&night, now), expected, "{now}");
        }
    }

    #[test]
    fn round_the_clock_windows_touch() {
        let always = schedule(r#"{"zone":"UTC","start":"00:00:00","end":"00:00:00"}"#);
        assert_eq!(
            window(&always, "2026-01-05T23:59:59Z"),
            some("2026-01-05T00:00:00Z", "2026-01-06T00:00:00Z")
        );
        assert_eq!(
            window(&always, "2026-01-06T00:00:00Z"),
            some("2026-01-06T00:00:00Z", "2026-01-07T00:00:00Z")
        );
        // Where a day has 25 hours it stays one window.
        let berlin = schedule(r#"{"zone":"Europe/Berlin","start":"00:00","end":"00:00"}"#);
        assert_eq!(
            window(&berlin, "2026-10-25T12:00:00Z"),
            some("2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z")
        );
    }

    #[test]
    fn a_week_is_one_window_whatever_clocks_do() {
        let week = schedule(
            r#"{"zone":"America/New_York","start":"17:00","end":"16:30","start_day":"sun","end_day":"fri"}"#,
        );
        let expected = some("2026-03-01T22:00:00Z", "2026-03-06T21:30:00Z");
        for now in ["2026-03-01T22:00:00Z", "2026-03-04T00:00:00Z", "2026-03-06T21:29:59Z"] {
            assert_eq!(window(&week, now), expected, "{now}");
        }
        assert_eq!(window(&week, "2026-03-07T12:00:00Z"), None);
        // Begins after clocks have changed that very morning.
        assert_eq!(
            window(&week, "2026-03-10T00:00:00Z"),
            some("2026-03-08T21:00:00Z", "2026-03-13T20:30:00Z")
        );
        // From a day to itself is a whole week, if the end is not later than the start.
        let whole =
            schedule(r#"{"zone":"UTC","start":"17:00","end":"17:00","start_day":"sun","end_day":"sun"}"#);
        assert_eq!(
            window(&whole, "2026-03-07T12:00:00Z"),
            some("2026-03-01T17:00:00Z", "2026-03-08T17:00:00Z")
        );
    }

    #[test]
    fn times_that_clocks_leave_out_or_repeat() {
        // 02:30 does not exist in Berlin on 29 March 2026 and exists twice on 25 October.
        let day = schedule(r#"{"zone":"Europe/Berlin","start":"02:30","end":"12:00"}"#);
        assert_eq!(
            window(&day, "2026-03-29T03:00:00Z"),
            some("2026-03-29T01:30:00Z", "2026-03-29T10:00:00Z")
        );
        assert_eq!(
            window(&day, "2026-10-25T03:00:00Z"),
            some("2026-10-25T00:30:00Z", "2026-10-25T11:00:00Z")
        );
    }

    #[test]
    fn every_fault_is_told() {
        let faults = |json: &str| -> Vec<&'static str> {
            let settings: ScheduleSettings = serde_json::from_str(json).unwrap();
            Schedule::try_from(&settings).unwrap_err().into_iter().map(|fault| fault.key).collect()
        };
        assert_eq!(
            faults(r#"{"zone":"Mars/Olympus","start":"8:00","end":"24:00"}"#),
            ["zone", "start", "end"]
        );
        assert_eq!(faults(r#"{"zone":"UTC","start":"08:00","end":"17:00","days":[]}"#), ["days"]);
        assert_eq!(
            faults(r#"{"zone":"UTC","start":"08:00:00:00","end":"+7:00","start_day":"mon"}"#),
            ["start", "end", "start_day"]
        );
        assert_eq!(
            faults(
                r#"{"zone":"UTC","start":"08:00","end":"17:00","days":["mon"],"start_day":"mon","end_day":"fri"}"#
            ),
            ["days"]
        );
    }
}
