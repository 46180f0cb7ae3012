//! What a session is told: names, versions, times, and who does what after a reset.

use std::sync::Arc;
use std::time::Duration;

use gatepost_adapter::Level;

use crate::content::{FIELD_BYTES_MAX, Form};
use crate::message::Tag;
use crate::room::Room;
use crate::schedule::Schedule;
use crate::validate::Validator;
use crate::version::{ApplVerId, BeginString};

/// Who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Initiator,
    Acceptor,
}

/// What becomes of messages whose proof had not come when the sequence numbers began anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AfterReset {
    /// They go out again, with PossResend (97) and a new number.
    Resend,
    /// Nobody knows, so a person decides.
    Doubt,
}

/// What a partner is asked about a delivery in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AskFor {
    /// Whether it has processed the message: by the session's own means.
    Proof,
    /// That, and how the order stands, where a business answer is what counts.
    OrderStatus,
}

/// User name and password of the Logon (FIX 4.3 and later).
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) username: String,
    pub(crate) password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Of the session, unique within the adapter; stands in state keys and events.
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) begin_string: BeginString,
    /// FIXT.1.1 only.
    pub(crate) appl_ver_id: Option<ApplVerId>,
    /// Ours.
    pub(crate) sender_comp_id: String,
    /// The partner's.
    pub(crate) target_comp_id: String,
    /// More of the header that goes out with every message: sub and location ids.
    pub(crate) header: Vec<(Tag, String)>,
    /// The tags of `header`.
    pub(crate) header_tags: Vec<Tag>,
    /// The same ids as they stand in the partner's messages: what we send as SenderSubID comes back as TargetSubID.
    pub(crate) partner_header: Vec<(Tag, String)>,
    /// Whether each message of the partner must have them.
    pub(crate) check_header: bool,
    pub(crate) credentials: Option<Credentials>,
    /// Without traffic a heartbeat goes out this often. An acceptor takes the initiator's. Zero: no heartbeats.
    pub(crate) heartbeat: Duration,
    pub(crate) logon_timeout: Duration,
    pub(crate) logout_timeout: Duration,
    /// How far SendingTime (52) may be from our clock; `None`: it is not looked at.
    pub(crate) latency_max: Option<Duration>,
    pub(crate) reset_on_logon: bool,
    pub(crate) reset_on_logout: bool,
    pub(crate) reset_on_disconnect: bool,
    /// When this side begins anew within the session; a moment is the beginning of a window.
    pub(crate) reset_at: Option<Schedule>,
    /// NextExpectedMsgSeqNum (789) in the Logon in place of ResendRequests for what was lost before.
    pub(crate) next_expected: bool,
    /// LastMsgSeqNumProcessed (369) in every message.
    pub(crate) last_processed: bool,
    /// Most messages that one ResendRequest asks for; 0 for all.
    pub(crate) resend_chunk: u64,
    /// Messages kept for the partner's ResendRequests.
    pub(crate) keep: usize,
    /// The same in bytes of the adapter's state, and what all its sessions keep together.
    pub(crate) keep_bytes: usize,
    pub(crate) room: Arc<Room>,
    /// Memory of messages that are kept behind a gap, bytes.
    pub(crate) held_bytes: usize,
    /// Messages that may wait for proof at a time.
    pub(crate) unconfirmed_max: usize,
    /// What the destination counts as delivered.
    pub(crate) confirm: Level,
    /// How long proof may take before the delivery is in doubt.
    pub(crate) confirm_within: Duration,
    pub(crate) after_reset: AfterReset,
    /// Fields by which a business answer names the message it answers.
    pub(crate) business_ids: Vec<Tag>,
    pub(crate) ask_for: AskFor,
    pub(crate) schedule: Option<Schedule>,
    pub(crate) validator: Validator,
}

/// Header and trailer of a message that leaves, besides the ids in them.
const FRAME_BYTES_MAX: usize = 160;

impl Config {
    /// What the session adds to a message, bytes; rather too much.
    pub(crate) fn header_bytes(&self) -> usize {
        let ids = self.header.iter().map(|(_, id)| id.len() + FIELD_BYTES_MAX).sum::<usize>();
        FRAME_BYTES_MAX + self.sender_comp_id.len() + self.target_comp_id.len() + ids
    }

    /// What content that is handed in must fit.
    pub(crate) fn form(&self) -> Form<'_> {
        Form {
            begin_string: self.begin_string,
            dictionaries: self.validator.dictionaries(),
            data_fields: self.validator.data_fields(),
            session_header: &self.header_tags,
        }
    }
}
