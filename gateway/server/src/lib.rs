//! `gatepost`: the gateway's binary.

mod cli;
mod config;
mod http;
mod listen;
mod serve;
mod supervise;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main(serve::run)
}
