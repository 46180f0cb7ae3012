//! The golden table: every state × every event × every policy on doubt, and the rules of the machine by example.

use std::fmt::Write as _;

use super::*;
use crate::policy::RetryPolicy;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

fn token(byte: u8) -> LeaseToken {
    LeaseToken::from_bytes([byte; 16])
}

fn lease() -> Lease {
    Lease { token: token(1), until: at(130), session: 7 }
}

fn policy(on_doubt: OnDoubt) -> QueuePolicy {
    let retry = RetryPolicy { attempts: 3, ..RetryPolicy::default() };
    QueuePolicy { on_doubt, on_dead: OnDead::HoldLane, retry, ..QueuePolicy::default() }
}

fn moment(policy: &QueuePolicy) -> Moment<'_> {
    Moment { now: at(100), policy, idle_total: Duration::ZERO, jitter: 0.5 }
}

fn delivery(state: State) -> Delivery {
    Delivery { state, ..Delivery::accepted(at(90), Duration::ZERO, None) }
}

fn states() -> Vec<(&'static str, Delivery)> {
    let doubt = |state| Delivery { doubt: true, attempts: 1, ..delivery(state) };
    let sending = State::Sending { lease: lease(), proof: Proof::Prompt };
    let late = State::Sending { lease: lease(), proof: Proof::Late };
    let dead = State::Dead { reason: Reason::Rejected, holds_lane: false };
    vec![
        ("waiting", delivery(State::Waiting { due: at(100) })),
        ("waiting, not due", delivery(State::Waiting { due: at(101) })),
        (
            "waiting, past expiry",
            Delivery { expires_at: Some(at(99)), ..delivery(State::Waiting { due: at(90) }) },
        ),
        ("leased", delivery(State::Leased { lease: lease() })),
        ("leased, in doubt", doubt(State::Leased { lease: lease() })),
        (
            "leased, past expiry",
            Delivery { expires_at: Some(at(99)), ..delivery(State::Leased { lease: lease() }) },
        ),
        ("sending", delivery(sending)),
        ("sending, in doubt", doubt(sending)),
        ("sending, last attempt", Delivery { attempts: 2, ..delivery(sending) }),
        ("sending, past expiry", Delivery { expires_at: Some(at(99)), ..delivery(sending) }),
        ("sending, suspect, 2 crashes", Delivery { suspect: true, crashes: 2, ..delivery(sending) }),
        (
            "sending, begun by its holder",
            Delivery { settled: Some((token(1), OutcomeKind::Begin)), ..delivery(sending) },
        ),
        ("sending, proof late", delivery(late)),
        ("in doubt, due", doubt(State::InDoubt { due: Some(at(100)) })),
        ("in doubt, held", doubt(State::InDoubt { due: None })),
        ("delivered", delivery(State::Delivered)),
        ("dead", Delivery { attempts: 3, ..delivery(dead) }),
        ("dead, past expiry", Delivery { expires_at: Some(at(99)), ..delivery(dead) }),
        ("expired", delivery(State::Expired)),
        ("discarded", delivery(State::Discarded)),
    ]
}

fn events() -> Vec<(String, Event)> {
    let mut events = vec![
        Event::Lease(Lease { token: token(2), until: at(132), session: 8 }),
        Event::LeaseExpired,
        Event::AdapterLost,
        Event::SessionEnded,
        Event::Recall,
        Event::LaneAway,
        Event::Expire,
        Event::Replay,
        Event::Discard,
        Event::Move,
        Event::Damaged,
    ]
    .into_iter()
    .map(|event| (event.as_str().to_owned(), event))
    .collect::<Vec<_>>();
    for resolution in [Resolution::Delivered, Resolution::Retry, Resolution::Dead] {
        events.push((format!("resolve {resolution:?}"), Event::Resolve(resolution)));
    }
    events
}

fn outcomes() -> Vec<(&'static str, Outcome)> {
    let retry = |scope| Outcome::Retry { after: None, scope };
    vec![
        ("begin", Outcome::Begin),
        ("sent", Outcome::Sent { within: Duration::from_secs(60) }),
        ("delivered transport", Outcome::Delivered { level: Level::Transport }),
        ("delivered sent", Outcome::Delivered { level: Level::Sent }),
        ("in_doubt", Outcome::InDoubt),
        ("retry message", retry(RetryScope::Message)),
        ("retry destination", retry(RetryScope::Destination)),
        ("retry lane", retry(RetryScope::Lane)),
        ("reject", Outcome::Reject),
        ("release", Outcome::Release),
        ("extend", Outcome::Extend { lease: Duration::from_secs(40) }),
        ("wake", Outcome::Wake),
    ]
}

fn describe(change: &Change) -> String {
    let seconds = |time: Timestamp| time.as_micros() as f64 / 1e6 - 100.0;
    let delivery = &change.delivery;
    let mut text = match delivery.state {
        State::Waiting { due } => format!("waiting +{}s", seconds(due)),
        State::Leased { lease } => format!("leased until +{}s", seconds(lease.until)),
        State::Sending { lease, proof } => format!("sending {proof:?} until +{}s", seconds(lease.until)),
        State::InDoubt { due: Some(due) } => format!("in_doubt +{}s", seconds(due)),
        State::InDoubt { due: None } => "in_doubt HELD".to_owned(),
        State::Dead { reason, holds_lane } => format!("dead({}) holds_lane={holds_lane}", reason.as_str()),
        State::Delivered | State::Expired | State::Discarded => delivery.state.as_str().to_owned(),
    };
    let _ = write!(text, " attempts={}", delivery.attempts);
    if delivery.series > 0 {
        let _ = write!(text, " series={}", delivery.series);
    }
    for (flag, name) in
        [(delivery.doubt, "doubt"), (delivery.suspect, "suspect"), (delivery.replayed, "replayed")]
    {
        if flag {
            let _ = write!(text, " {name}");
        }
    }
    if delivery.crashes > 0 {
        let _ = write!(text, " crashes={}", delivery.crashes);
    }
    match change.record {
        None => text.push_str(" | no leaf"),
        Some((record, None)) => drop(write!(text, " | {record:?}")),
        Some((record, Some(reason))) => drop(write!(text, " | {record:?}({})", reason.as_str())),
    }
    text
}

#[test]
fn golden_table_of_every_state_and_event() {
    let mut table = String::new();
    for on_doubt in [OnDoubt::Resend, OnDoubt::Hold, OnDoubt::Query] {
        let policy = policy(on_doubt);
        for (name, delivery) in states() {
            let _ = writeln!(table, "== on_doubt = {on_doubt}: {name}");
            for (label, event) in events() {
                let text = match delivery.apply(event, &moment(&policy)) {
                    Ok(change) => describe(&change),
                    Err(_) => "illegal".to_owned(),
                };
                let _ = writeln!(table, "  {label:<20} -> {text}");
            }
            for (label, outcome) in outcomes() {
                let text = match delivery.settle(&token(1), outcome, &moment(&policy)) {
                    Ok(Settled::Changed(change)) => describe(&change),
                    Ok(Settled::Refused(change)) => format!("REFUSED: {}", describe(&change)),
                    Ok(Settled::Repeated) => "ok, nothing changes".to_owned(),
                    Ok(Settled::Stale) => "stale".to_owned(),
                    Err(refusal) => format!("REFUSED: {refusal}"),
                };
                let _ = writeln!(table, "  {label:<20} -> {text}");
            }
        }
    }
    insta::assert_snapshot!("state_by_event", table);
}

#[test]
fn an_older_token_changes_nothing_in_any_state() {
    for on_doubt in [OnDoubt::Resend, OnDoubt::Hold, OnDoubt::Query] {
        let policy = policy(on_doubt);
        for (name, delivery) in states() {
            for (label, outcome) in outcomes() {
                let settled = delivery.settle(&token(9), outcome, &moment(&policy));
                assert_eq!(settled, Ok(Settled::Stale), "{name} {label}");
            }
        }
    }
}

#[test]
fn r13_3_the_same_token_with_the_same_outcome_is_ok_and_with_another_is_stale() {
    let policy = policy(OnDoubt::Resend);
    let sending = delivery(State::Sending { lease: lease(), proof: Proof::Prompt });
    for (label, outcome) in outcomes() {
        let Ok(Settled::Changed(change)) = sending.settle(&token(1), outcome, &moment(&policy)) else {
            continue;
        };
        if change.delivery.lease().is_some() {
            continue;
        }
        for (other_label, other) in outcomes() {
            let repeats = OutcomeKind::of(outcome, Duration::ZERO).is_repeated_by(other);
            let expected = if repeats { Settled::Repeated } else { Settled::Stale };
            let again = change.delivery.settle(&token(1), other, &moment(&policy));
            if (label, other_label) == ("retry lane", "wake") {
                assert!(matches!(again, Ok(Settled::Changed(_))), "{again:?}");
                continue;
            }
            assert_eq!(again, Ok(expected), "{label}, then {other_label}");
        }
    }
}

#[test]
fn r13_3_the_next_lease_ends_the_memory_of_the_last_settle() {
    let policy = policy(OnDoubt::Resend);
    let sending = delivery(State::Sending { lease: lease(), proof: Proof::Prompt });
    let Ok(Settled::Changed(change)) = sending.settle(&token(1), Outcome::Release, &moment(&policy)) else {
        panic!("release refused")
    };
    let next = Lease { token: token(2), ..lease() };
    let leased = change.delivery.apply(Event::Lease(next), &moment(&policy)).unwrap().delivery;
    assert_eq!(leased.settle(&token(1), Outcome::Release, &moment(&policy)), Ok(Settled::Stale));
}

#[test]
fn r13_5_idle_time_does_not_age_a_delivery() {
    let mut policy = policy(OnDoubt::Resend);
    policy.retry.give_up_after = Duration::from_secs(50);
    let sending =
        Delivery { born: at(0), ..delivery(State::Sending { lease: lease(), proof: Proof::Prompt }) };
    let retry = Outcome::Retry { after: None, scope: RetryScope::Message };
    let state_after = |idle: u64| {
        let moment = Moment { idle_total: Duration::from_secs(idle), ..moment(&policy) };
        match sending.settle(&token(1), retry, &moment) {
            Ok(Settled::Changed(change)) => change.delivery.state,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(state_after(0), State::Dead { reason: Reason::GaveUp, .. }));
    assert!(matches!(state_after(60), State::Waiting { .. }));
}

#[test]
fn r13_4_sent_is_proof_where_sent_is_enough() {
    let mut policy = policy(OnDoubt::Resend);
    policy.confirm = Some(Level::Sent);
    let sending = delivery(State::Sending { lease: lease(), proof: Proof::Prompt });
    let sent = Outcome::Sent { within: Duration::from_secs(60) };
    let Ok(Settled::Changed(change)) = sending.settle(&token(1), sent, &moment(&policy)) else { panic!() };
    assert_eq!(change.delivery.state, State::Delivered);
}

#[test]
fn r13_1_a_doubtful_delivery_past_its_expiry_is_held_not_resent_and_not_expired() {
    let policy = policy(OnDoubt::Resend);
    let doubtful =
        Delivery { doubt: true, expires_at: Some(at(99)), ..delivery(State::InDoubt { due: Some(at(90)) }) };
    let change = doubtful.apply(Event::Lease(lease()), &moment(&policy)).unwrap();
    assert_eq!(change.delivery.state, State::InDoubt { due: None });
}

fn back(delivery: &Delivery, policy: &QueuePolicy) -> Delivery {
    let away = Outcome::Retry { after: Some(Duration::from_secs(600)), scope: RetryScope::Lane };
    match delivery.settle(&token(1), away, &moment(policy)) {
        Ok(Settled::Changed(change)) => change.delivery,
        other => panic!("{other:?}"),
    }
}

#[test]
fn r13_5_what_its_lanes_partner_is_away_for_is_woken_by_its_last_token_only() {
    let policy = policy(OnDoubt::Resend);
    let sending = delivery(State::Sending { lease: lease(), proof: Proof::Prompt });
    let doubtful = Delivery { doubt: true, attempts: 1, ..sending };
    for (delivery, waits, woken) in [
        (sending, State::Waiting { due: at(700) }, State::Waiting { due: at(100) }),
        (doubtful, State::InDoubt { due: Some(at(700)) }, State::InDoubt { due: Some(at(100)) }),
    ] {
        let back = back(&delivery, &policy);
        assert_eq!((back.state, back.attempts, back.doubt), (waits, delivery.attempts, delivery.doubt));
        assert_eq!(back.settle(&token(9), Outcome::Wake, &moment(&policy)), Ok(Settled::Stale));
        let Ok(Settled::Changed(change)) = back.settle(&token(1), Outcome::Wake, &moment(&policy)) else {
            panic!("not woken")
        };
        assert_eq!((change.delivery.state, change.record), (woken, None));
        let again = change.delivery.settle(&token(1), Outcome::Wake, &moment(&policy));
        assert_eq!(again, Ok(Settled::Repeated));
        // Whoever has lost the answer to the retry, and says it again, has been heard.
        let retry = Outcome::Retry { after: None, scope: RetryScope::Lane };
        assert_eq!(change.delivery.settle(&token(1), retry, &moment(&policy)), Ok(Settled::Repeated));
        let next = Event::Lease(Lease { token: token(2), ..lease() });
        let leased = change.delivery.apply(next, &moment(&policy)).unwrap().delivery;
        for outcome in [retry, Outcome::Wake] {
            assert_eq!(leased.settle(&token(1), outcome, &moment(&policy)), Ok(Settled::Stale));
        }
        // Nor of one whose next lease was lost.
        let lost = leased.apply(Event::AdapterLost, &moment(&policy)).unwrap().delivery;
        for (byte, outcome) in [(1, retry), (1, Outcome::Wake), (2, retry), (2, Outcome::Wake)] {
            assert_eq!(lost.settle(&token(byte), outcome, &moment(&policy)), Ok(Settled::Stale));
        }
    }
    // A retry of its own has a pause that the gateway has set.
    for scope in [RetryScope::Message, RetryScope::Destination] {
        let retry = Outcome::Retry { after: None, scope };
        let Ok(Settled::Changed(change)) = sending.settle(&token(1), retry, &moment(&policy)) else {
            panic!()
        };
        let woken = change.delivery.settle(&token(1), Outcome::Wake, &moment(&policy));
        assert_eq!(woken, Ok(Settled::Stale), "{scope}");
    }
}

#[test]
fn r13_5_the_time_in_which_its_lanes_partner_is_away_does_not_age_a_delivery() {
    let mut policy = policy(OnDoubt::Resend);
    policy.retry.give_up_after = Duration::from_secs(50);
    let sending = State::Sending { lease: lease(), proof: Proof::Prompt };
    // Ten seconds old, away from 100 to 700 unless it is woken.
    let back = back(&delivery(sending), &policy);
    let retry = Outcome::Retry { after: None, scope: RetryScope::Message };
    let failed = |delivery: Delivery, now: i64| {
        let moment = Moment { now: at(now), ..moment(&policy) };
        match (Delivery { state: sending, ..delivery }).settle(&token(1), retry, &moment) {
            Ok(Settled::Changed(change)) => change.delivery.state,
            other => panic!("{other:?}"),
        }
    };
    let gave_up = |state| matches!(state, State::Dead { reason: Reason::GaveUp, .. });
    assert!(!gave_up(failed(back, 739)));
    assert!(gave_up(failed(back, 740)));
    let waking = Moment { now: at(300), ..moment(&policy) };
    let Ok(Settled::Changed(woken)) = back.settle(&token(1), Outcome::Wake, &waking) else {
        panic!("not woken")
    };
    assert!(!gave_up(failed(woken.delivery, 339)));
    assert!(gave_up(failed(woken.delivery, 340)));
    // What the destination is idle meanwhile is not counted beside that.
    let next = Lease { token: token(2), ..lease() };
    for (idle, now, age) in [
        // For all of the pause and until the lease; within it; from within it until the lease.
        (650, 750, 10),
        (300, 700, 10),
        (150, 800, 10),
        // Where it may have been behind the pause, it is taken for that.
        (150, 1000, 160),
        (0, 750, 60),
    ] {
        let idle_total = Duration::from_secs(idle);
        let moment = |now| Moment { now: at(now), idle_total, ..moment(&policy) };
        let leased = back.apply(Event::Lease(next), &moment(now)).unwrap().delivery;
        assert_eq!(leased.age(&moment(now)), Duration::from_secs(age), "{idle} s idle until {now}");
    }
    for (idle, age) in [(0, 10), (150, 10), (200, 10)] {
        let moment = Moment { now: at(300), idle_total: Duration::from_secs(idle), ..moment(&policy) };
        let Ok(Settled::Changed(woken)) = back.settle(&token(1), Outcome::Wake, &moment) else { panic!() };
        let leased = woken.delivery.apply(Event::Lease(next), &moment).unwrap().delivery;
        assert_eq!(leased.age(&moment), Duration::from_secs(age), "woken, {idle} s idle");
    }
    // Where a person says that it is to be sent again, all that begins anew.
    let doubtful = self::back(&Delivery { doubt: true, ..delivery(sending) }, &policy);
    let moment = |now| Moment { now: at(now), idle_total: Duration::from_secs(150), ..moment(&policy) };
    let resolved = doubtful.apply(Event::Resolve(Resolution::Retry), &moment(300)).unwrap().delivery;
    let leased = resolved.apply(Event::Lease(next), &moment(300)).unwrap().delivery;
    let later = Moment { now: at(460), idle_total: Duration::from_secs(250), ..moment(460) };
    assert_eq!(leased.age(&later), Duration::from_secs(60), "resolved, and idle for a hundred seconds since");
    // While it is away it is not given up, however old it is.
    let old = Delivery { born: at(-9999), ..delivery(sending) };
    assert!(matches!(self::back(&old, &policy).state, State::Waiting { .. }));
}

#[test]
fn r13_5_what_is_behind_one_whose_partner_is_away_goes_back_unless_something_has_been_reported_of_it() {
    for on_doubt in [OnDoubt::Resend, OnDoubt::Hold, OnDoubt::Query] {
        let policy = policy(on_doubt);
        let waiting = Delivery { attempts: 2, ..delivery(State::Waiting { due: at(90) }) };
        let leased = waiting.apply(Event::Lease(lease()), &moment(&policy)).unwrap().delivery;
        let back = leased.apply(Event::LaneAway, &moment(&policy)).unwrap().delivery;
        assert_eq!(back, Delivery { state: State::Waiting { due: at(100) }, ..waiting }, "{on_doubt}");
        assert_eq!(
            back.settle(&token(1), Outcome::Begin, &moment(&policy)),
            Ok(Settled::Stale),
            "{on_doubt}"
        );
        let said = |delivery: &Delivery, outcome| match delivery.settle(&token(1), outcome, &moment(&policy))
        {
            Ok(Settled::Changed(change)) => change.delivery,
            other => panic!("{on_doubt}: {other:?}"),
        };
        let begun = said(&leased, Outcome::Begin);
        assert!(begun.apply(Event::LaneAway, &moment(&policy)).is_err(), "{on_doubt}");
        let sent = said(&begun, Outcome::Sent { within: Duration::from_secs(60) });
        assert!(sent.apply(Event::LaneAway, &moment(&policy)).is_err(), "{on_doubt}");
        // That its lease lasts longer says nothing of the partner.
        let extended = said(&leased, Outcome::Extend { lease: Duration::from_secs(40) });
        assert!(extended.apply(Event::LaneAway, &moment(&policy)).is_ok(), "{on_doubt}");
    }
}

#[test]
fn r13_5_what_goes_back_behind_it_keeps_its_doubt_and_is_not_given_up() {
    let mut policy = policy(OnDoubt::Query);
    policy.retry.give_up_after = Duration::from_secs(5);
    let leased = delivery(State::Leased { lease: lease() });
    let back = |delivery: Delivery| delivery.apply(Event::LaneAway, &moment(&policy)).unwrap();
    assert_eq!(back(leased).delivery.state, State::Waiting { due: at(100) }, "old, and not its fault");
    let doubtful = back(Delivery { doubt: true, attempts: 3, ..leased }).delivery;
    assert_eq!(
        (doubtful.state, doubtful.doubt, doubtful.attempts),
        (State::InDoubt { due: Some(at(100)) }, true, 3)
    );
    let suspect = Delivery { suspect: true, crashes: 2, ..leased };
    assert_eq!(back(suspect).delivery.crashes, 2, "nobody has vouched for it");
    let late = back(Delivery { expires_at: Some(at(99)), ..leased });
    assert_eq!(late.delivery.state, State::Expired);
}

/// Nothing is reported of one that is leased again, until something is.
#[test]
fn r13_5_one_whose_partner_was_away_is_known_as_such_until_something_is_reported_of_it() {
    for on_doubt in [OnDoubt::Resend, OnDoubt::Hold] {
        let policy = policy(on_doubt);
        let back = back(&delivery(State::Leased { lease: lease() }), &policy);
        let later = Moment { now: at(700), ..moment(&policy) };
        let next = Lease { token: token(2), ..lease() };
        let leased = back.apply(Event::Lease(next), &later).unwrap().delivery;
        assert!(back.went_with_lane() && leased.went_with_lane(), "{on_doubt}");
        let Ok(Settled::Changed(begun)) = leased.settle(&token(2), Outcome::Begin, &later) else { panic!() };
        assert!(!begun.delivery.went_with_lane(), "{on_doubt}");
        let lost = leased.apply(Event::SessionEnded, &later).unwrap().delivery;
        assert!(!lost.went_with_lane(), "{on_doubt}");
    }
}

/// A `begin` that its lease has outlived is no leave to send.
#[test]
fn r13_3_a_begin_is_not_repeated_once_its_lease_is_over() {
    for event in [Event::LeaseExpired, Event::AdapterLost, Event::SessionEnded] {
        let policy = policy(OnDoubt::Resend);
        let sending = delivery(State::Sending { lease: lease(), proof: Proof::Prompt });
        let Ok(Settled::Changed(begun)) = sending.settle(&token(1), Outcome::Begin, &moment(&policy)) else {
            panic!()
        };
        let lost = begun.delivery.apply(event, &moment(&policy)).unwrap().delivery;
        assert_eq!(lost.settle(&token(1), Outcome::Begin, &moment(&policy)), Ok(Settled::Stale), "{event:?}");
    }
}
