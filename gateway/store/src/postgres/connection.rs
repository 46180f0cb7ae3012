//! A connection to PostgreSQL for somebody who is not asynchronous: the writer's thread waits for each answer, but never longer
//! than the server may take.
//!
//! Nothing here is ever cancelled half way: a call that takes too long ends its connection.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{Connection as _, Executor as _, Postgres};
use tokio::runtime::Runtime;

use crate::backend::CommitError;

/// Longest that a call may take before its connection is given up: no longer than a node's right to write lasts without being
/// renewed, since nothing that comes later counts.
const CALL_WAIT: Duration = Duration::from_secs(5);
/// As [`CALL_WAIT`], while the tables are made.
const MIGRATION_WAIT: Duration = Duration::from_secs(600);
/// Longest that connecting may take.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// Statements kept prepared; more than there are.
const STATEMENTS: usize = 200;

/// What every connection of ours is told: how commits are synced, and that whoever keeps a transaction open without a word is
/// cut off, so that a node that is gone keeps no lock for long.
///
/// Every statement of the hot path names its rows by keys. Joins other than nested loops over an index are switched off for
/// them, because a plan that was made while a table was small would read all of it when it is large.
const SETTINGS: &[(&str, &str)] = &[
    ("application_name", "gatepost"),
    ("search_path", "gatepost"),
    ("synchronous_commit", "on"),
    ("default_transaction_isolation", "read committed"),
    ("idle_in_transaction_session_timeout", "2000"),
    ("lock_timeout", "4000"),
    // What a peer that is gone has not taken is not waited for.
    ("tcp_user_timeout", "4000"),
    ("statement_timeout", "60000"),
    ("jit", "off"),
    ("client_min_messages", "warning"),
];
pub(super) const PLANS: &[(&str, &str)] = &[
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_bitmapscan", "off"),
];

/// How to reach the database, without what only one kind of connection wants.
pub(crate) fn options(url: &PgConnectOptions) -> PgConnectOptions {
    url.clone().options(SETTINGS.iter().copied()).statement_cache_capacity(STATEMENTS)
}

/// One connection, used by one thread.
pub(super) struct Connection {
    runtime: Waiting,
    /// `None` too while a call is under way.
    open: Option<PgConnection>,
    under_way: Option<UnderWay>,
    /// What the call that was under way has answered, until somebody asks for it.
    answered: Option<Answer>,
    options: PgConnectOptions,
    patience: Duration,
}

type Answer = Result<Option<PgRow>, CommitError>;

/// A call that nobody waits for yet; it gives the connection back.
type UnderWay = Pin<Box<dyn Future<Output = (PgConnection, Result<Option<PgRow>, sqlx::Error>)> + Send>>;

/// A runtime that may be dropped anywhere: nothing runs on it but what is waited for.
struct Waiting(Option<Runtime>);

impl Waiting {
    fn new() -> std::io::Result<Self> {
        tokio::runtime::Builder::new_current_thread().enable_all().build().map(|runtime| Self(Some(runtime)))
    }

    /// Longest `wait`; `None` when it takes longer.
    fn on<T>(&self, wait: Duration, call: impl Future<Output = T>) -> Option<T> {
        self.0.as_ref()?.block_on(async { tokio::time::timeout(wait, call).await.ok() })
    }

    /// For what waits no longer than it should by itself. `None` when there is no runtime any more.
    fn on_all<T>(&self, call: impl Future<Output = T>) -> Option<T> {
        Some(self.0.as_ref()?.block_on(call))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

pub(super) type Statement<'q> = Query<'q, Postgres, PgArguments>;

impl Connection {
    /// `options` as [`options`] gives them.
    pub(super) fn open(options: &PgConnectOptions) -> Result<Self, CommitError> {
        let runtime = Waiting::new().map_err(|error| CommitError::Broken(error.to_string()))?;
        let options = options.clone().options(PLANS.iter().copied());
        let mut connection =
            Self { runtime, open: None, under_way: None, answered: None, options, patience: MIGRATION_WAIT };
        connection.reopen()?;
        Ok(connection)
    }

    /// Ends the connection, if it is open, and makes a new one.
    pub(super) fn reopen(&mut self) -> Result<(), CommitError> {
        (self.open, self.under_way, self.answered) = (None, None, None);
        let connected = self.runtime.on(CONNECT_WAIT, PgConnection::connect_with(&self.options));
        let connected = connected.ok_or_else(|| CommitError::Broken("it does not answer".to_owned()))?;
        self.open = Some(connected.map_err(commit_error)?);
        Ok(())
    }

    /// The tables are there: from now on every call is a short one.
    pub(super) fn be_quick(&mut self) {
        self.patience = CALL_WAIT;
    }

    /// Ends the connection well.
    pub(super) fn close(mut self) {
        self.wait();
        if let Some(open) = self.open.take() {
            drop(self.runtime.on(CONNECT_WAIT, open.close()));
        }
    }

    /// Runs statements that give no rows, without parameters.
    pub(super) fn script(&mut self, sql: String) -> Result<(), CommitError> {
        self.call(async |open| sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(open).await.map(drop))
    }

    /// Runs statements without parameters; the rows that they give, one statement's after the other's.
    pub(super) fn script_rows(&mut self, sql: String) -> Result<Vec<PgRow>, CommitError> {
        self.call(async |open| sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).fetch_all(open).await)
    }

    /// As [`Connection::script_rows`], of which one is wanted.
    pub(super) fn script_row(&mut self, sql: String) -> Result<Option<PgRow>, CommitError> {
        self.call(async |open| sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).fetch_optional(open).await)
    }

    /// How many rows it has changed.
    pub(super) fn execute(&mut self, statement: Statement<'_>) -> Result<u64, CommitError> {
        self.call(async |open| open.execute(statement).await.map(|done| done.rows_affected()))
    }

    pub(super) fn rows(&mut self, statement: Statement<'_>) -> Result<Vec<PgRow>, CommitError> {
        self.call(async |open| open.fetch_all(statement).await)
    }

    pub(super) fn row(&mut self, statement: Statement<'_>) -> Result<Option<PgRow>, CommitError> {
        self.call(async |open| open.fetch_optional(statement).await)
    }

    /// Sends a statement and does not wait for its row; [`Connection::answer`] gives it. Whoever calls for something else before waits for
    /// this one first.
    pub(super) fn start(&mut self, statement: Statement<'static>) -> Result<(), CommitError> {
        self.wait();
        let Some(mut open) = self.open.take() else { return Err(CommitError::Broken(AWAY.to_owned())) };
        let patience = self.patience;
        self.answered = None;
        self.under_way = Some(Box::pin(async move {
            let answered = tokio::time::timeout(patience, open.fetch_optional(statement)).await;
            (open, answered.unwrap_or_else(|_| Err(late())))
        }));
        self.push();
        Ok(())
    }

    /// Sends more of the statement that is under way, if not all of it has found room.
    pub(super) fn push(&mut self) {
        let Some(under_way) = &mut self.under_way else { return };
        let pushed = self.runtime.on_all(async {
            // Lets the runtime see what there is room for now.
            tokio::task::yield_now().await;
            poll_fn(|context| {
                Poll::Ready(match under_way.as_mut().poll(context) {
                    Poll::Ready(answer) => Some(answer),
                    Poll::Pending => None,
                })
            })
            .await
        });
        if let Some(Some((open, answer))) = pushed {
            self.end(open, answer);
        }
    }

    /// Waits for what is under way, and no longer than for `other`. `None`: nothing is under way any more.
    pub(super) fn wait_or<T>(&mut self, other: impl Future<Output = T>) -> Option<T> {
        let under_way = self.under_way.as_mut()?;
        let first = self.runtime.on_all(async {
            tokio::select! {
                biased;
                ended = under_way => Err(ended),
                other = other => Ok(other),
            }
        });
        match first {
            Some(Ok(other)) => Some(other),
            Some(Err((open, answer))) => {
                self.end(open, answer);
                None
            }
            None => {
                self.under_way = None;
                None
            }
        }
    }

    fn wait(&mut self) {
        let nothing = std::future::pending::<std::convert::Infallible>();
        if let Some(never) = self.wait_or(nothing) {
            match never {}
        }
    }

    fn end(&mut self, open: PgConnection, answer: Result<Option<PgRow>, sqlx::Error>) {
        self.under_way = None;
        let answer = answer.map_err(commit_error);
        if !matches!(answer, Err(CommitError::Broken(_))) {
            self.open = Some(open);
        }
        self.answered = Some(answer);
    }

    /// What the call that was started last has answered.
    pub(super) fn answer(&mut self) -> Answer {
        self.wait();
        self.answered.take().unwrap_or_else(|| Err(CommitError::Broken(AWAY.to_owned())))
    }

    fn call<T>(
        &mut self,
        call: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, CommitError> {
        self.wait();
        let Some(open) = &mut self.open else { return Err(CommitError::Broken(AWAY.to_owned())) };
        let answered = self.runtime.on(self.patience, call(open));
        let answer = answered.unwrap_or_else(|| Err(late()));
        answer.map_err(|error| {
            let error = commit_error(error);
            if matches!(error, CommitError::Broken(_)) {
                self.open = None;
            }
            error
        })
    }
}

const AWAY: &str = "it is away";

fn late() -> sqlx::Error {
    sqlx::Error::Protocol("no answer in time".to_owned())
}

/// What a statement of ours refuses itself with when this node's right to write is over: of a class that PostgreSQL does not use.
pub(super) const FENCED: &str = "GP001";

/// Sorts errors by what the writer does about them (SQLSTATE: PostgreSQL's appendix A).
pub(super) fn commit_error(error: sqlx::Error) -> CommitError {
    let sqlx::Error::Database(database) = &error else {
        return match error {
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::Encode(_) => {
                CommitError::Refused(error.to_string())
            }
            other => CommitError::Broken(other.to_string()),
        };
    };
    let code = database.code().unwrap_or_default();
    // The message alone: the detail may show a row.
    let text = format!("{} ({code})", database.message());
    match code.as_ref() {
        "53100" => CommitError::Full,
        FENCED => CommitError::Fenced(database.message().to_owned()),
        // Others were there at the same time: serialization, deadlock, lock timeout, a key that is taken by now.
        "40001" | "40P01" | "55P03" | "23505" => CommitError::Stale(text),
        // Read only: it is a standby now. Corrupt; I/O.
        "25006" | "XX001" | "XX002" | "58030" | "25P03" => CommitError::Broken(text),
        code if ["08", "53", "57", "28", "3D"].iter().any(|class| code.starts_with(class)) => {
            CommitError::Broken(text)
        }
        _ => CommitError::Refused(text),
    }
}
