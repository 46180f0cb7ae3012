//! A partner on TCP that can be told to misbehave, speaking HTTP or MLLP as far as a test needs. It notes what it takes.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

/// Longest that a partner waits for what an adapter sends; adapters of tests give up much sooner.
const PATIENCE: Duration = Duration::from_secs(60);
const START_OF_BLOCK: u8 = 0x0b;
const END_OF_BLOCK: u8 = 0x1c;

/// What it does with a message that has come in whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Takes it and says so.
    Good,
    /// Takes it and never answers.
    Hang,
    /// Takes it and answers so much later.
    Late(Duration),
    /// Takes it and closes without a word.
    Close,
    /// Takes it and resets the connection.
    Reset,
    /// Takes it and answers what no protocol knows.
    Garbage,
    /// Takes it, answers half a frame, and says no more.
    Half,
    /// Takes it and answers for another message.
    Mistaken,
    /// Does not take it: an HTTP status, and perhaps seconds of `Retry-After`.
    Status(u16, Option<u32>),
    /// Does not take it: an acknowledgement code of HL7.
    Code(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http,
    Mllp,
}

/// Its threads end with the test's process.
#[derive(Clone, Debug)]
pub struct Partner {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    manner: Manner,
    /// What it took, oldest first: the id that the protocol carries, and the content.
    taken: Vec<(String, String)>,
    /// Messages that came in whole, taken or not.
    asked: usize,
}

impl Partner {
    pub fn start(protocol: Protocol, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port can be had");
        Self::serve(protocol, manner, listener)
    }

    pub fn serve(protocol: Protocol, manner: Manner, listener: TcpListener) -> Self {
        let address = listener.local_addr().expect("it listens");
        let state = Arc::new(Mutex::new(State { manner, taken: Vec::new(), asked: 0 }));
        let partner = Self { address, state };
        let serving = partner.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let partner = serving.clone();
                // A broken connection is the point of most tests.
                std::thread::spawn(move || drop(partner.talk(protocol, stream)));
            }
        });
        partner
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn behave(&self, manner: Manner) {
        self.state().manner = manner;
    }

    pub fn taken(&self) -> Vec<(String, String)> {
        self.state().taken.clone()
    }

    pub fn asked(&self) -> usize {
        self.state().asked
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread of a partner panics")
    }

    fn talk(&self, protocol: Protocol, stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut reader = BufReader::new(stream.try_clone()?);
        loop {
            let message = match protocol {
                Protocol::Http => read_http(&mut reader)?,
                Protocol::Mllp => read_mllp(&mut reader)?,
            };
            let Some((id, content)) = message else { return Ok(()) };
            let manner = self.take(&id, content);
            if !self.answer(protocol, manner, &id, &stream)? {
                return Ok(());
            }
        }
    }

    fn take(&self, id: &str, content: String) -> Manner {
        let mut state = self.state();
        state.asked += 1;
        if !matches!(state.manner, Manner::Status(..) | Manner::Code(_)) {
            state.taken.push((id.to_owned(), content));
        }
        state.manner
    }

    /// Whether the connection goes on.
    fn answer(
        &self,
        protocol: Protocol,
        manner: Manner,
        id: &str,
        mut stream: &TcpStream,
    ) -> io::Result<bool> {
        let good = match protocol {
            Protocol::Http => http(200, None),
            Protocol::Mllp => acknowledgement("AA", id),
        };
        match manner {
            Manner::Good => stream.write_all(&good)?,
            // Until the adapter has had enough of it.
            Manner::Hang => drop(stream.read(&mut [0; 1])),
            Manner::Late(span) => {
                std::thread::sleep(span);
                stream.write_all(&good)?;
            }
            Manner::Close => return Ok(false),
            Manner::Reset => {
                let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
                setsockopt(&stream, sockopt::Linger, &linger)?;
                return Ok(false);
            }
            Manner::Garbage => {
                stream.write_all(b"\x00\xff\xfe\x0b\x0b nothing \x1c\r\x16\x03\x01\r\n\r\n")?;
                return Ok(protocol == Protocol::Mllp);
            }
            Manner::Half => {
                stream.write_all(&good[..good.len() / 2])?;
                drop(stream.read(&mut [0; 1]));
            }
            Manner::Mistaken => stream.write_all(&acknowledgement("AA", "ANOTHER"))?,
            Manner::Status(status, after) => stream.write_all(&http(status, after))?,
            Manner::Code(code) => stream.write_all(&acknowledgement(code, id))?,
        }
        Ok(manner != Manner::Half && manner != Manner::Hang)
    }
}

fn http(status: u16, after: Option<u32>) -> Vec<u8> {
    let after = after.map_or(String::new(), |seconds| format!("retry-after: {seconds}\r\n"));
    format!("HTTP/1.1 {status} As Told\r\n{after}content-length: 2\r\n\r\nok").into_bytes()
}

fn acknowledgement(code: &str, id: &str) -> Vec<u8> {
    let text = format!("MSH|^~\\&|B||A||2026||ACK|9|P|2.5\rMSA|{code}|{id}\r");
    [&[START_OF_BLOCK], text.as_bytes(), &[END_OF_BLOCK, b'\r']].concat()
}

/// The delivery's id and the body; `None` at the connection's end.
fn read_http(reader: &mut BufReader<TcpStream>) -> io::Result<Option<(String, String)>> {
    let (mut id, mut length) = (String::new(), 0);
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let Some((name, value)) = line.split_once(':') else {
            if line.trim().is_empty() {
                break;
            }
            continue;
        };
        match name.to_ascii_lowercase().as_str() {
            "webhook-id" => id = value.trim().to_owned(),
            "content-length" => length = value.trim().parse().unwrap_or(0),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some((id, String::from_utf8_lossy(&body).into_owned())))
}

/// The control id and the message; `None` at the connection's end.
fn read_mllp(reader: &mut BufReader<TcpStream>) -> io::Result<Option<(String, String)>> {
    let mut frame = Vec::new();
    reader.read_until(END_OF_BLOCK, &mut frame)?;
    if frame.last() != Some(&END_OF_BLOCK) {
        return Ok(None);
    }
    reader.read_until(b'\r', &mut Vec::new())?;
    let text = String::from_utf8_lossy(&frame).into_owned();
    let id = text.split('|').nth(9).unwrap_or_default().to_owned();
    Ok(Some((id, text)))
}
