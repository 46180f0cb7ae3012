//! `gatepost restore`: a backup becomes a gateway's data again, or is proved to be able to.
//!
//! The world has moved on since the backup: what was delivered after it would be delivered again. So every destination is paused,
//! as an operator would, and an entry of the log says from which backup it goes on.

mod drill;

use std::path::{Path, PathBuf};

use clap::Args;
use gatepost_audit::leaf::Event;
use gatepost_core::principal::{Actor, ActorKind, OperatorRight, OperatorRights};
use gatepost_store::backup::{self, Landing, Manifest};
use gatepost_store::{AuditNote, Options, Pause, QueueKind, Store};
use serde_json::json;

use super::backup::failure;
use super::failure::Failure;
use super::ui::{Style, Ui, harmless};
use super::{Context, audit, text};
use crate::config::Config;

/// Why the log goes on from another place than it ended: the code of the operator's entry.
const RESTORED: &str = "restored";

#[derive(Debug, Args)]
pub(super) struct Restore {
    /// The backup
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Only prove that it can be restored: do it in a temporary place and check everything
    #[arg(long)]
    verify: bool,
    /// Leave the destinations as they were: what was delivered since the backup is sent again at once
    #[arg(long, conflicts_with = "verify")]
    resume: bool,
    /// Where store.key and audit.key are, for a backup that was made without keys
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
    /// With --verify: the address of an empty PostgreSQL database to use, in place of a temporary one beside the configured one
    #[arg(long, value_name = "FILE", requires = "verify")]
    database_url_file: Option<PathBuf>,
}

pub(super) async fn restore(context: &Context, args: &Restore) -> Result<(), Failure> {
    let backup = backup::Backup::open(&args.dir).map_err(failure)?;
    if args.keys.is_some() && backup.manifest().has_keys {
        return Err(Failure::usage("--keys is for a backup without keys, and this one has its own"));
    }
    let ui = &context.ui;
    check(ui, &backup)?;
    if args.verify {
        return drill::verify(context, args, &backup).await;
    }
    let config =
        Config::load(context.config.as_deref()).map_err(|error| Failure::usage(error.to_string()))?;
    let database =
        crate::serve::database(&config).map_err(|error| Failure::unsuccessful(audit::chain(&error)))?;
    let manifest = backup.manifest();
    if config.gateway.name != manifest.gateway {
        return Err(Failure::usage(format!(
            "the backup is of the gateway `{}`, and the configuration says `{}`: its log goes by that name for good",
            manifest.gateway, config.gateway.name
        )));
    }
    let data_dir = &config.gateway.data_dir;
    let mut landing = Landing::in_data_dir(data_dir).map_err(into_data_dir)?;
    let spinner = ui.spinner("restoring");
    let options = Options {
        data_dir: landing.path().to_path_buf(),
        database,
        origin: config.gateway.name.clone(),
        dedup_window: config.gateway.dedup_window,
        payload_retention: config.gateway.retention,
        encryption: gatepost_store::Encryption::On,
        seal_keys: Default::default(),
        keys_in_memory: gatepost_store::KEYS_IN_MEMORY,
        adopt: None,
    };
    let after = if args.resume { After::AsItWas } else { After::Paused };
    let taken_up = put_back(&mut landing, &backup, args.keys.as_deref(), options, after).await;
    spinner.finish_and_clear();
    let paused = match taken_up {
        Ok(paused) => paused,
        Err(error) => {
            let _ = landing.abandon().await;
            return Err(error);
        }
    };
    landing.put_in_place().map_err(failure)?;
    print(ui, manifest, data_dir, &paused, after)
}

fn check(ui: &Ui, backup: &backup::Backup) -> Result<(), Failure> {
    let bar = ui.progress(backup.manifest().bytes(), "bytes checked");
    let checked = backup.check(|bytes| bar.inc(bytes));
    bar.finish_and_clear();
    checked.map_err(failure)
}

fn into_data_dir(error: backup::BackupError) -> Failure {
    match error {
        backup::BackupError::Taken(_) => Failure::Usage {
            what: error.to_string(),
            hint: Some(
                "a backup is restored into an empty `data_dir` only: move away what is there, and keep it",
            ),
        },
        other => failure(other),
    }
}

/// What becomes of the destinations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Paused,
    AsItWas,
}

/// Lays the backup out, and takes it up as a start would; the destinations that were paused.
async fn put_back(
    landing: &mut Landing,
    backup: &backup::Backup,
    keys: Option<&Path>,
    options: Options,
    after: After,
) -> Result<Vec<String>, Failure> {
    landing.lay(backup, keys, &options.database).await.map_err(failure)?;
    let log = options.data_dir.join("audit");
    let (store, task) = gatepost_store::open(options).await.map_err(|error| audit::not_opened(&error))?;
    let settled = settle(&store, backup, &log, after).await;
    drop(store);
    task.stop().await;
    settled
}

async fn settle(
    store: &Store,
    backup: &backup::Backup,
    log: &Path,
    after: After,
) -> Result<Vec<String>, Failure> {
    let refused = |error: gatepost_store::StoreError| Failure::unsuccessful(audit::chain(&error));
    let operator = Actor::new(ActorKind::Operator, audit::this_user());
    let (manifest, at) = (backup.manifest(), text::now().to_rfc3339());
    let reason = json!({
        "at": at,
        "operator": operator.name,
        "restored_from": {
            "made_at": manifest.made_at,
            "entries": manifest.entries,
            "signed_entries": manifest.signed_entries,
            "signed_root": manifest.signed_root,
            "manifest_sha256": backup.digest().map_err(failure)?,
        },
    });
    let digest = audit::put_reason(log, &format!("restored-{at}.json"), &reason.to_string())?;
    let mut note = AuditNote::new(Event::AuditAdopted, operator.clone());
    (note.code, note.target) = (Some(RESTORED.to_owned()), Some(digest));
    store.audit_note(vec![note]).await.map_err(refused)?;
    let mut paused = Vec::new();
    if after == After::AsItWas {
        return Ok(paused);
    }
    let rights = OperatorRights::new(vec![OperatorRight::Operate]);
    for queue in store.read().queue_list().await.map_err(refused)? {
        let Some(permit) = rights.permit(&operator, OperatorRight::Operate) else { continue };
        if queue.kind != QueueKind::Builtin && !queue.stats.paused {
            store.queue_pause(&permit, queue.name.clone(), Pause::Pause).await.map_err(refused)?;
            paused.push(queue.name);
        }
    }
    Ok(paused)
}

fn print(
    ui: &Ui,
    manifest: &Manifest,
    data_dir: &Path,
    paused: &[String],
    after: After,
) -> Result<(), Failure> {
    if ui.json {
        return ui.json(&json!({
            "restored": data_dir,
            "made_at": manifest.made_at,
            "entries": manifest.entries,
            "paused": paused,
        }));
    }
    let entries = text::plural(manifest.entries, "entry", "entries");
    let shown = data_dir.display().to_string();
    ui.line(format_args!(
        "{} is as it was at {}, with {entries} of the audit log",
        harmless(&shown),
        manifest.made_at
    ))?;
    ui.line(ui.paint(
        Style::Warn,
        "what was accepted since then is not in it; what was delivered since then will be sent again",
    ))?;
    if after == After::Paused {
        for name in paused {
            ui.line(format_args!("paused: {name}"))?;
        }
        let next = "next: start it, look with `gatepost status` and `gatepost list`, ask the partners what they have, then `gatepost queue resume NAME`";
        ui.line(ui.paint(Style::Faint, next))?;
    }
    ui.line(ui.paint(
        Style::Faint,
        "the log goes on from there: tell auditors, who may have newer checkpoints of it; one of its entries says so",
    ))
}

#[cfg(test)]
mod tests;
