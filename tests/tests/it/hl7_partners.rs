//! Many HL7 partners behind one queue of one adapter: those that are down, silent, slow or refuse TLS are nobody else's trouble.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::TcpListener;
use std::time::Duration;

use gatepost_tests::partner::{Manner, Partner, Protocol};
use gatepost_tests::{Gateway, note, until_within};
use serde_json::{Value, json};

/// What takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(150);

fn partner(manner: Manner) -> Partner {
    Partner::start(Protocol::Mllp, manner)
}

fn table(name: &str, address: &str, more: &str) -> String {
    format!("[[adapters.lab.settings.partners]]\nname = \"{name}\"\nconnect = \"{address}\"\n{more}\n")
}

/// An order for a partner, in that partner's lane of one patient.
fn order(partner: &str, patient: usize, number: usize) -> Value {
    let id = format!("{partner}-{patient}-{number}");
    let text = format!("MSH|^~\\&|EHR|C|LAB|H|2026||ORM^O01|{id}|P|2.5\rPID|1||{patient}\r");
    json!({
        "specversion": "1.0", "id": id, "source": "/ehr", "type": "org.hl7.v2.ORM_O01", "datacontenttype": "text/plain",
        "partitionkey": format!("{partner}/{patient}"), "hl7partner": partner, "data": text,
    })
}

/// The ids of the messages, in order.
fn send(gateway: &Gateway, events: &[Value]) -> Vec<String> {
    let mut ids = Vec::with_capacity(events.len());
    for some in events.chunks(500) {
        let accepted = gateway.app().try_batch(some).unwrap().expect(202);
        let accepted = accepted["messages"].as_array().unwrap();
        ids.extend(accepted.iter().map(|message| message["id"].as_str().unwrap().to_owned()));
    }
    ids
}

/// What one call of an operator's says of the partners.
fn partners(gateway: &Gateway, words: &[&str]) -> Value {
    let call = [&["adapter", "call", "lab", "partners", "--json"], words].concat();
    let said = gateway.cli(&call);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    serde_json::from_slice(&said.stdout).unwrap()
}

/// Whether the partner has these messages of each patient, in order. `repeats`: some may have come more than once.
fn has_all(partner: &Partner, name: &str, patients: usize, each: usize, repeats: bool) -> bool {
    let mut lanes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (id, _) in partner.taken() {
        let (lane, number) = id.rsplit_once('-').unwrap();
        let lane = lanes.entry(lane.to_owned()).or_default();
        let number = number.parse().unwrap();
        if !(repeats && lane.contains(&number)) {
            lane.push(number);
        }
    }
    for (lane, numbers) in &lanes {
        assert!(lane.starts_with(&format!("{name}-")), "{lane} at {name}");
        assert!(numbers.iter().copied().eq(0..numbers.len()), "{lane}: {numbers:?}");
    }
    lanes.len() == patients && lanes.values().all(|numbers| numbers.len() == each)
}

fn open_files(pid: &Value) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn peak_kib(pid: &Value) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn of_three_hundred_partners_those_that_are_away_hold_up_nobody_and_get_theirs_when_they_are_back() {
    const PARTNERS: usize = 300;
    const PATIENTS: usize = 4;
    const EACH: usize = 3;
    let dir = tempfile::tempdir().unwrap();
    let authority = dir.path().join("ca.pem");
    let certificate = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(&authority, certificate.cert.pem()).unwrap();
    // Every tenth is away: nothing listens there, or it takes messages and is silent, or it hangs up when TLS begins.
    let mut good = Vec::new();
    let (mut down, mut silent, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    let (mut tables, mut reserved) = (String::new(), Vec::new());
    for number in 0..PARTNERS {
        let name = format!("p{number}");
        let (address, more) = match number % 30 {
            0 => {
                // At an address where nobody else takes the port while nothing listens there.
                let listener = TcpListener::bind("127.0.0.2:0").unwrap();
                let address = listener.local_addr().unwrap();
                down.push((name.clone(), address));
                reserved.push(listener);
                (address, String::new())
            }
            10 => {
                let partner = partner(Manner::Hang);
                let address = partner.address();
                silent.push((name.clone(), partner));
                // Who answers has all the time that it needs on a busy machine, and gets nothing twice.
                (address, "ack_timeout_ms = 3000".to_owned())
            }
            20 => {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let address = listener.local_addr().unwrap();
                std::thread::spawn(move || listener.incoming().map_while(Result::ok).for_each(drop));
                plain.push(name.clone());
                (address, format!("tls = {{ ca_files = [{authority:?}] }}"))
            }
            _ => {
                let partner = partner(Manner::Good);
                let address = partner.address();
                good.push((name.clone(), partner));
                (address, String::new())
            }
        };
        let _ = writeln!(tables, "{}", table(&name, &address.to_string(), &more));
    }
    drop(reserved);
    let gateway = Gateway::builder()
        .app("ehr", &["org.hl7.v2.*"], &[])
        .adapter(
            "lab",
            "run = \"gatepost-hl7\"\norder = \"key\"\nmax_in_flight = 600",
            "connect_timeout_ms = 2000\nidle_disconnect_ms = 2000",
        )
        .table("", &tables)
        .route("ehr", &["lab"])
        .start();
    let numbers = (0..EACH).flat_map(|n| (0..PATIENTS).map(move |patient| (patient, n)));
    let orders: Vec<Value> = numbers
        .flat_map(|(patient, n)| (0..PARTNERS).map(move |number| order(&format!("p{number}"), patient, n)))
        .collect();
    let ids = send(&gateway, &orders);
    until_within(PATIENCE, "all who are there have theirs", || {
        good.iter().all(|(name, partner)| has_all(partner, name, PATIENTS, EACH, false)).then_some(())
    });
    let pid = gateway.adapter("lab")["pid"].clone();
    until_within(PATIENCE, "an operator sees who is away", || {
        let told = partners(&gateway, &["standing=away"]);
        let told = told.get("answer").unwrap_or(&told);
        (told["in_all"] == json!({"away": 30, "new": 0, "up": 270})).then_some(())
    });
    assert_eq!(gateway.queue("lab")["tripped"], Value::Null, "the destination is not away");
    let away = partners(&gateway, &[&format!("partner={}", down[0].0)]).to_string();
    assert!(away.contains("away") && away.contains("last_error"), "{away}");
    until_within(PATIENCE, "the gateway knows what the others have", || {
        (gateway.unsettled("lab") == (30 * PATIENTS * EACH) as u64).then_some(())
    });
    // Nobody connects to those that are there any more.
    until_within(PATIENCE, "idle connections are closed", || (open_files(&pid) < 100).then_some(()));
    note(&format!("{PARTNERS} partners, 30 of them away: {} KiB at most", peak_kib(&pid)));
    // Those that are down cost nobody an attempt, whatever the number of probes. One may be on its way just now.
    for (order, id) in orders.iter().zip(&ids) {
        if down.iter().any(|(name, _)| order["hl7partner"] == name.as_str()) {
            until_within(PATIENCE, "between two probes it waits, and none is charged", || {
                let delivery = gateway.delivery(id);
                assert_eq!(delivery["attempts"], 0, "{delivery}");
                (delivery["state"] == "waiting").then_some(())
            });
        }
    }
    for (name, partner) in &silent {
        assert!(partner.asked() > 0, "{name}");
        partner.behave(Manner::Good);
    }
    let back: Vec<_> = down
        .into_iter()
        .map(|(name, address)| {
            let listener = TcpListener::bind(address).unwrap();
            (name, Partner::serve(Protocol::Mllp, Manner::Good, listener))
        })
        .collect();
    until_within(PATIENCE, "those that are back have theirs", || {
        let down = back.iter().all(|(name, partner)| has_all(partner, name, PATIENTS, EACH, false));
        let silent = silent.iter().all(|(name, partner)| has_all(partner, name, PATIENTS, EACH, true));
        (down && silent).then_some(())
    });
    until_within(PATIENCE, "the gateway knows", || {
        (gateway.unsettled("lab") == (plain.len() * PATIENTS * EACH) as u64).then_some(())
    });
    assert_eq!(gateway.adapter("lab")["pid"], pid, "the same process all the time");
    let log = gateway.log();
    let refused: Vec<&str> = log.lines().filter(|line| line.contains("too many connections")).collect();
    assert!(refused.is_empty(), "it never asks for more than the gateway grants: {refused:#?}");
    for event in gateway.audit_log() {
        let refused = plain.iter().any(|name| event.to_string().contains(name.as_str()));
        assert!(!refused, "the log has no names of partners");
    }
    gateway.audit_verifies();
}

#[test]
fn a_message_finds_its_partner_by_attribute_or_by_its_receiver_and_a_reload_adds_and_removes_one() {
    let (north, south, west) = (partner(Manner::Good), partner(Manner::Good), partner(Manner::Good));
    let receivers = "receivers = [{ application = \"LAB\", facility = \"S\" }]";
    let config = |north: &str, rest: &str| {
        Gateway::builder()
            .app("ehr", &["org.hl7.v2.*"], &[])
            .adapter("lab", "run = \"gatepost-hl7\"\norder = \"key\"", "")
            .table("", north)
            .table("", &table("south", &south.address().to_string(), receivers))
            .table("", rest)
            .route("ehr", &["lab"])
    };
    let of_north = table("north", &north.address().to_string(), "");
    let gateway = config(&of_north, "").start();
    let accepted = |event: &Value| {
        gateway.app().event(event).expect(202)["messages"][0]["id"].as_str().unwrap().to_owned()
    };
    let mut addressed = order("north", 1, 1);
    addressed.as_object_mut().unwrap().remove("hl7partner");
    for (facility, event_id) in [("S", "a"), ("X", "b")] {
        let text = format!("MSH|^~\\&|EHR|C|LAB|{facility}|2026||ORM^O01|{event_id}|P|2.5\r");
        (addressed["data"], addressed["id"]) = (text.into(), event_id.into());
        let id = accepted(&addressed);
        let ended = gateway.until_state(&id, if facility == "S" { "delivered" } else { "dead" });
        if facility == "X" {
            assert!(ended.to_string().contains("known are north, south"), "{ended}");
        }
    }
    let unknown = accepted(&order("west", 1, 0));
    assert!(gateway.until_state(&unknown, "dead").to_string().contains("no partner `west`"));
    gateway.until_state(&accepted(&order("north", 1, 0)), "delivered");
    let text = std::fs::read_to_string(gateway.config()).unwrap();
    let changed = text.replace(of_north.trim(), table("west", &west.address().to_string(), "").trim());
    assert_ne!(text, changed);
    std::fs::write(gateway.config(), changed).unwrap();
    gateway.cli_ok(&["reload"]);
    gateway.until_state(&accepted(&order("west", 1, 1)), "delivered");
    let gone = accepted(&order("north", 1, 1));
    assert!(gateway.until_state(&gone, "dead").to_string().contains("known are west, south"));
    assert_eq!((north.taken().len(), south.taken().len(), west.taken().len()), (1, 1, 1));
    // What is wrong is said of the partner's table.
    let text = std::fs::read_to_string(gateway.config()).unwrap();
    std::fs::write(gateway.config(), text.replace("name = \"south\"", "name = \"west\"")).unwrap();
    let checked = gateway.cli(&["check"]);
    let said = String::from_utf8_lossy(&checked.stdout) + String::from_utf8_lossy(&checked.stderr);
    assert!(!checked.status.success() && said.contains("partners[2].name"), "{said}");
    gateway.audit_verifies();
}
