//! From a CloudEvent to a message for the store: gateway attributes removed, times read, payload form fixed, destinations
//! found. Pure; nothing here knows HTTP or the store.

use std::collections::BTreeMap;

use gatepost_api::event::{Data, Event, EventError, Extension};
use gatepost_core::Timestamp;
use gatepost_core::message::{DataForm, INLINE_DATA_BYTES_MAX, NewMessage};
use gatepost_core::routing::{Attribute, EventView, RouteError, Routes};

use super::assemble::DATAREF;

/// The gateway's own attributes; a sender's values for them are dropped.
pub(crate) const GATEWAY_ATTRIBUTES: [&str; 3] = ["gatepostid", "gatepostapp", "gateposttime"];

/// What the request around an event says about it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Context<'a> {
    /// The sender's own key, if the request has one.
    pub(crate) idempotency_key: Option<&'a str>,
    /// The request's trace context, for events that bring none.
    pub(crate) traceparent: Option<&'a str>,
}

/// A message whose destinations are not known yet. `Debug` of the message shows sizes only.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) message: NewMessage,
    rest: Rest,
}

/// Attributes that only routes look at.
#[derive(Debug)]
struct Rest {
    id: String,
    dataschema: Option<String>,
    time: Option<String>,
    extensions: BTreeMap<String, Extension>,
}

impl Draft {
    /// Converts an event that has passed [`Event::validate`].
    pub(crate) fn from_event(mut event: Event, context: Context<'_>) -> Result<Self, EventError> {
        let data = event.data.take();
        let (form, data) = form_of(data);
        for name in GATEWAY_ATTRIBUTES {
            event.extensions.remove(name);
        }
        if data.len() as u64 > INLINE_DATA_BYTES_MAX {
            // The gateway's own reference takes its place when the event is leased.
            event.extensions.remove(DATAREF);
        }
        if let Some(traceparent) = context.traceparent {
            let absent = || Extension::Text(traceparent.to_owned());
            event.extensions.entry("traceparent".to_owned()).or_insert_with(absent);
        }
        if let Some(time) = &event.time {
            Timestamp::parse_rfc3339(time).ok_or(EventError::Timestamp("time"))?;
        }
        let expires_at = match event.text_extension("expirytime") {
            None => None,
            Some(text) => Some(Timestamp::parse_rfc3339(&text).ok_or(EventError::Timestamp("expirytime"))?),
        };
        let idempotency_key = match context.idempotency_key {
            Some(key) => key.to_owned(),
            // NUL stands in no attribute and in no header, so the two kinds of key never meet.
            None => format!("{}\0{}", event.source, event.id),
        };
        // An event without data is a flat object of strings, booleans and integers: writing it does not fail.
        let attributes = serde_json::to_vec(&event).unwrap_or_default();
        let [partition_key, barrier_key, correlation_id] =
            ["partitionkey", "barrierkey", "correlationid"].map(|name| event.text_extension(name));
        let Event { id, dataschema, time, extensions, .. } = event;
        let message = NewMessage {
            partition_key,
            barrier_key,
            correlation_id,
            kind: event.kind,
            source: event.source,
            subject: event.subject,
            datacontenttype: event.datacontenttype,
            expires_at,
            attributes,
            form,
            data,
            idempotency_key,
            destinations: Vec::new(),
        };
        Ok(Self { message, rest: Rest { id, dataschema, time, extensions } })
    }

    /// Finds the destinations of a message from `sender`.
    pub(crate) fn route(&mut self, routes: &Routes, sender: &str) -> Result<(), RouteError> {
        self.message.destinations = routes.destinations(sender, self)?;
        Ok(())
    }
}

impl EventView for Draft {
    fn attribute(&self, name: &str) -> Option<Attribute<'_>> {
        let (message, rest) = (&self.message, &self.rest);
        let text = match name {
            "specversion" => Some("1.0"),
            "id" => Some(rest.id.as_str()),
            "source" => Some(message.source.as_str()),
            "type" => Some(message.kind.as_str()),
            "datacontenttype" => message.datacontenttype.as_deref(),
            "dataschema" => rest.dataschema.as_deref(),
            "subject" => message.subject.as_deref(),
            "time" => rest.time.as_deref(),
            _ => {
                return rest.extensions.get(name).map(|value| match value {
                    Extension::Bool(value) => Attribute::Bool(*value),
                    Extension::Integer(value) => Attribute::Integer(*value),
                    Extension::Text(value) => Attribute::Text(value),
                });
            }
        };
        text.map(Attribute::Text)
    }

    fn json(&self) -> Option<&[u8]> {
        (self.message.form == DataForm::Json).then_some(self.message.data.as_slice())
    }
}

fn form_of(data: Option<Data>) -> (DataForm, Vec<u8>) {
    match data {
        None => (DataForm::None, Vec::new()),
        Some(Data::Json(text)) => (DataForm::Json, text.into_bytes()),
        Some(Data::Text(text)) => (DataForm::Text, text.into_bytes()),
        Some(Data::Binary(bytes)) => (DataForm::Base64, bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(extra: &str, context: Context<'_>) -> Result<NewMessage, EventError> {
        let text = format!(r#"{{"specversion":"1.0","id":"7","source":"/s","type":"t"{extra}}}"#);
        Draft::from_event(serde_json::from_str(&text).unwrap(), context).map(|draft| draft.message)
    }

    fn attributes(message: &NewMessage) -> serde_json::Value {
        serde_json::from_slice(&message.attributes).unwrap()
    }

    #[test]
    fn gateway_attributes_of_a_sender_are_dropped_and_the_rest_is_kept() {
        let extra = r#","gatepostid":"x","gatepostapp":"admin","gateposttime":"y","subject":"s","n":5,"b":true,"data":{"a":1}"#;
        let message = draft(extra, Context::default()).unwrap();
        let expected = serde_json::json!(
            {"specversion":"1.0","id":"7","source":"/s","type":"t","subject":"s","n":5,"b":true});
        assert_eq!(attributes(&message), expected);
        assert_eq!((message.form, message.data.as_slice()), (DataForm::Json, br#"{"a":1}"#.as_slice()));
    }

    #[test]
    fn the_key_is_the_senders_or_source_and_id() {
        assert_eq!(draft("", Context::default()).unwrap().idempotency_key, "/s\u{0}7");
        let context = Context { idempotency_key: Some("k"), ..Context::default() };
        assert_eq!(draft("", context).unwrap().idempotency_key, "k");
    }

    #[test]
    fn the_requests_trace_goes_onto_events_that_have_none() {
        let context = Context { traceparent: Some("00-request"), ..Context::default() };
        assert_eq!(attributes(&draft("", context).unwrap())["traceparent"], "00-request");
        let own = draft(r#","traceparent":"00-own""#, context).unwrap();
        assert_eq!(attributes(&own)["traceparent"], "00-own");
    }

    #[test]
    fn times_are_read_and_faults_name_them() {
        let message =
            draft(r#","expirytime":"2030-01-01T00:00:00Z","partitionkey":"p""#, Context::default()).unwrap();
        assert_eq!(message.expires_at, Timestamp::parse_rfc3339("2030-01-01T00:00:00Z"));
        assert_eq!(message.partition_key.as_deref(), Some("p"));
        let fault = |extra| draft(extra, Context::default()).unwrap_err();
        assert_eq!(fault(r#","expirytime":"soon""#), EventError::Timestamp("expirytime"));
        assert_eq!(fault(r#","time":"yesterday""#), EventError::Timestamp("time"));
    }

    #[test]
    fn a_senders_dataref_gives_way_only_where_the_gateway_sets_its_own() {
        let small = draft(r#","dataref":"https://x""#, Context::default()).unwrap();
        assert_eq!(attributes(&small)["dataref"], "https://x");
        let big = format!(
            r#","dataref":"https://x","datacontenttype":"text/plain","data":"{}""#,
            "x".repeat(usize::try_from(INLINE_DATA_BYTES_MAX).unwrap() + 1)
        );
        assert!(attributes(&draft(&big, Context::default()).unwrap()).get("dataref").is_none());
    }
}
