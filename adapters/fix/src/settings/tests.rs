//! Settings as they are written, their faults, and the page that describes them.

use std::collections::BTreeSet;

use gatepost_adapter::{Adapter as _, Level};
use schemars::schema_for;
use serde_json::{Value, json};

use super::*;
use crate::adapter::Fix;
use crate::engine::Role;

const PAGE: &str = include_str!("../../../../docs/adapters/fix.md");

fn session(change: &Value) -> Value {
    let mut session = json!({
        "name": "main", "connect": "fix.example.org:9876", "begin_string": "FIX.4.4",
        "sender_comp_id": "BUY", "target_comp_id": "SELL",
    });
    for (key, value) in change.as_object().unwrap() {
        session[key] = value.clone();
    }
    session
}

fn read(sessions: Value) -> Settings {
    serde_json::from_value(json!({ "sessions": sessions })).unwrap()
}

fn faults(sessions: Value) -> Vec<String> {
    Fix::check(&read(sessions)).into_iter().map(|fault| fault.key.replace("sessions[1].", "")).collect()
}

#[test]
fn the_smallest_session_is_whole() {
    let plans = plans(&read(json!([session(&json!({}))])), "venue", Level::Transport).unwrap();
    let [plan] = &plans[..] else { panic!("{plans:?}") };
    assert_eq!((plan.config.role, plan.config.confirm), (Role::Initiator, Level::Transport));
    assert_eq!(plan.origin.source, "/adapters/venue/main");
    assert_eq!(plan.config.heartbeat.as_secs(), 30);
}

#[test]
fn every_fault_is_told_by_its_setting() {
    for (change, expected) in [
        (json!({"connect": null}), vec!["connect"]),
        (json!({"listen": "127.0.0.1:1"}), vec!["listen"]),
        (json!({"connect": "fix.example.org"}), vec!["connect"]),
        (json!({"connect": null, "listen": "localhost:1"}), vec!["listen"]),
        (json!({"begin_string": "FIX.5.0"}), vec!["begin_string"]),
        (json!({"begin_string": "FIXT.1.1"}), vec!["default_appl_ver"]),
        (json!({"default_appl_ver": "FIX.5.0SP2"}), vec!["default_appl_ver"]),
        (
            json!({"name": "a/b", "sender_comp_id": "", "target_comp_id": "A\u{1}"}),
            vec!["name", "sender_comp_id", "target_comp_id"],
        ),
        (
            json!({"heartbeat_s": 3601, "logon_timeout_ms": 0, "keep_messages": 1}),
            vec!["heartbeat_s", "logon_timeout_ms", "keep_messages"],
        ),
        (json!({"username": "u"}), vec!["username"]),
        (json!({"username": "u", "password_file": "/nonexistent/password"}), vec!["password_file"]),
        (
            json!({"schedule": {"zone": "Mars", "start": "8", "end": "17:00"}}),
            vec!["schedule.zone", "schedule.start"],
        ),
        (json!({"validation": "full"}), vec!["validation"]),
        (json!({"dictionary": "/nonexistent/FIX44.xml"}), vec!["dictionary"]),
        (json!({"transport_dictionary": "/nonexistent/FIXT11.xml"}), vec!["transport_dictionary"]),
        (json!({"begin_string": "FIX.4.2", "next_expected_seq_num": true}), vec!["next_expected_seq_num"]),
        (json!({"allow_from": ["10.0.0.0/8"]}), vec!["listen_tls"]),
        (json!({"connect": null, "listen": "127.0.0.1:1", "tls": {}}), vec!["tls"]),
        (json!({"source": ""}), vec!["source"]),
        (json!({"partner_names": ["dns:sell.example.org"]}), vec!["partner_names"]),
        (json!({"sender_sub_id": "", "target_sub_id": "A\u{1}"}), vec!["sender_sub_id", "target_sub_id"]),
        (
            json!({"begin_string": "FIX.4.0", "sender_location_id": "NY", "target_location_id": "LDN"}),
            vec!["sender_location_id", "target_location_id"],
        ),
    ] {
        assert_eq!(faults(json!([session(&change)])), expected, "{change}");
    }
    assert_eq!(faults(json!([])), ["sessions"]);
    let twice = session(&json!({"connect": null, "listen": "127.0.0.1:1"}));
    let mut other = twice.clone();
    other["allow_from"] = json!(["10.0.0.0/8"]);
    assert_eq!(
        faults(json!([twice, other])),
        ["sessions[2].name", "sessions[2].target_comp_id", "sessions[2].listen"]
    );
    let unknown =
        serde_json::from_value::<Settings>(json!({"sessions": [session(&json!({"hearbeat_s": 1}))]}));
    assert!(unknown.unwrap_err().to_string().contains("unknown field `hearbeat_s`"));
}

#[test]
fn sessions_that_differ_in_one_id_only_are_two() {
    let ways = [json!({}), json!({"connect": null, "listen": "127.0.0.1:1"})];
    for way in ways {
        let first = session(&way);
        let mut second = first.clone();
        second["name"] = "other".into();
        let twice = faults(json!([first, second]));
        assert_eq!(twice, ["sessions[2].target_comp_id"], "{way}");
        for (key, value) in [
            ("begin_string", "FIX.4.2"),
            ("sender_comp_id", "X"),
            ("target_comp_id", "X"),
            ("sender_sub_id", "X"),
            ("target_sub_id", "X"),
            ("sender_location_id", "X"),
            ("target_location_id", "X"),
        ] {
            let mut second = second.clone();
            second[key] = value.into();
            assert_eq!(faults(json!([first, second])), [] as [&str; 0], "{way} {key}");
        }
    }
}

#[test]
fn what_we_send_as_ours_is_asked_for_as_theirs() {
    let ids = json!({
        "sender_sub_id": "a", "target_sub_id": "b", "sender_location_id": "c", "target_location_id": "d",
    });
    let plans = plans(&read(json!([session(&ids)])), "venue", Level::Transport).unwrap();
    let config = &plans[0].config;
    let pairs = |ids: &[(Tag, String)]| -> Vec<String> {
        ids.iter().map(|(tag, id)| format!("{tag}={id}")).collect()
    };
    assert_eq!(pairs(&config.header), ["50=a", "57=b", "142=c", "143=d"]);
    assert_eq!(pairs(&config.partner_header), ["57=a", "50=b", "143=c", "142=d"]);
    assert!(config.check_header);
}

#[test]
fn a_session_reaches_what_it_names_and_nothing_else() {
    let listening = json!({"name": "b", "connect": null, "listen": "127.0.0.1:1", "target_comp_id": "X"});
    let access = Fix::access(&read(json!([
        session(&json!({"password_file": "/etc/p", "tls": {"ca_files": ["/etc/ca.pem"]}})),
        session(&listening),
    ])));
    assert_eq!(access.connect, ["fix.example.org:9876"]);
    assert_eq!(access.bind, ["127.0.0.1:1"]);
    assert_eq!(access.read, ["/etc/p", "/etc/ca.pem"].map(PathBuf::from));
}

#[test]
fn the_page_has_every_setting_and_its_example_is_whole() {
    let schema = schema_for!(SessionSettings).to_value();
    let settings: BTreeSet<&String> = schema["properties"].as_object().unwrap().keys().collect();
    for setting in settings {
        assert!(PAGE.contains(&format!("`{setting}`")), "`{setting}` is not on the page");
    }
    let example = PAGE.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let example: Value = toml::from_str(example).unwrap();
    let settings: Settings =
        serde_json::from_value(example["adapters"]["venue"]["settings"].clone()).unwrap();
    assert_eq!(Fix::check(&settings), []);
}
