//! Which machine the figures are of.

use std::path::Path;

use nix::sys::statfs::statfs;
use serde::Serialize;

use super::super::ui::{Style, Ui};

#[derive(Debug, Serialize)]
pub(super) struct Machine {
    pub(super) name: String,
    pub(super) cpu: String,
    pub(super) cores: usize,
    pub(super) kernel: String,
    /// Of the directory that was measured.
    pub(super) filesystem: String,
}

impl Machine {
    pub(super) fn detect(dir: &Path) -> Self {
        let unknown = || "unknown".to_owned();
        let uname = nix::sys::utsname::uname().ok();
        let text = |part: &std::ffi::OsStr| part.to_string_lossy().into_owned();
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            name: uname.as_ref().map_or_else(unknown, |uname| text(uname.nodename())),
            cpu: cpu.map_or_else(unknown, |(_, name)| name.trim().to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: uname.as_ref().map_or_else(unknown, |uname| text(uname.release())),
            filesystem: filesystem(dir),
        }
    }

    /// All of it, for people.
    pub(super) fn line(&self, ui: &Ui) -> String {
        let name = ui.paint(Style::Strong, &self.name);
        format!("{name} · {} × {} · Linux {} · {}", self.cores, self.cpu, self.kernel, self.filesystem)
    }

    /// Its "fsync" does nothing.
    pub(super) fn is_volatile(&self) -> bool {
        self.filesystem == "tmpfs"
    }
}

/// The name of the filesystem that `dir` is on; its magic number where we have no name.
pub(crate) fn filesystem(dir: &Path) -> String {
    let Ok(found) = statfs(dir) else { return "unknown".to_owned() };
    let name = match found.filesystem_type().0 {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlay",
        0x2fc1_2fc1 => "zfs",
        0x6969 => "nfs",
        0x6573_5546 => "fuse",
        0xff53_4d42 => "cifs",
        other => return format!("{other:#x}"),
    };
    name.to_owned()
}
