//! What operators' calls were about, in words: a file for each beside the audit log, which has its digest. Arguments and reasons can name
//! people, so that a file goes when payloads of its age go; its leaf stays, and says that there was one.

use std::io;
use std::path::Path;
use std::time::Duration;

use gatepost_core::time::Timestamp;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use uuid::Uuid;

use crate::http::state::AppState;

const PREFIX: &str = "call-";
const SUFFIX: &str = ".json";
/// Between two looks for files whose time has come.
const LOOK_INTERVAL: Duration = Duration::from_secs(3600);

pub(super) fn file_name(call: Uuid) -> String {
    format!("{PREFIX}{call}{SUFFIX}")
}

/// Removes files whose time has come until `stop` holds `true`.
pub(crate) async fn forget_calls(state: AppState, mut stop: watch::Receiver<bool>) {
    loop {
        let config = state.config.load_full();
        let gateway = &config.gateway;
        let (dir, keep, now) = (gateway.data_dir.join("audit"), gateway.retention, state.store.read().now());
        match spawn_blocking(move || forget(&dir, keep, now)).await {
            Ok(Ok(0)) => {}
            Ok(Ok(files)) => {
                tracing::info!(files, "texts of operators' calls are past their retention and gone")
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "texts of operators' calls that are past their retention cannot be removed");
            }
            Err(error) => tracing::error!(%error, "looking for texts of operators' calls failed"),
        }
        // A dropped sender means that the gateway is gone.
        if timeout(LOOK_INTERVAL, stop.wait_for(|stop| *stop)).await.is_ok() {
            return;
        }
    }
}

/// How many went. One that cannot be removed keeps none of the others.
fn forget(dir: &Path, keep: Duration, now: Timestamp) -> io::Result<u64> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let (mut gone, mut failed) = (0, None);
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_str().and_then(called_at).is_some_and(|at| now.since(at) >= keep) {
            match std::fs::remove_file(entry.path()) {
                Ok(()) => gone += 1,
                Err(error) => failed = Some(error),
            }
        }
    }
    failed.map_or(Ok(gone), Err)
}

/// When the call was made whose text has this name, or the one that it has while it is written; `None` for any other file.
fn called_at(name: &str) -> Option<Timestamp> {
    let unfinished = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp"));
    let id: Uuid = unfinished.unwrap_or(name).strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok()?;
    let (seconds, nanos) = id.get_timestamp()?.to_unix();
    let micros = i64::try_from(seconds).ok()?.checked_mul(1_000_000)?;
    micros.checked_add(i64::from(nanos / 1000)).map(Timestamp::from_micros)
}

#[cfg(test)]
mod tests {
    use uuid::{NoContext, Timestamp as UuidTime};

    use super::*;

    const DAY_S: u64 = 24 * 3600;
    const NOW_S: u64 = 1_800_000_000;

    #[test]
    fn texts_go_at_the_age_of_payloads_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let call = |days: u64| {
            let at = UuidTime::from_unix(NoContext, NOW_S - days * DAY_S, 0);
            file_name(Uuid::new_v7(at))
        };
        let (young, due, old) = (call(29), call(30), call(400));
        let random = file_name(Uuid::from_u128(7));
        let others = ["checkpoint", "call-.json", "call-x.json", "vkey", random.as_str(), ".checkpoint.tmp"];
        // Left by whoever was killed while it was written.
        let unfinished = format!(".{}.tmp", call(31));
        for name in [&young, &due, &old, &unfinished].into_iter().map(String::as_str).chain(others) {
            std::fs::write(dir.path().join(name), "{}").unwrap();
        }
        let now = Timestamp::from_micros(i64::try_from(NOW_S * 1_000_000).unwrap());
        let keep = Duration::from_secs(30 * DAY_S);
        assert_eq!(forget(dir.path(), keep, now).unwrap(), 3);
        assert_eq!(forget(dir.path(), keep, now).unwrap(), 0);
        let mut left: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let mut expected: Vec<String> = others.iter().map(|name| (*name).to_owned()).chain([young]).collect();
        left.sort();
        expected.sort();
        assert_eq!(left, expected);
        assert_eq!(forget(&dir.path().join("missing"), keep, now).unwrap(), 0);
        // A directory cannot be removed so.
        std::fs::create_dir(dir.path().join(call(40))).unwrap();
        for days in 50..80 {
            std::fs::write(dir.path().join(call(days)), "{}").unwrap();
        }
        assert!(forget(dir.path(), keep, now).is_err());
        let count = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(count, expected.len() + 1, "and all others are gone");
    }
}
