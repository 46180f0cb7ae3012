//! A thousand orders each way, over TLS, while adapter, gateway and partner are killed in turn.

use super::*;

const ORDERS: u32 = 1000;
const CHUNK: u32 = 50;

/// Each at least once, and more than once only marked.
pub(crate) fn assert_all_came(what: &str, count: u32, took: &[partner::Taken]) {
    for number in 1..=count {
        let id = format!("O{number}");
        let came: Vec<_> = took.iter().filter(|taken| taken.order() == id).collect();
        assert!(!came.is_empty(), "{what}: {id} never came");
        let unmarked = came.iter().filter(|taken| !taken.is_flagged()).count();
        assert!(unmarked <= 1, "{what}: {id} came {unmarked} times unmarked");
    }
}

/// Orders and reports in chunks; after each somebody dies, but for the fourth: no delivery sees three deaths of the adapter, which the
/// gateway would take for its fault (`poison`).
pub(crate) fn in_turn(
    gateway: &mut Gateway,
    partner: &mut Partner,
    rounds: u32,
    chunk: u32,
    send: impl Fn(&Gateway, std::ops::RangeInclusive<u32>),
) {
    for round in 0..rounds {
        let (first, last) = (round * chunk + 1, (round + 1) * chunk);
        send(gateway, first..=last);
        partner.send_reports(first, last);
        std::thread::sleep(Duration::from_millis(u64::from(round % 5) * 20));
        match round % 4 {
            0 => {
                gateway.kill_adapter("venue");
                gateway.admin().post("/v1/adapters/venue/restart", &json!({}));
            }
            1 => {
                gateway.kill();
                gateway.restart();
            }
            2 => {
                partner.kill();
                partner.start();
            }
            _ => gateway.until_settled("venue"),
        }
    }
    gateway.until_settled("venue");
    assert_none_dead(gateway);
}

fn kills(role: &'static str, confirm: &str, answer: bool) {
    let port = Port::reserve();
    let builder = Gateway::builder();
    let certificates = Certificates::make(builder.dir());
    let directory = builder.dir().join("partner");
    let mut more = certificates.of_partner();
    more.extend(answer.then(|| "answer".to_owned()));
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let Some(mut partner) = Partner::new(role, &port, &directory, &more) else { return skipped(PACKAGE) };
    let [certificate, key] = &certificates.ours;
    let authority = &certificates.authority;
    let session = if role == "acceptor" {
        format!(
            "connect = \"127.0.0.1:{port}\", tls = {{ ca_files = [{authority:?}], cert_file = {certificate:?}, key_file = {key:?} }}"
        )
    } else {
        format!(
            "listen = \"127.0.0.1:{port}\", listen_tls = {{ client_ca_files = [{authority:?}], cert_file = {certificate:?}, key_file = {key:?} }}"
        )
    };
    partner.start();
    let lines = format!("confirm = \"{confirm}\"\nretry = {{ initial = \"50ms\", max = \"1s\" }}");
    let mut gateway = gateway(builder, &lines, &session);
    in_turn(&mut gateway, &mut partner, ORDERS / CHUNK, CHUNK, send_orders);
    assert_all_came("out", ORDERS, &partner.took());
    // What is still on its way in comes; then it is all there, once, in the order in which it was sent.
    let expected: Vec<String> = (1..=ORDERS).map(|number| format!("E{number}")).collect();
    let mut came: Vec<String> = Vec::new();
    until_within(Duration::from_secs(120), "all reports are there", || {
        came.extend(drain_fills(&gateway).iter().filter_map(execution));
        (came.len() >= expected.len()).then_some(())
    });
    assert_eq!(came, expected, "each once, in order");
    // No gap is left: what comes next is confirmed at once.
    send_orders(&gateway, ORDERS + 1..=ORDERS + 1);
    gateway.until_settled("venue");
    gateway.audit_verifies();
}

/// ExecID (17) of a report that the test itself sent, not of an answer to an order.
pub(crate) fn execution(event: &Value) -> Option<String> {
    use base64::Engine as _;
    let raw = base64::engine::general_purpose::STANDARD.decode(event["data_base64"].as_str()?).ok()?;
    let text = String::from_utf8(raw).ok()?;
    let id = text.split('\x01').find_map(|field| field.strip_prefix("17="))?;
    id.starts_with('E').then(|| id.to_owned())
}

#[test]
fn a_thousand_each_way_as_initiator_with_everybody_killed_in_turn() {
    kills("acceptor", "transport", false);
}

#[test]
fn a_thousand_each_way_as_acceptor_with_everybody_killed_in_turn() {
    kills("initiator", "business", true);
}
