//! What must hold for any row of the database, whoever wrote it: a value that does not fit is named, and none is replaced by
//! another. Driven by the fuzzer, and by `cargo test` over the inputs that it has kept.

use gatepost_core::State;
use rusqlite::Connection;
use rusqlite::types::Value;

use crate::database::Cells;
use crate::row::{Row, state_code};
use crate::seal::{Place, Vault};

/// A target and its name, which is also its corpus's.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[("row", row), ("seal", seal)];

const COLUMNS: usize = 31;
const SIZE: usize = 5;
const STATE: usize = 8;
const DUE: usize = 10;
const UNTIL: usize = 12;
const SESSION: usize = 13;
const COUNTS: [usize; 3] = [16, 17, 18];
const REASON: usize = 22;
const EXPIRES: usize = 23;
const BORN: usize = 24;
const IDLE: usize = 25;
const CHANGED: usize = 26;
const SETTLED_TOKEN: usize = 27;
const SETTLED_AS: usize = 28;

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
    let Some(row) = load(&values) else { return };
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
    assert_eq!(i64::try_from(delivery.idle_at_birth.as_micros()).ok(), integer(IDLE));
    assert_eq!(Some(row.changed_at.as_micros()), integer(CHANGED));
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
            assert_eq!(values[SETTLED_AS], Value::Text(kind.as_str().to_owned()));
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
        match Row::load(Cells::new(row)) {
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
    for (column, blob) in [(1, 16), (3, 16), (4, 32), (7, 16), (11, 16), (14, 16), (29, 8)] {
        values[column] = Value::Blob(vec![7; blob]);
    }
    for column in [REASON, EXPIRES, SETTLED_TOKEN, SETTLED_AS, DUE] {
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
    let owner = crate::seal::Owner::Reply { delivery: 1 };
    let sealed = vault.seal(input, owner);
    assert_eq!(vault.open(&sealed, owner, place).ok(), Some(input));
    match vault.open(input, owner, place) {
        Ok(content) => assert_eq!(vault.seal(content, owner), input),
        Err(error) => assert!(error.to_string().contains("message")),
    }
}

#[test]
fn the_corpus_replays() {
    gatepost_replay::replay(TARGETS);
}
