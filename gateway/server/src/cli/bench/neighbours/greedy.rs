//! `gatepost bench-neighbour`: the greedy or broken client, in a process of its own so that it takes nothing from the client that is
//! measured but what it takes from everybody. It goes on until its standard input ends, then says what it has done.

use std::cell::Cell;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use gatepost_api::messages::AcceptResponse;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::sleep;
use uuid::Uuid;

use super::super::super::failure::Failure;
use super::super::super::ui::Ui;
use super::super::answer::Answer;
use super::super::request::{Request, Shape};
use super::super::wire::Wire;
use super::kind::Kind;
use super::{site, stand_in};

const FLOODING: u64 = 64;
const SLOW: u64 = 32;
const SLOW_PIECE_BYTES: usize = 64 * 1024;
const SLOW_PAUSE: Duration = Duration::from_millis(50);
const LARGE: u64 = 4;
const LARGE_BYTES: usize = 16 * 1024 * 1024;
/// As many bytes as a large message, or nearly, and none of the messages is large.
const LARGE_BATCH: u64 = 200;
const BATCHED_BYTES: usize = 63 * 1024;
/// More than the gateway lets one user have.
const SILENT: u64 = 300;
const BROKEN: u64 = 16;
/// Twice a second as many as its rate permits in that time.
const PERMITTED_BATCH: u64 = 50;
const PERMITTED_INTERVAL: Duration = Duration::from_millis(500);
/// After a connection was refused by the kernel, which is how a gateway ends.
const CONNECT_PAUSE: Duration = Duration::from_millis(10);
const READ_BYTES: usize = 16 * 1024;

#[derive(Debug, clap::Parser)]
#[command(name = "bench-neighbour")]
pub(crate) struct BenchNeighbour {
    #[arg(long, value_enum)]
    kind: Kind,
    #[arg(long)]
    socket: PathBuf,
    #[arg(long)]
    payload: usize,
    /// Keeps the ids of one neighbour apart from those of all others in the same store.
    #[arg(long)]
    series: u32,
    /// Makes the socket itself and talks to nobody else.
    #[arg(long)]
    elsewhere: bool,
}

/// What it has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Done {
    pub(super) connections: u64,
    /// That were answered.
    pub(super) requests: u64,
    pub(super) accepted: u64,
    /// Answered with 429, whatever the reason.
    pub(super) refused: u64,
    pub(super) elapsed_ms: u64,
}

pub(crate) fn run(ui: &Ui, args: BenchNeighbour) -> Result<(), Failure> {
    if args.elsewhere {
        stand_in::start(&args.socket).map_err(Failure::io("cannot make a socket"))?;
    }
    let (end, ended) = oneshot::channel();
    std::thread::spawn(move || {
        // Its content says nothing, its end everything.
        let _ = io::stdin().read_to_end(&mut Vec::new());
        let _ = end.send(());
    });
    let begun = Instant::now();
    let neighbour = Rc::new(Neighbour { args, done: Cell::default() });
    super::super::super::runtime()?.block_on(LocalSet::new().run_until(async {
        let mut tasks = neighbour.tasks();
        tokio::select! {
            _ = ended => {}
            // They never end by themselves.
            _ = tasks.join_next() => {}
        }
    }));
    let elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    ui.json_line(&Done { elapsed_ms, ..neighbour.done.get() })
}

struct Neighbour {
    args: BenchNeighbour,
    done: Cell<Done>,
}

impl Neighbour {
    fn tasks(self: &Rc<Self>) -> JoinSet<()> {
        let connections = match self.args.kind {
            Kind::Flood | Kind::Asks | Kind::FullQueue => FLOODING,
            Kind::SlowBodies => SLOW,
            Kind::Silent => SILENT,
            Kind::Garbage => BROKEN,
            Kind::Permitted => 1,
            Kind::LargeMessages | Kind::LargeBatches => LARGE,
        };
        let mut tasks = JoinSet::new();
        for number in 0..connections {
            let neighbour = Rc::clone(self);
            tasks.spawn_local(async move { neighbour.act(number).await });
        }
        tasks
    }

    async fn act(&self, number: u64) {
        match self.args.kind {
            Kind::Flood | Kind::FullQueue | Kind::LargeMessages | Kind::LargeBatches => {
                self.flood(number).await
            }
            Kind::SlowBodies => self.slow().await,
            Kind::Silent => self.silent().await,
            Kind::Garbage => self.garbage(number).await,
            Kind::Asks => self.ask(number).await,
            Kind::Permitted => self.permitted().await,
        }
    }

    fn count(&self, count: impl FnOnce(&mut Done)) {
        let mut done = self.done.get();
        count(&mut done);
        self.done.set(done);
    }

    fn answered(&self, status: u16) {
        self.count(|done| {
            done.requests += 1;
            done.accepted += u64::from((200..300).contains(&status));
            done.refused += u64::from(status == 429);
        });
    }

    fn shape(&self, batch: u64, payload_bytes: usize) -> Shape {
        let (token, kind) = site::credentials(self.args.kind);
        Shape {
            kind: kind.to_owned(),
            destinations: 0,
            batch,
            keys: 0,
            payload_bytes,
            series: self.args.series,
            bearer: Some(token),
        }
    }

    /// Of a request whose body shall have so many bytes.
    fn head(&self, body_bytes: usize) -> Vec<u8> {
        let (token, kind) = site::credentials(self.args.kind);
        let head = format!(
            "POST /v1/messages HTTP/1.1\r\nhost: gatepost\r\nauthorization: Bearer {token}\r\nce-specversion: 1.0\r\n\
             ce-type: {kind}\r\nce-id: 1\r\nce-source: /bench\r\ncontent-type: application/json\r\ncontent-length: {body_bytes}\r\n\r\n"
        );
        head.into_bytes()
    }

    fn question(&self, message: Uuid) -> Vec<u8> {
        let (token, _) = site::credentials(self.args.kind);
        let head = format!(
            "GET /v1/messages/{message} HTTP/1.1\r\nhost: gatepost\r\nauthorization: Bearer {token}\r\n\r\n"
        );
        head.into_bytes()
    }

    async fn connect<C>(&self, connect: impl AsyncFn(&Path) -> io::Result<C>) -> C {
        loop {
            match connect(&self.args.socket).await {
                Ok(connected) => {
                    self.count(|done| done.connections += 1);
                    return connected;
                }
                Err(_) => sleep(CONNECT_PAUSE).await,
            }
        }
    }

    /// One message or batch after the other, as fast as they are answered; what the answer says about waiting is not heard.
    async fn flood(&self, number: u64) {
        let (senders, batch, payload) = match self.args.kind {
            Kind::LargeMessages => (LARGE, 1, LARGE_BYTES),
            Kind::LargeBatches => (LARGE, LARGE_BATCH, BATCHED_BYTES),
            _ => (FLOODING, 1, self.args.payload),
        };
        let mut request = Request::new(&self.shape(batch, payload), number, senders);
        let mut sent = 0;
        loop {
            let mut wire = self.connect(async |socket| Wire::connect(socket).await).await;
            loop {
                request.renumber(sent);
                sent += batch;
                match wire.exchange(&request.bytes).await {
                    Ok(status) => self.answered(status),
                    Err(_) => break,
                }
            }
        }
    }

    /// Hands in one message, and asks for its state over and over.
    async fn ask(&self, number: u64) {
        let request = Request::new(&self.shape(1, self.args.payload), number, FLOODING);
        loop {
            let mut wire = self.connect(async |socket| Wire::connect(socket).await).await;
            // The stand-in takes none, and answers any question alike.
            let accepted =
                wire.call(&request.bytes).await.ok().and_then(|body| serde_json::from_slice(body).ok());
            let message = accepted.map_or(Uuid::nil(), |accepted: AcceptResponse| accepted.messages[0].id);
            let question = self.question(message);
            while let Ok(status) = wire.exchange(&question).await {
                self.answered(status);
            }
        }
    }

    async fn permitted(&self) {
        let mut request = Request::new(&self.shape(PERMITTED_BATCH, self.args.payload), 0, 1);
        let mut sent = 0;
        let mut pace = tokio::time::interval(PERMITTED_INTERVAL);
        loop {
            let mut wire = self.connect(async |socket| Wire::connect(socket).await).await;
            loop {
                pace.tick().await;
                request.renumber(sent);
                sent += PERMITTED_BATCH;
                match wire.exchange(&request.bytes).await {
                    Ok(status) => self.answered(status),
                    Err(_) => break,
                }
            }
        }
    }

    /// Announces a large body and sends it piece by piece; refused, it tries again at once.
    async fn slow(&self) {
        let (head, piece) = (self.head(LARGE_BYTES), [b' '; SLOW_PIECE_BYTES]);
        loop {
            let mut stream = self.connect(async |socket| UnixStream::connect(socket).await).await;
            let (mut reading, mut writing) = stream.split();
            let send = async {
                writing.write_all(&head).await?;
                for _ in 0..LARGE_BYTES / SLOW_PIECE_BYTES {
                    writing.write_all(&piece).await?;
                    sleep(SLOW_PAUSE).await;
                }
                // All is sent: what is left is to read the answer.
                std::future::pending::<io::Result<()>>().await
            };
            tokio::select! {
                _ = send => {}
                status = answer(&mut reading) => if let Ok(status) = status { self.answered(status) }
            }
        }
    }

    async fn silent(&self) {
        loop {
            let mut stream = self.connect(async |socket| UnixStream::connect(socket).await).await;
            if let Ok(status) = answer(&mut stream).await {
                self.answered(status);
            }
        }
    }

    /// Each time something else that is no request.
    async fn garbage(&self, number: u64) {
        let head = self.head(1000);
        let half = &head[..head.len() / 2];
        let noise: Vec<u8> = (0..1024u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let nonsense = b"GET /v1/messages SMTP/9\r\n\r\n".as_slice();
        let pieces = [noise.as_slice(), half, nonsense, &head];
        for piece in pieces.into_iter().cycle().skip(number as usize) {
            let mut stream = self.connect(async |socket| UnixStream::connect(socket).await).await;
            if stream.write_all(piece).await.is_ok() && stream.shutdown().await.is_ok() {
                // Half a request has no answer: its end is one.
                if let Ok(status) = answer(&mut stream).await {
                    self.answered(status);
                }
            }
        }
    }
}

/// The status of one answer; an error where the connection ends without.
async fn answer(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<u16> {
    let mut answer = Answer::default();
    let mut scratch = vec![0; READ_BYTES];
    loop {
        match stream.read(&mut scratch).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => {
                if let Some(status) = answer.take(&scratch[..length])? {
                    return Ok(status);
                }
            }
        }
    }
}
