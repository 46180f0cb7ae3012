//! The adapter's durable state, which the gateway keeps.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// Changes to the adapter's durable state.
#[derive(Clone, Default)]
pub struct StateChanges(BTreeMap<String, Option<Vec<u8>>>);

impl StateChanges {
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) {
        self.0.insert(key.into(), Some(value.into()));
    }

    pub fn delete(&mut self, key: impl Into<String>) {
        self.0.insert(key.into(), None);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_deref()))
    }

    pub(crate) fn into_wire(self) -> BTreeMap<String, Option<String>> {
        self.0.into_iter().map(|(key, value)| (key, value.map(|bytes| BASE64.encode(bytes)))).collect()
    }
}

impl fmt::Debug for StateChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StateChanges({} keys)", self.0.len())
    }
}
