//! Raw FIX: fields with SOH, as a whole message or without header and trailer.

use bytes::Bytes;

use crate::content::{ContentError, FieldFault, Form, Outgoing, Parts, Path, Place};
use crate::message::{SOH, Span, Tag, spans, tag};
use crate::wire::parse;

pub(super) fn read(content: &[u8], form: &Form<'_>) -> Result<Outgoing, ContentError> {
    let whole = content.starts_with(b"8=");
    if whole {
        // Cut or changed on its way, it must not pass for another one.
        let message =
            parse(Bytes::copy_from_slice(content), form.data_fields).map_err(ContentError::Garbled)?;
        if message.begin_string() != form.begin_string.as_str().as_bytes() {
            return Err(ContentError::Version { session: form.begin_string });
        }
    }
    let fields = spans(content, form.data_fields).map_err(ContentError::Fields)?;
    let mut parts = Parts::default();
    let mut before: Option<Span> = None;
    for (index, span) in fields.iter().enumerate() {
        let (from, to) = (span.from as usize, span.to as usize);
        let value = &content[from..to];
        match span.tag {
            tag::MSG_TYPE if parts.msg_type.is_empty() => parts.msg_type = value.to_vec(),
            tag::MSG_TYPE => return Err(Path::default().fault(span.tag, FieldFault::Twice)),
            0 => return Err(Path::default().fault(span.tag, FieldFault::UnknownKey)),
            tag => {
                let is_data =
                    before.is_some_and(|before| form.data_fields.announced_by(before.tag) == Some(tag));
                if value.is_empty() && !is_data {
                    return Err(Path::default().fault(tag, FieldFault::Empty));
                }
                match form.place(tag) {
                    Place::Body => {
                        let begins = index.checked_sub(1).map_or(0, |before| fields[before].to as usize + 1);
                        parts.body.extend_from_slice(&content[begins..=to]);
                    }
                    // The length of a data field is written with it.
                    Place::Header if let Some(data) = form.data_fields.announced_by(tag) => {
                        if fields.get(index + 1).is_none_or(|next| next.tag != data) {
                            return Err(Path::default().fault(tag, FieldFault::Length));
                        }
                    }
                    Place::Header => header(&mut parts, tag, value)?,
                    Place::Nowhere => return Err(Path::default().fault(tag, FieldFault::NotPassedOn)),
                    // Of a whole message; a list of fields has no business with them.
                    Place::Session if whole => {}
                    Place::Session => return Err(Path::default().fault(tag, FieldFault::Ours)),
                }
            }
        }
        before = Some(*span);
    }
    debug_assert!(parts.body.last().is_none_or(|last| *last == SOH));
    parts.finish()
}

/// Adds a field of the header that is the app's.
pub(super) fn header(parts: &mut Parts, tag: Tag, value: &[u8]) -> Result<(), ContentError> {
    if parts.header.iter().any(|(other, _)| *other == tag) {
        return Err(Path::default().fault(tag, FieldFault::Twice));
    }
    parts.header.push((tag, value.to_vec()));
    Ok(())
}
