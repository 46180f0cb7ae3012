//! What the disk can do by itself, in the same run and the same directory: the yardstick for all other figures.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

/// Appends of one measurement.
pub(super) const APPENDS: usize = 2_000;
const APPEND_BYTES: usize = 1024;

/// Appends of 1 KiB to a growing file, each followed by fdatasync.
#[derive(Debug, Default)]
pub(super) struct Disk {
    latencies_us: Vec<u32>,
    elapsed: Duration,
}

impl Disk {
    pub(super) fn measure(&mut self, dir: &Path) -> io::Result<()> {
        let path = dir.join("fdatasync.probe");
        let mut file = File::create(&path)?;
        let block = [0x61; APPEND_BYTES];
        let started = Instant::now();
        for _ in 0..APPENDS {
            let begun = Instant::now();
            file.write_all(&block)?;
            file.sync_data()?;
            self.latencies_us.push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
        self.elapsed += started.elapsed();
        self.latencies_us.sort_unstable();
        std::fs::remove_file(&path)
    }

    pub(super) fn percentile_us(&self, share: f64) -> u32 {
        super::spread::percentile(&self.latencies_us, share)
    }

    pub(super) fn append_per_s(&self) -> f64 {
        self.latencies_us.len() as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_measurements_count_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = Disk::default();
        disk.measure(dir.path()).unwrap();
        disk.measure(dir.path()).unwrap();
        assert_eq!(disk.latencies_us.len(), 2 * APPENDS);
        assert!(disk.latencies_us.is_sorted());
        assert!(disk.append_per_s() > 0.0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
