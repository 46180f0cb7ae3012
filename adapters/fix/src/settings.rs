//! The adapter's settings, `[adapters.<name>.settings]` in the gateway's configuration: a list of sessions.

mod dictionaries;
mod read;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use gatepost_adapter::Network;
use gatepost_adapter::tls::{ConnectTls, ListenTls, PeerName};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::message::Tag;
use crate::schedule::{MomentSettings, ScheduleSettings};

pub(crate) use read::{Entrance, Plan, Way, plans};

/// The sessions that this adapter keeps, one or many.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) sessions: Vec<SessionSettings>,
}

/// One session. Exactly one of `connect` and `listen` is needed.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SessionSettings {
    /// Unique within this adapter: letters, digits, `-` and `_`. It stands in events, and names the adapter's state of this
    /// session: another name is another session.
    pub(crate) name: String,
    /// The partner's address, `host:port`: this side connects.
    pub(crate) connect: Option<String>,
    /// With `connect`: TLS with the partner.
    pub(crate) tls: Option<ConnectTls>,
    /// Where the partner connects to, `address:port`. Several sessions may share it, and then the two settings below.
    pub(crate) listen: Option<String>,
    /// With `listen`: TLS with partners that connect.
    pub(crate) listen_tls: Option<ListenTls>,
    /// With `listen_tls.client_ca_files`: names of which the certificate of whoever logs on to this session must have one, as in
    /// `allow_names` there. Sessions of one address are told apart by what their partners can prove, not only by what they say.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub(crate) partner_names: Vec<PeerName>,
    /// With `listen`: partners' addresses (`10.1.2.3`) and networks (`10.1.0.0/16`). Others are turned away. Default: this
    /// host.
    #[schemars(with = "Option<Vec<String>>")]
    pub(crate) allow_from: Option<Vec<Network>>,
    /// `FIX.4.0` to `FIX.4.4`, or `FIXT.1.1` for FIX 5.0 and later.
    pub(crate) begin_string: String,
    /// With `FIXT.1.1`: the version of application messages, like `FIX.5.0SP2`.
    pub(crate) default_appl_ver: Option<String>,
    /// SenderCompID (49) of what this side sends.
    pub(crate) sender_comp_id: String,
    /// TargetCompID (56) of what this side sends.
    pub(crate) target_comp_id: String,
    /// SenderSubID (50), TargetSubID (57), SenderLocationID (142) and TargetLocationID (143) of what this side sends; what comes
    /// in must have them the other way round. Locations came with FIX.4.1.
    pub(crate) sender_sub_id: Option<String>,
    pub(crate) target_sub_id: Option<String>,
    pub(crate) sender_location_id: Option<String>,
    pub(crate) target_location_id: Option<String>,
    /// `false`: the four above are sent, and tell sessions of one address apart when the partner logs on; otherwise its messages
    /// may lack them.
    #[serde(default = "check_sub_ids")]
    pub(crate) check_sub_ids: bool,
    /// Username (553) of the Logon; with it goes `password_file`. FIX 4.3 and later.
    pub(crate) username: Option<String>,
    /// A file that holds Password (554), read when the adapter starts.
    pub(crate) password_file: Option<PathBuf>,
    /// Heartbeats go out after so many seconds of silence; 0 for none. An acceptor takes the initiator's.
    #[serde(default = "heartbeat_s")]
    pub(crate) heartbeat_s: u64,
    /// How long a connection, and then a Logon, may take.
    #[serde(default = "logon_timeout_ms")]
    pub(crate) logon_timeout_ms: u64,
    /// How long the partner may take to answer a Logout.
    #[serde(default = "logout_timeout_ms")]
    pub(crate) logout_timeout_ms: u64,
    /// How far the partner's SendingTime (52) may be from this host's clock, seconds; 0: it is not looked at.
    #[serde(default = "latency_max_s")]
    pub(crate) latency_max_s: u64,
    /// When both sides' sequence numbers begin at 1 again, besides with a new window of `schedule`.
    #[serde(default)]
    pub(crate) reset_on: Vec<ResetOn>,
    /// When this side begins both at 1 again within the session, without logging out (Logon with 141=Y). Only one of the two
    /// sides should. Not with FIX.4.0.
    pub(crate) reset_at: Option<MomentSettings>,
    /// When the session is open. Default: always.
    pub(crate) schedule: Option<ScheduleSettings>,
    /// Messages whose proof had not come when numbers began at 1 again: send them again marked with PossResend, or leave it
    /// to a person (`in_doubt`).
    #[serde(default)]
    pub(crate) after_reset: AfterResetSetting,
    /// NextExpectedMsgSeqNum (789) in Logons. FIX 4.4 and later, and only if the partner does so too.
    #[serde(default)]
    pub(crate) next_expected_seq_num: bool,
    /// LastMsgSeqNumProcessed (369) in all messages.
    #[serde(default)]
    pub(crate) last_seq_num_processed: bool,
    /// Most messages that one ResendRequest asks for; 0 for all.
    #[serde(default)]
    pub(crate) resend_chunk: u64,
    /// How many sent messages are kept for the partner's ResendRequests. Those that it has not confirmed are kept in any case.
    #[serde(default = "keep_messages")]
    pub(crate) keep_messages: usize,
    /// How long proof may take; then the delivery is in doubt.
    #[serde(default = "confirm_timeout_ms")]
    pub(crate) confirm_timeout_ms: u64,
    /// Fields by which a business answer names the message that it answers. Default: ClOrdID and the ids of quotes and such.
    pub(crate) business_ids: Option<Vec<Tag>>,
    /// With `confirm = "business"`: what the partner is asked about an order in doubt, besides whether it has got it.
    #[serde(default)]
    pub(crate) query: QuerySetting,
    /// How much of a received message is checked; all but `none` want a dictionary to do so wholly.
    #[serde(default)]
    pub(crate) validation: Validation,
    /// A dictionary in QuickFIX's XML format, for versions up to 4.4.
    pub(crate) dictionary: Option<PathBuf>,
    /// With `FIXT.1.1`: the transport's dictionary and those of application versions.
    pub(crate) transport_dictionary: Option<PathBuf>,
    #[serde(default)]
    pub(crate) application_dictionaries: Vec<PathBuf>,
    /// Largest message either way, bytes.
    #[serde(default = "max_message_bytes")]
    pub(crate) max_message_bytes: usize,
    /// The field that orders received messages, like 11 (ClOrdID).
    pub(crate) partition_key: Option<Tag>,
    /// The field that becomes the subject of received messages. Default: 11 (ClOrdID); 0 for none.
    #[serde(default = "subject")]
    pub(crate) subject: Tag,
    /// The source of received messages. Default: `/adapters/NAME/SESSION`.
    pub(crate) source: Option<String>,
    /// `false`: the session stays logged out.
    #[serde(default = "enabled")]
    pub(crate) enabled: bool,
}

impl SessionSettings {
    /// The files that it names.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        let single = [&self.password_file, &self.dictionary, &self.transport_dictionary];
        let own = single.into_iter().flatten().chain(&self.application_dictionaries).map(PathBuf::as_path);
        own.chain(self.tls.iter().flat_map(ConnectTls::files))
            .chain(self.listen_tls.iter().flat_map(ListenTls::files))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ResetOn {
    Logon,
    Logout,
    Disconnect,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AfterResetSetting {
    #[default]
    PossResend,
    Doubt,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum QuerySetting {
    /// Nothing more.
    #[default]
    Session,
    /// How it stands: OrderStatusRequest (35=H) by ClOrdID.
    OrderStatus,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Validation {
    None,
    #[default]
    Structure,
    Full,
}

fn heartbeat_s() -> u64 {
    30
}

fn logon_timeout_ms() -> u64 {
    10_000
}

fn logout_timeout_ms() -> u64 {
    2_000
}

fn latency_max_s() -> u64 {
    120
}

fn keep_messages() -> usize {
    10_000
}

fn confirm_timeout_ms() -> u64 {
    600_000
}

fn max_message_bytes() -> usize {
    1024 * 1024
}

fn subject() -> Tag {
    11
}

fn check_sub_ids() -> bool {
    true
}

fn enabled() -> bool {
    true
}
