//! `2026-11-23T08:50:12.123456Z` from and to microseconds since the epoch, without a calendar library: this runs for
//! every leaf.

use super::AT_US_MAX;

pub(super) const BYTES: usize = 27;

const US_PER_SECOND: u64 = 1_000_000;
const SECONDS_PER_DAY: u64 = 86_400;
/// Days from 0000-03-01 to 1970-01-01. Years that begin in March have their leap day at the end.
const EPOCH_DAYS: u64 = 719_468;
const DAYS_PER_ERA: u64 = 146_097;
const YEARS_PER_ERA: u64 = 400;

/// `None` outside the years 1970 to 9999.
pub(super) fn format(at: i64) -> Option<[u8; BYTES]> {
    if at > AT_US_MAX {
        return None;
    }
    let at = u64::try_from(at).ok()?;
    let seconds = at / US_PER_SECOND;
    let (year, month, day) = civil(seconds / SECONDS_PER_DAY);
    let second = seconds % SECONDS_PER_DAY;
    let mut text = *b"0000-00-00T00:00:00.000000Z";
    put(&mut text[0..4], year);
    put(&mut text[5..7], month);
    put(&mut text[8..10], day);
    put(&mut text[11..13], second / 3_600);
    put(&mut text[14..16], second / 60 % 60);
    put(&mut text[17..19], second % 60);
    put(&mut text[20..26], at % US_PER_SECOND);
    Some(text)
}

/// The inverse. It is lenient about impossible dates: its caller formats the result again and compares.
pub(super) fn parse(text: &str) -> Option<i64> {
    let text: &[u8; BYTES] = text.as_bytes().try_into().ok()?;
    let part = |from: usize, to: usize| number(&text[from..to]);
    let (year, month, day) = (part(0, 4)?, part(5, 7)?, part(8, 10)?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let second = part(11, 13)? * 3_600 + part(14, 16)? * 60 + part(17, 19)?;
    let seconds = days(year, month, day) * SECONDS_PER_DAY + second;
    i64::try_from(seconds * US_PER_SECOND + part(20, 26)?).ok()
}

fn civil(days_since_epoch: u64) -> (u64, u64, u64) {
    let days = days_since_epoch + EPOCH_DAYS;
    let day_of_era = days % DAYS_PER_ERA;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = days / DAYS_PER_ERA * YEARS_PER_ERA + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let year_of_era = year % YEARS_PER_ERA;
    let march_month = (month + 9) % 12;
    let day_of_year = (153 * march_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    year / YEARS_PER_ERA * DAYS_PER_ERA + day_of_era - EPOCH_DAYS
}

fn put(digits: &mut [u8], mut value: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    digits
        .iter()
        .try_fold(0, |value, digit| digit.is_ascii_digit().then(|| value * 10 + u64::from(digit - b'0')))
}
