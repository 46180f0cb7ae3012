//! Room in the adapter's state, which the gateway hands over in one piece at every start and which is therefore bounded: each session has a
//! share of its own, and all of them together never more than there is, however many they are.
//!
//! | what | at most, all sessions together |
//! |---|---|
//! | sent messages, and the deliveries that wait behind them | [`MESSAGES_BYTES_MAX`], a session its share of it |
//! | single messages that are larger than a share, one of a session at a time | [`SPARE_BYTES`] |
//! | orders that live on, outcomes that the gateway has not taken | a [`PART`]th of the share each |
//! | sequence numbers | [`NUMBERS_BYTES_MAX`] each |
//!
//! What sessions have left behind that are not in the settings any more takes what is free beside all that, and only what is beyond it is
//! missing to the others. Whoever finds no room waits until its partner has confirmed something, and asks for that.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gatepost_adapter::STATE_BYTES_MAX;

pub(crate) const SESSIONS_MAX: usize = 1000;
const MESSAGES_BYTES_MAX: usize = 20 * 1024 * 1024;
const SPARE_BYTES: usize = 2 * 1024 * 1024;
/// Orders that live on may take this part of what messages may take, and so may outcomes.
pub(crate) const PART: usize = 8;
/// With the 64 earlier epochs of which something may be remembered.
pub(crate) const NUMBERS_BYTES_MAX: usize = 3584;

const _: () = assert!(most(SESSIONS_MAX) < STATE_BYTES_MAX);

/// What so many sessions take at most, bytes.
const fn most(sessions: usize) -> usize {
    MESSAGES_BYTES_MAX + SPARE_BYTES + 2 * (MESSAGES_BYTES_MAX / PART) + sessions * NUMBERS_BYTES_MAX
}

/// What all sessions keep together.
#[derive(Debug, Default)]
pub(crate) struct Room(Mutex<Used>);

#[derive(Debug, Default)]
struct Used {
    /// Bytes.
    all: usize,
    /// What sessions have beyond their shares, of each added up.
    beyond: usize,
    /// Missing to them all, since others have left so much behind.
    missing: usize,
}

impl Room {
    /// The share of each of so many sessions, bytes.
    pub(crate) fn share(sessions: usize) -> usize {
        MESSAGES_BYTES_MAX / sessions.max(1)
    }

    /// So much is kept that belongs to none of these sessions.
    pub(crate) fn left_behind(&self, bytes: usize, sessions: usize) {
        self.lock().missing = bytes.saturating_sub(STATE_BYTES_MAX.saturating_sub(most(sessions)));
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        // Each change is one step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one session keeps.
#[derive(Debug)]
pub(crate) struct Account {
    room: Arc<Room>,
    share: usize,
    kept: usize,
}

impl Account {
    pub(crate) fn new(room: Arc<Room>, share: usize) -> Self {
        Self { room, share, kept: 0 }
    }

    /// How much it is by now.
    pub(crate) fn set(&mut self, kept: usize) {
        let mut used = self.room.lock();
        used.all = used.all - self.kept + kept;
        used.beyond = used.beyond - self.kept.saturating_sub(self.share) + kept.saturating_sub(self.share);
        self.kept = kept;
    }

    /// Takes room for the first of what costs so many bytes, as many of them as there is room for; gives their number. It is held until the
    /// next [`Account::set`].
    pub(crate) fn take(&mut self, costs: impl IntoIterator<Item = usize>) -> usize {
        let mut used = self.room.lock();
        let mut count = 0;
        for cost in costs {
            let then = self.kept + cost;
            let over = then.saturating_sub(self.share);
            // One that is larger than a share goes beyond it, if none of the session has.
            let goes_beyond =
                cost > self.share && self.kept <= self.share && used.beyond + over <= SPARE_BYTES;
            let fits = used.all + used.missing + cost <= MESSAGES_BYTES_MAX + SPARE_BYTES
                && (over == 0 || goes_beyond);
            // What needs no room has it also where too much is kept.
            if cost > 0 && !fits {
                break;
            }
            used.all += cost;
            used.beyond += over - self.kept.saturating_sub(self.share);
            self.kept = then;
            count += 1;
        }
        count
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: usize = 1024 * 1024;

    fn accounts(room: &Arc<Room>, count: usize) -> Vec<Account> {
        (0..count).map(|_| Account::new(Arc::clone(room), Room::share(count))).collect()
    }

    fn used(room: &Room) -> (usize, usize) {
        let used = room.lock();
        (used.all, used.beyond)
    }

    #[test]
    fn each_has_its_share_and_takes_nothing_of_the_others() {
        let room = Arc::new(Room::default());
        let mut all = accounts(&room, 12);
        let share = Room::share(12);
        for account in &mut all {
            assert_eq!(account.take([share / 2, share / 2, share / 2, 1]), 2);
            assert_eq!(account.take([share, 1]), 0, "in their order");
            assert_eq!(account.take([0, 0]), 2, "what costs nothing needs no room");
        }
        assert_eq!(used(&room), (12 * (share / 2) * 2, 0));
        all[3].set(share / 4);
        assert_eq!(all[3].take([share / 2]), 1);
        drop(all);
        assert_eq!(used(&room), (0, 0));
    }

    #[test]
    fn what_is_larger_than_a_share_goes_alone_and_of_few_sessions_at_a_time() {
        let room = Arc::new(Room::default());
        let mut all = accounts(&room, 100);
        assert_eq!(all[0].take([LARGE, LARGE]), 1);
        assert_eq!(all[0].take([1]), 0, "it is beyond its share");
        let gone =
            all[1..].iter_mut().filter_map(|account| (account.take([LARGE]) == 1).then_some(())).count();
        assert_eq!(gone, 1, "the spare room is full");
        assert_eq!(all[5].take([Room::share(100)]), 1, "and each has its share");
        all[0].set(10);
        assert_eq!(all[9].take([LARGE]), 1);
    }

    #[test]
    fn what_sessions_of_before_have_left_behind_takes_room_where_there_is_none_beside() {
        const FREE: usize = STATE_BYTES_MAX - most(4);
        let room = Arc::new(Room::default());
        let mut all = accounts(&room, 4);
        room.left_behind(FREE, 4);
        for account in &mut all {
            assert_eq!(account.take([Room::share(4)]), 1, "each has its share beside it");
            account.set(0);
        }
        room.left_behind(FREE + MESSAGES_BYTES_MAX, 4);
        assert_eq!(all[0].take([SPARE_BYTES, 1]), 1);
        assert_eq!(all[1].take([1]), 0);
        // More than its share, from a time when there were fewer.
        all[0].set(3 * Room::share(4));
        assert_eq!((all[0].take([1]), all[0].take([0])), (0, 1));
        all[0].set(0);
        assert_eq!(all[1].take([1]), 1);
        // An operator has it deleted.
        room.left_behind(0, 4);
        assert_eq!(all[2].take([Room::share(4)]), 1);
    }
}
