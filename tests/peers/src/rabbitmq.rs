//! RabbitMQ, a quorum queue: persistent publishes with confirms, and a consumer with manual acknowledgements. AMQP 0-9-1 as
//! far as that takes.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;

use crate::drive::{Connection, Input, PATIENCE, Publisher, Stream, buffer};
use crate::peer::{Consumer, LOOK, Peer, Publishing};
use crate::server::{Server, first_line, free_port, missing};

const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
const PREFETCH: u16 = 1000;
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_END: u8 = 0xce;
const QUORUM: &str = "quorum";

type Id = (u16, u16);
const START: Id = (10, 10);
const START_OK: Id = (10, 11);
const TUNE: Id = (10, 30);
const TUNE_OK: Id = (10, 31);
const OPEN: Id = (10, 40);
const OPEN_OK: Id = (10, 41);
const CHANNEL_OPEN: Id = (20, 10);
const CHANNEL_OPEN_OK: Id = (20, 11);
const QUEUE_DECLARE: Id = (50, 10);
const QUEUE_DECLARE_OK: Id = (50, 11);
const QUEUE_DELETE: Id = (50, 40);
const QUEUE_DELETE_OK: Id = (50, 41);
const QOS: Id = (60, 10);
const QOS_OK: Id = (60, 11);
const CONSUME: Id = (60, 20);
const CONSUME_OK: Id = (60, 21);
const PUBLISH: Id = (60, 40);
const DELIVER: Id = (60, 60);
const ACK: Id = (60, 80);
const CONFIRM_SELECT: Id = (85, 10);
const CONFIRM_SELECT_OK: Id = (85, 11);

pub(crate) struct RabbitMq {
    _server: Server,
    _names: Names,
    port: u16,
    version: String,
    payload: String,
    queues: u32,
}

/// Erlang's daemon of names, which outlives its servers; ours has a port of its own.
struct Names {
    port: u16,
}

impl Drop for Names {
    fn drop(&mut self) {
        // If it does not hear, it is left without a server and does nothing.
        let mut kill = Command::new("epmd");
        let _ = kill.env("ERL_EPMD_PORT", self.port.to_string()).arg("-kill").output();
    }
}

impl RabbitMq {
    pub(crate) fn start(dir: &Path, payload: &str) -> io::Result<Self> {
        if !Path::new(SERVER).exists() {
            return Err(missing("rabbitmq-server")(io::ErrorKind::NotFound.into()));
        }
        let (port, names, distribution) = (free_port()?, free_port()?, free_port()?);
        let plugins = dir.join("enabled_plugins");
        std::fs::write(&plugins, "[].\n")?;
        let config = dir.join("rabbitmq.conf");
        std::fs::write(&config, format!("listeners.tcp.1 = 127.0.0.1:{port}\n"))?;
        let mut command = Command::new(SERVER);
        command
            .env("HOME", dir)
            .env("ERL_EPMD_PORT", names.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", format!("bench-{port}@localhost"))
            .env("RABBITMQ_DIST_PORT", distribution.to_string())
            .env("RABBITMQ_MNESIA_BASE", dir.join("data"))
            .env("RABBITMQ_LOG_BASE", dir.join("log"))
            .env("RABBITMQ_CONFIG_FILE", &config)
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", &plugins)
            .env("RABBITMQ_PID_FILE", dir.join("pid"));
        let names = Names { port: names };
        let server = Server::start(&mut command, dir, || Channel::open(port).map(drop))?;
        Ok(Self {
            _server: server,
            _names: names,
            port,
            version: version(),
            payload: payload.to_owned(),
            queues: 0,
        })
    }

    fn queue_name(&self) -> String {
        format!("bench-{}", self.queues)
    }
}

/// As its directory says: asking the program would start a whole Erlang.
fn version() -> String {
    let target = std::fs::canonicalize(SERVER).unwrap_or_default();
    let name = target.ancestors().nth(2).and_then(Path::file_name).map(PathBuf::from).unwrap_or_default();
    let name = name.to_string_lossy();
    match name.rsplit_once('-') {
        Some((_, version)) => version.to_owned(),
        None => first_line(Command::new("dpkg-query").args(["-Wf", "${Version}", "rabbitmq-server"]))
            .unwrap_or_else(|_| "?".to_owned()),
    }
}

impl Peer for RabbitMq {
    fn name(&self) -> &'static str {
        "RabbitMQ quorum queue"
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn durability(&self) -> &'static str {
        "publisher confirms"
    }

    fn queue(&mut self) -> io::Result<()> {
        let mut channel = Channel::open(self.port)?;
        if self.queues > 0 {
            let delete = Arguments::default().short(0).text(&self.queue_name()).octet(0);
            channel.call(QUEUE_DELETE, delete, QUEUE_DELETE_OK)?;
        }
        self.queues += 1;
        let mut table = Arguments::default().text("x-queue-type").octet(b'S');
        table = table.long(QUORUM.len() as u32).bytes(QUORUM.as_bytes());
        // Durable.
        let declare = Arguments::default().short(0).text(&self.queue_name()).octet(0b10);
        let declare = declare.long(table.0.len() as u32).bytes(&table.0);
        channel.call(QUEUE_DECLARE, declare, QUEUE_DECLARE_OK)
    }

    fn publishers(&mut self, in_flight: u64) -> io::Result<Publishing> {
        let mut channel = Channel::open(self.port)?;
        channel.call(CONFIRM_SELECT, Arguments::default().octet(0), CONFIRM_SELECT_OK)?;
        let to = Arguments::default().short(0).text("").text(&self.queue_name()).octet(0);
        let mut request = method(1, PUBLISH, &to);
        // Delivery mode 2: persistent.
        let header = Arguments::default().short(PUBLISH.0).short(0).longlong(self.payload.len() as u64);
        request.extend(frame(HEADER, 1, &header.short(0x1000).octet(2).0));
        request.extend(frame(BODY, 1, self.payload.as_bytes()));
        let publisher = Confirmed { request, input: channel.input, until: 0 };
        let connections = vec![Connection::new(channel.stream, publisher)?];
        Ok(Publishing { connections, window: in_flight, messages_per_request: 1 })
    }

    fn consumer(&mut self, _: usize) -> io::Result<Consumer> {
        let mut channel = Channel::open(self.port)?;
        channel.call(QOS, Arguments::default().long(0).short(PREFETCH).octet(0), QOS_OK)?;
        let consume = Arguments::default().short(0).text(&self.queue_name()).text("c").octet(0).long(0);
        channel.call(CONSUME, consume, CONSUME_OK)?;
        channel.stream.wait_at_most(LOOK)?;
        Ok(Box::new(move |stop, acknowledged| {
            let Channel { mut stream, mut input, mut buffer } = channel;
            // Of the message that is arriving: its tag, and how much of its body is to come.
            let (mut tag, mut missing) = (0, 0u64);
            while !stop.load(Ordering::Relaxed) {
                let (mut whole, mut last) = (0, 0);
                while let Some((kind, body, length)) = next_frame(input.rest())? {
                    match (kind, read_id(body)) {
                        (METHOD, Some(DELIVER)) => tag = read_u64(&body[5 + usize::from(body[4])..])?,
                        (HEADER, _) => missing = read_u64(&body[4..])?,
                        (BODY, _) => {
                            missing = missing.saturating_sub(body.len() as u64);
                            if missing == 0 {
                                (whole, last) = (whole + 1, tag);
                            }
                        }
                        _ => {}
                    }
                    input.take(length);
                }
                if whole > 0 {
                    // All up to this one, at once.
                    stream.write_all(&method(1, ACK, &Arguments::default().longlong(last).octet(1)))?;
                    acknowledged.fetch_add(whole, Ordering::Relaxed);
                }
                input.read(&mut stream, &mut buffer)?;
            }
            Ok(())
        }))
    }
}

/// One connection with its channel 1.
struct Channel {
    stream: Stream,
    input: Input,
    buffer: Vec<u8>,
}

impl Channel {
    fn open(port: u16) -> io::Result<Self> {
        let stream = Stream::tcp(port)?;
        stream.wait_at_most(PATIENCE)?;
        let mut channel = Self { stream, input: Input::default(), buffer: buffer() };
        channel.stream.write_all(b"AMQP\0\0\x09\x01")?;
        channel.expect(START)?;
        let login = b"\0guest\0guest";
        let start =
            Arguments::default().long(0).text("PLAIN").long(login.len() as u32).bytes(login).text("en_US");
        channel.stream.write_all(&method(0, START_OK, &start))?;
        channel.expect(TUNE)?;
        let tune = Arguments::default().short(16).long(131_072).short(0);
        channel.stream.write_all(&method(0, TUNE_OK, &tune))?;
        let open = Arguments::default().text("/").text("").octet(0);
        channel.stream.write_all(&method(0, OPEN, &open))?;
        channel.expect(OPEN_OK)?;
        channel.call(CHANNEL_OPEN, Arguments::default().text(""), CHANNEL_OPEN_OK)?;
        Ok(channel)
    }

    fn call(&mut self, id: Id, arguments: Arguments, answer: Id) -> io::Result<()> {
        self.stream.write_all(&method(1, id, &arguments))?;
        self.expect(answer)
    }

    fn expect(&mut self, wanted: Id) -> io::Result<()> {
        loop {
            if let Some((_, body, length)) = next_frame(self.input.rest())? {
                let found = read_id(body);
                if found != Some(wanted) {
                    let text = String::from_utf8_lossy(body).into_owned();
                    return Err(io::Error::other(format!(
                        "RabbitMQ: {found:?} in place of {wanted:?}: {text}"
                    )));
                }
                self.input.take(length);
                return Ok(());
            }
            if !self.input.read(&mut self.stream, &mut self.buffer)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

struct Confirmed {
    request: Vec<u8>,
    input: Input,
    /// Everything up to this tag is confirmed.
    until: u64,
}

impl Publisher for Confirmed {
    fn publish(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.request);
    }

    fn confirmed(&mut self, input: &[u8]) -> io::Result<u64> {
        self.input.add(input);
        let mut confirmed = 0;
        while let Some((_, body, length)) = next_frame(self.input.rest())? {
            if read_id(body) != Some(ACK) {
                return Err(io::Error::other(format!("RabbitMQ: {:?} in place of a confirm", read_id(body))));
            }
            let tag = read_u64(&body[4..])?;
            // One queue confirms in order: `multiple` means all before it, and a single one is the next.
            confirmed += if body.get(12).is_some_and(|bits| bits & 1 == 1) { tag - self.until } else { 1 };
            self.until = self.until.max(tag);
            self.input.take(length);
        }
        Ok(confirmed)
    }
}

/// Arguments of a method, one after the other.
#[derive(Default)]
struct Arguments(Vec<u8>);

impl Arguments {
    fn octet(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    fn short(self, value: u16) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    fn long(self, value: u32) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    fn longlong(self, value: u64) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    fn text(self, text: &str) -> Self {
        self.octet(text.len() as u8).bytes(text.as_bytes())
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

fn method(channel: u16, id: Id, arguments: &Arguments) -> Vec<u8> {
    frame(METHOD, channel, &Arguments::default().short(id.0).short(id.1).bytes(&arguments.0).0)
}

fn frame(kind: u8, channel: u16, body: &[u8]) -> Vec<u8> {
    let head = Arguments::default().octet(kind).short(channel).long(body.len() as u32);
    head.bytes(body).octet(FRAME_END).0
}

/// The next whole frame: its kind, its body, its length.
fn next_frame(bytes: &[u8]) -> io::Result<Option<(u8, &[u8], usize)>> {
    let Some(size) = bytes.get(3..7).and_then(|size| size.try_into().ok()).map(u32::from_be_bytes) else {
        return Ok(None);
    };
    let end = 7 + size as usize;
    match bytes.get(end) {
        None => Ok(None),
        Some(&FRAME_END) => Ok(Some((bytes[0], &bytes[7..end], end + 1))),
        Some(_) => Err(io::Error::other("RabbitMQ: a frame without its end")),
    }
}

fn read_id(body: &[u8]) -> Option<Id> {
    let short = |at: usize| Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?));
    Some((short(0)?, short(2)?))
}

fn read_u64(bytes: &[u8]) -> io::Result<u64> {
    let eight = bytes.get(..8).and_then(|eight| eight.try_into().ok());
    eight.map(u64::from_be_bytes).ok_or_else(|| io::Error::other("RabbitMQ: a method too short"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_understood_when_they_are_whole() {
        let whole = method(1, ACK, &Arguments::default().longlong(7).octet(1));
        for cut in 0..whole.len() {
            assert_eq!(next_frame(&whole[..cut]).unwrap(), None, "{cut}");
        }
        let (kind, body, length) = next_frame(&whole).unwrap().unwrap();
        assert_eq!((kind, read_id(body), length), (METHOD, Some(ACK), whole.len()));
        assert_eq!(read_u64(&body[4..]).unwrap(), 7);
        let mut torn = whole;
        *torn.last_mut().unwrap() = 0;
        assert!(next_frame(&torn).is_err());
    }

    #[test]
    fn confirms_of_several_count_each() {
        let mut publisher = Confirmed { request: Vec::new(), input: Input::default(), until: 0 };
        let ack = |tag, multiple| method(1, ACK, &Arguments::default().longlong(tag).octet(multiple));
        assert_eq!(publisher.confirmed(&ack(1, 0)).unwrap(), 1);
        assert_eq!(publisher.confirmed(&[ack(5, 1), ack(6, 0)].concat()).unwrap(), 5);
        assert!(publisher.confirmed(&method(1, (60, 120), &Arguments::default())).is_err());
    }
}
