//! A thread with a connection of its own, which writes what it is given, one statement after the other.

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
    /// Rung when a statement has ended.
    bell: Arc<Notify>,
    /// From the first statement on.
    thread: Option<Thread>,
    /// The next statement goes over a new connection.
    connects_anew: bool,
    /// A statement has not ended, or nobody has looked since.
    under_way: bool,
    ended: Option<Ended>,
}

struct Thread {
    statements: SyncSender<Order>,
    ended: Receiver<Ended>,
    handle: JoinHandle<()>,
}

struct Order {
    statement: Statement<'static>,
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

    /// Has a statement written, when the one before has ended and that was asked for. One that is none has ended at once.
    pub(super) fn write(&mut self, statement: Result<Statement<'static>, CommitError>) {
        let given = statement.and_then(|statement| {
            let order = Order { statement, connects_anew: std::mem::take(&mut self.connects_anew) };
            let thread = self.thread().map_err(|error| CommitError::Broken(error.to_string()))?;
            thread.statements.send(order).map_err(|_| gone())
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

    /// How the statement has ended, once: `None` before.
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

    /// Waits for the statement's end.
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
        if let Some(Thread { statements, handle, .. }) = self.thread.take() {
            drop(statements);
            // It has said itself what went wrong, if anything.
            drop(handle.join());
        }
    }
}

impl Thread {
    fn start(options: PgConnectOptions, bell: Arc<Notify>) -> std::io::Result<Self> {
        let (statements, given) = sync_channel(1);
        let (ends, ended) = sync_channel(1);
        let handle = std::thread::Builder::new().name("pieces".to_owned()).spawn(move || {
            let mut connection = None;
            while let Ok(Order { statement, connects_anew }) = given.recv() {
                if connects_anew {
                    connection = None;
                }
                let written = write(&options, &mut connection, statement);
                if ends.send(written).is_err() {
                    break;
                }
                bell.notify_one();
            }
            if let Some(connection) = connection {
                Connection::close(connection);
            }
        })?;
        Ok(Self { statements, ended, handle })
    }
}

/// On a new connection where the last is lost.
fn write(
    options: &PgConnectOptions,
    connection: &mut Option<Connection>,
    statement: Statement<'static>,
) -> Ended {
    let mut open = match connection.take() {
        Some(open) => open,
        None => {
            let mut open = Connection::open(options)?;
            open.be_quick();
            open
        }
    };
    let written = open.row(statement).map(drop);
    gatepost_faults::point("store.pieces_written");
    if !matches!(written, Err(CommitError::Broken(_))) {
        *connection = Some(open);
    }
    written
}
