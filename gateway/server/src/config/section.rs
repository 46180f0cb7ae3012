//! Reading values out of a document whose shape was checked. An absent value and one of the wrong shape look the same here:
//! the latter is reported already.

use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::Spot;
use super::path::{child, element};
use super::units;

/// A table of the document.
#[derive(Clone)]
pub(super) struct Section<'a> {
    /// Its name's place.
    pub(super) spot: Spot,
    table: &'a DeTable<'a>,
}

/// A value and its place.
#[derive(Clone)]
pub(super) struct Item<T> {
    pub(super) value: T,
    pub(super) spot: Spot,
}

impl<'a> Section<'a> {
    pub(super) fn root(table: &'a DeTable<'a>) -> Self {
        Self { spot: Spot { offset: 0, key: String::new() }, table }
    }

    pub(super) fn value(&self, key: &str) -> Option<Item<&'a DeValue<'a>>> {
        let value = self.table.get(key)?;
        Some(Item { value: value.get_ref(), spot: Spot::new(&value.span(), child(&self.spot.key, key)) })
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    pub(super) fn text(&self, key: &str) -> Option<Item<&'a str>> {
        let text = |value: &'a DeValue<'a>| value.as_str().filter(|text| is_text(text));
        self.value(key)?.try_map(text)
    }

    pub(super) fn texts(&self, key: &str) -> Option<Vec<Item<&'a str>>> {
        let array = self.value(key)?.try_map(DeValue::as_array)?;
        let text = |(index, item): (usize, &'a Spanned<DeValue<'a>>)| {
            let spot = Spot::new(&item.span(), element(&array.spot.key, index));
            Some(Item { value: item.get_ref().as_str().filter(|text| is_text(text))?, spot })
        };
        Some(array.value.iter().enumerate().filter_map(text).collect())
    }

    pub(super) fn duration(&self, key: &str) -> Option<Item<Duration>> {
        self.text(key)?.try_map(|text| units::duration(text).ok())
    }

    pub(super) fn size(&self, key: &str) -> Option<Item<u64>> {
        self.text(key)?.try_map(|text| units::size(text).ok())
    }

    pub(super) fn count(&self, key: &str) -> Option<Item<u64>> {
        let number = |value: &DeValue<'_>| {
            value.as_integer().and_then(|number| u64::from_str_radix(number.as_str(), number.radix()).ok())
        };
        self.value(key)?.try_map(number)
    }

    pub(super) fn truth(&self, key: &str) -> Option<bool> {
        self.value(key)?.value.as_bool()
    }

    /// A choice among names.
    pub(super) fn choice<T>(&self, key: &str, from_name: impl Fn(&str) -> Option<T>) -> Option<T> {
        from_name(self.text(key)?.value)
    }

    pub(super) fn table(&self, key: &str) -> Option<Section<'a>> {
        let (name, value) = self.table.get_key_value(key)?;
        Some(Self {
            spot: Spot::new(&name.span(), child(&self.spot.key, key)),
            table: value.get_ref().as_table()?,
        })
    }

    /// The tables of `[[key]]` with their indexes; those of the wrong shape are left out.
    pub(super) fn tables(&self, key: &str) -> Vec<Section<'a>> {
        let Some(array) = self.value(key).and_then(|value| value.try_map(DeValue::as_array)) else {
            return Vec::new();
        };
        let section = |(index, item): (usize, &'a Spanned<DeValue<'a>>)| {
            let spot = Spot::new(&item.span(), element(&array.spot.key, index));
            Some(Self { spot, table: item.get_ref().as_table()? })
        };
        array.value.iter().enumerate().filter_map(section).collect()
    }

    /// The tables of `[key.NAME]`; those of the wrong shape are left out.
    pub(super) fn named(&self, key: &str) -> Vec<(&'a str, Section<'a>)> {
        let Some(parent) = self.table(key) else { return Vec::new() };
        let section = |(name, value): (&'a Spanned<std::borrow::Cow<'a, str>>, &'a Spanned<DeValue<'a>>)| {
            let spot = Spot::new(&name.span(), child(&parent.spot.key, name.get_ref()));
            Some((name.get_ref().as_ref(), Self { spot, table: value.get_ref().as_table()? }))
        };
        parent.table.iter().filter_map(section).collect()
    }
}

impl<T> Item<T> {
    pub(super) fn try_map<U>(self, map: impl FnOnce(T) -> Option<U>) -> Option<Item<U>> {
        Some(Item { value: map(self.value)?, spot: self.spot })
    }
}

fn is_text(text: &str) -> bool {
    !text.is_empty() && !text.contains('\0')
}
