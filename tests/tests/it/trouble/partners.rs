//! Partners that hang, break off, answer nonsense, answer late, refuse, or flood with refusals, all at the same time, beside one
//! that is well. What each must lead to stands in one table.

use std::time::Duration;

use gatepost_tests::lab::{self, Answer, Effect, History, Order, Partner as Seen, Submission};
use gatepost_tests::partner::{Manner, Partner, Protocol};
use gatepost_tests::{Gateway, until, until_within};
use serde_json::{Value, json};

use super::clocks::effects;
use super::hand_in;

/// Longest that an adapter waits for an answer of those who give none in time.
const TIMEOUT_MS: u64 = 400;
/// … and of those who answer, in their way, as soon as the machine lets them.
const PATIENT_TIMEOUT_MS: u64 = 30_000;
/// So late that no adapter has been held up for so long as not to have given up.
const LATE: Duration = Duration::from_secs(20);
const ATTEMPTS: u64 = 2;
/// In one lane; the first meets the trouble, the others must wait behind it.
const MESSAGES: usize = 3;
/// Many adapters on a busy machine.
const ALL_SEEN: Duration = Duration::from_secs(90);

/// What must become of the first message while its partner misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// It may have arrived: attempts are charged, and when they are spent a person must decide.
    HeldInDoubt,
    /// It may have arrived, and the destination's policy asks a person at once.
    HeldAfterOne,
    /// The destination's trouble: nobody is charged, and it is tried again as a whole.
    Tripped,
    /// The message's trouble: dead once its attempts are spent, and the lane goes on to meet the same.
    Dead,
}

struct Case {
    name: &'static str,
    protocol: Protocol,
    manner: Manner,
    on_doubt: &'static str,
    expected: Expected,
}

const fn case(name: &'static str, protocol: Protocol, manner: Manner, expected: Expected) -> Case {
    let on_doubt = if matches!(expected, Expected::HeldAfterOne) { "hold" } else { "resend" };
    Case { name, protocol, manner, on_doubt, expected }
}

use Expected::{Dead, HeldAfterOne, HeldInDoubt, Tripped};
use Manner::{Close, Code, Garbage, Good, Half, Hang, Late, Mistaken, Reset, Status};
use Protocol::{Http, Mllp};

const CASES: [Case; 20] = [
    case("http-hang", Http, Hang, HeldInDoubt),
    case("http-hang-hold", Http, Hang, HeldAfterOne),
    case("http-late", Http, Late(LATE), HeldInDoubt),
    case("http-close", Http, Close, HeldInDoubt),
    case("http-reset", Http, Reset, HeldInDoubt),
    case("http-garbage", Http, Garbage, HeldInDoubt),
    case("http-half", Http, Half, HeldInDoubt),
    case("http-429", Http, Status(429, None), Tripped),
    case("http-429-after", Http, Status(429, Some(1)), Tripped),
    case("http-503", Http, Status(503, None), Tripped),
    case("http-500", Http, Status(500, None), Dead),
    case("hl7-hang", Mllp, Hang, HeldInDoubt),
    case("hl7-hang-hold", Mllp, Hang, HeldAfterOne),
    case("hl7-late", Mllp, Late(LATE), HeldInDoubt),
    case("hl7-close", Mllp, Close, HeldInDoubt),
    case("hl7-reset", Mllp, Reset, HeldInDoubt),
    case("hl7-garbage", Mllp, Garbage, HeldInDoubt),
    case("hl7-half", Mllp, Half, HeldInDoubt),
    case("hl7-mistaken", Mllp, Mistaken, HeldInDoubt),
    case("hl7-ce", Mllp, Code("CE"), Dead),
];

/// Who is late by a moment must not be taken for one who is silent.
fn timeout_ms(case: &Case) -> u64 {
    match case.manner {
        Hang | Late(_) | Half | Mistaken => TIMEOUT_MS,
        Garbage if case.protocol == Mllp => TIMEOUT_MS,
        Good | Close | Reset | Garbage | Status(..) | Code(_) => PATIENT_TIMEOUT_MS,
    }
}

fn gateway(partners: &[Partner]) -> Gateway {
    let mut builder = Gateway::builder()
        .app("shop", &["*"], &[])
        .echo("well", "order = \"key\"", "")
        .route_when("shop", "type == \"to.well\"", &["well"]);
    for (case, partner) in CASES.iter().zip(partners) {
        let retry = format!("retry = {{ initial = \"50ms\", max = \"100ms\", attempts = {ATTEMPTS} }}");
        let lines = format!("order = \"key\"\non_doubt = {:?}\n{retry}", case.on_doubt);
        let (run, settings) = match case.protocol {
            Http => {
                let settings = format!(
                    "url = \"http://{}/\"\ntimeout_ms = {}\nconnect_timeout_ms = 10000",
                    partner.address(),
                    timeout_ms(case)
                );
                ("gatepost-http", settings)
            }
            Mllp => (
                "gatepost-hl7",
                format!(
                    "connect = \"{}\"\nack_timeout_ms = {}\nconnections = 1",
                    partner.address(),
                    timeout_ms(case)
                ),
            ),
        };
        builder = builder.adapter(case.name, &format!("run = {run:?}\n{lines}"), &settings).route_when(
            "shop",
            &format!("type == \"to.{}\"", case.name),
            &[case.name],
        );
    }
    builder.start()
}

fn send(gateway: &Gateway, case: &Case, n: usize) -> Submission {
    let mark = format!("{}-{n}", case.name);
    let data = match case.protocol {
        Http => json!({ "mark": mark }),
        Mllp => json!(format!("MSH|^~\\&|A||B||2026||ADT^A01|{mark}|P|2.5\rPID|1||7\r")),
    };
    let mut event = crate::order_event(&mark, "lane", &data);
    event["type"] = format!("to.{}", case.name).into();
    if case.protocol == Mllp {
        event["datacontenttype"] = "text/plain".into();
    }
    let answer = gateway.app().event(&event).expect(202);
    Submission::one(case.name, &mark, Some("lane"), &[case.name], Answer::accepted(&answer))
}

/// The deliveries of a destination, oldest first.
fn deliveries(gateway: &Gateway, name: &str) -> Vec<Value> {
    let mut all = gateway.list(&format!("/v1/deliveries?destination={name}"), "deliveries");
    all.reverse();
    all
}

fn has_come_to(gateway: &Gateway, case: &Case, partner: &Partner) -> bool {
    let all = deliveries(gateway, case.name);
    let first = &all[0];
    let held = first["state"] == "in_doubt" && first["due_at"].is_null();
    match case.expected {
        HeldInDoubt => held && first["attempts"] == ATTEMPTS,
        HeldAfterOne => held && first["attempts"] == 1,
        // It has been probed, too.
        Tripped => gateway.queue(case.name)["tripped"] == "unreachable" && partner.asked() >= 2,
        Dead => all.iter().all(|one| {
            one["state"] == "dead" && one["reason"] == "attempts_spent" && one["attempts"] == ATTEMPTS
        }),
    }
}

/// What is held and what is dead is sent again.
fn decide(gateway: &Gateway, case: &Case) {
    for one in deliveries(gateway, case.name) {
        let (verb, body) = match one["state"].as_str().unwrap() {
            "in_doubt" if one["due_at"].is_null() => {
                ("resolve", json!({ "as": "retry", "reason": "the partner is well again" }))
            }
            "dead" => ("replay", json!({ "reason": "the partner is well again" })),
            _ => continue,
        };
        let path = format!("/v1/deliveries/{}/{verb}", one["id"].as_str().unwrap());
        gateway.admin().post(&path, &body).expect(200);
    }
}

#[test]
fn every_bad_partner_leads_where_the_rules_say_and_harms_nobody_else() {
    let partners: Vec<Partner> =
        CASES.iter().map(|case| Partner::start(case.protocol, case.manner)).collect();
    let gateway = gateway(&partners);
    let mut submissions = Vec::new();
    for case in &CASES {
        submissions.extend((0..MESSAGES).map(|n| send(&gateway, case, n)));
    }
    // The one that is well delivers everything while all others are at their worst.
    for n in 0..20 {
        let mark = format!("well-{n}");
        let mut event = crate::order_event(&mark, &format!("k{}", n % 3), &json!({ "mark": mark }));
        event["type"] = "to.well".into();
        let answer = gateway.app().event(&event).expect(202);
        let lane = format!("k{}", n % 3);
        submissions.push(Submission::one("well", &mark, Some(&lane), &["well"], Answer::accepted(&answer)));
    }
    gateway.until_settled("well");
    for (case, partner) in CASES.iter().zip(&partners) {
        until_within(ALL_SEEN, &format!("{} comes to {:?}", case.name, case.expected), || {
            has_come_to(&gateway, case, partner).then_some(())
        });
        for behind in &deliveries(&gateway, case.name)[1..] {
            let waits = behind["state"] == "waiting" && behind["attempts"] == 0;
            assert!(waits || case.expected == Dead, "{}: it must wait behind the first: {behind}", case.name);
            assert!(behind["attempts"].as_u64() <= Some(ATTEMPTS), "{behind}");
        }
        for one in deliveries(&gateway, case.name) {
            let charged = one["attempts"].as_u64().unwrap();
            assert!(
                case.expected != Tripped || charged == 0,
                "{}: nobody pays for the destination: {one}",
                case.name
            );
        }
    }
    // All are well again, and people decide what they were left to decide.
    for partner in &partners {
        partner.behave(Good);
    }
    CASES.iter().for_each(|case| decide(&gateway, case));
    let mut history = History { submissions, ..History::default() };
    for (case, partner) in CASES.iter().zip(&partners) {
        until_within(ALL_SEEN, &format!("{} is settled", case.name), || {
            // Good as it is, it can be too slow for those who do not wait long.
            decide(&gateway, case);
            (gateway.unsettled(case.name) == 0).then_some(())
        });
        for one in deliveries(&gateway, case.name) {
            assert_eq!(one["state"], "delivered", "{}: {one}", case.name);
        }
        let taken = match case.protocol {
            Http => effects(partner),
            Mllp => partner
                .taken()
                .into_iter()
                .map(|(mark, _)| Effect { mark: Some(mark), ..Effect::default() })
                .collect(),
        };
        history.partners.insert(case.name.into(), Seen::new(Order::Key, taken));
    }
    history.echo(&gateway, "well", Order::Key);
    history.close(&gateway);
    lab::check(&history).expect_clean();
}

#[test]
fn a_poison_message_dies_and_its_lane_and_its_neighbours_are_delivered_in_order() {
    let gateway = Gateway::builder()
        .app("shop", &["*"], &[])
        .echo("lab", "order = \"key\"\nretry = { initial = \"50ms\", max = \"200ms\" }", "")
        .route("shop", &["lab"])
        .start();
    gateway.admin().post("/v1/queues/lab/pause", &json!({})).expect(200);
    let mut submissions = Vec::new();
    for n in 0..12 {
        let data = if n == 4 { json!({ "do": "crash" }) } else { json!({}) };
        submissions.push(hand_in(
            &gateway.app(),
            "shop",
            &format!("p{n}"),
            &format!("k{}", n % 3),
            &data,
            &["lab"],
        ));
    }
    gateway.admin().post("/v1/queues/lab/resume", &json!({})).expect(200);
    until_within(ALL_SEEN, "everything has ended", || (gateway.unsettled("lab") == 0).then_some(()));
    for (n, delivery) in deliveries(&gateway, "lab").iter().enumerate() {
        if n == 4 {
            assert_eq!((&delivery["state"], &delivery["reason"]), (&json!("dead"), &json!("poison")));
        } else {
            assert_eq!(
                (&delivery["state"], &delivery["attempts"]),
                (&json!("delivered"), &json!(0)),
                "{n}: {delivery}"
            );
        }
    }
    super::judged(&gateway, submissions, &[("lab", Order::Key)]).expect_clean();
}

#[test]
fn a_key_that_always_fails_holds_up_its_lane_only() {
    let gateway = Gateway::builder()
        .app("shop", &["*"], &[])
        .echo(
            "lab",
            "order = \"key\"\nretry = { initial = \"50ms\", max = \"100ms\", attempts = 1000000 }",
            "dead_key = \"bad\"",
        )
        .route("shop", &["lab"])
        .start();
    let app = gateway.app();
    let bad: Vec<_> =
        (0..3).map(|n| hand_in(&app, "shop", &format!("b{n}"), "bad", &json!({}), &["lab"])).collect();
    for n in 0..60 {
        hand_in(&app, "shop", &format!("g{n}"), &format!("k{}", n % 6), &json!({}), &["lab"]);
    }
    // All other lanes.
    gateway.until_left("lab", 3);
    let first = until("the bad key is tried again and again", || {
        let first = gateway.delivery(super::message_of(&bad[0]));
        (first["attempts"].as_u64() > Some(3)).then_some(first)
    });
    assert!(matches!(first["state"].as_str(), Some("waiting" | "sending")), "{first}");
    for behind in &bad[1..] {
        let behind = gateway.delivery(super::message_of(behind));
        assert_eq!((&behind["state"], &behind["attempts"]), (&json!("waiting"), &json!(0)));
    }
    assert_eq!(gateway.queue("lab")["tripped"], Value::Null, "it is the message's trouble");
    gateway.audit_verifies();
}
