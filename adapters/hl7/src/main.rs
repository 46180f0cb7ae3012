mod ack;
mod header;
mod mllp;
fn main() {}
