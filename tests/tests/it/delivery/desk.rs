//! An external adapter in a test's hands: what it does it does with single requests.

use gatepost_tests::http::{Answer, Client};
use gatepost_tests::{Builder, Gateway, settle_item, until};
use serde_json::{Value, json};

use crate::order_event;

/// Retries come as soon as the gateway lets them.
pub(super) const QUICK: &str = "retry = { initial = \"50ms\", max = \"50ms\" }";

pub(super) struct Desk {
    pub(super) gateway: Gateway,
    pub(super) epoch: u64,
}

impl Desk {
    /// A gateway with the app `shop`, whose orders go to the adapter `desk`, of which these are further lines; and its session.
    pub(super) fn start(lines: &str) -> Self {
        Self::start_with(lines, |builder| builder)
    }

    pub(super) fn start_with(lines: &str, more: impl FnOnce(Builder) -> Builder) -> Self {
        Self::start_queue(&format!("order = \"key\"\n{lines}"), more)
    }

    /// As above, without lanes unless the lines have them.
    pub(super) fn start_queue(lines: &str, more: impl FnOnce(Builder) -> Builder) -> Self {
        let builder = Gateway::builder();
        let socket = builder.dir().join("adapter.sock").display().to_string();
        let user = gatepost_tests::uid();
        let builder = builder
            .listen(&format!("serves = \"adapters\"\nunix = {socket:?}"))
            .app("shop", &["orders.*"], &["answers"])
            .inbox("answers", "")
            .table("[adapters.desk]", &format!("user = \"{user}\"\nsend = [\"answers.*\"]\n{lines}"))
            .route("shop", &["desk"])
            .route_when("desk", "type.startsWith(\"answers.\") && type != \"answers.nowhere\"", &["answers"]);
        let mut desk = Self { gateway: more(builder).start(), epoch: 0 };
        desk.open();
        desk
    }

    pub(super) fn client(&self) -> Client {
        Client::new(self.gateway.path("adapter.sock"))
    }

    /// Opens a session, which ends the one before; what it is told.
    #[track_caller]
    pub(super) fn open(&mut self) -> Value {
        let session = self.client().post("/v1/session", &json!({})).expect(200);
        self.epoch = session["epoch"].as_u64().unwrap();
        session
    }

    /// The app hands in an order; the message's id.
    #[track_caller]
    pub(super) fn send(&self, id: &str, key: &str) -> String {
        self.send_event(&order_event(id, key, &json!(id)))
    }

    #[track_caller]
    pub(super) fn send_event(&self, event: &Value) -> String {
        let answer = self.gateway.app().event(event).expect(202);
        answer["messages"][0]["id"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub(super) fn lease(&self, max: u32) -> Vec<Value> {
        self.lease_with(&json!({ "max": max }))
    }

    #[track_caller]
    pub(super) fn lease_with(&self, request: &Value) -> Vec<Value> {
        let leased = self.try_lease(self.epoch, request).expect(200);
        leased["deliveries"].as_array().unwrap().clone()
    }

    pub(super) fn try_lease(&self, epoch: u64, request: &Value) -> Answer {
        let mut request = request.clone();
        request["epoch"] = json!(epoch);
        self.client().post("/v1/queues/desk/lease", &request)
    }

    /// The next delivery, which may have to fall due first.
    #[track_caller]
    pub(super) fn next(&self) -> Value {
        until("there is something to lease", || self.lease(1).pop())
    }

    /// Settles one; its status and the state it then has.
    #[track_caller]
    pub(super) fn settle(&self, leased: &Value, outcome: &str) -> (String, String) {
        self.settle_item(item(leased, outcome))
    }

    #[track_caller]
    pub(super) fn settle_item(&self, item: Value) -> (String, String) {
        let result = self.try_settle(&json!({ "results": [item] })).expect(200)["results"][0].clone();
        let text = |member: &str| result[member].as_str().unwrap().to_owned();
        (text("status"), text("state"))
    }

    /// Settles one that must be taken; the state it then has.
    #[track_caller]
    pub(super) fn taken(&self, leased: &Value, outcome: &str) -> String {
        let (status, state) = self.settle(leased, outcome);
        assert_eq!(status, "ok", "{outcome}");
        state
    }

    /// Settles one that must come too late and change nothing; the state it has.
    #[track_caller]
    pub(super) fn stale(&self, leased: &Value, outcome: &str) -> String {
        let before = self.traces();
        let (status, state) = self.settle(leased, outcome);
        assert_eq!(status, "stale", "{outcome}");
        assert_eq!(self.traces(), before, "a stale {outcome} changed something");
        state
    }

    /// Settles something that must be refused whole and change nothing; the problem's code.
    #[track_caller]
    pub(super) fn refused(&self, settle: &Value, status: u16) -> String {
        let before = self.traces();
        let code = self.try_settle(settle).problem(status);
        assert_eq!(self.traces(), before, "what was refused as {code} changed something");
        code
    }

    /// In this session, unless the settle names another.
    pub(super) fn try_settle(&self, settle: &Value) -> Answer {
        let mut settle = settle.clone();
        if settle["epoch"].is_null() {
            settle["epoch"] = json!(self.epoch);
        }
        self.client().post("/v1/settle", &settle)
    }

    /// Everything that a settle could change: all deliveries as lists show them, and what the log says of them. Not the
    /// refusals, which are counted there too.
    pub(super) fn traces(&self) -> (Vec<Value>, usize) {
        let mut deliveries = Vec::new();
        for message in self.gateway.list("/v1/messages", "messages") {
            deliveries.extend(message["deliveries"].as_array().unwrap().iter().cloned());
        }
        let log = self.gateway.audit_log();
        (
            deliveries,
            log.iter().filter(|leaf| leaf["delivery"].is_string() || leaf["event"] == "accepted").count(),
        )
    }

    /// A delivery by its lease.
    #[track_caller]
    pub(super) fn delivery(&self, leased: &Value) -> Value {
        self.gateway.delivery(leased["event"]["gatepostid"].as_str().unwrap())
    }

    /// Attempts charged and whether it is in doubt.
    #[track_caller]
    pub(super) fn charged(&self, leased: &Value) -> (u64, bool) {
        let delivery = self.delivery(leased);
        (delivery["attempts"].as_u64().unwrap(), delivery["in_doubt"].as_bool().unwrap())
    }

    /// The log's events about a delivery, oldest first.
    #[track_caller]
    pub(super) fn story(&self, leased: &Value) -> Vec<String> {
        let log = self.gateway.audit_log();
        let leaves = log.iter().filter(|leaf| leaf["delivery"] == leased["id"]);
        leaves.map(|leaf| leaf["event"].as_str().unwrap().to_owned()).collect()
    }

    #[track_caller]
    pub(super) fn resolve(&self, leased: &Value, verdict: &str) {
        let path = format!("/v1/deliveries/{}/resolve", leased["id"].as_str().unwrap());
        self.gateway.admin().post(&path, &json!({ "as": verdict, "reason": "test" })).expect(200);
    }
}

pub(super) fn item(leased: &Value, outcome: &str) -> Value {
    let mut item = settle_item(leased, outcome);
    match outcome {
        "delivered" => item["evidence"] = json!({ "level": "transport" }),
        "sent" => item["after_ms"] = json!(600_000),
        _ => {}
    }
    item
}

pub(super) fn with(mut value: Value, member: &str, content: Value) -> Value {
    value[member] = content;
    value
}

/// The ids that the app gave to what was leased.
pub(super) fn names(leased: &[Value]) -> Vec<&str> {
    leased.iter().map(|leased| leased["event"]["id"].as_str().unwrap()).collect()
}
