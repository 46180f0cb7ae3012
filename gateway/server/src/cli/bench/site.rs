//! The configuration of the gateway that is measured: who sends, where to, through which adapters.

use std::path::Path;
use std::time::Duration;

use super::super::BENCH_ADAPTER;
use super::super::failure::Failure;
use super::super::scratch::{App, Site, quoted, this_program};
use super::request::DESTINATION_DIGITS;

/// Accepted into an inbox that nobody reads.
pub(super) const KIND_ACCEPT: &str = "bench.accept";
/// Delivered in strict order.
pub(super) const KIND_STRICT: &str = "bench.strict";
pub(super) const QUEUE_STRICT: &str = "strict";
/// An inbox that this program reads itself.
pub(super) const QUEUE_HEAP: &str = "heap";
pub(super) const KIND_HEAP: &str = "bench.heap";

/// The type of what goes through the adapters whose partner is the `delay`th; a destination's number follows.
pub(super) fn kind_through(delay: usize) -> String {
    format!("bench.through.d{delay}")
}

/// What is delivered, and how.
#[derive(Clone, Debug)]
pub(super) struct Layout<'a> {
    /// Number of ordering keys; 0 for no order.
    pub(super) keys: u64,
    /// Destinations that share the messages.
    pub(super) destinations: u64,
    /// How long the partners take; each has its own destinations.
    pub(super) partner_delays: &'a [Duration],
    /// Nothing is encrypted at rest, and adapters have no sandbox.
    pub(super) plain: bool,
}

impl Layout<'_> {
    /// Writes the configuration into `dir`. The adapters tell `tally` what they have settled. Messages are kept in the PostgreSQL
    /// whose address is in `url_file`, if there is one.
    pub(super) fn write(&self, dir: &Path, tally: &Path, url_file: Option<&Path>) -> Result<Site, Failure> {
        let program = quoted(&this_program()?.to_string_lossy());
        let tally = quoted(&tally.to_string_lossy());
        let order = if self.keys > 0 { "key" } else { "none" };
        let sandbox = if self.plain { "off" } else { "standard" };
        let adapter = |name: &str, order: &str, delay: Duration| {
            format!(
                r#"
[adapters.{name}]
run = [{program}, "{BENCH_ADAPTER}"]
order = "{order}"
nodes = "each"
max_in_flight = 4096
sandbox = "{sandbox}"
settings = {{ tally = {tally}, partner_delay_us = {} }}
"#,
                delay.as_micros()
            )
        };
        let mut text = store(url_file);
        if self.plain {
            text += "[encryption]\nat_rest = false\n\n";
        }
        text += &format!("[inboxes.sink]\norder = \"{order}\"\n");
        text += &adapter(QUEUE_STRICT, "strict", Duration::ZERO);
        let mut routes = route(&format!(r#"type.startsWith("{KIND_ACCEPT}")"#), "sink");
        routes += &route(&format!(r#"type == "{KIND_STRICT}""#), QUEUE_STRICT);
        for (number, delay) in self.partner_delays.iter().enumerate() {
            for destination in 0..self.destinations {
                let name = format!("partner-{number}-{destination}");
                text += &adapter(&name, order, *delay);
                let kind = format!("{}.{destination:0DESTINATION_DIGITS$}", kind_through(number));
                routes += &route(&format!(r#"type == "{kind}""#), &name);
            }
        }
        let app = App { name: "sender", send: "bench.*", inbox: &[], token: None };
        let mut site = Site::write(dir, "bench", &app, &(text + &routes))?;
        site.insecure = self.plain;
        Ok(site)
    }
}

/// One inbox that holds a backlog, read by this program.
pub(super) fn write_heap(dir: &Path, keys: u64, url_file: Option<&Path>) -> Result<Site, Failure> {
    let order = if keys > 0 { "key" } else { "none" };
    let text =
        store(url_file) + &format!("[inboxes.{QUEUE_HEAP}]\norder = \"{order}\"\nmax_in_flight = 4096\n");
    let routes = route(&format!(r#"type == "{KIND_HEAP}""#), QUEUE_HEAP);
    Site::write(
        dir,
        "bench",
        &App { name: "sender", send: "bench.*", inbox: &[QUEUE_HEAP], token: None },
        &(text + &routes),
    )
}

pub(super) fn store(url_file: Option<&Path>) -> String {
    url_file.map_or_else(String::new, |file| {
        format!("[store]\npostgres = {{ url_file = {} }}\n\n", quoted(&file.to_string_lossy()))
    })
}

fn route(when: &str, to: &str) -> String {
    format!("\n[[routes]]\nfrom = \"sender\"\nwhen = '{when}'\nto = [\"{to}\"]\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_one_destination() {
        let dir = tempfile::tempdir().unwrap();
        let delays = [Duration::ZERO, Duration::from_millis(25)];
        let layout = Layout { keys: 5, destinations: 3, partner_delays: &delays, plain: false };
        let site = layout.write(dir.path(), &dir.path().join("tally"), None).unwrap();
        let document: toml::Table = std::fs::read_to_string(&site.config).unwrap().parse().unwrap();
        let adapters = document["adapters"].as_table().unwrap();
        assert_eq!(adapters.len(), 7);
        assert_eq!(adapters["partner-1-2"]["settings"]["partner_delay_us"].as_integer(), Some(25_000));
        let routes = document["routes"].as_array().unwrap();
        assert_eq!(routes.len(), 8);
        assert_eq!(routes[7]["when"].as_str(), Some(r#"type == "bench.through.d1.002""#));
        assert_eq!(routes[7]["to"][0].as_str(), Some("partner-1-2"));
    }

    #[test]
    fn the_heap_is_an_inbox_of_the_sender() {
        let dir = tempfile::tempdir().unwrap();
        let site = write_heap(dir.path(), 0, None).unwrap();
        let document: toml::Table = std::fs::read_to_string(&site.config).unwrap().parse().unwrap();
        assert_eq!(document["apps"]["sender"]["inbox"][0].as_str(), Some(QUEUE_HEAP));
        assert!(document["inboxes"][QUEUE_HEAP].is_table());
    }
}
