//! What must hold for any row of the database, whoever wrote it: a value that does not fit is named, and none is replaced by
//! another. Driven by the fuzzer, and by `cargo test` over the inputs that it has kept.

use gatepost_core::State;
use rusqlite::types::Value;
use rusqlite::{Connection, ToSql};

use crate::row::{Row, state_code};
use crate::seal::{Owner, Place, SALT_BYTES, Vault};
use crate::sqlite::connection::Cells;
use crate::sqlite::row;
use crate::sum;

/// A target and its name, which is also its corpus's.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[("row", row), ("seal", seal)];

const COLUMNS: usize = 35;
const STATE: usize = 5;
const DUE: usize = 7;
const TOKEN: usize = 8;
const UNTIL: usize = 9;
const SESSION: usize = 10;
const COUNTS: [usize; 3] = [13, 14, 15];
const REASON: usize = 19;
const EXPIRES: usize = 20;
const BORN: usize = 21;
const IDLE: usize = 22;
const CHANGED: usize = 23;
const SETTLED_TOKEN: usize = 24;
const SETTLED_AS: usize = 25;
const SENDER: usize = 27;
const BARRIER: usize = 28;
/// Of the columns before it; of the last one only where it is not null.
const SUM: usize = 29;
const READY: usize = 30;
const SIZE: usize = 33;
const NULL_IN_A_LEASED_ONE: [usize; 8] =
    [DUE, REASON, EXPIRES, SETTLED_TOKEN, SETTLED_AS, SENDER, BARRIER, READY];
/// Ids, lane, token, batch, leaves and salt, with their lengths.
const BLOBS: [(usize, usize); 7] =
    [(1, 16), (4, 16), (TOKEN, 16), (11, 16), (26, 8), (31, 16), (32, SALT_BYTES)];

thread_local! {
    static DATABASE: Connection = Connection::open_in_memory().expect("a database in memory");
}

/// A delivery's columns as they are stored, with some of them changed: which one, the kind of value, the value.
fn row(input: &[u8]) {
    let mut values = a_leased_one();
    let mut rest = input;
    while let Some(([column, kind], after)) = rest.split_first_chunk() {
        let (value, after) = value(*kind, after);
        values[usize::from(*column) % COLUMNS] = value;
        rest = after;
    }
    if values[SUM] == Value::Null {
        // As if it had been stored so; a sum that the input gives can only be wrong.
        let summed: Vec<&dyn ToSql> = values[..SUM].iter().map(|value| value as &dyn ToSql).collect();
        let (always, added) = summed.split_at(BARRIER);
        values[SUM] = Value::Integer(sum::of_with_added(always, added).expect("values have a sum"));
    }
    let Some(row) = load(&values) else {
        assert!(!input.is_empty(), "what is in order cannot be read");
        return;
    };
    let integer = |column: usize| match values[column] {
        Value::Integer(value) => Some(value),
        _ => None,
    };
    assert_eq!(i64::try_from(row.size).ok(), integer(SIZE));
    let delivery = &row.delivery;
    assert_eq!(Some(state_code(&delivery.state)), integer(STATE));
    let counts = [delivery.attempts, delivery.series, delivery.crashes];
    assert_eq!(counts.map(|count| Some(i64::from(count))), COUNTS.map(integer));
    assert_eq!(delivery.expires_at.map(|at| at.as_micros()), integer(EXPIRES));
    assert_eq!(Some(delivery.born.as_micros()), integer(BORN));
    assert_eq!(Some(delivery.idle_at_birth.as_micros()), integer(IDLE));
    assert_eq!(Some(row.changed_at.as_micros()), integer(CHANGED));
    assert_eq!(row.sender, integer(SENDER));
    if let Some(lease) = delivery.lease() {
        assert_eq!(Some(lease.until.as_micros()), integer(UNTIL));
        assert_eq!(i64::try_from(lease.session).ok(), integer(SESSION).or(Some(0)));
    }
    if let State::Waiting { due } = delivery.state {
        assert_eq!(Some(due.as_micros()), integer(DUE));
    }
    if let State::Dead { reason, .. } = delivery.state {
        assert_eq!(values[REASON], Value::Text(reason.as_str().to_owned()));
    }
    match &delivery.settled {
        Some((token, kind)) => {
            assert_eq!(values[SETTLED_TOKEN], Value::Blob(token.as_bytes().to_vec()));
            assert_eq!(values[SETTLED_AS], Value::Text(kind.to_text().into_owned()));
        }
        None => assert_eq!([&values[SETTLED_TOKEN], &values[SETTLED_AS]], [&Value::Null; 2]),
    }
}

fn load(values: &[Value]) -> Option<Row> {
    let marks: Vec<String> = (1..=values.len()).map(|number| format!("?{number}")).collect();
    DATABASE.with(|database| {
        let mut statement = database.prepare_cached(&format!("SELECT {}", marks.join(", "))).expect("SQL");
        let mut rows = statement.query(rusqlite::params_from_iter(values)).expect("values");
        let row = rows.next().expect("a row").expect("a row");
        match row::load(Cells::new(row)) {
            Ok(row) => Some(row),
            Err(error) => {
                assert!(!error.to_string().is_empty());
                None
            }
        }
    })
}

fn a_leased_one() -> [Value; COLUMNS] {
    let mut values = [const { Value::Integer(0) }; COLUMNS];
    for (column, bytes) in BLOBS {
        values[column] = Value::Blob(vec![7; bytes]);
    }
    for column in NULL_IN_A_LEASED_ONE.into_iter().chain([SUM]) {
        values[column] = Value::Null;
    }
    values[STATE] = Value::Integer(1);
    values
}

fn value(kind: u8, rest: &[u8]) -> (Value, &[u8]) {
    let length = usize::from(rest.first().copied().unwrap_or(0));
    let bytes = rest.get(1..).unwrap_or_default();
    let (bytes, after) = bytes.split_at(length.min(bytes.len()));
    match kind % 6 {
        0 => (Value::Null, rest),
        1 => (Value::Integer(i64::from(rest.first().copied().unwrap_or(0).cast_signed())), bytes_after(rest)),
        2 => match rest.split_first_chunk() {
            Some((number, after)) => (Value::Integer(i64::from_be_bytes(*number)), after),
            None => (Value::Integer(i64::MIN), &[]),
        },
        3 => (Value::Text(String::from_utf8_lossy(bytes).into_owned()), after),
        4 => (Value::Blob(bytes.to_vec()), after),
        _ => (Value::Real(length as f64), bytes_after(rest)),
    }
}

fn bytes_after(rest: &[u8]) -> &[u8] {
    rest.get(1..).unwrap_or_default()
}

/// What was sealed opens as it was, and a seal of another kind does not open.
fn seal(input: &[u8]) {
    let vault = Vault::new(&[1; 32]);
    let place = Place { table: "message", column: "data", row: 1 };
    let owner = Owner::Reply { delivery: 1 };
    let sealed = vault.seal(input, owner).expect("a plain seal needs no randomness");
    assert_eq!(vault.open(&sealed, owner, place).ok().as_deref(), Some(input));
    match vault.open(input, owner, place) {
        Ok(content) => assert_eq!(vault.seal(&content, owner).ok().as_deref(), Some(input)),
        Err(error) => assert!(error.to_string().contains("message")),
    }
}

#[test]
fn the_corpus_replays() {
    gatepost_replay::replay(TARGETS);
}
