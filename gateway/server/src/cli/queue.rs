//! `gatepost queue`: the destinations' queues.

use bytes::Bytes;
use clap::Subcommand;
use gatepost_api::lists::{DeliveryItem, Depth, MoveAnswer, MoveRequest, QueueItem};
use http::HeaderValue;
use serde_json::{Value, json};

use super::client::{Call, percent_encoded, with_query};
use super::failure::Failure;
use super::list::{finish, pages, read};
use super::ui::{Grid, Style, Ui};
use super::{Context, Target, text};

/// More queues than any configuration has.
const QUEUES_MAX: usize = 10_000;
/// Most deliveries in doubt that are listed as left behind; `doubt ls` has the rest.
const LEFT_LISTED_MAX: usize = 100;

#[derive(Debug, Subcommand)]
pub(super) enum Queue {
    /// List the queues with their depth, age and rate
    Ls {
        #[command(flatten)]
        target: Target,
    },
    /// Stop handing out deliveries of a queue; accepting goes on
    Pause(Named),
    /// Hand out deliveries of a queue again
    Resume(Named),
    /// Give what waits and what is dead in a queue to another destination; in doubt stays. Run again after an interruption
    Move(Move),
}

#[derive(Debug, clap::Args)]
pub(super) struct Move {
    /// The queue they leave; also one that has left the configuration, or `unrouted`
    name: String,
    /// The destination they go to
    #[arg(long, value_name = "NAME")]
    to: String,
    /// Why; kept with each delivery
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub(super) struct Named {
    /// The queue: an adapter's or an inbox's name
    name: String,
    #[command(flatten)]
    target: Target,
}

pub(super) async fn queue(context: &Context, command: &Queue) -> Result<(), Failure> {
    match command {
        Queue::Ls { target } => ls(context, target).await,
        Queue::Pause(named) => switch(context, named, "pause", "paused").await,
        Queue::Resume(named) => switch(context, named, "resume", "resumed").await,
        Queue::Move(args) => rehome(context, args).await,
    }
}

async fn ls(context: &Context, target: &Target) -> Result<(), Failure> {
    let mut client = context.operators(target)?;
    let list = pages(&mut client, "/v1/queues", "queues", QUEUES_MAX).await?;
    if context.ui.json {
        return context.ui.json(&json!({"queues": list.items, "next": list.next}));
    }
    let queues = list.items.into_iter().map(read::<QueueItem>).collect::<Result<Vec<_>, _>>()?;
    finish(&context.ui, grid(&context.ui, &queues), false, "no queues")
}

pub(super) fn grid(ui: &Ui, queues: &[QueueItem]) -> Grid {
    let header = [
        "QUEUE", "KIND", "WAITING", "LEASED", "SENDING", "IN DOUBT", "DEAD", "OLDEST", "IN/S", "OUT/S",
        "STATE",
    ];
    let mut grid = ui.table(&header);
    for queue in queues {
        let (style, state) = standing(queue);
        let depth = &queue.depth;
        let alarming = |n: u64, style: Style| (if n == 0 { Style::Faint } else { style }, text::count(n));
        grid.row(vec![
            (Style::Strong, queue.name.clone()),
            (Style::Faint, queue.kind.clone()),
            alarming(depth.waiting, Style::Plain),
            alarming(depth.leased, Style::Plain),
            alarming(depth.sending, Style::Plain),
            alarming(depth.in_doubt, Style::Warn),
            alarming(depth.dead, Style::Bad),
            (Style::Faint, queue.oldest_ms.map_or_else(|| "-".to_owned(), age)),
            (Style::Faint, format!("{:.1}", queue.rate.accepted_per_s)),
            (Style::Faint, format!("{:.1}", queue.rate.settled_per_s)),
            (style, state),
        ]);
    }
    grid
}

/// What an operator should know first.
fn standing(queue: &QueueItem) -> (Style, String) {
    let mut parts = Vec::new();
    let mut style = Style::Good;
    if queue.paused {
        style = Style::Warn;
        parts.push("paused".to_owned());
    }
    if let Some(why) = &queue.tripped {
        style = Style::Bad;
        parts.push(format!("held back: {why}"));
    }
    if queue.depth.held > 0 {
        style = Style::Warn;
        parts.push(format!("{} for a person to decide", text::count(queue.depth.held)));
    }
    if queue.held_lanes > 0 {
        style = Style::Warn;
        parts.push(text::plural(queue.held_lanes, "lane held", "lanes held"));
    }
    if parts.is_empty() { (style, "ok".to_owned()) } else { (style, parts.join(", ")) }
}

fn age(ms: u64) -> String {
    text::span(std::time::Duration::from_millis(ms))
}

async fn switch(context: &Context, named: &Named, verb: &str, done: &str) -> Result<(), Failure> {
    let mut client = context.operators(&named.target)?;
    let path = format!("/v1/queues/{}/{verb}", percent_encoded(&named.name));
    client.call(Call::post(path, HeaderValue::from_static("application/json"), Bytes::new())).await?;
    if context.ui.json {
        return context.ui.json(&Value::from_iter([("queue", named.name.as_str()), ("status", done)]));
    }
    context.ui.line(format_args!("{} {done}", named.name))
}

/// Call after call until the gateway says that the queue's end is reached.
async fn rehome(context: &Context, args: &Move) -> Result<(), Failure> {
    let mut client = context.operators(&args.target)?;
    let ui = &context.ui;
    let path = format!("/v1/queues/{}/move", percent_encoded(&args.name));
    let progress = ui.spinner("moving");
    let (mut waiting, mut dead, mut expired, mut cursor) = (0, 0, 0, None);
    let left = loop {
        let request = MoveRequest { to: args.to.clone(), reason: args.reason.clone(), cursor };
        let answer: MoveAnswer = client.call(Call::post_json(path.clone(), &request)).await?.json()?;
        waiting += answer.waiting;
        dead += answer.dead;
        expired += answer.expired;
        progress.set_message(format!("{} moved", text::count(waiting + dead)));
        cursor = answer.next;
        if cursor.is_none() {
            break answer.left;
        }
    };
    progress.finish_and_clear();
    let doubtful =
        with_query("/v1/deliveries", &[("state", Some("in_doubt")), ("destination", Some(&args.name))]);
    let doubtful = pages(&mut client, &doubtful, "deliveries", LEFT_LISTED_MAX).await?;
    if ui.json {
        return ui.json(&json!({
            "from": args.name, "to": args.to, "waiting": waiting, "dead": dead, "expired": expired, "left": left,
            "in_doubt": doubtful.items,
        }));
    }
    ui.line(format_args!(
        "{} moved from {} to {}: {} waiting, {} dead",
        text::plural(waiting + dead, "delivery", "deliveries"),
        args.name,
        args.to,
        text::count(waiting),
        text::count(dead),
    ))?;
    if expired > 0 {
        ui.line(format_args!(
            "{} waited past the expiry and ended",
            text::plural(expired, "delivery", "deliveries")
        ))?;
    }
    say_what_is_left(ui, &args.name, &left)?;
    for item in doubtful.items {
        let item: DeliveryItem = read(item)?;
        ui.line(format_args!("  in doubt  {}  message {}", item.id, item.message))?;
    }
    Ok(())
}

fn say_what_is_left(ui: &Ui, name: &str, left: &Depth) -> Result<(), Failure> {
    let out = left.leased + left.sending;
    if out + left.in_doubt + left.waiting + left.dead == 0 {
        return Ok(());
    }
    ui.line(format_args!(
        "left in {name}: {} in doubt, {} with the partner, {} waiting behind those, {} dead; run it again when they are decided",
        text::count(left.in_doubt),
        text::count(out),
        text::count(left.waiting),
        text::count(left.dead),
    ))
}
