//! The rules of delivery, one by one, as an adapter, an app and an operator meet them: over sockets, against the real program.
//! A name `rN_M_…` says which rule it is; the store's conformance suite has tests of the same names.

mod begin;
mod desk;
mod doubt;
mod emit;
mod fault;
mod session;
mod window;
