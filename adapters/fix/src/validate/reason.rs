//! Reasons for a reject, as SessionRejectReason (373) and BusinessRejectReason (380) number them.

use crate::version::BeginString;

/// Why a message is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    InvalidTagNumber,
    RequiredTagMissing,
    NotDefinedForMessage,
    NoValue,
    ValueIncorrect,
    BadFormat,
    InvalidMsgType,
    Twice,
    OutOfOrder,
    GroupOutOfOrder,
    GroupCount,
    UnsupportedVersion,
    /// A message of an application that this side does not take.
    UnsupportedMsgType,
    /// A field that is needed because of others that are there.
    ConditionallyRequiredMissing,
}

impl Reason {
    /// SessionRejectReason (373) of a Reject (35=3); `None` where a BusinessMessageReject (35=j) is due.
    pub fn session_code(self) -> Option<u8> {
        match self {
            Self::InvalidTagNumber => Some(0),
            Self::RequiredTagMissing => Some(1),
            Self::NotDefinedForMessage => Some(2),
            Self::NoValue => Some(4),
            Self::ValueIncorrect => Some(5),
            Self::BadFormat => Some(6),
            Self::InvalidMsgType => Some(11),
            Self::Twice => Some(13),
            Self::OutOfOrder => Some(14),
            Self::GroupOutOfOrder => Some(15),
            Self::GroupCount => Some(16),
            Self::UnsupportedVersion => Some(18),
            Self::UnsupportedMsgType | Self::ConditionallyRequiredMissing => None,
        }
    }

    /// The same, if that version has the field and the number: 373 came with FIX 4.2, what is above 11 later.
    pub fn session_code_in(self, version: BeginString) -> Option<u8> {
        let code = self.session_code()?;
        let newest = match version {
            BeginString::Fix40 | BeginString::Fix41 => return None,
            BeginString::Fix42 => 11,
            BeginString::Fix43 | BeginString::Fix44 => 17,
            BeginString::Fixt11 => u8::MAX,
        };
        (code <= newest).then_some(code)
    }

    /// BusinessRejectReason (380) of a BusinessMessageReject (35=j), which came with FIX 4.2.
    pub fn business_code(self) -> Option<u8> {
        match self {
            Self::UnsupportedMsgType => Some(3),
            Self::ConditionallyRequiredMissing => Some(5),
            _ => None,
        }
    }

    /// For Text (58): the specification's own words.
    pub fn text(self) -> &'static str {
        match self {
            Self::InvalidTagNumber => "Invalid tag number",
            Self::RequiredTagMissing => "Required tag missing",
            Self::NotDefinedForMessage => "Tag not defined for this message type",
            Self::NoValue => "Tag specified without a value",
            Self::ValueIncorrect => "Value is incorrect (out of range) for this tag",
            Self::BadFormat => "Incorrect data format for value",
            Self::InvalidMsgType => "Invalid MsgType",
            Self::Twice => "Tag appears more than once",
            Self::OutOfOrder => "Tag specified out of required order",
            Self::GroupOutOfOrder => "Repeating group fields out of order",
            Self::GroupCount => "Incorrect NumInGroup count for repeating group",
            Self::UnsupportedVersion => "Invalid/Unsupported Application Version",
            Self::UnsupportedMsgType => "Unsupported Message Type",
            Self::ConditionallyRequiredMissing => "Conditionally Required Field Missing",
        }
    }
}
