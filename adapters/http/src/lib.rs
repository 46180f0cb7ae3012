//! `gatepost-http`: delivers to an HTTP endpoint as Standard Webhooks.
//!
//! Sends only; an endpoint that wants to send to the gateway is an app of its own. A library only so that its parsers can be
//! fuzzed; the program is all there is to use.
//!
//! **Architecture invariant:** redirects are never followed and payload bytes pass through unchanged. Secrets come from
//! files, never from the settings.

mod adapter;
mod answer;
mod connect;
mod content;
mod endpoint;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
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

/// Everything that the program does.
pub fn main() -> ExitCode {
    gatepost_adapter::main::<adapter::Http>(&Cli::parse().adapter)
}
