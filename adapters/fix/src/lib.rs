//! `gatepost-fix`: FIX 4.0 to 5.0 SP2, as tag=value over a session.
//!
//! `wire` cuts a stream into messages and writes them, `message` reads a whole one, `value` its values.
//!
//! **Architecture invariant:** the bytes of a body pass through unchanged, in the order in which they were handed in.
//! Header and trailer are written here.

pub mod content;
pub mod data_fields;
pub mod dictionary;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod message;
pub mod show_tool;
pub mod validate;
pub mod value;
pub mod version;
pub mod wire;
