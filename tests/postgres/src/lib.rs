//! A throw-away PostgreSQL cluster for tests: the real server in a temporary directory, reached through a Unix socket, with
//! `fsync` and `synchronous_commit` on, since the tests that use it are about durability. However the tests' process ends,
//! neither a process nor a directory is left. It lies where `TMPDIR` says, which the user `nobody` must reach where root runs tests.
//!
//! Where the server's programs are missing, [`Cluster::start`] and [`fresh_database`] fail with
//! [`NotFound`](std::io::ErrorKind::NotFound); a test that then passes says so with [`skipped`].

mod address;
mod cluster;
mod place;
mod processes;
mod programs;
mod settings;
mod shared;
mod skips;
mod template;
mod wait;

pub use address::write_address;
pub use cluster::Cluster;
pub use shared::{fresh_database, shared};
pub use skips::skipped;
