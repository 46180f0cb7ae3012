//! `gatepost token`: second factors for apps that share a user. Works on the data directory, gateway running or not.

use std::path::Path;
use std::time::Duration;

use clap::Subcommand;
use serde_json::json;

use super::Context;
use super::failure::Failure;
use super::text;
use super::ui::Style;
use crate::config::{self, Config};
use crate::tokens::{self, EXPIRES_MAX, Entry, Ledger, TokensError};

#[derive(Debug, Subcommand)]
pub(super) enum Token {
    /// Make a token for an app that has `token = true`, and print it, this once
    Create {
        /// The app
        #[arg(value_name = "APP")]
        app: String,
        /// How long it is good for, such as 90d; 400d at most
        #[arg(long, value_name = "TIME", value_parser = expiry)]
        expires: Duration,
    },
    /// List the tokens: of whom, until when, and whether they count
    List,
    /// End a token, at once
    Revoke {
        /// The id, as `list` shows it and as it stands in the token
        #[arg(value_name = "ID")]
        id: String,
    },
}

fn expiry(text: &str) -> Result<Duration, String> {
    let expires = config::duration(text)?;
    if expires > EXPIRES_MAX {
        return Err(format!("too long: a token is good for {} days at most", EXPIRES_MAX.as_secs() / 86_400));
    }
    Ok(expires)
}

pub(super) fn token(context: &Context, command: &Token) -> Result<(), Failure> {
    let config =
        Config::load(context.config.as_deref()).map_err(|error| Failure::usage(error.to_string()))?;
    match command {
        Token::Create { app, expires } => create(context, &config, app, *expires),
        Token::List => list(context, &config),
        Token::Revoke { id } => revoke(context, &config, id),
    }
}

fn create(context: &Context, config: &Config, app: &str, expires: Duration) -> Result<(), Failure> {
    let known = config.apps.get(app).ok_or_else(|| Failure::NotFound(format!("there is no app `{app}`")))?;
    if !known.selector.token_issued {
        let what = format!("nobody would ask for it: put `token = true` into [apps.{app}] first");
        return Err(Failure::usage(what));
    }
    let created = tokens::create(app, &known.selector, expires).map_err(failure)?;
    Ledger::open(&config.gateway.data_dir).and_then(|mut ledger| ledger.add(&created)).map_err(failure)?;
    let Entry { id, expires, .. } = &created.entry;
    if context.ui.json {
        return context.ui.json(&json!({"token": created.text, "id": id, "app": app, "expires": expires}));
    }
    context.ui.note(format_args!(
        "token {id} of {app}, good until {}; it is shown only now, and goes into `Authorization: Bearer`:",
        text::date_time(expires)
    ));
    context.ui.line(&created.text)
}

fn list(context: &Context, config: &Config) -> Result<(), Failure> {
    let ledger = open(&config.gateway.data_dir)?;
    let mut grid = context.ui.table(&["ID", "APP", "CREATED", "EXPIRES", "STATE"]);
    let mut items = Vec::new();
    for entry in &ledger.entries {
        let (style, state) = state(config, entry);
        let Entry { id, app, created, expires, .. } = entry;
        items.push(json!({"id": id, "app": app, "created": created, "expires": expires, "state": state}));
        grid.row(vec![
            (Style::Plain, id.clone()),
            (Style::Plain, app.clone()),
            (Style::Plain, text::date_time(created)),
            (Style::Plain, text::date_time(expires)),
            (style, state.to_owned()),
        ]);
    }
    if context.ui.json {
        return context.ui.json(&json!({"tokens": items}));
    }
    if grid.is_empty() { context.ui.line("no tokens") } else { grid.print(&context.ui) }
}

/// Whether a token counts, and if not, why.
fn state(config: &Config, entry: &Entry) -> (Style, &'static str) {
    let Some(app) = config.apps.get(&entry.app) else { return (Style::Bad, "no such app") };
    if entry.has_expired(tokens::now()) {
        (Style::Bad, "expired")
    } else if !entry.is_bound_to(&app.selector) {
        (Style::Bad, "the app's selector has changed")
    } else if !app.selector.token_issued {
        (Style::Bad, "the app takes no tokens")
    } else {
        (Style::Good, "live")
    }
}

fn revoke(context: &Context, config: &Config, id: &str) -> Result<(), Failure> {
    let entry = open(&config.gateway.data_dir)?.revoke(id).map_err(failure)?;
    if context.ui.json {
        return context.ui.json(&json!({"id": entry.id, "app": entry.app, "revoked": true}));
    }
    context.ui.line(format_args!("revoked: {} of {}", entry.id, entry.app))
}

fn open(data_dir: &Path) -> Result<Ledger, Failure> {
    Ledger::open(data_dir).map_err(failure)
}

fn failure(error: TokensError) -> Failure {
    match error {
        TokensError::NotFound(_) => Failure::NotFound(error.to_string()),
        error => Failure::unsuccessful(error.to_string()),
    }
}
