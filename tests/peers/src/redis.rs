//! Redis streams, `appendfsync always`: XADD, and a consumer group with XREADGROUP and XACK.

use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;

use crate::drive::{Connection, Input, Publisher, Stream, buffer};
use crate::peer::{Consumer, LOOK, Peer, Publishing};
use crate::server::{Server, first_line, missing};

/// Entries of one read of a consumer.
const READ_COUNT: &str = "256";

pub(crate) struct Redis {
    _server: Server,
    socket: PathBuf,
    version: String,
    payload: String,
    queues: u32,
}

impl Redis {
    pub(crate) fn start(dir: &Path, payload: &str) -> io::Result<Self> {
        let version =
            first_line(Command::new("redis-server").arg("--version")).map_err(missing("redis-server"))?;
        let socket = dir.join("redis.sock");
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--appendonly", "yes", "--appendfsync", "always", "--save", ""]);
        // The log is not rewritten in the middle of a measurement.
        command.args(["--auto-aof-rewrite-percentage", "0", "--dir"]).arg(dir);
        command.arg("--unixsocket").arg(&socket);
        let server = Server::start(&mut command, dir, || UnixStream::connect(&socket).map(drop))?;
        let version =
            version.split_whitespace().find_map(|word| word.strip_prefix("v=")).unwrap_or("?").to_owned();
        Ok(Self { _server: server, socket, version, payload: payload.to_owned(), queues: 0 })
    }

    fn connect(&self) -> io::Result<Stream> {
        Ok(Stream::Unix(UnixStream::connect(&self.socket)?))
    }

    fn stream(&self) -> String {
        format!("bench-{}", self.queues)
    }

    fn call(&self, words: &[&str]) -> io::Result<()> {
        let mut stream = self.connect()?;
        stream.write_all(&command(words))?;
        let (mut input, mut bytes) = (Input::default(), buffer());
        loop {
            input.read(&mut stream, &mut bytes)?;
            if reply(input.rest(), &mut |_| {})?.is_some() {
                return Ok(());
            }
        }
    }
}

impl Peer for Redis {
    fn name(&self) -> &'static str {
        "Redis streams"
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn durability(&self) -> &'static str {
        "appendfsync always"
    }

    fn consumers(&self) -> &'static [usize] {
        &[1, 4]
    }

    fn queue(&mut self) -> io::Result<()> {
        self.call(&["DEL", &self.stream()])?;
        self.queues += 1;
        self.call(&["XGROUP", "CREATE", &self.stream(), "g", "0", "MKSTREAM"])
    }

    fn publishers(&mut self, in_flight: u64) -> io::Result<Publishing> {
        let request = command(&["XADD", &self.stream(), "*", "d", &self.payload]);
        let connection = Connection::new(self.connect()?, Adder { request, input: Input::default() })?;
        Ok(Publishing { connections: vec![connection], window: in_flight, messages_per_request: 1 })
    }

    fn consumer(&mut self, number: usize) -> io::Result<Consumer> {
        let mut stream = self.connect()?;
        stream.wait_at_most(LOOK)?;
        let (name, key) = (format!("c{number}"), self.stream());
        let read = command(&[
            "XREADGROUP",
            "GROUP",
            "g",
            &name,
            "COUNT",
            READ_COUNT,
            "BLOCK",
            "50",
            "STREAMS",
            &key,
            ">",
        ]);
        Ok(Box::new(move |stop, acknowledged| {
            let (mut input, mut bytes) = (Input::default(), buffer());
            let mut ids: Vec<String> = Vec::new();
            let mut out = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                out.clear();
                let acknowledging = ids.len() as u64;
                if acknowledging > 0 {
                    let mut words = vec!["XACK", &key, "g"];
                    words.extend(ids.iter().map(String::as_str));
                    out.extend(command(&words));
                }
                // The next read travels with the acknowledgement of the last.
                out.extend_from_slice(&read);
                stream.write_all(&out)?;
                ids.clear();
                let mut replies = if acknowledging > 0 { 2 } else { 1 };
                while replies > 0 {
                    let is_read = replies == 1;
                    let found = reply(input.rest(), &mut |text| {
                        if is_read && is_id(text) {
                            ids.push(String::from_utf8_lossy(text).into_owned());
                        }
                    })?;
                    match found {
                        Some(length) => {
                            input.take(length);
                            if !is_read {
                                acknowledged.fetch_add(acknowledging, Ordering::Relaxed);
                            }
                            replies -= 1;
                        }
                        None => {
                            ids.clear();
                            input.read(&mut stream, &mut bytes)?;
                        }
                    }
                }
            }
            Ok(())
        }))
    }
}

struct Adder {
    request: Vec<u8>,
    input: Input,
}

impl Publisher for Adder {
    fn publish(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.request);
    }

    fn confirmed(&mut self, input: &[u8]) -> io::Result<u64> {
        self.input.add(input);
        let mut confirmed = 0;
        while let Some(length) = reply(self.input.rest(), &mut |_| {})? {
            self.input.take(length);
            confirmed += 1;
        }
        Ok(confirmed)
    }
}

fn command(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
    bytes
}

/// `1700000000000-0`; the payload and the names look otherwise.
fn is_id(text: &[u8]) -> bool {
    text.len() < 40 && text.contains(&b'-') && text.iter().all(|byte| byte.is_ascii_digit() || *byte == b'-')
}

/// The length of the first whole reply, with each of its bulk strings shown; none if it is not whole.
fn reply(bytes: &[u8], show: &mut dyn FnMut(&[u8])) -> io::Result<Option<usize>> {
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else { return Ok(None) };
    let line = std::str::from_utf8(&bytes[..end]).map_err(io::Error::other)?;
    let number = || line[1..].parse::<i64>().map_err(io::Error::other);
    let mut at = end + 2;
    match bytes[0] {
        b'-' => return Err(io::Error::other(format!("Redis: {line}"))),
        b'$' => {
            if let Ok(length) = usize::try_from(number()?) {
                let Some(text) = bytes.get(at..at + length) else { return Ok(None) };
                if bytes.len() < at + length + 2 {
                    return Ok(None);
                }
                show(text);
                at += length + 2;
            }
        }
        b'*' => {
            for _ in 0..number()?.max(0) {
                match reply(&bytes[at..], show)? {
                    Some(length) => at += length,
                    None => return Ok(None),
                }
            }
        }
        _ => {}
    }
    Ok(Some(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_understood_when_they_are_whole() {
        let whole = b"*1\r\n*2\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\nd\r\n$2\r\n{}\r\n";
        for cut in 0..whole.len() {
            assert_eq!(reply(&whole[..cut], &mut |_| {}).unwrap(), None, "{cut}");
        }
        let mut ids = 0;
        let length = reply(whole, &mut |text| ids += u32::from(is_id(text))).unwrap();
        assert_eq!((length, ids), (Some(whole.len()), 1));
        assert_eq!(reply(b"*-1\r\n:7\r\n", &mut |_| {}).unwrap(), Some(5));
        assert_eq!(reply(b"$-1\r\n", &mut |_| {}).unwrap(), Some(5));
        assert!(reply(b"-ERR no\r\n", &mut |_| {}).is_err());
    }
}
