//! What must hold for any bytes that an auditor or a gateway reads as part of a log. Driven by the fuzzer, and by `cargo test`
//! over the inputs that it has kept.

use std::sync::LazyLock;

use crate::NodeSource;
use crate::checkpoint::Checkpoint;
use crate::edge::TileEdge;
use crate::leaf::Leaf;
use crate::merkle::inclusion_proof;
use crate::note::{self, SignerKey, VerifierKey};
use crate::proof::{Proof, split_texts};
use crate::tiles::{TilePath, encode_bundle, parse_bundle, parse_tile, tile_bytes};
use crate::tree::{Hash, leaf_hash};

/// A target and its name, which is also its corpus's.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] =
    &[("leaf", leaf), ("note", note), ("proof", proof), ("tiles", tiles), ("vkey", vkey)];

// === leaves ===

/// One meaning has one encoding, and it is JSON that says the same to everybody.
fn leaf(input: &[u8]) {
    match Leaf::parse(input) {
        Ok(leaf) => {
            assert_eq!(leaf.encode().as_deref(), Ok(input));
            let json: serde_json::Value = serde_json::from_slice(input).expect("a leaf is JSON");
            assert_eq!(json["event"], leaf.event.as_str());
            assert_eq!(json["by"]["name"], *leaf.by.name);
            assert_eq!(json["size"].as_u64(), leaf.size);
            assert_eq!(json["code"].as_str(), leaf.code.as_deref());
            assert_eq!(json["destination"].as_str(), leaf.destination.as_deref());
            let to = |delivery: &serde_json::Value| delivery["to"].as_str().map(str::to_owned);
            let named: Vec<_> = json["deliveries"].as_array().into_iter().flatten().map(to).collect();
            let read: Vec<_> = leaf.deliveries.iter().map(|delivery| Some(delivery.to.to_string())).collect();
            assert_eq!(named, read);
        }
        Err(error) => {
            let told = error.to_string();
            assert!(told.chars().count() < 700, "a fault repeats {} characters", told.chars().count());
            if let crate::LeafError::NotCanonical { offset } = error {
                assert!(offset <= input.len(), "the fault lies beyond the leaf");
            }
        }
    }
}

// === notes, checkpoints, proofs ===

/// A log of a few entries, signed. Its keys are no secret, but no fuzzer signs with them.
struct Log {
    entries: Vec<Vec<u8>>,
    key: SignerKey,
    checkpoint: Checkpoint,
    signed: String,
    proofs: Vec<Proof>,
}

static LOG: LazyLock<Log> = LazyLock::new(|| {
    let key = SignerKey::from_seed("clinic-1", &[7; 32]).expect("a name");
    let entries: Vec<Vec<u8>> = (0..5).map(|entry| format!("entry {entry}").into_bytes()).collect();
    let mut edge = TileEdge::new();
    let hashes: Vec<Hash> = entries.iter().map(|entry| leaf_hash(entry)).collect();
    for hash in &hashes {
        edge.push(*hash, &mut Vec::new());
    }
    let size = entries.len() as u64;
    let checkpoint = Checkpoint { origin: "clinic-1".to_owned(), size, root: edge.root() };
    let signed = checkpoint.sign(&key).expect("a checkpoint of this log");
    let source = OneTile(hashes);
    let proof = |(index, entry): (usize, &Vec<u8>)| Proof {
        entry: Some(entry.clone()),
        index: index as u64,
        hashes: inclusion_proof(&source, index as u64, size).expect("an entry of the tree"),
        checkpoint: signed.clone(),
    };
    let proofs = entries.iter().enumerate().map(proof).collect();
    Log { entries, key, checkpoint, signed, proofs }
});

struct OneTile(Vec<Hash>);

impl NodeSource for OneTile {
    type Error = std::convert::Infallible;

    fn tile(&self, _level: u8, _index: u64, width: u16) -> Result<Vec<Hash>, Self::Error> {
        Ok(self.0[..usize::from(width)].to_vec())
    }
}

/// The first byte chooses between a note as it stands and changes to the signed one: whatever opens is what was signed.
fn note(input: &[u8]) {
    let Some((&choice, rest)) = input.split_first() else { return };
    let note = if choice < 0x80 { rest.to_vec() } else { edited(LOG.signed.as_bytes(), rest) };
    let known = [LOG.key.verifier()];
    let opened = note::open(&note, &known);
    if let Ok(opened) = &opened {
        assert_eq!(opened.text, LOG.checkpoint.to_text(), "a text that was never signed");
        assert_eq!(opened.signed_by, [0]);
        assert!(note.starts_with(opened.text.as_bytes()));
    }
    match Checkpoint::open(&note, &known) {
        Ok(checkpoint) => assert_eq!(checkpoint, LOG.checkpoint),
        Err(error) => assert!(opened.is_err(), "{error}"),
    }
    // To somebody else the same bytes are nothing.
    let other = SignerKey::from_seed("clinic-1", &[8; 32]).expect("a name").verifier();
    assert!(note::open(&note, &[other]).is_err());
    if let Ok(text) = std::str::from_utf8(&note)
        && let Ok(checkpoint) = Checkpoint::parse(text)
    {
        assert_eq!(checkpoint.to_text(), text);
    }
}

/// As for notes: whatever proves anything proves what is in the log.
fn proof(input: &[u8]) {
    let Some((&choice, rest)) = input.split_first() else { return };
    let bytes = if choice < 0x80 {
        rest.to_vec()
    } else {
        let proof = &LOG.proofs[usize::from(choice) % LOG.proofs.len()];
        edited(proof.to_text().as_bytes(), rest)
    };
    let known = [LOG.key.verifier()];
    if let Ok(proof) = Proof::parse(&bytes) {
        assert_eq!(Proof::parse(proof.to_text().as_bytes()).as_ref(), Ok(&proof));
        if let Ok(checkpoint) = proof.verify(&known) {
            assert_eq!(checkpoint, LOG.checkpoint, "a tree that was never signed");
            let entry = usize::try_from(proof.index).ok().and_then(|index| LOG.entries.get(index));
            assert_eq!(proof.entry.as_ref(), entry, "an entry that is not in the log");
        }
        for (index, entry) in LOG.entries.iter().enumerate() {
            let holds = proof.verify_entry(&known, entry).is_ok();
            assert!(!holds || proof.index == index as u64, "an entry in another's place");
        }
    }
    if let Ok(texts) = split_texts(&bytes) {
        let length: usize = texts.iter().map(String::len).sum();
        assert!(length <= bytes.len() + texts.len(), "more came out than went in");
    }
}

/// `base` after some changes, four bytes each: what, where, and which byte.
fn edited(base: &[u8], script: &[u8]) -> Vec<u8> {
    let mut bytes = base.to_vec();
    for change in script.as_chunks::<4>().0 {
        let [what, high, low, byte] = *change;
        let at = usize::from(u16::from_be_bytes([high, low])) % (bytes.len() + 1);
        match what % 5 {
            0 if at < bytes.len() => bytes[at] = byte,
            1 => bytes.insert(at, byte),
            2 if at < bytes.len() => drop(bytes.remove(at)),
            3 => {
                let again = bytes[at..].iter().copied().take(usize::from(byte)).collect::<Vec<_>>();
                bytes.extend(again);
            }
            4 => bytes.rotate_left(at),
            _ => {}
        }
    }
    bytes
}

/// Keys have one spelling.
fn vkey(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(key) = VerifierKey::parse(text) {
        assert_eq!(key.to_string(), text);
        let note = LOG.signed.as_bytes();
        assert_eq!(note::open(note, std::slice::from_ref(&key)).is_ok(), key == LOG.key.verifier());
    }
    if let Ok(key) = SignerKey::parse(text) {
        assert_eq!(key.encode(), text);
        let signed = key.sign("text\n").expect("a text that can be signed");
        assert!(note::open(signed.as_bytes(), &[key.verifier()]).is_ok());
        assert!(!format!("{key:?}").contains(&text[text.len().saturating_sub(20)..]), "the key is shown");
    }
}

// === files ===

/// Bundles, tiles and their paths are written as they were read.
fn tiles(input: &[u8]) {
    if let Ok(entries) = parse_bundle(input) {
        assert_eq!(encode_bundle(entries).as_deref(), Ok(input));
    }
    if let Some(hashes) = parse_tile(input) {
        assert_eq!(tile_bytes(&hashes), input);
    }
    if let Ok(path) = std::str::from_utf8(input)
        && let Some(tile) = TilePath::parse(path)
    {
        assert_eq!(tile.to_string(), path);
        assert!(!path.contains(".."), "a path out of the log");
    }
}

#[test]
fn the_corpus_replays() {
    gatepost_replay::replay(TARGETS);
}
