//! Adapters as supervised child processes: found, asked what they can do, started, watched, restarted, drained and ended.
//!
//! * [`Supervisor`] is the handle: [`Supervisor::apply`] makes the processes follow a configuration, [`Supervisor::stop`] ends
//!   them. One task for each adapter owns its process and its socket.
//! * [`validate_adapters`] asks the programs, before they are started in earnest, whether they can do what is asked of them.
//! * [`settle`] makes a gateway that root has started another user's; its [`Spawner`] stays root, in a process of its own.
//! * [`adapter_exec`] is what a child does to itself before it becomes the adapter.
//! * [`Reloader`] puts a changed configuration in force, or nothing of it.
//!
//! This module must never parse what an adapter says beyond its manifest, never run a shell, and never start a process before the
//! leases of its predecessor are settled.

mod actor;
mod changeable;
mod egress;
mod exec;
mod exit;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod handover;
mod instance;
mod launch;
mod manifest;
mod output;
mod process;
mod program;
mod reload;
mod restarts;
mod sandbox;
mod shared;
mod socket;
mod spawner;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gatepost_api::lists::AdapterItem;
use gatepost_core::principal::Actor;
use gatepost_store::Store;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use actor::{Deadlines, Supervision, World};
use changeable::Changeable;
use shared::{Shared, Spec, Wish};

use crate::config::{Access, Adapter, Config};
use crate::http::{AdapterControl, RestartError};

pub(crate) use exec::adapter_exec;
pub(crate) use launch::Launcher;
pub(crate) use manifest::{Manifest, validate_adapters};
pub(crate) use program::SearchPath;
pub(crate) use reload::{Hangups, Parts, Reloader, RequestError, queue_setups, request_reload};
pub(crate) use sandbox::divide_group;
pub(crate) use socket::Sockets;
pub(crate) use spawner::{RunningAs, Settled, Spawned, Spawner, UserError, give_to_gateway, settle, spawner};

/// What the supervisor works with.
pub(crate) struct Means {
    pub(crate) store: Store,
    pub(crate) launcher: Launcher,
    /// Who the gateway is in the audit log.
    pub(crate) gateway: Actor,
}

/// The handle. Cheap to clone; whoever calls [`Supervisor::stop`] owns the tasks.
#[derive(Clone)]
pub(crate) struct Supervisor(Arc<Inner>);

struct Inner {
    means: Means,
    deadlines: Deadlines,
    roster: Mutex<Roster>,
}

#[derive(Default)]
struct Roster {
    /// Known once [`Supervisor::begin`] has been called.
    world: Option<Arc<World>>,
    adapters: BTreeMap<String, Entry>,
    /// What the programs say that their settings imply, by adapter.
    implied: BTreeMap<String, Access>,
    /// Tasks of adapters that have left the configuration.
    leaving: BTreeMap<String, JoinHandle<()>>,
}

enum Entry {
    Supervised { shared: Arc<Shared>, wishes: watch::Sender<Wish>, task: JoinHandle<()> },
    External { shared: Arc<Shared> },
}

impl Supervisor {
    /// Knows no adapter yet.
    pub(crate) fn new(means: Means) -> Self {
        Self::with_deadlines(means, Deadlines::default())
    }

    fn with_deadlines(means: Means, deadlines: Deadlines) -> Self {
        Self(Arc::new(Inner { means, deadlines, roster: Mutex::default() }))
    }

    /// Starts the configuration's adapters, whose sockets `sockets` serves. The supervisor exists before, because what is served
    /// on those sockets needs it.
    pub(crate) async fn begin(&self, sockets: Sockets, config: &Config) {
        let Means { store, launcher, gateway } = &self.0.means;
        let world = World {
            store: store.clone(),
            launcher: launcher.clone(),
            search: program::SearchPath::of_this_process(),
            sockets,
            changeable: Changeable::default(),
            gateway: gateway.clone(),
            mark: launcher.mark(&config.gateway.data_dir).await,
            data_dir: config.gateway.data_dir.clone(),
            deadlines: self.0.deadlines,
            config: Mutex::default(),
        };
        self.roster().world = Some(Arc::new(world));
        self.apply(config);
    }

    /// What the adapters' programs have said of themselves; counts from the next [`Supervisor::apply`] on.
    pub(crate) fn learn(&self, manifests: BTreeMap<String, Manifest>) {
        self.roster().implied =
            manifests.into_iter().map(|(name, manifest)| (name, manifest.implied)).collect();
    }

    /// Makes the processes follow `config`: new adapters start, changed ones restart, those that are gone end. Does not wait for
    /// any of it. Before [`Supervisor::begin`] and after [`Supervisor::stop`] it does nothing.
    pub(crate) fn apply(&self, config: &Config) {
        let mut roster = self.roster();
        let Some(world) = roster.world.clone() else { return };
        world.follow(&config.digest);
        roster.leaving.retain(|_, task| !task.is_finished());
        // Whether or not they have been started: an earlier process of theirs may have left something.
        let specs = roster.specs(config);
        for Spec { name, sandbox, implied, .. } in specs.values().flatten() {
            world.changeable.expect(name, sandbox, implied);
        }
        let kept = |name: &String| config.adapters.contains_key(name);
        let gone: Vec<_> = roster.adapters.keys().filter(|name| !kept(name)).cloned().collect();
        gone.iter().for_each(|name| roster.dismiss(name));
        for (name, spec) in specs {
            match (spec, roster.adapters.get(&name)) {
                (Some(spec), Some(Entry::Supervised { wishes, .. })) => {
                    wishes.send_if_modified(|wish| std::mem::replace(&mut wish.spec, spec.clone()) != spec);
                }
                (Some(spec), Some(Entry::External { .. }) | None) => roster.engage(&world, spec),
                (None, Some(Entry::External { .. })) => {}
                (None, Some(Entry::Supervised { .. }) | None) => {
                    roster.dismiss(&name);
                    roster.adapters.insert(name, Entry::External { shared: Arc::default() });
                }
            }
        }
        let is_ours = |name: &str| matches!(roster.adapters.get(name), Some(Entry::Supervised { .. }));
        world.changeable.keep(|name| is_ours(name) || roster.leaving.contains_key(name));
    }

    /// Asks every process to finish, ends those that do not, and waits until all are gone. Their sockets are served meanwhile.
    pub(crate) async fn stop(&self) {
        let tasks: Vec<_> = {
            let mut roster = self.roster();
            roster.world = None;
            let names: Vec<_> = roster.adapters.keys().cloned().collect();
            names.iter().for_each(|name| roster.dismiss(name));
            std::mem::take(&mut roster.leaving).into_iter().collect()
        };
        for (name, task) in tasks {
            if let Err(error) = task.await {
                tracing::error!(adapter = %name, %error, "the adapter's supervision failed");
            }
        }
    }

    /// Whether `pid` is an adapter's process, which leads the group of all that it starts.
    pub(crate) fn has_process(&self, pid: i32) -> bool {
        let pid = u32::try_from(pid).ok();
        pid.is_some() && self.roster().adapters.values().any(|entry| entry.shared().status().pid == pid)
    }

    fn roster(&self) -> MutexGuard<'_, Roster> {
        self.0.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Roster {
    /// The configuration's adapters, and how those are to run that somebody else does not.
    fn specs(&self, config: &Config) -> BTreeMap<String, Option<Spec>> {
        let spec = |(name, adapter): (&String, &Arc<Adapter>)| {
            let implied = self.implied.get(name).cloned().unwrap_or_default();
            (name.clone(), Spec::of(adapter, implied))
        };
        config.adapters.iter().map(spec).collect()
    }

    fn engage(&mut self, world: &Arc<World>, spec: Spec) {
        let name = spec.name.clone();
        let shared = Arc::<Shared>::default();
        let (wishes, wished) = watch::channel(Wish { spec, restart: 0, end: false });
        let before = self.leaving.remove(&name);
        let supervision = Supervision::new(Arc::clone(world), Arc::clone(&shared), wished);
        let task = tokio::spawn(supervision.run(before));
        self.adapters.insert(name, Entry::Supervised { shared, wishes, task });
    }

    fn dismiss(&mut self, name: &str) {
        if let Some(Entry::Supervised { wishes, task, .. }) = self.adapters.remove(name) {
            wishes.send_modify(|wish| wish.end = true);
            // The name has one task at a time and `engage` takes the one before, so that none is lost here.
            self.leaving.insert(name.to_owned(), task);
        }
    }
}

impl Entry {
    fn shared(&self) -> &Shared {
        match self {
            Self::Supervised { shared, .. } | Self::External { shared } => shared,
        }
    }
}

impl AdapterControl for Supervisor {
    fn list(&self) -> Vec<AdapterItem> {
        let item = |(name, entry): (&String, &Entry)| match entry {
            Entry::Supervised { shared, .. } => shared.item(name),
            Entry::External { shared } => shared.external_item(name),
        };
        self.roster().adapters.iter().map(item).collect()
    }

    fn restart(&self, name: &str) -> Result<(), RestartError> {
        match self.roster().adapters.get(name) {
            Some(Entry::Supervised { wishes, .. }) => {
                wishes.send_modify(|wish| wish.restart += 1);
                Ok(())
            }
            Some(Entry::External { .. }) => Err(RestartError::External),
            None => Err(RestartError::NotFound),
        }
    }

    fn session_opened(&self, name: &str, epoch: u64, version: Option<&str>) {
        if let Some(entry) = self.roster().adapters.get(name) {
            entry.shared().session_opened(epoch, version);
        }
    }
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
