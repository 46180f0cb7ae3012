//! The demo's last step: the audit log, exported and verified by a program that links nothing of the gateway; then the same
//! with one bit changed.

use std::path::Path;
use std::process::{Output, Stdio};

use gatepost_audit::entries_path;
use serde::Deserialize;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::super::client::Call;
use super::super::failure::{EXIT_AUDIT, Failure};
use super::super::scratch::{Site, program_beside, this_program};
use super::super::status::audit_head;
use super::super::text;
use super::super::ui::{Style, harmless};
use super::{POLL, SETTLE_DEADLINE, Story};

/// Each accepted message has at least these: accepted, attempt, delivered.
const LEAVES_PER_MESSAGE: u64 = 3;
/// The entry that is tampered with: in the second bundle, which the demo always fills.
const BUNDLE_TAMPERED: u64 = 1;
const ENTRY_TAMPERED: usize = 44;

/// What `gatepost-verify --json` says.
#[derive(Deserialize)]
struct Verdict {
    ok: bool,
    size: Option<u64>,
    root: Option<String>,
    /// Without a final outcome.
    deliveries_open: Option<u64>,
    message: Option<String>,
}

impl Story {
    /// Gives the number of entries and the root.
    pub(super) async fn audit(&self, site: &Site, accepted: usize) -> Result<(u64, String), Failure> {
        let ui = &self.ui;
        self.step(5, "The audit log, verified by a program that trusts nothing of this")?;
        let entries = entries_so_far(site).await?.max(accepted as u64 * LEAVES_PER_MESSAGE);
        until_signed(site, entries).await?;
        let copy = self.dir.join("audit-copy");
        export(site, &copy).await?;
        let verdict = verify(&copy).await?;
        let (true, Some(size), Some(root), Some(open)) =
            (verdict.ok, verdict.size, verdict.root, verdict.deliveries_open)
        else {
            let what =
                verdict.message.unwrap_or_else(|| "gatepost-verify did not say what is wrong".to_owned());
            return Err(Failure::Audit { code: EXIT_AUDIT, what });
        };
        let entries = text::plural(size, "entry", "entries");
        let fine = ui.paint(Style::Good, "nothing is wrong");
        self.say("verify", format_args!("{entries}, root {root}: {fine}"))?;
        self.say(
            "open",
            format_args!("{} without an outcome", text::plural(open, "delivery", "deliveries")),
        )?;
        tamper(&copy)?;
        let verdict = verify(&copy).await?;
        let (false, Some(message)) = (verdict.ok, verdict.message) else {
            return Err(Failure::Audit {
                code: EXIT_AUDIT,
                what: "a changed entry was not noticed".to_owned(),
            });
        };
        self.say(
            "one bit",
            format_args!("changed in the copy: {}", ui.paint(Style::Bad, harmless(&message))),
        )?;
        Ok((size, root))
    }
}

/// As the gateway counts them; what became of the last delivery is among them.
async fn entries_so_far(site: &Site) -> Result<u64, Failure> {
    let metrics = site.operator().call(Call::get("/metrics")).await?.body;
    let metrics = String::from_utf8_lossy(&metrics);
    let entries = metrics.lines().find_map(|line| line.strip_prefix("gatepost_audit_leaves ")?.parse().ok());
    entries.ok_or(Failure::Garbled { status: 200 })
}

/// Waits for the checkpoint, which comes each second, that covers so many entries.
async fn until_signed(site: &Site, size: u64) -> Result<(), Failure> {
    let mut operator = site.operator();
    let signed = async {
        loop {
            if audit_head(&mut operator).await?.is_some_and(|head| head.size >= size) {
                return Ok(());
            }
            sleep(POLL).await;
        }
    };
    let late = || Failure::unsuccessful(format!("no checkpoint covers {size} entries in time"));
    timeout(SETTLE_DEADLINE, signed).await.unwrap_or_else(|_| Err(late()))
}

async fn export(site: &Site, dir: &Path) -> Result<(), Failure> {
    let program = this_program()?;
    let mut command = Command::new(&program);
    command.args(["audit", "export", "--config"]).arg(&site.config).arg(dir);
    let output = output(&mut command, &program).await?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Failure::unsuccessful(format!("`gatepost audit export` failed: {why}")))
}

async fn verify(dir: &Path) -> Result<Verdict, Failure> {
    let program = program_beside("gatepost-verify")?;
    let output = output(Command::new(&program).arg(dir).arg("--json"), &program).await?;
    serde_json::from_slice(&output.stdout).map_err(|error| {
        Failure::unsuccessful(format!("the answer of gatepost-verify is not as expected: {error}"))
    })
}

async fn output(command: &mut Command, program: &Path) -> Result<Output, Failure> {
    let command = command.stdin(Stdio::null()).kill_on_drop(true);
    command.output().await.map_err(Failure::io(format!("cannot run {}", program.display())))
}

/// Flips one bit in the middle of an entry.
fn tamper(dir: &Path) -> Result<(), Failure> {
    let path = dir.join(entries_path(BUNDLE_TAMPERED, None));
    let doing = || format!("cannot change {}", path.display());
    let mut bytes = std::fs::read(&path).map_err(Failure::io(doing()))?;
    let middle = middle_of_entry(&bytes, ENTRY_TAMPERED);
    if let Some(byte) = middle.and_then(|at| bytes.get_mut(at)) {
        *byte ^= 1;
    }
    std::fs::write(&path, &bytes).map_err(Failure::io(doing()))
}

/// Entries stand one after the other, each behind its length in two bytes.
fn middle_of_entry(bundle: &[u8], entry: usize) -> Option<usize> {
    let mut at = 0;
    for index in 0.. {
        let length = usize::from(u16::from_be_bytes([*bundle.get(at)?, *bundle.get(at + 1)?]));
        if index == entry {
            return Some(at + 2 + length / 2);
        }
        at += 2 + length;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_inside_the_entry() {
        let bundle = [0, 2, b'a', b'b', 0, 4, b'c', b'd', b'e', b'f'];
        assert_eq!(middle_of_entry(&bundle, 0), Some(3));
        assert_eq!(middle_of_entry(&bundle, 1), Some(8));
        assert_eq!(middle_of_entry(&bundle, 2), None);
    }
}
