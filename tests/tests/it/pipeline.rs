//! Several deliveries of a lane on their way at a time, with numbers in adapter state: `adapters/sdk/examples/numbered.rs`, killed in the
//! middle like everything around it.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use gatepost_tests::{Gateway, program, until};
use serde_json::{Value, json};

use crate::order_event;

const MESSAGES: usize = 400;
const PER_BATCH: usize = 20;
const DISASTERS: usize = 16;
const WINDOW: usize = 8;

#[derive(Clone, Debug)]
struct Line {
    number: u64,
    again: bool,
    delivery: String,
}

/// Takes lines, and confirms them as it is told.
#[derive(Clone)]
struct Partner {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    lines: Vec<Line>,
    /// All numbers up to this one have come, without a gap.
    highest: u64,
    confirmed: u64,
    /// It confirms by itself.
    confirms: bool,
    gap: bool,
    stream: Option<TcpStream>,
}

impl Partner {
    fn start(confirms: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let seen = Arc::new(Mutex::new(Seen { confirms, ..Seen::default() }));
        let partner = Self { address: listener.local_addr().unwrap(), seen };
        let serving = partner.clone();
        // Ends with the test's process.
        thread::spawn(move || listener.incoming().flatten().for_each(|stream| serving.serve(stream)));
        partner
    }

    fn serve(&self, stream: TcpStream) {
        self.seen.lock().unwrap().stream = Some(stream.try_clone().unwrap());
        for text in BufReader::new(stream).lines().map_while(Result::ok) {
            let mut words = text.split(' ');
            let (Some(number), Some(kind), Some(delivery)) = (words.next(), words.next(), words.next())
            else {
                continue; // broken off
            };
            let line = Line {
                number: number.parse().unwrap(),
                again: kind == "again",
                delivery: delivery.to_owned(),
            };
            let mut seen = self.seen.lock().unwrap();
            seen.gap |= line.number > seen.highest + 1;
            seen.highest = seen.highest.max(line.number);
            seen.lines.push(line);
            if seen.confirms {
                seen.confirm(u64::MAX);
            }
        }
    }

    fn hang_up(&self) {
        if let Some(stream) = &self.seen.lock().unwrap().stream {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Seen {
    fn confirm(&mut self, most: u64) {
        self.confirmed = self.highest.min(most);
        let said = format!("ok {}\n", self.confirmed);
        if let Some(stream) = &mut self.stream {
            // Who has gone is told with its next connection.
            let _ = stream.write_all(said.as_bytes());
        }
    }
}

fn gateway(partner: &Partner) -> Gateway {
    let run = format!("run = {:?}", program("examples/numbered").display().to_string());
    let retry = "retry = { initial = \"50ms\", max = \"100ms\", attempts = 1000 }";
    Gateway::builder()
        .app("shop", &["*"], &[])
        .adapter(
            "line",
            &format!("{run}\norder = \"strict\"\nwindow = {WINDOW}\non_doubt = \"query\"\n{retry}"),
            &format!("connect = \"{}\"", partner.address),
        )
        .route("shop", &["line"])
        .start()
}

/// Gives the deliveries' ids, in accept order.
fn send(gateway: &Gateway, batch: usize) -> Vec<String> {
    send_some(gateway, batch, PER_BATCH)
}

fn send_some(gateway: &Gateway, batch: usize, count: usize) -> Vec<String> {
    let events: Vec<Value> =
        (0..count).map(|n| order_event(&format!("{batch}-{n}"), "k", &json!({ "n": n }))).collect();
    let accepted = gateway.app().try_batch(&events).unwrap().expect(202);
    let messages = accepted["messages"].as_array().unwrap();
    messages.iter().map(|message| message["deliveries"][0]["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn numbers_have_no_gap_and_what_comes_twice_says_so_whoever_is_killed() {
    let partner = Partner::start(true);
    let mut gateway = gateway(&partner);
    let mut deliveries = Vec::new();
    for batch in 0..MESSAGES / PER_BATCH {
        deliveries.extend(send(&gateway, batch));
    }
    for disaster in 0..DISASTERS {
        // In the middle of the work, wherever that is.
        let before = partner.seen.lock().unwrap().lines.len();
        until("it goes on", || {
            (partner.seen.lock().unwrap().lines.len() > before || gateway.unsettled("line") == 0)
                .then_some(())
        });
        match disaster % 4 {
            0 | 1 => drop(gateway.kill_adapter("line")),
            2 => partner.hang_up(),
            _ => {
                gateway.kill();
                gateway.restart();
            }
        }
    }
    gateway.until_settled("line");
    let seen = partner.seen.lock().unwrap();
    assert!(!seen.gap, "a number came before the one in front of it");
    let mut numbers: HashMap<u64, &str> = HashMap::new();
    let mut unflagged = HashSet::new();
    for line in &seen.lines {
        let known = numbers.entry(line.number).or_insert(&line.delivery);
        assert_eq!(*known, line.delivery, "number {} stands for two deliveries", line.number);
        assert!(line.again || unflagged.insert(line.number), "number {} came twice unflagged", line.number);
    }
    let in_order: Vec<&str> = (1..=seen.highest).map(|number| numbers[&number]).collect();
    assert_eq!(
        in_order, deliveries,
        "each delivery has one number, in the order in which they were accepted"
    );
    gateway.audit_verifies();
}

#[test]
fn no_more_than_the_window_are_on_their_way_and_late_proof_settles_them() {
    let partner = Partner::start(false);
    let gateway = gateway(&partner);
    let deliveries = send(&gateway, 0);
    let unconfirmed = |partner: &Partner| {
        let seen = partner.seen.lock().unwrap();
        seen.highest - seen.confirmed
    };
    until("the window is full", || (unconfirmed(&partner) >= WINDOW as u64).then_some(()));
    until("all of it is sent", || (gateway.queue("line")["depth"]["sending"] == WINDOW).then_some(()));
    // Another process, another session: what it confirms was sent by the one before.
    assert!(gateway.kill_adapter("line"));
    until("it is sent again", || {
        (partner.seen.lock().unwrap().lines.iter().filter(|line| line.again).count() >= WINDOW).then_some(())
    });
    partner.seen.lock().unwrap().confirm(WINDOW as u64);
    until("the window is full again", || {
        let seen = partner.seen.lock().unwrap();
        assert!(seen.highest <= 2 * WINDOW as u64, "more than the window");
        (seen.highest == 2 * WINDOW as u64).then_some(())
    });
    assert_eq!(
        gateway.unsettled("line"),
        (PER_BATCH - WINDOW) as u64,
        "late proof has settled what an earlier session sent"
    );
    partner.seen.lock().unwrap().confirms = true;
    partner.seen.lock().unwrap().confirm(u64::MAX);
    gateway.until_settled("line");
    let seen = partner.seen.lock().unwrap();
    let firsts: Vec<&str> =
        seen.lines.iter().filter(|line| !line.again).map(|line| line.delivery.as_str()).collect();
    assert_eq!(firsts, deliveries);
}

#[test]
fn what_an_earlier_process_has_sent_keeps_its_place_and_holds_up_nobody_behind_it() {
    let partner = Partner::start(false);
    let gateway = gateway(&partner);
    let mut deliveries = send_some(&gateway, 0, WINDOW / 2);
    until("half of the window is sent", || {
        let seen = partner.seen.lock().unwrap();
        (seen.highest == WINDOW as u64 / 2).then_some(())
    });
    assert!(gateway.kill_adapter("line"));
    deliveries.extend(send_some(&gateway, 1, WINDOW));
    until("the other half is sent, and nothing is confirmed", || {
        let seen = partner.seen.lock().unwrap();
        assert!(seen.highest <= WINDOW as u64, "more than the window");
        (seen.highest == WINDOW as u64).then_some(())
    });
    assert_eq!(gateway.unsettled("line"), deliveries.len() as u64);
    partner.seen.lock().unwrap().confirms = true;
    partner.seen.lock().unwrap().confirm(u64::MAX);
    gateway.until_settled("line");
    let seen = partner.seen.lock().unwrap();
    assert!(!seen.gap, "a number came before the one in front of it");
    let firsts: Vec<&str> =
        seen.lines.iter().filter(|line| !line.again).map(|line| line.delivery.as_str()).collect();
    assert_eq!(firsts, deliveries);
}
