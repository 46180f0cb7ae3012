//! Types of fields: what form a value must have (FIX 5.0 SP2 volume 1, "FIX data types").

use crate::value;
use crate::version::BeginString;

/// A type, by what is checked. Types that differ in meaning only are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// Any text: STRING, every type that is not known here, and codes of lists that venues extend (CURRENCY, COUNTRY,
    /// EXCHANGE, LANGUAGE).
    Text,
    Char,
    Boolean,
    /// INT and what is one: TAGNUM.
    Int,
    DayOfMonth,
    /// SEQNUM, LENGTH, NUMINGROUP: no sign.
    Unsigned,
    NumInGroup,
    Length,
    /// FLOAT, PRICE, QTY, AMT, PRICEOFFSET, PERCENTAGE.
    Float,
    MultipleCharValue,
    MultipleStringValue,
    MonthYear,
    UtcTimestamp,
    UtcTimeOnly,
    /// UTCDATEONLY, LOCALMKTDATE.
    Date,
    LocalMktTime,
    TzTimeOnly,
    TzTimestamp,
    /// DATA, XMLDATA: any bytes.
    Data,
}

impl Type {
    /// By its name in a dictionary's file. In FIX 4.0 and 4.1 a CHAR is any text.
    pub(crate) fn by_name(name: &str, version: Option<BeginString>) -> Self {
        match name.to_ascii_uppercase().as_str() {
            "CHAR" if version.is_some_and(|version| version < BeginString::Fix42) => Self::Text,
            "CHAR" => Self::Char,
            "BOOLEAN" => Self::Boolean,
            "INT" | "TAGNUM" => Self::Int,
            "DAYOFMONTH" => Self::DayOfMonth,
            "SEQNUM" => Self::Unsigned,
            "LENGTH" => Self::Length,
            "NUMINGROUP" => Self::NumInGroup,
            "FLOAT" | "PRICE" | "QTY" | "QUANTITY" | "AMT" | "PRICEOFFSET" | "PERCENTAGE" => Self::Float,
            "MULTIPLECHARVALUE" => Self::MultipleCharValue,
            "MULTIPLESTRINGVALUE" | "MULTIPLEVALUESTRING" => Self::MultipleStringValue,
            "MONTHYEAR" => Self::MonthYear,
            "UTCTIMESTAMP" | "TIME" => Self::UtcTimestamp,
            "UTCTIMEONLY" => Self::UtcTimeOnly,
            "UTCDATEONLY" | "UTCDATE" | "LOCALMKTDATE" | "DATE" => Self::Date,
            "LOCALMKTTIME" => Self::LocalMktTime,
            "TZTIMEONLY" => Self::TzTimeOnly,
            "TZTIMESTAMP" => Self::TzTimestamp,
            "DATA" | "XMLDATA" => Self::Data,
            _ => Self::Text,
        }
    }

    /// Whether a value has the type's form. That it is not empty is another rule.
    pub fn fits(self, value: &[u8]) -> bool {
        match self {
            Self::Text | Self::Data => true,
            Self::Char => value::char(value).is_some(),
            Self::Boolean => value::boolean(value).is_some(),
            Self::Int => value::int(value).is_some(),
            Self::DayOfMonth => value::unsigned(value).is_some_and(|day| (1..=31).contains(&day)),
            Self::Unsigned | Self::NumInGroup | Self::Length => value::unsigned(value).is_some(),
            Self::Float => value::is_float(value),
            Self::MultipleCharValue => singles(value).all(|single| single.len() == 1),
            Self::MultipleStringValue => singles(value).all(|single| !single.is_empty()),
            Self::MonthYear => is_month_year(value),
            Self::UtcTimestamp => value::timestamp(value).is_some(),
            Self::UtcTimeOnly => value::time_only(value).is_some(),
            Self::Date => value::date(value).is_some(),
            Self::LocalMktTime => value.len() == 8 && value::time_only(value).is_some(),
            Self::TzTimeOnly => is_tz_time(value),
            Self::TzTimestamp => is_tz_timestamp(value),
        }
    }
}

fn singles(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b' ')
}

/// `YYYYMM`, `YYYYMMDD` or `YYYYMMw1` to `w5`.
fn is_month_year(value: &[u8]) -> bool {
    let Some((month, rest)) = value.split_at_checked(6) else { return false };
    let first = [month, b"01"].concat();
    value::date(&first).is_some()
        && match rest {
            [] | [b'w', b'1'..=b'5'] => true,
            _ => value::date(value).is_some(),
        }
}

/// `HH:MM`, `HH:MM:SS` or with a fraction, then `Z`, `+hh`, `-hh`, `+hh:mm` or `-hh:mm`.
fn is_tz_time(value: &[u8]) -> bool {
    let Some(at) = value.iter().position(|byte| matches!(byte, b'Z' | b'+' | b'-')) else { return false };
    let (clock, zone) = value.split_at(at);
    let clock = match clock.len() {
        5 => value::time_only(&[clock, b":00"].concat()).is_some(),
        _ => value::time_only(clock).is_some(),
    };
    let zone = match zone {
        [b'Z'] => true,
        [_, hours @ ..] if hours.len() == 2 => value::time_only(&[hours, b":00:00"].concat()).is_some(),
        [_, offset @ ..] if offset.len() == 5 => value::time_only(&[offset, b":00"].concat()).is_some(),
        _ => false,
    };
    clock && zone
}

/// A date, `-`, and a time with its zone.
fn is_tz_timestamp(value: &[u8]) -> bool {
    let Some((date, rest)) = value.split_at_checked(8) else { return false };
    value::date(date).is_some() && rest.strip_prefix(b"-").is_some_and(is_tz_time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_by_the_book() {
        let rows: [(&str, &[&str], &[&str]); 27] = [
            ("STRING", &["", "anything at all"], &[]),
            ("PATTERN", &["anything"], &[]),
            ("CHAR", &["a", " "], &["", "ab"]),
            ("BOOLEAN", &["Y", "N"], &["", "y", "1"]),
            ("INT", &["0", "-5", "007"], &["", "1.0", "+1", "x"]),
            ("TAGNUM", &["34"], &["x"]),
            ("DAYOFMONTH", &["1", "31"], &["0", "32", "-1", ""]),
            ("SEQNUM", &["1", "0"], &["-1", "", "x"]),
            ("LENGTH", &["0", "17"], &["-1", ""]),
            ("NUMINGROUP", &["0", "2"], &["-1", "", "two"]),
            ("PRICE", &["1", "-1.50", ".5"], &["", "1e5", "1,5"]),
            ("QTY", &["100"], &["1 "]),
            ("PERCENTAGE", &["0.05"], &["5%"]),
            ("MULTIPLECHARVALUE", &["A", "A B c"], &["", "AB", "A  B", "A "]),
            ("MULTIPLEVALUESTRING", &["A", "AA B"], &["", "A  B", " A"]),
            ("COUNTRY", &["DE"], &[]),
            ("CURRENCY", &["EUR", "USDT"], &[]),
            ("EXCHANGE", &["N", "XNAS"], &[]),
            ("LANGUAGE", &["en"], &[]),
            (
                "MONTHYEAR",
                &["202601", "20260131", "202601w1", "202601w5"],
                &["2026", "202613", "20260132", "202601w6", "202601w"],
            ),
            (
                "UTCTIMESTAMP",
                &["20260102-03:04:05", "20260102-03:04:05.678"],
                &["20260102", "20260102-03:04"],
            ),
            ("TIME", &["20260102-03:04:05"], &["03:04:05"]),
            ("UTCTIMEONLY", &["03:04:05", "03:04:05.678"], &["03:04", "25:00:00"]),
            ("LOCALMKTDATE", &["20260102"], &["2026-01-02", "20260230"]),
            ("LOCALMKTTIME", &["03:04:05"], &["03:04:05.678", "03:04"]),
            (
                "TZTIMEONLY",
                &["07:39Z", "02:39-05", "15:39:30+08", "13:09:30.500+05:30"],
                &["07:39", "07:39+5", "07:39+24", "7:39Z"],
            ),
            ("TZTIMESTAMP", &["20060901-07:39Z", "20060901-02:39:30-05:30"], &["20060901-07:39", "20060901"]),
        ];
        for (name, good, bad) in rows {
            let kind = Type::by_name(name, None);
            for value in good {
                assert!(kind.fits(value.as_bytes()), "{name} {value}");
            }
            for value in bad {
                assert!(!kind.fits(value.as_bytes()), "{name} {value}");
            }
        }
        assert!(Type::by_name("DATA", None).fits(b"\x01\xff"));
    }

    #[test]
    fn a_char_was_any_text_before_4_2() {
        assert_eq!(Type::by_name("CHAR", Some(BeginString::Fix41)), Type::Text);
        assert_eq!(Type::by_name("CHAR", Some(BeginString::Fix42)), Type::Char);
        assert_eq!(Type::by_name("char", None), Type::Char);
    }
}
