//! How fast one principal is refused. Who asks again as soon as it is refused costs the others as much as who is served; so the first
//! refusals are told at once, and whoever keeps on is told later and later. Nothing else is delayed.
//!
//! What is held back is bounded by the connections that its principal may have, each with one request at a time.

use std::time::Duration;

use gatepost_core::principal::Actor;

use crate::spaced::{Spaced, Spacing};

/// 100 refusals a second are more than anybody gets who listens to them. After five seconds a client may think that nobody answers.
const REFUSALS: Spacing =
    Spacing { interval: Duration::from_millis(10), prompt: 50, wait_max: Duration::from_secs(5) };

/// Of each principal.
pub(crate) fn holdback() -> Spaced<Actor> {
    Spaced::new(REFUSALS)
}
