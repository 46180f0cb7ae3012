//! The configuration: a well-behaved app, and greedy ones with the limits of the example in docs/configuration.md, or all but the rate.

use std::path::Path;

use super::super::super::failure::Failure;
use super::super::super::scratch::{App, Site, current_user, token_line};
use super::super::site::store;
use super::kind::Kind;

/// All are the same user, so that only their tokens tell them apart. They protect nothing.
pub(super) const TOKEN_GOOD: &str = "good";
const TOKEN_GREEDY: &str = "greedy";
const TOKEN_FILLER: &str = "filler";
const TOKEN_BATCHES: &str = "batches";
pub(super) const KIND_GOOD: &str = "bench.good";
/// What the full queue holds.
const FULL_MESSAGES: u32 = 100;

/// Who a neighbour of this kind is, and what it hands in.
pub(super) fn credentials(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::FullQueue => (TOKEN_FILLER, "bench.full"),
        Kind::LargeBatches => (TOKEN_BATCHES, "bench.batches"),
        _ => (TOKEN_GREEDY, "bench.greedy"),
    }
}

pub(super) fn write(dir: &Path, url_file: Option<&Path>) -> Result<Site, Failure> {
    let app = |name: &str, token: &str, limits: &str| {
        format!(
            "[apps.{name}]\nuser = {}\nsend = [\"bench.{name}\"]\n{}\nlimits = {{ {limits} }}\n\n",
            current_user(),
            token_line(token)
        )
    };
    let mut text = store(url_file);
    text += &app(
        "greedy",
        TOKEN_GREEDY,
        "rate = \"100/s\", burst = 500, request_rate = \"500/s\", bytes_in_flight = \"64MiB\", requests = 64",
    );
    // Named after what it sends. Its queue alone refuses it: that is decided where everybody's messages are written.
    text += &app("full", TOKEN_FILLER, "bytes_in_flight = \"64MiB\", requests = 64");
    // A rate in messages would be all that keeps its batches apart.
    text += &app("batches", TOKEN_BATCHES, "bytes_in_flight = \"64MiB\", requests = 64");
    text += "[inboxes.good]\n[inboxes.greedy]\n[inboxes.batches]\n[inboxes.full]\n";
    text += &format!("max_backlog = {{ messages = {FULL_MESSAGES} }}\n");
    for name in ["good", "greedy", "full", "batches"] {
        text += &format!("\n[[routes]]\nfrom = \"{name}\"\nto = [\"{name}\"]\n");
    }
    Site::write(
        dir,
        "bench",
        &App { name: "good", send: KIND_GOOD, inbox: &[], token: Some(TOKEN_GOOD) },
        &text,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_somebody_and_has_a_queue_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let site = write(dir.path(), None).unwrap();
        let config = crate::config::Config::load(Some(&site.config)).unwrap();
        assert_eq!(config.apps.len(), 4);
        let limits = config.apps["greedy"].limits;
        assert_eq!((limits.rate.unwrap().count.get(), limits.requests), (100, Some(64)));
        assert_eq!(limits.request_rate.unwrap().count.get(), 500);
        for name in ["full", "batches"] {
            assert!(config.apps[name].limits.rate.is_none(), "{name}");
        }
    }
}
