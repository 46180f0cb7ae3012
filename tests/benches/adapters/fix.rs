//! FIX out, one session: how many orders a second, and how long one takes from its lease to the wire.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gatepost_tests::{Builder, Gateway, program, uid, until, until_within};
use serde_json::{Value, json};

use crate::figures::Table;
use crate::tap::{Passed, Tap};
use crate::venue::Venue;

/// Orders of one measurement of the rate; accepted in batches before the clock starts.
const ORDERS: usize = 20_000;
const BATCH: usize = 500;
/// Orders of one measurement of times, one at a time.
const SINGLE_ORDERS: usize = 500;
/// Between two of those.
const PAUSE: Duration = Duration::from_millis(2);
/// For a machine that is much slower than any that this is meant for.
const ENOUGH: Duration = Duration::from_secs(300);

pub(crate) fn sent(table: &mut Table) {
    table.add_rate("FIX, one session, window 64, confirm sent", ORDERS, measure("sent", false));
}

/// Each order is confirmed by an ExecutionReport, which comes in and is stored.
pub(crate) fn business(table: &mut Table) {
    table.add_rate("FIX, one session, window 64, confirm business", ORDERS, measure("business", true));
}

fn measure(confirm: &str, answers: bool) -> Duration {
    let venue = Venue::start(answers);
    let gateway = builder("run = \"gatepost-fix\"", confirm, &venue).start();
    until("the session has logged on", || venue.has_logged_on().then_some(()));
    gateway.cli_ok(&["queue", "pause", "venue"]);
    let orders: Vec<Value> = (0..ORDERS).map(order).collect();
    for batch in orders.chunks(BATCH) {
        gateway.app().try_batch(batch).expect("the gateway answers").expect(202);
    }
    let begun = Instant::now();
    gateway.admin().post("/v1/queues/venue/resume", &json!({})).expect(200);
    until_within(ENOUGH, "all are settled", || (gateway.unsettled("venue") == 0).then_some(()));
    let took = begun.elapsed();
    assert_in_order(&venue, ORDERS);
    took
}

fn assert_in_order(venue: &Venue, count: usize) {
    let came: Vec<String> = venue.orders().into_iter().map(|(id, _)| id).collect();
    let expected: Vec<String> = (0..count).map(|number| format!("O{number}")).collect();
    assert!(came == expected, "{} of {count} orders came, or in another order", came.len());
}

/// From the moment at which the lease is handed to the adapter to that at which the order is at the venue, and what of it is the
/// durable begin; with a socket in between at which the calls are seen, whose own time counts.
pub(crate) fn latency(table: &mut Table) {
    let venue = Venue::start(false);
    let builder = builder(&format!("user = \"{}\"", uid()), "sent", &venue);
    let (front, behind) = (builder.dir().join("tap.sock"), builder.dir().join("adapters.sock"));
    let gateway = builder.listen(&format!("serves = \"adapters\"\nunix = {behind:?}")).start();
    let tap = Tap::start(front, &behind);
    let adapter = Command::new(program("gatepost-fix"))
        .env("GATEPOST_SOCKET", &tap.socket)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let _adapter = Killed(adapter.expect("gatepost-fix can be started"));
    until("the session has logged on", || venue.has_logged_on().then_some(()));
    let (mut whole, mut begin, mut beyond) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..SINGLE_ORDERS {
        // The one before has been settled, or its settling would be in the way of this one.
        until("nothing is on its way", || (gateway.unsettled("venue") == 0).then_some(()));
        std::thread::sleep(PAUSE);
        tap.take();
        gateway.app().event(&order(number)).expect(202);
        until("it is at the venue", || (venue.count() > number).then_some(()));
        let arrived = venue.orders()[number].1;
        let passed = tap.take();
        let at = |what| passed.iter().find(|(passed, _)| *passed == what).map(|(_, at)| *at);
        let (Some(lease), Some(asked), Some(begun)) =
            (at(Passed::Lease), at(Passed::Begin), at(Passed::Begun))
        else {
            panic!("order {number} went another way: {passed:?}");
        };
        whole.push(arrived - lease);
        begin.push(begun - asked);
        beyond.push((arrived - lease).saturating_sub(begun - asked));
    }
    assert_in_order(&venue, SINGLE_ORDERS);
    table.add_times("FIX, lease to wire", whole);
    table.add_times("FIX, of it the durable begin", begin);
    table.add_times("FIX, lease to wire beyond the durable begin", beyond);
}

fn builder(process: &str, confirm: &str, venue: &Venue) -> Builder {
    let session =
        "name = \"main\", begin_string = \"FIX.4.4\", sender_comp_id = \"BUY\", target_comp_id = \"SELL\"";
    let lines = "order = \"strict\"\nwindow = 64\nsend = [\"org.fixtrading.*\"]";
    Gateway::builder()
        .app("desk", &["orders.new"], &["fills"])
        .inbox("fills", "order = \"strict\"")
        .adapter(
            "venue",
            &format!("{process}\n{lines}\nconfirm = \"{confirm}\""),
            &format!("sessions = [{{ {session}, connect = \"{}\" }}]", venue.address),
        )
        .route("desk", &["venue"])
        .route("venue", &["fills"])
}

fn order(number: usize) -> Value {
    json!({
        "specversion": "1.0", "id": format!("O{number}"), "source": "/desk", "type": "orders.new",
        "datacontenttype": "application/json",
        "data": {"35": "D", "11": format!("O{number}"), "55": "X", "54": "1", "38": "100", "40": "1",
            "60": "20261130-09:00:00.000"},
    })
}

/// A process that does not outlive its measurement.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
