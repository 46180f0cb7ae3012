//! Turns that are sent and not waited for. The next one is decided meanwhile, as if the one before had come about, and is written only if
//! it has. The server so has its next work as soon as it has done the last.
//!
//! Only a node that is alone does so: only it knows what numbers will be drawn until then.

use std::ops::Range;

use gatepost_core::Timestamp;

use super::commit::Written;
use super::turn::Unopened;
use super::{Postgres, TURN_BITS, WARY_TURNS, commit};
use crate::backend::{CommitError, Sent};
use crate::writer::Turn;

#[derive(Default)]
pub(super) struct Ahead {
    under_way: Option<UnderWay>,
    /// How the turn that was sent last has ended, until somebody asks.
    ended: Option<Result<(), CommitError>>,
    following: Option<Following>,
}

struct UnderWay {
    /// The numbers of its leaves.
    leaves: Range<i64>,
    at: Timestamp,
}

/// What the turn after the one that is under way may go by: numbers behind those of that one, of the same draw.
struct Following {
    number: i64,
    /// What will have been drawn last when the one under way has ended.
    drawn: i64,
}

/// Numbers of a draw that turns may use one after the other; nearly all of it is room for the last of them.
const FOLLOWING_MAX: i64 = 1 << (TURN_BITS - 6);

impl Ahead {
    /// A number for the next turn, and which one will have been drawn last then.
    pub(super) fn take_number(&mut self, read_through: i64) -> Option<(i64, i64)> {
        self.following
            .take_if(|following| read_through < following.number)
            .map(|following| (following.number, following.drawn))
    }

    pub(super) fn has_number(&self) -> bool {
        self.following.is_some()
    }

    /// Of the turn that is under way.
    pub(super) fn at(&self) -> Timestamp {
        self.under_way.as_ref().map_or(Timestamp::default(), |under_way| under_way.at)
    }
}

/// The numbers of a turn's leaves.
pub(super) fn leaves_of(turn: &Turn<'_>, number: i64) -> Range<i64> {
    number..number + i64::try_from(turn.leaves.count()).unwrap_or(i64::MAX >> 1)
}

impl Postgres {
    /// Sends a turn for which one call is enough. It is written behind the one that is under way, if that comes about.
    pub(super) fn send_turn(&mut self, turn: &Turn<'_>) -> Result<Sent, CommitError> {
        let reads = matches!(self.unopened, Some(Unopened::Reads { .. }));
        if !(reads && self.by_own_clock && self.is_alone) {
            return self.commit_turn(turn).map(Sent::Committed);
        }
        let Some(lanes) = commit::if_one_call(turn, &self.owned) else {
            return self.commit_turn(turn).map(Sent::Committed);
        };
        self.date_pieces(turn)?;
        let statement = commit::at_once(turn, &lanes, &self.context(turn, &self.held.sessions))?;
        self.unopened = None;
        self.sent_has_come_about()?;
        let Some(statement) = statement else { return Ok(Sent::Committed(0)) };
        gatepost_faults::point("store.before_commit");
        self.spare = None;
        self.ahead.ended = None;
        self.connection.start(statement)?;
        self.ahead.under_way = Some(UnderWay { leaves: leaves_of(turn, self.number), at: turn.now });
        self.ahead.following = self.following(turn);
        self.leases.over.clear();
        self.note(turn, 0);
        Ok(Sent::UnderWay)
    }

    fn following(&self, turn: &Turn<'_>) -> Option<Following> {
        let leaves = leaves_of(turn, self.number).end;
        // Larger than all that the turn has, be it only the turn's own number.
        let number = turn.next_seq.max(turn.next_pos).max(leaves) + 1;
        let drawn = self.last_drawn? + 1;
        (number & ((1 << TURN_BITS) - 1) < FOLLOWING_MAX).then_some(Following { number, drawn })
    }

    /// How the turn that was sent last has ended.
    pub(super) fn end_of_sent(&mut self) -> Result<(), CommitError> {
        self.wait_for_sent();
        self.ahead.ended.take().unwrap_or(Ok(()))
    }

    /// Nothing may be written that was decided on what has not come about.
    pub(super) fn sent_has_come_about(&mut self) -> Result<(), CommitError> {
        self.wait_for_sent();
        match self.ahead.ended {
            Some(Err(_)) => Err(CommitError::Stale("the turn before has not come about".to_owned())),
            Some(Ok(())) | None => Ok(()),
        }
    }

    pub(super) fn wait_for_sent(&mut self) {
        let Some(under_way) = self.ahead.under_way.take() else { return };
        self.ahead.following = None;
        let ended = match self.connection.answer().and_then(Written::read) {
            Ok(written) => {
                self.spare = Some(written.next);
                self.left_notes |= written.left_notes;
                Ok(())
            }
            Err(CommitError::Broken(text)) => self.look_up_turn(under_way.leaves, &text),
            Err(error) => Err(error),
        };
        match &ended {
            Ok(()) => {
                gatepost_faults::point("store.after_commit");
                self.newest = self.newest.max(under_way.at);
            }
            Err(error) => {
                if matches!(error, CommitError::Stale(_)) {
                    self.wary = WARY_TURNS;
                }
                self.known.forget();
            }
        }
        self.ahead.ended = Some(ended);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use gatepost_core::principal::{Actor, ActorKind};
    use sqlx::{Connection as _, PgConnection, Row as _};

    use super::super::node::{Node, Opened, open};
    use crate::backend::{Adds, Backend as _, Sent};
    use crate::data_dir::DataDir;
    use crate::keyring::WrappedTree;
    use crate::ops::AuditNote;
    use crate::random::Random;
    use crate::seal::Vault;
    use crate::writer::{Holds, Turn};

    /// Ends the session of the turn that waits for somebody's lock.
    const LOSE: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() \
        AND state = 'active' AND query LIKE '/* turn */%' AND wait_event_type = 'Lock'";

    /// New keys are saved whenever they are made, as a rule while a turn is under way. Who does so learns that it has not come about, and
    /// is not the one who has to know.
    #[test]
    fn who_saves_keys_meanwhile_keeps_nobody_from_learning_that_a_turn_has_not_come_about() {
        let url = gatepost_postgres::fresh_database().expect("a PostgreSQL server for the tests");
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::new(&[7; 32]);
        let node = Node {
            options: super::super::options(&url.parse().unwrap()),
            data_dir: DataDir::new(dir.path()),
            name: "node-1".to_owned(),
            log_key: "key".to_owned(),
            dedup_window: Duration::from_secs(60),
            vault: vault.clone(),
        };
        let Opened { mut database, mut memory, .. } = open(node).unwrap();
        database.tend(&mut memory, &vault, &[]).unwrap();
        let (mut random, gateway) = (Random::new(), Actor::new(ActorKind::Gateway, "gateway"));
        let mut send = |database: &mut super::Postgres| {
            database.begin_turn(&Holds::default(), Adds::Nothing).unwrap();
            let now = database.number(&mut memory).unwrap().unwrap();
            let mut turn = Turn::new(now, 1, &memory, &vault, &mut random, &gateway);
            turn.note(&AuditNote::new(gatepost_audit::Event::GatewayStarted, gateway.clone())).unwrap();
            database.send(&turn).unwrap()
        };
        assert!(matches!(send(&mut database), Sent::Committed(_)), "it has a number for the next one then");
        let server = tokio::runtime::Runtime::new().unwrap();
        let connect = || server.block_on(PgConnection::connect(&url)).unwrap();
        let (mut other, mut looker) = (connect(), connect());
        let run = |by: &mut PgConnection, sql: &'static str| {
            let row = server.block_on(sqlx::raw_sql(sql).fetch_optional(by)).unwrap();
            row.map(|row| row.get::<i64, _>(0))
        };
        run(&mut other, "BEGIN; SELECT 0::bigint FROM gatepost.node FOR UPDATE");
        assert_eq!(send(&mut database), Sent::UnderWay);
        let began = Instant::now();
        while run(&mut looker, LOSE) == Some(0) {
            assert!(began.elapsed() < Duration::from_secs(10), "the turn is not under way");
            database.push();
        }
        run(&mut other, "COMMIT");
        let tree = WrappedTree { tree: 1, key: 1, body: vec![1] };
        assert!(database.keyring_add(&[tree]).is_err(), "what is written next depends on that turn");
        assert!(database.ended().is_err());
        database.close();
    }
}
