//! `gatepost audit reconcile`: whether the log and the database say the same.

use gatepost_store::archive::Archive;
use gatepost_store::reconcile::Reconciliation;
use serde_json::json;

use super::super::failure::{EXIT_DISAGREE, Failure};
use super::super::text;
use super::super::ui::{Style, Ui};
use super::{advance, failure};

pub(super) async fn reconcile(ui: &Ui, archive: &Archive) -> Result<(), Failure> {
    let bar = ui.progress(0, "entries");
    let reconciled = archive.reconcile(advance(&bar)).await;
    bar.finish_and_clear();
    let found = reconciled.map_err(failure)?;
    if ui.json {
        print_json(ui, &found)?
    } else {
        print(ui, &found)?
    }
    if found.disagreements == 0 {
        return Ok(());
    }
    let count = text::plural(found.disagreements, "disagreement", "disagreements");
    Err(Failure::Audit {
        code: EXIT_DISAGREE,
        what: format!("the audit log and the database do not agree: {count}"),
    })
}

fn print_json(ui: &Ui, found: &Reconciliation) -> Result<(), Failure> {
    let first = found.first.iter().map(
        |disagreement| json!({"kind": disagreement.kind.as_str(), "subject": disagreement.subject, "detail": disagreement.detail}),
    );
    ui.json(&json!({
        "ok": found.disagreements == 0,
        "entries": found.entries,
        "messages": found.messages,
        "deliveries": found.deliveries,
        "disagreements": found.disagreements,
        "first": first.collect::<Vec<_>>(),
    }))
}

fn print(ui: &Ui, found: &Reconciliation) -> Result<(), Failure> {
    let Reconciliation { entries, messages, deliveries, disagreements, first, .. } = found;
    for disagreement in first {
        let kind = ui.paint(Style::Bad, disagreement.kind.as_str());
        ui.line(format_args!("{kind} {}: {}", disagreement.subject, disagreement.detail))?;
    }
    let more = disagreements - first.len() as u64;
    if more > 0 {
        ui.line(format_args!("… and {more} more"))?;
    }
    if *disagreements == 0 {
        let fine = ui.paint(Style::Good, "log and database agree");
        let entries = text::plural(*entries, "entry", "entries");
        let messages = text::plural(*messages, "message", "messages");
        let deliveries = text::plural(*deliveries, "delivery", "deliveries");
        ui.line(format_args!("{fine}: {entries}, {messages}, {deliveries}"))?;
    }
    Ok(())
}
