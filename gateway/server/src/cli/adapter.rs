//! `gatepost adapter`: what operators can have adapters do.

use std::time::Duration;

use bytes::Bytes;
use clap::Subcommand;
use gatepost_api::calls::{CallAnswer, CallRequest, OfferList};
use gatepost_api::lists::AdapterItem;
use http::HeaderValue;
use serde_json::{Map, Value};

use super::client::{Call, percent_encoded};
use super::failure::Failure;
use super::list::finish;
use super::ui::{Style, Ui};
use super::{Context, Target};

/// The gateway waits for an adapter's answer for so long.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

#[derive(Debug, Subcommand)]
pub(super) enum Adapter {
    /// Stop an adapter's process and start it anew, also one that was given up
    Restart(Named),
    /// List what an adapter can be called for
    Calls(Named),
    /// Call an adapter for something that it offers, and print its answer
    Call(Asked),
}

#[derive(Debug, clap::Args)]
pub(super) struct Named {
    /// The adapter
    name: String,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub(super) struct Asked {
    /// The adapter
    name: String,
    /// What for, as `calls` lists it
    call: String,
    /// KEY=TEXT, or KEY:=JSON for numbers, lists and the like
    #[arg(value_name = "ARGUMENT", value_parser = argument)]
    arguments: Vec<(String, Value)>,
    /// Why, for a call that changes something; kept beside the audit log
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    target: Target,
}

fn argument(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=TEXT or KEY:=JSON")?;
    let (key, value) = match key.strip_suffix(':') {
        Some(key) => {
            let value = serde_json::from_str(value).map_err(|error| format!("not JSON: {error}"))?;
            (key, value)
        }
        None => (key, Value::from(value)),
    };
    if key.is_empty() { Err("the key is empty".to_owned()) } else { Ok((key.to_owned(), value)) }
}

pub(super) async fn adapter(context: &Context, command: &Adapter) -> Result<(), Failure> {
    match command {
        Adapter::Restart(named) => restart(context, named).await,
        Adapter::Calls(named) => calls(context, named).await,
        Adapter::Call(asked) => call(context, asked).await,
    }
}

fn path(name: &str, what: &str) -> String {
    format!("/v1/adapters/{}/{what}", percent_encoded(name))
}

async fn restart(context: &Context, named: &Named) -> Result<(), Failure> {
    let mut client = context.operators(&named.target)?;
    let json = HeaderValue::from_static("application/json");
    let answer = client.call(Call::post(path(&named.name, "restart"), json, Bytes::new())).await?;
    let adapter: AdapterItem = answer.json()?;
    if context.ui.json {
        return context.ui.json(&adapter);
    }
    context.ui.line(format_args!("{} is being restarted", named.name))
}

async fn calls(context: &Context, named: &Named) -> Result<(), Failure> {
    let mut client = context.operators(&named.target)?;
    let list: OfferList = client.get(path(&named.name, "calls")).await?;
    let ui = &context.ui;
    if ui.json {
        return ui.json(&list);
    }
    let mut grid = ui.table(&["CALL", "", "WHAT IT DOES"]);
    for offer in list.calls {
        let kind = if offer.changes {
            (Style::Warn, "changes".to_owned())
        } else {
            (Style::Faint, "looks".to_owned())
        };
        grid.row(vec![(Style::Strong, offer.name), kind, (Style::Plain, offer.about)]);
    }
    finish(ui, grid, false, "it offers no calls")
}

async fn call(context: &Context, asked: &Asked) -> Result<(), Failure> {
    let mut arguments = Map::new();
    for (key, value) in &asked.arguments {
        if arguments.insert(key.clone(), value.clone()).is_some() {
            return Err(Failure::usage(format!("the argument `{key}` is given twice")));
        }
    }
    let mut client = context.operators(&asked.target)?;
    let request = CallRequest { call: asked.call.clone(), arguments, reason: asked.reason.clone() };
    let call = Call::post_json(path(&asked.name, "calls"), &request).held_for(ANSWER_WAIT);
    let CallAnswer { answer } = client.call(call).await?.json()?;
    let ui = &context.ui;
    if ui.json { ui.json(&answer) } else { print(ui, &answer) }
}

/// Each field on a line; a list of objects as a table under its name.
fn print(ui: &Ui, answer: &Value) -> Result<(), Failure> {
    let Value::Object(fields) = answer else { return ui.line(short(answer)) };
    for (name, value) in fields {
        match value.as_array().and_then(|rows| columns(rows).map(|columns| (rows, columns))) {
            Some((rows, columns)) => {
                ui.line(ui.paint(Style::Strong, name))?;
                let titles: Vec<String> =
                    columns.iter().map(|column| column.replace('_', " ").to_uppercase()).collect();
                let mut grid = ui.table(&titles.iter().map(String::as_str).collect::<Vec<_>>());
                for row in rows {
                    let cell = |column: &&String| (Style::Plain, short(&row[column.as_str()]));
                    grid.row(columns.iter().map(cell).collect());
                }
                grid.print(ui)?;
            }
            None => ui.line(format_args!("{}: {}", ui.paint(Style::Faint, name), short(value)))?,
        }
    }
    Ok(())
}

/// The keys of the first of some objects.
fn columns(rows: &[Value]) -> Option<Vec<&String>> {
    let all_objects = rows.iter().all(Value::is_object);
    let first = rows.first().filter(|_| all_objects)?.as_object()?;
    Some(first.keys().collect())
}

fn short(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn arguments_are_text_or_json() {
        assert_eq!(argument("session=A=B"), Ok(("session".to_owned(), json!("A=B"))));
        assert_eq!(argument("next:=42"), Ok(("next".to_owned(), json!(42))));
        assert_eq!(argument("next=42"), Ok(("next".to_owned(), json!("42"))));
        for bad in ["next", "=1", ":=1", "next:=x"] {
            assert!(argument(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_answer_is_printed_as_lines_and_tables() {
        let (ui, text) = Ui::in_memory(false);
        let answer = json!({"epoch": 3, "logged_on": null, "sessions": [
            {"session": "BROKER", "next_out": 12}, {"session": "BANK", "next_out": 1}]});
        print(&ui, &answer).unwrap();
        print(&ui, &json!("done")).unwrap();
        let text = String::from_utf8(text.lock().unwrap().clone()).unwrap();
        let words: Vec<&str> = text.split_whitespace().collect();
        let expected = "epoch: 3 logged_on: - sessions NEXT OUT SESSION 12 BROKER 1 BANK done";
        assert_eq!(words.join(" "), expected, "{text}");
    }
}
