//! Everything in the server that reads foreign bytes, each with what must hold for any of them. Driven by the fuzzer, and by
//! `cargo test` over the inputs that it has kept. The targets stand beside the parsers that they drive.

use crate::{config, http, listen, supervise};

/// A target and its name, which is also its corpus's.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[
    ("accept", http::fuzz::accept),
    ("headers", http::fuzz::headers),
    ("requests", http::fuzz::requests),
    ("query", http::fuzz::query),
    ("config", config::fuzz::file),
    ("certificate", listen::fuzz::certificate),
    ("manifest", supervise::fuzz::manifest),
    ("output", supervise::fuzz::output),
    ("spawner", supervise::fuzz::spawner),
    ("egress", supervise::fuzz::egress),
];

#[test]
fn the_corpus_replays() {
    gatepost_replay::replay(TARGETS);
}
