//! The responding side: what a number says of a transaction that came in.

use serde::{Deserialize, Serialize};

use super::ANY;
use crate::header::SequenceNumber;

/// One partner's stream, in adapter state; changed together with what is accepted of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Incoming {
    /// The transaction accepted last; none before the first, and after a resynchronisation.
    last: Option<Last>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Last {
    number: u64,
    /// Of its bytes, SHA-256.
    digest: String,
}

/// What to do about a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Say what is expected; nothing else.
    Tell,
    /// Forget the number, and say so once that is durable.
    Forget,
    /// Store it, and with it the stream as it is then.
    Take(Incoming),
    /// It is the one accepted last: its acknowledgement was lost.
    Again,
    /// Another number is expected.
    OutOfSequence,
    /// It has no number, or none that could be one.
    Unnumbered,
}

impl Incoming {
    /// MSA-4: the number that is expected next.
    pub(crate) fn expected(&self) -> i64 {
        let next = self.last.as_ref().map(|last| last.number.saturating_add(1));
        next.map_or(ANY, |next| i64::try_from(next).unwrap_or(i64::MAX))
    }

    pub(crate) fn step(&self, number: SequenceNumber, digest: String) -> Step {
        let number = match number {
            SequenceNumber::Missing | SequenceNumber::Unusable => return Step::Unnumbered,
            SequenceNumber::Inquiry => return Step::Tell,
            SequenceNumber::Resynchronise => return Step::Forget,
            SequenceNumber::Number(number) => number,
        };
        match &self.last {
            None => Step::Take(Self { last: Some(Last { number, digest }) }),
            Some(last) if Some(number) == last.number.checked_add(1) => {
                Step::Take(Self { last: Some(Last { number, digest }) })
            }
            Some(last) if *last == (Last { number, digest }) => Step::Again,
            Some(_) => Step::OutOfSequence,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: u64, digest: &str) -> Incoming {
        Incoming { last: Some(Last { number, digest: digest.to_owned() }) }
    }

    #[test]
    fn each_number_says_what_to_do() {
        let number = SequenceNumber::Number;
        for (stream, came, step) in [
            (Incoming::default(), number(4711), Step::Take(at(4711, "new"))),
            (at(6, "old"), number(7), Step::Take(at(7, "new"))),
            (at(6, "new"), number(6), Step::Again),
            // The same number for something else.
            (at(6, "old"), number(6), Step::OutOfSequence),
            (at(6, "old"), number(8), Step::OutOfSequence),
            (at(6, "old"), number(5), Step::OutOfSequence),
            (at(6, "old"), SequenceNumber::Inquiry, Step::Tell),
            (at(6, "old"), SequenceNumber::Resynchronise, Step::Forget),
            (at(6, "old"), SequenceNumber::Missing, Step::Unnumbered),
            (at(6, "old"), SequenceNumber::Unusable, Step::Unnumbered),
        ] {
            assert_eq!(stream.step(came, "new".to_owned()), step, "{stream:?} {came:?}");
        }
        assert_eq!((Incoming::default().expected(), at(6, "old").expected()), (-1, 7));
    }
}
