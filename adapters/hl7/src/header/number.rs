//! MSH-13 and MSA-4, the sequence numbers: where transactions are numbered they are ours to write, and nothing else of a message is.

use bytes::{Bytes, BytesMut};

use super::{HeaderError, LF, Message, nth};
use crate::ack::{self, Stamp};
use crate::mllp::CR;

const MSH_SEQUENCE_NUMBER: usize = 13;
const MSA_EXPECTED_NUMBER: usize = 4;
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
    // MSH-1 is the separator, so MSH-13 is the twelfth behind the name.
    with_field(body, b"MSH", MSH_SEQUENCE_NUMBER - 1, &number.to_string())?.ok_or(HeaderError::NoHeader)
}

/// An application's acknowledgement with this number in MSA-4, which is not the application's to know; `None` where it is none.
pub(crate) fn expecting(acknowledgement: &Bytes, expected: i64) -> Option<Bytes> {
    let (head, rest) =
        with_field(acknowledgement, b"MSA", MSA_EXPECTED_NUMBER, &expected.to_string()).ok()??;
    Some([head, rest].concat().into())
}

/// The message with this value in one place of the first segment of that name; in two parts, as `numbered`. `None` without such a
/// segment.
fn with_field(
    body: &Bytes,
    name: &[u8; 3],
    place: usize,
    value: &str,
) -> Result<Option<(Bytes, Bytes)>, HeaderError> {
    let message = Message::parse(body)?;
    let field = message.delimiters.field;
    let mut end = body.len() - message.bytes.len();
    for line in message.lines() {
        let segment = line.strip_prefix(&[LF]).unwrap_or(line);
        end += line.len();
        if !message.is_named(segment, name) {
            end += 1;
            continue;
        }
        let mut fields: Vec<&[u8]> = segment.split(|byte| *byte == field).collect();
        if fields.len() <= place {
            fields.resize(place + 1, b"");
        }
        fields[place] = value.as_bytes();
        let head = [&body[..end - segment.len()], &fields.join(&field)].concat();
        return Ok(Some((head.into(), body.slice(end..))));
    }
    Ok(None)
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
    fn what_is_expected_stands_in_msa_4_whatever_the_application_has_put_there() {
        for (body, expecting_8) in [
            ("MSH|^~\\&|A||B\rMSA|AE|1\rERR|\r", Some("MSH|^~\\&|A||B\rMSA|AE|1||8\rERR|\r")),
            ("MSH|^~\\&|A\r\nERR|\r\nMSA|AA|1|ok|3|x", Some("MSH|^~\\&|A\r\nERR|\r\nMSA|AA|1|ok|8|x")),
            ("\u{feff}MSH:;~\\&:A\nMSA:AA:1\n", Some("\u{feff}MSH:;~\\&:A\nMSA:AA:1::8\n")),
            ("MSH|^~\\&|A\rMSAX|AA\r", None),
            ("MSA|AA|1\r", None),
        ] {
            let expecting = expecting(&Bytes::copy_from_slice(body.as_bytes()), 8);
            let expecting = expecting.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
            assert_eq!(expecting.as_deref(), expecting_8);
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

        #[test]
        fn whatever_the_acknowledgement_is_what_is_expected_is_read_again(before in "[ -~\r\n]{0,60}", after in "[ -~\r\n]{0,60}", expected in -1..1000_i64) {
            let body = Bytes::from(format!("MSH|^~\\&|{before}\rMSA|AE|1{after}"));
            if let Some(told) = expecting(&body, expected) {
                let told = Message::parse(&told).unwrap().acknowledgement().unwrap();
                prop_assert_eq!(told.expected, Some(expected));
                let own = Message::parse(&body).unwrap().acknowledgement().unwrap();
                prop_assert_eq!((told.code, told.control_id), (own.code, own.control_id));
            }
        }
    }
}
