//! NATS JetStream, `sync_interval: always`: publishes with acknowledgement, and a durable pull consumer whose
//! acknowledgements are confirmed in turn.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;

use crate::drive::{Connection, Input, PATIENCE, Publisher, Stream, buffer};
use crate::peer::{Consumer, LOOK, Peer, Publishing};
use crate::server::{Server, first_line, free_port, missing};

/// Messages of one pull.
const PULL: u64 = 256;
const HELLO: &[u8] = b"CONNECT {\"verbose\":false,\"pedantic\":false,\"name\":\"bench\",\"lang\":\"rust\",\"version\":\"1\",\"protocol\":1,\"headers\":true,\"no_responders\":true}\r\n";

pub(crate) struct Nats {
    _server: Server,
    port: u16,
    version: String,
    payload: String,
    queues: u32,
}

impl Nats {
    pub(crate) fn start(dir: &Path, program: &Path, payload: &str) -> io::Result<Self> {
        let version = first_line(Command::new(program).arg("--version")).map_err(missing("nats-server"))?;
        let port = free_port()?;
        let config = dir.join("nats.conf");
        let store = serde_json::Value::from(dir.join("store").to_string_lossy().as_ref());
        std::fs::write(
            &config,
            format!(
                "listen: 127.0.0.1:{port}\njetstream {{ store_dir: {store}, sync_interval: always, max_file_store: 50GB }}\n"
            ),
        )?;
        let mut command = Command::new(program);
        command.arg("-c").arg(&config);
        let server = Server::start(&mut command, dir, || Stream::tcp(port).map(drop))?;
        let version = version.trim_start_matches("nats-server: v").to_owned();
        Ok(Self { _server: server, port, version, payload: payload.to_owned(), queues: 0 })
    }

    fn connect(&self) -> io::Result<Stream> {
        let mut stream = Stream::tcp(self.port)?;
        stream.write_all(HELLO)?;
        Ok(stream)
    }

    fn stream(&self) -> String {
        format!("bench{}", self.queues)
    }

    /// One request to the server's own API.
    fn call(&self, subject: &str, body: &str) -> io::Result<()> {
        let mut stream = self.connect()?;
        stream.wait_at_most(PATIENCE)?;
        let request = format!("SUB r 1\r\nPUB $JS.API.{subject} r {}\r\n{body}\r\n", body.len());
        stream.write_all(request.as_bytes())?;
        let (mut input, mut bytes) = (Input::default(), buffer());
        loop {
            while let Some((message, length)) = next(input.rest())? {
                if let Some(message) = message {
                    let text = String::from_utf8_lossy(message.body);
                    return if text.contains("\"error\"") {
                        Err(io::Error::other(text.into_owned()))
                    } else {
                        Ok(())
                    };
                }
                input.take(length);
            }
            if !input.read(&mut stream, &mut bytes)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

impl Peer for Nats {
    fn name(&self) -> &'static str {
        "NATS JetStream"
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn durability(&self) -> &'static str {
        "sync_interval always"
    }

    fn queue(&mut self) -> io::Result<()> {
        if self.queues > 0 {
            self.call(&format!("STREAM.DELETE.{}", self.stream()), "")?;
        }
        self.queues += 1;
        let name = self.stream();
        let stream = format!(
            r#"{{"name":"{name}","subjects":["{name}.q"],"retention":"limits","storage":"file","max_consumers":-1,"max_msgs":-1,"max_bytes":-1,"max_age":0,"num_replicas":1}}"#
        );
        self.call(&format!("STREAM.CREATE.{name}"), &stream)?;
        let consumer = format!(
            r#"{{"stream_name":"{name}","config":{{"durable_name":"c","ack_policy":"explicit","deliver_policy":"all","ack_wait":60000000000,"max_ack_pending":10000}}}}"#
        );
        self.call(&format!("CONSUMER.DURABLE.CREATE.{name}.c"), &consumer)
    }

    fn publishers(&mut self, in_flight: u64) -> io::Result<Publishing> {
        let mut stream = self.connect()?;
        stream.write_all(b"SUB r 1\r\n")?;
        let request = format!("PUB {}.q r {}\r\n{}\r\n", self.stream(), self.payload.len(), self.payload);
        let publisher = Acknowledged { request: request.into_bytes(), input: Input::default() };
        let connections = vec![Connection::new(stream, publisher)?];
        Ok(Publishing { connections, window: in_flight, messages_per_request: 1 })
    }

    fn consumer(&mut self, _: usize) -> io::Result<Consumer> {
        let mut stream = self.connect()?;
        stream.wait_at_most(LOOK)?;
        stream.write_all(b"SUB m 1\r\nSUB a 2\r\n")?;
        let wanted = format!(r#"{{"batch":{PULL},"expires":1000000000}}"#);
        let pull =
            format!("PUB $JS.API.CONSUMER.MSG.NEXT.{}.c m {}\r\n{wanted}\r\n", self.stream(), wanted.len());
        Ok(Box::new(move |stop, acknowledged| {
            let (mut input, mut bytes) = (Input::default(), buffer());
            let mut out = Vec::new();
            let mut wanted = 0;
            while !stop.load(Ordering::Relaxed) {
                // The next pull travels before the last has been served to its end.
                if wanted <= PULL / 2 {
                    wanted += PULL;
                    out.extend_from_slice(pull.as_bytes());
                }
                stream.write_all(&out)?;
                out.clear();
                if !input.read(&mut stream, &mut bytes)? {
                    continue;
                }
                let mut confirmed = 0;
                while let Some((message, length)) = next(input.rest())? {
                    match message {
                        Some(Message { subject: b"a", .. }) => confirmed += 1,
                        Some(Message { reply: Some(reply), .. }) => {
                            wanted = wanted.saturating_sub(1);
                            out.extend_from_slice(b"PUB ");
                            out.extend_from_slice(reply);
                            out.extend_from_slice(b" a 4\r\n+ACK\r\n");
                        }
                        // A pull that has run out says so, and may have been served in part.
                        Some(_) => wanted = 0,
                        None => {}
                    }
                    input.take(length);
                }
                acknowledged.fetch_add(confirmed, Ordering::Relaxed);
            }
            Ok(())
        }))
    }
}

struct Acknowledged {
    request: Vec<u8>,
    input: Input,
}

impl Publisher for Acknowledged {
    fn publish(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.request);
    }

    fn confirmed(&mut self, input: &[u8]) -> io::Result<u64> {
        self.input.add(input);
        let mut confirmed = 0;
        while let Some((message, length)) = next(self.input.rest())? {
            if let Some(message) = message {
                if !message.body.windows(6).any(|part| part == b"\"seq\":") {
                    return Err(io::Error::other(String::from_utf8_lossy(message.body).into_owned()));
                }
                confirmed += 1;
            }
            self.input.take(length);
        }
        Ok(confirmed)
    }
}

#[derive(Debug, PartialEq)]
struct Message<'a> {
    subject: &'a [u8],
    reply: Option<&'a [u8]>,
    /// With its headers, if it has some.
    body: &'a [u8],
}

/// The next thing the server says and its length; none if it is not whole. Only messages are looked at.
fn next(bytes: &[u8]) -> io::Result<Option<(Option<Message<'_>>, usize)>> {
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else { return Ok(None) };
    let line = &bytes[..end];
    let at = end + 2;
    if line.starts_with(b"-ERR") {
        return Err(io::Error::other(format!("NATS: {}", String::from_utf8_lossy(line))));
    }
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    // MSG subject sid [reply] size · HMSG subject sid [reply] head size
    let plain = match words[0] {
        b"MSG" => 4,
        b"HMSG" => 5,
        _ => return Ok(Some((None, at))),
    };
    let last = words.last().and_then(|word| std::str::from_utf8(word).ok()?.parse::<usize>().ok());
    let size = last.ok_or_else(|| io::Error::other("a message without a size"))?;
    if bytes.len() < at + size + 2 {
        return Ok(None);
    }
    let reply = (words.len() > plain).then(|| words[3]);
    let message = Message { subject: words[1], reply, body: &bytes[at..at + size] };
    Ok(Some((Some(message), at + size + 2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_understood_when_they_are_whole() {
        let whole = b"MSG m 1 $JS.ACK.x 2\r\n{}\r\n";
        for cut in 0..whole.len() {
            assert_eq!(next(&whole[..cut]).unwrap(), None, "{cut}");
        }
        let (message, length) = next(whole).unwrap().unwrap();
        assert_eq!(length, whole.len());
        assert_eq!(message, Some(Message { subject: b"m", reply: Some(b"$JS.ACK.x"), body: b"{}" }));
        let (message, _) = next(b"HMSG m 1 4 6\r\nhhhhbb\r\n").unwrap().unwrap();
        assert_eq!(message, Some(Message { subject: b"m", reply: None, body: b"hhhhbb" }));
        assert_eq!(next(b"PING\r\nMSG").unwrap(), Some((None, 6)));
        assert!(next(b"-ERR 'no'\r\n").is_err());
    }
}
