//! `gatepost show ID`: what became of one message, step by step.

use std::time::Duration;

use gatepost_api::lists::DeliveryItem;
use gatepost_api::messages::{DeliveryView, HistoryItem, MessageView};
use gatepost_core::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use super::client::{Answer, Call, Client};
use super::failure::{EXIT_NOT_FOUND, Failure};
use super::ui::{Style, Ui, harmless, state_style};
use super::{Context, Target, text};

/// Longest value of evidence shown in a timeline, characters; `--json` has all of it.
const EVIDENCE_CHARS_MAX: usize = 40;
/// Enough of a longer one, usually a digest, to tell it from others.
const EVIDENCE_CHARS_KEPT: usize = 8;

#[derive(Debug, clap::Args)]
pub(super) struct Show {
    /// A message, or one of its deliveries
    #[arg(value_name = "ID", value_parser = text::parse_id)]
    id: Uuid,
    /// Show the payload too: an operator needs the right `read_payload`, and the reading is an audit entry
    #[arg(long)]
    data: bool,
    /// With --data: its fields by name, where an adapter can tell them
    #[arg(long, requires = "data")]
    fields: bool,
    /// Show what the partner answered, as --data the payload
    #[arg(long, conflicts_with = "data")]
    reply: bool,
    #[command(flatten)]
    target: Target,
}

pub(super) async fn show(context: &Context, args: &Show) -> Result<(), Failure> {
    let mut client = context.operators(&args.target)?;
    let answer = find(&mut client, args.id).await?;
    let view: MessageView = answer.json()?;
    let ui = &context.ui;
    if args.data {
        let data = client.call(Call::get(format!("/v1/messages/{}/data", view.id))).await?;
        if args.fields {
            let text = super::view::fields(&view.attributes.kind, data.body.to_vec()).await?;
            return ui.line(harmless(text.trim_end_matches('\n')));
        }
        return super::receive::print_payload(ui, &data.body);
    }
    if args.reply {
        return print_replies(ui, &view, args.id);
    }
    if ui.json {
        return ui.json(&answer.json::<Value>()?);
    }
    print_message(ui, &view, args.id)
}

/// The message of this id, else the message of the delivery of this id.
async fn find(client: &mut Client, id: Uuid) -> Result<Answer, Failure> {
    let not_found = match client.call(Call::get(format!("/v1/messages/{id}"))).await {
        Err(failure) if failure.exit_code() == EXIT_NOT_FOUND => failure,
        answer => return answer,
    };
    match client.get::<DeliveryItem>(format!("/v1/deliveries/{id}")).await {
        Ok(delivery) => client.call(Call::get(format!("/v1/messages/{}", delivery.message))).await,
        Err(failure) if failure.exit_code() == EXIT_NOT_FOUND => Err(not_found),
        Err(failure) => Err(failure),
    }
}

/// The deliveries that `id` names: one of them, else those of the message.
fn named(view: &MessageView, id: Uuid) -> impl Iterator<Item = &DeliveryView> {
    let only = view.deliveries.iter().any(|delivery| delivery.delivery.id == id);
    view.deliveries.iter().filter(move |delivery| !only || delivery.delivery.id == id)
}

/// The message and the timeline of each delivery that `id` names.
fn print_message(ui: &Ui, view: &MessageView, id: Uuid) -> Result<(), Failure> {
    print_attributes(ui, view)?;
    for delivery in named(view, id) {
        ui.line("")?;
        print_delivery(ui, delivery)?;
    }
    Ok(())
}

fn print_replies(ui: &Ui, view: &MessageView, id: Uuid) -> Result<(), Failure> {
    let mut replies = named(view, id).filter_map(|delivery| delivery.reply.as_ref()).peekable();
    if replies.peek().is_none() {
        return Err(Failure::Unsuccessful {
            what: "there is no reply that you may read".to_owned(),
            hint: Some("an operator needs `read_payload`; it is kept with what ended a delivery".to_owned()),
        });
    }
    if ui.json {
        return ui.json(&replies.collect::<Vec<_>>());
    }
    replies.try_for_each(|reply| super::receive::print_reply(ui, reply))
}

fn print_attributes(ui: &Ui, view: &MessageView) -> Result<(), Failure> {
    let event = &view.attributes;
    ui.line(format_args!("{} {}", ui.paint(Style::Strong, "message"), view.id))?;
    let purged = if view.payload_purged { ", purged" } else { "" };
    let mut fields = vec![
        ("type", event.kind.clone()),
        ("from", format!("{} ({})", view.app, event.source)),
        ("accepted", format!("{} ({})", text::date_time(&view.accepted_at), text::ago(&view.accepted_at))),
        ("payload", format!("{}{purged}", text::bytes(view.size))),
        ("event id", event.id.clone()),
    ];
    if let Some(subject) = &event.subject {
        fields.insert(2, ("subject", subject.clone()));
    }
    fields.extend(event.extensions.iter().map(|(name, value)| (name.as_str(), value.to_text())));
    for (name, value) in fields {
        ui.line(format_args!(
            "  {} {}",
            ui.paint(Style::Faint, format_args!("{name:<14}")),
            harmless(&value)
        ))?;
    }
    Ok(())
}

fn print_delivery(ui: &Ui, view: &DeliveryView) -> Result<(), Failure> {
    let delivery = &view.delivery;
    let state = ui.paint(state_style(&delivery.state), &delivery.state);
    let took = took(&delivery.accepted_at, &delivery.changed_at);
    let mut remarks = vec![format!("{took} after it was accepted")];
    remarks.extend(delivery.reason.as_ref().map(|reason| format!("because {reason}")));
    if delivery.in_doubt {
        remarks.push("may have reached the partner".to_owned());
    }
    if let Some(due) = &delivery.due_at {
        remarks.push(format!("due {}", text::time_of_day(due)));
    }
    let remarks = ui.paint(Style::Faint, remarks.join(", "));
    ui.line(format_args!(
        "{} {}: {state}, {remarks}",
        ui.paint(Style::Strong, "→"),
        harmless(&delivery.destination)
    ))?;
    ui.line(ui.paint(Style::Faint, format_args!("  delivery {}", delivery.id)))?;
    print_steps(ui, view, "  ")?;
    match &view.reply {
        Some(reply) => {
            let kind = reply.datacontenttype.as_deref().unwrap_or("JSON");
            let told = format!("  the partner's answer ({}): show --reply {}", harmless(kind), delivery.id);
            ui.line(ui.paint(Style::Faint, told))
        }
        None => Ok(()),
    }
}

/// What happened to the delivery: when, how long after it was accepted, by whom, and with what evidence.
pub(crate) fn print_steps(ui: &Ui, view: &DeliveryView, indent: &str) -> Result<(), Failure> {
    let from = &view.delivery.accepted_at;
    if !view.history.iter().any(|step| matches!(step.event.as_str(), "accepted" | "emitted")) {
        print_step(ui, indent, (from, from), "accepted", "")?;
    }
    for step in &view.history {
        print_step(ui, indent, (from, &step.at), &what(step), &remark(step))?;
    }
    Ok(())
}

fn print_step(
    ui: &Ui,
    indent: &str,
    (from, at): (&str, &str),
    what: &str,
    remark: &str,
) -> Result<(), Failure> {
    let style = state_style(what.split(' ').next().unwrap_or_default());
    let line = format!(
        "{indent}{}  {:>10}  {}  {}",
        ui.paint(Style::Faint, text::time_of_day(at)),
        format!("+{}", took(from, at)),
        ui.paint(style, format_args!("{what:<12}")),
        harmless(remark),
    );
    ui.line(line.trim_end())
}

fn what(step: &HistoryItem) -> String {
    match step.attempt {
        Some(attempt) if step.event == "attempt" => format!("attempt {attempt}"),
        _ => step.event.clone(),
    }
}

fn remark(step: &HistoryItem) -> String {
    let mut parts = vec![step.by.clone()];
    parts.extend(step.code.clone());
    parts.extend(step.reason.clone());
    parts.extend(step.evidence.as_ref().and_then(|evidence| evidence_text(evidence.get())));
    parts.join("  ")
}

/// The scalars of the evidence, its level first.
fn evidence_text(json: &str) -> Option<String> {
    let Value::Object(members) = serde_json::from_str(json).ok()? else { return None };
    let mut parts = Vec::new();
    parts.extend(members.get("level").and_then(Value::as_str).map(|level| format!("{level}:")));
    for (name, value) in members.iter().filter(|(name, _)| *name != "level") {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            Value::Null | Value::Array(_) | Value::Object(_) => continue,
        };
        parts.push(format!("{name}={}", shortened(&text)));
    }
    (!parts.is_empty()).then(|| parts.join(" "))
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(EVIDENCE_CHARS_MAX) {
        Some(_) => text.chars().take(EVIDENCE_CHARS_KEPT).chain(['…']).collect(),
        None => text.to_owned(),
    }
}

fn took(from: &str, to: &str) -> String {
    match (Timestamp::parse_rfc3339(from), Timestamp::parse_rfc3339(to)) {
        (Some(from), Some(to)) => text::span(to.since(from)),
        _ => text::span(Duration::ZERO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_shows_its_level_first_and_only_scalars() {
        let text =
            evidence_text(r#"{"code":"AA","level":"transport","control_id":"7","raw":{"a":1}}"#).unwrap();
        assert!(text.starts_with("transport: "), "{text}");
        assert!(text.contains("code=AA") && text.contains("control_id=7") && !text.contains("raw"), "{text}");
        assert_eq!(evidence_text("[]"), None);
        assert_eq!(shortened(&"x".repeat(64)), "xxxxxxxx…");
        assert_eq!(shortened("MRN-1"), "MRN-1");
    }
}
