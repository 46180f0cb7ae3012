//! The way to partners: a supervised adapter is connected by its gateway, which knows what it may reach, and gets the connected socket.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use gatepost_api::session::EGRESS_AT_ONCE_MAX;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::process::SOCKET_VARIABLE;

/// The socket's name, beside the gateway's.
pub(crate) const SOCKET_NAME: &str = "egress";
/// Longest answer, bytes.
pub(crate) const ANSWER_BYTES_MAX: usize = 64;
/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 16;
/// Connections that are asked for at a time; further ones wait, so that who has hundreds of partners is not refused. Below what the gateway
/// lets by what it may not have seen close yet.
const ASKED_MAX: usize = EGRESS_AT_ONCE_MAX / 4 * 3;
static TURNS: Semaphore = Semaphore::const_new(ASKED_MAX);
/// How long an address has before the next one is tried beside it.
const HEAD_START: Duration = Duration::from_millis(250);

/// Connects to `host:port` or `[address]:port`: through the gateway where that has started this process, else directly. Dropping the
/// future gives the attempt up; it has no limit of its own but the gateway's.
pub async fn connect(to: &str) -> io::Result<TcpStream> {
    turn().await.connect(to).await
}

/// A turn to connect. Whoever waits for one waits for other connections of this process, and not for its partner.
pub(crate) struct Turn<'a> {
    desk: Option<PathBuf>,
    _permit: Option<SemaphorePermit<'a>>,
}

pub(crate) async fn turn() -> Turn<'static> {
    Turn::wait(desk(), &TURNS).await
}

impl<'a> Turn<'a> {
    pub(crate) async fn wait(desk: Option<PathBuf>, turns: &'a Semaphore) -> Self {
        // The semaphore is never closed; if it were, the gateway's own limit still holds.
        let permit = if desk.is_some() { turns.acquire().await.ok() } else { None };
        Self { desk, _permit: permit }
    }

    pub(crate) async fn connect(self, to: &str) -> io::Result<TcpStream> {
        let Some(desk) = &self.desk else { return directly(to).await };
        match UnixStream::connect(desk).await {
            Ok(desk) => ask(desk, to).await,
            // The gateway of an adapter that somebody else starts has none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => directly(to).await,
            Err(error) => Err(error),
        }
    }
}

/// Where the gateway that has started this process is asked.
pub(crate) fn desk() -> Option<PathBuf> {
    Some(Path::new(&std::env::var_os(SOCKET_VARIABLE)?).parent()?.join(SOCKET_NAME))
}

async fn directly(to: &str) -> io::Result<TcpStream> {
    first_of(lookup_host(to).await?.take(ADDRESSES_MAX).collect()).await
}

/// As the gateway does it: the first that answers. One that does not, as where a name has addresses of a network that leads nowhere, does
/// not hold up the others.
async fn first_of(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut left = addresses.into_iter();
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host's name has no address");
    // Dropped with this future, which ends them all.
    let mut tried = JoinSet::new();
    loop {
        if let Some(address) = left.next() {
            tried.spawn(TcpStream::connect(address));
        }
        tokio::select! {
            Some(ended) = tried.join_next() => match ended.map_err(io::Error::from).flatten() {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = error,
            },
            () = sleep(HEAD_START), if left.len() > 0 => {}
            else => return Err(failed),
        }
    }
}

async fn ask(mut desk: UnixStream, to: &str) -> io::Result<TcpStream> {
    desk.write_all(format!("{to}\n").as_bytes()).await?;
    let (mut answer, mut passed) = (Vec::new(), None);
    while !answer.ends_with(b"\n") && answer.len() < ANSWER_BYTES_MAX {
        let (bytes, socket) = desk.async_io(Interest::READABLE, || receive(&desk)).await?;
        if bytes.is_empty() {
            break;
        }
        answer.extend_from_slice(&bytes);
        passed = passed.or(socket);
    }
    match (answer.as_slice(), passed) {
        (b"ok\n", Some(socket)) => {
            let stream = std::net::TcpStream::from(socket);
            stream.set_nonblocking(true)?;
            TcpStream::from_std(stream)
        }
        (answer, _) => Err(failure(answer)),
    }
}

/// A piece of the answer, and what came with it.
pub(crate) fn receive(desk: impl AsFd) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut bytes = [0; ANSWER_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(desk, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let passed = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
        _ => None,
    });
    Ok((bytes.iter().copied().take(received.bytes).collect(), passed))
}

/// The gateway's words as the kinds that a connect of one's own ends with.
fn failure(answer: &[u8]) -> io::Error {
    use io::ErrorKind as Kind;
    let (kind, text) = match answer {
        b"failed: connection_refused\n" => return Kind::ConnectionRefused.into(),
        b"failed: timed_out\n" => return Kind::TimedOut.into(),
        b"failed: unreachable\n" => return Kind::HostUnreachable.into(),
        b"failed: name_not_known\n" => (Kind::NotFound, "the host's name is not known"),
        b"failed: other\n" => (Kind::Other, "the gateway could not connect"),
        b"refused: not_allowed\n" => {
            (Kind::PermissionDenied, "the configuration does not allow this adapter to connect there")
        }
        b"refused: malformed\n" => (Kind::InvalidInput, "not `host:port`"),
        b"refused: too_many\n" => (Kind::ResourceBusy, "too many connections are being made"),
        _ => (Kind::ConnectionAborted, "the gateway gave no answer"),
    };
    io::Error::new(kind, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    use tokio::net::{TcpListener, TcpSocket};
    use tokio::time::timeout;

    /// A gateway's way out that answers once.
    async fn answered(answer: &'static [u8]) -> io::Result<TcpStream> {
        let dir = tempfile::tempdir().unwrap();
        let desk = dir.path().join(SOCKET_NAME);
        let listener = std::os::unix::net::UnixListener::bind(&desk).unwrap();
        let gateway = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 6];
            stream.read_exact(&mut request).unwrap();
            assert_eq!(&request, b"lab:1\n");
            stream.write_all(answer).unwrap();
        });
        let stream = Turn::wait(Some(desk), &Semaphore::new(1)).await.connect("lab:1").await;
        gateway.join().unwrap();
        stream
    }

    #[tokio::test]
    async fn the_gateways_answers_are_the_kinds_of_a_connect() {
        use io::ErrorKind as Kind;
        for (answer, kind) in [
            (&b"failed: connection_refused\n"[..], Kind::ConnectionRefused),
            (b"failed: timed_out\n", Kind::TimedOut),
            (b"failed: unreachable\n", Kind::HostUnreachable),
            (b"failed: name_not_known\n", Kind::NotFound),
            (b"failed: other\n", Kind::Other),
            (b"refused: not_allowed\n", Kind::PermissionDenied),
            (b"refused: malformed\n", Kind::InvalidInput),
            (b"refused: too_many\n", Kind::ResourceBusy),
            (b"", Kind::ConnectionAborted),
            (b"o", Kind::ConnectionAborted),
            // Without a socket it is worth nothing.
            (b"ok\n", Kind::ConnectionAborted),
            (&[b'x'; 200], Kind::ConnectionAborted),
        ] {
            assert_eq!(answered(answer).await.unwrap_err().kind(), kind, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn no_more_is_asked_for_at_a_time_than_the_gateway_grants_and_the_rest_has_its_turn() {
        const PARTNERS: usize = 600;
        let dir = tempfile::tempdir().unwrap();
        let listener = tokio::net::UnixListener::bind(dir.path().join(SOCKET_NAME)).unwrap();
        let mut asking = JoinSet::new();
        for _ in 0..PARTNERS {
            let desk = dir.path().join(SOCKET_NAME);
            asking.spawn(async move {
                Turn::wait(Some(desk), &TURNS).await.connect("lab:1").await.unwrap_err().kind()
            });
        }
        let mut asked = 0;
        while asked < PARTNERS {
            // Nobody is answered before no more come.
            let mut waiting = Vec::new();
            while let Ok(accepted) = timeout(Duration::from_millis(200), listener.accept()).await {
                waiting.push(accepted.unwrap().0);
            }
            assert!((1..EGRESS_AT_ONCE_MAX).contains(&waiting.len()), "{}", waiting.len());
            asked += waiting.len();
            for stream in waiting {
                assert_eq!(stream.try_write(b"failed: timed_out\n").unwrap(), 18);
            }
        }
        assert!(asking.join_all().await.iter().all(|kind| *kind == io::ErrorKind::TimedOut));
    }

    #[tokio::test]
    async fn where_no_gateway_connects_the_adapter_does() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap().to_string();
        let turns = Semaphore::new(1);
        Turn::wait(None, &turns).await.connect(&to).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        Turn::wait(Some(dir.path().join(SOCKET_NAME)), &turns).await.connect(&to).await.unwrap();
    }

    #[tokio::test]
    async fn an_address_that_leads_nowhere_does_not_hold_up_the_others() {
        let (nowhere, _full) = nowhere().await;
        let partner = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut addresses = vec![nowhere; 5];
        addresses.push(partner.local_addr().unwrap());
        // The kernel alone would try for minutes, one after the other.
        let connected = timeout(Duration::from_secs(60), first_of(addresses)).await;
        assert_eq!(connected.unwrap().unwrap().peer_addr().unwrap(), partner.local_addr().unwrap());
        assert_eq!(first_of(Vec::new()).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    /// An address that answers nobody: its queue is full.
    async fn nowhere() -> (SocketAddr, (TcpListener, TcpStream)) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        (address, (listener, TcpStream::connect(address).await.unwrap()))
    }
}
