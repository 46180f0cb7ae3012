//! Deciding ahead: while a turn is on its way into the database the next one is decided, in a memory that has the first already. Nobody is
//! told of anything before all that it was decided on has come about. If a turn does not come about, memory is read anew, and
//! what was decided in it and behind it is decided again.

use tokio::sync::mpsc;

use super::group::{Attempted, Decided, Fate};
use super::outcome::News;
use super::refuse::refuse_all;
use super::{Condition, OPS_PER_COMMIT_MAX, Writer};
use crate::backend::{Backend, CommitError};
use crate::call::Op;

/// A turn on its way, and what waits for it.
pub(crate) struct UnderWay {
    news: News,
    /// What was decided in it first, then what was decided behind it and changes nothing.
    decided: Vec<(Vec<Op>, Vec<Decided>)>,
}

impl<B: Backend> Writer<B> {
    /// Takes operations that wait, half as many as are under way, or fewer if that ends before: each group costs a call, be it ever so
    /// small.
    pub(super) fn gather(&mut self, ops: &mut mpsc::Receiver<Op>, gathered: &mut Vec<Op>) {
        let of = |under_way: &UnderWay| under_way.decided.iter().map(|(ops, _)| ops.len()).sum::<usize>();
        let enough = self.under_way.as_ref().map_or(0, of).div_ceil(2);
        while gathered.len() < enough.min(OPS_PER_COMMIT_MAX) {
            let room = OPS_PER_COMMIT_MAX - gathered.len();
            match self.database.wait_or(ops.recv_many(gathered, room)) {
                Some(0) | None => return self.settle_under_way(),
                Some(_) => {}
            }
        }
    }

    /// Takes note of what was attempted: answers it, or lets it wait for what it was decided on.
    pub(super) fn take(&mut self, ops: Vec<Op>, attempted: Attempted) {
        let Attempted { decided, fate } = attempted;
        match fate {
            Fate::Nothing => match &mut self.under_way {
                Some(under_way) => under_way.decided.push((ops, decided)),
                // Nothing in it is new.
                None => self.answer(ops, decided, self.now()),
            },
            Fate::Committed(news) => {
                self.came_about();
                let at = news.at;
                self.tell(news);
                self.answer(ops, decided, at);
            }
            Fate::UnderWay(news) => {
                self.came_about();
                self.under_way = Some(UnderWay { news, decided: vec![(ops, decided)] });
            }
        }
    }

    /// What was under way has come about, or the turn behind it would not have been taken.
    fn came_about(&mut self) {
        let Some(under_way) = self.under_way.take() else { return };
        let at = under_way.news.at;
        self.tell(under_way.news);
        for (ops, decided) in under_way.decided {
            self.answer(ops, decided, at);
        }
    }

    /// Waits for what is under way. From then on memory is what the database holds.
    pub(super) fn settle_under_way(&mut self) {
        if self.under_way.is_none() {
            return;
        }
        match self.database.ended() {
            Ok(()) => self.came_about(),
            Err(error) => self.has_not_come_about(&error),
        }
    }

    fn has_not_come_about(&mut self, error: &CommitError) {
        let Some(under_way) = self.under_way.take() else { return };
        let ops: Vec<Op> = under_way.decided.into_iter().flat_map(|(ops, _)| ops).collect();
        tracing::debug!(?error, "a turn has not come about: deciding anew");
        let again = match error {
            CommitError::Full | CommitError::Stale(_) | CommitError::Refused(_) => self.catch_up(),
            CommitError::Broken(_) | CommitError::Fenced(_) | CommitError::Lost(_) => Err(error.clone()),
        };
        match again {
            Ok(()) => {
                // One after the other now, so that each gets its own answer.
                self.decides_ahead = false;
                self.group(ops);
                self.decides_ahead = true;
            }
            Err(error) => {
                self.failed(&error);
                refuse_all(ops, &error.into());
            }
        }
    }

    /// Whether the next turn may be sent without waiting for its end.
    pub(super) fn may_decide_ahead(&self) -> bool {
        self.decides_ahead && self.condition == Condition::Working
    }

    /// Number of the first message that the turn under way may have added.
    pub(super) fn first_under_way(&self) -> i64 {
        self.under_way.as_ref().map_or(i64::MAX, |under_way| under_way.news.first_seq)
    }
}
