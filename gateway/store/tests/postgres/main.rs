//! The laws of the store, asked of PostgreSQL: the same files as in `../conformance`, over a throw-away server that these tests
//! start. What holds of a file alone stands there.

/// A new database of its own for each place.
fn database() -> gatepost_store::Database {
    let url = gatepost_postgres::fresh_database().expect("a PostgreSQL server for the tests");
    gatepost_store::Database::Postgres { url, node: "node-1".to_owned(), engines: Default::default() }
}

#[path = "../conformance/check.rs"]
mod check;
#[path = "../../src/dice.rs"]
mod dice;
#[path = "../conformance/fixture.rs"]
mod fixture;
#[path = "../conformance/run.rs"]
mod run;

mod ahead;
mod backlog;
mod crosswise;
mod elsewhere;
mod keys;
mod large;
mod migrate;
mod nodes;
mod one_call;
mod reads;
mod retention;
mod unknown;
mod windows;

#[path = "../conformance/accept.rs"]
mod accept;
#[path = "../conformance/audit.rs"]
mod audit;
#[path = "../conformance/away.rs"]
mod away;
#[path = "../conformance/backup.rs"]
mod backup;
#[path = "../conformance/barriers.rs"]
mod barriers;
#[path = "../conformance/begin.rs"]
mod begin;
#[path = "../conformance/doubt.rs"]
mod doubt;
#[path = "../conformance/emit.rs"]
mod emit;
#[path = "../conformance/expiry.rs"]
mod expiry;
#[path = "../conformance/lanes.rs"]
mod lanes;
#[path = "../conformance/late.rs"]
mod late;
#[path = "../conformance/lease.rs"]
mod lease;
#[path = "../conformance/lists.rs"]
mod lists;
#[path = "../conformance/moves.rs"]
mod moves;
#[path = "../conformance/pieces.rs"]
mod pieces;
#[path = "../conformance/purge.rs"]
mod purge;
#[path = "../conformance/random.rs"]
mod random;
#[path = "../conformance/replies.rs"]
mod replies;
#[path = "../conformance/seal.rs"]
mod seal;
#[path = "../conformance/senders.rs"]
mod senders;
#[path = "../conformance/sessions.rs"]
mod sessions;
#[path = "../conformance/start.rs"]
mod start;
#[path = "../conformance/whose_fault.rs"]
mod whose_fault;
#[path = "../conformance/window.rs"]
mod window;
