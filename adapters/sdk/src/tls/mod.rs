//! TLS with partners, both ways: settings, what is wrong with them, and one stream type for plain and TLS, so that an adapter writes its
//! protocol once.
//!
//! TLS 1.3 is preferred and 1.2 the least. A partner that is connected to is verified against the name that the settings say, whatever the
//! gateway has connected to. Files that change are read again with the next connection; ones that cannot be used leave in force what was
//! there before.

mod accept;
mod connect;
mod explain;
mod misset;
mod name;
mod pem;
mod settings;
mod stream;
#[cfg(test)]
mod tests;

pub use accept::{AcceptError, Acceptor};
pub use connect::{ConnectError, Connector};
pub use explain::explain;
pub use name::{NameError, PeerName};
pub use settings::{ConnectTls, ListenTls, MinVersion};
pub use stream::Stream;
