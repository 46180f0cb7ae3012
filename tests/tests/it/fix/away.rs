//! Sessions that are down beside one that is up, in one adapter that dies.

use super::*;

/// More than a window of them.
const WAITING: u32 = 70;

/// An adapter with two sessions, of which one's partner is there.
struct Venue {
    gateway: Gateway,
    present: Partner,
    absent: Partner,
}

impl Venue {
    fn start(order: &str, lines: &str) -> Option<Self> {
        let (here, away) = (Port::reserve(), Port::reserve());
        let builder = Gateway::builder();
        let partner = |name: &str, port: &Port| {
            let partner = Partner::new("acceptor", port, &builder.dir().join(name), &[])?;
            Some(partner.sessions(&[format!("{name}=FIX.4.4")]))
        };
        let (mut present, absent) = (partner("HERE", &here)?, partner("AWAY", &away)?);
        present.start();
        let session = |name: &str, port: &Port| {
            format!(
                "{{ name = {name:?}, begin_string = \"FIX.4.4\", sender_comp_id = {name:?}, target_comp_id = \"SELL\", heartbeat_s = 10, connect = \"127.0.0.1:{port}\" }}"
            )
        };
        let gateway = builder
            .app("desk", &["orders.new"], &[])
            .adapter(
                "venue",
                &format!("run = \"gatepost-fix\"\norder = {order:?}\nwindow = 64\n{lines}"),
                &format!("sessions = [{}, {}]", session("HERE", &here), session("AWAY", &away)),
            )
            .route("desk", &["venue"])
            .start();
        Some(Self { gateway, present, absent })
    }

    fn send(&self, name: &str, number: u32) -> String {
        let id = format!("{name}-O{number}");
        accept(&self.gateway, number, &json!({ "id": id, "fixsession": name, "partitionkey": name }))
    }

    fn kill_adapter(&self) {
        let logons = self.present.logons();
        assert!(self.gateway.kill_adapter("venue"));
        self.gateway.admin().post("/v1/adapters/venue/restart", &json!({}));
        until("it has logged on again", || (self.present.logons() > logons).then_some(()));
    }
}

fn orders(partner: &Partner) -> Vec<String> {
    partner.took().iter().map(|taken| taken.order().to_owned()).collect()
}

fn numbers(count: u32) -> Vec<String> {
    (1..=count).map(|number| format!("O{number}")).collect()
}

/// What waits for the partner that is away keeps nothing from the other, and no death is charged to it.
fn dies_beside_one_that_is_away(lines: &str) {
    const DEATHS: u32 = 5;
    let Some(mut venue) = Venue::start("key", lines) else { return skipped(PACKAGE) };
    let waiting: Vec<String> = (1..=WAITING).map(|number| venue.send("AWAY", number)).collect();
    for death in 1..=DEATHS {
        let message = venue.send("HERE", death);
        venue.gateway.until_state(&message, "delivered");
        venue.kill_adapter();
    }
    assert_none_dead(&venue.gateway);
    let last = venue.send("HERE", DEATHS + 1);
    venue.gateway.until_state(&last, "delivered");
    let untroubled = venue.gateway.delivery(&last)["attempts"].clone();
    venue.absent.start();
    for message in &waiting {
        let delivery = venue.gateway.until_state(message, "delivered");
        assert_eq!(delivery["attempts"], untroubled, "{delivery}");
    }
    assert_eq!(orders(&venue.present), numbers(DEATHS + 1));
    assert_eq!(orders(&venue.absent), numbers(WAITING));
    venue.gateway.audit_verifies();
}

#[test]
fn a_session_that_is_down_keeps_nothing_from_the_others_and_is_charged_with_no_death() {
    dies_beside_one_that_is_away("");
}

#[test]
fn the_same_where_the_partner_is_asked_about_what_is_in_doubt() {
    dies_beside_one_that_is_away("on_doubt = \"query\"");
}

#[test]
fn the_same_where_what_is_in_doubt_is_held() {
    dies_beside_one_that_is_away("on_doubt = \"hold\"");
}

/// All sessions are one lane: it waits for the one that is down, and dies of nothing.
#[test]
fn with_one_lane_for_all_sessions_it_waits_for_the_one_that_is_down() {
    const EACH: u32 = 30;
    let Some(mut venue) = Venue::start("strict", "") else { return skipped(PACKAGE) };
    let mut sent = Vec::new();
    let first = venue.send("HERE", 1);
    let untroubled = venue.gateway.until_state(&first, "delivered")["attempts"].clone();
    for number in 1..=EACH {
        sent.push(venue.send("AWAY", number));
        sent.push(venue.send("HERE", number + 1));
    }
    let gone_back = || {
        let delivery = venue.gateway.delivery(&sent[0]);
        delivery["history"].as_array().unwrap().iter().filter(|step| step["event"] == "retry").count()
    };
    for _ in 0..5 {
        let before = gone_back();
        venue.kill_adapter();
        until("it has gone back", || (gone_back() > before).then_some(()));
    }
    assert_none_dead(&venue.gateway);
    assert_eq!(venue.gateway.delivery(&sent[1])["state"], "waiting");
    venue.absent.start();
    for message in &sent {
        let delivery = venue.gateway.until_state(message, "delivered");
        assert_eq!(delivery["attempts"], untroubled, "{delivery}");
    }
    assert_eq!(orders(&venue.present), numbers(EACH + 1));
    assert_eq!(orders(&venue.absent), numbers(EACH));
    venue.gateway.audit_verifies();
}

/// The partner comes and goes while orders come; they arrive in order, and none is charged.
#[test]
fn what_comes_while_a_session_is_down_goes_in_order_when_it_is_up() {
    const ROUNDS: u32 = 4;
    const EACH: u32 = 100;
    let port = Port::reserve();
    let builder = Gateway::builder();
    let directory = builder.dir().join("partner");
    let Some(mut partner) = Partner::new("acceptor", &port, &directory, &[]) else { return skipped(PACKAGE) };
    partner.start();
    let gateway = gateway(builder, "retry = { attempts = 2 }", &format!("connect = \"127.0.0.1:{port}\""));
    send_orders(&gateway, 1..=1);
    gateway.until_settled("venue");
    for round in 0..ROUNDS {
        partner.kill();
        send_orders(&gateway, round * EACH + 2..=(round + 1) * EACH + 1);
        partner.start();
        gateway.until_settled("venue");
    }
    assert_none_dead(&gateway);
    let mut came = orders(&partner);
    // What was written into the connection's end came again, marked.
    kills::assert_all_came("orders", ROUNDS * EACH + 1, &partner.took());
    came.dedup();
    assert_eq!(came, numbers(ROUNDS * EACH + 1));
    gateway.audit_verifies();
}
