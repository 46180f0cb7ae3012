//! Proofs: for every size up to 70, against a naive tree; mutants are refused; and against vectors that Go's own
//! transparency log library made (tests/foreign/vectors.go).

use std::convert::Infallible;

use gatepost_audit::{
    Hash, NodeSource, ProofError, TreeError, consistency_proof, empty_root, inclusion_proof, leaf_hash,
    node_hash, root_at, verify_consistency, verify_inclusion,
};
use proptest::prelude::*;
use serde_json::Value;

const SIZES: u64 = 70;

/// RFC 6962 word by word, which is too slow for anything but a test.
fn mth(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => empty_root(),
        [leaf] => *leaf,
        _ => {
            let split = 1 << (leaves.len() - 1).ilog2();
            node_hash(&mth(&leaves[..split]), &mth(&leaves[split..]))
        }
    }
}

/// Tiles computed from the leaves, none stored.
struct Leaves(Vec<Hash>);

impl Leaves {
    fn new(count: u64) -> Self {
        Self((0..count).map(|n| leaf_hash(format!("leaf {n}").as_bytes())).collect())
    }
}

impl NodeSource for Leaves {
    type Error = Infallible;

    fn tile(&self, level: u8, index: u64, width: u16) -> Result<Vec<Hash>, Infallible> {
        let span = 256usize.pow(u32::from(level));
        let start = index as usize * 256 * span;
        Ok(self.0[start..].chunks_exact(span).take(usize::from(width)).map(mth).collect())
    }
}

#[test]
fn every_inclusion_proof_up_to_70_holds_and_its_mutants_do_not() {
    let leaves = Leaves::new(SIZES);
    for size in 1..=SIZES {
        let root = root_at(&leaves, size).unwrap();
        assert_eq!(root, mth(&leaves.0[..size as usize]));
        for index in 0..size {
            let leaf = leaves.0[index as usize];
            let proof = inclusion_proof(&leaves, index, size).unwrap();
            assert_eq!(verify_inclusion(&leaf, index, size, &proof, &root), Ok(()));
            let refused = |leaf: &Hash, index: u64, size: u64, proof: &[Hash], root: &Hash| {
                assert!(verify_inclusion(leaf, index, size, proof, root).is_err(), "{index} of {size}");
            };
            refused(&empty_root(), index, size, &proof, &root);
            refused(&leaf, index, size, &proof, &empty_root());
            (0..=size + 1)
                .filter(|&other| other != index)
                .for_each(|other| refused(&leaf, other, size, &proof, &root));
            refused(&leaf, u64::MAX, size, &proof, &root);
            mutants(&proof).iter().for_each(|mutant| refused(&leaf, index, size, mutant, &root));
        }
    }
}

#[test]
fn every_consistency_proof_up_to_70_holds_and_its_mutants_do_not() {
    let leaves = Leaves::new(SIZES);
    let roots: Vec<Hash> = (0..=SIZES).map(|size| root_at(&leaves, size).unwrap()).collect();
    for second in 0..=SIZES {
        for first in 0..=second {
            let (old, new) = (roots[first as usize], roots[second as usize]);
            let proof = consistency_proof(&leaves, first, second).unwrap();
            assert_eq!(verify_consistency(first, second, &old, &new, &proof), Ok(()));
            let refused = |first: u64, second: u64, old: &Hash, new: &Hash, proof: &[Hash]| {
                assert!(verify_consistency(first, second, old, new, proof).is_err(), "{first} to {second}");
            };
            let wrong = leaf_hash(b"wrong");
            refused(first, second, &wrong, &new, &proof);
            if first > 0 {
                refused(first, second, &old, &wrong, &proof);
                (0..=SIZES)
                    .filter(|&other| other != first)
                    .for_each(|other| refused(other, second, &old, &new, &proof));
            }
            mutants(&proof).iter().for_each(|mutant| refused(first, second, &old, &new, mutant));
        }
    }
}

/// A proof with each hash changed, removed or doubled, and with neighbours exchanged.
fn mutants(proof: &[Hash]) -> Vec<Vec<Hash>> {
    let stranger = leaf_hash(b"stranger");
    let mut mutants = vec![[proof, &[stranger]].concat(), [&[stranger], proof].concat()];
    for position in 0..proof.len() {
        let mut changed = proof.to_vec();
        changed[position] = stranger;
        let mut shorter = proof.to_vec();
        shorter.remove(position);
        let mut doubled = proof.to_vec();
        doubled.insert(position, proof[position]);
        mutants.extend([changed, shorter, doubled]);
        if position > 0 {
            let mut exchanged = proof.to_vec();
            exchanged.swap(position - 1, position);
            mutants.push(exchanged);
        }
    }
    mutants
}

#[test]
fn impossible_questions_are_refused() {
    let leaves = Leaves::new(10);
    assert_eq!(inclusion_proof(&leaves, 10, 10), Err(TreeError::NoSuchEntry { index: 10, size: 10 }));
    assert_eq!(inclusion_proof(&leaves, 0, 0), Err(TreeError::NoSuchEntry { index: 0, size: 0 }));
    assert_eq!(consistency_proof(&leaves, 10, 9), Err(TreeError::SizesReversed { first: 10, second: 9 }));
    let short = TreeError::ShortTile { level: 0, index: 0, expected: 11, actual: 10 };
    assert_eq!(root_at(&leaves, 11), Err(short));
    assert_eq!(verify_inclusion(&empty_root(), 0, 0, &[], &empty_root()), Err(ProofError::OutsideTree));
    assert_eq!(verify_consistency(2, 1, &empty_root(), &empty_root(), &[]), Err(ProofError::SizesReversed));
    // Sizes that a proof of any length cannot reach must end, not loop or overflow.
    let long = vec![empty_root(); 200];
    assert!(verify_inclusion(&empty_root(), u64::MAX - 1, u64::MAX, &long, &empty_root()).is_err());
    assert!(verify_consistency(1, u64::MAX, &empty_root(), &empty_root(), &long).is_err());
    assert!(verify_consistency(u64::MAX - 1, u64::MAX, &empty_root(), &empty_root(), &long).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// Trees of several tiles, where nodes come from levels above 0.
    #[test]
    fn proofs_hold_across_tiles(second in 1..70_000u64, index in any::<u64>(), first in any::<u64>()) {
        let (index, first) = (index % second, first % (second + 1));
        let leaves = Leaves::new(second);
        let root = root_at(&leaves, second).unwrap();
        prop_assert_eq!(root, mth(&leaves.0));
        let proof = inclusion_proof(&leaves, index, second).unwrap();
        prop_assert_eq!(verify_inclusion(&leaves.0[index as usize], index, second, &proof, &root), Ok(()));
        let old = mth(&leaves.0[..first as usize]);
        let proof = consistency_proof(&leaves, first, second).unwrap();
        prop_assert_eq!(verify_consistency(first, second, &old, &root, &proof), Ok(()));
    }
}

fn hash(value: &Value) -> Hash {
    Hash::from_base64(value.as_str().unwrap()).unwrap()
}

fn hashes(value: &Value) -> Vec<Hash> {
    value.as_array().unwrap().iter().map(hash).collect()
}

#[test]
fn gos_library_computes_the_same_roots_and_proofs() {
    let vectors: Value = serde_json::from_str(include_str!("testdata/tlog-vectors.json")).unwrap();
    let list = |name: &str| vectors[name].as_array().unwrap().clone();
    let number = |vector: &Value, name: &str| vector[name].as_u64().unwrap();
    let (roots, inclusions, consistencies) = (list("roots"), list("inclusion"), list("consistency"));
    assert!(roots.len() >= 20 && inclusions.len() >= 20 && consistencies.len() >= 20);
    let largest = roots.iter().map(|vector| number(vector, "size")).max().unwrap();
    let leaves = Leaves::new(largest);
    for vector in &roots {
        assert_eq!(root_at(&leaves, number(vector, "size")).unwrap(), hash(&vector["root"]), "{vector}");
    }
    for vector in &inclusions {
        let (index, size) = (number(vector, "index"), number(vector, "size"));
        let proof = hashes(&vector["proof"]);
        assert_eq!(inclusion_proof(&leaves, index, size).unwrap(), proof, "{vector}");
        let (leaf, root) = (leaves.0[index as usize], hash(&vector["root"]));
        assert_eq!(verify_inclusion(&leaf, index, size, &proof, &root), Ok(()), "{vector}");
    }
    for vector in &consistencies {
        let (first, second) = (number(vector, "first"), number(vector, "second"));
        let proof = hashes(&vector["proof"]);
        assert_eq!(consistency_proof(&leaves, first, second).unwrap(), proof, "{vector}");
        let (old, new) = (hash(&vector["first_root"]), hash(&vector["second_root"]));
        assert_eq!(verify_consistency(first, second, &old, &new, &proof), Ok(()), "{vector}");
    }
}
