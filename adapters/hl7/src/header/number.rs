//! MSH-13, the sequence number: where transactions are numbered it is ours to write, and nothing else of a message is.

use bytes::{Bytes, BytesMut};

use super::{HeaderError, Message, nth};
use crate::ack::{self, Stamp};
use crate::mllp::CR;

const MSH_SEQUENCE_NUMBER: usize = 13;
/// MSH-13 has 15 digits at most.
pub(crate) const SEQUENCE_NUMBER_MAX: u64 = 999_999_999_999_999;
/// Fields of MSH that an inquiry repeats: who to whom, what, in which version, and which acknowledgements it wants.
const MSH_REPEATED: usize = 18;
/// Those of them that are the message's own: security, its sequence number's neighbours in a continued message.
const MSH_OWN: [usize; 2] = [8, 14];

/// What stands in MSH-13.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SequenceNumber {
    /// Nothing.
    Missing,
    /// Something that is no number of the protocol.
    Unusable,
    /// The sender forgets its numbers, and begins anew with the next message (−1).
    Resynchronise,
    /// The sender asks which one is expected (0).
    Inquiry,
    Number(u64),
}

impl SequenceNumber {
    fn read(field: &[u8]) -> Self {
        let text = field.trim_ascii();
        match std::str::from_utf8(text).ok().and_then(|text| text.parse::<i64>().ok()) {
            _ if text.is_empty() => Self::Missing,
            Some(-1) => Self::Resynchronise,
            Some(0) => Self::Inquiry,
            Some(number) if (1..=SEQUENCE_NUMBER_MAX).contains(&number.unsigned_abs()) && number > 0 => {
                Self::Number(number.unsigned_abs())
            }
            _ => Self::Unusable,
        }
    }
}

impl Message<'_> {
    pub(crate) fn sequence_number(&self) -> SequenceNumber {
        SequenceNumber::read(self.header_field(MSH_SEQUENCE_NUMBER))
    }

    /// The streams of transactions that a partner numbers, each by its own: who sends what to whom.
    pub(crate) fn stream(&self) -> Vec<u8> {
        let parties = [
            self.sending_application(),
            self.sending_facility(),
            self.receiving_application(),
            self.receiving_facility(),
        ];
        // Fields hold no CR, whatever the delimiters are.
        parties.join(&CR)
    }
}

/// The message with this number in MSH-13: its head, which is new, and the rest, which is not copied.
pub(crate) fn numbered(body: &Bytes, number: u64) -> Result<(Bytes, Bytes), HeaderError> {
    let message = Message::parse(body)?;
    let header = message.segments().next().unwrap_or_default();
    let start = body.len() - message.bytes.len();
    let number = number.to_string();
    let mut fields: Vec<&[u8]> = header.split(|byte| *byte == message.delimiters.field).collect();
    if fields.len() < MSH_SEQUENCE_NUMBER {
        fields.resize(MSH_SEQUENCE_NUMBER, b"");
    }
    // MSH-1 is the separator, so MSH-13 is the twelfth behind the name.
    fields[MSH_SEQUENCE_NUMBER - 1] = number.as_bytes();
    let header_end = start + header.len();
    let head = [&body[..start], &fields.join(&message.delimiters.field)].concat();
    Ok((head.into(), body.slice(header_end..)))
}

/// A transaction that is nothing but its number: 0 or −1 (HL7 version 2.5.1, 2.10.1 f).
pub(crate) fn inquiry(message: &Message<'_>, number: &str, stamp: &Stamp) -> Bytes {
    let header = message.segments().next().unwrap_or_default();
    let field = |own: usize| match own {
        10 => stamp.control_id(),
        MSH_SEQUENCE_NUMBER => number.as_bytes(),
        own if MSH_OWN.contains(&own) => b"",
        own => nth(header, message.delimiters.field, own - 1),
    };
    let fields: Vec<&[u8]> = (2..=MSH_REPEATED).map(field).collect();
    let mut bytes = BytesMut::new();
    ack::put_segment(&mut bytes, message.delimiters.field, b"MSH", &fields);
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with_number(body: &[u8], number: u64) -> Vec<u8> {
        let (head, rest) = numbered(&Bytes::copy_from_slice(body), number).unwrap();
        [&head[..], &rest].concat()
    }

    #[test]
    fn the_number_stands_in_msh_13_and_everything_else_stays() {
        for (body, numbered) in [
            (
                "MSH|^~\\&|A|B|C|D|||ADT^A01|1|P|2.5\rPID|1||\u{fc}\r",
                "MSH|^~\\&|A|B|C|D|||ADT^A01|1|P|2.5|7\rPID|1||\u{fc}\r",
            ),
            ("MSH|^~\\&|A|B|C|D|||ADT^A01|1|P", "MSH|^~\\&|A|B|C|D|||ADT^A01|1|P||7"),
            (
                "MSH|^~\\&|A|B|C|D|||ADT^A01|1|P|2.5|99||AL|NE\nPID\n",
                "MSH|^~\\&|A|B|C|D|||ADT^A01|1|P|2.5|7||AL|NE\nPID\n",
            ),
            (
                "\u{feff}\r\nMSH:;~\\&:::::::ADT:1:P:2.5::x\r\nPID:1\r\n",
                "\u{feff}\r\nMSH:;~\\&:::::::ADT:1:P:2.5:7:x\r\nPID:1\r\n",
            ),
        ] {
            assert_eq!(String::from_utf8(with_number(body.as_bytes(), 7)).unwrap(), numbered);
        }
    }

    #[test]
    fn an_inquiry_has_a_header_and_an_id_of_its_own() {
        let body = b"MSH|^~\\&|A|B|C|D|2026|S|ADT^A01|M1|P|2.5|9|P2|AL|NE||8859/1\rPID|1||42\r";
        let stamp = crate::owed::stamp();
        let inquiry = inquiry(&Message::parse(body).unwrap(), "-1", &stamp);
        let id = std::str::from_utf8(stamp.control_id()).unwrap();
        assert_eq!(inquiry, format!("MSH|^~\\&|A|B|C|D|2026||ADT^A01|{id}|P|2.5|-1||AL|NE||8859/1\r"));
    }

    #[test]
    fn only_whole_numbers_are_numbers() {
        for (text, read) in [
            ("", SequenceNumber::Missing),
            ("0", SequenceNumber::Inquiry),
            ("-1", SequenceNumber::Resynchronise),
            (" 7 ", SequenceNumber::Number(7)),
            ("007", SequenceNumber::Number(7)),
            ("-2", SequenceNumber::Unusable),
            ("7.0", SequenceNumber::Unusable),
            ("7^8", SequenceNumber::Unusable),
            ("99999999999999999999", SequenceNumber::Unusable),
        ] {
            assert_eq!(SequenceNumber::read(text.as_bytes()), read, "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_message_is_its_number_is_read_again(tail in proptest::collection::vec(any::<u8>(), 0..200), number in 1..SEQUENCE_NUMBER_MAX) {
            let body = [b"MSH|^~\\&|".as_slice(), &tail].concat();
            let sent = with_number(&body, number);
            let message = Message::parse(&sent).unwrap();
            prop_assert_eq!(message.sequence_number(), SequenceNumber::Number(number));
            // Of every other field and segment nothing has changed.
            let before = Message::parse(&body).unwrap();
            let fields = |message: &Message<'_>| (2..=40).filter(|own| *own != 13).map(|own| message.header_field(own).to_vec()).collect::<Vec<_>>();
            prop_assert_eq!(fields(&before), fields(&message));
            prop_assert!(before.segments().skip(1).eq(message.segments().skip(1)));
        }
    }
}
