//! Deterministic simulation: the real writer over its real tables, on a simulated clock, with randomness from a seed. Senders,
//! adapters, readers and operators call it at random; commits fail, the power goes before and after them, time passes and the
//! wall clock steps. After every step the laws are asked (`laws`, `book`, `hear`), and at its end everything must have ended.
//!
//! A run is a list of values (`ops`), made from its seed. One that fails is made as short as it can be and printed as a test;
//! what was found so stays in `repro`.

mod ask;
mod book;
mod hear;
mod laws;
mod machine;
mod ops;
mod power;
mod reported;
mod repro;
mod run;

pub(crate) use power::at_commit;

mod shrink;
mod tests;
mod weekend;
