//! A thread with a connection of its own, which writes what it is given, one thing after the other.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;

use sqlx::postgres::PgConnectOptions;
use tokio::sync::Notify;

use super::super::connection::{Connection, Statement};
use crate::backend::CommitError;

/// The log is synced in its order: the commit of the accept, which waits for that, waits for what was written before too, and so does a
/// synchronous standby. What is lost before that nobody has been told of.
const NO_SYNC: (&str, &str) = ("synchronous_commit", "off");

type Ended = Result<(), CommitError>;

pub(super) struct Scribe {
    options: PgConnectOptions,
    /// Rung when what was given has ended.
    bell: Arc<Notify>,
    /// From the first one on.
    thread: Option<Thread>,
    /// The next ones go over a new connection.
    connects_anew: bool,
    /// Something has not ended, or nobody has looked since.
    under_way: bool,
    ended: Option<Ended>,
}

struct Thread {
    orders: SyncSender<Order>,
    ended: Receiver<Ended>,
    handle: JoinHandle<()>,
}

/// Statements for one after the other, as far as none fails.
struct Order {
    statements: Vec<Statement<'static>>,
    connects_anew: bool,
}

impl Scribe {
    pub(super) fn new(options: PgConnectOptions) -> Self {
        let options = options.options([NO_SYNC]);
        Self {
            options,
            bell: Arc::default(),
            thread: None,
            connects_anew: false,
            under_way: false,
            ended: None,
        }
    }

    pub(super) fn bell(&self) -> Arc<Notify> {
        Arc::clone(&self.bell)
    }

    /// Has statements carried out, when those before have ended and that was asked for. What is none has ended at once.
    pub(super) fn write(&mut self, statements: Result<Vec<Statement<'static>>, CommitError>) {
        let given = statements.and_then(|statements| {
            let order = Order { statements, connects_anew: std::mem::take(&mut self.connects_anew) };
            let thread = self.thread().map_err(|error| CommitError::Broken(error.to_string()))?;
            thread.orders.send(order).map_err(|_| gone())
        });
        match given {
            Ok(()) => self.under_way = true,
            Err(error) => {
                self.ended = Some(Err(error));
                self.bell.notify_one();
            }
        }
    }

    /// What is written from now on goes to where a connection leads that is made now: the last one may lead to a server that is not in
    /// charge any more.
    pub(super) fn connect_anew(&mut self) {
        self.connects_anew = true;
    }

    fn thread(&mut self) -> std::io::Result<&Thread> {
        let thread = match self.thread.take() {
            Some(thread) => thread,
            None => Thread::start(self.options.clone(), Arc::clone(&self.bell))?,
        };
        Ok(self.thread.insert(thread))
    }

    /// How it has ended, once: `None` before.
    pub(super) fn ended(&mut self) -> Option<Ended> {
        if self.under_way
            && let Some(thread) = &self.thread
        {
            match thread.ended.try_recv() {
                Ok(ended) => (self.under_way, self.ended) = (false, Some(ended)),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => self.wait(),
            }
        }
        self.ended.take()
    }

    /// Waits for the end.
    pub(super) fn wait(&mut self) {
        if std::mem::take(&mut self.under_way)
            && let Some(thread) = &self.thread
        {
            self.ended = Some(thread.ended.recv().unwrap_or_else(|_| Err(gone())));
        }
    }
}

fn gone() -> CommitError {
    CommitError::Broken("what writes large messages has ended".to_owned())
}

impl Drop for Scribe {
    fn drop(&mut self) {
        if let Some(Thread { orders, handle, .. }) = self.thread.take() {
            drop(orders);
            // It has said itself what went wrong, if anything.
            drop(handle.join());
        }
    }
}

impl Thread {
    fn start(options: PgConnectOptions, bell: Arc<Notify>) -> std::io::Result<Self> {
        let (orders, given) = sync_channel(1);
        let (ends, ended) = sync_channel(1);
        let handle = std::thread::Builder::new().name("pieces".to_owned()).spawn(move || {
            let mut connection = None;
            while let Ok(Order { statements, connects_anew }) = given.recv() {
                if connects_anew {
                    connection = None;
                }
                let written = write(&options, &mut connection, statements);
                if ends.send(written).is_err() {
                    break;
                }
                bell.notify_one();
            }
            if let Some(connection) = connection {
                Connection::close(connection);
            }
        })?;
        Ok(Self { orders, ended, handle })
    }
}

/// On a new connection where the last is lost.
fn write(
    options: &PgConnectOptions,
    connection: &mut Option<Connection>,
    statements: Vec<Statement<'static>>,
) -> Ended {
    let mut open = match connection.take() {
        Some(open) => open,
        None => {
            let mut open = Connection::open(options)?;
            open.be_quick();
            open
        }
    };
    let written = statements.into_iter().try_for_each(|statement| open.row(statement).map(drop));
    gatepost_faults::point("store.pieces_written");
    if !matches!(written, Err(CommitError::Broken(_))) {
        *connection = Some(open);
    }
    written
}
