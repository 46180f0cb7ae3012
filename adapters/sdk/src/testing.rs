//! What adapters are tested with: both sides that an adapter speaks to, over real sockets, played by the test step by step.
//!
//! * [`Gateway`] answers the adapter's calls one by one: it leases, settles, refuses, hangs up, vanishes and comes back.
//! * [`Partner`] listens as a partner does, [`Connection::open`] connects as one. A [`Connection`] sends and expects bytes or frames, in
//!   pieces, late, or breaks off in each way that TCP and TLS know.
//! * [`Authority`] (feature `tls`) makes certificates, good and bad ones, and lists of revoked ones.
//!
//! Nothing waits for ever. What does not come fails the test with what was expected, what came instead, and what was said on the connection
//! before.
//!
//! ```
//! # use gatepost_adapter::testing::{Connection, Partner, lines};
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
//! # runtime.block_on(async {
//! let partner = Partner::listen().await.framed(lines);
//! // Here the adapter would connect.
//! let mut adapter = Connection::open(&partner.address(), lines).await;
//! let mut connection = partner.accept().await;
//! adapter.send_in_pieces("1 once\n", 2).await;
//! assert_eq!(connection.frame().await, "1 once");
//! connection.send("ok 1\n").await;
//! connection.close().await;
//! adapter.expect("ok 1\n").await;
//! adapter.closed().await;
//! # });
//! ```

#[cfg(feature = "tls")]
mod authority;
mod connection;
mod gateway;
mod partner;
#[cfg(test)]
mod tests;

#[cfg(feature = "tls")]
pub use authority::{Authority, Certificate};
pub use connection::{Connection, lines};
pub use gateway::{Asked, Call, Desk, Gateway, leased, leased_event};
#[cfg(test)]
pub(crate) use gateway::{Connections, listen};
pub use partner::{Partner, Playing};
#[cfg(feature = "tls")]
pub use rcgen;
