//! Disks that forget, fill up and fail.

mod failing;
mod lost;
mod shim;
