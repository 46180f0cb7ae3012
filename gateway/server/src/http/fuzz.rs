//! What must hold for any request, from its first byte to the event that is leased and back again.

use std::sync::LazyLock;

use axum::extract::Query;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use bytes::Bytes;
use gatepost_api::event::{Data, Event, is_json_media_type};
use gatepost_api::lists::{ReasonRequest, ResolveRequest};
use gatepost_api::queues::{LEASE_MS_MAX, LeaseRequest};
use gatepost_api::session::SessionRequest;
use gatepost_api::settle::{SETTLE_RESULTS_MAX, SettleRequest};
use gatepost_core::message::{BATCH_EVENTS_MAX, IDEMPOTENCY_KEY_BYTES_MAX};
use gatepost_core::principal::{Actor, ActorKind};
use gatepost_core::routing::{Condition, Route, Routes};
use gatepost_core::{MessageId, Outcome, Timestamp};
use gatepost_store::StoredMessage;

use super::assemble::append_event;
use super::events::{Mode, emit_fault};
use super::headers::{TraceParent, WAIT_S_MAX, bearer, epoch, idempotency_key, preferred_wait, require_json};
use super::intake::{Context, Draft, GATEWAY_ATTRIBUTES};
use super::problem::Refusal;
use super::query::{self, PageParams};
use super::{body, settle};

const MAX_MESSAGE: u64 = 4096;
/// What every value of a request is made of before its faults are read: none of it may be told.
const CANARIES: [&str; 2] = ["qqqqqqqq", "77777777"];

/// Conditions as operators write them: they see whatever a sender sends.
static ROUTES: LazyLock<Routes> = LazyLock::new(|| {
    let conditions = [
        "type.startsWith('org.hl7.v2.')",
        "subject.matches('^[a-z]+(/[0-9]+)*$') || partitionkey == app",
        "data != null && type == 'order' && data.total > 100 && data.items.exists(i, i.sku == 'x')",
        "has(data.patient) && size(data.patient.name) > 0",
        "timestamp(time) > timestamp('2026-01-01T00:00:00Z')",
    ];
    let route = |(number, condition): (usize, &str)| Route {
        name: format!("r{number}"),
        from: format!("app{number}"),
        condition: Some(Condition::compile(condition).expect("it is CEL")),
        to: vec!["lab".to_owned()],
    };
    Routes::new(conditions.into_iter().enumerate().map(route).collect())
});

// === accept ===

/// Header lines, an empty line, and a body, to `POST /v1/messages`.
pub(crate) fn accept(input: &[u8]) {
    let (headers, body) = request(input);
    let refusal = match Mode::of(&headers) {
        Ok(mode) => match mode.events(&headers, body, MAX_MESSAGE) {
            Ok(events) => {
                assert!((1..=BATCH_EVENTS_MAX).contains(&events.len()));
                events.iter().for_each(|event| through_the_gateway(&headers, event));
                None
            }
            Err(refusal) => Some(refusal),
        },
        Err(refusal) => Some(refusal),
    };
    if let Some(refusal) = refusal {
        assert!(!told(&refusal).is_empty());
    }
    one_in_a_batch_is_one(body);
    let hidden = hidden(body);
    for mode in [Mode::Structured, Mode::Batch] {
        if let Err(refusal) = mode.events(&headers, &hidden, MAX_MESSAGE) {
            keeps_quiet(&refusal, input);
        }
    }
    let hidden: HeaderMap =
        headers.iter().map(|(name, value)| (name.clone(), hidden_header(value))).collect();
    if let Err(refusal) = Mode::Binary.events(&hidden, body, MAX_MESSAGE) {
        keeps_quiet(&refusal, input);
    }
}

/// What was accepted is what is leased: the same attributes but the gateway's own, the same payload.
fn through_the_gateway(headers: &HeaderMap, event: &Event) {
    event.validate().expect("what was read is valid");
    let key = idempotency_key(headers).ok().flatten();
    let context = Context { idempotency_key: key.as_deref(), traceparent: None };
    let Ok(mut draft) = Draft::from_event(event.clone(), context) else { return };
    for number in 0..5 {
        // Whatever a condition makes of it, it comes to an end and takes nothing down.
        let _ = draft.route(&ROUTES, &format!("app{number}"));
    }
    let message = draft.message;
    let stored = StoredMessage {
        id: MessageId::from_bytes([7; 16]),
        sender: Actor::new(ActorKind::App, "ehr"),
        accepted_at: Timestamp::from_micros(0),
        attributes: message.attributes.into(),
        form: message.form,
        size: message.data.len() as u64,
        data: Some(Bytes::from(message.data)),
        purged: false,
    };
    let mut json = String::new();
    append_event(&mut json, &stored).expect("what is accepted can be leased");
    let mut leased: Event = serde_json::from_str(&json).expect("it is an event");
    assert_eq!(leased.text_extension("gatepostapp").as_deref(), Some("ehr"), "the sender is who it is");
    assert_eq!(leased.text_extension("gatepostid"), Some(stored.id.to_string()));
    let bytes = event.data.as_ref().map_or(&[][..], Data::as_bytes);
    let came = leased.data.as_ref().map_or(&[][..], Data::as_bytes);
    let json = is_json_media_type(event.datacontenttype.as_deref());
    assert!(came == bytes || (json && came == bytes.trim_ascii()), "the payload is another");
    let mut sent = event.clone();
    for name in GATEWAY_ATTRIBUTES {
        sent.extensions.remove(name);
        leased.extensions.remove(name);
    }
    (sent.data, leased.data) = (None, None);
    assert!(sent == leased, "the attributes are others");
}

/// Structured mode and a batch of one say the same of the same event.
fn one_in_a_batch_is_one(body: &[u8]) {
    let none = HeaderMap::new();
    let alone = Mode::Structured.events(&none, body, MAX_MESSAGE);
    let batch = [b"[", body, b"]"].concat();
    match (alone, Mode::Batch.events(&none, &batch, MAX_MESSAGE)) {
        (Ok(alone), Ok(batch)) => assert!(alone == batch, "two readings of one event"),
        (Err(alone), Err(batch)) => {
            let both = [alone.code, batch.code];
            // What ends the event may begin something else in a batch.
            assert!(alone.code == batch.code || both.contains(&gatepost_api::Code::InvalidRequest));
        }
        (Ok(_), Err(batch)) => panic!("alone it is an event, in a batch: {}", told(&batch)),
        (Err(_), Ok(batch)) => assert!(batch.len() > 1, "in a batch it is an event, alone it is none"),
    }
}

// === headers ===

/// Header lines: each header that the API reads.
pub(crate) fn headers(input: &[u8]) {
    let (headers, _) = request(input);
    if let Ok(Some(key)) = idempotency_key(&headers) {
        assert!((1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len()));
        assert!(key.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        let quoted = format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""));
        let again = HeaderMap::from_iter([(
            HeaderName::from_static("idempotency-key"),
            HeaderValue::from_str(&quoted).expect("visible ASCII"),
        )]);
        assert_eq!(idempotency_key(&again).expect("the same key"), Some(key));
    }
    if let Some(wait) = preferred_wait(&headers) {
        assert!(wait.as_secs() <= WAIT_S_MAX && wait.subsec_nanos() == 0);
    }
    if let Ok(Some(epoch)) = epoch(&headers) {
        let values: Vec<_> = headers.get_all("gatepost-epoch").iter().collect();
        assert_eq!(values, [epoch.to_string().as_str()], "a number that the gateway gave");
    }
    if let Some(trace) = TraceParent::from_headers(&headers) {
        assert!(trace.trace_id().bytes().any(|byte| byte != b'0') && trace.trace_id().len() == 32);
        assert!(trace.parent_id().bytes().any(|byte| byte != b'0') && trace.parent_id().len() == 16);
    }
    if let Some(token) = bearer(&headers) {
        assert_eq!(headers.get_all("authorization").iter().count(), 1, "one of several tokens");
        assert_eq!(token, token.trim());
    }
    let _ = require_json(&headers);
}

// === requests ===

/// A body of the calls that take JSON; the first byte chooses which.
pub(crate) fn requests(input: &[u8]) {
    let Some((choice, body)) = input.split_first() else { return };
    match choice % 5 {
        0 => settles(body),
        1 => {
            read::<LeaseRequest>(body);
        }
        2 => {
            read::<SessionRequest>(body);
        }
        3 => {
            read::<ReasonRequest>(body);
        }
        _ => {
            read::<ResolveRequest>(body);
        }
    }
}

fn settles(body: &[u8]) {
    let Some(request) = read::<SettleRequest>(body) else {
        for body in [body, &hidden(body)] {
            if let Some(refusal) = emit_fault(body) {
                assert!(told(&refusal).contains("event ") || told(&refusal).contains("JSON"));
            }
        }
        if let Some(refusal) = emit_fault(&hidden(body)) {
            keeps_quiet(&refusal, body);
        }
        return;
    };
    if request.results.len() > SETTLE_RESULTS_MAX {
        return;
    }
    let count = request.results.len();
    match settle::items(request.results) {
        Ok(items) => {
            assert_eq!(items.len(), count);
            for item in items {
                if let Outcome::Extend { lease } = item.outcome {
                    assert!(!lease.is_zero() && lease.as_millis() <= u128::from(LEASE_MS_MAX));
                }
                for json in item.evidence.iter().chain(&item.reply) {
                    serde_json::from_slice::<serde::de::IgnoredAny>(json).expect("it is JSON");
                }
            }
        }
        Err(refusal) => {
            let told = told(&refusal);
            let number = told.strip_prefix("result ").and_then(|rest| rest.split(':').next());
            let number: usize = number.and_then(|number| number.parse().ok()).expect("a position");
            assert!(number < count, "{told}");
        }
    }
    if let Ok(request) = serde_json::from_slice::<SettleRequest>(&hidden(body))
        && let Err(refusal) = settle::items(request.results)
    {
        keeps_quiet(&refusal, body);
    }
}

fn read<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    if let Err(refusal) = body::parse::<T>(&hidden(bytes)) {
        keeps_quiet(&refusal, bytes);
    }
    match body::parse(bytes) {
        Ok(value) => Some(value),
        Err(refusal) => {
            assert!(told(&refusal).contains("line "), "{}", told(&refusal));
            None
        }
    }
}

// === addresses ===

/// The query of a list, and what stands in it.
pub(crate) fn query(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(Some(moment)) = query::moment("since", Some(text)) {
        let written = moment.to_rfc3339();
        assert_eq!(Timestamp::parse_rfc3339(&written), Some(moment), "{text} became {written}");
    }
    if let Ok(id) = query::message_id(text) {
        assert_eq!(query::message_id(&id.to_string()).ok(), Some(id));
    }
    let Ok(uri) = format!("/v1/messages?{text}").parse::<Uri>() else { return };
    match Query::<PageParams>::try_from_uri(&uri) {
        Ok(Query(params)) => {
            if let Ok(limit) = query::page_limit(params.limit) {
                assert!((1..=500).contains(&limit));
            }
        }
        Err(rejection) => {
            let text = std::error::Error::source(&rejection).map(ToString::to_string).unwrap_or_default();
            assert!(!query::fault(&text).is_empty());
        }
    }
}

// === requests as text ===

/// Header lines up to an empty one, then the body. Lines that are no header are passed over.
fn request(input: &[u8]) -> (HeaderMap, &[u8]) {
    let (head, body) = match input.windows(2).position(|pair| pair == b"\n\n") {
        Some(end) => (&input[..end], &input[end + 2..]),
        None => (input, &[][..]),
    };
    let mut headers = HeaderMap::new();
    for line in head.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let value = line[colon + 1..].trim_ascii();
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(value))
        {
            headers.append(name, value);
        }
    }
    (headers, body)
}

fn told(refusal: &Refusal) -> String {
    refusal.detail().to_owned()
}

/// `input` is what came before its values were hidden: names in it are told, even those that look like a canary.
fn keeps_quiet(refusal: &Refusal, input: &[u8]) {
    let (told, input) = (format!("{refusal:?}"), String::from_utf8_lossy(input).to_ascii_lowercase());
    let tells = |canary: &&str| told.contains(*canary) && !input.contains(*canary);
    assert!(!CANARIES.iter().any(tells), "a value is told: {told}");
}

/// The body with every value in it made of canaries: letters in strings that are no names, and digits of long numbers.
/// It need not be JSON: what looks like a string is taken for one.
fn hidden(body: &[u8]) -> Vec<u8> {
    let mut hidden = body.to_vec();
    // Brackets that are open, and what stands before: where a name is expected, a parser tells of a name, colon or not.
    let (mut open, mut before) = (Vec::new(), b' ');
    let mut at = 0;
    while at < hidden.len() {
        if hidden[at] != b'"' {
            match hidden[at] {
                bracket @ (b'{' | b'[') => open.push(bracket),
                b'}' | b']' => _ = open.pop(),
                _ => {}
            }
            if !hidden[at].is_ascii_whitespace() {
                before = hidden[at];
            }
            let digits = hidden[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            if digits >= CANARIES[1].len() {
                hidden[at..at + digits].fill(b'7');
            }
            at += digits.max(1);
            continue;
        }
        let start = at + 1;
        at = start;
        while at < hidden.len() && hidden[at] != b'"' {
            at += if hidden[at] == b'\\' { 2 } else { 1 };
        }
        let end = at.min(hidden.len());
        at = end + 1;
        let after = hidden.get(at..).unwrap_or_default().trim_ascii_start();
        let is_expected = open.last() == Some(&b'{') && matches!(before, b'{' | b',');
        let is_name = is_expected || after.first() == Some(&b':');
        before = b'"';
        // Short words may be ones of ours, and escapes stay what they are.
        if !is_name && end - start >= CANARIES[0].len() && !hidden[start..end].contains(&b'\\') {
            hidden[start..end]
                .iter_mut()
                .filter(|byte| byte.is_ascii_alphanumeric())
                .for_each(|byte| *byte = b'q');
        }
    }
    hidden
}

fn hidden_header(value: &HeaderValue) -> HeaderValue {
    let bytes = value.as_bytes();
    if bytes.len() < CANARIES[0].len() {
        return value.clone();
    }
    let hide = |byte: &u8| if byte.is_ascii_alphanumeric() { b'q' } else { *byte };
    let hidden: Vec<u8> = bytes.iter().map(hide).collect();
    HeaderValue::from_bytes(&hidden).expect("as legal as it was")
}
