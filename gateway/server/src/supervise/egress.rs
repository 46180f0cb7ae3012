//! The way out of adapters that do not connect by themselves: beside its socket each supervised adapter finds another, `egress`. It
//! connects, writes `host:port` and an end of line, and gets one line back: `ok` together with the connected socket, or why there is
//! none. So hosts are enforced, which the kernel cannot do, and the adapter needs neither names nor a network. An absolute path in place
//! of that is a file to be opened (`handover.rs`).
//!
//! This module must never connect to what the adapter's configuration and settings do not name, never look a name up before that is
//! decided, and never wait without a deadline.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gatepost_api::session::EGRESS_AT_ONCE_MAX;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep, timeout};

use super::handover::Handover;
use super::output::printable;
use crate::config::{Connect, Host};
use crate::listen::{EgressSocket, RefusalCode, Server};

/// Longest request, bytes: a host name, a colon, a port and the end of the line, with room.
const REQUEST_BYTES_MAX: usize = 300;
/// The same of one for a file: the longest path, and the end of the line.
const PATH_REQUEST_BYTES_MAX: usize = 4097;
/// How long the request may take.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// Names that are looked up for one adapter at a time.
const LOOKUPS_MAX: usize = 8;
/// Files that are opened for one adapter at a time.
const OPENINGS_MAX: usize = 4;
/// How long a name may take to be found.
const LOOKUP_DEADLINE: Duration = Duration::from_secs(10);
/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 16;
/// How long one of them has before the next one is tried beside it.
const HEAD_START: Duration = Duration::from_millis(250);
/// How long all of it may take. Adapters have shorter limits of their own, and go away.
const CONNECT_DEADLINE: Duration = Duration::from_secs(60);
/// How long the adapter may take to take its answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// After `accept` failed, which is for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The log tells of an adapter's refusals, and of files that cannot be opened for it, this often; the audit log counts all refusals.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// What the process that is let in may ask for.
#[derive(Debug, Default)]
pub(super) struct Rules {
    pub(super) connect: Vec<Connect>,
    pub(super) files: Handover,
}

/// Serves one adapter's way out until it is closed or dropped.
pub(super) struct Egress {
    allowed: watch::Sender<Arc<Rules>>,
    serving: JoinHandle<()>,
}

/// Where an adapter asks to be connected to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    host: Host,
    port: u16,
}

/// Why there is no connection, in the words of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failed {
    ConnectionRefused,
    TimedOut,
    Unreachable,
    NameNotKnown,
    NotOpened,
    Other,
}

impl Egress {
    /// Nothing is allowed yet.
    pub(super) fn open(socket: EgressSocket, server: Arc<Server>) -> Self {
        let (allowed, rules) = watch::channel(Arc::default());
        let lookups = Arc::new(Semaphore::new(LOOKUPS_MAX));
        let openings = Arc::new(Semaphore::new(OPENINGS_MAX));
        let (told, told_failure) = (<[_; 2]>::default(), Mutex::default());
        let desk = Arc::new(Desk { server, rules, lookups, openings, told, told_failure, socket });
        Self { allowed, serving: tokio::spawn(desk.serve()) }
    }

    /// What the process that is let in next may ask for.
    pub(super) fn allow(&self, rules: Rules) {
        self.allowed.send_replace(Arc::new(rules));
    }

    pub(super) fn is_broken(&self) -> bool {
        self.serving.is_finished()
    }

    /// Comes back when its file is gone.
    pub(super) async fn close(&mut self) {
        self.serving.abort();
        // Cut on purpose; a panic has been told where it happened.
        let _ = (&mut self.serving).await;
    }
}

impl Drop for Egress {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

struct Desk {
    server: Arc<Server>,
    socket: EgressSocket,
    rules: watch::Receiver<Arc<Rules>>,
    lookups: Arc<Semaphore>,
    openings: Arc<Semaphore>,
    /// Of connections and of files: neither hides the other.
    told: [Mutex<Option<Instant>>; 2],
    told_failure: Mutex<Option<Instant>>,
}

impl Desk {
    async fn serve(self: Arc<Self>) {
        // Dropped with this future, which ends them all.
        let mut asked = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                Some(_) = asked.join_next(), if !asked.is_empty() => continue,
                accepted = self.socket.accept() => accepted,
            };
            let Ok(stream) = accepted else {
                sleep(ACCEPT_PAUSE).await;
                continue;
            };
            // Before it takes a place: places are the adapter's alone.
            if !self.socket.is_from_the_adapter(&self.server, &stream) {
                continue;
            }
            if asked.len() < EGRESS_AT_ONCE_MAX {
                asked.spawn(Arc::clone(&self).attend(stream));
            } else {
                self.refuse(RefusalCode::RequestLimit, b"");
                let _ = stream.try_write(refusal(RefusalCode::RequestLimit).as_bytes());
            }
        }
    }

    async fn attend(self: Arc<Self>, mut stream: UnixStream) {
        let request = timeout(REQUEST_DEADLINE, read_request(&mut stream)).await;
        let request = match request {
            Ok(Ok(request)) => request,
            // It went away.
            Ok(Err(_)) => return,
            Err(_) => Vec::new(),
        };
        let rules = Arc::clone(&self.rules.borrow());
        let answer = match asked(&request, &rules) {
            Err(code) => {
                self.refuse(code, &request);
                return drop(timeout(ANSWER_DEADLINE, answer(&stream, refusal(code), None)).await);
            }
            Ok(asked) => tokio::select! {
                biased;
                // Nothing more is to come, so whatever comes means that nobody waits.
                _ = stream.readable() => return,
                had = timeout(CONNECT_DEADLINE, self.have(asked, rules)) => had.unwrap_or(Err(Failed::TimedOut)),
            },
        };
        let sent = match answer {
            Ok(had) => timeout(ANSWER_DEADLINE, self::answer(&stream, "ok\n", Some(had.as_fd()))).await,
            Err(failed) => {
                let line = format!("failed: {}\n", failed.as_str());
                timeout(ANSWER_DEADLINE, self::answer(&stream, &line, None)).await
            }
        };
        if let Ok(Err(error)) = sent {
            tracing::debug!(adapter = self.socket.adapter(), %error, "an adapter did not take what it asked for");
        }
    }

    async fn have(&self, asked: Asked, rules: Arc<Rules>) -> Result<OwnedFd, Failed> {
        match asked {
            Asked::Connection(target) => {
                let socket = connect(&target, &self.lookups).await?;
                let socket = socket.into_std().map_err(|error| Failed::of(&error))?;
                // What stands in the file description goes with it, and most programs expect a socket that blocks.
                socket.set_nonblocking(false).map_err(|error| Failed::of(&error))?;
                Ok(socket.into())
            }
            Asked::File(path) => {
                // It may lie on another host.
                let named = path.clone();
                let opened = apart(&self.openings, move || rules.files.open(&named)).await;
                opened.map_err(|_| Failed::Other)?.map(OwnedFd::from).map_err(|error| {
                    if is_due(&self.told_failure) {
                        let adapter = self.socket.adapter();
                        let path = printable(path.as_os_str().as_encoded_bytes());
                        tracing::warn!(adapter, path, %error, "a file cannot be opened for an adapter");
                    }
                    Failed::NotOpened
                })
            }
        }
    }

    fn refuse(&self, code: RefusalCode, request: &[u8]) {
        self.socket.count_refusal(&self.server, code);
        let asks_for_file = request.first() == Some(&b'/');
        if is_due(&self.told[usize::from(asks_for_file)]) {
            let asked = printable(request);
            let adapter = self.socket.adapter();
            tracing::warn!(
                adapter,
                asked,
                code = code.as_str(),
                "an adapter asked for a {} that it may not have; further ones are counted in the audit log",
                if asks_for_file { "file" } else { "connection" }
            );
        }
    }
}

/// Whether it is time to tell again, which counts as done.
fn is_due(told: &Mutex<Option<Instant>>) -> bool {
    let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
    let is_due = told.is_none_or(|at| at.elapsed() >= TELL_EVERY);
    if is_due {
        *told = Some(Instant::now());
    }
    is_due
}

/// The request without its end of line; as far as it came, if that is too long or has no end.
async fn read_request(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    let mut piece = [0; REQUEST_BYTES_MAX];
    while request.len() <= longest(&request) {
        let read = stream.read(&mut piece).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        request.extend_from_slice(&piece[..read]);
        if request.contains(&b'\n') {
            break;
        }
    }
    Ok(request)
}

fn longest(request: &[u8]) -> usize {
    if request.first() == Some(&b'/') { PATH_REQUEST_BYTES_MAX } else { REQUEST_BYTES_MAX }
}

/// What was asked for, if the adapter may have that.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Connection(Target),
    File(PathBuf),
}

pub(super) fn asked(request: &[u8], rules: &Rules) -> Result<Asked, RefusalCode> {
    if request.first() != Some(&b'/') {
        return decide(request, &rules.connect).map(Asked::Connection);
    }
    let line = request.strip_suffix(b"\n").filter(|line| line.len() < PATH_REQUEST_BYTES_MAX);
    let path = line.filter(|line| !line.contains(&b'\n')).ok_or(RefusalCode::RequestMalformed)?;
    let path = PathBuf::from(OsStr::from_bytes(path));
    if rules.files.names(&path) { Ok(Asked::File(path)) } else { Err(RefusalCode::FileNotAllowed) }
}

/// Where the adapter asked to be connected to, if it may be.
pub(super) fn decide(request: &[u8], allowed: &[Connect]) -> Result<Target, RefusalCode> {
    let line = request.strip_suffix(b"\n").filter(|line| line.len() < REQUEST_BYTES_MAX);
    let line = line.and_then(|line| std::str::from_utf8(line).ok());
    let Some(Connect::To { host, port }) = line.and_then(Connect::parse) else {
        return Err(RefusalCode::RequestMalformed);
    };
    if allowed.iter().any(|to| to.covers(&host, port)) {
        Ok(Target { host, port })
    } else {
        Err(RefusalCode::HostNotAllowed)
    }
}

const fn refusal(code: RefusalCode) -> &'static str {
    match code {
        RefusalCode::HostNotAllowed | RefusalCode::FileNotAllowed => "refused: not_allowed\n",
        RefusalCode::RequestLimit => "refused: too_many\n",
        _ => "refused: malformed\n",
    }
}

async fn connect(target: &Target, lookups: &Arc<Semaphore>) -> Result<TcpStream, Failed> {
    let mut addresses = match &target.host {
        Host::Address(address) => vec![(*address, target.port).into()],
        Host::Name(name) => {
            let named = (name.to_owned(), target.port);
            look_up(lookups, move || named.to_socket_addrs().map(Iterator::collect)).await?
        }
    };
    addresses.truncate(ADDRESSES_MAX);
    first_of(addresses).await
}

/// Work that holds one of the threads that all of the gateway shares, and cannot be broken off: it has its place until it ends, whoever
/// still waits for it.
async fn apart<T: Send + 'static>(
    places: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let place = Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?;
    let working = spawn_blocking(move || {
        let _place = place;
        work()
    });
    working.await.map_err(io::Error::other)
}

async fn look_up(
    lookups: &Arc<Semaphore>,
    search: impl FnOnce() -> io::Result<Vec<SocketAddr>> + Send + 'static,
) -> Result<Vec<SocketAddr>, Failed> {
    match timeout(LOOKUP_DEADLINE, apart(lookups, search)).await {
        Ok(found) => found.flatten().map_err(|_| Failed::NameNotKnown),
        Err(_) => Err(Failed::TimedOut),
    }
}

/// The first that answers. One that does not, as where a name has addresses of a network that leads nowhere, does not hold up the others.
async fn first_of(addresses: Vec<SocketAddr>) -> Result<TcpStream, Failed> {
    let mut left = addresses.into_iter();
    let mut failed = Failed::NameNotKnown;
    // Dropped with this future, which ends them all.
    let mut tried = JoinSet::new();
    loop {
        if let Some(address) = left.next() {
            tried.spawn(TcpStream::connect(address));
        }
        tokio::select! {
            Some(ended) = tried.join_next() => match ended.map_err(io::Error::from).flatten() {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = Failed::of(&error),
            },
            () = sleep(HEAD_START), if left.len() > 0 => {}
            else => return Err(failed),
        }
    }
}

impl Failed {
    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::ConnectionRefused,
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Self::Unreachable,
            _ => Self::Other,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionRefused => "connection_refused",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::NameNotKnown => "name_not_known",
            Self::NotOpened => "not_opened",
            Self::Other => "other",
        }
    }
}

async fn answer(stream: &UnixStream, line: &str, handed: Option<BorrowedFd<'_>>) -> io::Result<()> {
    stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let passed = handed.map(|handed| [handed]);
            if let Some(passed) = &passed
                && !control.push(SendAncillaryMessage::ScmRights(passed))
            {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            // A line of some bytes into an empty buffer goes whole.
            sendmsg(stream, &[IoSlice::new(line.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
            Ok(())
        })
        .await
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::changeable::Changeable;
    use super::*;
    use crate::config::{Access, Sandbox};

    use tokio::net::{TcpListener, TcpSocket};

    fn allowed(to: &[&str]) -> Vec<Connect> {
        to.iter().map(|to| Connect::parse(to).unwrap()).collect()
    }

    #[test]
    fn a_host_is_what_is_named_and_nothing_that_means_the_same() {
        let rules = allowed(&["127.0.0.1:80", "Lab.example.org:2575", "[::1]:443"]);
        let decide =
            |request: &str| decide(format!("{request}\n").as_bytes(), &rules).map(|target| target.port);
        for good in [
            "127.0.0.1:80",
            "lab.EXAMPLE.org:2575",
            "Lab.example.org:2575",
            "[::1]:443",
            "[0:0:0:0:0:0:0:1]:443",
        ] {
            assert!(decide(good).is_ok(), "{good}");
        }
        for other in [
            "127.0.0.1:81",
            "127.0.0.2:80",
            "localhost:80",
            "0x7f.1:80",
            "127.1:80",
            "2130706433:80",
            "0177.0.0.1:80",
            "[::ffff:127.0.0.1]:80",
            "[::1]:80",
            "lab.example.org.:2575",
            "x.lab.example.org:2575",
            "lab.example.org:443",
            "example.org:2575",
        ] {
            assert_eq!(decide(other), Err(RefusalCode::HostNotAllowed), "{other}");
        }
        for wrong in [
            "",
            "*",
            "lab",
            "lab:",
            ":80",
            "lab:0",
            "lab:65536",
            "::1:443",
            "a b:1",
            "127.0.0.1:80\r",
            "127.0.0.1:80\n",
        ] {
            assert_eq!(decide(wrong), Err(RefusalCode::RequestMalformed), "{wrong}");
        }
    }

    #[test]
    fn a_request_is_one_line_of_bounded_length() {
        let any = [Connect::Anywhere];
        assert!(decide(b"lab:1\n", &any).is_ok());
        assert_eq!(decide(b"lab:1", &any), Err(RefusalCode::RequestMalformed));
        assert_eq!(decide(b"lab:1\nlab:2\n", &any), Err(RefusalCode::RequestMalformed));
        assert_eq!(decide(b"\xff:1\n", &any), Err(RefusalCode::RequestMalformed));
        let long = format!("{}:1\n", "a".repeat(REQUEST_BYTES_MAX));
        assert_eq!(decide(long.as_bytes(), &any), Err(RefusalCode::RequestMalformed));
        assert_eq!(decide(b"lab:1\n", &[]), Err(RefusalCode::HostNotAllowed));
    }

    #[test]
    fn a_file_is_what_is_named_in_one_line_of_bounded_length() {
        let name = format!("/etc/{}", "n".repeat(1000));
        let read = vec!["/etc/lab cert.pem".into(), PathBuf::from(&name)];
        let implied = Access { read, ..Access::default() };
        let settings = serde_json::Map::from_iter([("files".to_owned(), serde_json::json!(implied.read))]);
        let (nobody, data_dir) = (Changeable::default(), Path::new("/var/lib/gatepost"));
        let files = Handover::new(&Sandbox::default(), &implied, &settings, &nobody, data_dir);
        let rules = Rules { connect: vec![Connect::Anywhere], files };
        let asked = |request: &str| asked(request.as_bytes(), &rules);
        for named in ["/etc/lab cert.pem", &name] {
            assert_eq!(asked(&format!("{named}\n")), Ok(Asked::File(named.into())));
        }
        for other in
            ["/etc/other.pem\n", "/etc//lab cert.pem\n", "/etc/lab cert.pem/\n", "/etc/../etc/lab cert.pem\n"]
        {
            assert_eq!(asked(other), Err(RefusalCode::FileNotAllowed), "{other}");
        }
        let long = format!("/{}\n", "n".repeat(PATH_REQUEST_BYTES_MAX));
        for wrong in ["/etc/lab cert.pem", "/etc/lab cert.pem\n\n", "/\n/etc/lab cert.pem\n", &long] {
            assert_eq!(asked(wrong), Err(RefusalCode::RequestMalformed), "{wrong}");
        }
        assert_eq!(longest(b"/"), PATH_REQUEST_BYTES_MAX);
        assert_eq!((longest(b""), longest(b"lab:1")), (REQUEST_BYTES_MAX, REQUEST_BYTES_MAX));
    }

    #[tokio::test]
    async fn what_fails_is_told_apart() {
        // Nobody listens there, nor can anybody else.
        let reserved = TcpSocket::new_v4().unwrap();
        reserved.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let free = reserved.local_addr().unwrap().port();
        let target = |host| Target { host, port: free };
        let here = Host::Address([127, 0, 0, 1].into());
        let lookups = Arc::new(Semaphore::new(1));
        assert_eq!(connect(&target(here), &lookups).await.unwrap_err(), Failed::ConnectionRefused);
        let nobody = Host::Name("nobody.invalid".into());
        assert_eq!(connect(&target(nobody), &lookups).await.unwrap_err(), Failed::NameNotKnown);
        let localhost = Host::Name("localhost".into());
        assert_eq!(connect(&target(localhost), &lookups).await.unwrap_err(), Failed::ConnectionRefused);
    }

    #[tokio::test]
    async fn names_are_looked_up_a_few_at_a_time_and_a_search_keeps_its_place_until_it_ends() {
        let lookups = Arc::new(Semaphore::new(LOOKUPS_MAX));
        let (ends, end) = std::sync::mpsc::channel::<()>();
        let end = Arc::new(Mutex::new(end));
        for left in (0..LOOKUPS_MAX).rev() {
            let (begins, begun) = tokio::sync::oneshot::channel();
            let end = Arc::clone(&end);
            let search = look_up(&lookups, move || {
                begins.send(()).unwrap();
                let _ = end.lock().unwrap().recv();
                Ok(Vec::new())
            });
            // Whoever asked goes away while it lasts.
            tokio::select! {
                found = search => panic!("{found:?}"),
                begun = begun => begun.unwrap(),
            }
            assert_eq!(lookups.available_permits(), left);
        }
        let one_more = look_up(&lookups, || Ok(vec![([127, 0, 0, 1], 1).into()]));
        tokio::pin!(one_more);
        let waits = timeout(HEAD_START, &mut one_more).await.is_err();
        assert!(waits, "there is no place for it");
        ends.send(()).unwrap();
        assert_eq!(one_more.await.unwrap().len(), 1);
        drop(ends);
    }

    #[tokio::test]
    async fn an_address_that_leads_nowhere_does_not_hold_up_the_others() {
        // It answers nobody: its queue is full.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let full = socket.listen(0).unwrap();
        let nowhere = full.local_addr().unwrap();
        let _fills = TcpStream::connect(nowhere).await.unwrap();
        let partner = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut addresses = vec![nowhere; 5];
        addresses.push(partner.local_addr().unwrap());
        // One after the other they would take longer than all of it may.
        let connected = timeout(CONNECT_DEADLINE, first_of(addresses)).await;
        assert_eq!(connected.unwrap().unwrap().peer_addr().unwrap(), partner.local_addr().unwrap());
        assert_eq!(first_of(Vec::new()).await.unwrap_err(), Failed::NameNotKnown);
    }
}
