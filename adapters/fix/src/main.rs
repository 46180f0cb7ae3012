//! `gatepost-fix`: the adapter's binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    gatepost_fix::main()
}
