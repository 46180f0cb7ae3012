//! Statements put together of what they have to do. Each call of the server costs more than most of what it does, so a turn makes one
//! of all that it writes; and a part that is in a statement costs even where it has nothing to do, so only those are in it that have.

use sqlx::encode::Encode;
use sqlx::error::BoxDynError;
use sqlx::postgres::PgArguments;
use sqlx::{Arguments as _, AssertSqlSafe, Postgres, SqlSafeStr, Type};

use super::super::TURN_BITS;
use super::super::connection::{FENCED, Statement};
use crate::backend::CommitError;

/// Values of a statement's parameters, in their order.
#[derive(Default)]
pub(in crate::postgres) struct Values {
    values: PgArguments,
    failed: Option<BoxDynError>,
}

impl Values {
    pub(in crate::postgres) fn bind<'v, T>(&mut self, value: T) -> &mut Self
    where
        T: Encode<'v, Postgres> + Type<Postgres>,
    {
        if let Err(error) = self.values.add(value) {
            self.failed.get_or_insert(error);
        }
        self
    }

    /// The statement with these values.
    pub(in crate::postgres) fn of(self, text: impl SqlSafeStr) -> Result<Statement<'static>, CommitError> {
        match self.failed {
            None => Ok(sqlx::query_with(text, self.values)),
            Some(error) => Err(CommitError::Refused(format!("a value cannot be written: {error}"))),
        }
    }
}

/// A statement of common table expressions that all do what they do, or none. Its one row has column `base` of the first part, a number
/// that it has drawn for another turn, and whether it has left notes for its own node.
pub(in crate::postgres) struct Script {
    text: String,
    parameters: usize,
    values: Values,
    refusals: Vec<Refusal>,
    /// The part that returns a row for each note which it has left of a lane that may be this node's own.
    notes: Option<&'static str>,
}

/// Another number of rows than these in a part refuses the statement.
struct Refusal {
    part: &'static str,
    rows: usize,
    reason: &'static str,
}

impl Script {
    /// Begins with a part whose column `is_valid` must be true.
    pub(super) fn new(right: &str) -> Self {
        let mut script = Self {
            text: String::with_capacity(8192),
            parameters: 0,
            values: Values::default(),
            refusals: Vec::new(),
            notes: None,
        };
        script.text.push_str("/* turn */ WITH ");
        script.push(right);
        script
    }

    /// Adds a part. Each `?` in it is a parameter; their values are to be bound before the next part.
    pub(super) fn part(&mut self, text: &str) -> &mut Values {
        self.text.push_str(", ");
        self.push(text);
        &mut self.values
    }

    pub(super) fn values(&mut self) -> &mut Values {
        &mut self.values
    }

    /// Refuses all of it unless a part has returned so many rows.
    pub(super) fn expect(&mut self, part: &'static str, rows: usize, reason: &'static str) {
        self.refusals.push(Refusal { part, rows, reason });
    }

    /// Says in the end whether a part has returned rows.
    pub(super) fn tell_of(&mut self, part: &'static str) {
        self.notes = Some(part);
    }

    pub(super) fn finish(mut self) -> Result<Statement<'static>, CommitError> {
        let text = self.text();
        debug_assert_eq!(self.parameters, self.values.values.len(), "{text}");
        self.values.of(AssertSqlSafe(text))
    }

    /// Ends the text, with the values that belong to its end.
    pub(super) fn text(&mut self) -> String {
        self.push(&format!(
            " SELECT CASE WHEN NOT coalesce((SELECT is_valid FROM valid), false) \
             THEN refuse('{FENCED}', 'the lease of this node is over')"
        ));
        for Refusal { part, rows, reason } in std::mem::take(&mut self.refusals) {
            self.push(&format!(" WHEN (SELECT count(*) FROM {part}) <> ? THEN refuse('40001', '{reason}')"));
            self.values.bind(i64::try_from(rows).unwrap_or(i64::MAX));
        }
        // Drawn behind the CASE, which the server works out first: a part of it may look at the number that was drawn last.
        let notes = match self.notes {
            Some(part) => format!("EXISTS (SELECT 1 FROM {part})"),
            None => "false".to_owned(),
        };
        self.push(&format!(" END, (SELECT base FROM valid), nextval('turn') << {TURN_BITS}, {notes}"));
        std::mem::take(&mut self.text)
    }

    fn push(&mut self, text: &str) {
        for (position, piece) in text.split('?').enumerate() {
            if position > 0 {
                self.parameters += 1;
                self.text.push('$');
                self.text.push_str(&self.parameters.to_string());
            }
            self.text.push_str(piece);
        }
    }
}
