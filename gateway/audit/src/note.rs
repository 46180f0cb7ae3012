//! C2SP signed notes with Ed25519 keys (signature type 0x01).
//!
//! The text of a note means nothing until [`open`] has returned it. Randomness is never drawn here: a new key is made
//! from 32 bytes that the caller drew.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};

/// The largest note that is read. Sixteen post-quantum cosignatures need about 80 KiB.
pub const NOTE_BYTES_MAX: usize = 256 * 1024;
/// The specification asks for at least 16.
pub const SIGNATURES_MAX: usize = 64;

const ED25519: u8 = 0x01;
const SIGNATURE_PREFIX: &str = "\u{2014} ";
const PRIVATE_PREFIX: &str = "PRIVATE+KEY+";
const KEY_ID_BYTES: usize = 4;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    #[error("the note has {0} bytes, more than {NOTE_BYTES_MAX}")]
    TooLong(usize),
    #[error("the note is not UTF-8 text without control characters, ending in a newline")]
    NotText,
    #[error("the note has no signature block after a blank line")]
    NoSignatures,
    #[error("signature line {line} of the note is malformed")]
    MalformedSignature { line: usize },
    #[error("the note has more than {SIGNATURES_MAX} signatures")]
    TooManySignatures,
    #[error("the signature by {key} is not one over this text")]
    BadSignature { key: String },
    #[error("the note carries no signature by a known key")]
    NoKnownSignature,
    #[error("a key name is empty or contains a space, a plus or a control character")]
    BadName,
    #[error("not a verifier key: {0}")]
    BadVerifierKey(&'static str),
    #[error("not a signer key: {0}")]
    BadSignerKey(&'static str),
}

/// The key that signs a log. Its text form is the secret itself.
#[derive(Clone)]
pub struct SignerKey {
    name: String,
    key: SigningKey,
}

impl fmt::Debug for SignerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "SignerKey({}, secret of {} bytes)",
            self.verifier().hint(),
            ed25519_dalek::SECRET_KEY_LENGTH
        )
    }
}

impl SignerKey {
    /// A key from its seed; fresh random bytes make a new key.
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, NoteError> {
        check_name(name)?;
        Ok(Self { name: name.to_owned(), key: SigningKey::from_bytes(seed) })
    }

    /// Reads `PRIVATE+KEY+name+id+base64`.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let key = text
            .strip_prefix(PRIVATE_PREFIX)
            .ok_or(NoteError::BadSignerKey("no PRIVATE+KEY+ at its start"))?;
        let (name, id, seed) = parse_key(key).map_err(NoteError::BadSignerKey)?;
        let key = Self::from_seed(name, &seed)?;
        if key.verifier().id != id {
            return Err(NoteError::BadSignerKey("its id belongs to another name or key"));
        }
        Ok(key)
    }

    /// `PRIVATE+KEY+name+id+base64`: whoever reads it can sign.
    pub fn encode(&self) -> String {
        format!("{PRIVATE_PREFIX}{}", encode_key(&self.name, self.verifier().id, self.key.as_bytes()))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn verifier(&self) -> VerifierKey {
        VerifierKey::assemble(self.name.clone(), self.key.verifying_key())
    }

    /// The note with this text, signed by this key.
    pub fn sign(&self, text: &str) -> Result<String, NoteError> {
        sign(text, &[self])
    }

    fn signature_line(&self, text: &str) -> String {
        let mut signature = self.verifier().id.to_be_bytes().to_vec();
        signature.extend_from_slice(&self.key.sign(text.as_bytes()).to_bytes());
        format!("{SIGNATURE_PREFIX}{} {}\n", self.name, BASE64_STANDARD.encode(signature))
    }
}

/// The note with this text, signed by each of the keys: more than one while a key is being replaced.
pub fn sign(text: &str, keys: &[&SignerKey]) -> Result<String, NoteError> {
    if keys.is_empty() {
        return Err(NoteError::NoSignatures);
    }
    if keys.len() > SIGNATURES_MAX {
        return Err(NoteError::TooManySignatures);
    }
    if !is_note_text(text) || !text.ends_with('\n') {
        return Err(NoteError::NotText);
    }
    let lines: String = keys.iter().map(|key| key.signature_line(text)).collect();
    let note = format!("{text}\n{lines}");
    match note.len() {
        0..=NOTE_BYTES_MAX => Ok(note),
        bytes => Err(NoteError::TooLong(bytes)),
    }
}

/// A key that a reader trusts, known by its name and id.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    id: u32,
    key: VerifyingKey,
}

impl VerifierKey {
    pub fn from_public(name: &str, public: &[u8; 32]) -> Result<Self, NoteError> {
        check_name(name)?;
        let key = VerifyingKey::from_bytes(public)
            .ok()
            .filter(|key| !key.is_weak())
            .ok_or(NoteError::BadVerifierKey("its bytes are not a usable Ed25519 public key"))?;
        Ok(Self::assemble(name.to_owned(), key))
    }

    /// Reads a vkey, `name+id+base64`.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let (name, id, public) = parse_key(text).map_err(NoteError::BadVerifierKey)?;
        let key = Self::from_public(name, &public)?;
        if key.id != id {
            return Err(NoteError::BadVerifierKey("its id belongs to another name or key"));
        }
        Ok(key)
    }

    fn assemble(name: String, key: VerifyingKey) -> Self {
        let digest = Sha256::new()
            .chain_update(&name)
            .chain_update([b'\n', ED25519])
            .chain_update(key.as_bytes())
            .finalize();
        let id = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
        Self { name, id, key }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn id(&self) -> u32 {
        self.id
    }

    pub fn public(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }

    /// `name+id`, enough for a person to recognise the key.
    pub fn hint(&self) -> String {
        format!("{}+{:08x}", self.name, self.id)
    }

    fn accepts(&self, text: &str, signature: &[u8]) -> bool {
        Signature::from_slice(signature)
            .is_ok_and(|signature| self.key.verify_strict(text.as_bytes(), &signature).is_ok())
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode_key(&self.name, self.id, self.key.as_bytes()))
    }
}

impl fmt::Debug for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifierKey({self})")
    }
}

impl FromStr for VerifierKey {
    type Err = NoteError;

    fn from_str(text: &str) -> Result<Self, NoteError> {
        Self::parse(text)
    }
}

/// A note whose text at least one known key has signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened<'a> {
    pub text: &'a str,
    /// The known keys that signed, as positions in the list given to [`open`].
    pub signed_by: Vec<usize>,
    /// Signatures by keys that are not in that list; they say nothing either way.
    pub unknown: usize,
}

/// Checks a note. Unknown signatures are ignored; a wrong one by a known key refuses the whole note.
pub fn open<'a>(note: &'a [u8], known: &[VerifierKey]) -> Result<Opened<'a>, NoteError> {
    if note.len() > NOTE_BYTES_MAX {
        return Err(NoteError::TooLong(note.len()));
    }
    let note = std::str::from_utf8(note).ok().filter(|note| is_note_text(note)).ok_or(NoteError::NotText)?;
    let split = note.rfind("\n\n").ok_or(NoteError::NoSignatures)?;
    let (text, signatures) = (&note[..=split], &note[split + 2..]);
    let lines = signatures.strip_suffix('\n').ok_or(NoteError::NoSignatures)?;
    let mut opened = Opened { text, signed_by: Vec::new(), unknown: 0 };
    for (number, line) in lines.split('\n').enumerate() {
        if number == SIGNATURES_MAX {
            return Err(NoteError::TooManySignatures);
        }
        let (name, id, signature) =
            parse_signature(line).ok_or(NoteError::MalformedSignature { line: number + 1 })?;
        match known.iter().position(|key| key.name == name && key.id == id) {
            None => opened.unknown += 1,
            Some(key) if known[key].accepts(text, &signature) => {
                if !opened.signed_by.contains(&key) {
                    opened.signed_by.push(key);
                }
            }
            Some(key) => return Err(NoteError::BadSignature { key: known[key].hint() }),
        }
    }
    if opened.signed_by.is_empty() {
        return Err(NoteError::NoKnownSignature);
    }
    Ok(opened)
}

fn parse_signature(line: &str) -> Option<(&str, u32, Vec<u8>)> {
    let (name, encoded) = line.strip_prefix(SIGNATURE_PREFIX)?.split_once(' ')?;
    check_name(name).ok()?;
    let mut id = BASE64_STANDARD.decode(encoded).ok()?;
    if id.len() <= KEY_ID_BYTES {
        return None;
    }
    let signature = id.split_off(KEY_ID_BYTES);
    Some((name, u32::from_be_bytes(id.try_into().ok()?), signature))
}

/// Splits `name+id+base64(type || 32 bytes)`.
fn parse_key(text: &str) -> Result<(&str, u32, [u8; 32]), &'static str> {
    let mut parts = text.splitn(3, '+');
    let (Some(name), Some(id), Some(encoded)) = (parts.next(), parts.next(), parts.next()) else {
        return Err("it is not name+id+key");
    };
    let id_value = u32::from_str_radix(id, 16).map_err(|_| "its id is not eight hexadecimal digits")?;
    if format!("{id_value:08x}") != id {
        return Err("its id is not eight hexadecimal digits");
    }
    let bytes = BASE64_STANDARD.decode(encoded).map_err(|_| "its key is not base64")?;
    match bytes.split_first() {
        Some((&ED25519, key)) => {
            Ok((name, id_value, key.try_into().map_err(|_| "its key is not 32 bytes long")?))
        }
        _ => Err("its signature type is not Ed25519"),
    }
}

fn encode_key(name: &str, id: u32, key: &[u8; 32]) -> String {
    let mut bytes = vec![ED25519];
    bytes.extend_from_slice(key);
    format!("{name}+{id:08x}+{}", BASE64_STANDARD.encode(bytes))
}

fn check_name(name: &str) -> Result<(), NoteError> {
    let bad = |c: char| c.is_whitespace() || c == '+' || c < ' ';
    if name.is_empty() || name.contains(bad) { Err(NoteError::BadName) } else { Ok(()) }
}

fn is_note_text(text: &str) -> bool {
    !text.contains(|c: char| c < ' ' && c != '\n')
}

#[cfg(test)]
mod tests;
