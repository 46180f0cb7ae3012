//! `gatepost audit adopt`: an operator's word that a log which does not extend its last checkpoint is the right one.
//!
//! Entries hold no free text. Who adopted the log, when and why is kept in a file beside it, and an entry holds that file's
//! SHA-256, so that nobody can put another reason in its place later.

use std::fmt::Write as _;
use std::path::Path;

use gatepost_store::archive::{Archive, ArchiveError};
use gatepost_store::{Adopt, Database, OpenError, Options};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{Context, chain, failure, text};
use crate::cli::failure::{EXIT_AUDIT, Failure};
use crate::config::Config;
use crate::serve::database;

pub(super) async fn adopt(context: &Context, reason: &str) -> Result<(), Failure> {
    if reason.trim().is_empty() {
        return Err(Failure::usage("--reason is empty: say why you know that the log is right"));
    }
    let config =
        Config::load(context.config.as_deref()).map_err(|error| Failure::usage(error.to_string()))?;
    let data_dir = &config.gateway.data_dir;
    let database = database(&config).map_err(|error| Failure::unsuccessful(chain(&error)))?;
    if is_intact(data_dir, &database).await? {
        return Err(Failure::unsuccessful("the log extends its last checkpoint: there is nothing to adopt"));
    }
    let operator = this_user();
    let at = text::now().to_rfc3339();
    let note = json!({"at": at, "operator": operator, "reason": reason}).to_string();
    let name = format!("adopted-{at}.json");
    let log = data_dir.join("audit");
    let digest = put_reason(&log, &name, &note)?;
    if let Err(error) = go_on(&config, database, operator, &digest).await {
        // Nothing was adopted, so nothing was decided. If the file stays, it only says more than happened.
        let _ = std::fs::remove_file(log.join(&name));
        return Err(error);
    }
    let ui = &context.ui;
    if ui.json {
        return ui.json(&json!({"adopted": true, "note": name, "digest": digest}));
    }
    ui.line(format_args!("the log is adopted as it is, and its newest entries say so"))?;
    ui.line(format_args!("the reason is in audit/{name}; the log holds its {digest}"))
}

/// Puts the reason of an operator's act beside the log; what an entry holds of it.
pub(in crate::cli) fn put_reason(log: &Path, name: &str, reason: &str) -> Result<String, Failure> {
    gatepost_audit::write_file_durable(log, name, reason.as_bytes())
        .map_err(Failure::io(format!("cannot write {name} beside the log")))?;
    Ok(format!("sha256:{}", hex(&Sha256::digest(reason.as_bytes()))))
}

async fn is_intact(data_dir: &Path, database: &Database) -> Result<bool, Failure> {
    match Archive::open(data_dir, database).await {
        Ok(archive) => Ok(archive.verify(None, |_, _| {}).await.is_ok()),
        Err(error @ ArchiveError::NoData(_)) => Err(failure(error)),
        Err(_) => Ok(false),
    }
}

/// Opens the store with the operator's word, which it writes down.
async fn go_on(config: &Config, database: Database, operator: String, digest: &str) -> Result<(), Failure> {
    let options = Options {
        data_dir: config.gateway.data_dir.clone(),
        database,
        origin: config.gateway.name.clone(),
        dedup_window: config.gateway.dedup_window,
        payload_retention: config.gateway.retention,
        encryption: config.encryption,
        seal_keys: config.seal_keys.clone(),
        keys_in_memory: gatepost_store::KEYS_IN_MEMORY,
        adopt: Some(Adopt { operator, reason: digest.to_owned() }),
    };
    let (_, task) = gatepost_store::open(options).await.map_err(|error| not_opened(&error))?;
    task.stop().await;
    Ok(())
}

pub(in crate::cli) fn not_opened(error: &OpenError) -> Failure {
    match error {
        OpenError::Log(_) => Failure::Audit { code: EXIT_AUDIT, what: chain(error) },
        _ => Failure::unsuccessful(chain(error)),
    }
}

pub(in crate::cli) fn this_user() -> String {
    let uid = nix::unistd::geteuid();
    nix::unistd::User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
