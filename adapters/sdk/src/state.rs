//! The adapter's durable state, which the gateway keeps: read once, when the session opens, and changed by settlements only.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::client::locked;

/// All keys and values of an adapter's state, bytes. All of it comes in one answer when a session opens, and must fit into that.
pub const STATE_BYTES_MAX: usize = 32 * 1024 * 1024;

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

/// How large the state is, key by key, as the gateway has it.
#[derive(Default)]
pub(crate) struct Sizes(Mutex<Known>);

#[derive(Default)]
struct Known {
    of_keys: HashMap<String, usize>,
    total: usize,
}

impl Sizes {
    pub(crate) fn of(state: &BTreeMap<String, Vec<u8>>) -> Self {
        let mut known = Known::default();
        state.iter().for_each(|(key, value)| known.apply(key, Some(value)));
        Self(Mutex::new(known))
    }

    /// Whether these changes leave the state within its limit. What does not let it grow does: whoever is over the limit can get below it.
    pub(crate) fn fit(&self, changes: &StateChanges) -> bool {
        let known = locked(&self.0);
        let (mut added, mut freed) = (0, 0);
        for (key, value) in changes.iter() {
            added += value.map_or(0, |value| key.len() + value.len());
            freed += known.of_keys.get(key).copied().unwrap_or(0);
        }
        added <= freed || known.total - freed + added <= STATE_BYTES_MAX
    }

    /// The gateway has taken these.
    pub(crate) fn take_up(&self, changes: &StateChanges) {
        let mut known = locked(&self.0);
        changes.iter().for_each(|(key, value)| known.apply(key, value));
    }
}

impl Known {
    fn apply(&mut self, key: &str, value: Option<&[u8]>) {
        let before = match value {
            Some(value) => {
                let size = key.len() + value.len();
                self.total += size;
                self.of_keys.insert(key.to_owned(), size)
            }
            None => self.of_keys.remove(key),
        };
        self.total -= before.unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(key: &str, bytes: usize) -> StateChanges {
        let mut changes = StateChanges::default();
        changes.set(key, vec![0; bytes]);
        changes
    }

    #[test]
    fn the_state_grows_up_to_its_limit_and_can_always_shrink() {
        let sizes = Sizes::of(&BTreeMap::from([("k".to_owned(), vec![0; 10])]));
        let rest = STATE_BYTES_MAX - 11 - 1;
        assert!(sizes.fit(&setting("l", rest)) && !sizes.fit(&setting("l", rest + 1)));
        sizes.take_up(&setting("l", rest));
        assert!(sizes.fit(&setting("k", 10)) && !sizes.fit(&setting("k", 11)));
        let mut both = setting("m", 10);
        assert!(!sizes.fit(&both));
        both.delete("k");
        assert!(sizes.fit(&both));
        sizes.take_up(&both);
        sizes.take_up(&{
            let mut less = StateChanges::default();
            less.delete("l");
            less.delete("m");
            less.delete("unknown");
            less
        });
        assert_eq!(locked(&sizes.0).total, 0);
        let over = Sizes::of(&BTreeMap::from([("k".to_owned(), vec![0; STATE_BYTES_MAX + 5])]));
        assert!(over.fit(&setting("k", STATE_BYTES_MAX + 4)));
    }
}
