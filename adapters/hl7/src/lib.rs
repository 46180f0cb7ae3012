//! `gatepost-hl7`: HL7 v2 over MLLP, both ways.
//!
//! Started by the gateway it is an adapter: it sends what the gateway leases to it, and hands the gateway what partners
//! send. `listen` and `send` are a partner and a sender for people at the bench, `view` shows them a message. A library only so that its parsers can be
//! fuzzed; the program is all there is to use.
//!
//! **Architecture invariant:** message bytes pass through unchanged, but for MSH-13 where the configuration has it numbered. Only acknowledgements
//! are written here.

mod ack;
mod adapter;
mod answer;
mod awaited;
mod batch;
mod channel;
mod charset;
mod event;
mod fleet;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod gauge;
mod header;
mod line;
mod listen_tool;
mod mllp;
mod numbers;
mod on_ack;
mod owed;
mod partners;
mod path;
mod peer;
mod quiet;
mod receive;
mod send;
mod send_tool;
mod sequence;
mod settings;
#[cfg(test)]
mod tests;
mod tool_tls;
mod view;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// HL7 v2 over MLLP for gatepost, and two small tools to try it out
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    adapter: gatepost_adapter::Args,
    #[command(subcommand)]
    tool: Option<Tool>,
}

#[derive(Subcommand)]
enum Tool {
    /// Be a partner: take messages over MLLP, acknowledge them, and say which ones came
    Listen(listen_tool::ListenArgs),
    /// Send the messages in files over MLLP and wait for each acknowledgement
    Send(send_tool::SendArgs),
    /// Show a message with its segments and fields by name
    View(view::ViewArgs),
}

/// Everything that the program does.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.tool {
        None => gatepost_adapter::main::<adapter::Hl7>(&cli.adapter),
        Some(Tool::Listen(args)) => listen_tool::main(&args),
        Some(Tool::Send(args)) => send_tool::main(&args),
        Some(Tool::View(args)) => view::main(&args),
    }
}
