//! `gatepost doctor --repair`: saves what is sound of a stopped gateway's data into a new directory and lists what is not.

use std::path::Path;

use gatepost_store::salvage::{self, Damage, Fate, Repair, SalvageError, Salvaged};
use serde_json::json;

use super::super::failure::Failure;
use super::super::ui::{Style, Ui};
use super::super::{Context, audit, text};
use crate::config::Config;

pub(super) fn repair(context: &Context, target: &Path) -> Result<(), Failure> {
    let config =
        Config::load(context.config.as_deref()).map_err(|error| Failure::usage(error.to_string()))?;
    let source = &config.gateway.data_dir;
    let ui = &context.ui;
    let spinner = ui.spinner("reading everything");
    let repair = Repair {
        source,
        seal_keys: config.seal_keys.clone(),
        target,
        operator: &audit::this_user(),
        origin: config.gateway.name.as_str(),
    };
    let repaired = salvage::repair(&repair);
    spinner.finish_and_clear();
    let salvaged = repaired.map_err(failure)?;
    if ui.json {
        ui.json(&as_json(target, &salvaged))?;
    } else {
        print(ui, target, source, &salvaged)?;
    }
    let gone = |damage: &&Damage| matches!(damage.fate, Fate::Dead | Fate::Lost);
    match salvaged.damage.iter().filter(gone).count() as u64 {
        0 => Ok(()),
        gone => Err(Failure::Incomplete { gone }),
    }
}

pub(super) fn failure(error: SalvageError) -> Failure {
    match error {
        SalvageError::TargetExists(_) | SalvageError::TargetNowhere(_) => Failure::Usage {
            what: error.to_string(),
            hint: Some("name a directory that is to be made; it must be on a disk with as much space again"),
        },
        SalvageError::NoData(_)
        | SalvageError::InUse(_)
        | SalvageError::Io { .. }
        | SalvageError::Database(_)
        | SalvageError::Unsound(_) => Failure::unsuccessful(error.to_string()),
    }
}

fn as_json(target: &Path, salvaged: &Salvaged) -> serde_json::Value {
    json!({
        "directory": target,
        "messages": salvaged.messages,
        "deliveries": salvaged.deliveries,
        "entries": salvaged.entries,
        "log_continued": salvaged.log_continued,
        "note": salvaged.note,
        "digest": salvaged.digest,
        "damage": salvaged.damage.iter().map(Damage::to_json).collect::<Vec<_>>(),
    })
}

fn print(ui: &Ui, target: &Path, source: &Path, salvaged: &Salvaged) -> Result<(), Failure> {
    if !salvaged.damage.is_empty() {
        let mut table = ui.table(&["FATE", "WHAT", "WHERE", "ID", "WHY"]);
        for damage in &salvaged.damage {
            let style = match damage.fate {
                Fate::Mended | Fate::Rebuilt => Style::Good,
                Fate::Dead => Style::Warn,
                Fate::Lost => Style::Bad,
            };
            table.row(vec![
                (style, damage.fate.as_str().to_owned()),
                (Style::Plain, damage.what.clone()),
                (Style::Plain, damage.place.clone()),
                (Style::Plain, damage.id.clone().unwrap_or_default()),
                (Style::Plain, damage.why.clone()),
            ]);
        }
        table.print(ui)?;
        ui.line("")?;
    }
    let messages = text::plural(salvaged.messages, "message", "messages");
    let deliveries = text::plural(salvaged.deliveries, "delivery", "deliveries");
    let saved = format!("{messages} and {deliveries} stand in {}", target.display());
    ui.line(super::super::ui::harmless(&saved))?;
    if salvaged.log_continued {
        ui.line(format_args!("the audit log goes on, and an entry holds the digest of {}", salvaged.note))?;
    } else {
        ui.line(
            ui.paint(Style::Warn, "the audit log could not be continued: a new one begins, with a new key"),
        )?;
        ui.line(format_args!(
            "the old one is kept beside it; the new one's second entry holds the digest of {}",
            salvaged.note
        ))?;
    }
    let next = format!(
        "next: set `data_dir` to the new directory and start; {} is as it was, keep it",
        source.display()
    );
    ui.line(ui.paint(Style::Faint, super::super::ui::harmless(&next)))
}
