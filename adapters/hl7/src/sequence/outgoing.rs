//! The initiating side: which number a delivery gets, and what an answer says of it.
//!
//! There is one number at a time whose transaction the partner is not known to have accepted. It belongs to one delivery from before the
//! bytes leave until the partner's word on it, so that what is sent again is the same bytes, and no number is accepted for two contents.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ANY;

/// In adapter state; changed together with the delivery that it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Outgoing {
    /// The first number that the partner is not known to have accepted.
    pub(crate) number: u64,
    /// The delivery that has it; its bytes may be at the partner.
    pub(crate) holder: Option<Uuid>,
}

/// The partner expects a number that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the partner expects sequence number {expected}, and ours is {}", .next.map_or("none yet".to_owned(), |next| next.to_string()))]
pub(crate) struct Mismatch {
    pub(crate) next: Option<u64>,
    pub(crate) expected: i64,
}

/// What an answer says of the transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judged {
    Accepted,
    /// By an earlier attempt, whose acknowledgement was lost.
    AcceptedBefore,
    /// The partner has not taken it: the number may be given to another one.
    Refused,
    /// The partner has not taken it, since it expects another number.
    OutOfStep(i64),
}

impl Outgoing {
    /// Whether the delivery can have the number without asking the partner which one it expects: nobody's bytes can be there under it
    /// but the delivery's own.
    pub(crate) fn is_free_for(self, delivery: Uuid) -> bool {
        self.holder.is_none_or(|holder| holder == delivery)
    }

    /// After the partner has said which one it expects (the answer to 0, or −1 to −1).
    pub(crate) fn align(own: Option<Self>, delivery: Uuid, expected: i64) -> Result<Self, Mismatch> {
        let mismatch = Mismatch { next: own.map(|own| own.number), expected };
        let number = u64::try_from(expected).ok().filter(|number| *number > 0);
        let Some(own) = own else {
            // Whatever was numbered before us, nothing of ours is under way.
            return match (number, expected) {
                (Some(number), _) => Ok(Self { number, holder: None }),
                (None, ANY) => Ok(Self { number: 1, holder: None }),
                (None, _) => Err(mismatch),
            };
        };
        let kept = own.holder.filter(|holder| *holder == delivery);
        match number {
            _ if expected == ANY => Ok(Self { holder: kept, ..own }),
            Some(number) if number == own.number => Ok(Self { holder: kept, ..own }),
            // It has what the holder sent. To the holder itself it will say so once more.
            Some(number) if Some(number) == own.number.checked_add(1) && own.holder.is_some() => {
                if kept.is_some() { Ok(own) } else { Ok(Self { number, holder: None }) }
            }
            _ => Err(mismatch),
        }
    }

    /// Go on with what the partner expects.
    pub(crate) fn adopted(expected: i64) -> Option<Self> {
        let number = u64::try_from(expected).ok().filter(|number| *number > 0)?;
        Some(Self { number, holder: None })
    }

    pub(crate) fn given_to(self, delivery: Uuid) -> Self {
        Self { holder: Some(delivery), ..self }
    }

    pub(crate) fn after(self, judged: Judged) -> Self {
        match judged {
            Judged::Accepted | Judged::AcceptedBefore => {
                Self { number: self.number.saturating_add(1), holder: None }
            }
            Judged::Refused | Judged::OutOfStep(_) => Self { holder: None, ..self },
        }
    }

    /// `was_sent`: bytes of the same delivery may have left under this number before.
    pub(crate) fn judge(self, is_positive: bool, expected: Option<i64>, was_sent: bool) -> Judged {
        let own = i64::try_from(self.number).unwrap_or(i64::MAX);
        match expected {
            _ if is_positive => Judged::Accepted,
            Some(expected) if was_sent && Some(expected) == own.checked_add(1) => Judged::AcceptedBefore,
            None | Some(ANY) => Judged::Refused,
            Some(expected) if expected == own => Judged::Refused,
            Some(expected) => Judged::OutOfStep(expected),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: Uuid = Uuid::from_u128(1);
    const E: Uuid = Uuid::from_u128(2);

    fn own(number: u64, holder: Option<Uuid>) -> Outgoing {
        Outgoing { number, holder }
    }

    #[test]
    fn the_first_start_takes_what_the_partner_expects() {
        assert_eq!(Outgoing::align(None, D, ANY), Ok(own(1, None)));
        assert_eq!(Outgoing::align(None, D, 4711), Ok(own(4711, None)));
        assert!(Outgoing::align(None, D, 0).is_err());
        assert!(Outgoing::align(None, D, -2).is_err());
    }

    #[test]
    fn what_the_partner_expects_says_what_it_has() {
        // Holder of 7, what the partner expects; what D gets.
        for (holder, expected, aligned) in [
            (None, 7, Some(own(7, None))),
            (None, ANY, Some(own(7, None))),
            // Nothing was sent under it: somebody else's transaction.
            (None, 8, None),
            (None, 6, None),
            (Some(D), 7, Some(own(7, Some(D)))),
            (Some(D), 8, Some(own(7, Some(D)))),
            (Some(D), ANY, Some(own(7, Some(D)))),
            (Some(D), 9, None),
            // Of another one that was never accepted, or was.
            (Some(E), 7, Some(own(7, None))),
            (Some(E), 8, Some(own(8, None))),
            (Some(E), ANY, Some(own(7, None))),
            (Some(E), 9, None),
            (Some(E), 6, None),
            (Some(E), 0, None),
        ] {
            let told = Outgoing::align(Some(own(7, holder)), D, expected);
            assert_eq!(told.ok(), aligned, "{holder:?} {expected}");
        }
    }

    #[test]
    fn an_answer_is_judged_by_its_code_and_the_number_that_is_expected() {
        for (is_positive, expected, was_sent, judged) in [
            (true, None, false, Judged::Accepted),
            (true, Some(7), false, Judged::Accepted),
            (true, Some(8), false, Judged::Accepted),
            (false, None, false, Judged::Refused),
            (false, Some(7), true, Judged::Refused),
            (false, Some(ANY), false, Judged::Refused),
            (false, Some(8), true, Judged::AcceptedBefore),
            // Under this number it has something that we have not sent.
            (false, Some(8), false, Judged::OutOfStep(8)),
            (false, Some(6), true, Judged::OutOfStep(6)),
            (false, Some(9), true, Judged::OutOfStep(9)),
        ] {
            let told = own(7, Some(D)).judge(is_positive, expected, was_sent);
            assert_eq!(told, judged, "{is_positive} {expected:?} {was_sent}");
            let next = own(7, Some(D)).after(told);
            let number = if matches!(judged, Judged::Accepted | Judged::AcceptedBefore) { 8 } else { 7 };
            assert_eq!(next, own(number, None));
        }
    }
}
