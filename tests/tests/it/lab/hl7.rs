//! A partner that speaks HL7 over MLLP, both ways, and keeps books. Not our parser: what it takes for a message is its own view.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use gatepost_tests::Port;
use gatepost_tests::lab::Effect;

const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

pub(super) fn message(control_id: &str, patient: &str) -> String {
    format!("MSH|^~\\&|A|B|C|D|2026||ORU^R01|{control_id}|P|2.5\rPID|1||{patient}^^^MR\rOBX|1|TX|x||1\r")
}

pub(super) fn control_id(message: &[u8]) -> Option<String> {
    Some(String::from_utf8_lossy(message).split(['|', '\r']).nth(9)?.to_owned())
}

fn framed(message: &str) -> Vec<u8> {
    [b"\x0b", message.as_bytes(), b"\x1c\r"].concat()
}

/// The next whole frame; `None` at the end, also inside a frame.
fn frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        match byte[0] {
            0x0b => bytes.clear(),
            0x1c => return Some(bytes),
            byte => bytes.push(byte),
        }
    }
}

/// Listens, notes what came whole, then acknowledges it.
pub(super) struct Partner {
    pub(super) port: u16,
    effects: Arc<Mutex<Vec<Effect>>>,
}

impl Partner {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let effects = Arc::new(Mutex::new(Vec::new()));
        let book = Arc::clone(&effects);
        // It ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let book = Arc::clone(&book);
                thread::spawn(move || Self::serve(stream.unwrap(), &book));
            }
        });
        Self { port, effects }
    }

    fn serve(mut stream: TcpStream, book: &Mutex<Vec<Effect>>) {
        while let Some(message) = frame(&mut stream) {
            let id = control_id(&message).unwrap_or_default();
            book.lock().unwrap().push(Effect { mark: Some(id.clone()), ..Effect::default() });
            let answer = format!("MSH|^~\\&|C|D|A|B|2026||ACK|A{id}|P|2.5\rMSA|AA|{id}\r");
            if stream.write_all(&framed(&answer)).is_err() {
                return;
            }
        }
    }

    pub(super) fn effects(&self) -> Vec<Effect> {
        self.effects.lock().unwrap().clone()
    }
}

/// A connection to our listener, made anew when it has broken.
pub(super) struct Line {
    port: Port,
    stream: Option<TcpStream>,
}

impl Line {
    pub(super) fn new(port: Port) -> Self {
        Self { port, stream: None }
    }

    /// Sends a message and waits for its acknowledgement. `false`: to be sent again.
    pub(super) fn send(&mut self, message: &str, id: &str) -> bool {
        self.try_send(message, id).unwrap_or_else(|| {
            self.stream = None;
            false
        })
    }

    fn try_send(&mut self, message: &str, id: &str) -> Option<bool> {
        if self.stream.is_none() {
            self.stream = TcpStream::connect(self.port.address()).ok();
        }
        let stream = self.stream.as_mut()?;
        stream.set_read_timeout(Some(ANSWER_DEADLINE)).ok()?;
        stream.write_all(&framed(message)).ok()?;
        let answer = String::from_utf8_lossy(&frame(stream)?).into_owned();
        let mut fields = answer.split("MSA|").nth(1)?.split(['|', '\r']);
        let (code, about) = (fields.next()?, fields.next()?);
        assert_eq!(about, id, "it acknowledges another message: {answer}");
        Some(code == "AA" || code == "CA")
    }
}
