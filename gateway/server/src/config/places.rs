//! Where the keys of the adapters stand in the file, for faults that are found only when their programs have been asked.

use std::collections::BTreeMap;
use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::path::{child, element};

/// Line and column of each key below `adapters`, both from 1.
#[derive(Default)]
pub(super) struct Places(BTreeMap<String, (usize, usize)>);

impl fmt::Debug for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Places({} keys)", self.0.len())
    }
}

impl Places {
    pub(super) fn of_adapters(document: &DeTable<'_>, text: &str) -> Self {
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        let mut found = Finder { text, line_starts, places: BTreeMap::new() };
        if let Some((name, value)) = document.get_key_value("adapters") {
            found.value(value, "adapters", name.span().start);
        }
        Self(found.places)
    }

    /// The place of `key`, or of the nearest table around it; the file's beginning if there is none.
    pub(super) fn of(&self, key: &str) -> (usize, usize) {
        let mut key = key;
        loop {
            if let Some(place) = self.0.get(key) {
                return *place;
            }
            match key.rfind(['.', '[']) {
                Some(end) => key = &key[..end],
                None => return (1, 1),
            }
        }
    }
}

struct Finder<'t> {
    text: &'t str,
    line_starts: Vec<usize>,
    places: BTreeMap<String, (usize, usize)>,
}

impl Finder<'_> {
    fn value(&mut self, value: &Spanned<DeValue<'_>>, key: &str, offset: usize) {
        let line = self.line_starts.partition_point(|start| *start <= offset);
        let start = self.line_starts.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let column = self.text.get(start..offset).map_or(0, |before| before.chars().count()) + 1;
        self.places.insert(key.to_owned(), (line, column));
        match value.get_ref() {
            DeValue::Table(table) => {
                for (name, value) in table.iter() {
                    self.value(value, &child(key, name.get_ref()), name.span().start);
                }
            }
            DeValue::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.value(item, &element(key, index), item.span().start);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_its_line_and_what_is_missing_has_its_tables() {
        let text = "[adapters.lab]\nrun = \"x\"\n[adapters.lab.settings]\n\"ü\" = 1\nfiles = [\"a\",\n  \"b\"]\non = { b = 2 }\n";
        let places = Places::of_adapters(DeTable::parse(text).unwrap().get_ref(), text);
        for (key, place) in [
            ("adapters.lab.run", (2, 1)),
            ("adapters.lab.settings.files[2]", (6, 3)),
            ("adapters.lab.settings.on.b", (7, 8)),
            ("adapters.lab.settings.port", (3, 15)),
            ("adapters.lab.confirm", (1, 11)),
            ("adapters.nobody", (1, 2)),
            ("inboxes.x", (1, 1)),
        ] {
            assert_eq!(places.of(key), place, "{key}");
        }
    }
}
