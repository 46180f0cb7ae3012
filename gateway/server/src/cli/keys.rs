//! `gatepost erase` and `gatepost key`.

use bytes::Bytes;
use clap::{Args, Subcommand};
use gatepost_api::keys::{EraseAnswer, EraseRequest, RotateAnswer};
use http::HeaderValue;

use super::client::Call;
use super::failure::Failure;
use super::{Context, Target, text};

#[derive(Debug, Args)]
pub(super) struct Erase {
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct What {
    /// One message, by its id
    #[arg(long, value_name = "ID")]
    message: Option<String>,
    /// All that this app has sent
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
    /// All that have exactly this subject
    #[arg(long, value_name = "SUBJECT")]
    subject: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Key {
    /// Wrap all data keys with a new version of the seal key, and destroy the older ones
    Rotate {
        #[command(flatten)]
        target: Target,
    },
}

pub(super) async fn erase(context: &Context, args: &Erase) -> Result<(), Failure> {
    let mut client = context.operators(&args.target)?;
    let What { message, app, subject } = &args.what;
    let request = EraseRequest { message: message.clone(), app: app.clone(), subject: subject.clone() };
    let answer: EraseAnswer = client.call(Call::post_json("/v1/erase".to_owned(), &request)).await?.json()?;
    let ui = &context.ui;
    if ui.json {
        return ui.json(&answer);
    }
    ui.line(format_args!("{} erased", text::plural(answer.erased, "message", "messages")))?;
    if answer.under_way > 0 {
        ui.line(format_args!(
            "{} not erased: a delivery is under way; discard or resolve it, and run this again",
            text::plural(answer.under_way, "message", "messages")
        ))?;
        for id in &answer.messages_under_way {
            ui.line(format_args!("  {id}"))?;
        }
    }
    if answer.stored_plain > 0 {
        ui.line(format_args!(
            "{} stored in the clear, before encryption was on: the database may keep bytes of that in free pages for a while",
            text::plural(answer.stored_plain, "message was", "messages were")
        ))?;
    }
    match (answer.seal_key, &answer.copies_remain) {
        (Some(version), _) => ui.line(format_args!(
            "seal key {version} is in use, all older ones are destroyed: copies that were made before cannot be opened; backups with their keys can"
        )),
        (None, Some(why)) => ui.line(format_args!("copies that were made before can still be opened: {why}")),
        (None, None) => Ok(()),
    }
}

pub(super) async fn key(context: &Context, command: &Key) -> Result<(), Failure> {
    let Key::Rotate { target } = command;
    let mut client = context.operators(target)?;
    let json = HeaderValue::from_static("application/json");
    let call = Call::post("/v1/seal-key/rotate".to_owned(), json, Bytes::new());
    let answer: RotateAnswer = client.call(call).await?.json()?;
    if context.ui.json {
        return context.ui.json(&answer);
    }
    let destroyed: Vec<String> = answer.destroyed.iter().map(ToString::to_string).collect();
    context.ui.line(format_args!(
        "seal key {} is in use; destroyed: {}",
        answer.version,
        if destroyed.is_empty() { "none".to_owned() } else { destroyed.join(", ") }
    ))
}
