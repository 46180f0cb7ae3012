//! How many messages go out, on one lane and on many. Measurements: they print figures and assert only that all arrived.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use gatepost_tests::{Gateway, note, program, until_within};
use serde_json::{Value, json};

use crate::order_event;

/// Sent in batches of this size, before the clock starts.
const BATCH: usize = 500;
/// For a machine that is much slower than any that this is meant for.
const ENOUGH: Duration = Duration::from_secs(300);

fn measure(name: &str, order: &str, connections: usize, lanes: usize, messages: usize) {
    let mut partner = Command::new(program("gatepost-hl7"))
        .args(["listen", "--port", "0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(partner.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    let address = first.strip_prefix("listening on ").unwrap();
    // What it says has to go somewhere.
    let counting = std::thread::spawn(move || lines.map_while(Result::ok).count());
    let gateway = Gateway::builder()
        .app("ehr", &["org.hl7.v2.*"], &[])
        .adapter(
            "lab",
            // Held in doubt: each begin is durable by itself before a byte leaves.
            &format!(
                "run = \"gatepost-hl7\"\norder = \"{order}\"\non_doubt = \"hold\"\nmax_in_flight = 4096"
            ),
            &format!("connect = \"{address}\"\nconnections = {connections}"),
        )
        .route("ehr", &["lab"])
        .start();
    gateway.cli_ok(&["queue", "pause", "lab"]);
    let event = |number: usize| {
        let key = format!("K{}", number % lanes);
        let text =
            format!("MSH|^~\\&|EHR|C|LAB|H|2026||ADT^A08|M{number}|P|2.5\rPID|1||{key}\rPV1|1|I|WARD\r");
        let mut event = order_event(&number.to_string(), &key, &json!(text));
        event["type"] = "org.hl7.v2.ADT_A08".into();
        event["datacontenttype"] = "text/plain".into();
        event
    };
    let events: Vec<Value> = (0..messages).map(event).collect();
    for batch in events.chunks(BATCH) {
        gateway.app().try_batch(batch).unwrap().expect(202);
    }
    let begun = Instant::now();
    gateway.cli_ok(&["queue", "resume", "lab"]);
    until_within(ENOUGH, "all are delivered", || (gateway.unsettled("lab") == 0).then_some(()));
    let seconds = begun.elapsed().as_secs_f64();
    note(&format!(
        "{name}: {messages} messages in {seconds:.2} s, {:.0} per second",
        messages as f64 / seconds
    ));
    partner.kill().unwrap();
    partner.wait().unwrap();
    assert_eq!(counting.join().unwrap(), messages, "each arrived once");
}

#[test]
#[ignore = "a measurement: cargo test --release -p gatepost-tests --test it -- --ignored --nocapture hl7_speed"]
fn one_lane_in_strict_order() {
    measure("one lane", "strict", 1, 1, 1_000);
}

#[test]
#[ignore = "a measurement: cargo test --release -p gatepost-tests --test it -- --ignored --nocapture hl7_speed"]
fn sixty_four_lanes() {
    measure("64 lanes", "key", 64, 64, 10_000);
}
