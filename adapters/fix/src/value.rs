//! Values of fields, read by the exact rules of the specification (FIX 4.4 volume 1, "FIX data types").
//!
//! Readers say yes or no and never guess: no spaces around numbers, no `+`, no exponent, nothing behind a time.

use std::fmt;

use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time};

/// A field's number. 0 stands for a number that is no tag: 0 itself, a negative one, one with leading zeros or more than nine
/// digits. Validation answers those; other texts before `=` make a message garbled.
pub type Tag = u32;

/// Digits of a second's fraction that a time is written with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Precision {
    Seconds,
    Millis,
    Micros,
    Nanos,
}

impl Precision {
    fn digits(self) -> usize {
        match self {
            Self::Seconds => 0,
            Self::Millis => 3,
            Self::Micros => 6,
            Self::Nanos => 9,
        }
    }
}

/// `int`: digits with an optional minus; leading zeros are allowed.
pub fn int(value: &[u8]) -> Option<i64> {
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let magnitude = i64::try_from(unsigned(digits)?).ok()?;
    Some(if negative { -magnitude } else { magnitude })
}

/// `SeqNum`, `Length`, `NumInGroup`: digits alone.
pub fn unsigned(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

/// `Boolean`: `Y` or `N`.
pub fn boolean(value: &[u8]) -> Option<bool> {
    match value {
        b"Y" => Some(true),
        b"N" => Some(false),
        _ => None,
    }
}

/// `char`: one byte that is no control character.
pub fn char(value: &[u8]) -> Option<u8> {
    match value {
        [byte] if !byte.is_ascii_control() => Some(*byte),
        _ => None,
    }
}

/// `float` and what derives from it: an optional minus, digits and at most one point among or around them.
pub fn is_float(value: &[u8]) -> bool {
    let digits = value.strip_prefix(b"-").unwrap_or(value);
    let points = digits.iter().filter(|byte| **byte == b'.').count();
    points <= 1 && digits.len() > points && digits.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.')
}

/// `UTCTimestamp`: `YYYYMMDD-HH:MM:SS` with nothing or 3, 6 or 9 digits of a fraction. Second 60 of a leap second is taken as
/// the end of second 59.
pub fn timestamp(value: &[u8]) -> Option<OffsetDateTime> {
    let (date, rest) = value.split_at_checked(8)?;
    let clock = rest.strip_prefix(b"-")?;
    let (at, leap) = time_of_day(clock)?;
    // Only the last minute of a UTC day is ever prolonged.
    if leap && (at.hour(), at.minute()) != (23, 59) {
        return None;
    }
    Some(PrimitiveDateTime::new(self::date(date)?, at).assume_utc())
}

/// `UTCTimeOnly`: `HH:MM:SS` with nothing or 3, 6 or 9 digits of a fraction.
pub fn time_only(value: &[u8]) -> Option<Time> {
    Some(time_of_day(value)?.0)
}

/// `UTCDateOnly`, `LocalMktDate`: `YYYYMMDD`.
pub fn date(value: &[u8]) -> Option<Date> {
    let year = number(value.get(..4)?)?;
    let month = Month::try_from(u8::try_from(number(value.get(4..6)?)?).ok()?).ok()?;
    let day = u8::try_from(number(value.get(6..)?)?).ok()?;
    if value.len() != 8 {
        return None;
    }
    Date::from_calendar_date(i32::try_from(year).ok()?, month, day).ok()
}

/// The time, and whether it is in a leap second.
fn time_of_day(value: &[u8]) -> Option<(Time, bool)> {
    let (clock, fraction) = value.split_at_checked(8)?;
    if clock[2] != b':' || clock[5] != b':' {
        return None;
    }
    let part = |range| u8::try_from(number(&clock[range])?).ok();
    let (hour, minute, second) = (part(0..2)?, part(3..5)?, part(6..8)?);
    let nanos = match fraction {
        [] => 0,
        [b'.', digits @ ..] if matches!(digits.len(), 3 | 6 | 9) => {
            number(digits)? * 10u32.pow(9 - u32::try_from(digits.len()).ok()?)
        }
        _ => return None,
    };
    if second == 60 {
        return Some((Time::from_hms_nano(hour, minute, 59, 999_999_999).ok()?, true));
    }
    Some((Time::from_hms_nano(hour, minute, second, nanos).ok()?, false))
}

/// At most nine digits.
fn number(digits: &[u8]) -> Option<u32> {
    u32::try_from(unsigned(digits)?).ok()
}

/// A moment as `UTCTimestamp`, cut to a precision and never rounded: a time must not lie in the future.
pub fn write_timestamp(at: OffsetDateTime, precision: Precision) -> Timestamp {
    let at = at.to_offset(time::UtcOffset::UTC);
    let mut text = [0u8; TIMESTAMP_BYTES_MAX];
    let mut put = |from: usize, digits: usize, mut number: u32| {
        for place in text[from..from + digits].iter_mut().rev() {
            // A digit.
            *place = b'0' + (number % 10) as u8;
            number /= 10;
        }
    };
    put(0, 4, at.year().unsigned_abs());
    put(4, 2, u32::from(u8::from(at.month())));
    put(6, 2, u32::from(at.day()));
    put(9, 2, u32::from(at.hour()));
    put(12, 2, u32::from(at.minute()));
    put(15, 2, u32::from(at.second()));
    put(18, 9, at.nanosecond());
    text[8] = b'-';
    text[11] = b':';
    text[14] = b':';
    text[17] = b'.';
    let length = match precision.digits() {
        0 => 17,
        digits => 18 + digits,
    };
    Timestamp { text, length }
}

const TIMESTAMP_BYTES_MAX: usize = "YYYYMMDD-HH:MM:SS.nnnnnnnnn".len();

/// The text of a time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Timestamp {
    text: [u8; TIMESTAMP_BYTES_MAX],
    length: usize,
}

impl AsRef<[u8]> for Timestamp {
    fn as_ref(&self) -> &[u8] {
        &self.text[..self.length]
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::{date, datetime};

    use super::*;

    #[test]
    fn ints_by_the_book() {
        for (text, value) in
            [("0", 0), ("-7", -7), ("00023", 23), ("-0", 0), ("9223372036854775807", i64::MAX)]
        {
            assert_eq!(int(text.as_bytes()), Some(value), "{text}");
        }
        for text in ["", "-", "+1", " 1", "1 ", "1.0", "0x1", "--1", "9223372036854775808", "1e3", "١"] {
            assert_eq!(int(text.as_bytes()), None, "{text}");
        }
        assert_eq!(unsigned(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(unsigned(b"18446744073709551616"), None);
        assert_eq!(unsigned(b"-1"), None);
    }

    #[test]
    fn floats_by_the_book() {
        for text in ["0", "-1", "23.23", "23.0000", "00023.23", "-.5", "5.", "0."] {
            assert!(is_float(text.as_bytes()), "{text}");
        }
        for text in ["", "-", ".", "-.", "+1", "1e5", "1,5", "1.2.3", "1-", "NaN", "inf", " 1"] {
            assert!(!is_float(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn chars_and_booleans_by_the_book() {
        assert_eq!(char(b"1"), Some(b'1'));
        assert_eq!(char(b" "), Some(b' '));
        for text in [&b""[..], b"12", b"\n", b"\x7f"] {
            assert_eq!(char(text), None);
        }
        assert_eq!((boolean(b"Y"), boolean(b"N")), (Some(true), Some(false)));
        for text in [&b""[..], b"y", b"n", b"1", b"YES"] {
            assert_eq!(boolean(text), None);
        }
    }

    #[test]
    fn timestamps_by_the_book() {
        for (text, at) in [
            ("20260102-03:04:05", datetime!(2026-01-02 03:04:05 UTC)),
            ("20260102-03:04:05.678", datetime!(2026-01-02 03:04:05.678 UTC)),
            ("20260102-03:04:05.678901", datetime!(2026-01-02 03:04:05.678901 UTC)),
            ("20260102-03:04:05.678901234", datetime!(2026-01-02 03:04:05.678901234 UTC)),
            ("20240229-00:00:00", datetime!(2024-02-29 00:00:00 UTC)),
            ("20161231-23:59:60", datetime!(2016-12-31 23:59:59.999999999 UTC)),
            ("20161231-23:59:60.500", datetime!(2016-12-31 23:59:59.999999999 UTC)),
        ] {
            assert_eq!(timestamp(text.as_bytes()), Some(at), "{text}");
        }
        for text in [
            "",
            "20260102",
            "20260102-03:04",
            "20260102-03:04:05.",
            "20260102-03:04:05.6",
            "20260102-03:04:05.67",
            "20260102-03:04:05.6789",
            "20260102-03:04:05Z",
            "20260102 03:04:05",
            "2026-01-02-03:04:05",
            "20260102-3:04:05",
            "20260102-24:00:00",
            "20260102-03:60:00",
            "20260102-03:04:61",
            "20260102-03:04:60",
            "20261302-03:04:05",
            "20260230-03:04:05",
            "20250229-00:00:00",
            "+0260102-03:04:05",
            "20260102-+3:04:05",
            "20260102-03:04:05.+78",
        ] {
            assert_eq!(timestamp(text.as_bytes()), None, "{text}");
        }
        assert_eq!(date(b"20260102"), Some(date!(2026 - 01 - 02)));
        for text in [&b"2026010"[..], b"202601022", b"20260001", b"20260100"] {
            assert_eq!(date(text), None);
        }
    }

    #[test]
    fn a_time_is_cut_and_not_rounded() {
        let at = datetime!(2026-12-31 23:59:59.999999999 UTC);
        for (precision, text) in [
            (Precision::Seconds, "20261231-23:59:59"),
            (Precision::Millis, "20261231-23:59:59.999"),
            (Precision::Micros, "20261231-23:59:59.999999"),
            (Precision::Nanos, "20261231-23:59:59.999999999"),
        ] {
            assert_eq!(write_timestamp(at, precision).as_ref(), text.as_bytes());
        }
        let elsewhere = datetime!(2026-01-01 01:30:00 +02:00);
        assert_eq!(write_timestamp(elsewhere, Precision::Seconds).as_ref(), b"20251231-23:30:00");
    }

    proptest! {
        #[test]
        fn a_written_time_reads_back(seconds in 0i64..253_402_300_799, nanos in 0i64..1_000_000_000) {
            let at = OffsetDateTime::from_unix_timestamp(seconds).unwrap() + time::Duration::nanoseconds(nanos);
            let written = write_timestamp(at, Precision::Nanos);
            prop_assert_eq!(timestamp(written.as_ref()), Some(at));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(value in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = (int(&value), timestamp(&value), date(&value), time_only(&value), is_float(&value));
        }
    }
}
