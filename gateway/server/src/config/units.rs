//! Durations (`"500ms"`, `"30s"`, `"5m"`, `"12h"`, `"7d"`) and sizes (`"64MiB"`): a whole number and its unit.

use std::time::Duration;

/// Longest duration, so that adding one to a time never overflows.
pub(super) const DURATION_MAX: Duration = Duration::from_secs(3650 * 86_400);
/// Largest size, bytes: what the store's integers hold.
pub(crate) const SIZE_BYTES_MAX: u64 = i64::MAX.unsigned_abs();

/// As regular expressions, for the schema.
pub(super) const DURATION_PATTERN: &str = "^[0-9]+(ms|s|m|h|d)$";
pub(super) const SIZE_PATTERN: &str = "^[0-9]+(B|KiB|MiB|GiB|TiB)$";

const DURATIONS_MS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZES_BYTES: [(&str, u64); 5] =
    [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

pub(crate) fn duration(text: &str) -> Result<Duration, &'static str> {
    let ms = quantity(text, &DURATIONS_MS)
        .ok_or("not a duration: write a whole number and its unit, such as \"500ms\", \"30s\", \"5m\", \"12h\" or \"7d\"")?;
    match Duration::from_millis(ms) {
        Duration::ZERO => Err("must be longer than zero"),
        duration if duration > DURATION_MAX => Err("too long: the most is \"3650d\""),
        duration => Ok(duration),
    }
}

pub(super) fn size(text: &str) -> Result<u64, &'static str> {
    let bytes = quantity(text, &SIZES_BYTES).filter(|bytes| *bytes <= SIZE_BYTES_MAX).ok_or(
        "not a size: write a whole number and its unit (B, KiB, MiB, GiB or TiB), such as \"64MiB\"",
    )?;
    if bytes == 0 { Err("must be more than zero") } else { Ok(bytes) }
}

/// In the largest unit that divides it.
pub(super) fn duration_text(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    quantity_text(ms, &DURATIONS_MS)
}

/// In the largest unit that divides it.
pub(super) fn size_text(bytes: u64) -> String {
    quantity_text(bytes, &SIZES_BYTES)
}

fn quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

fn quantity_text(amount: u64, units: &[(&str, u64)]) -> String {
    let fitting = units.iter().rev().find(|(_, factor)| amount >= *factor && amount.is_multiple_of(*factor));
    let (unit, factor) = fitting.unwrap_or(&units[0]);
    format!("{}{unit}", amount / factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_number_and_a_unit() {
        for (text, ms) in
            [("500ms", 500), ("1s", 1000), ("5m", 300_000), ("12h", 43_200_000), ("7d", 604_800_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
            assert_eq!(duration_text(Duration::from_millis(ms)), text);
        }
        for text in [
            "",
            "s",
            "5",
            "5 s",
            "5M",
            "1h30m",
            "-1s",
            "1.5s",
            "0s",
            "3651d",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_a_number_and_a_binary_unit() {
        for (text, bytes) in
            [("1B", 1), ("10KiB", 10 << 10), ("64MiB", 64 << 20), ("3GiB", 3 << 30), ("1TiB", 1 << 40)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
            assert_eq!(size_text(bytes), text);
        }
        for text in ["", "64", "64MB", "64 MiB", "MiB", "0B", "18446744073709551615B", "99999999999TiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
