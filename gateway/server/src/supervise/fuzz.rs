//! What must hold for any output of a program that somebody has configured as an adapter.

use std::net::Ipv6Addr;

use super::egress::{Asked, Rules, asked, decide};
use super::handover::Handover;
use super::manifest::Manifest;
use super::output::{Lines, printable};
use crate::config::Connect;

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

/// An adapter gets no further than what is named, and a request for that is one line.
pub(crate) fn egress(input: &[u8]) {
    let named = ["lab.example.org:2575", "127.0.0.1:80", "[::1]:443"];
    let rules: Vec<_> = named.iter().filter_map(|to| Connect::parse(to)).collect();
    assert_eq!(rules.len(), named.len());
    if decide(input, &rules).is_ok() {
        let text = std::str::from_utf8(input).expect("text").to_ascii_lowercase();
        let (host, _) = text.rsplit_once(':').expect("a port");
        let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_v6 = in_brackets.is_some_and(|host| host.parse() == Ok(Ipv6Addr::LOCALHOST));
        assert!(host == "lab.example.org" || host == "127.0.0.1" || is_v6, "{host}");
        assert!(input.ends_with(b"\n") && input.iter().filter(|&&byte| byte == b'\n').count() == 1);
    }
    assert!(decide(input, &[]).is_err());
    let rules = Rules { connect: rules, files: Handover::default() };
    match asked(input, &rules) {
        Ok(Asked::Connection(_)) => assert!(decide(input, &rules.connect).is_ok()),
        Ok(Asked::File(_)) => panic!("a file that nobody has named"),
        Err(_) => {}
    }
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
