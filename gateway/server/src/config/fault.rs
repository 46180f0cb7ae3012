//! Faults of a configuration file: collected while reading, sorted by place, printed one per line.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::rules::Rule;

/// One fault: where it stands, and what to do about it. Its text never holds a value that could be a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) file: PathBuf,
    /// From 1.
    pub(crate) line: usize,
    /// From 1, in characters.
    pub(crate) column: usize,
    /// The key's path, `adapters.lab.order`; elements of arrays count from 1. Empty for a fault of the syntax.
    pub(crate) key: String,
    pub(crate) text: String,
    /// The rule that it breaks; none for a plain mistake.
    pub(crate) rule: Option<Rule>,
}

/// All faults of a file in the order of their places; at least one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) struct Faults(Vec<Fault>);

/// A place in the file and the key path that leads there.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    pub(super) offset: usize,
    pub(super) key: String,
}

/// Collects the faults of one file.
pub(super) struct Report<'t> {
    file: &'t Path,
    text: &'t str,
    faults: Vec<Found>,
    warnings: Vec<Found>,
}

struct Found {
    spot: Spot,
    rule: Option<Rule>,
    text: String,
}

impl Faults {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file.display(), self.line, self.column)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.text)?;
        match self.rule {
            Some(rule) => write!(f, " [{}]", rule.id()),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl Spot {
    pub(super) fn new(span: &Range<usize>, key: impl Into<String>) -> Self {
        Self { offset: span.start, key: key.into() }
    }
}

impl<'t> Report<'t> {
    pub(super) fn new(file: &'t Path, text: &'t str) -> Self {
        Self { file, text, faults: Vec::new(), warnings: Vec::new() }
    }

    pub(super) fn add(&mut self, spot: &Spot, text: impl Into<String>) {
        self.faults.push(Found { spot: spot.clone(), rule: None, text: text.into() });
    }

    /// A fault that breaks a rule.
    pub(super) fn refuse(&mut self, rule: Rule, spot: &Spot, text: impl Into<String>) {
        self.faults.push(Found { spot: spot.clone(), rule: Some(rule), text: text.into() });
    }

    /// What a rule warns of and lets pass.
    pub(super) fn warn(&mut self, rule: Rule, spot: &Spot, text: impl Into<String>) {
        self.warnings.push(Found { spot: spot.clone(), rule: Some(rule), text: text.into() });
    }

    pub(super) fn is_clean(&self) -> bool {
        self.faults.is_empty()
    }

    pub(super) fn into_faults(self) -> Faults {
        Faults(located(self.file, self.text, self.faults))
    }

    pub(super) fn into_warnings(self) -> Vec<Fault> {
        located(self.file, self.text, self.warnings)
    }
}

/// In the order of their places.
fn located(file: &Path, text: &str, mut found: Vec<Found>) -> Vec<Fault> {
    found.sort_by_key(|found| found.spot.offset);
    let fault = |Found { spot, rule, text: why }: Found| {
        let (line, column) = position(text, spot.offset);
        Fault { file: file.to_owned(), line, column, key: visible(&spot.key), text: visible(&why), rule }
    };
    found.into_iter().map(fault).collect()
}

/// What a file says is repeated in its faults. Characters that would steer the reader's terminal, or turn the direction of
/// writing around, are shown as TOML would write them.
fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\t' => shown.push_str("\\t"),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => shown.push_str(&escape(character)),
            other if other.is_control() => shown.push_str(&escape(other)),
            other => shown.push(other),
        }
    }
    shown
}

fn escape(character: char) -> String {
    format!("\\u{:04x}", u32::from(character))
}

/// Line and column, both from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// The candidate that a mistyped `name` probably meant.
pub(super) fn nearest<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    const TYPOS_MAX: usize = 3;
    let tolerated = |candidate: &str| (name.len().max(candidate.len()) / 3).clamp(1, TYPOS_MAX);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= tolerated(candidate))
        .min()
        .map(|(_, candidate)| candidate)
}

/// "did you mean `x`?", or the choices there are.
pub(crate) fn suggestion<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str> + Clone) -> String {
    match nearest(name, candidates.clone()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            let all: Vec<String> = candidates.into_iter().map(|name| format!("`{name}`")).collect();
            if all.is_empty() {
                "there is none".to_owned()
            } else {
                format!("known here: {}", all.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters_from_one() {
        assert_eq!(position("ab\nä = 1\n", 0), (1, 1));
        assert_eq!(position("ab\nä = 1\n", 3), (2, 1));
        assert_eq!(position("ab\nä = 1\n", 8), (2, 5));
        assert_eq!(position("ab", 99), (1, 3));
    }

    #[test]
    fn a_typo_finds_its_neighbour_and_nonsense_lists_the_choices() {
        assert_eq!(nearest("on_dobut", ["on_doubt", "on_dead"]), Some("on_doubt"));
        assert_eq!(suggestion("zzz", ["order", "window"]), "known here: `order`, `window`");
        assert_eq!(suggestion("zzz", []), "there is none");
    }
}
