//! What a gateway and its spawner say to each other: a datagram for each request and each answer, JSON within a bound, with descriptors
//! beside an answer. The spawner is root and whoever asks it may have been taken over: [`Request::read`] lets through nothing but
//! a name, a digest and a number.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Longest request.
pub(super) const REQUEST_BYTES_MAX: usize = 1024;
/// Longest answer: a path, or why something was refused.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// Longest reason, bytes of UTF-8; as JSON it is not longer than an answer.
const REASON_BYTES_MAX: usize = 2048;
/// The process itself, and its three streams.
const DESCRIPTORS_MAX: usize = 4;
const ADAPTER_BYTES_MAX: usize = 64;
/// SHA-256, hex.
const DIGEST_BYTES: usize = 64;

/// An adapter's name, as configurations have them: never a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct AdapterName(String);

/// Which text of the configuration is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct ConfigDigest(String);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    /// The answer has the same.
    pub(super) id: u64,
    pub(super) ask: Ask,
}

/// What the spawner can be asked. What is to be started, as whom and with which rights is not for the asker to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Ask {
    /// The adapter's socket.
    Listen {
        adapter: AdapterName,
        config: ConfigDigest,
    },
    Unlisten {
        adapter: AdapterName,
    },
    Start {
        adapter: AdapterName,
        config: ConfigDigest,
        task: Task,
    },
    /// What an earlier gateway on the same data directory has left of control groups is to go, and its processes. To be asked when the
    /// gateway is alone there, and before it starts any adapter.
    Sweep,
    /// A process that it has started, by the number that it gave it.
    Terminate {
        process: u64,
    },
    Kill {
        process: u64,
    },
    /// Its end, and its pid, which is free afterwards.
    Reap {
        process: u64,
    },
}

/// What a process is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::supervise) enum Task {
    Work,
    Manifest,
    Access,
    Check,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reply {
    pub(super) id: u64,
    pub(super) answer: Answer,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// The first of all, to no request.
    Ready,
    /// With the two sockets, which listen: for the gateway, whose path it is, and for the way out, which is beside it.
    Listening {
        path: PathBuf,
    },
    /// With the process and its streams: input, output and, for work, errors.
    Started {
        process: u64,
        pid: u32,
    },
    Done,
    /// As `wait` gives it.
    Ended {
        status: i32,
    },
    Refused {
        why: String,
    },
}

impl TryFrom<String> for AdapterName {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
        if (1..=ADAPTER_BYTES_MAX).contains(&name.len()) && name.bytes().all(fits) {
            Ok(Self(name))
        } else {
            Err("not an adapter's name")
        }
    }
}

impl TryFrom<String> for ConfigDigest {
    type Error = &'static str;

    fn try_from(digest: String) -> Result<Self, Self::Error> {
        let fits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if digest.len() == DIGEST_BYTES && digest.bytes().all(fits) {
            Ok(Self(digest))
        } else {
            Err("not a configuration's digest")
        }
    }
}

impl AdapterName {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl ConfigDigest {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Request {
    /// `None` for what is none.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > REQUEST_BYTES_MAX {
            return None;
        }
        serde_json::from_slice(bytes).ok()
    }
}

impl Reply {
    pub(super) fn refusal(id: u64, why: impl Into<String>) -> Self {
        let mut why: String = why.into();
        why.truncate(why.floor_char_boundary(REASON_BYTES_MAX));
        Self { id, answer: Answer::Refused { why } }
    }
}

/// One end of the conversation. Whoever is at the other end is told by its end that this one is gone.
#[derive(Debug)]
pub(super) struct Link(UnixStream);

impl Link {
    /// Two ends that no other process inherits.
    pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC;
        Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
    }

    pub(super) fn new(end: OwnedFd) -> io::Result<Self> {
        registered(end).map(Self)
    }

    pub(super) async fn send(&self, message: &impl Serialize, beside: &[OwnedFd]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        self.0.async_io(Interest::WRITABLE, || send(self.0.as_fd(), &bytes, beside)).await
    }

    /// The next request's bytes; descriptors that come with them are not even received. `None` when the other end is gone.
    pub(super) async fn request(&self) -> io::Result<Option<Vec<u8>>> {
        // One byte more, so that one that is too long shows.
        let receive = || receive(self.0.as_fd(), REQUEST_BYTES_MAX + 1, 0);
        let got = self.0.async_io(Interest::READABLE, receive).await?;
        Ok(got.map(|(bytes, _)| bytes))
    }

    pub(super) async fn reply(&self) -> io::Result<Option<(Reply, Vec<OwnedFd>)>> {
        self.0.async_io(Interest::READABLE, || receive_reply(self.0.as_fd())).await
    }
}

/// A process whose end can be awaited although it may be no child of this one.
#[derive(Debug)]
pub(super) struct Watch(UnixStream);

impl Watch {
    pub(super) fn new(pidfd: OwnedFd) -> io::Result<Self> {
        registered(pidfd).map(Self)
    }

    /// Its descriptor can be read from its end on. What cannot be awaited is as good as ended.
    pub(super) async fn ended(&self) {
        let _ = self.0.readable().await;
    }
}

/// For the runtime a stream is whatever can be polled; it takes other descriptors only from who promises what this program cannot.
fn registered(descriptor: OwnedFd) -> io::Result<UnixStream> {
    rustix::io::ioctl_fionbio(&descriptor, true)?;
    UnixStream::from_std(descriptor.into())
}

/// The same for who has no runtime yet; waits.
pub(super) fn receive_reply(end: BorrowedFd<'_>) -> io::Result<Option<(Reply, Vec<OwnedFd>)>> {
    let Some((bytes, beside)) = receive(end, ANSWER_BYTES_MAX, DESCRIPTORS_MAX)? else { return Ok(None) };
    Ok(Some((serde_json::from_slice(&bytes)?, beside)))
}

pub(super) fn send(end: BorrowedFd<'_>, bytes: &[u8], beside: &[OwnedFd]) -> io::Result<()> {
    let beside: Vec<_> = beside.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !beside.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&beside)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // All of a datagram is sent, or nothing. Nobody is to be killed because the other end is gone.
    sendmsg(end, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(
    end: BorrowedFd<'_>,
    bytes_max: usize,
    descriptors_max: usize,
) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; bytes_max];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let space = if descriptors_max == 0 { &mut space[..0] } else { &mut space[..] };
    let mut ancillary = RecvAncillaryBuffer::new(space);
    let got = recvmsg(end, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut beside = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            beside.extend(descriptors);
        }
    }
    if got.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    bytes.truncate(got.bytes);
    // There are no empty messages.
    Ok((got.bytes > 0).then_some((bytes, beside)))
}

/// What must hold for any bytes of a gateway's.
#[cfg(any(test, fuzzing))]
pub(in crate::supervise) fn fuzz(input: &[u8]) {
    let Some(request) = Request::read(input) else { return };
    assert!(input.len() <= REQUEST_BYTES_MAX);
    if let Ask::Listen { adapter, .. } | Ask::Unlisten { adapter } | Ask::Start { adapter, .. } = &request.ask
    {
        let mut parts = std::path::Path::new(adapter.as_str()).components();
        let only = parts.next();
        assert!(matches!(only, Some(std::path::Component::Normal(_))) && parts.next().is_none());
    }
    if let Ask::Listen { config, .. } | Ask::Start { config, .. } = &request.ask {
        assert!(config.as_str().len() == DIGEST_BYTES && config.as_str().is_ascii());
    }
    // It means what its own writing means, and nothing is in it that was not read.
    let written = serde_json::to_vec(&request).expect("a request can be written");
    assert_eq!(Request::read(&written), Some(request));
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn a_request_is_a_name_a_digest_and_a_number_and_nothing_more() {
        let start = |more: &str| {
            format!(
                r#"{{"id":1,"ask":{{"start":{{"adapter":"lab","config":"{DIGEST}","task":"work"{more}}}}}}}"#
            )
        };
        let read = |text: &str| Request::read(text.as_bytes());
        assert!(read(&start("")).is_some());
        for more in [
            r#","program":"/bin/sh""#,
            r#","run_as":{"uid":0,"gid":0}"#,
            r#","policy":{}"#,
            r#","task":"work""#,
        ] {
            assert_eq!(read(&start(more)), None, "{more}");
        }
        let named = |name: &str| read(&start("").replace("lab", name));
        let long = "a".repeat(65);
        for name in ["", "..", "../x", "a/b", ".", "A", "a b", "a\\u0000", "é", &long] {
            assert_eq!(named(name), None, "{name}");
        }
        assert!(named(&"a".repeat(64)).is_some());
        for wrong in ["", "{}", "null", "[]", r#"{"id":-1,"ask":{"kill":{"process":1}}}"#, "\u{0}"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert_eq!(read(&start("").replace(DIGEST, &DIGEST.to_uppercase())), None);
        assert_eq!(read(&start("").replace("work", "shell")), None);
        let padded = format!("{}{}", start(""), " ".repeat(REQUEST_BYTES_MAX));
        assert_eq!(read(&padded), None, "longer than a request may be");
        let pid = read(r#"{"id":1,"ask":{"kill":{"process":4294967297}}}"#);
        assert!(matches!(pid, Some(Request { ask: Ask::Kill { process: 4_294_967_297 }, .. })));
    }

    #[tokio::test]
    async fn descriptors_come_with_answers_and_never_with_requests() {
        let (one, other) = Link::pair().unwrap();
        let (gateway, spawner) = (Link::new(one).unwrap(), Link::new(other).unwrap());
        let open = || vec![OwnedFd::from(std::fs::File::open("/dev/null").unwrap())];
        let ask = Ask::Kill { process: 7 };
        gateway.send(&Request { id: 3, ask: ask.clone() }, &open()).await.unwrap();
        let got = spawner.request().await.unwrap().unwrap();
        assert_eq!(Request::read(&got), Some(Request { id: 3, ask }));
        let reply = Reply { id: 3, answer: Answer::Done };
        spawner.send(&reply, &open()).await.unwrap();
        let (got, beside) = gateway.reply().await.unwrap().unwrap();
        assert_eq!((got, beside.len()), (reply, 1));
        drop(spawner);
        assert!(gateway.reply().await.unwrap().is_none(), "the other end is gone");
    }

    #[tokio::test]
    async fn a_request_that_is_too_long_is_none_and_a_long_reason_is_cut() {
        let (one, other) = Link::pair().unwrap();
        let (gateway, spawner) = (Link::new(one).unwrap(), Link::new(other).unwrap());
        gateway.send(&"x".repeat(4 * REQUEST_BYTES_MAX), &[]).await.unwrap();
        assert!(spawner.request().await.is_err());
        spawner.send(&Reply::refusal(1, "\u{1}".repeat(100_000)), &[]).await.unwrap();
        assert!(gateway.reply().await.unwrap().is_some());
    }
}
