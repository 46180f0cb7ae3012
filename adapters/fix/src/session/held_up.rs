//! What waits for a session that is logged on and cannot send: its partner has not confirmed enough, reads too slowly, or asks for much again.
//!
//! The adapter has so many places for what is in hand, and each of its sessions a share of them. What stays beyond that goes back soon, and
//! all of it when nothing has begun for a while: so a partner that is slow or silent takes no place from the others for long, and no death of
//! the adapter is charged to what waits for it.

use std::time::Duration;

use gatepost_adapter::Failure;
use tokio::time::Instant;

use super::Driver;

/// How long what waits stays in hand though nothing begins.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same of what is beyond the session's share though others begin. Much comes at once, and a session that is well sends it at once.
const PATIENCE_BEYOND_SHARE: Duration = Duration::from_millis(200);
/// What each of several sessions may have in hand, if that is no more than a quarter of all: so much begins at a time where all is well.
const PLACES_MIN: usize = 64;
/// Where something else has begun for so long, what there was no room for may have expired or been discarded.
const TRIED_ANEW_AFTER: Duration = Duration::from_secs(60);
/// How often it is said of a session that it is held up.
const SAID_EVERY: Duration = Duration::from_secs(60);
const MORE_THAN_ITS_SHARE: &str = "has more to send than it may keep in hand";

/// Most deliveries that each of so many sessions keeps in hand, of `all` that the adapter may have.
pub(crate) fn places(all: usize, sessions: usize) -> usize {
    (all / sessions.max(1)).max(PLACES_MIN.min(all / 4)).max(1)
}

#[derive(Debug, Default)]
pub(super) struct HeldUp {
    /// Since when something waits and nothing has begun.
    since: Option<Instant>,
    /// Since when more waits than the session's share.
    beyond_since: Option<Instant>,
    /// The session has been found to be held up, and this is why.
    why: Option<&'static str>,
    /// Room that there is not in the adapter's state for what is first, bytes.
    pub(super) missing: Option<usize>,
    /// The same of when it was found to be held up.
    wanted: Option<usize>,
    /// When something first began since then.
    begun_beside: Option<Instant>,
    said_at: Option<Instant>,
}

impl HeldUp {
    /// Something has begun.
    pub(super) fn goes_on(&mut self, now: Instant) {
        self.since = None;
        if self.why.is_some() {
            self.begun_beside.get_or_insert(now);
        }
    }

    /// Room that is waited for, bytes.
    fn wanted(&self, now: Instant) -> Option<usize> {
        let is_old = self.begun_beside.is_some_and(|since| now.duration_since(since) >= TRIED_ANEW_AFTER);
        self.wanted.filter(|_| !is_old)
    }

    /// Nothing holds it up any more.
    fn ends(&mut self) {
        *self = Self { said_at: self.said_at, ..Self::default() };
    }

    pub(super) fn why(&self) -> Option<&'static str> {
        self.why
    }
}

impl Driver {
    /// After everything has begun that can: what is left goes back, or waits a little, and what has gone back is woken.
    pub(super) async fn look_at_what_waits(&mut self) -> Result<(), Failure> {
        if !self.engine.is_logged_on() {
            self.held_up.ends();
            return Ok(());
        }
        let now = Instant::now();
        if self.held_up.why.is_some() {
            return self.try_again().await;
        }
        self.away.is_down(false, now);
        if self.waiting.is_empty() {
            self.held_up.ends();
            if !self.away.is_empty() && self.may_begin() {
                self.wake(self.places).await?;
            }
            return Ok(());
        }
        let for_long =
            |since: &mut Option<Instant>, patience| now.duration_since(*since.get_or_insert(now)) >= patience;
        if for_long(&mut self.held_up.since, PATIENCE) {
            return self.hold_up(now).await;
        }
        if self.waiting.len() <= self.places {
            self.held_up.beyond_since = None;
        } else if for_long(&mut self.held_up.beyond_since, PATIENCE_BEYOND_SHARE) {
            self.send_back(self.places, MORE_THAN_ITS_SHARE).await?;
        }
        Ok(())
    }

    async fn hold_up(&mut self, now: Instant) -> Result<(), Failure> {
        let why = self.why_nothing_begins();
        let is_new = self.held_up.said_at.is_none_or(|said| now.duration_since(said) >= SAID_EVERY);
        if is_new {
            let session = &self.config.name;
            tracing::warn!(session, "the session {why}; what is to be sent waits in the gateway");
            self.held_up.said_at = Some(now);
        }
        self.held_up.why = Some(why);
        self.held_up.wanted = self.held_up.missing;
        self.away.is_down(true, now);
        self.send_back(0, why).await
    }

    /// It was held up. What has come meanwhile has been tried.
    async fn try_again(&mut self) -> Result<(), Failure> {
        let has_room = match self.held_up.wanted(Instant::now()) {
            Some(bytes) => self.engine.makes_room(bytes, self.now()),
            None => true,
        };
        // The partner may have been asked, and that must not go with what begins next: if that is refused, all of its turn is undone.
        self.gather().await?;
        let Some(why) = self.held_up.why.filter(|_| !has_room || !self.may_begin()) else {
            // What has gone back is woken by the next step.
            self.held_up.ends();
            return Ok(());
        };
        self.send_back(0, why).await
    }

    fn why_nothing_begins(&self) -> &'static str {
        match () {
            () if self.held_up.missing.is_some() => {
                "keeps as much as it may, and its partner has confirmed too little of it"
            }
            () if self.engine.begins_anew() => "is about to begin its numbers anew",
            () if self.engine.sends_again() => "sends again what its partner has asked for",
            () if !self.engine.can_send() => "has sent as much as its partner may leave unconfirmed",
            () => "has a partner that reads too slowly",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_was_no_room_for_is_not_waited_for_without_end_while_others_begin() {
        let found = Instant::now();
        let mut held_up = HeldUp { why: Some("x"), wanted: Some(7), ..HeldUp::default() };
        let after = |seconds| found + Duration::from_secs(seconds);
        assert_eq!(held_up.wanted(after(3600)), Some(7), "nothing else has begun");
        held_up.goes_on(after(100));
        held_up.goes_on(after(159));
        assert_eq!([after(159), after(160)].map(|at| held_up.wanted(at)), [Some(7), None]);
        held_up.ends();
        held_up.goes_on(after(200));
        assert_eq!(held_up.begun_beside, None);
    }
}
