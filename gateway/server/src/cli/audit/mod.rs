//! `gatepost audit`: the audit log in the data directory, whether the gateway runs or not. Nothing here asks the gateway:
//! who doubts it must not have to.

mod adopt;
mod log;
mod reconcile;

pub(super) use adopt::{not_opened, put_reason, this_user};

use std::path::{Path, PathBuf};

use clap::Subcommand;
use gatepost_audit::dir::VKEY;
use gatepost_audit::verify::{Outcome, read_vkey};
use gatepost_audit::{Checkpoint, ExportError, Fault, VerifierKey, read_checkpoint, verify_dir};
use gatepost_core::{DeliveryId, MessageId};
use gatepost_store::archive::{Archive, ArchiveError};
use gatepost_store::{Receipt, StoreError};
use indicatif::ProgressBar;
use serde_json::json;
use uuid::Uuid;

use super::failure::Failure;
use super::ui::{Style, Ui};
use super::{Context, locate, text};

#[derive(Debug, Subcommand)]
pub(super) enum Audit {
    /// Verify the log: every entry, the tree, the signature
    Verify {
        /// An older checkpoint, kept elsewhere, that the log must extend
        #[arg(long, value_name = "CHECKPOINT_FILE")]
        since: Option<PathBuf>,
    },
    /// Compare the log with the database, both ways: states, attempts, entries, messages, counts
    Reconcile,
    /// Copy the log into a directory that stands on its own, for `gatepost-verify` and for auditors
    Export {
        /// A new or empty directory
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Print the proofs that everything the log says of a delivery is in it (C2SP tlog-proof)
    Receipt {
        /// A delivery; or a message, for all its deliveries
        #[arg(value_name = "ID", value_parser = text::parse_id)]
        id: Uuid,
    },
    /// Print entries, oldest first
    Log(log::Log),
    /// Go on from a log that does not extend its last checkpoint; the decision becomes an entry
    Adopt {
        /// Why you know that the log is right. It is kept in a file beside the log, and the entry holds that file's SHA-256
        #[arg(long)]
        reason: String,
    },
}

pub(super) async fn audit(context: &Context, command: &Audit) -> Result<(), Failure> {
    if let Audit::Adopt { reason } = command {
        return adopt::adopt(context, reason).await;
    }
    let data_dir = locate::data_dir(context.config.as_deref())?;
    let database = locate::database(context.config.as_deref())?;
    let ui = &context.ui;
    let result = match (Archive::open(&data_dir, &database).await, command) {
        (Ok(archive), Audit::Verify { since }) => return verify(ui, archive, since.as_deref()).await,
        (Err(error), Audit::Verify { .. }) => return Err(first_fault(ui, &data_dir, error)),
        (Ok(archive), Audit::Export { dir }) => export(ui, &archive, dir).await,
        (Ok(archive), Audit::Reconcile) => return reconcile::reconcile(ui, &archive).await,
        (Ok(archive), Audit::Receipt { id }) => receipt(ui, &archive, *id).await,
        (Ok(archive), Audit::Log(args)) => log::log(ui, &archive, args).await,
        (Ok(_), Audit::Adopt { .. }) => Ok(()),
        (Err(error), _) => Err(unopened(&data_dir, error)),
    };
    // Only the verifier looks at everything.
    result.map_err(|failure| match failure {
        Failure::Audit { code, what } => {
            Failure::Audit { code, what: format!("{what}; `gatepost audit verify` says more") }
        }
        other => other,
    })
}

/// What cannot be opened cannot be verified either: the same exit codes.
pub(super) fn failure(error: ArchiveError) -> Failure {
    let outcome = match &error {
        ArchiveError::Checkpoint(_) => Outcome::Signature,
        ArchiveError::Ends(_) => Outcome::RolledBack,
        ArchiveError::Missing(_) | ArchiveError::Tiles(_) | ArchiveError::Store(StoreError::Audit(_)) => {
            Outcome::Files
        }
        ArchiveError::Export(ExportError::OtherTree { .. }) => Outcome::Root,
        ArchiveError::NoData(_)
        | ArchiveError::NotMoved(_)
        | ArchiveError::Moved(_)
        | ArchiveError::Io { .. }
        | ArchiveError::BadKey(_)
        | ArchiveError::Export(_)
        | ArchiveError::Store(_) => {
            return Failure::Unsuccessful { what: chain(&error), hint: hint(&error).map(str::to_owned) };
        }
    };
    Failure::Audit {
        code: outcome as u8,
        what: format!("the audit log is not as it was written: {}", chain(&error)),
    }
}

fn hint(error: &ArchiveError) -> Option<&'static str> {
    match error {
        ArchiveError::NoData(_) => Some(
            "has `gatepost serve` run with this configuration? If it has, look at `data_dir`, and whether you may read it",
        ),
        ArchiveError::NotMoved(_) => Some("until then look at it with the configuration that it ran with"),
        ArchiveError::Moved(_) => Some("set `postgres` in [store] of the configuration"),
        ArchiveError::Export(_) => None,
        _ => Some("run it as the gateway's user, with the gateway's configuration"),
    }
}

/// As [`failure`], of an archive that did not open.
fn unopened(data_dir: &Path, error: ArchiveError) -> Failure {
    match rolled_back(data_dir, &error) {
        Some(fault) => not_verified(&fault),
        None => failure(error),
    }
}

/// What cannot be opened is read as files: the auditor says what is wrong first, and where.
fn first_fault(ui: &Ui, data_dir: &Path, error: ArchiveError) -> Failure {
    let log = data_dir.join("audit");
    let verified = read_vkey(&log.join(VKEY).display().to_string())
        .and_then(|key| verify_dir(&log, gatepost_audit::Options::new(key), &mut |_, _| {}));
    match (verified, rolled_back(data_dir, &error), failure(error)) {
        // The files are well as far as they go; the entries after them should be in the database, and are not.
        (Ok(_), Some(fault), _) => audit_failure(ui, &fault),
        (Err(Fault::Missing { path, .. }), Some(fault), _) if is_partial(&path) => audit_failure(ui, &fault),
        // There is no log, or none that this user may read.
        (_, _, Failure::Unsuccessful { what, .. }) => Failure::Audit { code: Outcome::Usage as u8, what },
        // Entries that only the database has, and has not as a whole.
        (Err(Fault::Missing { path, .. }), None, failure) if is_partial(&path) => failure,
        (Err(fault), _, _) => audit_failure(ui, &fault),
        // The files are well; what is wrong is in the database.
        (Ok(_), None, failure) => failure,
    }
}

/// Files that only an export has: a gateway keeps these entries in its database.
fn is_partial(path: &str) -> bool {
    path.contains(".p/")
}

/// A database that ends before what the checkpoint signs is an older one, or was cut.
fn rolled_back(data_dir: &Path, error: &ArchiveError) -> Option<Fault> {
    let &ArchiveError::Ends(size) = error else { return None };
    let log = data_dir.join("audit");
    let key = VerifierKey::parse(std::fs::read_to_string(log.join(VKEY)).ok()?.trim()).ok()?;
    let signed = Checkpoint::open(&read_checkpoint(&log).ok()??, &[key]).ok()?;
    Some(Fault::RolledBack { since: signed.size, size })
}

/// The error and what lies behind it.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        // Some repeat what lies behind them, some do not.
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

async fn verify(ui: &Ui, archive: Archive, since: Option<&Path>) -> Result<(), Failure> {
    let since = match since {
        None => None,
        Some(path) => {
            let shown = path.display().to_string();
            let unreadable = |error| Failure::Audit {
                code: Outcome::Usage as u8,
                what: format!("cannot read {}: {error}", path.display()),
            };
            Some((shown, std::fs::read(path).map_err(unreadable)?))
        }
    };
    let bar = ui.progress(0, "entries");
    let verified = archive.verify(since, advance(&bar)).await;
    bar.finish_and_clear();
    let report = verified.map_err(|fault| audit_failure(ui, &fault))?;
    if ui.json {
        return ui.json(&json!({
            "ok": true,
            "origin": report.origin,
            "size": report.size,
            "root": report.root.to_base64(),
            "unsigned": report.unsigned,
            "since": report.since,
            "deliveries_open": report.deliveries_open,
        }));
    }
    let entries = text::plural(report.size, "entry", "entries");
    let fine = ui.paint(Style::Good, "nothing is wrong");
    ui.line(format_args!("{fine}: {entries} of {}, root {}", report.origin, report.root.to_base64()))?;
    if report.unsigned > 0 {
        ui.line(format_args!("{} not yet signed", text::plural(report.unsigned, "entry", "entries")))?;
    }
    if report.deliveries_open > 0 {
        let open = text::plural(report.deliveries_open, "delivery", "deliveries");
        ui.line(format_args!("{open} without a final outcome"))?;
    }
    Ok(())
}

fn audit_failure(ui: &Ui, fault: &Fault) -> Failure {
    if ui.json {
        let document = json!({
            "ok": false,
            "exit": fault.exit_code(),
            "fault": fault.word(),
            "leaf": fault.leaf(),
            "file": fault.path(),
            "message": chain(fault),
        });
        if let Err(failure) = ui.json(&document) {
            return failure;
        }
    }
    not_verified(fault)
}

pub(super) fn not_verified(fault: &Fault) -> Failure {
    Failure::Audit {
        code: fault.exit_code(),
        what: format!("the audit log does not verify: {}", chain(fault)),
    }
}

pub(super) fn advance(bar: &ProgressBar) -> impl FnMut(u64, u64) + Send + 'static {
    let bar = bar.clone();
    move |done, all| {
        bar.set_length(all.max(done));
        bar.set_position(done);
    }
}

async fn export(ui: &Ui, archive: &Archive, dir: &Path) -> Result<(), Failure> {
    let bar = ui.progress(0, "entries");
    let exported = archive.export(dir, advance(&bar)).await;
    bar.finish_and_clear();
    let checkpoint = exported.map_err(failure)?;
    if ui.json {
        let (size, root) = (checkpoint.size, checkpoint.root.to_base64());
        return ui.json(&json!({"dir": dir.display().to_string(), "size": size, "root": root}));
    }
    let entries = text::plural(checkpoint.size, "entry", "entries");
    ui.line(format_args!("exported {entries} to {}", dir.display()))?;
    ui.line(ui.paint(Style::Faint, format_args!("verify with: gatepost-verify {}", dir.display())))
}

async fn receipt(ui: &Ui, archive: &Archive, id: Uuid) -> Result<(), Failure> {
    let mut deliveries = archive.deliveries_of(MessageId(id)).await.map_err(failure)?;
    if deliveries.is_empty() {
        deliveries.push(DeliveryId(id));
    }
    let mut proofs = Vec::new();
    for delivery in deliveries {
        match archive.receipt(delivery).await.map_err(failure)? {
            Receipt::Unknown => {
                return Err(Failure::NotFound(format!("there is no message or delivery {id}")));
            }
            Receipt::Pending => {
                return Err(Failure::Unsuccessful {
                    what: "no checkpoint covers the newest entry about it yet".to_owned(),
                    hint: Some("try again in a second".to_owned()),
                });
            }
            Receipt::Proofs(more) => proofs.extend(more),
        }
    }
    if ui.json { ui.json(&json!({"proofs": proofs})) } else { ui.line(proofs.concat().trim_end()) }
}

#[cfg(test)]
mod tests;
