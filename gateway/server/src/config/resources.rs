//! `memory`, `processes` and `cpus` of `[adapters.NAME.allow]`: what an adapter's processes may use up of the host.

use serde::{Deserialize, Serialize};
use toml::de::DeValue;

use super::fault::Report;
use super::section::Section;
use super::units;

/// Memory of an adapter that is not given another limit, bytes: about thirty of the largest messages at once.
pub(crate) const MEMORY_BYTES: u64 = 2 << 30;
/// Least memory that may be given, bytes: below it hardly a program starts.
pub(crate) const MEMORY_BYTES_MIN: u64 = 16 << 20;
/// Processes and threads of an adapter that is not given another limit.
pub(crate) const PROCESSES: u64 = 512;
/// Most processes and threads that may be given.
pub(super) const PROCESSES_MAX: u64 = 65_536;
/// Most processors that may be given.
pub(super) const CPUS_MAX: u32 = 1024;

/// A limit, and whether somebody asked for it: what was asked for and cannot be had must be heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Limit<T> {
    Usual(T),
    Asked(T),
}

/// Processors that may be busy at a time, in hundredths of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cpus(u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Resources {
    /// Bytes, of all its processes together.
    pub(crate) memory: Limit<u64>,
    /// Processes and threads.
    pub(crate) processes: Limit<u64>,
    /// All, unless asked for fewer.
    pub(crate) cpus: Option<Cpus>,
}

impl Default for Resources {
    fn default() -> Self {
        Self { memory: Limit::Usual(MEMORY_BYTES), processes: Limit::Usual(PROCESSES), cpus: None }
    }
}

impl<T: Copy> Limit<T> {
    pub(crate) fn value(self) -> T {
        match self {
            Self::Usual(value) | Self::Asked(value) => value,
        }
    }

    pub(crate) fn is_asked(self) -> bool {
        matches!(self, Self::Asked(_))
    }
}

impl Cpus {
    /// A whole number, or one with one or two decimals.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !is_digits(whole) || !is_digits(decimals) || decimals.len() > 2 {
            return None;
        }
        let whole = whole.parse::<u32>().ok().filter(|&whole| whole <= CPUS_MAX)?;
        let hundredths = whole * 100 + format!("{decimals:0<2}").parse::<u32>().ok()?;
        (1..=CPUS_MAX * 100).contains(&hundredths).then_some(Self(hundredths))
    }

    pub(super) fn of(value: &DeValue<'_>) -> Option<Self> {
        match value {
            DeValue::Integer(number) if number.radix() == 10 => Self::parse(number.as_str()),
            DeValue::Float(number) => Self::parse(number.as_str()),
            _ => None,
        }
    }

    pub(crate) fn percent(self) -> u32 {
        self.0
    }
}

pub(super) fn read(allow: &Section<'_>, report: &mut Report<'_>) -> Resources {
    let usual = Resources::default();
    let memory = allow.size("memory");
    if let Some(memory) = memory.as_ref().filter(|memory| memory.value < MEMORY_BYTES_MIN) {
        let least = units::size_text(MEMORY_BYTES_MIN);
        report.add(&memory.spot, format!("too little for a program: the least is \"{least}\""));
    }
    Resources {
        memory: memory.map_or(usual.memory, |memory| Limit::Asked(memory.value)),
        processes: allow.count("processes").map_or(usual.processes, |count| Limit::Asked(count.value)),
        cpus: allow.value("cpus").and_then(|cpus| Cpus::of(cpus.value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted_in_hundredths() {
        for (text, percent) in [("1", 100), ("1.5", 150), ("0.25", 25), ("0.01", 1), ("1024", 102_400)] {
            assert_eq!(Cpus::parse(text).map(Cpus::percent), Some(percent), "{text}");
        }
        for wrong in [
            "",
            "0",
            "0.0",
            "0.001",
            "1.555",
            "-1",
            "+1",
            "1.",
            ".5",
            "1e2",
            "inf",
            "nan",
            "1024.01",
            "9999999999",
        ] {
            assert_eq!(Cpus::parse(wrong), None, "{wrong}");
        }
    }
}
