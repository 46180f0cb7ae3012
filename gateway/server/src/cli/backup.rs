//! `gatepost backup`: a copy of all that a gateway has stored, made beside it while it runs.

use std::path::PathBuf;

use clap::Args;
use gatepost_store::backup::{self, BackupError, Keys, Source};
use serde_json::json;

use super::failure::Failure;
use super::ui::{Style, harmless};
use super::{Context, locate, text};

#[derive(Debug, Args)]
pub(super) struct Backup {
    /// A new or empty directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Leave the keys out; a restore then needs a copy of `data_dir/keys` that is kept elsewhere
    #[arg(long)]
    without_keys: bool,
}

pub(super) async fn backup(context: &Context, args: &Backup) -> Result<(), Failure> {
    let config = context.config.as_deref();
    let source = Source {
        data_dir: locate::data_dir(config)?,
        database: locate::database(config)?,
        keys: if args.without_keys { Keys::Omit } else { Keys::Include },
        seal_keys: locate::seal_keys(config),
        at: text::now(),
    };
    let ui = &context.ui;
    let spinner = ui.spinner("copying a snapshot");
    let made = backup::make(&source, &args.dir).await;
    spinner.finish_and_clear();
    let manifest = made.map_err(failure)?;
    if ui.json {
        return ui.json(&json!({
            "backup": args.dir,
            "made_at": manifest.made_at,
            "store": manifest.store.kind(),
            "entries": manifest.entries,
            "signed_entries": manifest.signed_entries,
            "files": manifest.file_count(),
            "bytes": manifest.bytes(),
            "has_keys": manifest.has_keys,
        }));
    }
    let files = text::plural(manifest.file_count(), "file", "files");
    let entries = text::plural(manifest.entries, "entry", "entries");
    let dir = args.dir.display().to_string();
    ui.line(format_args!(
        "{} holds {files}, {}; the audit log up to {entries}",
        harmless(&dir),
        text::bytes(manifest.bytes())
    ))?;
    let warning = if manifest.has_keys {
        "whoever reads it has the payloads and the keys that sign the audit log: keep it encrypted"
    } else {
        "whoever reads it has the payloads: keep it encrypted. It has no keys: keep a copy of data_dir/keys elsewhere, without it the backup is worth nothing"
    };
    ui.line(ui.paint(Style::Warn, warning))?;
    let next = format!("prove that it can be restored: gatepost restore --verify {dir}");
    ui.line(ui.paint(Style::Faint, harmless(&next)))
}

pub(super) fn failure(error: BackupError) -> Failure {
    let hint = match &error {
        BackupError::Taken(_) | BackupError::Nowhere(_) => {
            return Failure::Usage {
                what: error.to_string(),
                hint: Some("name a directory that is to be made, in one that is there"),
            };
        }
        BackupError::NoData(_) => Some(
            "has `gatepost serve` run with this configuration? If it has, look at `data_dir`, and whether you may read it",
        ),
        BackupError::Busy(_) => Some("wait until it has finished"),
        BackupError::NotOne(_) => {
            Some("look at the path; one that was interrupted leaves nothing that counts")
        }
        BackupError::Newer { .. } | BackupError::NewerTables { .. } => {
            Some("use that version, or a newer one")
        }
        BackupError::Changed { .. } => Some("take another copy of this backup, or another backup"),
        BackupError::OtherKind { .. } => Some("restore it with a [store] of the same kind"),
        BackupError::KeysMissing => {
            Some("name the directory that has store.key and audit.key with --keys DIR")
        }
        BackupError::KeyForeign(_) => Some("find the keys that the gateway had when the backup was made"),
        BackupError::LogFileMissing(_) => Some("the gateway's data is damaged: run `gatepost doctor`"),
        BackupError::DatabaseTaken => Some(
            "name an empty database. If these tables are of a restore that was interrupted, `DROP SCHEMA gatepost CASCADE` removes them",
        ),
        BackupError::NotPermitted(_) => {
            Some("grant it, or name an empty database for the drill with --database-url-file FILE")
        }
        BackupError::Io { .. }
        | BackupError::Database(_)
        | BackupError::DataDir(_)
        | BackupError::Open(_) => None,
    };
    Failure::Unsuccessful { what: super::audit::chain(&error), hint: hint.map(str::to_owned) }
}
