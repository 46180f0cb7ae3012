//! `gatepost dead` and `gatepost doubt`: deliveries that wait for a person.

use clap::{Args, Subcommand, ValueEnum};
use gatepost_api::lists::{DeliveryItem, ReasonRequest, Resolution, ResolveRequest};
use serde_json::{Value, json};
use uuid::Uuid;

use super::client::{Call, Client, with_query};
use super::failure::Failure;
use super::list::{finish, pages, read};
use super::ui::{Style, Ui, state_style};
use super::{Context, Target, text};

/// Most deliveries that one command with `--all` acts on; run it again for more.
const ALL_MAX: usize = 100_000;

#[derive(Debug, Subcommand)]
pub(super) enum Dead {
    /// List dead deliveries
    Ls(Filter),
    /// Try dead deliveries again, with a fresh series of attempts
    Replay(Act),
    /// Give dead deliveries up for good
    Discard(Act),
}

#[derive(Debug, Subcommand)]
pub(super) enum Doubt {
    /// List deliveries in doubt
    Ls {
        /// Only those that wait for a person
        #[arg(long)]
        held: bool,
        #[command(flatten)]
        filter: Filter,
    },
    /// Decide what became of a delivery in doubt
    Resolve {
        /// The delivery
        #[arg(value_name = "DELIVERY", value_parser = text::parse_id)]
        id: Uuid,
        /// What the partner says: it has it, it has not, or it must not get it any more
        #[arg(long = "as", value_enum)]
        resolution: As,
        /// Why; kept with the delivery
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum As {
    /// The partner has it
    Delivered,
    /// The partner has not got it: send it again
    Retry,
    /// It must not be sent any more
    Dead,
}

#[derive(Debug, Args)]
pub(super) struct Filter {
    /// Only this destination
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,
    /// How many at most
    #[arg(long, default_value_t = 50, value_name = "N")]
    limit: usize,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
pub(super) struct Act {
    /// The deliveries
    #[arg(value_name = "DELIVERY", required_unless_present = "all", value_parser = text::parse_id)]
    ids: Vec<Uuid>,
    /// All dead deliveries (of --destination, if given)
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// With --all: only this destination
    #[arg(long, value_name = "NAME", requires = "all")]
    destination: Option<String>,
    /// Why; kept with the delivery
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    target: Target,
}

pub(super) async fn dead(context: &Context, command: &Dead) -> Result<(), Failure> {
    match command {
        Dead::Ls(filter) => ls(context, filter, "dead").await,
        Dead::Replay(act) => act_on(context, act, "replay", "replayed").await,
        Dead::Discard(act) => act_on(context, act, "discard", "discarded").await,
    }
}

pub(super) async fn doubt(context: &Context, command: &Doubt) -> Result<(), Failure> {
    match command {
        Doubt::Ls { held, filter } => ls(context, filter, if *held { "held" } else { "in_doubt" }).await,
        Doubt::Resolve { id, resolution, reason, target } => {
            let mut client = context.operators(target)?;
            let resolution = match resolution {
                As::Delivered => Resolution::Delivered,
                As::Retry => Resolution::Retry,
                As::Dead => Resolution::Dead,
            };
            let request = ResolveRequest { resolution, reason: reason.clone() };
            let path = format!("/v1/deliveries/{id}/resolve");
            let item: Value = client.call(Call::post_json(path, &request)).await?.json()?;
            if context.ui.json {
                context.ui.json(&item)
            } else {
                print_done(&context.ui, *id, "resolved", &item)
            }
        }
    }
}

async fn ls(context: &Context, filter: &Filter, state: &str) -> Result<(), Failure> {
    let mut client = context.operators(&filter.target)?;
    let parameters = [("state", Some(state)), ("destination", filter.destination.as_deref())];
    let path = with_query("/v1/deliveries", &parameters);
    let list = pages(&mut client, &path, "deliveries", filter.limit).await?;
    if context.ui.json {
        return context.ui.json(&json!({"deliveries": list.items, "next": list.next}));
    }
    let ui = &context.ui;
    let mut grid = ui.table(&["DELIVERY", "DESTINATION", "STATE", "REASON", "ATTEMPTS", "SINCE", "MESSAGE"]);
    for item in list.items {
        let item: DeliveryItem = read(item)?;
        grid.row(vec![
            (Style::Plain, item.id.to_string()),
            (Style::Plain, item.destination),
            (state_style(&item.state), item.state),
            (Style::Plain, item.reason.unwrap_or_else(|| "-".to_owned())),
            (Style::Plain, item.attempts.to_string()),
            (Style::Faint, text::ago(&item.changed_at)),
            (Style::Faint, item.message.to_string()),
        ]);
    }
    finish(ui, grid, list.next.is_some(), "none")
}

async fn act_on(context: &Context, act: &Act, verb: &str, done: &str) -> Result<(), Failure> {
    let mut client = context.operators(&act.target)?;
    let ids =
        if act.all { all_dead(&mut client, act.destination.as_deref()).await? } else { act.ids.clone() };
    let ui = &context.ui;
    let request = ReasonRequest { reason: act.reason.clone() };
    let bar = if ids.len() > 1 { ui.progress(ids.len() as u64, "deliveries") } else { ui.progress(0, "") };
    let mut items = Vec::new();
    for id in &ids {
        let item: Value =
            client.call(Call::post_json(format!("/v1/deliveries/{id}/{verb}"), &request)).await?.json()?;
        bar.inc(1);
        if !act.all && !ui.json {
            print_done(ui, *id, done, &item)?;
        }
        items.push(item);
    }
    bar.finish_and_clear();
    match (ui.json, act.all) {
        (true, _) => ui.json(&json!({"deliveries": items})),
        (false, true) => {
            ui.line(format_args!("{} {done}", text::plural(ids.len() as u64, "delivery", "deliveries")))
        }
        (false, false) => Ok(()),
    }
}

async fn all_dead(client: &mut Client, destination: Option<&str>) -> Result<Vec<Uuid>, Failure> {
    let path = with_query("/v1/deliveries", &[("state", Some("dead")), ("destination", destination)]);
    let list = pages(client, &path, "deliveries", ALL_MAX).await?;
    list.items.into_iter().map(|item| read::<DeliveryItem>(item).map(|item| item.id)).collect()
}

fn print_done(ui: &Ui, id: Uuid, done: &str, item: &Value) -> Result<(), Failure> {
    let state = item.get("state").and_then(Value::as_str).unwrap_or_default();
    ui.line(format_args!("{id} {done}, now {}", ui.paint(state_style(state), state)))
}
