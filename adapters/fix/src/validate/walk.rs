//! Goes through the fields of a header, a body or a trailer along a layout, into groups.

use crate::data_fields::DataFields;
use crate::dictionary::{Condition, Dictionary, Layout, Slot};
use crate::message::{Message, Span, Tag};
use crate::validate::{Reason, USER_TAG_MIN, Violation};
use crate::value;

/// Which rules hold.
#[derive(Clone, Copy)]
pub(super) struct Checks {
    /// Of [`super::Level::Full`]: fields, formats and values, not only how groups are built.
    pub(super) full: bool,
    /// Whether fields are missing.
    pub(super) required: bool,
    pub(super) unknown_user_fields: bool,
}

/// What was found, by the ranks in which it is told.
#[derive(Default)]
pub(super) struct Found {
    /// The first field that is required and not there.
    pub(super) missing: Option<Tag>,
    /// The first field with which something is wrong.
    pub(super) first: Option<Violation>,
    /// The first field that is missing because others are there.
    pub(super) condition: Option<Tag>,
    /// A group whose count is wrong, and the index at which it ended. If a field that does not belong there ended it, that
    /// field is told instead.
    count: Option<(Violation, usize)>,
}

impl Found {
    fn tell(&mut self, violation: Violation) {
        let earlier = self.count.take().map(|(violation, _)| violation);
        self.first.get_or_insert(earlier.unwrap_or(violation));
    }
}

pub(super) struct Walk<'a> {
    pub(super) message: &'a Message,
    pub(super) dictionary: &'a Dictionary,
    pub(super) checks: Checks,
    pub(super) found: &'a mut Found,
}

/// Which slots of a layout have been met.
struct Seen(Vec<u64>);

impl Seen {
    fn of(layout: &Layout) -> Self {
        Self(vec![0; layout.slots().len().div_ceil(64)])
    }

    /// Whether it was there before.
    fn mark(&mut self, position: usize) -> bool {
        let (word, bit) = (&mut self.0[position / 64], 1 << (position % 64));
        let before = *word & bit != 0;
        *word |= bit;
        before
    }

    fn has(&self, position: usize) -> bool {
        self.0[position / 64] & (1 << (position % 64)) != 0
    }
}

impl Walk<'_> {
    /// The fields `from..to` of the message as a whole part, not an entry of a group.
    pub(super) fn part(&mut self, layout: &Layout, from: usize, to: usize) {
        let mut seen = Seen::of(layout);
        let mut at = from;
        while at < to {
            let span = self.message.spans()[at];
            let slot = layout.position(span.tag).map(|position| (position, &layout.slots()[position]));
            if let Some((position, slot)) = slot
                && seen.mark(position)
                && !slot.repeats
            {
                self.violated(Reason::Twice, span.tag);
            }
            if slot.is_none() && (self.checks.full || span.tag == 0) {
                self.found.count.take_if(|(_, ended)| *ended == at);
            }
            self.value(at, span);
            match slot {
                None => self.unknown(at, span),
                Some((_, slot)) if slot.group.is_some() => {
                    at = self.group(slot, at, to, layout);
                    continue;
                }
                Some(_) => {}
            }
            at += 1;
        }
        if let Some((violation, _)) = self.found.count.take() {
            self.found.tell(violation);
        }
        self.complete(layout, &seen);
    }

    /// The group that is counted at `at`; where what follows it begins.
    fn group(&mut self, slot: &Slot, at: usize, to: usize, around: &Layout) -> usize {
        let counter = self.message.spans()[at];
        let Some(layout) = slot.group.as_deref() else { return at + 1 };
        let announced = value::unsigned(self.bytes(counter));
        if announced.is_none() {
            // An empty value has been told already.
            self.violated(Reason::BadFormat, counter.tag);
        }
        let mut next = at + 1;
        let mut entries = 0;
        while let Some(span) = self.message.spans()[..to].get(next).copied() {
            let position = match layout.position(span.tag) {
                Some(position) => position,
                None => break,
            };
            // A field that the group has and that stands around it too: outside, once the group is complete.
            let is_around = around.position(span.tag).is_some();
            if is_around && (position != 0 || announced.is_some_and(|announced| entries >= announced)) {
                break;
            }
            if position != 0 {
                self.violated(Reason::GroupOutOfOrder, span.tag);
            }
            entries += 1;
            next = self.entry(layout, next, to, around);
        }
        if announced.is_some_and(|announced| announced != entries) && self.found.first.is_none() {
            self.found.count.get_or_insert((Violation::of(Reason::GroupCount, counter.tag), next));
        }
        next
    }

    /// One entry of a group, from its first field on; where what follows it begins.
    fn entry(&mut self, layout: &Layout, from: usize, to: usize, around: &Layout) -> usize {
        let mut seen = Seen::of(layout);
        let mut newest = 0;
        let mut at = from;
        while at < to {
            let span = self.message.spans()[at];
            let Some(position) = layout.position(span.tag) else {
                if self.is_tolerated(span.tag) && around.position(span.tag).is_none() {
                    self.value(at, span);
                    at += 1;
                    continue;
                }
                break;
            };
            let slot = &layout.slots()[position];
            if at > from && position == 0 {
                break;
            }
            if seen.mark(position) && !slot.repeats {
                if around.position(span.tag).is_some() {
                    break;
                }
                self.violated(Reason::Twice, span.tag);
            }
            if self.checks.full && position < newest {
                self.violated(Reason::GroupOutOfOrder, span.tag);
            }
            newest = newest.max(position);
            self.value(at, span);
            at = if slot.group.is_some() { self.group(slot, at, to, layout) } else { at + 1 };
        }
        self.complete(layout, &seen);
        at
    }

    /// What an end of a part or an entry brings to light.
    fn complete(&mut self, layout: &Layout, seen: &Seen) {
        if !self.checks.required {
            return;
        }
        let there = |tag: &Tag| layout.position(*tag).is_some_and(|position| seen.has(position));
        if self.found.missing.is_none() {
            self.found.missing = layout.required().iter().find(|tag| !there(tag)).copied();
        }
        if self.found.condition.is_none() {
            let broken = |when: &Condition| {
                if !when.fields.iter().any(there) {
                    return None;
                }
                when.required.iter().find(|tag| !there(tag)).copied()
            };
            self.found.condition = layout.conditions().find_map(broken);
        }
    }

    /// Rules for a field by itself.
    fn value(&mut self, at: usize, span: Span) {
        if span.tag == 0 {
            let tag = self.message.number_before(at);
            self.found.tell(Violation { reason: Reason::InvalidTagNumber, tag });
            return;
        }
        let data_fields = self.dictionary.data_fields();
        if span.from == span.to && !is_empty_data(self.message, data_fields, at) {
            self.violated(Reason::NoValue, span.tag);
        }
        if !self.checks.full {
            return;
        }
        let Some(field) = self.dictionary.field(span.tag) else { return };
        let value = self.bytes(span);
        if !field.kind.fits(value) {
            self.violated(Reason::BadFormat, span.tag);
        } else if !field.allows(value) {
            self.violated(Reason::ValueIncorrect, span.tag);
        }
    }

    /// A field that the layout does not have.
    fn unknown(&mut self, at: usize, span: Span) {
        if !self.checks.full || self.is_tolerated(span.tag) {
            return;
        }
        if self.dictionary.field(span.tag).is_some() {
            self.violated(Reason::NotDefinedForMessage, span.tag);
        } else {
            let tag = self.message.number_before(at);
            self.found.tell(Violation { reason: Reason::InvalidTagNumber, tag });
        }
    }

    /// Whether nobody asks where this field stands: it may be within a group too.
    fn is_tolerated(&self, tag: Tag) -> bool {
        let allowed = !self.checks.full || !self.checks.unknown_user_fields;
        allowed && tag >= USER_TAG_MIN && self.dictionary.field(tag).is_none()
    }

    fn violated(&mut self, reason: Reason, tag: Tag) {
        self.found.tell(Violation::of(reason, tag));
    }

    fn bytes(&self, span: Span) -> &[u8] {
        &self.message.bytes()[span.from as usize..span.to as usize]
    }
}

/// Whether the field at this index is data whose length says that there is none.
pub(super) fn is_empty_data(message: &Message, data_fields: &DataFields, at: usize) -> bool {
    let [before, data] = message.spans()[at.saturating_sub(1)..=at] else { return false };
    data_fields.announced_by(before.tag) == Some(data.tag)
        && value::unsigned(&message.bytes()[before.from as usize..before.to as usize]) == Some(0)
}
