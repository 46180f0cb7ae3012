//! `gatepost doctor`: looks at everything that a gateway needs from its machine, and says what to do where it is missing.

mod repair;

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use gatepost_store::salvage::{self, SalvageError};
use gatepost_store::{Database, ServerFinding, Weight};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::statvfs::statvfs;
use nix::sys::utsname::uname;
use serde::Serialize;

use super::failure::Failure;
use super::locate::{self, Serves};
use super::ui::{Style, Ui};
use super::{Context, setup, text};
use crate::config::Config;

/// Appends of the probe.
const APPENDS: usize = 200;
const APPEND_BYTES: usize = 1024;
/// Slower than this and the disk is what limits the gateway.
const FSYNC_SLOW: Duration = Duration::from_millis(5);
/// Faster than this and "durable" is in doubt.
const FSYNC_TOO_FAST: Duration = Duration::from_micros(10);
const FREE_BYTES_LOW: u64 = 1 << 30;
const FREE_BYTES_MIN: u64 = 64 << 20;
const OPEN_FILES_LOW: u64 = 4096;

/// Damaged places of the data that are shown; all are counted.
const DAMAGE_SHOWN: usize = 5;

#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Save what is sound of a stopped gateway's data into this new directory
    #[arg(long, value_name = "NEW-DIRECTORY")]
    repair: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    /// Works, but somebody should know.
    Warn,
    Fail,
}

#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    verdict: Verdict,
    found: String,
    /// What to do.
    advice: Option<String>,
}

impl Finding {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Ok, found: found.into(), advice: None }
    }

    fn warn(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Warn, found: found.into(), advice: Some(advice.into()) }
    }

    fn fail(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Fail, found: found.into(), advice: Some(advice.into()) }
    }
}

impl Doctor {
    /// What it makes.
    pub(super) fn target(&self) -> Option<&Path> {
        self.repair.as_deref()
    }
}

pub(super) fn doctor(context: &Context, args: &Doctor) -> Result<(), Failure> {
    if let Some(target) = &args.repair {
        return repair::repair(context, target);
    }
    let ui = &context.ui;
    let config = context.config.as_deref();
    let mut findings = vec![kernel(), peer_pidfd(), landlock(), open_files(), sqlite()];
    findings.extend(configuration(config));
    findings.extend(disk(config));
    findings.extend(data(config));
    findings.extend(database(config));
    findings.extend(sockets(config));
    let failed = findings.iter().filter(|finding| finding.verdict == Verdict::Fail).count() as u64;
    if ui.json {
        ui.json(&serde_json::json!({"healthy": failed == 0, "findings": findings}))?;
    } else {
        print(ui, &findings)?;
    }
    if failed == 0 {
        return Ok(());
    }
    Err(Failure::unsuccessful(format!("{} to be mended", text::plural(failed, "thing needs", "things need"))))
}

fn print(ui: &Ui, findings: &[Finding]) -> Result<(), Failure> {
    for finding in findings {
        let (style, mark) = match finding.verdict {
            Verdict::Ok => (Style::Good, "ok  "),
            Verdict::Warn => (Style::Warn, "warn"),
            Verdict::Fail => (Style::Bad, "FAIL"),
        };
        let found = super::ui::harmless(&finding.found);
        ui.line(format_args!("{} {:<18} {found}", ui.paint(style, mark), finding.what))?;
        if let Some(advice) = &finding.advice {
            ui.line(ui.paint(Style::Faint, format_args!("{:<23} → {}", "", super::ui::harmless(advice))))?;
        }
    }
    Ok(())
}

// === the machine ===

fn kernel_release() -> String {
    uname().map_or_else(|_| "unknown".to_owned(), |uname| uname.release().to_string_lossy().into_owned())
}

/// Major and minor version.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

fn kernel() -> Finding {
    let release = kernel_release();
    match kernel_version(&release) {
        Some(version) if version >= (5, 10) => Finding::ok("kernel", format!("Linux {release}")),
        _ => Finding::warn(
            "kernel",
            format!("Linux {release}"),
            "5.10 or newer is what Gatepost is tested with",
        ),
    }
}

fn peer_pidfd() -> Finding {
    const WHAT: &str = "SO_PEERPIDFD";
    let asked = UnixStream::pair().map_err(|error| error.to_string()).and_then(|(one, _other)| {
        getsockopt(&one, sockopt::PeerPidfd).map(drop).map_err(|errno| errno.to_string())
    });
    match asked {
        Ok(()) => Finding::ok(WHAT, "peers are known by pidfd"),
        Err(why) => Finding::warn(WHAT, why, "peers are known by pid only; Linux 6.5 has it"),
    }
}

/// The ABI goes by the kernel's version where Landlock is switched on: there is no other way to tell without using it.
fn landlock() -> Finding {
    const WHAT: &str = "Landlock";
    const ABIS: [((u32, u32), u32); 7] =
        [((6, 15), 7), ((6, 12), 6), ((6, 10), 5), ((6, 7), 4), ((6, 2), 3), ((5, 19), 2), ((5, 13), 1)];
    let modules = std::fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    let release = kernel_release();
    let abi = kernel_version(&release).and_then(|version| ABIS.iter().find(|(since, _)| version >= *since));
    let active = modules.split(',').any(|module| module.trim() == "landlock");
    match (active, abi) {
        (true, Some((_, abi))) => {
            Finding::ok(WHAT, format!("active, ABI {abi} or newer by the kernel's version"))
        }
        _ if modules.is_empty() => {
            Finding::warn(WHAT, "unknown: /sys/kernel/security is not readable here", "look on the host")
        }
        _ => Finding::warn(WHAT, "not active", "boot with lsm=landlock,… to have it"),
    }
}

fn open_files() -> Finding {
    const WHAT: &str = "open files";
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, _)) if soft >= OPEN_FILES_LOW => {
            Finding::ok(WHAT, format!("at most {}", text::count(soft)))
        }
        Ok((soft, hard)) => Finding::warn(
            WHAT,
            format!("at most {}", text::count(soft)),
            format!("each connection needs one: raise the limit (it may be up to {})", text::count(hard)),
        ),
        Err(errno) => Finding::warn(WHAT, errno.to_string(), "see `ulimit -n`"),
    }
}

fn sqlite() -> Finding {
    const WHAT: &str = "SQLite";
    /// The first release without the WAL-reset corruption bug.
    const FIRST_GOOD: (u32, u32, u32) = (3, 51, 3);
    let version = gatepost_store::sqlite_version();
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    if (next(), next(), next()) >= FIRST_GOOD {
        return Finding::ok(WHAT, version);
    }
    Finding::fail(
        WHAT,
        version,
        "older than 3.51.3 it can corrupt its WAL: `serve` refuses it; use a newer build",
    )
}

// === the configuration and what it names ===

fn configuration(path: Option<&Path>) -> Vec<Finding> {
    const WHAT: &str = "configuration";
    match setup::faults(path) {
        Ok(Ok(valid)) => {
            let warned = valid.warnings.into_iter().map(|warning| Finding {
                what: WHAT,
                verdict: Verdict::Warn,
                found: warning.line,
                advice: None,
            });
            std::iter::once(Finding::ok(WHAT, valid.summary)).chain(warned).collect()
        }
        Ok(Err(faults)) => faults
            .into_iter()
            .map(|fault| Finding::fail(WHAT, fault.line, "correct it, then `gatepost check`"))
            .collect(),
        Err(failure) => {
            let found = failure.to_string();
            vec![Finding { what: WHAT, verdict: Verdict::Warn, found, advice: failure.hint() }]
        }
    }
}

/// The data directory's disk: its nearest ancestor that is there, else the current directory.
fn disk(config: Option<&Path>) -> Vec<Finding> {
    let wanted = locate::data_dir(config).unwrap_or_else(|_| PathBuf::from("."));
    let wanted = std::path::absolute(&wanted).unwrap_or(wanted);
    let Some(dir) = wanted.ancestors().find(|dir| dir.is_dir()) else { return Vec::new() };
    vec![free_space(dir), filesystem(dir), fsync(dir)]
}

/// Everything that a stopped gateway has stored, read from the first byte to the last.
fn data(config: Option<&Path>) -> Vec<Finding> {
    const WHAT: &str = "data";
    let Ok(dir) = locate::data_dir(config) else { return Vec::new() };
    let found = match salvage::inspect(&dir, &locate::seal_keys(config)) {
        Ok(found) => found,
        Err(SalvageError::NoData(_)) => return Vec::new(),
        Err(SalvageError::InUse(_)) => {
            let found = "in use: a gateway that runs names the damage it meets in `gatepost status`";
            return vec![Finding::ok(WHAT, found)];
        }
        Err(error) => {
            return vec![Finding::warn(WHAT, error.to_string(), "run doctor as the gateway's user")];
        }
    };
    let messages = text::plural(found.messages, "message", "messages");
    let deliveries = text::plural(found.deliveries, "delivery", "deliveries");
    let entries = text::plural(found.entries, "entry", "entries");
    if found.damage.is_empty() {
        return vec![Finding::ok(
            WHAT,
            format!("{messages}, {deliveries}, {entries} of the log: all as written"),
        )];
    }
    let advice = "`gatepost doctor --repair NEW-DIRECTORY` saves what is sound";
    let shown = found.damage.iter().rev().take(DAMAGE_SHOWN).map(|damage| {
        let id = damage.id.as_ref().map_or_else(String::new, |id| format!(" ({id})"));
        Finding::fail(WHAT, format!("{} {}{id}: {}", damage.what, damage.place, damage.why), advice)
    });
    let mut findings: Vec<Finding> = shown.collect();
    let more = found.damage.len().saturating_sub(DAMAGE_SHOWN) as u64;
    if more > 0 {
        findings.push(Finding::fail(
            WHAT,
            format!("… and {}", text::plural(more, "place more", "places more")),
            advice,
        ));
    }
    findings
}

/// The server that a shared database is on, if it is on one.
fn database(path: Option<&Path>) -> Vec<Finding> {
    const WHAT: &str = "PostgreSQL";
    // What is wrong with the file is said above.
    let Some(config) = locate::config_path(path).ok().and_then(|path| Config::load(Some(&path)).ok()) else {
        return Vec::new();
    };
    let (url, engines) = match crate::serve::database(&config) {
        Ok(Database::Postgres { url, engines, .. }) => (url, engines),
        Ok(Database::Sqlite) => return Vec::new(),
        Err(error) => {
            return vec![Finding::fail(WHAT, error.to_string(), "run doctor as the gateway's user")];
        }
    };
    let looked = super::runtime().map(|runtime| runtime.block_on(gatepost_store::server_look(&url, engines)));
    match looked {
        Ok(Ok(look)) if look.findings.is_empty() => {
            vec![Finding::ok(WHAT, format!("{}, durability {}", look.server, look.durability.as_str()))]
        }
        Ok(Ok(look)) => {
            let finding = |found: ServerFinding| {
                let verdict = match found.weight {
                    Weight::Refused => Verdict::Fail,
                    Weight::Warning => Verdict::Warn,
                };
                let text = format!("{}: {}", found.what, found.found);
                Finding { what: WHAT, verdict, found: text, advice: Some(found.advice) }
            };
            look.findings.into_iter().map(finding).collect()
        }
        Ok(Err(error)) => {
            vec![Finding::fail(WHAT, error.to_string(), "the gateway does not start without it")]
        }
        Err(failure) => vec![Finding::warn(WHAT, failure.to_string(), "try again")],
    }
}

fn free_space(dir: &Path) -> Finding {
    const WHAT: &str = "free disk";
    let Ok(stat) = statvfs(dir) else {
        return Finding::warn(WHAT, format!("unknown for {}", dir.display()), "look with `df`");
    };
    let free = stat.blocks_available() * stat.fragment_size();
    let found = format!("{} for {}", text::bytes(free), dir.display());
    match free {
        ..FREE_BYTES_MIN => {
            Finding::fail(WHAT, found, "accepting stops when the disk is full: free some space")
        }
        FREE_BYTES_MIN..FREE_BYTES_LOW => Finding::warn(WHAT, found, "accepting stops when the disk is full"),
        _ => Finding::ok(WHAT, found),
    }
}

fn filesystem(dir: &Path) -> Finding {
    const WHAT: &str = "filesystem";
    let name = super::bench::filesystem(dir);
    match name.as_str() {
        "tmpfs" => Finding::fail(WHAT, name, "a data_dir in memory is lost with the power: use a disk"),
        "nfs" | "cifs" | "fuse" => Finding::warn(WHAT, name, "SQLite's locks need a local filesystem"),
        "overlay" => Finding::warn(WHAT, name, "a container's layer goes with the container: mount a volume"),
        _ => Finding::ok(WHAT, name),
    }
}

fn fsync(dir: &Path) -> Finding {
    const WHAT: &str = "fdatasync";
    let (p50, p99) = match probe(dir) {
        Ok(measured) => measured,
        Err(error) => {
            return Finding::warn(
                WHAT,
                format!("{}: {error}", dir.display()),
                "run doctor as the gateway's user",
            );
        }
    };
    let found = format!(
        "{} p50, {} p99 ({APPENDS} appends of 1 KiB in {})",
        text::span(p50),
        text::span(p99),
        dir.display()
    );
    if p50 < FSYNC_TOO_FAST {
        return Finding::warn(WHAT, found, "too fast for a disk: does it really keep what it confirms?");
    }
    if p50 > FSYNC_SLOW {
        return Finding::warn(WHAT, found, "slow: one sender at a time waits this long for each message");
    }
    Finding::ok(WHAT, found)
}

fn probe(dir: &Path) -> std::io::Result<(Duration, Duration)> {
    let path = dir.join(format!(".gatepost-doctor-{}", std::process::id()));
    let mut file = std::fs::File::options().write(true).create_new(true).open(&path)?;
    let measured = (0..APPENDS)
        .map(|_| {
            let begun = Instant::now();
            file.write_all(&[0x61; APPEND_BYTES])?;
            file.sync_data()?;
            Ok(begun.elapsed())
        })
        .collect::<std::io::Result<Vec<_>>>();
    std::fs::remove_file(&path)?;
    let mut latencies = measured?;
    latencies.sort_unstable();
    Ok((latencies[APPENDS / 2], latencies[APPENDS * 99 / 100]))
}

fn sockets(config: Option<&Path>) -> Vec<Finding> {
    let named = [("apps' socket", Serves::Apps), ("operators' socket", Serves::Operators)];
    let sockets = named
        .into_iter()
        .filter_map(|(what, serves)| Some((what, locate::socket(config, None, serves).ok()?)));
    sockets.map(|(what, socket)| reachable(what, &socket)).collect()
}

fn reachable(what: &'static str, socket: &Path) -> Finding {
    match UnixStream::connect(socket) {
        Ok(_) => Finding::ok(what, format!("{} answers", socket.display())),
        Err(source) => {
            let failure = Failure::Unreachable { socket: socket.to_path_buf(), source };
            let advice = failure.hint().unwrap_or_default();
            Finding::warn(what, failure.to_string(), advice)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_read_from_any_release() {
        assert_eq!(kernel_version("6.18.0-rc1+deb13-amd64"), Some((6, 18)));
        assert_eq!(kernel_version("5.10.0"), Some((5, 10)));
        assert_eq!(kernel_version("unknown"), None);
    }

    #[test]
    fn the_probe_measures_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (p50, p99) = probe(dir.path()).unwrap();
        assert!(p50 <= p99);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_gateway_that_is_not_there_is_no_failure_of_the_machine() {
        let finding = reachable("apps' socket", Path::new("/nowhere/app.sock"));
        assert_eq!(finding.verdict, Verdict::Warn);
        assert!(finding.advice.unwrap().contains("gatepost serve"));
    }
}
