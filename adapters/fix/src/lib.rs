//! `gatepost-fix`: FIX 4.0 to 5.0 SP2, as tag=value over a session.
//!
//! `wire` cuts a stream into messages and writes them, `message` reads a whole one, `value` its values. `engine` is the session
//! layer, without sockets, clocks and storage; `session` drives it, with the gateway as its storage.
//!
//! **Architecture invariant:** the bytes of a body pass through unchanged, in the order in which they were handed in.
//! Header and trailer are written here.

mod adapter;
mod batch;
mod calls;
pub mod content;
pub mod data_fields;
pub mod dictionary;
mod engine;
mod event;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod intake;
mod left_behind;
mod link;
mod listener;
pub mod message;
mod room;
mod schedule;
mod session;
mod settings;
pub mod show_tool;
pub mod validate;
pub mod value;
pub mod version;
pub mod wire;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// FIX sessions for gatepost, and a tool to read FIX messages
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
    /// Show the FIX messages in a file or a log as JSON
    Show(show_tool::ShowArgs),
}

/// Everything that the program does.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.tool {
        None => gatepost_adapter::main::<adapter::Fix>(&cli.adapter),
        Some(Tool::Show(args)) => show_tool::main(&args),
    }
}
