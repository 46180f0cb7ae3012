//! Who connects and is not the partner, and what the gateway does not take.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use super::*;

/// A whole message, `|` for SOH; `52=now` becomes the time.
pub(crate) fn message(fields: &str) -> Vec<u8> {
    let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    let now = now.replace('-', "").replace('T', "-").replace('Z', "");
    let fields = fields.replace("52=now", &format!("52={now}")).replace('|', "\x01");
    let whole = format!("8=FIX.4.4\x019={}\x01{fields}", fields.len());
    let sum: u32 = whole.bytes().map(u32::from).sum();
    format!("{whole}10={:03}\x01", sum % 256).into_bytes()
}

/// What comes back until the connection is closed.
pub(crate) fn answer(port: &Port, bytes: &[u8]) -> Vec<u8> {
    let mut stream = until("it listens", || TcpStream::connect(port.address()).ok());
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    // A reset says no more than a close.
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn whoever_is_not_the_partner_is_told_nothing() {
    let port = Port::reserve();
    let builder = Gateway::builder();
    let directory = builder.dir().join("partner");
    let Some(mut partner) = Partner::new("initiator", &port, &directory, &[]) else {
        return skipped(PACKAGE);
    };
    let gateway = gateway(builder, "", &format!("listen = \"127.0.0.1:{port}\""));
    let logon = "35=A|34=1|49=SELL|52=now|56=BUY|98=0|108=30|";
    for first in [
        message(&logon.replace("SELL", "STRANGER")),
        message(&logon.replace("BUY", "OTHER")),
        message(&logon.replace("52=now", "52=20200101-00:00:00.000")),
        message("35=0|34=1|49=SELL|52=now|56=BUY|"),
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n8=FIX.4.4\x019=5\x0135=0\x0110=000\x01"
            .iter()
            .copied()
            .chain(message("35=0|34=1|49=SELL|52=now|56=BUY|"))
            .collect(),
    ] {
        assert_eq!(answer(&port, &first), b"", "{}", String::from_utf8_lossy(&first));
    }
    partner.start();
    until("QuickFIX has logged on", || (partner.logons() >= 1).then_some(()));
    // The session is up: a second connection gets no word, and the first one goes on with its numbers.
    assert_eq!(answer(&port, &message(&logon.replace("34=1", "34=99"))), b"");
    send_orders(&gateway, 1..=5);
    gateway.until_settled("venue");
    assert_eq!((partner.took().len(), partner.logons()), (5, 1));
}

/// Two partners at one address, both with a certificate of the authority: neither can log on as the other.
#[test]
fn a_certificate_is_good_for_its_own_session_only() {
    let port = Port::reserve();
    let builder = Gateway::builder();
    let certificates = Certificates::make(builder.dir());
    let directory = builder.dir().join("partner");
    let more = certificates.of_partner();
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let Some(partner) = Partner::new("initiator", &port, &directory, &more) else { return skipped(PACKAGE) };
    let mut partner = partner.sessions(&["BUY=FIX.4.4".to_owned(), "OTHER=FIX.4.4".to_owned()]);
    let [certificate, key] = &certificates.ours;
    let authority = &certificates.authority;
    let session = |name: &str, id: &str, of: &str| {
        format!(
            "{{ name = \"{name}\", sender_comp_id = \"{id}\", target_comp_id = \"SELL\", begin_string = \"FIX.4.4\", listen = \"127.0.0.1:{port}\", \
             partner_names = [\"dns:{of}.example.org\"], listen_tls = {{ client_ca_files = [{authority:?}], cert_file = {certificate:?}, key_file = {key:?} }} }}"
        )
    };
    let sessions = [session("main", "BUY", "sell"), session("other", "OTHER", "somebody")];
    let gateway = builder
        .app("desk", &["orders.new"], &["fills"])
        .inbox("fills", "")
        .adapter(
            "venue",
            "run = \"gatepost-fix\"\norder = \"strict\"\nsend = [\"org.fixtrading.*\"]",
            &format!("sessions = [{}]", sessions.join(", ")),
        )
        .route("desk", &["venue"])
        .route("venue", &["fills"])
        .start();
    partner.start();
    until("one has logged on", || (operators::state(&gateway)["state"] == "logged_on").then_some(()));
    until("the other has been turned away", || {
        gateway.log().contains("its certificate is not one of its session's partner").then_some(())
    });
    let all = gateway.admin().post("/v1/adapters/venue/calls", &json!({ "call": "sessions" })).json();
    assert_eq!(all["answer"]["other"]["state"], "disconnected", "{all}");
}

/// What has no route is not lost in silence: its sender is told.
#[test]
fn what_the_gateway_does_not_take_is_rejected() {
    let port = Port::reserve();
    let builder = Gateway::builder();
    let directory = builder.dir().join("partner");
    let Some(mut partner) = Partner::new("acceptor", &port, &directory, &[]) else { return skipped(PACKAGE) };
    partner.start();
    let session = format!(
        "sessions = [{{ name = \"main\", begin_string = \"FIX.4.4\", sender_comp_id = \"BUY\", target_comp_id = \"SELL\", connect = \"127.0.0.1:{port}\" }}]"
    );
    let gateway = builder
        .app("desk", &["orders.new"], &["fills"])
        .inbox("fills", "")
        .adapter(
            "venue",
            "run = \"gatepost-fix\"\norder = \"strict\"\nsend = [\"org.fixtrading.*\"]",
            &session,
        )
        .route("desk", &["venue"])
        .route_when("venue", "type.endsWith(\".9\")", &["fills"])
        .start();
    until("it has logged on", || (partner.logons() == 1).then_some(()));
    partner.send_reports(1, 2);
    let rejects = until("both are rejected", || {
        let rejects: Vec<_> =
            partner.took().into_iter().filter(|taken| taken.field(35) == Some("j")).collect();
        (rejects.len() == 2).then_some(rejects)
    });
    assert_eq!((rejects[0].field(372), rejects[0].field(380)), (Some("8"), Some("4")));
    // The session goes on.
    send_orders(&gateway, 1..=1);
    gateway.until_settled("venue");
    assert_eq!(partner.took().last().unwrap().order(), "O1");
}
