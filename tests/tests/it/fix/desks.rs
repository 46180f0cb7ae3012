//! Sessions that differ only in SubIDs and LocationIDs (50, 57, 142, 143): desks of one firm, at one address.

use super::operators::state;
use super::*;

/// The session's name, which is also our SenderSubID, and the partner's; all else is the same.
const DESKS: [(&str, &str); 2] = [("equity", "floor"), ("bonds", "floor")];

#[test]
fn two_sessions_that_differ_in_a_sub_id_only_are_kept_apart() {
    let port = Port::reserve();
    let builder = Gateway::builder();
    let directory = builder.dir().join("partner");
    let Some(partner) = Partner::new("initiator", &port, &directory, &[]) else { return skipped(PACKAGE) };
    let theirs = DESKS.map(|(name, floor)| format!("BUY=FIX.4.4;50={floor};57={name};143=NY"));
    let mut partner = partner.sessions(&theirs);
    let session = |(name, floor): (&str, &str)| {
        format!(
            "{{ name = {name:?}, listen = \"127.0.0.1:{port}\", begin_string = \"FIX.4.4\", sender_comp_id = \"BUY\", target_comp_id = \"SELL\", \
             sender_sub_id = {name:?}, target_sub_id = {floor:?}, sender_location_id = \"NY\", heartbeat_s = 10 }}"
        )
    };
    let gateway = builder
        .app("desk", &["orders.new"], &["fills"])
        .inbox("fills", "order = \"strict\"\nwindow = 200")
        .adapter(
            "venue",
            "run = \"gatepost-fix\"\norder = \"key\"\nwindow = 64\nsend = [\"org.fixtrading.*\"]\nretry = { initial = \"50ms\", max = \"1s\" }",
            &format!("sessions = [{}]", DESKS.map(session).join(", ")),
        )
        .route("desk", &["venue"])
        .route("venue", &["fills"])
        .start();
    // Nobody's desk, one without a desk, and one that is somewhere else.
    let logon = "35=A|34=1|49=SELL|50=floor|52=now|56=BUY|57=equity|98=0|108=30|143=NY|";
    for wrong in
        [logon.replace("57=equity", "57=fx"), logon.replace("57=equity|", ""), logon.replace("NY", "LDN")]
    {
        assert_eq!(strangers::answer(&port, &strangers::message(&wrong)), b"", "{wrong}");
    }
    partner.start();
    until("both have logged on", || (partner.logons() >= 2).then_some(()));
    for life in 0..3 {
        send_to_each(&gateway, &DESKS.map(|(name, _)| name), life * 4 + 1..=life * 4 + 4);
        partner.send_reports(life * 4 + 1, life * 4 + 4);
        if life == 0 {
            gateway.kill_adapter("venue");
            gateway.admin().post("/v1/adapters/venue/restart", &json!({}));
        }
        gateway.until_settled("venue");
    }
    let took = partner.took();
    for (name, floor) in DESKS {
        let of_desk: Vec<_> = took.iter().filter(|taken| taken.field(50) == Some(name)).cloned().collect();
        kills::assert_all_came(name, 12, &of_desk);
        assert!(
            of_desk.iter().all(|taken| taken.field(57) == Some(floor) && taken.field(142) == Some("NY")),
            "{of_desk:?}"
        );
    }
    let mut fills = Vec::new();
    until("the reports are there", || {
        fills.extend(drain_fills(&gateway));
        (fills.len() >= 24).then_some(())
    });
    for (name, _) in DESKS {
        let of_desk = fills.iter().filter(|fill| fill["fixsession"] == name);
        let came: Vec<String> = of_desk.filter_map(kills::execution).collect();
        let expected: Vec<String> = (1..=12).map(|number| format!("E{number}")).collect();
        assert_eq!(came, expected, "{name}");
    }
    gateway.audit_verifies();
}

/// As the side that connects: who answers without the ids is not the partner, unless the settings say that it may.
#[test]
fn a_venue_must_answer_with_the_sub_ids_that_it_is_known_by() {
    for (theirs, more, is_partner) in [
        (";50=G;57=TRADER", "", true),
        (";50=H;57=TRADER", "", false),
        ("", "", false),
        ("", ", check_sub_ids = false", true),
    ] {
        let port = Port::reserve();
        let builder = Gateway::builder();
        let directory = builder.dir().join("partner");
        let Some(partner) = Partner::new("acceptor", &port, &directory, &[]) else { return skipped(PACKAGE) };
        let mut partner = partner.sessions(&[format!("BUY=FIX.4.4{theirs}")]);
        partner.start();
        let session = format!(
            "connect = \"127.0.0.1:{port}\", sender_sub_id = \"TRADER\", target_sub_id = \"G\"{more}"
        );
        let gateway = gateway(builder, "", &session);
        if !is_partner {
            until("it has been turned away", || {
                gateway.log().contains("the logon is not acceptable: its CompIDs, SubIDs").then_some(())
            });
            assert_ne!(state(&gateway)["state"], "logged_on", "{theirs}");
            continue;
        }
        send_orders(&gateway, 1..=3);
        gateway.until_settled("venue");
        let took = partner.took();
        assert_eq!(took.len(), 3, "{theirs}{more}");
        assert!(took.iter().all(|taken| taken.field(50) == Some("TRADER") && taken.field(57) == Some("G")));
        partner.send_reports(1, 2);
        until("the reports are there", || (gateway.unsettled("fills") == 2).then_some(()));
    }
}
