//! `gatepost-http`: delivers to an HTTP endpoint as Standard Webhooks.
//!
//! Sends only; an endpoint that wants to send to the gateway is an app of its own.
//!
//! **Architecture invariant:** redirects are never followed and payload bytes pass through unchanged. Secrets come from
//! files, never from the settings.

mod adapter;
mod answer;
mod endpoint;
mod request;
mod send;
mod settings;
mod signature;
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use clap::Parser;

/// Delivery to HTTP endpoints as Standard Webhooks, for gatepost
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    adapter: gatepost_adapter::Args,
}

fn main() -> ExitCode {
    gatepost_adapter::main::<adapter::Http>(&Cli::parse().adapter)
}
