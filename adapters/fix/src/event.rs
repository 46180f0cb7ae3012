//! A received message as an event: its bytes unchanged, what it says of itself as attributes.

use gatepost_adapter::{Data, Event, Extension};

use crate::content::{self, Keys};
use crate::engine::Received;
use crate::message::tag;

/// What goes into every event of one session.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// `/adapters/NAME/SESSION` unless the settings say otherwise.
    pub(crate) source: String,
    pub(crate) session: String,
    pub(crate) keys: Keys,
}

impl Origin {
    /// The id is the session's epoch and the message's number, which never come twice: so an event is taken in once,
    /// whatever happens between.
    pub(crate) fn event(&self, received: &Received) -> Event {
        let attributes = content::attributes(&received.message, self.keys);
        let mut extensions = vec![
            ("fixsession", Extension::Text(self.session.clone())),
            ("fixseqnum", Extension::Text(received.seq.to_string())),
        ];
        extensions.extend(attributes.partition_key.map(|key| ("partitionkey", Extension::Text(key))));
        extensions.extend(received.answers.clone().map(|id| ("correlationid", Extension::Text(id))));
        for (name, flag) in [("fixpossdup", tag::POSS_DUP_FLAG), ("fixpossresend", tag::POSS_RESEND)] {
            if received.message.flag(flag) {
                extensions.push((name, Extension::Bool(true)));
            }
        }
        Event {
            id: format!("{}-{}", received.epoch, received.seq),
            source: self.source.clone(),
            kind: attributes.kind,
            datacontenttype: Some(content::MEDIA_TYPE.to_owned()),
            dataschema: None,
            subject: attributes.subject,
            time: None,
            extensions: extensions.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            data: Some(Data::Binary(received.message.bytes().to_vec())),
        }
    }
}
