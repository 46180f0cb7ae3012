//! `gatepost restore --verify`: the whole restore in a place of its own, and then everything that can be doubted is doubted.

use std::collections::BTreeMap;
use std::time::Duration;

use gatepost_audit::{Leaf, Report};
use gatepost_core::Timestamp;
use gatepost_store::archive::Archive;
use gatepost_store::backup::{Backup, Landing, Manifest};
use gatepost_store::reconcile::Reconciliation;
use gatepost_store::{Database, Engines, KEYS_IN_MEMORY, OpenError, Options, ScratchDatabase, salvage};
use serde_json::json;

use super::super::failure::{EXIT_DISAGREE, Failure};
use super::super::ui::{Style, Ui};
use super::super::{Context, audit, locate, text};
use super::{After, Restore, failure, put_back};

/// Longer than anything is kept: a drill erases nothing.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// What was found to be as it should.
struct Proof {
    report: Report,
    reconciliation: Reconciliation,
    /// Of the newest entry in the backup.
    newest: Option<Timestamp>,
}

pub(super) async fn verify(context: &Context, args: &Restore, backup: &Backup) -> Result<(), Failure> {
    let ui = &context.ui;
    let mut landing = Landing::beside(backup).map_err(failure)?;
    let (database, scratch) = database(context, args, backup.manifest()).await?;
    let spinner = ui.spinner("restoring in a temporary place");
    let proved = prove(ui, args, backup, &mut landing, &database).await;
    spinner.finish_and_clear();
    let mut cleared = landing.abandon().await.map_err(failure);
    if let Some(scratch) = scratch {
        cleared = cleared.and(scratch.remove().await.map_err(still_there));
    }
    let proof = proved?;
    cleared?;
    print(ui, args, backup.manifest(), &proof)
}

/// Where the drill's rows go.
async fn database(
    context: &Context,
    args: &Restore,
    manifest: &Manifest,
) -> Result<(Database, Option<ScratchDatabase>), Failure> {
    if manifest.store.kind() == "sqlite" {
        return Ok((Database::Sqlite, None));
    }
    let configured = locate::database(context.config.as_deref());
    if let Some(file) = &args.database_url_file {
        let url =
            std::fs::read_to_string(file).map_err(Failure::io(format!("cannot read {}", file.display())))?;
        let engines = match configured {
            Ok(Database::Postgres { engines, .. }) => engines,
            _ => Engines::default(),
        };
        return Ok((
            Database::Postgres { url: url.trim().to_owned(), node: "drill".to_owned(), engines },
            None,
        ));
    }
    let Database::Postgres { url, node, engines } = configured? else {
        return Err(Failure::Usage {
            what: "the backup is of a PostgreSQL store, and the configuration names none".to_owned(),
            hint: Some("name the address of an empty database with --database-url-file FILE"),
        });
    };
    let scratch = ScratchDatabase::create(&url, "verify").await.map_err(no_scratch)?;
    Ok((Database::Postgres { url: scratch.url().to_owned(), node, engines }, Some(scratch)))
}

fn no_scratch(error: OpenError) -> Failure {
    Failure::Unsuccessful {
        what: format!("no temporary database beside the configured one: {}", audit::chain(&error)),
        hint: Some("name the address of an empty database with --database-url-file FILE".to_owned()),
    }
}

fn still_there(error: OpenError) -> Failure {
    let what =
        format!("a temporary database gatepost_verify_… is left on the server: {}", audit::chain(&error));
    Failure::Unsuccessful { what, hint: Some("drop it with DROP DATABASE".to_owned()) }
}

async fn prove(
    ui: &Ui,
    args: &Restore,
    backup: &Backup,
    landing: &mut Landing,
    database: &Database,
) -> Result<Proof, Failure> {
    let manifest = backup.manifest();
    let options = Options {
        data_dir: landing.path().to_path_buf(),
        database: database.clone(),
        origin: manifest.gateway.clone(),
        dedup_window: FOR_EVER,
        payload_retention: FOR_EVER,
        encryption: gatepost_store::Encryption::On,
        seal_keys: Default::default(),
        keys_in_memory: KEYS_IN_MEMORY,
        adopt: None,
    };
    put_back(landing, backup, args.keys.as_deref(), options, After::Paused).await?;
    if matches!(database, Database::Sqlite) {
        inspect(landing)?;
    }
    let archive = Archive::open(landing.path(), database).await.map_err(audit::failure)?;
    let bar = ui.progress(0, "entries");
    let reconciliation = archive.reconcile(audit::advance(&bar)).await;
    bar.finish_and_clear();
    let reconciliation = reconciliation.map_err(audit::failure)?;
    if let Some(first) = reconciliation.first.first() {
        let count = text::plural(reconciliation.disagreements, "disagreement", "disagreements");
        return Err(Failure::Audit {
            code: EXIT_DISAGREE,
            what: format!(
                "the backup's audit log and database do not agree: {count}; the first: {} {}: {}",
                first.kind.as_str(),
                first.subject,
                first.detail
            ),
        });
    }
    let newest = match manifest.entries.checked_sub(1) {
        Some(last) => archive.entries(last, manifest.entries).await.map_err(audit::failure)?.pop(),
        None => None,
    };
    let newest = newest.and_then(|entry| Some(Timestamp::from_micros(Leaf::parse(&entry).ok()?.at)));
    let bar = ui.progress(0, "entries");
    let verified = archive.verify(None, audit::advance(&bar)).await;
    bar.finish_and_clear();
    let report = verified.map_err(|fault| audit::not_verified(&fault))?;
    Ok(Proof { report, reconciliation, newest })
}

/// Each row by its checksum, each sealed value, the database's structure, the tiles.
fn inspect(landing: &Landing) -> Result<(), Failure> {
    let found = salvage::inspect(landing.path(), &Default::default())
        .map_err(|error| Failure::unsuccessful(error.to_string()))?;
    let Some(damage) = found.damage.first() else { return Ok(()) };
    let count = text::plural(found.damage.len() as u64, "damaged place", "damaged places");
    Err(Failure::Unsuccessful {
        what: format!(
            "what was restored has {count}; the first: {} {}: {}",
            damage.what, damage.place, damage.why
        ),
        hint: Some(
            "the gateway's data was damaged when it was copied: run `gatepost doctor` there".to_owned(),
        ),
    })
}

fn print(ui: &Ui, args: &Restore, manifest: &Manifest, proof: &Proof) -> Result<(), Failure> {
    let Proof { report, reconciliation, newest } = proof;
    let by_state: &BTreeMap<_, _> = &reconciliation.by_state;
    let newest = newest.map(Timestamp::to_rfc3339);
    if ui.json {
        return ui.json(&json!({
            "ok": true,
            "backup": args.dir,
            "made_at": manifest.made_at,
            "store": manifest.store.kind(),
            "files": manifest.file_count(),
            "bytes": manifest.bytes(),
            "messages": reconciliation.messages,
            "deliveries": reconciliation.deliveries,
            "by_state": by_state,
            "entries": manifest.entries,
            "newest_entry_at": newest,
            "verified_entries": report.size,
        }));
    }
    let fine = ui.paint(Style::Good, "it can be restored");
    ui.line(format_args!("{fine}: the backup of {}, made at {}", manifest.gateway, manifest.made_at))?;
    let files = text::plural(manifest.file_count(), "file", "files");
    ui.line(format_args!("  {files}, {}: as they were written", text::bytes(manifest.bytes())))?;
    let messages = text::plural(reconciliation.messages, "message", "messages");
    let deliveries = text::plural(reconciliation.deliveries, "delivery", "deliveries");
    let states: Vec<String> =
        by_state.iter().map(|(state, count)| format!("{} {state}", text::count(*count))).collect();
    let states = if states.is_empty() { String::new() } else { format!(" ({})", states.join(", ")) };
    ui.line(format_args!("  {messages}, {deliveries}{states}"))?;
    let entries = text::plural(manifest.entries, "entry", "entries");
    let newest = newest.map_or_else(String::new, |newest| format!(", the newest of {newest}"));
    ui.line(format_args!("  {entries} of the audit log{newest}: its tree, signature and history verify"))?;
    ui.line("  log and database agree, both ways")
}
