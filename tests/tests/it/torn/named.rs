//! What is torn or flipped is named, or all is served that was served before.

use std::fs;

use gatepost_tests::{Dice, Gateway};
use serde_json::Value;

use super::{Accepted, DATABASE, WAL, change, copy_dir, data, killed, put_back, served};

/// What doctor says of the data: the findings that are not well.
fn doctor_names(gateway: &Gateway) -> Vec<Value> {
    let output = gateway.cli(&["--json", "doctor"]);
    let said: Value = serde_json::from_slice(&output.stdout).expect("doctor answers in JSON");
    let findings = said["findings"].as_array().expect("a list").clone();
    findings.into_iter().filter(|finding| finding["what"] == "data" && finding["verdict"] != "ok").collect()
}

/// Starts it, if it starts.
fn starts(gateway: &mut Gateway) -> bool {
    gateway.spawn();
    gateway.becomes_ready()
}

#[test]
fn a_torn_or_flipped_directory_is_named_or_serves_all_that_it_served() {
    let (mut gateway, accepted) = killed();
    let kept = gateway.path("kept");
    copy_dir(&data(&gateway), &kept);
    let mut dice = Dice::new(4);
    for round in 0..8 {
        put_back(&gateway, &kept);
        torn_round(&mut gateway, &accepted, round, &mut dice);
    }
}

/// Damages one of the files a little; it is named before the start, at the start or by the gateway's health, or nothing is missing
/// but what was not signed.
pub(super) fn torn_round(gateway: &mut Gateway, accepted: &Accepted, round: usize, dice: &mut Dice) {
    let dir = data(gateway);
    let size = |name: &str| fs::metadata(dir.join(name)).unwrap().len();
    let (context, cut) = match round % 4 {
        0 => {
            let sector = dice.below(usize::try_from(size(WAL) / 512).unwrap()) as u64;
            fs::File::options().write(true).open(dir.join(WAL)).unwrap().set_len(sector * 512).unwrap();
            (format!("the log is cut after {sector} sectors"), true)
        }
        kind => {
            let file = [WAL, DATABASE, "audit/checkpoint"][kind - 1];
            let at = dice.below(usize::try_from(size(file)).unwrap()) as u64;
            let bit = dice.below(8);
            change(&dir.join(file), at, 1, |byte| byte ^ 1 << bit);
            (format!("bit {bit} of byte {at} of {file}"), false)
        }
    };
    let named = !doctor_names(gateway).is_empty();
    if starts(gateway) {
        let served = served(gateway, accepted, &context);
        let names =
            !gateway.list("/v1/queues", "queues").is_empty() && gateway.admin().get("/readyz").status != 200;
        assert!(
            named || names || cut || served.len() == accepted.len(),
            "{context}: messages are missing, unnamed"
        );
        if !named {
            // What a cut takes away unnamed is what no checkpoint signed: the last second at most.
            assert!(accepted.len() - served.len() <= 30, "{context}: {} are left", served.len());
        }
        gateway.kill();
    } else {
        assert!(named, "{context}: the start is refused, and doctor sees nothing");
    }
}

#[test]
fn a_flipped_bit_of_the_configuration_is_named_or_leaves_the_data_as_it_is() {
    let (gateway, _) = killed();
    let good = fs::read(gateway.config()).unwrap();
    let mut dice = Dice::new(7);
    let database = fs::read(data(&gateway).join(DATABASE)).unwrap();
    let mut named = 0;
    for _ in 0..40 {
        let mut bad = good.clone();
        let (byte, bit) = (dice.below(good.len()), dice.below(8));
        bad[byte] ^= 1 << bit;
        fs::write(gateway.config(), &bad).unwrap();
        let checked = gateway.cli(&["check"]);
        named += usize::from(!checked.status.success());
        if !checked.status.success() {
            let said = [checked.stdout, checked.stderr].concat();
            assert!(!said.is_empty(), "bit {bit} of byte {byte}: refused without a word");
        }
        assert!(database == fs::read(data(&gateway).join(DATABASE)).unwrap(), "checking changes no data");
    }
    assert!(named > 10, "{named} of 40 were named");
}
