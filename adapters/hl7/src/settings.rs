//! The adapter's settings, `[adapters.<name>.settings]` in the gateway's configuration.

mod choices;
mod faults;

use std::path::Path;
use std::time::Duration;

use gatepost_adapter::tls::{ConnectTls, ListenTls};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use self::choices::{ApplicationAck, BatchAck, OnReusedId, OnUnreadable, SegmentEnd};
use crate::channel::Limits;
use crate::charset::Charset;
use crate::on_ack::OnAck;
use crate::partners::PartnerTable;
use crate::path::{FieldPath, FieldPathError};
use crate::peer::{Answerer, Answerers};
use crate::sequence::SequenceNumbers;
use gatepost_adapter::Network;

/// How to reach the partner, how the partner reaches us, and what its answers mean. At least one of `connect` and
/// `listen` is needed.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// The partner's MLLP listener, `host:port`. Without it this adapter only receives.
    pub(crate) connect: Option<String>,
    /// TLS on the connections to the partner. Default: plain TCP.
    pub(crate) tls: Option<ConnectTls>,
    /// Several partners in place of `connect`, each with a table of its own.
    pub(crate) partners: Vec<PartnerTable>,
    /// Which of them these settings are for.
    #[serde(skip)]
    pub(crate) partner: Option<String>,
    /// Connections to the partner. Messages with the same ordering key always take the same one.
    pub(crate) connections: usize,
    /// How long to wait for a connection.
    pub(crate) connect_timeout_ms: u64,
    /// How long to wait for an acknowledgement; then the connection is closed and the delivery is in doubt.
    pub(crate) ack_timeout_ms: u64,
    /// How long to wait for the application acknowledgement of a message that the partner has accepted (CA), where the
    /// destination's `confirm` is `business`.
    pub(crate) application_ack_timeout_ms: u64,
    /// A connection to the partner that has carried nothing for so long is closed; the next message makes a new one. Default: never; 5
    /// minutes where there are several `partners`.
    pub(crate) idle_disconnect_ms: Option<u64>,
    /// What a negative acknowledgement means.
    pub(crate) on_ack: OnAck,
    /// 2: after each message whoever took it says so by a byte of its own (MLLP release 2), both ways.
    pub(crate) mllp_release: u8,
    /// Where partners may connect to, `address:port`. Without it this adapter only sends.
    pub(crate) listen: Option<String>,
    /// TLS on partners' connections to us, and which certificates they need. Default: plain TCP.
    pub(crate) listen_tls: Option<ListenTls>,
    /// Partners' addresses (`10.1.2.3`) and networks (`10.1.0.0/16`). Others are turned away. Default: this host.
    #[schemars(with = "Option<Vec<String>>")]
    pub(crate) allow_from: Option<Vec<Network>>,
    /// Who may answer, over a connection that it makes to us, what we have sent: addresses, networks, and names in certificates
    /// (`dns:`, `uri:`, `cn:`). Default: the partner that the message went to, by its certificate where both connections show one,
    /// else by its address; of several `partners` also by `from`. Whoever is in the `from` of one of those answers that one's messages
    /// only, and where this is set must be listed here too.
    pub(crate) answers_from: Option<Vec<Answerer>>,
    /// Largest message either way, in bytes without the framing.
    pub(crate) max_frame_bytes: usize,
    /// Partners' connections at a time.
    pub(crate) max_connections: usize,
    /// Connections at a time from one address (in IPv6: from one /64 network).
    pub(crate) max_connections_per_source: usize,
    /// How long a partner may pause inside a message.
    pub(crate) idle_frame_timeout_ms: u64,
    /// How long a partner that has connected may say nothing between messages. Default: for ever, since many are silent
    /// for hours; TCP keepalive tells whether they are still there.
    pub(crate) idle_connection_timeout_ms: Option<u64>,
    /// For partners that end a message with FS and no CR: how long to wait for the CR. Default: it must be there.
    pub(crate) lenient_end_ms: Option<u64>,
    /// Who sends the application acknowledgement that a partner asks for behind the accept acknowledgement (MSH-15 and MSH-16).
    pub(crate) application_ack: ApplicationAck,
    /// Message codes, like `QBP`, that an application behind the gateway answers: the partner gets the reply of whoever the
    /// message is delivered to.
    pub(crate) reply_from_app: Vec<String>,
    /// How long a partner waits for such a reply. Whole seconds.
    pub(crate) reply_timeout_ms: u64,
    /// The sequence number protocol. Default: off, both ways.
    pub(crate) sequence_numbers: SequenceNumbers,
    /// A control id that comes again with another message.
    pub(crate) on_reused_id: OnReusedId,
    /// How the messages of a batch (FHS, BHS) are acknowledged.
    pub(crate) batch_ack: BatchAck,
    /// What a partner gets that sends something other than HL7. The connection is closed in any case.
    pub(crate) on_unreadable: OnUnreadable,
    /// What ends a segment of a received message. Whatever it is, the bytes stay as they came.
    pub(crate) segment_end: SegmentEnd,
    /// The character set of messages whose MSH-18 names none, by its name in table 0211, or `windows-1252`. Only keys,
    /// subjects and what people are shown are read in it.
    #[schemars(with = "String")]
    pub(crate) default_charset: Charset,
    /// The character set of all messages, for partners whose MSH-18 is wrong. Default: MSH-18 is right.
    #[schemars(with = "Option<String>")]
    pub(crate) charset: Option<Charset>,
    /// The field that orders received messages, like `PID-3.1`; empty for no order.
    #[schemars(with = "String")]
    pub(crate) partition_key: OptionalPath,
    /// The field that orders received merges besides, of which `partition_key` is the survivor's; empty for none.
    #[schemars(with = "String")]
    pub(crate) barrier_key: OptionalPath,
    /// The field that becomes the subject of received messages; empty for none.
    #[schemars(with = "String")]
    pub(crate) subject: OptionalPath,
    /// The source of received messages. Default: `/adapters/` and the adapter's name.
    pub(crate) source: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connect: None,
            tls: None,
            partners: Vec::new(),
            partner: None,
            connections: 4,
            connect_timeout_ms: 10_000,
            ack_timeout_ms: 30_000,
            application_ack_timeout_ms: 300_000,
            idle_disconnect_ms: None,
            on_ack: OnAck::default(),
            mllp_release: 1,
            listen: None,
            listen_tls: None,
            allow_from: None,
            answers_from: None,
            max_frame_bytes: 16 * 1024 * 1024,
            max_connections: 64,
            max_connections_per_source: 16,
            idle_frame_timeout_ms: 10_000,
            idle_connection_timeout_ms: None,
            lenient_end_ms: None,
            application_ack: ApplicationAck::default(),
            reply_from_app: Vec::new(),
            reply_timeout_ms: 20_000,
            sequence_numbers: SequenceNumbers::default(),
            on_reused_id: OnReusedId::default(),
            batch_ack: BatchAck::default(),
            on_unreadable: OnUnreadable::default(),
            segment_end: SegmentEnd::default(),
            default_charset: Charset::Utf8,
            charset: None,
            partition_key: OptionalPath("PID-3.1".parse().ok()),
            barrier_key: OptionalPath("MRG-1.1".parse().ok()),
            subject: OptionalPath("MSH-10".parse().ok()),
            source: None,
        }
    }
}

impl Settings {
    /// The files that they name.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        let partners = self.partners.iter().filter_map(|partner| partner.tls.as_ref());
        let connect = self.tls.iter().chain(partners).flat_map(ConnectTls::files);
        connect.chain(self.listen_tls.iter().flat_map(ListenTls::files))
    }

    /// Connections to the partner. What is numbered goes over one.
    pub(crate) fn connections(&self) -> usize {
        if self.sequence_numbers.send { 1 } else { self.connections }
    }

    pub(crate) fn allow_from(&self) -> Vec<Network> {
        self.allow_from.clone().unwrap_or_else(Network::loopback)
    }

    pub(crate) fn answerers(&self) -> Answerers {
        self.answers_from.clone().map(Answerers::Listed).unwrap_or_default()
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    /// How long a connection that carries nothing is kept; `None`: for ever.
    pub(crate) fn idle_disconnect(&self) -> Option<Duration> {
        self.idle_disconnect_ms.map(Duration::from_millis)
    }

    pub(crate) fn application_ack_timeout(&self) -> Duration {
        Duration::from_millis(self.application_ack_timeout_ms)
    }

    pub(crate) fn reply_timeout(&self) -> Duration {
        Duration::from_millis(self.reply_timeout_ms)
    }

    /// Whether bytes of MLLP release 2 say what has been taken.
    pub(crate) fn commit_bytes(&self) -> bool {
        self.mllp_release == 2
    }

    pub(crate) fn ack_timeout(&self) -> Duration {
        Duration::from_millis(self.ack_timeout_ms)
    }

    /// What a partner's connection to us bears.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            body_bytes_max: self.max_frame_bytes,
            frame_pause_max: Duration::from_millis(self.idle_frame_timeout_ms),
            silence_max: self.idle_connection_timeout_ms.map(Duration::from_millis),
            open_end: self.lenient_end_ms.map(Duration::from_millis),
        }
    }

    /// What our connection to the partner bears. Between messages nobody needs to say anything.
    pub(crate) fn link_limits(&self) -> Limits {
        Limits { frame_pause_max: self.ack_timeout(), silence_max: None, ..self.limits() }
    }
}

/// A field path, or none when it is written as an empty string.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct OptionalPath(pub(crate) Option<FieldPath>);

impl TryFrom<String> for OptionalPath {
    type Error = FieldPathError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.is_empty() { Ok(Self(None)) } else { text.parse().map(Some).map(Self) }
    }
}

impl From<OptionalPath> for String {
    fn from(path: OptionalPath) -> Self {
        path.0.map(|path| path.to_string()).unwrap_or_default()
    }
}
