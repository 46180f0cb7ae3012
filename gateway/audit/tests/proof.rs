//! Receipts: the text form, and that nothing in one can be changed.

use std::convert::Infallible;

use gatepost_audit::proof::{HEADER, PROOF_HASHES_MAX, ReceiptError, format_proof, split_texts};
use gatepost_audit::{
    Checkpoint, CheckpointError, Hash, NodeSource, NoteError, Proof, ProofError, ProofTextError, SignerKey,
    inclusion_proof, leaf_hash, range_root, root_at,
};
use proptest::prelude::*;

struct OneTile(Vec<Hash>);

impl NodeSource for OneTile {
    type Error = Infallible;

    fn tile(&self, level: u8, _: u64, width: u16) -> Result<Vec<Hash>, Infallible> {
        assert_eq!(level, 0);
        Ok(self.0[..usize::from(width)].to_vec())
    }
}

fn key() -> SignerKey {
    SignerKey::from_seed("clinic-1", &[3; 32]).unwrap()
}

fn entry(index: u64) -> Vec<u8> {
    format!("entry {index}").into_bytes()
}

fn receipt(index: u64, size: u64) -> Proof {
    let tree = OneTile((0..size).map(|n| leaf_hash(&entry(n))).collect());
    let checkpoint = Checkpoint { origin: "clinic-1".to_owned(), size, root: root_at(&tree, size).unwrap() };
    Proof {
        entry: Some(entry(index)),
        index,
        hashes: inclusion_proof(&tree, index, size).unwrap(),
        checkpoint: checkpoint.sign(&key()).unwrap(),
    }
}

#[test]
fn the_text_is_the_one_of_the_specification() {
    let receipt = receipt(2, 3);
    let pair = range_root(&[leaf_hash(&entry(0)), leaf_hash(&entry(1))]).to_base64();
    let text = format!("{HEADER}\nextra ZW50cnkgMg==\nindex 2\n{pair}\n\n{}", receipt.checkpoint);
    assert_eq!(receipt.to_text(), text);
    assert_eq!(Proof::parse(text.as_bytes()), Ok(receipt.clone()));
    let bare = format_proof(2, &receipt.hashes, &receipt.checkpoint);
    assert_eq!(bare, text.replace("extra ZW50cnkgMg==\n", ""));
    let bare = Proof::parse(bare.as_bytes()).unwrap();
    assert_eq!(bare.verify(&[key().verifier()]), Err(ReceiptError::NoEntry));
    assert!(bare.verify_entry(&[key().verifier()], &entry(2)).is_ok());
}

#[test]
fn receipts_of_every_size_verify_also_without_hashes() {
    for size in 1..=20 {
        for index in 0..size {
            let receipt = receipt(index, size);
            let read = Proof::parse(receipt.to_text().as_bytes()).unwrap();
            assert_eq!(read, receipt);
            assert_eq!(read.verify(&[key().verifier()]).unwrap().size, size);
        }
    }
}

#[test]
fn a_receipt_for_something_else_is_refused() {
    let known = [key().verifier()];
    let wrong_root = Err(ReceiptError::Inclusion(ProofError::WrongRoot));
    let good = receipt(4, 9);
    assert_eq!(good.verify_entry(&known, &entry(5)), wrong_root);
    assert_eq!(Proof { index: 5, ..good.clone() }.verify(&known), wrong_root);
    assert_eq!(
        Proof { index: 9, ..good.clone() }.verify(&known),
        Err(ReceiptError::Inclusion(ProofError::OutsideTree))
    );
    assert!(Proof { checkpoint: receipt(4, 10).checkpoint, ..good.clone() }.verify(&known).is_err());
    let stranger = SignerKey::from_seed("clinic-1", &[4; 32]).unwrap().verifier();
    assert_eq!(
        good.verify(&[stranger]),
        Err(ReceiptError::Checkpoint(CheckpointError::Note(NoteError::NoKnownSignature)))
    );
}

#[test]
fn malformed_texts_are_refused_for_what_they_are() {
    let good = receipt(2, 3).to_text();
    let replaced = |old: &str, new: &str| {
        assert!(good.contains(old), "{old}");
        Proof::parse(good.replacen(old, new, 1).as_bytes()).unwrap_err()
    };
    assert_eq!(replaced("@v1", "@v2"), ProofTextError::NoHeader);
    assert_eq!(replaced("@v1\n", "@v1 \n"), ProofTextError::NoHeader);
    assert_eq!(replaced("extra ZW5", "extra ZW"), ProofTextError::BadExtra);
    assert_eq!(replaced("extra ", "extr "), ProofTextError::BadIndex);
    assert_eq!(replaced("index 2", "index 02"), ProofTextError::BadIndex);
    assert_eq!(replaced("index 2", "index -2"), ProofTextError::BadIndex);
    assert_eq!(replaced("index 2\n", ""), ProofTextError::BadIndex);
    assert_eq!(replaced("index 2\n", "index 2\nAAAA\n"), ProofTextError::BadHash { line: 4 });
    let many = format!("index 2\n{}", format!("{}\n", leaf_hash(b"").to_base64()).repeat(PROOF_HASHES_MAX));
    assert_eq!(replaced("index 2\n", &many), ProofTextError::TooManyHashes);
    assert_eq!(Proof::parse(format!("{HEADER}\nindex 0\n").as_bytes()), Err(ProofTextError::NoCheckpoint));
    assert_eq!(Proof::parse(b"\xff"), Err(ProofTextError::NotText));
}

#[test]
fn a_file_may_hold_several() {
    let texts = [receipt(0, 3).to_text(), receipt(1, 3).to_text(), receipt(2, 3).to_text()];
    assert_eq!(split_texts(texts.concat().as_bytes()).unwrap(), texts);
    assert_eq!(split_texts(texts.join("\n").as_bytes()).unwrap(), texts, "a blank line between them");
    let json = serde_json::json!({ "proofs": texts }).to_string();
    assert_eq!(split_texts(json.as_bytes()).unwrap(), texts);
    assert_eq!(split_texts(format!("x{}", texts[0]).as_bytes()), Err(ProofTextError::NoHeader));
    assert_eq!(split_texts(b""), Err(ProofTextError::NoHeader));
    assert_eq!(split_texts(br#"{"proofs":[7]}"#), Err(ProofTextError::NotText));
    assert_eq!(split_texts(b"{"), Err(ProofTextError::NotText));
}

#[test]
fn every_changed_bit_of_a_receipt_is_noticed() {
    let known = [key().verifier()];
    let mut text = receipt(5, 11).to_text().into_bytes();
    for position in 0..text.len() {
        for bit in 0..8 {
            text[position] ^= 1 << bit;
            let verified = Proof::parse(&text).is_ok_and(|proof| proof.verify(&known).is_ok());
            assert!(!verified, "bit {bit} of byte {position}");
            text[position] ^= 1 << bit;
        }
    }
    assert!(Proof::parse(&text).unwrap().verify(&known).is_ok());
}

proptest! {
    #[test]
    fn hostile_texts_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), keep in 0..400usize) {
        let _ = Proof::parse(&bytes);
        let mut text = receipt(5, 11).to_text().into_bytes();
        text.truncate(keep);
        text.extend_from_slice(&bytes);
        let _ = Proof::parse(&text).map(|proof| proof.verify(&[key().verifier()]));
        let _ = split_texts(&text);
    }
}
