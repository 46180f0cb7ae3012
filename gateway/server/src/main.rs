//! `gatepost`: the gateway's binary.

use std::process::ExitCode;

/// Payloads are allocated on one thread and freed on another, all day long: here that costs a tenth less of the processor than
/// with the C library's allocator, SQLite's part included.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    gatepost::main()
}
