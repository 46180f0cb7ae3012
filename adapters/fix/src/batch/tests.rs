//! What goes into one settlement, and what becomes of it when the gateway refuses something.

use gatepost_adapter::Level;
use gatepost_adapter::testing::Gateway;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::*;
use crate::data_fields::DataFields;
use crate::engine::Now;
use crate::message::Message;
use crate::settings::{Plan, Settings, plans};
use crate::version::BeginString;
use crate::wire::Draft;

fn lease(number: u128) -> Lease {
    serde_json::from_value(serde_json::json!({"delivery": Uuid::from_u128(number), "token": "t"})).unwrap()
}

fn turn(begins: &[u128], outcomes: &[u128], emits: usize) -> Turn {
    let report = Draft::new(BeginString::Fix44, "8").encode().unwrap();
    let message = crate::wire::parse(report, &DataFields::default()).unwrap();
    let received = Received { epoch: 1, seq: 1, message, answers: None, by_number: false };
    let retry = |number: &u128| (lease(*number), Verdict::Retry(String::new()));
    let commit = Commit {
        begins: begins.iter().map(|number| lease(*number)).collect(),
        outcomes: outcomes.iter().map(retry).collect(),
        emits: vec![received; emits],
        ..Commit::default()
    };
    Turn { commit, then: Vec::new() }
}

#[test]
fn what_the_gateway_may_refuse_is_not_mixed_with_what_it_keeps_in_any_case() {
    let goes = |turns: [Turn; 2]| {
        let mut batch = Batch::default();
        let [first, second] = turns;
        assert!(batch.add(first).is_ok());
        batch.add(second).is_ok()
    };
    assert!(goes([turn(&[], &[], 1), turn(&[], &[], 1)]));
    assert!(goes([turn(&[], &[1], 1), turn(&[2], &[], 0)]));
    assert!(goes([turn(&[], &[], 0), turn(&[], &[], 1)]));
    assert!(!goes([turn(&[], &[], 1), turn(&[], &[1], 0)]));
    assert!(!goes([turn(&[], &[1], 0), turn(&[], &[], 1)]));
    // One delivery stands once in a settlement.
    assert!(!goes([turn(&[1], &[], 0), turn(&[], &[1], 0)]));
    assert!(!goes([turn(&[], &[1], 0), turn(&[], &[1], 0)]));
}

#[test]
fn begins_go_with_what_they_can_go_with() {
    let takes = |turn| {
        let mut batch = Batch::default();
        assert!(batch.add(turn).is_ok());
        batch.takes_begins([lease(1)].iter())
    };
    let keys = |count: usize| {
        let mut turn = turn(&[], &[], 0);
        turn.commit.state = (0..count).map(|number| (number.to_string(), None)).collect();
        turn
    };
    assert!(takes(keys(190)) && !takes(keys(191)));
    assert!(takes(turn(&[], &[], 0)));
    assert!(takes(turn(&[], &[2], 1)));
    assert!(!takes(turn(&[], &[1], 0)));
    assert!(!takes(turn(&[], &[], 1)));
}

#[test]
fn what_says_much_is_told_by_its_bytes() {
    let mut batch = Batch::default();
    let write = |count: usize| {
        let write = Effect::Write { bytes: vec![0; count].into(), carries: None };
        Turn { then: vec![write], ..Turn::default() }
    };
    assert!(batch.add(write(QUEUE_BYTES_SOFT - 1)).is_ok() && !batch.says_much());
    assert!(batch.add(write(1)).is_ok() && batch.says_much());
}

// === what is refused ===

fn plan() -> Plan {
    let session = json!({"name": "main", "connect": "127.0.0.1:1", "begin_string": "FIX.4.4",
        "sender_comp_id": "BUY", "target_comp_id": "SELL"});
    let settings: Settings = serde_json::from_value(json!({ "sessions": [session] })).unwrap();
    plans(&settings, "lab", Level::Transport).unwrap().remove(0)
}

fn report(seq: u64, exec_id: &str, flag: Option<u32>, text: &str) -> Received {
    let draft = Draft::new(BeginString::Fix44, "8").header_number(34, seq);
    let draft = flag.into_iter().fold(draft, |draft, flag| draft.header(flag, "Y"));
    let bytes = draft.field(17, exec_id).field(150, "F").field(58, text).encode().unwrap();
    let message: Message = crate::wire::parse(bytes, &DataFields::default()).unwrap();
    Received { epoch: 1, seq, message, answers: None, by_number: false }
}

/// What came in, and the number that is to come next.
fn taken_in(emits: Vec<Received>) -> Commit {
    let next = emits.last().unwrap().seq + 1;
    let state = BTreeMap::from([("n/main".to_owned(), Some(next.to_string().into_bytes()))]);
    Commit { emits, state, ..Commit::default() }
}

/// Settles these with a gateway that refuses events of `refused` numbers as `code`, named by content, or whatever the name. Gives
/// the names of events that were taken, how often the gateway was asked, and what the partner is told.
async fn settled(commits: Vec<Commit>, code: &str, refuses: fn(&str) -> bool) -> (Vec<String>, usize, usize) {
    let Plan { config, origin, .. } = plan();
    let (mut gateway, session) = Gateway::open(json!({})).await;
    let mut engine = Engine::restore(std::sync::Arc::clone(&config), &BTreeMap::new()).unwrap();
    let books = Books { gateway: &session, config: &config, origin: &origin };
    let now = Now { utc: OffsetDateTime::now_utc(), tick: std::time::Duration::ZERO };
    let last =
        commits.iter().flat_map(|commit| commit.state.values().flatten()).next_back().cloned().unwrap();
    let (mut taken, mut calls, mut owed, mut in_hand) = (Vec::new(), 0, 0, InHand::new());
    {
        let settling = books.settle(commits, &mut engine, &mut in_hand);
        tokio::pin!(settling);
        let mut numbers = Value::Null;
        loop {
            let call = tokio::select! {
                done = &mut settling => break done.unwrap(),
                call = gateway.next("/v1/settle") => call,
            };
            calls += 1;
            let names: Vec<String> = call.body["emit"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|event| event["id"].as_str().unwrap().to_owned())
                .collect();
            if names.iter().any(|name| refuses(name)) {
                call.answer_problem(code);
                continue;
            }
            numbers = call.body["state"]["n/main"].clone();
            taken.extend(names);
            owed += call.body["state"].as_object().unwrap().keys().filter(|key| is_owed(key)).count();
            call.settled("ok");
        }
        use base64::Engine as _;
        let last = base64::engine::general_purpose::STANDARD.encode(last);
        assert_eq!(numbers, last, "the numbers are durable whatever became of the events");
    }
    assert!(engine.take().then.is_empty(), "not before it is durable that it is owed");
    engine.tell_owed(now);
    let told = engine.take().then.len();
    assert_eq!(told, owed, "it is durable with the number");
    (taken, calls, told)
}

fn by_content(name: &str) -> bool {
    name.starts_with("main-x")
}

/// FIX 4.4 volume 2, "Possible resends": what is known to have come goes no further, and the partner is told nothing.
#[tokio::test]
async fn an_execution_that_is_known_and_marked_is_passed_over() {
    for flag in [43, 97] {
        let again = taken_in(vec![report(7, "E1", Some(flag), "x")]);
        assert_eq!(settled(vec![again], NAME_IN_USE, by_content).await, (vec![], 2, 0), "{flag}");
    }
    // Others of the same settlement are taken in, in their order.
    let commits = vec![
        taken_in(vec![report(7, "0", None, "status")]),
        taken_in(vec![report(8, "E1", Some(97), "x")]),
        taken_in(vec![report(9, "0", None, "status")]),
    ];
    let (taken, _, told) = settled(commits, NAME_IN_USE, by_content).await;
    assert_eq!((taken, told), (vec!["main-1-7".to_owned(), "main-1-9".to_owned()], 0));
}

/// Nothing vanishes that may be new: without a mark, and among others of one commit.
#[tokio::test]
async fn what_may_be_new_is_taken_in_under_its_number() {
    let unmarked = taken_in(vec![report(7, "E1", None, "x")]);
    assert_eq!(settled(vec![unmarked], NAME_IN_USE, by_content).await, (vec!["main-1-7".to_owned()], 2, 0));
    let several = vec![report(7, "E1", Some(97), "x"), report(8, "E2", None, "y"), report(9, "0", None, "z")];
    let names = ["main-1-7", "main-1-8", "main-1-9"].map(str::to_owned).to_vec();
    assert_eq!(settled(vec![taken_in(several)], NAME_IN_USE, by_content).await, (names, 2, 0));
}

#[tokio::test]
async fn what_the_gateway_does_not_take_the_partner_is_told() {
    for (code, text) in [("no_route", "E1"), (NAME_IN_USE, "0")] {
        let refused = taken_in(vec![report(7, text, Some(97), "x")]);
        assert_eq!(settled(vec![refused], code, |_| true).await, (vec![], 2, 1), "{code}");
    }
    // One that no call can carry is not the adapter's end.
    let large = taken_in(vec![report(7, "E1", None, &"y".repeat(49 * 1024 * 1024))]);
    assert_eq!(settled(vec![large], "", |_| false).await, (vec![], 1, 1));
}

/// A state that is full is the adapter's end: the partner is not told that its message is too large, and sends it again.
#[tokio::test]
async fn a_full_state_turns_no_message_away() {
    let Plan { config, origin, .. } = plan();
    let (_gateway, session) = Gateway::open(json!({})).await;
    let mut engine = Engine::restore(std::sync::Arc::clone(&config), &BTreeMap::new()).unwrap();
    let books = Books { gateway: &session, config: &config, origin: &origin };
    let mut commit = taken_in(vec![report(7, "E1", None, "x")]);
    commit.state.extend((0..40).map(|key| (format!("m/main/1/{key}"), Some(vec![0; 1024 * 1024]))));
    let settled = books.settle(vec![commit], &mut engine, &mut InHand::new()).await;
    assert!(matches!(settled, Err(Refused::Fatal(_))), "{settled:?}");
    assert!(engine.take().then.is_empty());
}
