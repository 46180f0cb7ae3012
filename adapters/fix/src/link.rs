//! One connection to the partner: messages in, bytes out.
//!
//! Writing has a task of its own, so that two sides that both have much to say do not wait for each other for ever. What is
//! queued for it is bounded: beyond [`QUEUE_BYTES_SOFT`] nothing more is begun, beyond [`QUEUE_BYTES_MAX`] the connection
//! ends.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use gatepost_adapter::tls::Stream;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::data_fields::DataFields;
use crate::engine::Place;
use crate::message::Message;
use crate::wire::{Decoder, Item};

const READ_BYTES: usize = 64 * 1024;
/// Bytes that wait to be written, from which on no new messages are begun.
pub(crate) const QUEUE_BYTES_SOFT: usize = 1024 * 1024;
/// Bytes that wait to be written, beyond which the partner is too slow to be talked to.
const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of one write.
const WRITE_BYTES_MAX: usize = 256 * 1024;
/// Application messages of one write: what comes of their having been written goes into one settlement.
const WRITE_MESSAGES_MAX: usize = 128;
/// A partner that takes nothing for so long will not take anything.
const WRITE_PATIENCE: Duration = Duration::from_secs(30);
/// How long the partner may take to close after us.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
const KEEPALIVE_AFTER: Duration = Duration::from_secs(120);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);

/// To be set on a connection before anything is said over it.
pub(crate) fn prepare(stream: &Stream) -> io::Result<()> {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Reads messages from a connection.
pub(crate) struct Reader<S> {
    stream: S,
    decoder: Decoder,
    pub(crate) garbled: u64,
}

impl<S: AsyncRead + Unpin> Reader<S> {
    pub(crate) fn new(stream: S, message_bytes_max: usize, data_fields: DataFields) -> Self {
        Self { stream, decoder: Decoder::new(message_bytes_max, data_fields), garbled: 0 }
    }

    /// The next message; `None` when the partner has closed. What is garbled is passed over (FIX 4.4 volume 2, "Garbled
    /// messages"). May be dropped while it waits.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Message>> {
        loop {
            if let Some(message) = self.ready() {
                return Ok(Some(message));
            }
            let buffer = self.decoder.buffer();
            buffer.reserve(READ_BYTES);
            if self.stream.read_buf(buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// The first message of whoever has not said who it is: it gets no second try.
    pub(crate) async fn first(&mut self) -> io::Result<Option<Message>> {
        loop {
            match self.decoder.next_item() {
                Some(Item::Message(message)) => return Ok(Some(message)),
                Some(Item::Garbled(why)) => return Err(io::Error::new(io::ErrorKind::InvalidData, why)),
                None => {}
            }
            let buffer = self.decoder.buffer();
            buffer.reserve(READ_BYTES);
            if self.stream.read_buf(buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// The next message if it is here already.
    pub(crate) fn ready(&mut self) -> Option<Message> {
        loop {
            match self.decoder.next_item()? {
                Item::Message(message) => return Some(message),
                Item::Garbled(_) => self.garbled += 1,
            }
        }
    }

    /// With another length of messages and other data fields, once it is known whose connection it is.
    pub(crate) fn into_parts(mut self) -> (S, BytesMut) {
        let rest = self.decoder.buffer().split();
        (self.stream, rest)
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.decoder.buffer().extend_from_slice(bytes);
    }
}

/// What is to be written, and which application message it is.
type Queued = (Bytes, Option<Place>);

pub(crate) struct Link {
    reader: Reader<ReadHalf<Stream>>,
    queue: Option<mpsc::UnboundedSender<Queued>>,
    queued: Arc<AtomicUsize>,
    /// Application messages that have been written.
    written: mpsc::UnboundedReceiver<Vec<Place>>,
    writing: JoinSet<io::Result<()>>,
}

/// What happens on a connection.
pub(crate) enum Heard {
    Message(Message),
    Written(Vec<Place>),
    /// It has ended; the reason, where it is not the partner's closing it.
    End(Option<io::Error>),
}

impl Link {
    /// `rest` are bytes that were read already.
    pub(crate) fn new(
        stream: Stream,
        rest: &[u8],
        message_bytes_max: usize,
        data_fields: DataFields,
    ) -> Self {
        let (reading, to) = tokio::io::split(stream);
        let mut reader = Reader::new(reading, message_bytes_max, data_fields);
        reader.feed(rest);
        let (queue, waiting) = mpsc::unbounded_channel();
        let (tell, written) = mpsc::unbounded_channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let mut writing = JoinSet::new();
        writing.spawn(write(to, waiting, tell, Arc::clone(&queued)));
        Self { reader, queue: Some(queue), queued, written, writing }
    }

    /// What happens next. May be dropped while it waits.
    pub(crate) async fn next(&mut self) -> Heard {
        tokio::select! {
            biased;
            Some(places) = self.written.recv() => Heard::Written(places),
            Some(ended) = self.writing.join_next() => {
                Heard::End(Some(match ended {
                    Ok(Err(error)) => error,
                    Ok(Ok(())) => io::ErrorKind::BrokenPipe.into(),
                    Err(_) => io::Error::other("the task that writes has ended"),
                }))
            }
            message = self.reader.next() => match message {
                Ok(Some(message)) => Heard::Message(message),
                Ok(None) => Heard::End(None),
                Err(error) => Heard::End(Some(error)),
            },
        }
    }

    /// What has happened already.
    pub(crate) fn ready(&mut self) -> Option<Heard> {
        match self.written.try_recv() {
            Ok(places) => Some(Heard::Written(places)),
            Err(_) => self.reader.ready().map(Heard::Message),
        }
    }

    /// Queues bytes. `false`: the partner takes too little, and the connection has to end.
    pub(crate) fn write(&mut self, bytes: Bytes, carries: Option<Place>) -> bool {
        let queued = self.queued.fetch_add(bytes.len(), Ordering::AcqRel) + bytes.len();
        // A task that has ended is heard of by `next`.
        self.queue.as_ref().is_some_and(|queue| queue.send((bytes, carries)).is_ok())
            && queued <= QUEUE_BYTES_MAX
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.queued.load(Ordering::Acquire) >= QUEUE_BYTES_SOFT
    }

    pub(crate) fn garbled(&self) -> u64 {
        self.reader.garbled
    }

    /// Writes what is queued, closes, and waits a moment for the partner to do so too: closing with its bytes unread would
    /// throw ours away. Gives what has been written and was not heard of.
    pub(crate) async fn close(mut self) -> Vec<Vec<Place>> {
        self.queue = None;
        let _ = timeout(CLOSE_PATIENCE, async {
            while self.writing.join_next().await.is_some() {}
            while let Ok(Some(_)) = self.reader.next().await {}
        })
        .await;
        std::iter::from_fn(|| self.written.try_recv().ok()).collect()
    }
}

async fn write(
    mut to: WriteHalf<Stream>,
    mut waiting: mpsc::UnboundedReceiver<Queued>,
    tell: mpsc::UnboundedSender<Vec<Place>>,
    queued: Arc<AtomicUsize>,
) -> io::Result<()> {
    while let Some((first, carries)) = waiting.recv().await {
        let mut places: Vec<Place> = carries.into_iter().collect();
        let mut bytes = BytesMut::from(&first[..]);
        while bytes.len() < WRITE_BYTES_MAX
            && places.len() < WRITE_MESSAGES_MAX
            && let Ok((more, carries)) = waiting.try_recv()
        {
            bytes.extend_from_slice(&more);
            places.extend(carries);
        }
        // One that leaves twice at once is told of once.
        places.sort_unstable();
        places.dedup();
        let length = bytes.len();
        if gatepost_faults::ON && !places.is_empty() {
            let half = bytes.split_to(length / 2);
            write_all(&mut to, half).await?;
            gatepost_faults::point("fix.mid_write");
        }
        write_all(&mut to, bytes).await?;
        queued.fetch_sub(length, Ordering::AcqRel);
        if !places.is_empty() {
            gatepost_faults::point("fix.after_write");
            // Nobody listens any more once the connection is given up.
            let _ = tell.send(places);
        }
    }
    to.shutdown().await
}

async fn write_all(to: &mut WriteHalf<Stream>, mut bytes: BytesMut) -> io::Result<()> {
    let overdue = |_| io::Error::from(io::ErrorKind::TimedOut);
    while bytes.has_remaining() {
        if timeout(WRITE_PATIENCE, to.write_buf(&mut bytes)).await.map_err(overdue)?? == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    timeout(WRITE_PATIENCE, to.flush()).await.map_err(overdue)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::BeginString;
    use crate::wire::Draft;

    /// What takes longer hangs.
    const HANG: Duration = Duration::from_secs(10);

    /// QuickFIX's script 1d_InvalidLogonLengthInvalid: it is not waited for what else may come.
    #[tokio::test]
    async fn a_first_message_that_is_garbled_is_the_last() {
        let logon = Draft::new(BeginString::Fix44, "A").header_number(34, 1).encode().unwrap();
        let (mut partner, ours) = tokio::io::duplex(1024);
        let mut reader = Reader::new(ours, 512, DataFields::default());
        partner.write_all(&logon).await.unwrap();
        assert_eq!(reader.first().await.unwrap().unwrap().bytes(), &logon);
        for (good, wrong) in [("9=10", "9=11"), ("35=A", "35=0"), ("8=FIX.4.4\x019=", "8=FIX.4.4\x01x=")] {
            let text = String::from_utf8(logon.to_vec()).unwrap();
            assert!(text.contains(good), "{text}");
            let (mut partner, ours) = tokio::io::duplex(1024);
            let mut reader = Reader::new(ours, 512, DataFields::default());
            partner.write_all(text.replace(good, wrong).as_bytes()).await.unwrap();
            partner.write_all(&logon).await.unwrap();
            let first = timeout(HANG, reader.first()).await.expect("it is waited for more");
            assert_eq!(first.unwrap_err().kind(), io::ErrorKind::InvalidData, "{wrong}");
        }
    }
}
