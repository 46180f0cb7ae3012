//! What must hold for any output of a program that somebody has configured as an adapter.

use super::manifest::Manifest;
use super::output::{Lines, printable};

/// What stands in a manifest goes to the operator's terminal.
pub(crate) fn manifest(input: &[u8]) {
    match Manifest::read(input) {
        Ok(Some(manifest)) => {
            let version = manifest.version.unwrap_or_default();
            assert!(!version.chars().any(char::is_control));
        }
        Ok(None) => {}
        Err(fault) => assert!(!fault.chars().any(char::is_control), "a fault that drives the terminal"),
    }
}

/// Who asks may have been taken over: what is read is a name that is no path, a digest and numbers, and says nothing else.
pub(crate) fn spawner(input: &[u8]) {
    super::spawner::fuzz(input);
}

/// Lines are the same however the pipe cuts them, bounded, and harmless.
pub(crate) fn output(input: &[u8]) {
    let Some((&cut, bytes)) = input.split_first() else { return };
    let whole = lines(std::iter::once(bytes));
    assert_eq!(whole, lines(bytes.chunks(usize::from(cut).max(1))));
    for (line, _) in whole {
        assert!(line.len() <= 4096);
        let shown = printable(&line);
        assert!(!shown.chars().any(char::is_control));
        assert_eq!(printable(shown.as_bytes()), shown);
    }
}

fn lines<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<(Vec<u8>, bool)> {
    let mut found = Vec::new();
    let mut lines = Lines::default();
    for piece in pieces {
        lines.feed(piece, |line| found.push((line.bytes.to_vec(), line.cut)));
    }
    lines.finish(|line| found.push((line.bytes.to_vec(), line.cut)));
    found
}
