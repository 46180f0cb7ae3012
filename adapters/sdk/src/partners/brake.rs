//! Whether a partner may be served now: all it takes, one to see whether it is there, or nothing.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::patience::Backoff;

const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// How a partner stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// It has not answered yet. It gets one message at a time, so that one that takes and never answers holds little.
    New,
    Up,
    /// The next probe may go from then on, unless one is under way.
    Away {
        probe_at: Instant,
        probing: bool,
    },
}

/// How much a partner may be given now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admits {
    Nothing,
    /// One, which shows whether the partner is back.
    Probe,
    One,
    All,
}

/// What an attempt says of its partner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sign {
    Answered,
    /// It cannot be reached or takes nothing now; perhaps with the pause that it asks for.
    Trouble {
        reason: String,
        after: Option<Duration>,
    },
    /// No answer came.
    Silence {
        reason: String,
    },
    /// Nothing: it was not asked.
    None,
}

#[derive(Debug)]
pub(super) struct Brake {
    reach: Reach,
    since: SystemTime,
    backoff: Backoff,
    last_error: Option<String>,
    answered_at: Option<Instant>,
}

/// For people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) standing: &'static str,
    pub(super) since: SystemTime,
    pub(super) last_error: Option<String>,
    pub(super) next_try_in: Option<Duration>,
}

impl Brake {
    pub(super) fn new() -> Self {
        Self {
            reach: Reach::New,
            since: SystemTime::now(),
            backoff: Backoff::new(PAUSE_FIRST, PAUSE_MAX),
            last_error: None,
            answered_at: None,
        }
    }

    pub(super) fn admits(&self, now: Instant) -> Admits {
        match self.reach {
            Reach::New => Admits::One,
            Reach::Up => Admits::All,
            Reach::Away { probing: false, probe_at } if probe_at <= now => Admits::Probe,
            Reach::Away { .. } => Admits::Nothing,
        }
    }

    pub(super) fn begin_probe(&mut self) {
        if let Reach::Away { probing, .. } = &mut self.reach {
            *probing = true;
        }
    }

    /// Takes up what an attempt has shown that began at `started`. Whether the partner has gone away by it.
    pub(super) fn learn(&mut self, sign: Sign, is_probe: bool, started: Instant, now: Instant) -> bool {
        match sign {
            Sign::Answered => {
                if self.reach != Reach::Up {
                    (self.reach, self.since) = (Reach::Up, SystemTime::now());
                }
                self.answered_at = Some(now);
                self.backoff.reset();
                false
            }
            // One that answers others is there.
            Sign::Silence { .. } if self.answered_at.is_some_and(|at| at >= started) => {
                self.probe_over(is_probe, now);
                false
            }
            Sign::Silence { reason } => self.trouble(reason, None, is_probe, now),
            Sign::Trouble { reason, after } => self.trouble(reason, after, is_probe, now),
            Sign::None => {
                self.probe_over(is_probe, now);
                false
            }
        }
    }

    /// While the partner is away only its probe's failure counts: the others were under way when it went.
    fn trouble(&mut self, reason: String, after: Option<Duration>, is_probe: bool, now: Instant) -> bool {
        self.last_error = Some(reason);
        let goes = !matches!(self.reach, Reach::Away { .. });
        if goes || is_probe {
            let pause = self.backoff.pause().max(after.unwrap_or_default().min(PAUSE_MAX));
            self.reach = Reach::Away { probe_at: now + pause, probing: false };
        }
        if goes {
            self.since = SystemTime::now();
        }
        goes
    }

    /// The probe has shown nothing: the next may go.
    fn probe_over(&mut self, is_probe: bool, now: Instant) {
        if is_probe && matches!(self.reach, Reach::Away { .. }) {
            self.reach = Reach::Away { probe_at: now, probing: false };
        }
    }

    /// Why it gets nothing now.
    pub(super) fn why(&self) -> &str {
        self.last_error.as_deref().unwrap_or("it does not answer")
    }

    pub(super) fn shown(&self, now: Instant) -> Shown {
        let (standing, next_try_in) = match self.reach {
            Reach::New => ("new", None),
            Reach::Up => ("up", None),
            Reach::Away { probing: true, .. } => ("away", None),
            Reach::Away { probe_at, .. } => ("away", Some(probe_at.saturating_duration_since(now))),
        };
        Shown { standing, since: self.since, last_error: self.last_error.clone(), next_try_in }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble() -> Sign {
        Sign::Trouble { reason: "refused".to_owned(), after: None }
    }

    fn silence() -> Sign {
        Sign::Silence { reason: "no answer".to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_away_gets_one_probe_at_a_time_ever_more_seldom() {
        let mut brake = Brake::new();
        let mut now = Instant::now();
        assert_eq!(brake.admits(now), Admits::One, "not known yet");
        assert!(brake.learn(trouble(), false, now, now));
        assert!(!brake.learn(trouble(), false, now, now), "it was under way already");
        let mut pauses = Vec::new();
        for _ in 0..9 {
            assert_eq!(brake.admits(now), Admits::Nothing);
            let pause = brake.shown(now).next_try_in.unwrap();
            pauses.push(pause.as_millis());
            now += pause;
            assert_eq!(brake.admits(now), Admits::Probe);
            brake.begin_probe();
            assert_eq!(brake.admits(now), Admits::Nothing, "one at a time");
            assert!(!brake.learn(trouble(), true, now, now));
        }
        for (pause, expected) in
            pauses.iter().zip([500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000])
        {
            assert!((expected * 3 / 4..=expected * 5 / 4).contains(pause), "{pauses:?}");
        }
        brake.learn(Sign::Answered, false, now, now);
        assert_eq!(brake.admits(now), Admits::All);
        brake.learn(trouble(), false, now, now);
        assert!(brake.shown(now).next_try_in.unwrap() < Duration::from_secs(1), "as if for the first time");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_counts_unless_others_were_answered_meanwhile() {
        let mut brake = Brake::new();
        let started = Instant::now();
        let later = started + Duration::from_secs(5);
        brake.learn(Sign::Answered, false, started, later);
        assert!(!brake.learn(silence(), false, started, later));
        assert_eq!(brake.admits(later), Admits::All);
        assert!(brake.learn(
            silence(),
            false,
            later + Duration::from_secs(1),
            later + Duration::from_secs(9)
        ));
        assert_eq!(brake.shown(later).standing, "away");
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_shows_nothing_is_followed_by_the_next_and_a_wish_is_honoured() {
        let mut brake = Brake::new();
        let now = Instant::now();
        let after = Some(Duration::from_secs(20));
        brake.learn(Sign::Trouble { reason: "busy".to_owned(), after }, false, now, now);
        assert_eq!(brake.shown(now).next_try_in, after);
        let now = now + Duration::from_secs(20);
        brake.begin_probe();
        brake.learn(Sign::None, true, now, now);
        assert_eq!(brake.admits(now), Admits::Probe);
        assert_eq!(brake.why(), "busy");
    }
}
