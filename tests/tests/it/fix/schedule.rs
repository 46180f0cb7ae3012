//! Windows of a session: what is sent while none is open, and when the numbers begin anew.

use super::operators::state;
use super::*;

const HOUR_S: i64 = 3600;
/// Longer than everything takes to start anew and log on.
const ENDS_IN_S: i64 = 20;

/// The time of day so many seconds from now, in UTC.
fn clock(from_now_s: i64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(now.strict_add_signed(from_now_s));
    humantime::format_rfc3339_seconds(at).to_string()[11..19].to_owned()
}

fn schedule(start: &str, end: &str) -> String {
    format!("schedule = {{ zone = \"UTC\", start = \"{start}\", end = \"{end}\" }}")
}

/// Everything starts anew, with another schedule.
fn start_with(gateway: &mut Gateway, before: &mut String, after: String) {
    let text = std::fs::read_to_string(gateway.config()).unwrap();
    assert!(text.contains(&*before));
    std::fs::write(gateway.config(), text.replace(&*before, &after)).unwrap();
    *before = after;
    gateway.restart();
}

fn until_logged_on(gateway: &Gateway) -> (u64, u64) {
    let state =
        until("it has logged on", || Some(state(gateway)).filter(|state| state["state"] == "logged_on"));
    (state["epoch"].as_u64().unwrap(), state["next_out"].as_u64().unwrap())
}

fn took(partner: &Partner) -> Vec<String> {
    assert!(partner.took().iter().all(|taken| !taken.is_flagged()), "{:?}", partner.took());
    partner.took().iter().map(|taken| taken.order().to_owned()).collect()
}

#[test]
fn what_is_sent_out_of_a_window_goes_when_one_opens_and_only_then_numbers_begin_anew() {
    let mut settings = schedule(&clock(-HOUR_S), &clock(HOUR_S));
    let pair = pair("acceptor", &[], "", &format!(", {settings}"));
    let Some((mut gateway, mut partner)) = pair else { return skipped(PACKAGE) };
    send_orders(&gateway, 1..=2);
    gateway.until_settled("venue");
    let (epoch, before) = until_logged_on(&gateway);
    assert_eq!(epoch, 1);
    // Another process within the same window goes on.
    let logons = partner.logons();
    gateway.kill_adapter("venue");
    gateway.admin().post("/v1/adapters/venue/restart", &json!({}));
    until("it has logged on again", || (partner.logons() > logons).then_some(()));
    let (epoch, after) = until_logged_on(&gateway);
    assert!(epoch == 1 && after > before, "{epoch} {before} {after}");

    // The window is over: what comes waits, whatever starts.
    assert!(gateway.stop().success());
    let logons = partner.logons();
    let over = schedule(&clock(-2 * HOUR_S), &clock(-HOUR_S));
    start_with(&mut gateway, &mut settings, over);
    send_orders(&gateway, 3..=3);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!((state(&gateway)["epoch"].as_u64(), partner.logons()), (Some(1), logons));
    assert_eq!((took(&partner), gateway.unsettled("venue")), (vec!["O1".to_owned(), "O2".to_owned()], 1));

    // The next one opens in a while. Both sides begin at 1 with it.
    assert!(gateway.stop().success());
    partner.forget();
    let opens = SystemTime::now() + Duration::from_secs(8);
    let start = clock(8);
    start_with(&mut gateway, &mut settings, schedule(&start, &clock(HOUR_S)));
    send_orders(&gateway, 4..=4);
    until_within(Duration::from_secs(60), "it has logged on", || (partner.logons() > logons).then_some(()));
    // The clock was cut to the second.
    assert!(SystemTime::now() + Duration::from_secs(1) >= opens, "not before");
    gateway.until_settled("venue");
    assert_eq!(took(&partner), ["O1", "O2", "O3", "O4"]);
    assert_eq!(until_logged_on(&gateway).0, 2);
    assert_eq!(partner.took()[2].seq(), 2, "behind the Logon");

    // It ends while the process runs: the session logs out, and what comes then waits in the gateway.
    assert!(gateway.stop().success());
    start_with(&mut gateway, &mut settings, schedule(&start, &clock(ENDS_IN_S)));
    let (epoch, numbers) = until_logged_on(&gateway);
    assert!(epoch == 2 && numbers > 4, "the same window: {epoch} {numbers}");
    until_within(Duration::from_secs(60), "it logs out", || {
        partner.lines().iter().any(|line| line.contains("58=the session's window ends")).then_some(())
    });
    send_orders(&gateway, 5..=5);
    until("it is down", || (state(&gateway)["state"] == "disconnected").then_some(()));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(gateway.unsettled("venue"), 1);
    let state = state(&gateway);
    assert_eq!(
        (took(&partner).len(), &state["epoch"], &state["waiting_to_be_sent"]),
        (4, &json!(2), &json!(0))
    );
    // Until the next one.
    assert!(gateway.stop().success());
    partner.forget();
    start_with(&mut gateway, &mut settings, schedule(&clock(3), &clock(HOUR_S)));
    gateway.until_settled("venue");
    assert_eq!((took(&partner).len(), until_logged_on(&gateway).0), (5, 3));
    gateway.audit_verifies();
}
