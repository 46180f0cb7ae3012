//! Our connection to the partner: who is there, and what it is still to be told about answers that came unasked.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes};
use gatepost_adapter::tls::Stream;
use tokio::time::{Instant, timeout};

use crate::answer;
use crate::awaited::{Answer, Awaited, From, Taken};
use crate::channel::{Channel, ChannelError, Limits};
use crate::gauge::Gauge;
use crate::mllp::{self, COMMITTED, Item, NOT_COMMITTED};
use crate::owed;
use crate::peer::Peer;
use crate::quiet::Quiet;
use crate::settings::Settings;

/// A partner that does not take its acknowledgement in this time will not take it at all.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// Answers whose acknowledgement is owed; before more are read, these are settled.
const OWED_MAX: usize = 64;

pub(crate) struct Line {
    channel: Channel,
    pub(crate) peer: Peer,
    owed: VecDeque<Owed>,
    strange: Quiet,
}

/// Frames that the partner gets once the gateway has what it said.
struct Owed {
    taken: Option<Taken>,
    frames: Vec<Bytes>,
}

/// What came over the line while something else was waited for.
pub(crate) enum Heard {
    /// A partner's byte of MLLP release 2: whether it has stored what was sent.
    Committed(bool),
    Answer(Answer),
    /// It has been dealt with.
    Nothing,
}

impl Line {
    pub(crate) fn new(stream: Stream, limits: Limits) -> io::Result<Self> {
        let peer = Peer::of(&stream)?;
        let channel = Channel::new(stream, limits)?;
        Ok(Self { channel, peer, owed: VecDeque::new(), strange: Quiet::default() })
    }

    /// Is one of those that are open.
    pub(crate) fn counted_by(self, open: &Gauge) -> Self {
        Self { channel: self.channel.counted_by(open), ..self }
    }

    pub(crate) fn channel(&mut self) -> &mut Channel {
        &mut self.channel
    }

    /// The next thing that the partner says. What is owed meanwhile is paid. May be dropped while it waits.
    pub(crate) async fn hear(&mut self) -> Result<Heard, ChannelError> {
        loop {
            let item = tokio::select! {
                biased;
                frames = due(&mut self.owed) => {
                    self.pay_now(frames)?;
                    continue;
                }
                item = self.channel.next(), if self.owed.len() < OWED_MAX => item?.ok_or(ChannelError::Closed)?,
            };
            return Ok(self.understand(item));
        }
    }

    fn understand(&mut self, item: Item) -> Heard {
        let reason = match item {
            Item::Frame(body) if body == COMMITTED => return Heard::Committed(true),
            Item::Frame(body) if body == NOT_COMMITTED => return Heard::Committed(false),
            Item::Frame(body) => match answer::read(&body) {
                Ok(answer) => return Heard::Answer(answer),
                Err(reason) => reason,
            },
            Item::Oversize { .. } => "it is larger than max_frame_bytes",
            Item::Abandoned { .. } => "another message began within it",
        };
        self.strange(reason);
        Heard::Nothing
    }

    /// Tells of something that settles nothing, but not of each.
    pub(crate) fn strange(&mut self, reason: &str) {
        if let Some(messages) = self.strange.count(Instant::now()) {
            tracing::warn!(messages, reason, "the partner sent something that settles nothing");
        }
    }

    /// An answer that nobody waits for here: perhaps somebody does elsewhere. Its acknowledgement goes when that has settled.
    pub(crate) fn pass_on(&mut self, answer: Answer, awaited: &Awaited, settings: &Settings) {
        let frames = owed::for_answer(settings, &answer.body);
        let taken = awaited.offer(answer, From::Partner(settings.partner.as_deref()));
        if taken.is_none() {
            self.strange("it answers a message that does not wait for it");
        }
        if !frames.is_empty() {
            self.owed.push_back(Owed { taken, frames });
        }
    }

    /// Whether a message may be sent: the partner has not closed, and knows what became of all that it said.
    pub(crate) async fn clear(&mut self, awaited: &Awaited, settings: &Settings) -> Result<(), ChannelError> {
        while let Some(item) = self.channel.next_now()? {
            if let Heard::Answer(answer) = self.understand(item) {
                self.pass_on(answer, awaited, settings);
            }
            if self.owed.len() >= OWED_MAX {
                self.pay_all().await?;
            }
        }
        self.pay_all().await
    }

    async fn pay_all(&mut self) -> Result<(), ChannelError> {
        while !self.owed.is_empty() {
            let frames = due(&mut self.owed).await;
            self.pay(frames).await?;
        }
        Ok(())
    }

    /// Tells the partner that what it said has been taken.
    pub(crate) async fn pay(&mut self, frames: Vec<Bytes>) -> Result<(), ChannelError> {
        for frame in frames {
            timeout(WRITE_DEADLINE, self.channel.write(framed(&frame)?))
                .await
                .map_err(|_| ChannelError::Io(io::ErrorKind::TimedOut.into()))??;
        }
        Ok(())
    }

    /// At once, since whoever waits may be dropped, and half a frame would be the end of the connection.
    fn pay_now(&mut self, frames: Vec<Bytes>) -> Result<(), ChannelError> {
        frames.iter().try_for_each(|frame| self.channel.write_now(framed(frame)?))
    }
}

fn framed(body: &Bytes) -> io::Result<impl Buf + use<>> {
    mllp::frame(body).map_err(io::Error::other)
}

/// The first frames that may go. May be dropped while it waits.
async fn due(owed: &mut VecDeque<Owed>) -> Vec<Bytes> {
    match owed.front_mut() {
        None => return std::future::pending().await,
        Some(Owed { taken: Some(taken), .. }) => taken.settled().await,
        Some(Owed { taken: None, .. }) => {}
    }
    owed.pop_front().map(|owed| owed.frames).unwrap_or_default()
}
