//! Which repeated events get an audit leaf of their own: of the same kind by the same principal, the first at once, then one
//! leaf per [`WINDOW`] that counts the others. Pure; time is a parameter. `trail.rs` writes what this says.
//!
//! Of refusals there is a bound in total: strangers may call themselves what they like, so that each could be a kind of its own, and the
//! log would be theirs to fill. Beyond the bound strangers are counted without their names, by the code alone, so that a flood of one
//! kind never hides another; and principals, of whom a configuration may name thousands, are counted together.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

use gatepost_audit::leaf::Event;
use gatepost_core::MessageId;
use gatepost_core::principal::{Actor, ActorKind};
use gatepost_store::AuditNote;

/// One leaf per principal and kind in this span, at most.
pub(crate) const WINDOW: Duration = Duration::from_secs(60);
/// Most kinds followed at a time; beyond it every event is a leaf, which is more than asked and never less.
const KINDS_MAX: usize = 4096;

/// Most kinds of refusals followed at a time: of strangers by name, and of principals. Every kind makes a leaf at once and then one per
/// window, so that in any minute there are at most twice as many leaves as these, one more of principals, and one of strangers for each
/// code there is.
const STRANGERS_NAMED_MAX: usize = 32;
const PRINCIPALS_KINDS_MAX: usize = 256;
/// As code, and in place of a principal's name: refusals of many kinds, counted together.
const SEVERAL: &str = "several";

/// Whose refusals share a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    /// With the name that the stranger's certificate claims.
    NamedStranger,
    Principal,
}

impl Refused {
    /// `None` for what is bounded by itself: a stranger's refusal without a name is one of the codes that there are.
    fn of(event: Event, by: &Actor, target: Option<&str>) -> Option<Self> {
        match (event, by.kind) {
            (Event::Refused, ActorKind::Peer) => target.map(|_| Self::NamedStranger),
            (Event::Refused, _) => Some(Self::Principal),
            _ => None,
        }
    }

    const fn kinds_max(self) -> usize {
        match self {
            Self::NamedStranger => STRANGERS_NAMED_MAX,
            Self::Principal => PRINCIPALS_KINDS_MAX,
        }
    }

    /// What stands for one that is beyond the bound.
    fn together(self, note: AuditNote) -> AuditNote {
        match self {
            Self::NamedStranger => AuditNote { target: None, ..note },
            Self::Principal => {
                let several = Actor::new(ActorKind::Gateway, SEVERAL);
                AuditNote {
                    code: Some(SEVERAL.to_owned()),
                    count: note.count,
                    ..AuditNote::new(Event::Refused, several)
                }
            }
        }
    }
}

/// What makes two events the same kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    event: gatepost_audit::leaf::Event,
    by: Actor,
    code: Option<String>,
    target: Option<String>,
    message: Option<MessageId>,
}

impl Kind {
    fn of(note: &AuditNote) -> Self {
        Self {
            event: note.event,
            by: note.by.clone(),
            code: note.code.clone(),
            target: note.target.clone(),
            message: note.message,
        }
    }
}

#[derive(Debug)]
struct Open {
    note: AuditNote,
    ends: Instant,
    /// Events since the last leaf.
    uncounted: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Coalescer {
    open: HashMap<Kind, Open>,
    /// How many of them are refusals, so that a flood of new ones is not answered by counting.
    named_strangers: usize,
    principals: usize,
}

impl Coalescer {
    /// Takes an event; gives it, or what stands for it, back if that is to be a leaf at once.
    pub(crate) fn take(&mut self, note: AuditNote, now: Instant) -> Option<AuditNote> {
        if self.count(&note) {
            return None;
        }
        let note = match Refused::of(note.event, &note.by, note.target.as_deref()) {
            Some(refused) if self.kinds_of(refused) >= refused.kinds_max() => {
                let together = refused.together(note);
                if self.count(&together) {
                    return None;
                }
                together
            }
            _ => note,
        };
        self.opened(&note, now);
        Some(note)
    }

    /// Counts an event if a leaf of its kind opened a window that is still there.
    pub(crate) fn count(&mut self, note: &AuditNote) -> bool {
        let Some(open) = self.open.get_mut(&Kind::of(note)) else { return false };
        open.uncounted += note.count.unwrap_or(1);
        true
    }

    /// A leaf for `note` is being, or has been, written: its window begins.
    pub(crate) fn opened(&mut self, note: &AuditNote, now: Instant) {
        if self.open.len() < KINDS_MAX {
            let open = Open { note: note.clone(), ends: now + WINDOW, uncounted: 0 };
            if let Entry::Vacant(vacant) = self.open.entry(Kind::of(note)) {
                vacant.insert(open);
                match Refused::of(note.event, &note.by, note.target.as_deref()) {
                    Some(Refused::NamedStranger) => self.named_strangers += 1,
                    Some(Refused::Principal) => self.principals += 1,
                    None => {}
                }
            }
        }
    }

    const fn kinds_of(&self, refused: Refused) -> usize {
        match refused {
            Refused::NamedStranger => self.named_strangers,
            Refused::Principal => self.principals,
        }
    }

    fn recount(&mut self) {
        let of = |kind: &Kind| Refused::of(kind.event, &kind.by, kind.target.as_deref());
        let kinds = |refused| self.open.keys().filter(|kind| of(kind) == Some(refused)).count();
        (self.named_strangers, self.principals) = (kinds(Refused::NamedStranger), kinds(Refused::Principal));
    }

    /// The leaves of windows that have ended. A kind that goes on gets a new window, one that was silent is forgotten.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<AuditNote> {
        let mut leaves = Vec::new();
        self.open.retain(|_, open| {
            if open.ends > now {
                return true;
            }
            let Some(leaf) = open.settle() else { return false };
            leaves.push(leaf);
            open.ends = now + WINDOW;
            true
        });
        self.recount();
        leaves
    }

    /// The leaves of everything that has not got one yet; for the gateway's stop.
    pub(crate) fn drain(&mut self) -> Vec<AuditNote> {
        let leaves = self.open.values_mut().filter_map(Open::settle).collect();
        self.open.clear();
        self.recount();
        leaves
    }

    /// Counts leaves that could not be written, so that a later one stands for them.
    pub(crate) fn restore(&mut self, notes: Vec<AuditNote>, now: Instant) {
        for note in notes {
            let open = || Open { note: note.clone(), ends: now + WINDOW, uncounted: 0 };
            // Beyond the bound too: these are few, and the leaf they stand for must come.
            self.open.entry(Kind::of(&note)).or_insert_with(open).uncounted += note.count.unwrap_or(1);
        }
        self.recount();
    }
}

impl Open {
    fn settle(&mut self) -> Option<AuditNote> {
        let count = std::mem::take(&mut self.uncounted);
        (count > 0).then(|| AuditNote { count: Some(count), ..self.note.clone() })
    }
}

#[cfg(test)]
mod tests {
    use gatepost_audit::leaf::Event;
    use gatepost_core::principal::ActorKind;

    use super::*;

    fn note(name: &str, code: &str) -> AuditNote {
        AuditNote {
            code: Some(code.into()),
            ..AuditNote::new(Event::Refused, Actor::new(ActorKind::App, name))
        }
    }

    fn counts(notes: &[AuditNote]) -> Vec<Option<u64>> {
        notes.iter().map(|note| note.count).collect()
    }

    #[test]
    fn r13_8_the_first_at_once_then_one_per_minute_with_a_count() {
        let (mut coalescer, start) = (Coalescer::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(coalescer.take(note("ehr", "forbidden"), at(0)).unwrap().count, None);
        for second in 1..10 {
            assert!(coalescer.take(note("ehr", "forbidden"), at(second)).is_none());
        }
        assert!(coalescer.due(at(59)).is_empty());
        assert_eq!(counts(&coalescer.due(at(60))), [Some(9)]);
        assert!(
            coalescer.take(note("ehr", "forbidden"), at(61)).is_none(),
            "the flood goes on: still one per minute"
        );
        assert_eq!(counts(&coalescer.due(at(120))), [Some(1)]);
        assert!(coalescer.due(at(180)).is_empty());
        assert!(
            coalescer.take(note("ehr", "forbidden"), at(181)).is_some(),
            "after a silent minute the next is the first again"
        );
    }

    #[test]
    fn principals_kinds_and_payloads_do_not_hide_each_other() {
        let (mut coalescer, now) = (Coalescer::default(), Instant::now());
        assert!(coalescer.take(note("ehr", "forbidden"), now).is_some());
        assert!(coalescer.take(note("lab", "forbidden"), now).is_some());
        assert!(coalescer.take(note("ehr", "type_not_allowed"), now).is_some());
        let of = |byte| AuditNote { message: Some(MessageId::from_bytes([byte; 16])), ..note("ehr", "x") };
        assert!(coalescer.take(of(1), now).is_some() && coalescer.take(of(2), now).is_some());
        assert!(coalescer.take(of(1), now).is_none());
    }

    #[test]
    fn what_was_counted_is_not_lost_at_the_stop_nor_when_writing_fails() {
        let (mut coalescer, now) = (Coalescer::default(), Instant::now());
        let first = coalescer.take(note("ehr", "forbidden"), now).unwrap();
        coalescer.take(note("ehr", "forbidden"), now);
        coalescer.restore(vec![first], now);
        assert_eq!(counts(&coalescer.drain()), [Some(2)]);
        assert!(coalescer.drain().is_empty());
        coalescer.restore(vec![AuditNote { count: Some(5), ..note("ehr", "forbidden") }], now);
        assert_eq!(counts(&coalescer.drain()), [Some(5)]);
    }

    #[test]
    fn at_the_bound_every_event_but_a_refusal_is_a_leaf() {
        let (mut coalescer, now) = (Coalescer::default(), Instant::now());
        let read = |name: &str| AuditNote { event: Event::PayloadRead, ..note(name, "x") };
        for number in 0..KINDS_MAX {
            coalescer.take(read(&number.to_string()), now);
        }
        assert!(coalescer.take(read("more"), now).is_some());
        assert!(coalescer.take(read("more"), now).is_some());
        assert_eq!(coalescer.open.len(), KINDS_MAX);
    }

    fn of_stranger(name: usize) -> AuditNote {
        let stranger = Actor::new(ActorKind::Peer, "unknown");
        AuditNote {
            code: Some("certificate_issuer".into()),
            target: Some(format!("spiffe://flood.example/{name}")),
            ..AuditNote::new(Event::Refused, stranger)
        }
    }

    fn sum(notes: &[AuditNote]) -> u64 {
        notes.iter().map(|note| note.count.unwrap_or(1)).sum()
    }

    #[test]
    fn r13_8_strangers_who_call_themselves_anything_do_not_fill_the_log() {
        let (mut coalescer, start) = (Coalescer::default(), Instant::now());
        let (mut told, mut number) = (0, 0);
        for minute in 0..5 {
            let mut leaves = Vec::new();
            for second in 0..60 {
                let now = start + Duration::from_secs(60 * minute + second);
                leaves.extend(coalescer.due(now));
                for _ in 0..100 {
                    // Half of them are new each time, half come again and again.
                    number += 1;
                    let name = if number % 2 == 0 { number } else { number % 40 };
                    leaves.extend(coalescer.take(of_stranger(name), now));
                }
            }
            let bound = 2 * (STRANGERS_NAMED_MAX + 1);
            assert!(leaves.len() <= bound, "minute {minute}: {} leaves", leaves.len());
            told += sum(&leaves);
        }
        assert!(
            coalescer.take(note("ehr", "forbidden"), start + Duration::from_secs(300)).is_some(),
            "others are heard"
        );
        let local = AuditNote { code: Some("unknown_peer".into()), target: None, ..of_stranger(0) };
        assert!(coalescer.take(local, start + Duration::from_secs(300)).is_some(), "other strangers, too");
        let rest = coalescer.drain();
        assert_eq!(told + sum(&rest), number as u64, "each is counted somewhere");
        assert_eq!((coalescer.named_strangers, coalescer.principals), (0, 0));
    }

    #[test]
    fn principals_have_a_bound_of_their_own() {
        let (mut coalescer, now) = (Coalescer::default(), Instant::now());
        for name in 0..10_000 {
            coalescer.take(of_stranger(name), now);
        }
        let leaves: Vec<_> = (0..10_000)
            .filter_map(|name| coalescer.take(note(&name.to_string(), "forbidden"), now))
            .collect();
        assert_eq!(leaves.len(), PRINCIPALS_KINDS_MAX + 1);
        assert_eq!(leaves.last().unwrap().by.name, SEVERAL);
        assert!(coalescer.open.len() <= STRANGERS_NAMED_MAX + PRINCIPALS_KINDS_MAX + 2);
    }
}
