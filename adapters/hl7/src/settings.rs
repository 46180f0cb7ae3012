//! The adapter's settings, `[adapters.<name>.settings]` in the gateway's configuration.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use gatepost_adapter::Fault;
use gatepost_adapter::tls::{ConnectTls, ListenTls};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::channel::Limits;
use crate::charset::Charset;
use crate::on_ack::OnAck;
use crate::partners::PartnerTable;
use crate::path::{FieldPath, FieldPathError};
use crate::peer::{Answerer, Answerers};
use crate::sequence::SequenceNumbers;
use gatepost_adapter::Network;

const CONNECTIONS_MAX: usize = 64;
const TIMEOUT_MS_MAX: u64 = 600_000;
const IDLE_MS_MAX: u64 = 7 * 24 * 3_600_000;
/// The gateway waits for late proof so long at most.
const APPLICATION_ACK_MS_MAX: u64 = 7 * 24 * 3_600_000;
/// The gateway holds an answer for so long at most.
const REPLY_MS_MAX: u64 = 60_000;
const LENIENT_END_MS_MAX: u64 = 10_000;
/// The gateway's own default for the largest message.
const FRAME_BYTES_MAX: usize = 64 * 1024 * 1024;
const LISTEN_CONNECTIONS_MAX: usize = 4096;

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
    /// else by its address.
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
    pub(crate) fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut range = |key: &str, value: u64, highest: u64| {
            if !(1..=highest).contains(&value) {
                faults.push(Fault::new(key, format!("must be from 1 to {highest}")));
            }
        };
        range("connections", self.connections as u64, CONNECTIONS_MAX as u64);
        range("connect_timeout_ms", self.connect_timeout_ms, TIMEOUT_MS_MAX);
        range("ack_timeout_ms", self.ack_timeout_ms, TIMEOUT_MS_MAX);
        range("application_ack_timeout_ms", self.application_ack_timeout_ms, APPLICATION_ACK_MS_MAX);
        range("mllp_release", self.mllp_release.into(), 2);
        range("max_frame_bytes", self.max_frame_bytes as u64, FRAME_BYTES_MAX as u64);
        range("max_connections", self.max_connections as u64, LISTEN_CONNECTIONS_MAX as u64);
        range(
            "max_connections_per_source",
            self.max_connections_per_source as u64,
            LISTEN_CONNECTIONS_MAX as u64,
        );
        range("idle_frame_timeout_ms", self.idle_frame_timeout_ms, TIMEOUT_MS_MAX);
        if let Some(idle) = self.idle_connection_timeout_ms {
            range("idle_connection_timeout_ms", idle, IDLE_MS_MAX);
        }
        if let Some(idle) = self.idle_disconnect_ms {
            range("idle_disconnect_ms", idle, IDLE_MS_MAX);
        }
        if let Some(pause) = self.lenient_end_ms {
            range("lenient_end_ms", pause, LENIENT_END_MS_MAX);
        }
        faults.extend(self.on_ack.faults());
        if !(1_000..=REPLY_MS_MAX).contains(&self.reply_timeout_ms) {
            faults.push(Fault::new("reply_timeout_ms", format!("must be from 1000 to {REPLY_MS_MAX}")));
        }
        if self.reply_from_app.iter().any(|code| !is_message_code(code)) {
            faults.push(Fault::new("reply_from_app", "must hold message codes of MSH-9.1, like \"QBP\""));
        }
        if self.connect.is_none() && self.listen.is_none() && self.partners.is_empty() {
            faults.push(Fault::new(
                "connect",
                "neither `connect` nor `partners` nor `listen` is set, so there is nothing to do",
            ));
        }
        if self.connect.as_deref().is_some_and(|address| !is_host_and_port(address)) {
            faults.push(Fault::new("connect", "must be host:port, like lab.example.org:2575"));
        }
        if self.listen.as_deref().is_some_and(|address| address.parse::<SocketAddr>().is_err()) {
            faults.push(Fault::new("listen", "must be address:port, like 127.0.0.1:2575"));
        }
        if let Some(tls) = &self.tls {
            match &self.connect {
                Some(address) => faults.extend(tls.faults("tls", address)),
                // They have it each for their own address.
                None if !self.partners.is_empty() => {}
                None => faults.push(Fault::new("tls", "goes with `connect`, which is not set")),
            }
        }
        if let Some(tls) = &self.listen_tls {
            match &self.listen {
                Some(_) => faults.extend(tls.faults("listen_tls")),
                None => faults.push(Fault::new("listen_tls", "goes with `listen`, which is not set")),
            }
        }
        let of_listen = [
            ("allow_from", self.allow_from.is_some()),
            ("answers_from", self.answers_from.is_some()),
            ("reply_from_app", !self.reply_from_app.is_empty()),
            ("sequence_numbers.receive", self.sequence_numbers.receive),
        ];
        for (key, _) in of_listen.iter().filter(|(_, is_set)| *is_set && self.listen.is_none()) {
            faults.push(Fault::new(*key, "goes with `listen`, which is not set"));
        }
        let of_connect = [
            ("answers_from", self.answers_from.is_some()),
            ("sequence_numbers.send", self.sequence_numbers.send),
        ];
        for (key, _) in of_connect.iter().filter(|(_, is_set)| *is_set && self.connect.is_none()) {
            faults.push(Fault::new(*key, "goes with `connect`, which is not set"));
        }
        if self.source.as_deref() == Some("") {
            faults.push(Fault::new("source", "must not be empty"));
        }
        faults.extend(self.partner_faults());
        faults
    }

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

/// What may end a segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SegmentEnd {
    /// CR, LF or CR LF, as the message's first segment ends.
    #[default]
    Any,
    /// CR, as HL7 says; other messages are refused.
    Cr,
}

/// Who gives the application acknowledgement in enhanced mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ApplicationAck {
    /// The application, by a message of its own through the gateway; here it says nothing.
    #[default]
    App,
    /// The adapter, as soon as the message is stored, right behind the accept acknowledgement.
    OnCommit,
}

/// What a control id is worth that a partner has used before, for a message with other content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnReusedId {
    /// Nothing: some senders put the same id into every message. Only the same bytes are the same message.
    #[default]
    Accept,
    /// The sender's word: within the gateway's window another message with the same MSH-3, MSH-4 and MSH-10 is refused.
    Refuse,
}

/// The acknowledgements of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BatchAck {
    /// Each in a frame of its own, in the order of the messages.
    #[default]
    Message,
    /// All in one batch, which names the partner's in BHS-12.
    Batch,
}

/// What somebody gets who sends bytes that are not HL7.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnUnreadable {
    /// An AR that names no message.
    #[default]
    Answer,
    /// Nothing.
    Silence,
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

fn is_message_code(code: &str) -> bool {
    !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
}

fn is_host_and_port(address: &str) -> bool {
    address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::on_ack::Action;

    fn read(text: &str) -> Result<Settings, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_smallest_settings_are_whole() {
        let settings = read(r#"{"connect":"lab.example.org:2575"}"#).unwrap();
        assert!(settings.faults().is_empty());
        assert_eq!(settings.partition_key.0, "PID-3.1".parse().ok());
        assert_eq!(settings.subject.0, "MSH-10".parse().ok());
    }

    #[test]
    fn the_table_of_codes_is_the_partners() {
        let settings =
            read(r#"{"listen":"[::1]:2575","on_ack":{"AE":"retry_destination"},"partition_key":""}"#)
                .unwrap();
        assert!(settings.faults().is_empty());
        assert_eq!(settings.on_ack.ae, Some(Action::RetryDestination));
        assert_eq!(settings.on_ack.ar, None);
        assert_eq!(settings.partition_key.0, None);
    }

    #[test]
    fn every_fault_is_told() {
        let faults = |text: &str| -> Vec<String> {
            read(text).unwrap().faults().into_iter().map(|fault| fault.key).collect()
        };
        assert_eq!(faults("{}"), ["connect"]);
        assert_eq!(
            faults(r#"{"connect":"lab","listen":"localhost:1","connections":0,"source":""}"#),
            ["connections", "connect", "listen", "source"]
        );
        assert_eq!(
            faults(r#"{"connect":":1","ack_timeout_ms":0,"max_frame_bytes":99999999999}"#),
            ["ack_timeout_ms", "max_frame_bytes", "connect"]
        );
        assert_eq!(faults(r#"{"listen":"127.0.0.1:1","tls":{}}"#), ["tls"]);
        // What would do nothing is not what was meant.
        assert_eq!(
            faults(
                r#"{"connect":"lab:1","allow_from":["::1"],"answers_from":["cn:lab"],"reply_from_app":["QBP"]}"#
            ),
            ["allow_from", "answers_from", "reply_from_app"]
        );
        assert_eq!(faults(r#"{"listen":"127.0.0.1:1","answers_from":["10.0.0.1"]}"#), ["answers_from"]);
        let both = r#""sequence_numbers":{"send":true,"receive":true}"#;
        assert_eq!(faults(&format!(r#"{{"connect":"lab:1",{both}}}"#)), ["sequence_numbers.receive"]);
        assert_eq!(faults(&format!(r#"{{"listen":"127.0.0.1:1",{both}}}"#)), ["sequence_numbers.send"]);
        let listen_tls = r#""listen_tls":{"cert_file":"/nonexistent/c","key_file":"/nonexistent/k"}"#;
        assert_eq!(faults(&format!(r#"{{"connect":"lab:1",{listen_tls}}}"#)), ["listen_tls"]);
        assert_eq!(
            faults(&format!(
                r#"{{"connect":"lab:1","tls":{{"cert_file":"/c"}},"listen":"127.0.0.1:1",{listen_tls}}}"#
            )),
            ["tls.key_file", "listen_tls.cert_file"]
        );
        assert!(read(r#"{"conect":"lab:1"}"#).unwrap_err().contains("unknown field `conect`"));
        assert!(read(r#"{"on_ack":{"AA":"retry"}}"#).unwrap_err().contains("unknown field `AA`"));
        assert!(read(r#"{"partition_key":"PID"}"#).unwrap_err().contains("like PID-3.1"));
        assert!(read(r#"{"allow_from":["10.0.0.0/33"]}"#).unwrap_err().contains("10.1.0.0/16"));
    }
}
