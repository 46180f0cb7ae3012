//! A gateway that root has started does not stay root: with `[gateway] user` it becomes that user before it opens anything, and one
//! small process stays root beside it, the spawner, because an adapter with a user of its own can be started by nobody else.
//!
//! * [`settle`] starts the spawner and then takes from this process what it has of root.
//! * [`spawner`] is that process. It listens to nobody but the gateway that started it, has no store, no key and no listener, and reads
//!   the configuration by itself: what the gateway names is an adapter, never a program, a user or a right.
//! * [`Spawner`] is the gateway's handle, [`Remote`] a process that was started so.
//!
//! They share a pair of sockets and nothing else. When the gateway is gone, the spawner ends, and with it all that it has started; a
//! gateway whose spawner is gone stops.

mod client;
mod ownership;
mod root;
mod trust;
mod user;
mod wire;

use std::path::Path;
use std::process::Command;

use super::program::INHERITED;
use crate::config::RunAs;

pub(super) use client::Remote;
pub(crate) use client::{Spawner, Started as Spawned};
pub(crate) use ownership::give_to_gateway;
pub(crate) use root::spawner;
pub(crate) use user::{RunningAs, Settled, UserError, settle};
pub(super) use wire::Task;

#[cfg(any(test, fuzzing))]
pub(super) use wire::fuzz;

/// Where systemd has put credentials, which the configuration may name.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
const INSECURE_DEV: &str = "--insecure-dev";

/// `gatepost spawner --parent PID --user UID --config FILE [--insecure-dev]`, with the end of a socket as standard input.
fn command(user: RunAs, config: &Path, insecure_dev: bool) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg("spawner").arg("--parent").arg(std::process::id().to_string());
    command.arg("--user").arg(user.uid.to_string()).arg("--config").arg(config);
    command.args(insecure_dev.then_some(INSECURE_DEV)).env_clear();
    let inherited = INHERITED.iter().chain([&CREDENTIALS]);
    command.envs(inherited.filter_map(|name| Some((name, std::env::var_os(name)?))));
    command.envs(gatepost_faults::handed_on());
    command
}
