//! Every version at once, each a session of the same adapter and of the same QuickFIX, while all of them are killed in turn.

use std::collections::BTreeMap;

use super::*;

/// The session's name, which is also our CompID, and what it speaks.
const VERSIONS: [(&str, &str, Option<&str>); 8] = [
    ("V40", "FIX.4.0", None),
    ("V41", "FIX.4.1", None),
    ("V42", "FIX.4.2", None),
    ("V43", "FIX.4.3", None),
    ("V44", "FIX.4.4", None),
    ("V50", "FIXT.1.1", Some("FIX.5.0")),
    ("V50SP1", "FIXT.1.1", Some("FIX.5.0SP1")),
    ("V50SP2", "FIXT.1.1", Some("FIX.5.0SP2")),
];
/// Orders of each session, and reports, between two kills.
const CHUNK: u32 = 5;
/// Each is killed twice.
const ROUNDS: u32 = 8;
/// In the long form each version sees a thousand each way, as 4.4 does in the short one.
const ROUNDS_LONG: u32 = 200;

/// Orders with these numbers in every session.
fn send_to_all(gateway: &Gateway, numbers: std::ops::RangeInclusive<u32>) {
    send_to_each(gateway, &VERSIONS.map(|(name, ..)| name), numbers);
}

fn sessions(way: &str, port: &Port) -> String {
    let session = |(name, begin_string, application): (&str, &str, Option<&str>)| {
        let application =
            application.map(|version| format!("default_appl_ver = {version:?}, ")).unwrap_or_default();
        format!(
            "{{ name = {name:?}, sender_comp_id = {name:?}, target_comp_id = \"SELL\", heartbeat_s = 10, begin_string = {begin_string:?}, {application}{way} = \"127.0.0.1:{port}\" }}"
        )
    };
    format!("sessions = [{}]", VERSIONS.map(session).join(", "))
}

fn every_version(role: &'static str, confirm: &str, more: &[&str], rounds: u32) {
    let port = Port::reserve();
    let builder = Gateway::builder();
    let directory = builder.dir().join("partner");
    let Some(partner) = Partner::new(role, &port, &directory, more) else { return skipped(PACKAGE) };
    let named = |(name, begin_string, application): (&str, &str, Option<&str>)| {
        let application = application.map(|version| format!("/{version}")).unwrap_or_default();
        format!("{name}={begin_string}{application}")
    };
    let mut partner = partner.sessions(&VERSIONS.map(named));
    partner.start();
    let way = if role == "acceptor" { "connect" } else { "listen" };
    let mut gateway = builder
        .app("desk", &["orders.new"], &["fills"])
        .inbox("fills", "order = \"strict\"\nwindow = 200")
        .adapter(
            "venue",
            &format!(
                "run = \"gatepost-fix\"\norder = \"key\"\nwindow = 64\nsend = [\"org.fixtrading.*\"]\nconfirm = \"{confirm}\"\nretry = {{ initial = \"50ms\", max = \"1s\" }}"
            ),
            &sessions(way, &port),
        )
        .route("desk", &["venue"])
        .route("venue", &["fills"])
        .start();
    let count = rounds * CHUNK;
    kills::in_turn(&mut gateway, &mut partner, rounds, CHUNK, send_to_all);
    let took = partner.took();
    for (name, ..) in VERSIONS {
        let of_session: Vec<_> = took.iter().filter(|taken| taken.field(49) == Some(name)).cloned().collect();
        kills::assert_all_came(name, count, &of_session);
    }
    // What is still on its way in comes; then each session's is all there, once, in the order in which it was sent.
    let mut came: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let expected: Vec<String> = (1..=count).map(|number| format!("E{number}")).collect();
    until_within(Duration::from_secs(120), "all reports are there", || {
        for event in drain_fills(&gateway) {
            let name = event["fixsession"].as_str().unwrap();
            let (_, begin_string, _) = VERSIONS.into_iter().find(|(known, ..)| *known == name).unwrap();
            assert_eq!(event["type"], format!("org.fixtrading.{begin_string}.8"));
            came.entry(name.to_owned()).or_default().extend(kills::execution(&event));
        }
        let is_whole =
            |(name, ..): (&str, _, _)| came.get(name).is_some_and(|all| all.len() >= expected.len());
        VERSIONS.into_iter().all(is_whole).then_some(())
    });
    for (name, all) in &came {
        assert_eq!(all, &expected, "{name}: each once, in order");
    }
    // No gap is left: what comes next is confirmed at once.
    send_to_all(&gateway, count + 1..=count + 1);
    gateway.until_settled("venue");
    gateway.audit_verifies();
}

#[test]
fn every_version_as_initiator_with_everybody_killed_in_turn() {
    every_version("acceptor", "business", &["answer"], ROUNDS);
}

#[test]
fn every_version_as_acceptor_with_everybody_killed_in_turn() {
    every_version("initiator", "transport", &[], ROUNDS);
}

#[test]
#[ignore = "long: make test-long"]
fn a_thousand_each_way_in_every_version() {
    every_version("acceptor", "transport", &[], ROUNDS_LONG);
    every_version("initiator", "business", &["answer"], ROUNDS_LONG);
}
