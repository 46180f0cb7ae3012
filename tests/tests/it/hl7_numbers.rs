//! HL7's sequence numbers while everybody is killed in turn: the partner's numbers are consecutive, and none stands for two contents.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use gatepost_tests::{Dice, Gateway, until};
use serde_json::{Value, json};

use crate::order_event;

const DISASTERS: usize = 28;
/// Handed in before each disaster, so that it always comes in the middle of the work.
const PER_BATCH: usize = 9;
const MESSAGES: usize = DISASTERS * PER_BATCH;

/// Keeps the protocol's rules (HL7 2.5.1, 2.10.1), by hand.
#[derive(Clone)]
struct Partner {
    address: SocketAddr,
    kept: Arc<Mutex<Kept>>,
}

struct Kept {
    /// What it has accepted: number and whole message.
    accepted: Vec<(i64, String)>,
    /// Messages that came again after they were accepted.
    again: usize,
    /// Numbers that it did not expect.
    strange: Vec<i64>,
    dice: Dice,
    stream: Option<TcpStream>,
}

/// What it does with one transaction.
enum Answer {
    Say(&'static str, i64),
    /// It has taken it, and goes before it says so.
    HangUp,
}

impl Partner {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let kept =
            Kept { accepted: Vec::new(), again: 0, strange: Vec::new(), dice: Dice::new(11), stream: None };
        let partner = Self { address: listener.local_addr().unwrap(), kept: Arc::new(Mutex::new(kept)) };
        let serving = partner.clone();
        // Ends with the test's process.
        thread::spawn(move || listener.incoming().flatten().for_each(|stream| serving.serve(stream)));
        partner
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap()
    }

    fn serve(&self, stream: TcpStream) {
        self.kept().stream = Some(stream.try_clone().unwrap());
        let mut stream = BufReader::new(stream);
        loop {
            let mut frame = Vec::new();
            if stream.read_until(0x1c, &mut frame).is_err() || frame.last() != Some(&0x1c) {
                return;
            }
            if stream.read_exact(&mut [0]).is_err() {
                return;
            }
            let body = String::from_utf8(frame[1..frame.len() - 1].to_vec()).unwrap();
            let fields: Vec<&str> = body.split('\r').next().unwrap().split('|').collect();
            let (id, number) = (fields[9].to_owned(), fields[12].parse().unwrap());
            let answer = self.kept().take(number, body);
            let Answer::Say(code, expected) = answer else {
                let _ = stream.get_ref().shutdown(Shutdown::Both);
                return;
            };
            let ack = format!("MSH|^~\\&|LAB|H|EHR|C|2026||ACK|A{id}|P|2.5\rMSA|{code}|{id}||{expected}\r");
            if stream.get_mut().write_all(&[b"\x0b", ack.as_bytes(), b"\x1c\r"].concat()).is_err() {
                return;
            }
        }
    }

    fn hang_up(&self) {
        if let Some(stream) = &self.kept().stream {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Kept {
    fn take(&mut self, number: i64, body: String) -> Answer {
        let last = self.accepted.last().map(|(number, _)| *number);
        let expected = last.map_or(-1, |last| last + 1);
        if number == 0 {
            return Answer::Say("AA", expected);
        }
        if Some(number) == last {
            self.again += 1;
            assert_eq!(self.accepted.last().unwrap().1, body, "one number, two contents");
            return Answer::Say("AR", expected);
        }
        if last.is_some() && number != expected {
            self.strange.push(number);
            return Answer::Say("AR", expected);
        }
        match self.dice.below(12) {
            0 => Answer::Say("AE", number),
            1 => {
                self.accepted.push((number, body));
                Answer::HangUp
            }
            _ => {
                self.accepted.push((number, body));
                Answer::Say("AA", number)
            }
        }
    }
}

fn send(gateway: &Gateway, batch: usize) {
    let event = |n: usize| {
        let id = format!("M{}", batch * PER_BATCH + n);
        let text = format!("MSH|^~\\&|EHR|C|LAB|H|2026||ORM^O01|{id}|P|2.5\rPID|1||42\r");
        let mut event = order_event(&id, "k", &json!(text));
        event["datacontenttype"] = "text/plain".into();
        event
    };
    let events: Vec<Value> = (0..PER_BATCH).map(event).collect();
    gateway.app().try_batch(&events).unwrap().expect(202);
}

#[test]
fn numbers_at_the_partner_are_consecutive_and_none_stands_for_two_contents_whoever_is_killed() {
    let partner = Partner::start();
    let retry = "retry = { initial = \"50ms\", max = \"100ms\", attempts = 1000 }";
    let mut gateway = Gateway::builder()
        .app("shop", &["*"], &[])
        .adapter(
            "lab",
            &format!("run = \"gatepost-hl7\"\norder = \"strict\"\n{retry}"),
            &format!(
                "connect = \"{}\"\nsequence_numbers = {{ send = true }}\non_ack = {{ AE = \"retry\" }}",
                partner.address
            ),
        )
        .route("shop", &["lab"])
        .start();
    let mut kills = 0;
    for disaster in 0..DISASTERS {
        let before = partner.kept().accepted.len();
        send(&gateway, disaster);
        until("it goes on", || (partner.kept().accepted.len() > before + 1).then_some(()));
        match disaster % 4 {
            0 | 1 => kills += usize::from(gateway.kill_adapter("lab")),
            2 => partner.hang_up(),
            _ => {
                gateway.kill();
                gateway.restart();
                kills += 1;
            }
        }
    }
    gateway.until_settled("lab");
    let kept = partner.kept();
    gatepost_tests::note(&format!("{kills} kills, {} came again", kept.again));
    assert!(kills >= 20, "only {kills} kills");
    let numbers: Vec<i64> = kept.accepted.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=MESSAGES as i64).collect::<Vec<_>>(), "consecutive, and none too many");
    let ids = kept.accepted.iter().map(|(_, body)| body.split('|').nth(9).unwrap().to_owned());
    let sent = (0..MESSAGES).map(|number| format!("M{number}"));
    assert!(ids.eq(sent), "each once, in their order");
    assert!(kept.strange.is_empty(), "numbers that were not expected: {:?}", kept.strange);
    gateway.audit_verifies();
}

#[test]
fn without_one_lane_the_configuration_is_refused() {
    let gateway = Gateway::builder()
        .app("shop", &["*"], &[])
        .adapter(
            "lab",
            "run = \"gatepost-hl7\"\norder = \"key\"",
            "connect = \"127.0.0.1:1\"\nsequence_numbers = { send = true }",
        )
        .route("shop", &["lab"])
        .prepare();
    let checked = gateway.cli(&["check"]);
    let said = [checked.stdout, checked.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert!(
        !checked.status.success() && said.contains("adapters.lab.order") && said.contains("\"strict\""),
        "{said}"
    );
}
