//! FIX on the wire: a streaming decoder and an encoder (FIX 4.4 volume 2, "Message format" and "Garbled messages").

mod decoder;
mod encoder;

pub use decoder::{Decoder, Garbled, Item, parse};
pub(crate) use encoder::{Digits, write_field};
pub use encoder::{Draft, Unencodable};

/// The sum of all bytes modulo 256, as CheckSum (10) has it.
fn check_sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

/// `10=nnn` and SOH.
const TRAILER_BYTES: usize = "10=nnn|".len();
