//! Large messages on a disk that is nearly full: one that has no room is refused alone, and what it has left behind is space.

use std::time::{Duration, Instant};

use gatepost_tests::disk::{Disk, Loss};
use gatepost_tests::{Dice, Gateway, note, settle_item, skipped, until};
use serde_json::{Value, json};

use crate::order_event;

const MIB: u64 = 1024 * 1024;
/// Of one that fits on none of the disks, or just so.
const LARGE_BYTES: usize = 12 * MIB as usize;
/// What is free beside the reserve, from far too little to enough.
const FREE: [u64; 4] = [4 * MIB, 13 * MIB, 18 * MIB, 40 * MIB];
/// Small ones that have to go on then.
const SMALL: usize = 20;
const SMALL_BYTES: usize = 1000;
/// How long there must have been no room.
const NO_ROOM_FOR: Duration = Duration::from_secs(2);
/// Not written in pieces.
const MIDDLING_BYTES: usize = 200_000;

struct Site {
    gateway: Gateway,
    disk: Disk,
    /// Messages that were acknowledged, and of what character how often they are made.
    accepted: Vec<(String, char, usize)>,
    /// Of those that were acknowledged, and are not looked for any more.
    erased: usize,
    sent: usize,
}

impl Site {
    fn new() -> Option<Self> {
        let builder = Gateway::builder().app("shop", &["*"], &["desk"]).inbox("desk", "");
        let builder = builder.route("shop", &["desk"]);
        let Some(disk) = Disk::new(&builder.dir().join("data")) else {
            skipped("needs a C compiler");
            return None;
        };
        let gateway = builder.environment(disk.environment()).start();
        Some(Self { gateway, disk, accepted: Vec::new(), erased: 0, sent: 0 })
    }

    /// Whether there was room for it.
    fn send(&mut self, bytes: usize) -> bool {
        self.sent += 1;
        let of = char::from(b'a' + (self.sent % 26) as u8);
        let data = of.to_string().repeat(bytes);
        let answer = self.gateway.app().event(&order_event(&self.sent.to_string(), "k", &json!(data)));
        if answer.status != 202 {
            assert_eq!(answer.problem(507), "storage_full");
            return false;
        }
        self.accepted.push((answer.json()["messages"][0]["id"].as_str().unwrap().to_owned(), of, bytes));
        true
    }

    /// Sends more of these, until there has been no room for one whenever it was tried for a while: what has not come from the log into
    /// the database yet takes its room twice. How many there was room for.
    fn fill(&mut self, bytes: usize) -> usize {
        let (mut taken, mut refused_since) = (0, None);
        loop {
            if self.send(bytes) {
                (taken, refused_since) = (taken + 1, None);
            } else if refused_since.get_or_insert_with(Instant::now).elapsed() > NO_ROOM_FOR {
                return taken;
            } else {
                std::thread::sleep(NO_ROOM_FOR / 20);
            }
        }
    }

    /// Small ones, each as often as it takes; how long the longest took.
    fn small_ones_go_on(&mut self, free: u64) -> Duration {
        let went = |site: &mut Self| {
            let began = Instant::now();
            let what = format!("a small one goes on where {free} bytes were free");
            // Who has been refused because of the disk comes again.
            until(&what, || site.send(SMALL_BYTES).then_some(()));
            began.elapsed()
        };
        (0..SMALL).map(|_| went(self)).max().unwrap()
    }

    fn settle_all(&self) {
        until("everything in the inbox is settled", || {
            let leased = self.gateway.lease("desk", 10);
            let results: Vec<Value> =
                leased.iter().map(|delivery| settle_item(delivery, "delivered")).collect();
            let answer = self.gateway.app().post("/v1/settle", &json!({ "results": results })).expect(200);
            assert!(answer["results"].as_array().unwrap().iter().all(|result| result["status"] == "ok"));
            (self.gateway.unsettled("desk") == 0).then_some(())
        });
    }

    /// The machine crashes; what was acknowledged is there, whole, and nothing else.
    fn crash_and_look(mut self) {
        self.gateway.kill();
        self.disk.crash(Loss::All, &mut Dice::new(1));
        self.gateway.restart();
        for (message, of, bytes) in &self.accepted {
            let data = self.gateway.app().get(&format!("/v1/messages/{message}/data"));
            let expected = format!("\"{}\"", of.to_string().repeat(*bytes));
            assert!(
                data.status == 200 && data.text() == expected,
                "{message} of {bytes} bytes: {}",
                data.status
            );
        }
        self.gateway.audit_verifies();
        let log = self.gateway.audit_log();
        let kept = log.iter().filter(|leaf| leaf["event"] == "accepted").count();
        assert_eq!(kept, self.accepted.len() + self.erased, "what was refused is not there");
    }
}

/// Nobody frees any space here.
#[test]
fn a_large_message_that_has_no_room_is_refused_and_small_ones_go_on() {
    let (mut taken, mut refused) = (0, 0);
    for free in FREE {
        let Some(mut site) = Site::new() else { return };
        assert!(site.send(SMALL_BYTES));
        site.disk.free_bytes(free);
        // Again and again, until what fits is full of them.
        taken += site.fill(LARGE_BYTES);
        refused += 1;
        let longest = site.small_ones_go_on(free);
        // Who repeats it stands in nobody's way.
        for _ in 0..3 {
            assert!(!site.send(LARGE_BYTES), "{free}");
            refused += 1;
        }
        let again = site.small_ones_go_on(free);
        // It was refused before it took any of what the others need.
        assert!(!site.gateway.log().contains("the disk is full"), "{free}");
        site.settle_all();
        site.small_ones_go_on(free);
        note(&format!("{free} bytes free: a small one waited {longest:?}, then {again:?}"));
        site.crash_and_look();
    }
    assert!(taken > 0 && refused > FREE.len(), "{taken} {refused}");
}

/// What the database has within itself is space, if not for all that a disk is needed for.
#[test]
fn what_is_erased_on_a_full_disk_makes_room() {
    let Some(mut site) = Site::new() else { return };
    site.disk.free_bytes(40 * MIB);
    let first = site.fill(MIDDLING_BYTES);
    site.settle_all();
    let erased = site.gateway.admin().post("/v1/erase", &json!({ "app": "shop" })).expect(200);
    assert_eq!(erased["erased"], first);
    (site.erased, site.accepted) = (first, Vec::new());
    site.small_ones_go_on(0);
    // It may have been given up for a moment, as long as the log held what the database had too.
    let reserve = site.gateway.path("data/reserve");
    until("what settling needs is set aside", || reserve.exists().then_some(()));
    let again = site.fill(MIDDLING_BYTES);
    assert!(again > first / 2, "{again} of {first}");
    note(&format!("{first} filled the disk, and {again} after those were erased"));
    site.settle_all();
    site.crash_and_look();
}
