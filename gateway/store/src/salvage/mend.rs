//! Undoing a single flipped bit, wherever a checksum, a hash or a signature says which one it was. What fits a checksum of 64
//! bits after one of at most a million changes was written so: another content fits once in 10^13 cases.

/// Longer values than this are not tried, but for pages of the write-ahead log: each try reads them whole.
pub(super) const BYTES_MAX: usize = 8 * 1024;

/// The value that fits and differs from this one in one bit.
pub(super) fn mended(value: &[u8], fits: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
    let mut tried = value.to_vec();
    for byte in 0..tried.len() {
        for bit in 0..8 {
            tried[byte] ^= 1 << bit;
            if fits(&tried) {
                return Some(tried);
            }
            tried[byte] ^= 1 << bit;
        }
    }
    None
}
