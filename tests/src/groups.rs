//! The control groups of a killed gateway's adapters. Its next start removes them, and a test's gateway has none.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PAUSE: Duration = Duration::from_millis(10);
/// Its adapters die with it, but not at once.
const TRIES_MAX: u32 = 100;

/// Removes those of the gateway on `data_dir`, as far as that can be.
pub(crate) fn remove_groups(data_dir: &Path) {
    let Ok(data_dir) = std::fs::metadata(data_dir) else { return };
    let mark = format!(".{:x}-{:x}", data_dir.dev(), data_dir.ino());
    for _ in 0..TRIES_MAX {
        let groups = groups(&mark);
        if groups.is_empty() {
            return;
        }
        for group in groups {
            let _ = std::fs::remove_dir(group);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Beside the groups of this process, wherever those usually are.
fn groups(mark: &str) -> Vec<PathBuf> {
    let memberships = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = |line: &str| {
        let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
        Some(Path::new("/sys/fs/cgroup").join(controllers).join(group.trim_start_matches('/')))
    };
    let entries = memberships.lines().filter_map(own).filter_map(|own| std::fs::read_dir(own).ok()).flatten();
    let names_it = |path: &PathBuf| path.to_str().is_some_and(|path| path.ends_with(mark));
    entries.flatten().map(|entry| entry.path()).filter(names_it).collect()
}
