//! `gatepost`: the gateway. A library only so that its parsers can be fuzzed; the program is all there is to use.

mod cli;
mod config;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod http;
mod listen;
mod notify;
mod serve;
mod spaced;
mod supervise;
mod tokens;

use std::process::ExitCode;

/// Everything that the program does.
pub fn main() -> ExitCode {
    cli::main(serve::run)
}
