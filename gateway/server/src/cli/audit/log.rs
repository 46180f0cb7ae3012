//! `gatepost audit log`: the entries, for people to read.

use std::collections::VecDeque;
use std::time::Duration;

use gatepost_audit::Leaf;
use gatepost_core::Timestamp;
use gatepost_store::archive::Archive;
use serde_json::{Value, json};
use uuid::Uuid;

use super::super::failure::{EXIT_AUDIT, Failure};
use super::super::text;
use super::super::ui::{Style, Ui, harmless, state_style};
use super::failure;

/// Entries read at a time.
const PAGE: u64 = 256;
/// Entries shown when nothing says how many.
const SHOWN_DEFAULT: u64 = 50;
const FOLLOW_POLL: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(in super::super) struct Log {
    /// How many of the newest entries [default: 50, or all with --since or --delivery]
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Not before: RFC 3339, or a span back from now (90m, 7d)
    #[arg(long, value_name = "WHEN", value_parser = text::parse_instant)]
    since: Option<String>,
    /// Only entries about this delivery
    #[arg(long, value_name = "ID", value_parser = text::parse_id)]
    delivery: Option<Uuid>,
    /// Keep waiting for new entries
    #[arg(short, long)]
    follow: bool,
}

pub(super) async fn log(ui: &Ui, archive: &Archive, args: &Log) -> Result<(), Failure> {
    let since = args.since.as_deref().and_then(Timestamp::parse_rfc3339);
    let size = archive.size().await.map_err(failure)?;
    let everything = args.since.is_some() || args.delivery.is_some();
    let limit = args.limit.unwrap_or(if everything { u64::MAX } else { SHOWN_DEFAULT });
    // A filter is applied before the limit, so the newest that pass have to be found from the beginning.
    let from = if everything { 0 } else { size.saturating_sub(limit) };
    let filter = Filter { since, delivery: args.delivery };
    let mut passed = VecDeque::new();
    each(archive, from, size, |index, bytes| {
        if filter.passes(bytes) {
            if passed.len() as u64 >= limit {
                passed.pop_front();
            }
            passed.push_back((index, bytes.to_vec()));
        }
        Ok(())
    })
    .await?;
    for (index, bytes) in passed {
        print_entry(ui, index, &bytes)?;
    }
    if args.follow { follow(ui, archive, &filter, size).await } else { Ok(()) }
}

async fn follow(ui: &Ui, archive: &Archive, filter: &Filter, mut from: u64) -> Result<(), Failure> {
    loop {
        let size = archive.size().await.map_err(failure)?;
        each(
            archive,
            from,
            size,
            |index, bytes| {
                if filter.passes(bytes) { print_entry(ui, index, bytes) } else { Ok(()) }
            },
        )
        .await?;
        from = size;
        tokio::time::sleep(FOLLOW_POLL).await;
    }
}

async fn each(
    archive: &Archive,
    from: u64,
    to: u64,
    mut take: impl FnMut(u64, &[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut next = from;
    while next < to {
        let entries = archive.entries(next, to.min(next + PAGE)).await.map_err(failure)?;
        if entries.is_empty() {
            return Err(Failure::Audit { code: EXIT_AUDIT, what: format!("entry {next} is missing") });
        }
        for entry in entries {
            take(next, &entry)?;
            next += 1;
        }
    }
    Ok(())
}

struct Filter {
    since: Option<Timestamp>,
    delivery: Option<Uuid>,
}

impl Filter {
    /// What cannot be read passes: whoever looks at the log must see it.
    fn passes(&self, bytes: &[u8]) -> bool {
        let Ok(leaf) = Leaf::parse(bytes) else { return true };
        let recent = self.since.is_none_or(|since| Timestamp::from_micros(leaf.at) >= since);
        let about = self.delivery.is_none_or(|delivery| {
            let id = delivery.as_bytes();
            leaf.delivery.as_ref() == Some(id) || leaf.deliveries.iter().any(|delivery| &delivery.id == id)
        });
        recent && about
    }
}

fn print_entry(ui: &Ui, index: u64, bytes: &[u8]) -> Result<(), Failure> {
    let text = String::from_utf8_lossy(bytes);
    if ui.json {
        let entry: Value = serde_json::from_slice(bytes).unwrap_or_else(|_| text.into());
        return ui.json_line(&json!({"index": index, "entry": entry}));
    }
    let Ok(leaf) = Leaf::parse(bytes) else {
        return ui.line(format_args!("{index:>8}  {}", ui.paint(Style::Bad, harmless(&text))));
    };
    let at = Timestamp::from_micros(leaf.at).to_rfc3339();
    let event = leaf.event.as_str();
    ui.line(format_args!(
        "{}  {}  {}  {:<20}  {}",
        ui.paint(Style::Faint, format_args!("{index:>8}")),
        ui.paint(Style::Faint, &at),
        ui.paint(state_style(event), format_args!("{event:<15}")),
        harmless(&format!("{}:{}", leaf.by.kind, leaf.by.name)),
        harmless(&details(&leaf)).trim_end(),
    ))
}

/// The rest of an entry, in a line.
fn details(leaf: &Leaf<'_>) -> String {
    let id = |bytes: &[u8; 16]| Uuid::from_bytes(*bytes).to_string();
    let mut parts = Vec::new();
    parts.extend(leaf.message.as_ref().map(|message| format!("message {}", id(message))));
    parts.extend(leaf.deliveries.iter().map(|delivery| format!("→ {} {}", delivery.to, id(&delivery.id))));
    parts.extend(leaf.delivery.as_ref().map(|delivery| format!("delivery {}", id(delivery))));
    parts.extend(leaf.destination.as_ref().map(|destination| format!("→ {destination}")));
    parts.extend(leaf.state.map(|state| format!("now {state}")));
    parts.extend(leaf.attempt.map(|attempt| format!("attempt {attempt}")));
    parts.extend(leaf.level.map(|level| format!("level {level}")));
    parts.extend(leaf.code.as_ref().map(|code| format!("code {code}")));
    parts.extend(leaf.subject_of.as_ref().map(|subject| format!("of {subject}")));
    parts.extend(leaf.count.map(|count| format!("× {count}")));
    parts.extend(leaf.size.map(text::bytes));
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use gatepost_audit::{ActorKind, By, Event, LeafDelivery};

    fn leaf(at: i64, delivery: Option<[u8; 16]>, deliveries: Vec<[u8; 16]>) -> Vec<u8> {
        let mut leaf = Leaf::new(at, By::new(ActorKind::App, "ehr"), Event::Accepted);
        leaf.delivery = delivery;
        leaf.deliveries = deliveries.into_iter().map(|id| LeafDelivery { id, to: "lab".into() }).collect();
        leaf.encode().unwrap()
    }

    #[test]
    fn entries_are_filtered_by_time_and_delivery_and_unreadable_ones_shown() {
        let (mine, other) = ([1; 16], [2; 16]);
        let filter = Filter {
            since: Some(Timestamp::from_micros(10_000_000)),
            delivery: Some(Uuid::from_bytes(mine)),
        };
        assert!(filter.passes(&leaf(10_000_000, Some(mine), vec![])));
        assert!(filter.passes(&leaf(10_000_000, None, vec![other, mine])));
        assert!(!filter.passes(&leaf(9_000_000, Some(mine), vec![])));
        assert!(!filter.passes(&leaf(11_000_000, Some(other), vec![])));
        assert!(filter.passes(b"not a leaf"));
    }
}
