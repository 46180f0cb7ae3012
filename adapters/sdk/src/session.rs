//! The session with the gateway: who this adapter is, how its deliveries are to be treated, its durable state.
//!
//! Opening a session ends the adapter's earlier ones. Every call carries the session's epoch; once a newer session is
//! open the gateway refuses this one's calls, and the process ends without writing anything more.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use gatepost_api::session::{SessionRequest, SessionResponse};
use gatepost_api::settle::Level;
use serde_json::value::RawValue;

use crate::client::{Call, CallError, Client, Purpose};
use crate::lifetime::{Ending, Lifetime, Stop};
use crate::patience::persist;
use crate::settle::Settler;
use crate::state::{STATE_BYTES_MAX, Sizes};

/// Largest answer that opens a session: the adapter's whole state as base64, with room for keys that JSON writes longer.
const SESSION_BYTES_MAX: usize = 4 * STATE_BYTES_MAX;
const SESSION_DEADLINE: Duration = Duration::from_secs(30);

/// What happens to a delivery whose outcome is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDoubt {
    Resend,
    Hold,
    Query,
}

/// An open session. Clones share it.
#[derive(Clone)]
pub struct Session(Arc<Inner>);

struct Inner {
    client: Arc<Client>,
    lifetime: Lifetime,
    settler: Settler,
    epoch: u64,
    name: String,
    on_doubt: OnDoubt,
    confirm: Level,
    order: Option<String>,
    window: u32,
    max_in_flight: u32,
    state: BTreeMap<String, Vec<u8>>,
    sizes: Sizes,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("name", &self.0.name)
            .field("epoch", &self.0.epoch)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("cannot open a session with the gateway")]
    Call(#[source] CallError),
    #[error(
        "the gateway's session answer has a `{0}` that this program does not know; are their versions far apart?"
    )]
    Unknown(&'static str),
}

impl Session {
    /// Opens a session; gives the adapter's settings with it.
    pub(crate) async fn open(
        client: Arc<Client>,
        lifetime: Lifetime,
        version: &str,
    ) -> Result<(Self, Box<RawValue>), OpenError> {
        let request = SessionRequest { version: Some(version.to_owned()) };
        let mut call = Call::post_json(Purpose::Poll, "/v1/session", &request, SESSION_DEADLINE)
            .map_err(OpenError::Call)?;
        call.answer_bytes_max = SESSION_BYTES_MAX;
        let opened: SessionResponse = persist(&client, &call).await.map_err(OpenError::Call)?;
        let state = opened.state.into_iter().map(|(key, value)| Some((key, BASE64.decode(value).ok()?)));
        let state: BTreeMap<_, _> = state.collect::<Option<_>>().ok_or(OpenError::Unknown("state"))?;
        let inner = Inner {
            settler: Settler::start(Arc::clone(&client), lifetime.clone(), opened.epoch),
            client,
            lifetime,
            epoch: opened.epoch,
            name: opened.name,
            on_doubt: match opened.on_doubt.as_str() {
                "resend" => OnDoubt::Resend,
                "hold" => OnDoubt::Hold,
                "query" => OnDoubt::Query,
                _ => return Err(OpenError::Unknown("on_doubt")),
            },
            confirm: match opened.confirm.as_str() {
                "sent" => Level::Sent,
                "transport" => Level::Transport,
                "business" => Level::Business,
                _ => return Err(OpenError::Unknown("confirm")),
            },
            order: opened.order,
            window: opened.window,
            max_in_flight: opened.max_in_flight,
            sizes: Sizes::of(&state),
            state,
        };
        Ok((Self(Arc::new(inner)), opened.settings))
    }

    /// The adapter's name in the configuration, which is also its queue's.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub fn epoch(&self) -> u64 {
        self.0.epoch
    }

    pub fn on_doubt(&self) -> OnDoubt {
        self.0.on_doubt
    }

    /// The level of evidence that counts as delivered.
    pub fn confirm(&self) -> Level {
        self.0.confirm
    }

    /// Whether all deliveries are one lane (`order = "strict"`); `false` also where the gateway does not say.
    pub fn is_strictly_ordered(&self) -> bool {
        self.0.order.as_deref() == Some("strict")
    }

    /// Most consecutive deliveries of one lane that are leased at a time.
    pub fn window(&self) -> u32 {
        self.0.window
    }

    pub fn max_in_flight(&self) -> u32 {
        self.0.max_in_flight
    }

    /// The adapter's durable state when the session was opened. Changes go through [`Session::settle`]; a [`Space`](crate::Space) keeps up with
    /// them.
    pub fn state(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.0.state
    }

    pub fn stop(&self) -> Stop {
        self.0.lifetime.stop()
    }

    /// Superseded is not an error to handle: the process is over.
    pub(crate) fn end_if_superseded(&self, error: Option<&CallError>) {
        if error.is_some_and(CallError::superseded) {
            self.0.lifetime.end(Ending::Superseded);
        }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.0.client
    }

    pub(crate) fn lifetime(&self) -> &Lifetime {
        &self.0.lifetime
    }

    pub(crate) fn settler(&self) -> &Settler {
        &self.0.settler
    }

    pub(crate) fn state_sizes(&self) -> &Sizes {
        &self.0.sizes
    }
}
