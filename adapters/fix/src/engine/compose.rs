//! Writing messages: the header that is ours, and the session's own messages.

use std::time::Duration;

use bytes::Bytes;

use super::outbox::Record;
use super::{Closing, Config, Effect, Engine, Now, Place};
use crate::message::{Message, Tag, tag};
use crate::value::write_timestamp;
use crate::version::BeginString;
use crate::wire::{Draft, Unencodable};

/// Longest Text (58) that a message of ours carries, bytes.
const TEXT_BYTES_MAX: usize = 255;

/// SessionRejectReason (373), FIX 4.4 volume 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RejectReason {
    RequiredTagMissing,
    ValueIsIncorrect,
    CompIdProblem,
    SendingTimeAccuracy,
    /// What a dictionary says, by its own number.
    Other(u8),
    /// The session's version has no number for it.
    Unnamed,
}

impl RejectReason {
    pub(crate) fn of(code: Option<u8>) -> Self {
        code.map_or(Self::Unnamed, Self::Other)
    }

    fn code(self) -> Option<u8> {
        match self {
            Self::RequiredTagMissing => Some(1),
            Self::ValueIsIncorrect => Some(5),
            Self::CompIdProblem => Some(9),
            Self::SendingTimeAccuracy => Some(10),
            Self::Other(code) => Some(code),
            Self::Unnamed => None,
        }
    }
}

impl Engine {
    /// A message with everything in its header that is ours.
    pub(super) fn draft(&self, msg_type: &[u8], seq: u64, now: Now) -> Draft {
        self.dress(Draft::new(self.config.begin_string, msg_type), seq, now)
    }

    /// Adds what is ours in every header.
    pub(super) fn dress(&self, draft: Draft, seq: u64, now: Now) -> Draft {
        self.dress_after(draft, seq, self.numbers.next_in, now)
    }

    fn dress_after(&self, draft: Draft, seq: u64, next_in: u64, now: Now) -> Draft {
        let config = &self.config;
        let mut draft = draft
            .header_number(tag::MSG_SEQ_NUM, seq)
            .header(tag::SENDER_COMP_ID, &config.sender_comp_id)
            .header(tag::TARGET_COMP_ID, &config.target_comp_id)
            .header(tag::SENDING_TIME, self.timestamp(now));
        for (tag, value) in &config.header {
            draft = draft.header(*tag, value);
        }
        if config.last_processed {
            draft = draft.header_number(tag::LAST_MSG_SEQ_NUM_PROCESSED, next_in - 1);
        }
        draft
    }

    pub(super) fn timestamp(&self, now: Now) -> crate::value::Timestamp {
        write_timestamp(now.utc, self.config.begin_string.time_precision())
    }

    /// Gives a message of the session its number and sends it.
    fn send_own(&mut self, msg_type: &[u8], now: Now, fill: impl FnOnce(Draft) -> Draft) {
        if self.is_silent() {
            return;
        }
        let seq = self.numbers.next_out;
        match fill(self.draft(msg_type, seq, now)).encode() {
            Ok(bytes) => {
                self.allocate();
                self.write(bytes, now);
            }
            Err(_) => self.close(Closing::Unencodable),
        }
    }

    pub(super) fn allocate(&mut self) -> u64 {
        let seq = self.numbers.next_out;
        self.numbers.next_out += 1;
        self.numbers_changed = true;
        seq
    }

    pub(super) fn write(&mut self, bytes: Bytes, now: Now) {
        self.last_sent = now.tick;
        self.turn.then.push(Effect::Write { bytes, carries: None });
    }

    pub(super) fn send_logon(&mut self, reset: bool, now: Now) {
        let config = std::sync::Arc::clone(&self.config);
        let (heartbeat, next_in) = (self.heartbeat, self.numbers.next_in);
        self.send_own(b"A", now, |draft| logon(&config, draft, heartbeat, reset, next_in));
    }

    /// A Logon with ResetSeqNumFlag before the numbers have begun anew: it has number 1 of those to come.
    pub(super) fn send_reset_logon(&mut self, now: Now) {
        let draft = self.dress_after(Draft::new(self.config.begin_string, b"A"), 1, 1, now);
        match logon(&self.config, draft, self.heartbeat, true, 1).encode() {
            Ok(bytes) => self.write(bytes, now),
            Err(_) => self.close(Closing::Unencodable),
        }
    }

    pub(super) fn send_heartbeat(&mut self, test_req_id: Option<&[u8]>, now: Now) {
        self.send_own(b"0", now, |draft| match test_req_id {
            Some(id) => draft.field(tag::TEST_REQ_ID, id),
            None => draft,
        });
    }

    pub(super) fn send_test_request(&mut self, id: &str, now: Now) {
        self.send_own(b"1", now, |draft| draft.field(tag::TEST_REQ_ID, id));
    }

    pub(super) fn send_resend_request(&mut self, from: u64, through: u64, now: Now) {
        self.send_own(b"2", now, |draft| {
            draft.number(tag::BEGIN_SEQ_NO, from).number(tag::END_SEQ_NO, through)
        });
    }

    pub(super) fn send_logout(&mut self, text: &str, now: Now) {
        self.send_own(b"5", now, |draft| with_text(draft, text));
    }

    /// Fills a gap on the partner's side; takes no number of its own.
    pub(super) fn send_gap_fill(&mut self, from: u64, next: u64, now: Now) {
        let stamp = self.timestamp(now);
        let draft = self
            .draft(b"4", from, now)
            .header(tag::POSS_DUP_FLAG, "Y")
            .header(tag::ORIG_SENDING_TIME, stamp)
            .field(tag::GAP_FILL_FLAG, "Y")
            .number(tag::NEW_SEQ_NO, next);
        match draft.encode() {
            Ok(bytes) => self.write(bytes, now),
            Err(_) => self.close(Closing::Unencodable),
        }
    }

    /// A session-level Reject (35=3). Kept, since it is sent again when it is asked for.
    pub(super) fn send_reject(
        &mut self,
        refused: &Message,
        reason: RejectReason,
        ref_tag: Option<i64>,
        text: &str,
        now: Now,
    ) {
        self.send_reject_of(refused.seq_num().unwrap_or(0), refused.msg_type(), reason, ref_tag, text, now);
    }

    fn send_reject_of(
        &mut self,
        ref_seq: u64,
        ref_msg_type: &[u8],
        reason: RejectReason,
        ref_tag: Option<i64>,
        text: &str,
        now: Now,
    ) {
        let seq = self.numbers.next_out;
        let draft = self.draft(b"3", seq, now).number(tag::REF_SEQ_NUM, ref_seq);
        let mut draft = with_text(draft, text);
        // These three came with FIX 4.2.
        if self.config.begin_string >= BeginString::Fix42 {
            if let Some(ref_tag) = ref_tag {
                draft = draft.field(tag::REF_TAG_ID, ref_tag.to_string());
            }
            if !ref_msg_type.is_empty() {
                draft = draft.field(tag::REF_MSG_TYPE, ref_msg_type);
            }
            if let Some(code) = reason.code() {
                draft = draft.number(tag::SESSION_REJECT_REASON, u64::from(code));
            }
        }
        let _ = self.send_kept(draft, now);
    }

    /// A BusinessMessageReject (35=j), or before FIX 4.2 a Reject, of the message with this number and type. Kept like any application
    /// message.
    pub(super) fn send_business_reject(
        &mut self,
        ref_seq: u64,
        ref_msg_type: &[u8],
        reason: u16,
        text: &str,
        now: Now,
    ) {
        if self.config.begin_string < BeginString::Fix42 {
            return self.send_reject_of(ref_seq, ref_msg_type, RejectReason::Unnamed, None, text, now);
        }
        let seq = self.numbers.next_out;
        let draft = self.draft(b"j", seq, now).number(tag::REF_SEQ_NUM, ref_seq);
        let draft = with_text(draft, text)
            .field(tag::REF_MSG_TYPE, ref_msg_type)
            .number(tag::BUSINESS_REJECT_REASON, u64::from(reason));
        let _ = self.send_kept(draft, now);
    }

    /// Gives the place that it got.
    pub(super) fn send_kept(&mut self, draft: Draft, now: Now) -> Option<Place> {
        if self.is_silent() {
            return None;
        }
        match draft.encode() {
            Ok(bytes) => {
                let place = (self.numbers.epoch, self.allocate());
                self.account.set(self.bytes_kept());
                // Where there is no room for it, it is filled over if the partner asks for it again: whoever is sent rejects without end
                // must not fill what others need.
                if self.account.take([self.outbox.cost(bytes.len())]) == 1 {
                    self.keep(place, Record { bytes: bytes.clone(), expires: None, pending: None });
                }
                self.write(bytes, now);
                Some(place)
            }
            Err(_) => {
                self.close(Closing::Unencodable);
                None
            }
        }
    }

    /// The same message again, as an answer to a ResendRequest (FIX 4.4 volume 2, "Resend Request"): PossDupFlag, the time at
    /// which it was first sent, a fresh SendingTime; otherwise unchanged.
    pub(super) fn again(&self, message: &Message, seq: u64, now: Now) -> Result<Bytes, Unencodable> {
        let mut draft = self.draft(message.msg_type(), seq, now).header(tag::POSS_DUP_FLAG, "Y");
        if let Some(first) = message.get(tag::SENDING_TIME) {
            draft = draft.header(tag::ORIG_SENDING_TIME, first);
        }
        let keep =
            |tag| !is_sessions_own(tag) && !self.config.header_tags.contains(&tag) || tag == tag::POSS_RESEND;
        draft = draft.header_of(message, keep);
        draft.body(&message.body_bytes(), self.config.validator.data_fields()).encode()
    }
}

/// What a Logon says besides its header; in the order of tags, as in all messages of the session.
fn logon(config: &Config, draft: Draft, heartbeat: Duration, reset: bool, next_in: u64) -> Draft {
    let mut draft = draft.field(tag::ENCRYPT_METHOD, "0").number(tag::HEART_BT_INT, heartbeat.as_secs());
    if reset {
        draft = draft.field(tag::RESET_SEQ_NUM_FLAG, "Y");
    }
    if let Some(credentials) = &config.credentials {
        draft = draft.field(USERNAME, &credentials.username).field(PASSWORD, &credentials.password);
    }
    if config.next_expected {
        draft = draft.number(tag::NEXT_EXPECTED_MSG_SEQ_NUM, next_in);
    }
    match config.appl_ver_id {
        Some(version) => draft.field(tag::DEFAULT_APPL_VER_ID, version.code()),
        None => draft,
    }
}

/// Header fields that the session writes anew whenever a message leaves.
pub(super) fn is_sessions_own(tag: Tag) -> bool {
    matches!(
        tag,
        tag::BEGIN_STRING
            | tag::BODY_LENGTH
            | tag::MSG_TYPE
            | tag::MSG_SEQ_NUM
            | tag::POSS_DUP_FLAG
            | tag::POSS_RESEND
            | tag::SENDER_COMP_ID
            | tag::SENDING_TIME
            | tag::TARGET_COMP_ID
            | tag::ORIG_SENDING_TIME
            | tag::LAST_MSG_SEQ_NUM_PROCESSED
    )
}

const USERNAME: u32 = 553;
const PASSWORD: u32 = 554;

/// Text (58), cut; nothing where there is none to give.
fn with_text(draft: Draft, text: &str) -> Draft {
    let clean: String = text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
    let cut = &clean[..clean.floor_char_boundary(TEXT_BYTES_MAX)];
    if cut.is_empty() { draft } else { draft.field(tag::TEXT, cut) }
}
