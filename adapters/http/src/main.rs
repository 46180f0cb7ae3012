//! `gatepost-http`: the adapter's binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    gatepost_http::main()
}
