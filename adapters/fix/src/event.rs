//! A received message as an event: its bytes unchanged, what it says of itself as attributes.

use gatepost_adapter::{Data, Event, Extension, digest};

use crate::content::{self, Keys};
use crate::engine::Received;
use crate::message::{Message, Tag, tag};

const EXEC_ID: Tag = 17;
const EXEC_TRANS_TYPE: Tag = 20;
const EXEC_TYPE: Tag = 150;

/// What goes into every event of one session.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// `/adapters/NAME/SESSION` unless the settings say otherwise.
    pub(crate) source: String,
    pub(crate) session: String,
    pub(crate) keys: Keys,
}

impl Origin {
    /// The id is the session's epoch and the message's number, which never come twice: so an event is taken in once, whatever
    /// happens between. An execution has one by its content, which is the same under whatever number it comes again.
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
            id: match content_id(received) {
                Some(id) => format!("{}-{id}", self.session),
                None => format!("{}-{}-{}", self.session, received.epoch, received.seq),
            },
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

/// The name of an execution: its ExecID (17), which is unique in a trade date, with all else that the message says, the date among
/// it. `None` where there is nothing that happens once, as in the answer to a question for an order's status, whose ExecID is 0
/// (FIX 4.4 volume 4, "Execution Report").
pub(crate) fn content_id(received: &Received) -> Option<String> {
    (!received.by_number && is_execution(&received.message))
        .then(|| format!("x{}", digest(&received.message.body_bytes())))
}

fn is_execution(message: &Message) -> bool {
    let is_status = message.get(EXEC_TYPE) == Some(b"I") || message.get(EXEC_TRANS_TYPE) == Some(b"3");
    let has_id = message.get(EXEC_ID).is_some_and(|id| !id.is_empty() && id != b"0");
    message.msg_type() == b"8" && has_id && !is_status
}

/// Whether its sender says that it may have sent it before.
pub(crate) fn may_be_double(message: &Message) -> bool {
    message.flag(tag::POSS_DUP_FLAG) || message.flag(tag::POSS_RESEND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data_fields::DataFields;
    use crate::version::BeginString;
    use crate::wire::{Draft, parse};

    fn id(session: &str, seq: u64, flag: Option<Tag>, msg_type: &str, body: &[(Tag, &str)]) -> String {
        let draft = Draft::new(BeginString::Fix44, msg_type).header_number(34, seq);
        let draft = flag.into_iter().fold(draft, |draft, flag| draft.header(flag, "Y"));
        let bytes = body.iter().fold(draft, |draft, (tag, value)| draft.field(*tag, value)).encode().unwrap();
        let message = parse(bytes, &DataFields::default()).unwrap();
        let received = Received { epoch: 3, seq, message, answers: None, by_number: false };
        let keys = Keys { subject: None, partition_key: None };
        Origin { source: "/venue".to_owned(), session: session.to_owned(), keys }.event(&received).id
    }

    #[test]
    fn an_execution_keeps_its_name_and_everything_else_has_its_number() {
        let fill: &[(Tag, &str)] = &[(37, "o"), (17, "E1"), (150, "F"), (39, "2"), (60, "20261130-09:00:00")];
        let first = id("main", 2, None, "8", fill);
        for again in [None, Some(43), Some(97)] {
            assert_eq!(id("main", 9, again, "8", fill), first, "{again:?}");
        }
        assert_ne!(id("other", 2, None, "8", fill), first, "another session's");
        let with = |tag: Tag, value| -> Vec<(Tag, &str)> {
            let other = fill.iter().map(|(at, before)| (*at, if *at == tag { value } else { *before }));
            other.collect()
        };
        for (tag, value) in [(17, "E2"), (39, "1"), (60, "20261201-09:00:00")] {
            assert_ne!(id("main", 2, None, "8", &with(tag, value)), first, "{tag}={value}");
        }
        let numbered: [(&str, &[(Tag, &str)]); 6] = [
            ("8", &with(17, "0")),
            ("8", &with(150, "I")),
            ("8", &[(17, "E1"), (20, "3")]),
            ("8", &[(37, "o"), (39, "2")]),
            ("9", &[(17, "E1"), (11, "C")]),
            ("B", &[(17, "E1"), (148, "news")]),
        ];
        for (msg_type, body) in numbered {
            assert_eq!(id("main", 7, Some(97), msg_type, body), "main-3-7", "{msg_type} {body:?}");
        }
    }
}
