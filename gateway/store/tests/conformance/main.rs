//! The laws of the store: what every backend must keep, written against the [`gatepost_store::Store`] handle alone.
//!
//! `../postgres` asks the same laws of another backend. `fixture` opens a backend and `check` looks into it behind the handle's back;
//! the laws know nothing of it. A law of `RULES.md` is named after its number.

/// The backend that the laws are asked of here.
fn database() -> gatepost_store::Database {
    gatepost_store::Database::Sqlite
}

mod check;
mod corrupt;
#[path = "../../src/dice.rs"]
mod dice;
mod fixture;
mod run;

mod accept;
mod audit;
mod away;
mod backup;
mod barriers;
mod begin;
mod doubt;
mod emit;
mod expiry;
mod file;
mod lanes;
mod late;
mod lease;
mod lists;
mod moves;
mod pieces;
mod pieces_damaged;
mod purge;
mod random;
mod replies;
mod seal;
mod senders;
mod sessions;
mod start;
mod torn;
mod whose_fault;
mod window;
