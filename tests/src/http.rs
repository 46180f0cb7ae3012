//! A client as small as possible: one request per connection, blocking, over a Unix socket.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

/// Longest wait for an answer; long polls are shorter.
const ANSWER_DEADLINE: Duration = Duration::from_secs(75);

#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Client {
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"").expect("the gateway answers")
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.try_post(path, body).expect("the gateway answers")
    }

    /// An error is a gateway that is not there, or that went away before it answered.
    pub fn try_post(&self, path: &str, body: &Value) -> io::Result<Answer> {
        self.send("POST", path, &["content-type: application/json"], body.to_string().as_bytes())
    }

    /// Hands in one event.
    pub fn event(&self, event: &Value) -> Answer {
        self.try_event(event).expect("the gateway answers")
    }

    pub fn try_event(&self, event: &Value) -> io::Result<Answer> {
        let headers = ["content-type: application/cloudevents+json"];
        self.send("POST", "/v1/messages", &headers, event.to_string().as_bytes())
    }

    pub fn try_batch(&self, events: &[Value]) -> io::Result<Answer> {
        let headers = ["content-type: application/cloudevents-batch+json"];
        let body = Value::from(events.to_vec()).to_string();
        self.send("POST", "/v1/messages", &headers, body.as_bytes())
    }

    pub fn send(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> io::Result<Answer> {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nhost: gatepost\r\nconnection: close\r\ncontent-length: {}\r\n",
            body.len()
        );
        for header in headers {
            head.push_str(header);
            head.push_str("\r\n");
        }
        head.push_str("\r\n");
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
        stream.write_all(head.as_bytes())?;
        // A refusal may come before the body is through; then it is what counts.
        let sent = stream.write_all(body);
        match read_answer(&mut stream) {
            Ok(answer) => Ok(answer),
            Err(error) => Err(sent.err().unwrap_or(error)),
        }
    }
}

/// Reads one answer from a connection that ends with it.
pub fn read_answer(stream: &mut UnixStream) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    Answer::parse(&bytes).ok_or_else(|| read.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into()))
}

impl Answer {
    /// `None` for an answer that is cut off.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = String::from_utf8(bytes[..end].to_vec()).ok()?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let mut answer = Self { status, head, body: bytes[end + 4..].to_vec() };
        if answer.header("transfer-encoding") == Some("chunked") {
            answer.body = unchunked(&answer.body)?;
        } else if let Some(length) = answer.header("content-length") {
            let length: usize = length.parse().ok()?;
            (answer.body.len() >= length).then_some(())?;
            answer.body.truncate(length);
        }
        Some(answer)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{} is not JSON ({error}): {}", self.status, self.text()))
    }

    /// The body of an answer that must have this status.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        self.json()
    }

    /// The code of a refusal that must have this status and be a complete problem.
    #[track_caller]
    pub fn problem(&self, status: u16) -> String {
        let problem = self.expect(status);
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        assert_eq!(problem["status"], status);
        for member in ["type", "title", "detail", "request_id"] {
            assert!(problem[member].is_string(), "no `{member}` in {problem}");
        }
        assert!(problem["retryable"].is_boolean(), "{problem}");
        problem["code"].as_str().expect("a problem has a code").to_owned()
    }
}

fn unchunked(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = bytes.windows(2).position(|two| two == b"\r\n")?;
        let size = std::str::from_utf8(&bytes[..line]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?, 16).ok()?;
        bytes = &bytes[line + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(bytes.get(..size)?);
        bytes = bytes.get(size + 2..)?;
    }
}
