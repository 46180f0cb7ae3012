//! Merges of patients between their other messages: in over MLLP, out over many connections to a partner that refuses some, while the
//! adapter and the gateway are killed. The order of both patients holds.

use std::collections::HashSet;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;

use gatepost_tests::{Gateway, Port};

use crate::hl7::{Wire, ack};

const PATIENTS: usize = 64;
const MESSAGES: usize = 320;
/// The partner refuses as many as one in this number.
const REFUSED: usize = 9;
const KILLS: usize = 4;

/// The patients of a message: of every fourth, a merge, two.
fn patients(number: usize) -> Vec<usize> {
    let survivor = number * 13 % PATIENTS;
    let gone = number * 29 % 7 * 9;
    if number.is_multiple_of(4) && gone != survivor { vec![survivor, gone] } else { vec![survivor] }
}

fn message(number: usize) -> String {
    let head = |kind: &str| format!("MSH|^~\\&|ADT|C|EHR|H|2026||ADT^{kind}|M{number}|P|2.5\r");
    match patients(number).as_slice() {
        [survivor, gone] => format!("{}PID|1||P{survivor}^^^MR\rMRG|P{gone}^^^MR\r", head("A40")),
        patients => format!("{}PID|1||P{}^^^MR\r", head("A08"), patients[0]),
    }
}

/// What it took, oldest first, each once.
type Taken = Arc<Mutex<Vec<usize>>>;

/// A partner on many connections that now and then refuses what it will take the next time.
fn partner() -> (String, Taken) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (taken, asked): (Taken, _) = (Taken::default(), Arc::new(Mutex::new(0)));
    let noted = Arc::clone(&taken);
    // Ends with the test's process.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (taken, asked) = (Arc::clone(&noted), Arc::clone(&asked));
            thread::spawn(move || {
                let mut wire = Wire::new(stream);
                while let Some(body) = wire.read() {
                    let id = body.split('|').nth(9).unwrap().to_owned();
                    let mut asked = asked.lock().unwrap();
                    *asked += 1;
                    let refuses = *asked % REFUSED == 0;
                    if !refuses {
                        let number = id[1..].parse().unwrap();
                        let mut taken = taken.lock().unwrap();
                        if !taken.contains(&number) {
                            taken.push(number);
                        }
                    }
                    drop(asked);
                    if wire.write(&ack(if refuses { "AE" } else { "AA" }, &id)).is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, taken)
}

#[test]
fn merges_keep_the_order_of_both_patients_through_refusals_and_kills() {
    let (address, taken) = partner();
    let port = Port::reserve();
    let mut gateway = Gateway::builder()
        .adapter(
            "adt",
            "run = \"gatepost-hl7\"\nsend = [\"org.hl7.v2.*\"]",
            &format!("listen = \"127.0.0.1:{port}\""),
        )
        .adapter(
            "lab",
            "run = \"gatepost-hl7\"\norder = \"key\"\nretry = { initial = \"50ms\", max = \"200ms\", attempts = 1000 }",
            &format!("connect = \"{address}\"\nconnections = 64\non_ack = {{ preset = \"ordered-hold\" }}"),
        )
        .route("adt", &["lab"])
        .start();
    let mut wire = Wire::connect(&port);
    for number in 0..MESSAGES {
        if number % (MESSAGES / KILLS) == MESSAGES / KILLS / 2 {
            if number < MESSAGES / 2 {
                gateway.kill_adapter("lab");
            } else {
                gateway.kill();
                gateway.restart();
                wire = Wire::connect(&port);
            }
        }
        wire.write(&message(number)).unwrap();
        let answer = wire.read().unwrap();
        assert!(answer.contains(&format!("MSA|AA|M{number}\r")), "{answer}");
    }
    gateway.until_settled("lab");
    let taken = taken.lock().unwrap().clone();
    assert_eq!(taken.len(), MESSAGES, "each came");
    let meets = |one: usize, other: usize| {
        let of: HashSet<usize> = patients(one).into_iter().collect();
        patients(other).iter().any(|patient| of.contains(patient))
    };
    for (position, later) in taken.iter().enumerate() {
        for earlier in &taken[..position] {
            assert!(
                earlier < later || !meets(*earlier, *later),
                "{earlier} of {:?} came before {later} of {:?}",
                patients(*earlier),
                patients(*later)
            );
        }
    }
    let merges = (0..MESSAGES).filter(|number| patients(*number).len() == 2).count();
    assert!(merges > MESSAGES / 5, "{merges} merges");
    gateway.audit_verifies();
}
