//! An HL7 partner that acknowledges at once, and remembers in which order messages came.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use crate::played;

const START: u8 = 0x0b;
const END: [u8; 2] = [0x1c, 0x0d];
const READ_BYTES: usize = 64 * 1024;

/// Lives as long as the process.
pub(crate) struct Partner {
    pub(crate) address: SocketAddr,
    /// MSH-10 of each message, in the order of their arrival.
    came: Arc<Mutex<Vec<String>>>,
}

impl Partner {
    pub(crate) fn start() -> Self {
        let came: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = Arc::clone(&came);
        Self { address: played::listen(move |stream| serve(stream, &noted)), came }
    }

    pub(crate) fn came(&self) -> Vec<String> {
        self.came.lock().expect("no thread of it panics").clone()
    }
}

fn serve(mut stream: TcpStream, came: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut held = Vec::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        held.extend_from_slice(&buffer[..read]);
        while let Some(end) = held.windows(2).position(|two| two == END) {
            let frame: Vec<u8> = held.drain(..end + END.len()).collect();
            let id = control_id(&frame).ok_or(io::ErrorKind::InvalidData)?;
            came.lock().expect("no thread of it panics").push(id.to_owned());
            let answer = format!("MSH|^~\\&|LAB|H|EHR|C|2026||ACK|A{id}|P|2.5\rMSA|AA|{id}\r");
            stream.write_all(&[&[START], answer.as_bytes(), &END].concat())?;
        }
    }
}

/// MSH-10, where `|` separates fields.
fn control_id(frame: &[u8]) -> Option<&str> {
    std::str::from_utf8(frame.split(|byte| *byte == b'|').nth(9)?).ok()
}
