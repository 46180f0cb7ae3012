//! Certificates, keys, authorities and revocation lists are taken anew when their files change. Files that cannot serve leave the
//! last ones that could in force, and are named once.

use std::{fs, io, net::SocketAddr, os::unix::fs::MetadataExt, path::Path, sync::Arc, time::Duration};

use tokio::{sync::watch::Receiver, task::spawn_blocking, time::timeout};

use super::{ServerTls, TlsError};
use crate::config::TlsFiles;

/// How often the files are looked at. What was seen to have changed is read one look later, if it has not changed again: a
/// certificate and its key are two files, and whoever writes them is done by then.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// By what a changed file is noticed, without reading it; `None` for one that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Print(Vec<Option<FilePrint>>);

/// Device, inode, size, and the times of the newest change of content and of rights (a key that was exposed is mended by `chmod`).
type FilePrint = (u64, u64, u64, (i64, i64), (i64, i64));

impl Print {
    pub(super) fn of(files: &TlsFiles) -> Self {
        let paths = [&files.cert, &files.key, &files.client_ca].into_iter().chain(&files.crl);
        Self(paths.map(|path| file_print(path).ok()).collect())
    }
}

fn file_print(path: &Path) -> io::Result<FilePrint> {
    let found = fs::metadata(path)?;
    let (content, rights) = ((found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec()));
    Ok((found.dev(), found.ino(), found.size(), content, rights))
}

/// What was seen of one listener's files.
#[derive(Debug, Default)]
pub(in crate::listen) struct Seen {
    /// Changed at the last look; read if they look the same at the next.
    changing: Option<Print>,
    /// Could not serve, which was said.
    refused: Option<Print>,
}

impl ServerTls {
    /// Looks at the files; whether they were taken anew, or why not. `None` if there was nothing to do.
    pub(in crate::listen) fn look(&self, seen: &mut Seen) -> Option<Result<(), TlsError>> {
        let now = Print::of(&self.files);
        if now == self.in_force.borrow().print || seen.refused.as_ref() == Some(&now) {
            seen.changing = None;
            return None;
        }
        if seen.changing.as_ref() != Some(&now) {
            seen.changing = Some(now);
            return None;
        }
        seen.changing = None;
        let reloaded = self.reload();
        seen.refused = reloaded.is_err().then_some(now);
        Some(reloaded)
    }
}

/// Looks at the files of all `listeners` until `stop` holds `true`; tells `taken` of each listener that has taken changed ones.
pub(crate) async fn keep_current(
    listeners: Vec<(SocketAddr, Arc<ServerTls>)>,
    taken: impl AsyncFn(SocketAddr),
    mut stop: Receiver<bool>,
) {
    let mut watched: Vec<_> = listeners.into_iter().map(|(at, tls)| (at, tls, Seen::default())).collect();
    if watched.is_empty() {
        return;
    }
    // A dropped sender means that the gateway is gone.
    while timeout(LOOK_INTERVAL, stop.wait_for(|stop| *stop)).await.is_err() {
        for (listener, tls, seen) in &mut watched {
            let (tls, mut looking) = (tls.clone(), std::mem::take(seen));
            let looked = spawn_blocking(move || {
                let looked = tls.look(&mut looking);
                (looked, looking)
            });
            // It can only fail as the runtime ends.
            let Ok((looked, looking)) = looked.await else { return };
            *seen = looking;
            match looked {
                None => {}
                Some(Ok(())) => {
                    tracing::info!(%listener, "changed certificates and revocation lists are in force");
                    taken(*listener).await;
                }
                Some(Err(error)) => tracing::error!(
                    %listener,
                    error = %chain(&error),
                    "changed certificates or revocation lists cannot be used; the ones before stay in force"
                ),
            }
        }
    }
}

fn chain(error: &TlsError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
