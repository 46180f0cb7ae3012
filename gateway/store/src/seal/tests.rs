use super::*;
use crate::keyring::{SealKey, SealKeys};

pub(super) const PLACE: Place = Place { table: "message", column: "data", row: 7 };

pub(super) fn encrypting() -> Vault {
    let keys = SealKeys::new([(1, SealKey::new([5; 32]))]).unwrap();
    Vault::with_keyring(&[1; 32], Keyring::new(Arc::new(keys)), true)
}

fn salt(byte: u8) -> Salt {
    Salt::from_stored([byte; SALT_BYTES])
}

#[test]
fn indices_depend_on_key_domain_and_the_borders_of_parts() {
    let vault = Vault::new(&[1; 32]);
    let index = vault.index(Domain::Key, &[b"ab", b"c"]);
    assert_eq!(index, vault.index(Domain::Key, &[b"ab", b"c"]));
    assert_ne!(index, vault.index(Domain::Key, &[b"a", b"bc"]));
    assert_ne!(index, vault.index(Domain::Subject, &[b"ab", b"c"]));
    assert_ne!(index, Vault::new(&[2; 32]).index(Domain::Key, &[b"ab", b"c"]));
}

#[test]
fn a_seal_opens_and_a_foreign_one_is_corrupt() {
    for vault in [Vault::new(&[1; 32]), encrypting()] {
        let owner = Owner::Reply { delivery: 7 };
        let sealed = vault.seal(b"xyz", owner).unwrap();
        assert_eq!(*vault.open(&sealed, owner, PLACE).unwrap(), *b"xyz");
        assert_eq!(vault.open_owned(sealed.clone(), owner, PLACE).unwrap(), b"xyz".as_slice());
        assert!(vault.open(&[9, 1], owner, PLACE).is_err());
        assert!(vault.open(&[], owner, PLACE).is_err());
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!Vault::is_sound(&flipped, owner), "bit {bit}");
            assert!(vault.open(&flipped, owner, PLACE).is_err(), "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert!(!Vault::is_sound(&sealed[..length], owner), "{length}");
        }
    }
}

/// The checksum is for accidents; whoever changes it along meets the commitment and the tag.
#[test]
fn a_change_that_mends_the_checksum_does_not_open() {
    let vault = encrypting();
    let owner = Owner::Reply { delivery: 7 };
    let sealed = vault.seal(b"xyz", owner).unwrap();
    for at in PLAIN_BYTES..sealed.len() {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        let checksum = owner.checksum(SEAL_ENCRYPTED, &changed[PLAIN_BYTES..]);
        changed[1..PLAIN_BYTES].copy_from_slice(&checksum);
        assert!(Vault::is_sound(&changed, owner));
        assert!(vault.open(&changed, owner, PLACE).is_err(), "byte {at}");
    }
    // Nor does it open as what belongs to something else, the checksum made to fit.
    let other = Owner::Reply { delivery: 8 };
    let mut moved = sealed;
    let checksum = other.checksum(SEAL_ENCRYPTED, &moved[PLAIN_BYTES..]);
    moved[1..PLAIN_BYTES].copy_from_slice(&checksum);
    assert!(vault.open(&moved, other, PLACE).is_err());
}

#[test]
fn a_value_opens_where_it_belongs_and_nowhere_else() {
    for vault in [Vault::new(&[1; 32]), encrypting()] {
        let owners = [
            Owner::Attributes { message: &[1; 16] },
            Owner::Attributes { message: &[2; 16] },
            Owner::Data { message: &[1; 16], salt: &salt(1) },
            Owner::Data { message: &[1; 16], salt: &salt(2) },
            Owner::Data { message: &[2; 16], salt: &salt(1) },
            Owner::Detail { leaf: 1, delivery: 2 },
            Owner::Detail { leaf: 2, delivery: 1 },
            Owner::Reply { delivery: 1 },
            Owner::Reply { delivery: 2 },
            Owner::State { adapter: "a", key: "bc" },
            Owner::State { adapter: "ab", key: "c" },
        ];
        for (number, owner) in owners.iter().enumerate() {
            let sealed = vault.seal(b"x", *owner).unwrap();
            for (other, opener) in owners.iter().enumerate() {
                assert_eq!(vault.open(&sealed, *opener, PLACE).is_ok(), number == other, "{opener:?}");
            }
        }
    }
}

#[test]
fn what_is_encrypted_shows_nothing_and_needs_the_keyring() {
    let vault = encrypting();
    let content = b"the patient's name".repeat(4);
    let owner = Owner::Attributes { message: &[1; 16] };
    let sealed = vault.seal(&content, owner).unwrap();
    assert!(!sealed.windows(4).any(|window| window == b"name"));
    assert_ne!(vault.seal(&content, owner).unwrap(), sealed, "a key and a nonce of its own");
    let tree = locator_of(&sealed).unwrap().tree;
    let unknown = StoreError::DataKeyUnknown { tree };
    assert_eq!(
        Vault::new(&[1; 32]).open(&sealed, owner, PLACE).unwrap_err().to_string(),
        unknown.to_string()
    );
    let other = encrypting();
    assert!(other.open(&sealed, owner, PLACE).is_err());
    for stored in vault.unsaved().unwrap() {
        other.learn(&stored).unwrap();
    }
    assert_eq!(*other.open(&sealed, owner, PLACE).unwrap(), *content);
}

#[test]
fn a_salt_is_stored_masked_and_comes_back() {
    let clear = [3; 32];
    let vault = encrypting();
    let SealedData { salt, sealed } = vault.seal_data(b"x", &[1; 16], clear).unwrap();
    assert!(!salt.stored.windows(4).any(|window| window == [3; 4]));
    let reread = Salt::from_stored(*salt.stored());
    assert_eq!(vault.clear(&reread).unwrap(), clear);
    let owner = Owner::Data { message: &[1; 16], salt: &reread };
    assert_eq!(*vault.open(&sealed, owner, PLACE).unwrap(), *b"x");
    let plain = Vault::new(&[1; 32]).seal_data(b"x", &[1; 16], clear).unwrap().salt;
    assert_eq!(vault.clear(&Salt::from_stored(*plain.stored())).unwrap(), clear);
}
