//! HL7 v2 out: one lane in strict order, and many lanes side by side. Each message begins and settles durably.

use std::time::{Duration, Instant};

use gatepost_tests::{Gateway, until_within};
use serde_json::{Value, json};

use crate::figures::Table;
use crate::mllp::Partner;

/// Accepted in batches of this size, before the clock starts.
const BATCH: usize = 500;
/// For a machine that is much slower than any that this is meant for.
const ENOUGH: Duration = Duration::from_secs(300);

pub(crate) fn one_lane(table: &mut Table) {
    let took = measure("strict", 1, 2_000);
    table.add_rate("HL7, one lane, strict order, on_doubt hold", 2_000, took);
}

pub(crate) fn many_lanes(table: &mut Table) {
    let took = measure("key", 64, 20_000);
    table.add_rate("HL7, 64 lanes, on_doubt hold", 20_000, took);
}

fn measure(order: &str, lanes: usize, messages: usize) -> Duration {
    let partner = Partner::start();
    let gateway = Gateway::builder()
        .app("ehr", &["org.hl7.v2.*"], &[])
        .adapter(
            "lab",
            &format!(
                "run = \"gatepost-hl7\"\norder = \"{order}\"\non_doubt = \"hold\"\nmax_in_flight = 4096"
            ),
            &format!("connect = \"{}\"\nconnections = {lanes}", partner.address),
        )
        .route("ehr", &["lab"])
        .start();
    gateway.cli_ok(&["queue", "pause", "lab"]);
    let events: Vec<Value> = (0..messages).map(|number| event(number, lanes)).collect();
    for batch in events.chunks(BATCH) {
        gateway.app().try_batch(batch).expect("the gateway answers").expect(202);
    }
    let begun = Instant::now();
    gateway.admin().post("/v1/queues/lab/resume", &json!({})).expect(200);
    until_within(ENOUGH, "all are delivered", || (gateway.unsettled("lab") == 0).then_some(()));
    let took = begun.elapsed();
    let came = partner.came();
    assert_eq!(came.len(), messages, "each arrived once");
    for lane in 0..lanes {
        let of_lane = came.iter().filter_map(|id| id.parse::<usize>().ok());
        let of_lane: Vec<usize> = of_lane.filter(|number| number % lanes == lane).collect();
        assert!(of_lane.is_sorted(), "lane {lane} came in another order");
    }
    took
}

fn event(number: usize, lanes: usize) -> Value {
    let key = format!("K{}", number % lanes);
    json!({
        "specversion": "1.0", "id": number.to_string(), "source": "/ehr", "type": "org.hl7.v2.ADT_A08",
        "partitionkey": key, "datacontenttype": "text/plain",
        "data": format!("MSH|^~\\&|EHR|C|LAB|H|2026||ADT^A08|{number}|P|2.5\rPID|1||{key}\rPV1|1|I|WARD\r"),
    })
}
