//! `gatepost list`: accepted messages, newest first.

use gatepost_api::lists::MessageItem;
use serde_json::{Value, json};

use super::client::{Client, with_query};
use super::failure::Failure;
use super::ui::{Style, Ui};
use super::{Context, Target, text};

/// Most entries of one page.
const PAGE_MAX: usize = 500;
/// States that a delivery can have.
pub(super) const STATES: [&str; 8] =
    ["waiting", "leased", "sending", "in_doubt", "delivered", "dead", "expired", "discarded"];

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Only messages of this app or adapter
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
    /// Only this CloudEvents type
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Only this subject (exact)
    #[arg(long)]
    subject: Option<String>,
    /// Only messages with a delivery in this state
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(STATES))]
    state: Option<String>,
    /// Only messages to this destination
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,
    /// Only this ordering key (exact)
    #[arg(long)]
    key: Option<String>,
    /// Not before: RFC 3339, or a span back from now (90m, 7d)
    #[arg(long, value_name = "WHEN", value_parser = text::parse_instant)]
    since: Option<String>,
    /// Not after
    #[arg(long, value_name = "WHEN", value_parser = text::parse_instant)]
    until: Option<String>,
    /// How many at most
    #[arg(long, default_value_t = 50, value_name = "N")]
    limit: usize,
    #[command(flatten)]
    target: Target,
}

pub(super) async fn list(context: &Context, args: &List) -> Result<(), Failure> {
    let mut client = context.operators(&args.target)?;
    let parameters = [
        ("app", args.app.as_deref()),
        ("type", args.kind.as_deref()),
        ("subject", args.subject.as_deref()),
        ("state", args.state.as_deref()),
        ("destination", args.destination.as_deref()),
        ("key", args.key.as_deref()),
        ("since", args.since.as_deref()),
        ("until", args.until.as_deref()),
    ];
    let list = pages(&mut client, &with_query("/v1/messages", &parameters), "messages", args.limit).await?;
    if context.ui.json {
        return context.ui.json(&json!({"messages": list.items, "next": list.next}));
    }
    print(&context.ui, list)
}

fn print(ui: &Ui, list: Pages) -> Result<(), Failure> {
    let mut grid = ui.table(&["MESSAGE", "ACCEPTED", "FROM", "TYPE", "SIZE", "DELIVERIES"]);
    for item in list.items {
        let item: MessageItem = read(item)?;
        let deliveries: Vec<String> = item
            .deliveries
            .iter()
            .map(|delivery| format!("{} {}", delivery.destination, delivery.state))
            .collect();
        let style = if item.deliveries.iter().all(|delivery| delivery.state == "delivered") {
            Style::Good
        } else if item
            .deliveries
            .iter()
            .any(|delivery| matches!(delivery.state.as_str(), "dead" | "in_doubt"))
        {
            Style::Bad
        } else {
            Style::Plain
        };
        grid.row(vec![
            (Style::Plain, item.id.to_string()),
            (Style::Faint, text::date_time(&item.accepted_at)),
            (Style::Plain, item.app),
            (Style::Plain, item.kind),
            (Style::Faint, text::bytes(item.size)),
            (style, deliveries.join(", ")),
        ]);
    }
    finish(ui, grid, list.next.is_some(), "no message matches")
}

/// Prints the table, or says on standard error that it is empty or goes on.
pub(super) fn finish(ui: &Ui, grid: super::ui::Grid, more: bool, empty: &str) -> Result<(), Failure> {
    if grid.is_empty() {
        ui.note(empty);
        return Ok(());
    }
    grid.print(ui)?;
    if more {
        ui.note("there are more: raise --limit");
    }
    Ok(())
}

pub(super) struct Pages {
    pub(super) items: Vec<Value>,
    /// Where the next page begins, if there is one.
    pub(super) next: Option<String>,
}

/// Reads pages until there are `limit` entries or no more.
pub(super) async fn pages(
    client: &mut Client,
    path: &str,
    plural: &str,
    limit: usize,
) -> Result<Pages, Failure> {
    let mut list = Pages { items: Vec::new(), next: None };
    while list.items.len() < limit {
        let page = (limit - list.items.len()).min(PAGE_MAX).to_string();
        let path = with_query(path, &[("limit", Some(&page)), ("cursor", list.next.as_deref())]);
        let mut answer: Value = client.get(path).await?;
        let Some(Value::Array(items)) = answer.get_mut(plural).map(Value::take) else {
            return Err(Failure::Garbled { status: 200 });
        };
        let empty = items.is_empty();
        list.items.extend(items);
        list.next = answer.get("next").and_then(Value::as_str).map(str::to_owned);
        if list.next.is_none() || empty {
            break;
        }
    }
    Ok(list)
}

pub(super) fn read<T: serde::de::DeserializeOwned>(item: Value) -> Result<T, Failure> {
    serde_json::from_value(item).map_err(|_| Failure::Garbled { status: 200 })
}
