//! A session that is logged on and cannot send, beside one that is well.

use super::operators::sessions;
use super::*;

/// What may be unconfirmed, and more than all places of the adapter behind it.
const KEPT: u32 = 256;
const SILENT: u32 = KEPT + 200;
const WELL: u32 = 50;

/// Its partner stands still: it reads nothing and confirms nothing. Each of its orders is a lane of its own, so nothing but the places that they
/// take could keep the other session's orders back.
#[test]
fn a_session_whose_partner_confirms_nothing_keeps_no_place_from_the_others() {
    let ports = [Port::reserve(), Port::reserve()];
    let builder = Gateway::builder();
    let partner = |name: &str, port: &Port| {
        let partner = Partner::new("acceptor", port, &builder.dir().join(name), &[])?;
        let mut partner = partner.sessions(&[format!("{name}=FIX.4.4")]);
        partner.start();
        Some(partner)
    };
    let (Some(well), Some(silent)) = (partner("WELL", &ports[0]), partner("SILENT", &ports[1])) else {
        return skipped(PACKAGE);
    };
    let session = |name: &str, port: &Port| {
        format!(
            "{{ name = {name:?}, begin_string = \"FIX.4.4\", sender_comp_id = {name:?}, target_comp_id = \"SELL\", keep_messages = {KEPT}, heartbeat_s = 3600, \
             connect = \"127.0.0.1:{port}\" }}"
        )
    };
    let gateway = builder
        .app("desk", &["orders.new"], &[])
        .adapter(
            "venue",
            "run = \"gatepost-fix\"\norder = \"key\"\nmax_in_flight = 64",
            &format!("sessions = [{}, {}]", session("WELL", &ports[0]), session("SILENT", &ports[1])),
        )
        .route("desk", &["venue"])
        .start();
    until("both are logged on", || {
        ["WELL", "SILENT"].iter().all(|name| sessions(&gateway)[name]["state"] == "logged_on").then_some(())
    });
    silent.signal(Signal::SIGSTOP);
    let orders = |name: &str, count: u32, lane: &dyn Fn(u32) -> String| -> Vec<Value> {
        let order = |number| {
            let mut event = order(number);
            event["id"] = format!("{name}-O{number}").into();
            event["fixsession"] = name.into();
            event["partitionkey"] = lane(number).into();
            event
        };
        (1..=count).map(order).collect()
    };
    let many = orders("SILENT", SILENT, &|number| format!("SILENT-{number}"));
    gateway.app().try_batch(&many).unwrap().expect(202);
    until("it is held up", || sessions(&gateway)["SILENT"]["held_up"].as_str().map(str::to_owned));
    gateway.app().try_batch(&orders("WELL", WELL, &|_| "WELL".to_owned())).unwrap().expect(202);
    until("the other session has sent all", || (well.took().len() == WELL as usize).then_some(()));
    let state = sessions(&gateway)["SILENT"].clone();
    assert_eq!(state["held_up"], "has sent as much as its partner may leave unconfirmed", "{state}");
    assert_eq!(state["state"], "logged_on", "the partner was given up before: {state}");
    assert!(state["waiting_to_be_sent"].as_u64().unwrap() <= 16, "{state}");
    assert!(gateway.log().contains("what is to be sent waits in the gateway"), "{}", gateway.log());

    silent.signal(Signal::SIGCONT);
    gateway.until_settled("venue");
    until("it goes on", || sessions(&gateway)["SILENT"]["held_up"].is_null().then_some(()));
    assert_none_dead(&gateway);
    let mut came: Vec<String> = silent.took().iter().map(|taken| taken.order().to_owned()).collect();
    assert_eq!(came.len(), SILENT as usize, "none twice");
    came.sort_unstable();
    let mut expected: Vec<String> = (1..=SILENT).map(|number| format!("O{number}")).collect();
    expected.sort_unstable();
    assert_eq!(came, expected);
    gateway.audit_verifies();
}
