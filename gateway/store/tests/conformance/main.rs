//! The laws of the store: what every backend must keep, written against the [`gatepost_store::Store`] handle alone.
//!
//! `fixture` opens a backend and `check` looks into it behind the handle's back; the laws know nothing of it. A law
//! of `RULES.md` is named after its number.

mod check;
#[path = "../../src/dice.rs"]
mod dice;
mod fixture;
mod run;

mod accept;
mod audit;
mod begin;
mod doubt;
mod emit;
mod expiry;
mod lanes;
mod late;
mod lease;
mod lists;
mod moves;
mod purge;
mod random;
mod sessions;
mod start;
mod torn;
mod whose_fault;
mod window;
