//! The fault laboratory: what must never be lost, doubled or reordered, whatever dies where.

mod fix;
mod hl7;
mod kill;
mod load;
mod points;
mod reconcile;

use std::time::Duration;

pub(crate) use kill::kills;

/// How long a machine under load may take for what takes seconds on an idle one.
const PATIENCE: Duration = Duration::from_secs(90);
