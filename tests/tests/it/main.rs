//! Black-box tests: the real programs, real processes, real sockets.

mod accept;
mod adapters;
mod backup;
mod delivery;
mod disk;
mod faults;
mod fix;
mod hl7;
mod hl7_numbers;
mod hl7_partners;
mod keys;
mod kills;
mod kills_large;
mod lab;
mod limits;
mod merges;
mod migrate;
mod nodes;
mod order;
mod partners;
mod pipeline;
mod pressure;
mod refused;
mod renewed;
mod rules;
mod sandbox;
mod secrecy;
mod shipping;
mod spawner;
mod tamper;
mod torn;
mod torture;
mod trouble;

use serde_json::{Value, json};

/// An event of the type that most tests send.
fn order_event(id: &str, key: &str, data: &Value) -> Value {
    json!({
        "specversion": "1.0", "id": id, "source": "/shop", "type": "orders.new", "partitionkey": key, "data": data,
    })
}
