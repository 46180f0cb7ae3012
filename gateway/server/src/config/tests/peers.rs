//! Who a peer is, and what it may do.

use gatepost_core::principal::OperatorRight;
use sha2::{Digest, Sha256};

use super::*;

fn process(uid: u32, gid: u32, groups: &[u32]) -> PeerFacts {
    PeerFacts { uid: Some(uid), gid: Some(gid), groups: groups.to_vec(), ..PeerFacts::default() }
}

fn certificate(spiffe: &str) -> PeerFacts {
    PeerFacts { spiffe: Some(spiffe.to_owned()), ..PeerFacts::default() }
}

fn digest(token: &str) -> String {
    Sha256::digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn found(
    config: &Config,
    serves: Serves,
    peer: &PeerFacts,
    bearer: Option<&str>,
) -> Result<String, MatchError> {
    config.match_principal(serves, peer, bearer, &()).map(|principal| principal.actor().to_string())
}

#[test]
fn r13_15_every_given_part_of_a_selector_must_match() {
    let config = parse(&with(
        r#"
        [apps.user]
        user = "100"
        [apps.group]
        group = "200"
        [apps.both]
        user = "300"
        group = "400"
        [apps.cert]
        spiffe = "spiffe://example.org/cert"
        [operators.user]
        user = "100"
        can = ["read"]
        "#,
    ))
    .unwrap();
    let app = |peer: &PeerFacts| found(&config, Serves::Apps, peer, None);
    assert_eq!(app(&process(100, 1, &[])).unwrap(), "app:user");
    assert_eq!(app(&process(1, 200, &[])).unwrap(), "app:group");
    assert_eq!(app(&process(1, 1, &[7, 200])).unwrap(), "app:group");
    assert_eq!(app(&process(300, 400, &[])).unwrap(), "app:both");
    assert_eq!(app(&certificate("spiffe://example.org/cert")).unwrap(), "app:cert");
    assert_eq!(app(&process(300, 1, &[])), Err(MatchError::Unknown));
    assert_eq!(app(&process(1, 400, &[])), Err(MatchError::Unknown));
    assert_eq!(app(&process(0, 0, &[])), Err(MatchError::Unknown));
    assert_eq!(app(&certificate("spiffe://example.org/cert2")), Err(MatchError::Unknown));
    assert_eq!(app(&PeerFacts::default()), Err(MatchError::Unknown));
    assert_eq!(found(&config, Serves::Operators, &process(100, 1, &[]), None).unwrap(), "operator:user");
    assert_eq!(found(&config, Serves::Operators, &process(1, 200, &[]), None), Err(MatchError::Unknown));
    assert_eq!(found(&config, Serves::Adapters, &process(100, 1, &[]), None), Err(MatchError::Unknown));
    assert!(config.recognises(Serves::Apps, &process(100, 1, &[])));
    assert!(!config.recognises(Serves::Adapters, &process(100, 1, &[])));
}

#[test]
fn r13_15_an_overlap_that_shows_at_run_time_is_ambiguous() {
    let config = parse(&with("[apps.a]\nuser = \"100\"\n[apps.b]\ngroup = \"200\"\n")).unwrap();
    let both = found(&config, Serves::Apps, &process(100, 200, &[]), None);
    assert_eq!(both, Err(MatchError::Ambiguous(vec!["a".into(), "b".into()])));
    assert_eq!(found(&config, Serves::Apps, &process(100, 1, &[]), None).unwrap(), "app:a");
}

#[test]
fn r13_15_a_token_chooses_among_matches_and_never_makes_one() {
    let config = parse(&with(&format!(
        "[apps.a]\nuser = \"100\"\ntoken_sha256 = \"{}\"\n[apps.b]\nuser = \"100\"\ntoken_sha256 = \"{}\"\n[apps.c]\nuser = \"101\"\n",
        digest("alpha"),
        digest("beta").to_uppercase(),
    )))
    .unwrap();
    let app = |uid, bearer| found(&config, Serves::Apps, &process(uid, 1, &[]), bearer);
    assert_eq!(app(100, Some("alpha")).unwrap(), "app:a");
    assert_eq!(app(100, Some("beta")).unwrap(), "app:b");
    assert_eq!(app(100, Some("gamma")), Err(MatchError::TokenRefused));
    assert_eq!(app(100, None), Err(MatchError::TokenRefused));
    assert_eq!(app(102, Some("alpha")), Err(MatchError::Unknown));
    // A token that nobody asked for changes nothing.
    assert_eq!(app(101, Some("alpha")).unwrap(), "app:c");
    assert!(config.recognises(Serves::Apps, &process(100, 1, &[])));
}

#[test]
fn programs_units_and_control_groups_tell_processes_apart() {
    let config = parse(&with(
        r#"
        [apps.viewer]
        user = "100"
        exe = "/opt/none/viewer"
        [apps.sender]
        user = "100"
        exe = "/opt/none/sender"
        [apps.unit]
        unit = "ehr.service"
        [apps.below]
        cgroup = "/machine.slice/lab"
        "#,
    ))
    .unwrap();
    let app = |peer: &PeerFacts| found(&config, Serves::Apps, peer, None);
    let runs = |uid, exe: &str| PeerFacts { exe: Some(exe.into()), ..process(uid, 1, &[]) };
    assert_eq!(app(&runs(100, "/opt/none/viewer")).unwrap(), "app:viewer");
    assert_eq!(app(&runs(100, "/opt/none/sender")).unwrap(), "app:sender");
    for stranger in [runs(101, "/opt/none/viewer"), runs(100, "/opt/none/viewer2"), process(100, 1, &[])] {
        assert_eq!(app(&stranger), Err(MatchError::Unknown), "{stranger:?}");
    }
    let within = |cgroup: &str| PeerFacts { cgroup: Some(cgroup.to_owned()), ..process(5, 5, &[]) };
    for (cgroup, expected) in [
        ("/system.slice/ehr.service", Some("app:unit")),
        ("/system.slice/ehr.service/worker", Some("app:unit")),
        ("/a.slice/a-b.slice/ehr.service", Some("app:unit")),
        ("/ehr.service", Some("app:unit")),
        ("/machine.slice/lab", Some("app:below")),
        ("/machine.slice/lab/one/two", Some("app:below")),
        ("/machine.slice/lab2", None),
        ("/machine.slice", None),
        ("/", None),
        ("/system.slice/other.service/ehr.service", None),
        ("/user.slice/user-5.slice/user@5.service/app.slice/ehr.service", None),
        ("/mine/system.slice/ehr.service", None),
        ("/system.slice/ehr.service2", None),
    ] {
        assert_eq!(app(&within(cgroup)).ok().as_deref(), expected, "{cgroup}");
    }
    assert_eq!(config.wanted(Serves::Apps), Wanted { exe: true, cgroup: true });
    assert_eq!(config.wanted(Serves::Operators), Wanted::default(), "only what is asked for");
    assert_eq!(config.unprovable(true), None);
    let why = config.unprovable(false).unwrap();
    assert!(why.contains("apps") && why.contains("Linux 6.5"), "{why}");
}

#[test]
fn connections_are_counted_for_whom_the_connection_shows() {
    let config = parse(&with(
        r#"
        [apps.a]
        user = "100"
        limits = { connections = 3, rate = "90/m", request_rate = "50/s" }
        [apps.b]
        user = "101"
        token = true
        limits = { connections = 2 }
        [apps.c]
        user = "101"
        token = true
        limits = { connections = 5 }
        [apps.d]
        user = "102"
        "#,
    ))
    .unwrap();
    let connections = |uid| config.connections(Serves::Apps, &process(uid, 1, &[]));
    assert_eq!(connections(100), Some(("apps a".to_owned(), 3)));
    assert_eq!(connections(101), Some(("apps b c".to_owned(), 7)), "only their tokens tell them apart");
    assert_eq!((connections(102), connections(103)), (None, None));
    let limits = config.apps["a"].limits;
    let read = |rate: Option<Rate>| rate.map(|rate| (rate.count.get(), rate.per.as_secs(), rate.burst.get()));
    assert_eq!((read(limits.rate), read(limits.request_rate)), (Some((90, 60, 2)), Some((50, 1, 50))));
}

#[test]
fn r13_10_supervised_adapters_are_never_found_by_their_selector() {
    let text = with(
        "[[listen]]\nserves = \"adapters\"\nunix = \"b.sock\"\n[adapters.own]\nrun = \"x\"\n[adapters.ext]\nuser = \"100\"\n",
    );
    let config = parse(&text).unwrap();
    assert_eq!(found(&config, Serves::Adapters, &process(100, 1, &[]), None).unwrap(), "adapter:ext");
    assert_eq!(found(&config, Serves::Adapters, &process(0, 0, &[]), None), Err(MatchError::Unknown));
}

#[test]
fn rights_are_those_of_the_file() {
    let config = parse(&with(
        r#"
        [apps.a]
        user = "100"
        send = ["t.*"]
        inbox = ["i"]
        [operators.o]
        user = "100"
        can = ["read"]
        [adapters.x]
        run = "x"
        send = ["u"]
        [inboxes.i]
        "#,
    ))
    .unwrap();
    let peer = process(100, 1, &[]);
    let app = config.match_principal(Serves::Apps, &peer, None, &()).unwrap();
    assert!(app.send_permit("t.a").is_some() && app.send_permit("u").is_none());
    assert!(app.queue_permit("i").is_some() && app.queue_permit("x").is_none());
    assert!(app.operator_permit(OperatorRight::Read).is_none());
    let operator = config.match_principal(Serves::Operators, &peer, None, &()).unwrap();
    assert!(operator.operator_permit(OperatorRight::Read).is_some());
    assert!(operator.operator_permit(OperatorRight::Operate).is_none());
    assert!(operator.send_permit("t.a").is_none() && operator.queue_permit("i").is_none());
    let adapter = Principal::Adapter(Arc::clone(&config.adapters["x"]));
    assert!(adapter.send_permit("u").is_some() && adapter.queue_permit("x").is_some());
    assert!(adapter.queue_permit("i").is_none());
}

#[test]
fn debug_shows_no_digest_of_a_token() {
    let config =
        parse(&with(&format!("[apps.a]\nuser = \"1\"\ntoken_sha256 = \"{}\"\n", digest("t")))).unwrap();
    let shown = format!("{:?}", config.apps["a"].selector);
    assert_eq!(
        shown,
        "Selector { user: Some(1), group: None, spiffe: None, exe: None, unit: None, cgroup: None, token: true }"
    );
}
