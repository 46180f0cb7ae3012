//! Tokens that `gatepost token` made or revoked are in force, and in the audit log, within a second.

use gatepost_audit::leaf::Event;
use gatepost_core::principal::Actor;
use gatepost_store::AuditNote;
use tokio::sync::watch;
use tokio::time::timeout;

use super::state::AppState;
use crate::tokens::{Changes, Entry, LOOK_INTERVAL};

/// Follows the file until `stop` holds `true`. The leaves are the gateway's: it knows what changed, and not who ran the command.
pub(crate) async fn follow_tokens(state: AppState, gateway: Actor, mut stop: watch::Receiver<bool>) {
    // A dropped sender means that the gateway is gone.
    while timeout(LOOK_INTERVAL, stop.wait_for(|stop| *stop)).await.is_err() {
        // A `stat`, and rarely a small file.
        match state.tokens.look() {
            Ok(changes) => note(&state, &gateway, changes).await,
            Err(error) => {
                tracing::error!(%error, "changed tokens cannot be read; those before stay in force")
            }
        }
    }
}

async fn note(state: &AppState, gateway: &Actor, changes: Changes) {
    let leaf = |code: &str, entry: &Entry| {
        tracing::info!(token = entry.id, app = entry.app, code, "tokens have changed");
        AuditNote {
            code: Some(code.to_owned()),
            target: Some(format!("app {} token {}", entry.app, entry.id)),
            ..AuditNote::new(Event::ConfigChanged, gateway.clone())
        }
    };
    let created = changes.created.iter().map(|entry| leaf("token_created", entry));
    let leaves: Vec<_> =
        created.chain(changes.revoked.iter().map(|entry| leaf("token_revoked", entry))).collect();
    if leaves.is_empty() {
        return;
    }
    if let Err(error) = state.store.audit_note(leaves).await {
        tracing::error!(%error, "cannot write the change of tokens into the audit log");
    }
}
