//! The laws of the store: what every backend must keep. One fixture opens a backend; the laws know nothing of it.

mod accept;
mod fixture;
