//! Times, spans, sizes and counts as people read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gatepost_core::Timestamp;
use uuid::Uuid;

/// The wall clock; for display and for filters only.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// `412 µs`, `3.1 ms`, `12.0 s`, `4m 05s`, `3h 10m`, `2d 4h`.
pub(crate) fn span(span: Duration) -> String {
    let micros = span.as_micros();
    let seconds = span.as_secs();
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        1_000_000..60_000_000 => format!("{:.1} s", micros as f64 / 1e6),
        _ if seconds < 3_600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ if seconds < 86_400 => format!("{}h {:02}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// `3.1 s ago`; the text itself when it is no timestamp.
pub(crate) fn ago(rfc3339: &str) -> String {
    Timestamp::parse_rfc3339(rfc3339)
        .map_or_else(|| rfc3339.to_owned(), |at| format!("{} ago", span(now().since(at))))
}

/// `2026-11-23 21:03:13Z`.
pub(crate) fn date_time(rfc3339: &str) -> String {
    match (rfc3339.get(..10), rfc3339.get(11..19)) {
        (Some(date), Some(time)) if rfc3339.is_ascii() => format!("{date} {time}Z"),
        _ => rfc3339.to_owned(),
    }
}

/// `21:03:13.123456`.
pub(crate) fn time_of_day(rfc3339: &str) -> &str {
    rfc3339.get(11..26).unwrap_or(rfc3339)
}

/// `1,234,567`.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `612 B`, `3.4 KiB`, `1.2 GiB`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

pub(crate) fn plural(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(n), if n == 1 { one } else { many })
}

/// A point in time for a filter: RFC 3339, or a span back from now (`90m`, `2h 30m`, `7d`).
pub(crate) fn parse_instant(text: &str) -> Result<String, String> {
    if let Some(at) = Timestamp::parse_rfc3339(text) {
        return Ok(at.to_rfc3339());
    }
    let back = humantime::parse_duration(text).map_err(|_| {
        "neither RFC 3339 (2026-11-23T08:00:00Z) nor a span back from now (90m, 7d)".to_owned()
    })?;
    let micros = i64::try_from(back.as_micros()).map_err(|_| "too long ago".to_owned())?;
    Ok(Timestamp::from_micros(now().as_micros().saturating_sub(micros)).to_rfc3339())
}

/// The id of a message or a delivery.
pub(crate) fn parse_id(text: &str) -> Result<Uuid, String> {
    let wrong = "not the id of a message or a delivery; they look like 01a20b06-35fd-76b9-8cfe-69cf914c4ac8, and `gatepost list` shows them";
    Uuid::try_parse(text).map_err(|_| wrong.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_id_is_told_what_one_looks_like() {
        assert!(parse_id("nonsense").unwrap_err().contains("gatepost list"));
        assert!(parse_id("01a20b06-35fd-76b9-8cfe-69cf914c4ac8").is_ok());
    }

    #[test]
    fn spans_read_well_at_every_size() {
        for (micros, text) in [
            (0, "0 µs"),
            (999, "999 µs"),
            (1_500, "1.5 ms"),
            (2_000_000, "2.0 s"),
            (65_000_000, "1m 05s"),
            (3_700_000_000, "1h 01m"),
            (190_000_000_000, "2d 4h"),
        ] {
            assert_eq!(span(Duration::from_micros(micros)), text);
        }
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!((count(0), count(999), count(1_234_567)), ("0".into(), "999".into(), "1,234,567".into()));
        assert_eq!(
            (bytes(1023), bytes(1536), bytes(5 << 40)),
            ("1023 B".into(), "1.5 KiB".into(), "5.0 TiB".into())
        );
        assert_eq!(plural(1, "entry", "entries"), "1 entry");
    }

    #[test]
    fn an_instant_is_a_time_or_a_span_back() {
        assert_eq!(parse_instant("2026-11-23T09:00:00+01:00").unwrap(), "2026-11-23T08:00:00.000000Z");
        let hour_ago = Timestamp::parse_rfc3339(&parse_instant("1h").unwrap()).unwrap();
        let span = now().since(hour_ago).as_secs();
        assert!((3_600..3_700).contains(&span), "{span}");
        assert!(parse_instant("yesterday").is_err());
    }

    #[test]
    fn times_are_cut_not_parsed() {
        assert_eq!(date_time("2026-11-23T21:03:13.123456Z"), "2026-11-23 21:03:13Z");
        assert_eq!(time_of_day("2026-11-23T21:03:13.123456Z"), "21:03:13.123456");
        assert_eq!(date_time("soon"), "soon");
    }
}
