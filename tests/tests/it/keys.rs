//! The seal key and erasing, by command on a running gateway: killed in the middle again and again, everything opens; what was erased
//! is nowhere.

use std::collections::BTreeSet;
use std::time::Duration;

use gatepost_faults::SEAL_KEY_POINTS;
use gatepost_tests::{Builder, Dice, Gateway, note, settle_item};
use serde_json::{Value, json};

use crate::order_event;

/// Rotations that are killed.
const ROUNDS: usize = 12;
/// … in the long form.
const ROUNDS_LONG: usize = 200;
/// Most that passes between the command and the kill, milliseconds.
const KILL_WITHIN_MS: usize = 60;

fn builder() -> Builder {
    Gateway::builder().app("shop", &["*"], &["desk"]).inbox("desk", "").route("shop", &["desk"])
}

fn gateway() -> Gateway {
    builder().start()
}

fn send(gateway: &Gateway, id: &str, subject: &str) -> String {
    let mut event = order_event(id, "k", &json!(format!("canary-{id}")));
    event["subject"] = json!(subject);
    let answer = gateway.app().event(&event).expect(202);
    answer["messages"][0]["id"].as_str().unwrap().to_owned()
}

/// Delivers the next one, with a reply and evidence.
fn deliver(gateway: &Gateway) {
    let leased = gateway.lease("desk", 1).remove(0);
    let mut done = settle_item(&leased, "delivered");
    done["reply"] = json!({ "datacontenttype": "text/plain", "data": "canary-reply" });
    gateway.app().post("/v1/settle", &json!({ "results": [done] })).expect(200);
}

fn reads(gateway: &Gateway, id: &str) -> u16 {
    gateway.admin().get(&format!("/v1/messages/{id}/data")).status
}

#[test]
fn erasing_takes_a_message_from_everywhere_and_the_log_verifies() {
    let mut gateway = gateway();
    let (gone, kept) = (send(&gateway, "1", "patient"), send(&gateway, "2", "other"));
    deliver(&gateway);
    deliver(&gateway);
    let waiting = send(&gateway, "3", "patient");
    let text = gateway.cli_ok(&["erase", "--message", &gone]);
    assert!(text.contains("1 message erased") && text.contains("all older ones are destroyed"), "{text}");
    assert_eq!((reads(&gateway, &gone), reads(&gateway, &kept)), (410, 200));
    let again: Value =
        serde_json::from_str(&gateway.cli_ok(&["--json", "erase", "--subject", "patient"])).unwrap();
    assert_eq!((&again["erased"], &again["messages_under_way"]), (&json!(0), &json!([waiting])));
    let wrong = gateway.cli(&["erase", "--message", "x"]);
    assert!(!wrong.status.success());
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("not a message's id"), "{wrong:?}");
    gateway.audit_verifies();
    assert!(gateway.stop().success());
    gateway.restart();
    assert_eq!((reads(&gateway, &gone), reads(&gateway, &kept), reads(&gateway, &waiting)), (410, 200, 200));
    gateway.audit_verifies();
}

fn seal_keys(gateway: &Gateway) -> BTreeSet<String> {
    let keys = std::fs::read_dir(gateway.path("data/keys")).unwrap();
    let names = keys.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("seal-")).collect()
}

/// What was erased must not be readable from a copy because the gateway died before it came to the key: the next start sees to it.
#[test]
fn an_erasure_killed_anywhere_is_whole_after_the_next_start() {
    for (round, point) in SEAL_KEY_POINTS.into_iter().enumerate() {
        let faults = format!("{point}=kill");
        let mut gateway = builder().faults(&faults).start();
        let (gone, kept) = (send(&gateway, "1", "patient"), send(&gateway, "2", "other"));
        deliver(&gateway);
        deliver(&gateway);
        let before = seal_keys(&gateway);
        let cut = gateway.cli(&["erase", "--message", &gone]);
        assert!(!cut.status.success(), "{point}: {cut:?}");
        gateway.ended();
        assert_eq!(gateway.fired(), [point]);
        gateway.restart();
        let erased = SEAL_KEY_POINTS[..=round].contains(&"erase.committed");
        assert_eq!(reads(&gateway, &gone), if erased { 410 } else { 200 }, "{point}");
        // Whatever opened the trees as they were is gone, whether there was something erased or not.
        let after = seal_keys(&gateway);
        assert_eq!(after.len(), 1, "{point}: {after:?}");
        assert!(after.is_disjoint(&before), "{point}: {before:?}, {after:?}");
        gateway.cli_ok(&["erase", "--message", &gone]);
        assert_eq!((reads(&gateway, &gone), reads(&gateway, &kept)), (410, 200), "{point}");
        gateway.audit_verifies();
        let log = gateway.audit_log();
        let count = |event: &str| log.iter().filter(|leaf| leaf["event"] == event).count();
        let rotations = if erased { 1 } else { 2 };
        assert_eq!((count("message_erased"), count("seal_key_rotated")), (1, rotations), "{point}");
    }
}

fn rotations_are_killed(rounds: usize) {
    let mut gateway = gateway();
    let mut dice = Dice::new(7);
    let mut sent = Vec::new();
    let (mut ended, mut cut) = (0, 0);
    for round in 0..rounds {
        sent.push(send(&gateway, &round.to_string(), "s"));
        let config = gateway.config().to_owned();
        let rotating = std::thread::spawn(move || {
            let mut command = std::process::Command::new(gatepost_tests::program("gatepost"));
            command.arg("--config").arg(config).args(["key", "rotate"]).output().unwrap()
        });
        std::thread::sleep(Duration::from_millis(dice.below(KILL_WITHIN_MS) as u64));
        gateway.kill();
        match rotating.join().unwrap().status.success() {
            true => ended += 1,
            false => cut += 1,
        }
        gateway.restart();
        for id in &sent {
            assert_eq!(reads(&gateway, id), 200, "round {round}");
        }
    }
    note(&format!("{rounds} kills: {ended} rotations had ended, {cut} were cut"));
    assert!(cut > 0, "no kill met a rotation");
    gateway.cli_ok(&["key", "rotate"]);
    assert_eq!(seal_keys(&gateway).len(), 1);
    gateway.audit_verifies();
}

#[test]
fn a_rotation_killed_at_any_moment_leaves_everything_to_be_opened() {
    rotations_are_killed(ROUNDS);
}

#[test]
#[ignore = "the long form: make test-long"]
fn two_hundred_rotations_are_killed_and_every_message_opens() {
    rotations_are_killed(ROUNDS_LONG);
}
