//! An adapter's own socket: bound when its supervision begins, served until it ends, open to one process at a time.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::geteuid;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::egress::{Egress, Rules};
use super::spawner::Spawner;
use crate::config::RunAs;
use crate::listen::{AdapterSockets, Server, UnixBindError, adopt_adapter_sockets, bind_adapter_sockets};

const RUN_DIRECTORY: &str = "/run";
/// Bytes of a digest that tell the gateways of one machine apart.
const TAG_BYTES: usize = 6;

/// Where adapters' sockets stand and who serves them.
pub(crate) struct Sockets {
    /// Each adapter gets a directory of its own in it.
    pub(crate) directory: PathBuf,
    /// The same for processes of other users, who may not enter the data directory.
    pub(crate) reachable: PathBuf,
    pub(crate) server: Arc<Server>,
    /// Who makes those of other users' processes, if this process is not root.
    pub(crate) spawner: Option<Spawner>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum SocketError {
    #[error(transparent)]
    Bind(#[from] UnixBindError),
    #[error("run_as needs a gateway that was started as root: leave the key out, or start the gateway so")]
    NotRoot,
    #[error("the spawner cannot make it")]
    Spawner(#[from] std::io::Error),
    #[error("the adapter's socket has no path")]
    NoPath,
}

/// A served socket. Dropping it ends the serving with all connections.
pub(super) struct Socket {
    path: PathBuf,
    name: String,
    run_as: Option<RunAs>,
    /// Who removes it.
    spawner: Option<Spawner>,
    child: watch::Sender<Option<u32>>,
    stop: watch::Sender<bool>,
    serving: JoinHandle<()>,
    egress: Egress,
}

impl Sockets {
    /// Those of the gateway on `data_dir`.
    pub(crate) fn new(data_dir: &Path, server: Arc<Server>, spawner: Option<Spawner>) -> Self {
        Self { directory: data_dir.join("run"), reachable: reachable(data_dir), server, spawner }
    }

    /// For a process of the gateway's user, or of `run_as`.
    pub(super) async fn open(
        &self,
        name: &str,
        run_as: Option<RunAs>,
        config: &str,
    ) -> Result<Socket, SocketError> {
        let spawner = self.spawner.clone().filter(|_| run_as.is_some());
        if run_as.is_some() && spawner.is_none() && !geteuid().is_root() {
            return Err(SocketError::NotRoot);
        }
        let (child, expected) = watch::channel(None);
        let directory = if run_as.is_some() { &self.reachable } else { &self.directory };
        let AdapterSockets { gateway, egress } = match &spawner {
            Some(spawner) => {
                let (listeners, path) = spawner.listen(name, config).await?;
                adopt_adapter_sockets(listeners, path, name, expected)?
            }
            None => bind_adapter_sockets(directory, name, run_as, expected).await?,
        };
        let path = gateway.path().ok_or(SocketError::NoPath)?.to_owned();
        let (stop, stopping) = watch::channel(false);
        let serving = tokio::spawn(Arc::clone(&self.server).serve(gateway, stopping));
        let egress = Egress::open(egress, Arc::clone(&self.server));
        Ok(Socket { path, name: name.to_owned(), run_as, spawner, child, stop, serving, egress })
    }
}

/// Where the sockets of other users' processes stand, for the gateway on `data_dir`.
pub(super) fn reachable(data_dir: &Path) -> PathBuf {
    let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
    let tag = digest.iter().take(TAG_BYTES).fold(String::new(), |tag, byte| format!("{tag}{byte:02x}"));
    PathBuf::from(format!("{RUN_DIRECTORY}/gatepost-{tag}"))
}

impl Socket {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What the next process may ask for.
    pub(super) fn allow(&self, rules: Rules) {
        self.egress.allow(rules);
    }

    /// Lets this process in and no other. With `None`, nobody; connections of the one before are cut.
    pub(super) fn admit(&self, pid: Option<u32>) {
        self.child.send_replace(pid);
    }

    /// Whether it is one for processes of this user.
    pub(super) fn is_for(&self, run_as: Option<RunAs>) -> bool {
        self.run_as == run_as
    }

    /// Whether it has stopped serving although nobody asked it to.
    pub(super) fn is_broken(&self) -> bool {
        self.serving.is_finished() || self.egress.is_broken()
    }

    pub(super) async fn close(mut self) {
        self.egress.close().await;
        self.stop.send_replace(true);
        if let Err(error) = (&mut self.serving).await {
            tracing::error!(%error, "serving an adapter's socket failed");
        }
        if let Some(spawner) = &self.spawner {
            spawner.unlisten(&self.name).await;
        } else if self.run_as.is_some() {
            // Nobody else keeps anything there; what is not empty stays.
            let made = self.path.ancestors().skip(1).take(2);
            let _ = made.map(std::fs::remove_dir).collect::<Result<Vec<_>, _>>();
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
