//! Disks that forget, fill up and fail.

mod failing;
mod large;
mod lost;
mod shim;

pub(crate) use failing::failures;
pub(crate) use lost::lost_writes;
