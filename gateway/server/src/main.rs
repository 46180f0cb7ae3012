//! `gatepost`: the gateway's binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    gatepost::main()
}
