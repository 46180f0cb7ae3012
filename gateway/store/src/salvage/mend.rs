//! Undoing a single flipped bit, wherever a sum, a hash or a signature says which one it was. What fits a checksum of 64
//! bits after one of at most a million changes was written so: another content fits once in 10^13 cases.

/// Longer values than this are not tried: each try reads them whole.
pub(super) const BYTES_MAX: usize = 8 * 1024;

/// The value that fits and differs from this one in one bit.
pub(super) fn mended(value: &[u8], fits: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
    candidates(value, fits).next()
}

/// Each value that fits and differs from this one in one bit, where a sum is too weak to leave but one.
pub(super) fn candidates(value: &[u8], fits: impl Fn(&[u8]) -> bool) -> impl Iterator<Item = Vec<u8>> {
    let mut tried = value.to_vec();
    (0..8 * value.len()).filter_map(move |bit| {
        tried[bit / 8] ^= 1 << (bit % 8);
        let found = fits(&tried).then(|| tried.clone());
        tried[bit / 8] ^= 1 << (bit % 8);
        found
    })
}
