//! What stands in a payload's column when the sealed payload itself stands in pieces in rows of their own: where its key is, how many
//! pieces there are, and how many bytes they have together. Put together they are the sealed value, which verifies as any other does.

use super::{LOCATOR_BYTES, NOWHERE, Owner, PLAIN_BYTES, SEAL_PIECES, locator_bytes, locator_of};

/// Bytes of it: kind, checksum, locator, number of pieces, bytes of all of them.
const BYTES: usize = PLAIN_BYTES + LOCATOR_BYTES + 4 + 8;

/// A sealed value that stands in pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InPieces {
    /// Numbered from 1.
    pub(crate) count: u32,
    /// Of all pieces together.
    pub(crate) bytes: u64,
}

impl InPieces {
    /// Whether this says of a sealed value that it stands in pieces, be it damaged or not.
    pub(crate) fn is(sealed: &[u8]) -> bool {
        sealed.first() == Some(&SEAL_PIECES)
    }

    /// What stands in the place of `sealed`, which is cut into `count` pieces.
    pub(crate) fn in_place_of(sealed: &[u8], owner: Owner<'_>, count: u32) -> Vec<u8> {
        let mut rest = Vec::with_capacity(BYTES - PLAIN_BYTES);
        rest.extend_from_slice(&locator_bytes(locator_of(sealed).unwrap_or(NOWHERE)));
        rest.extend_from_slice(&count.to_be_bytes());
        rest.extend_from_slice(&(sealed.len() as u64).to_be_bytes());
        [&[SEAL_PIECES], owner.checksum(SEAL_PIECES, &rest).as_slice(), &rest].concat()
    }

    /// `None` of anything else, and of what is damaged or belongs elsewhere.
    pub(crate) fn read(sealed: &[u8], owner: Owner<'_>) -> Option<Self> {
        let sealed: &[u8; BYTES] = sealed.try_into().ok()?;
        let (head, rest) = sealed.split_at(PLAIN_BYTES);
        let (kind, checksum) = head.split_first()?;
        let is_sound = *kind == SEAL_PIECES && checksum == owner.checksum(SEAL_PIECES, rest);
        let (count, bytes) = rest[LOCATOR_BYTES..].split_first_chunk::<4>()?;
        let (count, bytes) = (u32::from_be_bytes(*count), u64::from_be_bytes(bytes.try_into().ok()?));
        is_sound.then_some(Self { count, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{PLACE, encrypting};
    use super::super::{Salt, Vault};
    use super::*;

    #[test]
    fn what_stands_in_pieces_says_how_many_and_where_its_key_is() {
        let message = &[3; 16];
        for vault in [Vault::new(&[1; 32]), encrypting()] {
            let data = vault.seal_data(&[7; 1000], message, [5; 32]).unwrap();
            let salt: Salt = data.salt;
            let owner = Owner::Data { message, salt: &salt };
            let instead = InPieces::in_place_of(&data.sealed, owner, 9);
            let bytes = data.sealed.len() as u64;
            assert_eq!(InPieces::read(&instead, owner), Some(InPieces { count: 9, bytes }));
            assert_eq!(locator_of(&instead), locator_of(&data.sealed));
            assert!(InPieces::is(&instead) && !InPieces::is(&data.sealed));
            assert!(Vault::is_sound(&instead, owner));
            // The content is not in it.
            assert!(vault.open(&instead, owner, PLACE).is_err());
            assert!(vault.open_owned(instead.clone(), owner, PLACE).is_err());
            assert!(!Vault::is_sound(&instead, Owner::Data { message: &[4; 16], salt: &salt }));
            for bit in 0..instead.len() * 8 {
                let mut flipped = instead.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(!Vault::is_sound(&flipped, owner), "bit {bit}");
            }
            for length in 0..instead.len() {
                assert!(!Vault::is_sound(&instead[..length], owner), "{length}");
            }
        }
    }
}
