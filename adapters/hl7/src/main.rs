//! `gatepost-hl7`: the adapter's binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    gatepost_hl7::main()
}
