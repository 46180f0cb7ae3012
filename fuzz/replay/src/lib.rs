//! Runs the kept inputs of the fuzzer through the functions that it drives, on the ordinary build: what was found once stays
//! found, with no fuzzer at hand.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// A parser's name, which is also its corpus's, and what must hold for any bytes given to it.
pub type Target = (&'static str, fn(&[u8]));

/// Runs each target over its corpus, `fuzz/corpus/NAME`. Panics at the first input for which something does not hold, and
/// if a target has no inputs: a test of nothing must not pass.
pub fn replay(targets: &[Target]) {
    for (name, run) in targets {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(name);
        let listed = fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display()));
        let mut files: Vec<_> = listed.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(!files.is_empty(), "{} is empty", corpus.display());
        for file in files {
            let input = fs::read(&file).unwrap();
            let held = catch_unwind(AssertUnwindSafe(|| run(&input)));
            assert!(held.is_ok(), "target {name} fails for {}", file.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "no-such-target")]
    fn a_target_without_a_corpus_does_not_pass() {
        replay(&[("no-such-target", |_| {})]);
    }

    #[test]
    #[should_panic(expected = "target mllp fails for")]
    fn an_input_that_fails_is_named() {
        replay(&[("mllp", |_| panic!("as it must"))]);
    }
}
