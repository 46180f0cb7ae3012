//! C2SP tlog-proof texts: what a receipt is. One entry, its way to the root, and the signed checkpoint.
//!
//! The entry's own bytes travel in the `extra` line. The format does not authenticate that line, but the proof does:
//! its hash must lead to the signed root.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::checkpoint::{Checkpoint, CheckpointError, parse_size};
use crate::merkle::{ProofError, verify_inclusion};
use crate::note::{NOTE_BYTES_MAX, VerifierKey};
use crate::tiles::ENTRY_BYTES_MAX;
use crate::tree::{Hash, leaf_hash};

pub const HEADER: &str = "c2sp.org/tlog-proof@v1";
/// A tree of 2^63 entries has 63 levels above its leaves.
pub const PROOF_HASHES_MAX: usize = 63;
/// The largest text that can be a proof: the entry in base64, the hashes and the checkpoint.
pub const PROOF_BYTES_MAX: usize = ENTRY_BYTES_MAX * 4 / 3 + 64 * 64 + NOTE_BYTES_MAX;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The entry itself, when the proof carries it.
    pub entry: Option<Vec<u8>>,
    pub index: u64,
    /// From the entry's sibling up.
    pub hashes: Vec<Hash>,
    /// The signed checkpoint, verbatim.
    pub checkpoint: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofTextError {
    #[error("the proof is not UTF-8 text of at most {PROOF_BYTES_MAX} bytes")]
    NotText,
    #[error("the first line is not {HEADER}")]
    NoHeader,
    #[error("the extra line is not base64")]
    BadExtra,
    #[error("there is no line `index N`")]
    BadIndex,
    #[error("line {line} of the proof is not the base64 of a hash")]
    BadHash { line: usize },
    #[error("the proof has more than {PROOF_HASHES_MAX} hashes")]
    TooManyHashes,
    #[error("there is no checkpoint after a blank line")]
    NoCheckpoint,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    #[error("the proof does not carry its entry, and none was given")]
    NoEntry,
    #[error("the checkpoint of the proof")]
    Checkpoint(#[from] CheckpointError),
    #[error("the proof of the entry")]
    Inclusion(#[from] ProofError),
}

/// The text of a proof without its entry.
pub fn format_proof(index: u64, hashes: &[Hash], checkpoint: &str) -> String {
    Proof { entry: None, index, hashes: hashes.to_vec(), checkpoint: checkpoint.to_owned() }.to_text()
}

/// Takes apart a file of receipts: one proof after another, or the JSON object `{"proofs":[text…]}` of the HTTP API.
pub fn split_texts(bytes: &[u8]) -> Result<Vec<String>, ProofTextError> {
    let text = std::str::from_utf8(bytes).map_err(|_| ProofTextError::NotText)?;
    if text.trim_start().starts_with('{') {
        let object: serde_json::Value = serde_json::from_str(text).map_err(|_| ProofTextError::NotText)?;
        let texts = object["proofs"].as_array().into_iter().flatten();
        return texts.map(|text| text.as_str().map(str::to_owned).ok_or(ProofTextError::NotText)).collect();
    }
    // A checkpoint cannot contain the header: its lines are a name, a number, a hash and signatures.
    let starts: Vec<usize> = text
        .match_indices(HEADER)
        .map(|(start, _)| start)
        .filter(|&start| start == 0 || text.as_bytes()[start - 1] == b'\n')
        .collect();
    match starts.first() {
        Some(0) => {}
        _ => return Err(ProofTextError::NoHeader),
    }
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    // Whoever put them together may have put a blank line between them.
    let whole = |(&start, end): (&usize, usize)| format!("{}\n", text[start..end].trim_end_matches('\n'));
    Ok(starts.iter().zip(ends).map(whole).collect())
}

impl Proof {
    pub fn to_text(&self) -> String {
        let mut text = format!("{HEADER}\n");
        if let Some(entry) = &self.entry {
            text.push_str("extra ");
            BASE64_STANDARD.encode_string(entry, &mut text);
            text.push('\n');
        }
        text.push_str(&format!("index {}\n", self.index));
        for hash in &self.hashes {
            text.push_str(&hash.to_base64());
            text.push('\n');
        }
        text.push('\n');
        text.push_str(&self.checkpoint);
        text
    }

    pub fn parse(bytes: &[u8]) -> Result<Self, ProofTextError> {
        let text = std::str::from_utf8(bytes)
            .ok()
            .filter(|text| text.len() <= PROOF_BYTES_MAX)
            .ok_or(ProofTextError::NotText)?;
        let body = text.strip_prefix(HEADER).and_then(|rest| rest.strip_prefix('\n'));
        let body = body.ok_or(ProofTextError::NoHeader)?;
        let (proof, checkpoint) = body.split_once("\n\n").ok_or(ProofTextError::NoCheckpoint)?;
        let mut lines = proof.split('\n').enumerate().map(|(number, line)| (number + 2, line)).peekable();
        let entry = match lines.next_if(|(_, line)| line.starts_with("extra ")) {
            Some((_, line)) => {
                Some(BASE64_STANDARD.decode(&line["extra ".len()..]).map_err(|_| ProofTextError::BadExtra)?)
            }
            None => None,
        };
        let index = lines.next().and_then(|(_, line)| parse_size(line.strip_prefix("index ")?));
        let index = index.ok_or(ProofTextError::BadIndex)?;
        let mut hashes = Vec::new();
        for (line, text) in lines {
            if hashes.len() == PROOF_HASHES_MAX {
                return Err(ProofTextError::TooManyHashes);
            }
            hashes.push(Hash::from_base64(text).ok_or(ProofTextError::BadHash { line })?);
        }
        Ok(Self { entry, index, hashes, checkpoint: checkpoint.to_owned() })
    }

    /// Checks the whole receipt: that a known key signed the checkpoint, and that the entry it carries is entry
    /// [`index`](Self::index) of that tree.
    pub fn verify(&self, known: &[VerifierKey]) -> Result<Checkpoint, ReceiptError> {
        self.verify_entry(known, self.entry.as_deref().ok_or(ReceiptError::NoEntry)?)
    }

    /// As [`verify`](Self::verify), for an entry that the reader has from elsewhere.
    pub fn verify_entry(&self, known: &[VerifierKey], entry: &[u8]) -> Result<Checkpoint, ReceiptError> {
        let checkpoint = Checkpoint::open(self.checkpoint.as_bytes(), known)?;
        verify_inclusion(&leaf_hash(entry), self.index, checkpoint.size, &self.hashes, &checkpoint.root)?;
        Ok(checkpoint)
    }
}
