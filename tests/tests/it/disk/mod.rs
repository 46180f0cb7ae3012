//! Disks that forget, fill up and fail.

mod shim;
