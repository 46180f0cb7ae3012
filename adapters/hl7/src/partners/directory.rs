//! The partner of a message that is to be sent: by its attribute, or by whom it is addressed to.

use std::collections::HashMap;

use super::{NAME_BYTES_MAX, PARTNER, PartnerTable, ReceiverName};
use crate::header::Message;

/// Partners that a refusal names.
const NAMED_MAX: usize = 20;

/// Finds the partner of a message that is to be sent.
pub(crate) struct Directory {
    names: HashMap<String, usize>,
    receivers: HashMap<ReceiverName, usize>,
    /// Some of the names, for people.
    known: String,
}

/// Why a message has no partner.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Nobody {
    /// The name is an attribute's, not of the payload.
    #[error("there is no partner `{0}`: known are {1}")]
    Unknown(String, String),
    #[error(
        "the message does not say `{PARTNER}`, and no partner has the receiver (MSH-5, MSH-6) that it is addressed to: known are {0}"
    )]
    Unnamed(String),
}

impl Directory {
    pub(crate) fn new(partners: &[PartnerTable]) -> Self {
        let sent_to = || partners.iter().filter(|partner| partner.connect.is_some());
        let numbered = || sent_to().enumerate();
        let count = sent_to().count();
        let receivers = numbered().flat_map(|(number, partner)| {
            partner.receivers.iter().map(move |receiver| (receiver.clone(), number))
        });
        let mut known: Vec<_> = sent_to().take(NAMED_MAX).map(|partner| partner.name.as_str()).collect();
        let more = (count > NAMED_MAX).then(|| format!("{} more", count - NAMED_MAX));
        known.extend(more.as_deref());
        Self {
            names: numbered().map(|(number, partner)| (partner.name.clone(), number)).collect(),
            receivers: receivers.collect(),
            known: known.join(", "),
        }
    }

    /// By the name that the message's attributes give; whether a wrong one is there, the message's fields are not asked.
    pub(crate) fn by_name(&self, name: &str) -> Result<usize, Nobody> {
        let shown = || name.chars().take(NAME_BYTES_MAX).collect::<String>().escape_debug().to_string();
        self.names.get(name).copied().ok_or_else(|| Nobody::Unknown(shown(), self.known.clone()))
    }

    /// Where there is but one, a message need not say that it is for it.
    pub(crate) fn only(&self) -> Option<usize> {
        (self.names.len() == 1).then_some(0)
    }

    pub(crate) fn has_receivers(&self) -> bool {
        !self.receivers.is_empty()
    }

    /// By whom the message is addressed to: application and facility, then the application alone.
    pub(crate) fn by_receiver(&self, body: &[u8]) -> Result<usize, Nobody> {
        let nobody = || Nobody::Unnamed(self.known.clone());
        let message = Message::parse(body).map_err(|_| nobody())?;
        let component = message.delimiters().component;
        let forms = |field| forms(field, component);
        let facilities = forms(message.receiving_facility());
        for application in forms(message.receiving_application()) {
            let facilities = facilities.iter().cloned().map(Some).chain([None]);
            for facility in facilities {
                let receiver = ReceiverName { application: application.clone(), facility };
                if let Some(number) = self.receivers.get(&receiver) {
                    return Ok(*number);
                }
            }
        }
        Err(nobody())
    }
}

/// A field as it is, and its first component.
fn forms(field: &[u8], component: u8) -> Vec<String> {
    let Ok(whole) = std::str::from_utf8(field) else { return Vec::new() };
    let first = whole.split(char::from(component)).next().filter(|first| *first != whole);
    [Some(whole), first].into_iter().flatten().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tables(partners: serde_json::Value) -> Vec<PartnerTable> {
        serde_json::from_value(partners).unwrap()
    }

    fn addressed(application: &str, facility: &str) -> Vec<u8> {
        format!("MSH|^~\\&|EHR|C|{application}|{facility}|2026||ADT^A01|M1|P|2.5\r").into_bytes()
    }

    #[test]
    fn a_message_finds_its_partner_by_name_or_by_whom_it_is_addressed_to() {
        let directory = Directory::new(&tables(json!([
            {"name": "north", "connect": "n:1", "receivers": [{"application": "LAB", "facility": "N"}]},
            {"name": "south", "connect": "s:1", "receivers": [{"application": "LAB", "facility": "S^1.2^ISO"}]},
            {"name": "rest", "connect": "r:1", "receivers": [{"application": "LAB"}, {"application": "RIS"}]}
        ])));
        assert_eq!(directory.by_name("south"), Ok(1));
        for (application, facility, found) in [
            ("LAB", "N", Some(0)),
            ("LAB^9.9^ISO", "N^1.1^ISO", Some(0)),
            ("LAB", "S^1.2^ISO", Some(1)),
            ("LAB", "S", Some(2)),
            ("LAB", "", Some(2)),
            ("RIS", "N", Some(2)),
            ("lab", "N", None),
            ("", "N", None),
        ] {
            assert_eq!(
                directory.by_receiver(&addressed(application, facility)).ok(),
                found,
                "{application} {facility}"
            );
        }
        assert!(directory.by_receiver(b"{}").is_err());
        let nobody = directory.by_name("east\n").unwrap_err().to_string();
        assert_eq!(nobody, "there is no partner `east\\n`: known are north, south, rest");
        assert!(
            directory
                .by_receiver(&addressed("SECRET", "N"))
                .unwrap_err()
                .to_string()
                .contains("north, south")
        );
    }

    #[test]
    fn of_many_partners_a_refusal_names_some() {
        let many: Vec<_> = (0..300).map(|n| json!({"name": format!("p{n}"), "connect": "a:1"})).collect();
        let directory = Directory::new(&tables(many.into()));
        let text = directory.by_name("x").unwrap_err().to_string();
        assert!(text.ends_with("p18, p19, 280 more"), "{text}");
        assert_eq!(directory.only(), None);
    }
}
