//! C2SP checkpoints: origin, size and root of a tree, as the text of a signed note.
//!
//! Stricter than the specification: extension lines are refused, because nothing in our logs would audit them.

use crate::note::{self, NoteError, SignerKey, VerifierKey};
use crate::tree::Hash;

/// Tree sizes are signed 64-bit integers in other implementations.
pub const SIZE_MAX: u64 = i64::MAX as u64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    pub origin: String,
    pub size: u64,
    pub root: Hash,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    #[error(transparent)]
    Note(#[from] NoteError),
    #[error("the text is not the three lines origin, size and root")]
    NotThreeLines,
    #[error("the origin line is empty or too strange to sign")]
    BadOrigin,
    #[error("the size line is not a decimal number up to {SIZE_MAX}")]
    BadSize,
    #[error("the root line is not the base64 of a SHA-256 hash")]
    BadRoot,
    #[error("the log calls itself {actual:?}, the key belongs to {expected:?}")]
    OtherOrigin { expected: String, actual: String },
}

impl Checkpoint {
    pub fn to_text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, self.root.to_base64())
    }

    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let mut lines = text.strip_suffix('\n').ok_or(CheckpointError::NotThreeLines)?.split('\n');
        let (Some(origin), Some(size), Some(root), None) =
            (lines.next(), lines.next(), lines.next(), lines.next())
        else {
            return Err(CheckpointError::NotThreeLines);
        };
        if origin.is_empty() {
            return Err(CheckpointError::BadOrigin);
        }
        Ok(Self {
            origin: origin.to_owned(),
            size: parse_size(size).ok_or(CheckpointError::BadSize)?,
            root: Hash::from_base64(root).ok_or(CheckpointError::BadRoot)?,
        })
    }

    /// The signed form. The origin is the key's name, which is how a reader knows whose log it is.
    pub fn sign(&self, key: &SignerKey) -> Result<String, CheckpointError> {
        if self.origin != key.name() {
            return Err(CheckpointError::OtherOrigin {
                expected: key.name().to_owned(),
                actual: self.origin.clone(),
            });
        }
        if self.size > SIZE_MAX {
            return Err(CheckpointError::BadSize);
        }
        Ok(key.sign(&self.to_text())?)
    }

    /// Reads a signed checkpoint of the log that `known` belongs to.
    pub fn open(signed: &[u8], known: &[VerifierKey]) -> Result<Self, CheckpointError> {
        let opened = note::open(signed, known)?;
        let checkpoint = Self::parse(opened.text)?;
        let names = || opened.signed_by.iter().map(|&key| known[key].name());
        if names().any(|name| name == checkpoint.origin) {
            return Ok(checkpoint);
        }
        let expected = names().next().unwrap_or_default().to_owned();
        Err(CheckpointError::OtherOrigin { expected, actual: checkpoint.origin })
    }
}

/// A decimal number in its one spelling: digits only, no leading zero.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let size: u64 = text.parse().ok()?;
    (size <= SIZE_MAX && size.to_string() == text).then_some(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::empty_root;

    fn key(name: &str) -> SignerKey {
        SignerKey::from_seed(name, &[7; 32]).unwrap()
    }

    fn checkpoint() -> Checkpoint {
        Checkpoint { origin: "clinic-1".to_owned(), size: 20_852_163, root: empty_root() }
    }

    #[test]
    fn a_checkpoint_signs_and_opens_and_reads_as_the_specification_shows() {
        let signed = checkpoint().sign(&key("clinic-1")).unwrap();
        assert!(signed.starts_with(
            "clinic-1\n20852163\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\n\u{2014} clinic-1 "
        ));
        assert_eq!(Checkpoint::open(signed.as_bytes(), &[key("clinic-1").verifier()]), Ok(checkpoint()));
    }

    #[test]
    fn the_origin_must_be_the_keys_name() {
        let expected = || "other".to_owned();
        let wrong = CheckpointError::OtherOrigin { expected: expected(), actual: "clinic-1".to_owned() };
        assert_eq!(checkpoint().sign(&key("other")), Err(wrong.clone()));
        let note = key("other").sign(&checkpoint().to_text()).unwrap();
        assert_eq!(Checkpoint::open(note.as_bytes(), &[key("other").verifier()]), Err(wrong));
    }

    #[test]
    fn only_one_spelling_is_read() {
        let root = empty_root().to_base64();
        let text = |size: &str| format!("o\n{size}\n{root}\n");
        assert!(Checkpoint::parse(&text("0")).is_ok());
        assert!(Checkpoint::parse(&text("9223372036854775807")).is_ok());
        for size in ["", "00", "01", "+1", "-1", " 1", "1 ", "1.0", "9223372036854775808", "x"] {
            assert_eq!(Checkpoint::parse(&text(size)), Err(CheckpointError::BadSize), "{size}");
        }
        for (bad, error) in [
            (String::new(), CheckpointError::NotThreeLines),
            (format!("o\n1\n{root}"), CheckpointError::NotThreeLines),
            ("o\n1\n".to_owned(), CheckpointError::NotThreeLines),
            (format!("o\n1\n{root}\nextension\n"), CheckpointError::NotThreeLines),
            (format!("\n1\n{root}\n"), CheckpointError::BadOrigin),
            ("o\n1\nroot\n".to_owned(), CheckpointError::BadRoot),
        ] {
            assert_eq!(Checkpoint::parse(&bad), Err(error), "{bad:?}");
        }
    }
}
