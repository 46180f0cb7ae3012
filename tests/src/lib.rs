//! A gateway of the tests' own: the real `gatepost serve` on Unix sockets in a temporary directory, and a small client that speaks
//! HTTP/1.1 to it. Nothing here knows the gateway's code: what tests see is what programs see.

mod builder;
mod clock;
mod dice;
pub mod disk;
pub mod fuzzing;
mod gateway;
mod groups;
pub mod http;
pub mod lab;
pub mod partner;
mod port;
mod programs;
mod wait;

pub use builder::{Builder, on_postgres, uid};
pub use clock::Clock;
pub use dice::Dice;
pub use gateway::{Gateway, settle_item};
pub use port::Port;
pub use programs::{compiled, faulty, interpreter, note, program, python, skipped, source};
pub use wait::{WAIT, until, until_within};
