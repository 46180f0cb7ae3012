//! Numbered transactions (MSH-13, MSA-4): the whole adapter, as the sender and as the receiver.

use bytes::Bytes;
use gatepost_adapter::testing::Call;
use gatepost_adapter::{Adapter as _, digest};
use serde_json::{Value, json};
use tokio::time::timeout;
use uuid::Uuid;

use super::by_application::reply;
use super::enhanced::{PAUSE, Whole};
use super::receiving::msa;
use super::{adt, body_of, encoded, is_closed, leased, write};
use crate::adapter::Hl7;
use crate::channel::Channel;

async fn sending(changes: Value, state: Value) -> Whole {
    let mut settings = json!({"sequence_numbers": {"send": true}, "on_ack": {"AE": "retry"}});
    settings.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    Whole::start(settings, json!({"order": "strict", "state": state})).await
}

fn numbers(number: u64, holder: Option<u128>) -> Value {
    let text = json!({"number": number, "holder": holder.map(Uuid::from_u128)}).to_string();
    json!({"sequence/out": encoded(text.as_bytes())})
}

fn field(body: &Bytes, number: usize) -> &str {
    let header = std::str::from_utf8(body).unwrap().split('\r').next().unwrap();
    header.split('|').nth(number - 1).unwrap_or_default()
}

/// The partner's word on what came, with the number that it expects.
async fn say(partner: &mut Channel, to: &Bytes, code: &str, expected: i64) {
    let id = field(to, 10);
    let ack = format!("MSH|^~\\&|LAB|H|EHR|C|2026||ACK|9|P|2.5\rMSA|{code}|{id}||{expected}\r");
    write(partner, &ack.into()).await;
}

/// The next thing that comes: with this number, and where it is 0 or −1 with nothing else.
async fn comes(partner: &mut Channel, number: &str) -> Bytes {
    let body = body_of(partner).await;
    assert_eq!(field(&body, 13), number);
    assert_eq!(body.windows(5).any(|part| part == b"\rPID|"), !["0", "-1"].contains(&number));
    body
}

fn numbered(id: &str, number: u64) -> Bytes {
    let body = String::from_utf8(adt(id).to_vec()).unwrap();
    body.replace("|P|2.5\r", &format!("|P|2.5|{number}\r")).into()
}

/// The settlement that begins the message, and with it makes its number durable.
async fn given(whole: &mut Whole, token: &str, number: u64, holder: u128) -> Call {
    let call = whole.gateway.next("/v1/settle").await;
    assert_eq!(call.outcomes(), [(token, "begin")]);
    assert_eq!(decoded(&call.body["state"]), json!({"number": number, "holder": Uuid::from_u128(holder)}));
    call
}

fn decoded(state: &Value) -> Value {
    let reply = json!({"datacontenttype": "x", "data_base64": state["sequence/out"]});
    let bytes = gatepost_adapter::reply_bytes(&serde_json::from_value(reply).unwrap()).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// What becomes of it, and of the number in the same commit.
async fn ends(whole: &mut Whole, token: &str, outcome: &str, next: u64) -> Value {
    let (result, state) = whole.settled().await;
    assert_eq!((&result["token"], &result["outcome"]), (&json!(token), &json!(outcome)), "{result}");
    assert_eq!(decoded(&state), json!({"number": next, "holder": null}));
    result
}

#[tokio::test]
async fn the_first_message_asks_and_each_gets_its_number_with_its_begin_before_a_byte_leaves() {
    let mut whole = sending(json!({}), json!({})).await;
    whole.gateway.lease(&[leased(1, &adt("M1")), leased(2, &adt("M2"))]).await;
    let mut partner = whole.accept().await;
    let asked = comes(&mut partner, "0").await;
    assert_ne!(field(&asked, 10), "M1", "the question is no message");
    say(&mut partner, &asked, "AA", -1).await;
    let call = given(&mut whole, "t1", 1, 1).await;
    assert!(timeout(PAUSE, partner.next()).await.is_err(), "before its number was durable");
    call.settled("ok");
    let sent = comes(&mut partner, "1").await;
    assert_eq!(sent, numbered("M1", 1), "nothing but the number has changed");
    say(&mut partner, &sent, "AA", 1).await;
    ends(&mut whole, "t1", "delivered", 2).await;
    given(&mut whole, "t2", 2, 2).await.settled("ok");
    let sent = comes(&mut partner, "2").await;
    // Some say which one comes next.
    say(&mut partner, &sent, "AA", 3).await;
    ends(&mut whole, "t2", "delivered", 3).await;
}

#[tokio::test]
async fn what_is_sent_again_has_its_number_and_the_partner_says_that_it_has_it() {
    let mut whole = sending(json!({"ack_timeout_ms": 2000}), numbers(7, Some(1))).await;
    whole.gateway.lease(&[leased(1, &adt("M1"))]).await;
    let mut partner = whole.accept().await;
    let asked = comes(&mut partner, "0").await;
    // It has it, from a session that died before it heard so.
    say(&mut partner, &asked, "AA", 8).await;
    given(&mut whole, "t1", 7, 1).await.settled("ok");
    let first = comes(&mut partner, "7").await;
    assert_eq!(whole.settled().await.0["outcome"], "in_doubt");
    assert!(is_closed(&mut partner).await);
    whole.gateway.lease(&[leased(1, &adt("M1"))]).await;
    let mut partner = whole.accept().await;
    given(&mut whole, "t1", 7, 1).await.settled("ok");
    let again = comes(&mut partner, "7").await;
    assert_eq!(again, first, "the same bytes");
    say(&mut partner, &again, "AR", 8).await;
    let result = ends(&mut whole, "t1", "delivered", 8).await;
    assert_eq!(result["evidence"]["accepted"], "before");
}

#[tokio::test]
async fn a_number_in_doubt_is_given_to_another_message_only_if_the_partner_says_that_it_has_nothing_under_it()
{
    for (expected, next) in [(7, 7), (8, 8)] {
        let mut whole = sending(json!({}), numbers(7, Some(1))).await;
        whole.gateway.lease(&[leased(2, &adt("M2"))]).await;
        let mut partner = whole.accept().await;
        let asked = comes(&mut partner, "0").await;
        say(&mut partner, &asked, "AA", expected).await;
        given(&mut whole, "t2", next, 2).await.settled("ok");
        let sent = comes(&mut partner, &next.to_string()).await;
        say(&mut partner, &sent, "AA", i64::try_from(next).unwrap()).await;
        ends(&mut whole, "t2", "delivered", next + 1).await;
    }
}

#[tokio::test]
async fn a_refusal_gives_the_number_back_and_one_out_of_step_goes_nowhere() {
    let mut whole = sending(json!({}), json!({})).await;
    whole.gateway.lease(&[leased(1, &adt("M1"))]).await;
    let mut partner = whole.accept().await;
    let asked = comes(&mut partner, "0").await;
    say(&mut partner, &asked, "AA", 5).await;
    for (code, expected, outcome, scope) in [
        ("AE", 5, "retry", json!("message")),
        ("AR", 9, "retry", json!("destination")),
        ("AR", 5, "reject", Value::Null),
    ] {
        given(&mut whole, "t1", 5, 1).await.settled("ok");
        let sent = comes(&mut partner, "5").await;
        assert_eq!(sent, numbered("M1", 5));
        say(&mut partner, &sent, code, expected).await;
        let result = ends(&mut whole, "t1", outcome, 5).await;
        assert_eq!(result["scope"], scope);
        whole.gateway.lease(&[leased(1, &adt("M1"))]).await;
        if expected == 9 {
            let asked = comes(&mut partner, "0").await;
            say(&mut partner, &asked, "AA", 5).await;
        }
    }
    // Never accepted: the next message has it.
    given(&mut whole, "t1", 5, 1).await;
}

#[tokio::test]
async fn under_a_number_that_was_never_sent_the_partner_has_something_else() {
    let mut whole = sending(json!({}), numbers(7, None)).await;
    whole.gateway.lease(&[leased(1, &adt("M1"))]).await;
    let mut partner = whole.accept().await;
    let asked = comes(&mut partner, "0").await;
    say(&mut partner, &asked, "AA", 7).await;
    given(&mut whole, "t1", 7, 1).await.settled("ok");
    let sent = comes(&mut partner, "7").await;
    say(&mut partner, &sent, "AR", 8).await;
    let result = ends(&mut whole, "t1", "retry", 7).await;
    assert_eq!(result["scope"], "destination", "it was not delivered: {result}");
}

#[tokio::test]
async fn numbers_that_do_not_fit_are_held_adopted_or_resynchronised() {
    for (policy, asked_again, next) in
        [("hold", None, None), ("adopt", None, Some(9)), ("resynchronise", Some("-1"), Some(5))]
    {
        // As after a restore: the partner is ahead.
        let settings = json!({"sequence_numbers": {"send": true, "on_mismatch": policy}});
        let mut whole = sending(settings, numbers(5, None)).await;
        whole.gateway.lease(&[leased(1, &adt("M1"))]).await;
        let mut partner = whole.accept().await;
        let asked = comes(&mut partner, "0").await;
        say(&mut partner, &asked, "AA", 9).await;
        if let Some(number) = asked_again {
            let asked = comes(&mut partner, number).await;
            say(&mut partner, &asked, "AA", -1).await;
        }
        match next {
            Some(next) => {
                given(&mut whole, "t1", next, 1).await.settled("ok");
                comes(&mut partner, &next.to_string()).await;
            }
            None => {
                let (result, state) = whole.settled().await;
                assert_eq!((&result["outcome"], &result["scope"]), (&json!("retry"), &json!("destination")));
                let reason = result["reason"].as_str().unwrap();
                assert!(reason.contains("expects sequence number 9, and ours is 5"), "{reason}");
                assert_eq!(state, Value::Null);
            }
        }
    }
}

#[tokio::test]
async fn a_partner_that_numbers_nothing_gets_nothing() {
    let mut whole = sending(json!({}), json!({})).await;
    whole.gateway.lease(&[leased(1, &adt("M1"))]).await;
    let mut partner = whole.accept().await;
    let asked = comes(&mut partner, "0").await;
    write(&mut partner, &super::ack("AA", field(&asked, 10))).await;
    let (result, _) = whole.settled().await;
    assert_eq!((&result["outcome"], &result["scope"]), (&json!("retry"), &json!("destination")));
    assert!(result["reason"].as_str().unwrap().contains("MSA-4"), "{result}");
}

#[tokio::test]
async fn without_one_lane_there_are_no_numbers() {
    let (_gateway, session) = gatepost_adapter::testing::Gateway::open(json!({"order": "key"})).await;
    let settings = json!({"connect": "127.0.0.1:1", "sequence_numbers": {"send": true}});
    let failed = Hl7::run(serde_json::from_value(settings).unwrap(), session).await;
    assert!(failed.is_err());
}

#[tokio::test]
async fn operators_see_the_numbers_and_set_them() {
    let mut whole = sending(json!({}), numbers(5, None)).await;
    let pending = |call: &str, arguments: Value| json!({"call": {"id": Uuid::from_u128(9), "call": call, "arguments": arguments, "operator": "ops"}});
    let poll = whole.gateway.next("/v1/calls/next").await;
    poll.answer(200, &pending("set_number", json!({"next": 8})));
    let call = whole.gateway.next("/v1/settle").await;
    assert_eq!(decoded(&call.body["state"]), json!({"number": 8, "holder": null}));
    call.settled("ok");
    let told = whole.gateway.next("/answer").await;
    assert_eq!(told.body["answer"], json!({"next": 8}));
    told.answer(200, &json!({"told": true}));
    whole.gateway.next("/v1/calls/next").await.answer(200, &pending("sequence", json!({})));
    let told = whole.gateway.next("/answer").await;
    assert_eq!((&told.body["answer"]["next"], &told.body["answer"]["in_step"]), (&json!(8), &json!(false)));
}

async fn receiving(state: Value) -> (Whole, Channel) {
    let settings = json!({"sequence_numbers": {"receive": true}});
    let whole = Whole::start(settings, json!({"state": state})).await;
    let partner = whole.connect().await;
    (whole, partner)
}

/// The settlement that takes in what has come together with its number; gives what adapter state says then.
async fn taken_in(whole: &mut Whole, subject: &str) -> (Call, Value) {
    let call = whole.gateway.next("/v1/settle").await;
    assert_eq!(call.body["emit"][0]["subject"], subject);
    let state = call.body["state"].clone();
    assert_eq!(state.as_object().unwrap().len(), 1);
    (call, state)
}

#[tokio::test]
async fn what_comes_is_stored_with_its_number_and_answered_with_the_one_that_is_expected() {
    let (mut whole, mut partner) = receiving(json!({})).await;
    let question = Bytes::from_static(b"MSH|^~\\&|EHR|C|LAB|H|2026||ADT^A01|Q1|P|2.5|0\r");
    write(&mut partner, &question).await;
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|AA|Q1||-1", "the first will do");
    write(&mut partner, &numbered("M1", 7)).await;
    let (call, _) = taken_in(&mut whole, "M1").await;
    assert!(timeout(PAUSE, partner.next()).await.is_err(), "before it was durable");
    call.settled("ok");
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|AA|M1||7");
    // The acknowledgement was lost, something else has its number, one is missing, none is there.
    for (body, answer) in [
        (numbered("M1", 7), "MSA|AA|M1||8"),
        (numbered("OTHER", 7), "MSA|AR|OTHER|out of sequence|8"),
        (numbered("M3", 9), "MSA|AR|M3|out of sequence|8"),
        (numbered("M0", 6), "MSA|AR|M0|out of sequence|8"),
        (adt("M4"), "MSA|AR|M4|transactions are numbered here, and MSH-13 is no sequence number|8"),
        (question, "MSA|AA|Q1||8"),
    ] {
        write(&mut partner, &body).await;
        assert_eq!(msa(&body_of(&mut partner).await), answer);
    }
    // Not now: it comes again, and is still expected.
    write(&mut partner, &numbered("M2", 8)).await;
    taken_in(&mut whole, "M2").await.0.answer_problem("queue_full");
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|AE|M2|not stored; send again later|8");
    write(&mut partner, &numbered("M2", 8)).await;
    let (call, kept) = taken_in(&mut whole, "M2").await;
    call.settled("ok");
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|AA|M2||8");

    // A later session knows, and forgets when it is told to.
    let (mut whole, mut partner) = receiving(kept).await;
    write(&mut partner, &numbered("M2", 8)).await;
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|AA|M2||9");
    write(&mut partner, &Bytes::from_static(b"MSH|^~\\&|EHR|C|LAB|H|2026||ADT^A01|R1|P|2.5|-1\r")).await;
    let call = whole.gateway.next("/v1/settle").await;
    assert_eq!(call.body["state"].as_object().unwrap().len(), 1);
    assert!(timeout(PAUSE, partner.next()).await.is_err(), "before it was durable");
    call.settled("ok");
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|AA|R1||-1");
    write(&mut partner, &numbered("M9", 1)).await;
    taken_in(&mut whole, "M9").await.0.settled("ok");
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|AA|M9||1");
}

#[tokio::test]
async fn each_stream_has_numbers_of_its_own_and_an_unreadable_one_takes_nothing() {
    let theirs = |number: u64| {
        Bytes::from(format!("MSH|^~\\&|OTHER|C|LAB|H|2026||ADT^A01|O{number}|P|2.5|{number}\r"))
    };
    let key = format!("sequence/in/{}", digest(b"OTHER\rC\rLAB\rH"));
    let (mut whole, mut partner) = receiving(json!({ &key: encoded(b"unreadable") })).await;
    write(&mut partner, &numbered("M1", 1)).await;
    taken_in(&mut whole, "M1").await.0.settled("ok");
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|AA|M1||1");
    write(&mut partner, &theirs(1)).await;
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|AR|O1|out of sequence");
}

#[tokio::test]
async fn a_numbered_query_is_one_message_and_sent_again_it_gets_the_applications_answer() {
    let settings = json!({"sequence_numbers": {"receive": true}, "reply_from_app": ["QBP"]});
    let mut whole = Whole::start(settings, json!({})).await;
    let query = Bytes::from_static(b"MSH|^~\\&|EHR|C|LAB|H|2026||QBP^Q22|Q1|P|2.5|7\rQPD|x\r");
    let answer = "MSH|^~\\&|C|D|A|B|||RSP^K22|R1|P|2.5\rMSA|AE|Q1\r";
    let mut partner = whole.connect().await;
    write(&mut partner, &query).await;
    let (call, _) = taken_in(&mut whole, "Q1").await;
    let emitted = call.body["emit"][0].clone();
    call.settled("ok");
    for again in [true, false] {
        let asked = whole.gateway.next("/v1/messages").await;
        assert!(!asked.headers.contains_key("idempotency-key"), "it would be stored a second time");
        assert_eq!(asked.body, emitted);
        if again {
            // Its connection is cut before the answer comes.
            drop(std::mem::replace(&mut partner, whole.connect().await));
            write(&mut partner, &query).await;
        }
        reply(asked, Some(answer));
    }
    let told = "MSH|^~\\&|C|D|A|B|||RSP^K22|R1|P|2.5\rMSA|AE|Q1||8\r";
    assert_eq!(body_of(&mut partner).await, told.as_bytes(), "and no acknowledgement that nobody gave");
}

#[tokio::test]
async fn an_applications_answer_to_a_numbered_query_says_which_number_is_expected() {
    let settings = json!({"sequence_numbers": {"receive": true}, "reply_from_app": ["QBP"]});
    let mut whole = Whole::start(settings, json!({})).await;
    let mut partner = whole.connect().await;
    // Taken in any case, so that only a yes may echo its number: a no with that would call for it again.
    for (number, modes, says, msas) in [
        (7, "", Some("MSA|AA|Q7|fine|99"), vec!["MSA|AA|Q7|fine|7"]),
        (8, "", Some("MSA|AE|Q8"), vec!["MSA|AE|Q8||9"]),
        (9, "", Some("MSA|AR|Q9"), vec!["MSA|AR|Q9||10"]),
        (10, "", Some("MSA|AA|OTHER"), vec!["MSA|AE|Q10|the application gave no usable answer|11"]),
        (11, "", None, vec!["MSA|AE|Q11|the application gave no answer in time|12"]),
        // Its accept acknowledgement has said it.
        (12, "||AL|AL", Some("MSA|AE|Q12"), vec!["MSA|CA|Q12||12", "MSA|AE|Q12"]),
        (13, "||AL|AL", None, vec!["MSA|CA|Q13||13", "MSA|AE|Q13|the application gave no answer in time"]),
    ] {
        let query = format!("MSH|^~\\&|EHR|C|LAB|H|2026||QBP^Q22|Q{number}|P|2.5|{number}{modes}\rQPD|x\r");
        write(&mut partner, &query.into()).await;
        taken_in(&mut whole, &format!("Q{number}")).await.0.settled("ok");
        let mut msas = msas.into_iter();
        if !modes.is_empty() {
            assert_eq!(Some(msa(&body_of(&mut partner).await)), msas.next());
        }
        let answer = says.map(|says| format!("MSH|^~\\&|C|D|A|B|||RSP^K22|R1|P|2.5\r{says}\r"));
        reply(whole.gateway.next("/v1/messages").await, answer.as_deref());
        assert_eq!(Some(msa(&body_of(&mut partner).await)), msas.next());
    }
}

#[tokio::test]
async fn no_partner_moves_the_numbers_of_another() {
    let settings = json!({"connect": null, "sequence_numbers": {"receive": true}, "partners": [
        {"name": "lab", "from": ["127.0.0.2"]}, {"name": "ward", "from": ["127.0.0.3"]},
    ]});
    let mut whole = Whole::start(settings, json!({})).await;
    let (mut lab, mut ward) = (whole.connect_from("127.0.0.2").await, whole.connect_from("127.0.0.3").await);
    write(&mut lab, &numbered("M7", 7)).await;
    taken_in(&mut whole, "M7").await.0.settled("ok");
    assert_eq!(msa(&body_of(&mut lab).await), "MSA|AA|M7||7");
    write(&mut ward, &Bytes::from_static(b"MSH|^~\\&|EHR|C|LAB|H|2026||ADT^A01|R1|P|2.5|-1\r")).await;
    whole.gateway.next("/v1/settle").await.settled("ok");
    assert_eq!(msa(&body_of(&mut ward).await), "MSA|AA|R1||-1");
    write(&mut lab, &numbered("M9", 9)).await;
    assert_eq!(msa(&body_of(&mut lab).await), "MSA|AR|M9|out of sequence|8");
}
