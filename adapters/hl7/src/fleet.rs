//! Sending to several partners: connections for each, its own settings, and what operators are told of them.

use std::sync::Arc;
use std::time::SystemTime;

use gatepost_adapter::tls::Connector;
use gatepost_adapter::{
    Delivery, Dispatch, Failure, Level, Offer, OperatorCall, Outcome, PartnerState, Partners, PartnersWork,
    Session,
};
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::answer::{self, Answer};
use crate::awaited::Awaited;
use crate::gauge::Gauge;
use crate::partners::{Directory, Nobody, PARTNER};
use crate::send::{Link, no_data};
use crate::settings::Settings;

/// Partners that one answer to an operator names; more would not fit into it.
const SHOWN_MAX: usize = 500;

/// What it takes to reach one partner.
struct Way {
    settings: Arc<Settings>,
    connector: Arc<Connector>,
    open: Gauge,
}

/// All partners that are sent to.
#[derive(Clone)]
pub(crate) struct Fleet {
    ways: Arc<[Way]>,
    partners: Partners,
}

impl Fleet {
    pub(crate) fn new(settings: &Settings) -> Result<(Self, PartnersWork), Failure> {
        let way = |settings: Arc<Settings>| {
            let address = settings.connect.as_deref().unwrap_or_default();
            let connector = Arc::new(Connector::new(address, settings.tls.as_ref())?);
            Ok(Way { settings, connector, open: Gauge::default() })
        };
        let ways = settings.each_sent_to().into_iter().map(way).collect::<Result<_, Failure>>()?;
        let (partners, work) = Partners::new(settings.partner_setups());
        Ok((Self { ways, partners }, work))
    }

    pub(crate) fn dispatcher(
        &self,
        settings: &Settings,
        awaited: Arc<Awaited>,
        confirm: Level,
    ) -> Dispatcher {
        let directory = Directory::new(&settings.partners);
        let data_bytes_max = self.ways.iter().map(|way| way.settings.max_frame_bytes).max().unwrap_or(0);
        Dispatcher { ways: Arc::clone(&self.ways), directory, data_bytes_max, awaited, confirm }
    }

    /// What an answer means that came when nobody was sending.
    pub(crate) fn judge(&self, partner: &str, confirm: Level, answer: &Answer) -> Option<Outcome> {
        let is_it = |way: &Way| way.settings.partner.as_deref() == Some(partner);
        let number = self.ways.iter().position(is_it)?;
        let outcome = answer::outcome(&self.ways[number].settings.on_ack, confirm, answer);
        Some(self.partners.take_up(number, outcome))
    }

    /// Tells operators how partners stand, until the adapter is asked to stop.
    pub(crate) async fn answer_calls(&self, session: &Session) {
        let about = "How partners stand: those that are away first; one (partner=NAME), or those that stand so (standing=away|new|up).";
        let offers = vec![Offer { name: "partners".to_owned(), changes: false, about: about.to_owned() }];
        let fleet = self.clone();
        let answer = move |call| {
            let said = fleet.answer(call);
            async move { said }
        };
        session.answer_calls(offers, answer).await;
    }

    fn answer(&self, call: OperatorCall) -> Result<Value, String> {
        if call.name != "partners" {
            return Err("the adapter does not offer that".to_owned());
        }
        let asked: Asked =
            serde_json::from_value(call.arguments.into()).map_err(|error| error.to_string())?;
        let mut states: Vec<_> = self.partners.states().into_iter().zip(self.ways.iter()).collect();
        let counts = ["away", "new", "up"].map(|standing| {
            (
                standing.to_owned(),
                states.iter().filter(|(state, _)| state.standing == standing).count().into(),
            )
        });
        if let Some(name) = &asked.partner {
            states.retain(|(state, _)| state.name == *name);
            if states.is_empty() {
                return Err(format!("there is no partner `{}`", name.escape_debug()));
            }
        }
        if let Some(standing) = &asked.standing {
            states.retain(|(state, _)| state.standing == standing);
        }
        // By the alphabet too: away, new, up.
        states.sort_by_key(|(state, _)| state.standing);
        let left_out = states.len().saturating_sub(SHOWN_MAX);
        let shown: Vec<_> = states.iter().take(SHOWN_MAX).map(|(state, way)| shown(state, way)).collect();
        let mut answer = json!({ "partners": shown });
        answer["in_all"] = Value::Object(counts.into_iter().collect());
        if left_out > 0 {
            answer["left_out"] = left_out.into();
        }
        Ok(answer)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    partner: Option<String>,
    standing: Option<String>,
}

fn shown(state: &PartnerState, way: &Way) -> Value {
    let mut shown = json!({
        "name": state.name,
        "connect": way.settings.connect,
        "standing": state.standing,
        "since": rfc3339(state.since),
        "connections": way.open.read(),
    });
    let numbers = [("sending", state.working), ("waiting", state.waiting), ("gone_back", state.back)];
    for (name, number) in numbers.into_iter().filter(|(_, number)| *number > 0) {
        shown[name] = number.into();
    }
    if let Some(error) = &state.last_error {
        shown["last_error"] = error.as_str().into();
    }
    if let Some(next) = state.next_try_in {
        shown["next_try_in_ms"] = u64::try_from(next.as_millis()).unwrap_or(u64::MAX).into();
    }
    shown
}

fn rfc3339(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at).replace_nanosecond(0);
    at.ok().and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
}

/// Finds each message's partner and makes connections to it.
pub(crate) struct Dispatcher {
    ways: Arc<[Way]>,
    directory: Directory,
    data_bytes_max: usize,
    awaited: Arc<Awaited>,
    confirm: Level,
}

impl Dispatch for Dispatcher {
    type Worker = Link;

    async fn partner_of(&self, delivery: &Delivery) -> Result<usize, Outcome> {
        let found = match delivery.event().text_extension(PARTNER) {
            Some(name) => self.directory.by_name(&name),
            None => match self.directory.only() {
                Some(only) => Ok(only),
                None => self.by_receiver(delivery).await?,
            },
        };
        found.map_err(|nobody| Outcome::reject(nobody.to_string()))
    }

    fn worker(&self, partner: usize) -> Link {
        let Way { settings, connector, open } = &self.ways[partner];
        let (connector, settings) = (Arc::clone(connector), Arc::clone(settings));
        let link = Link::new(connector, settings, Arc::clone(&self.awaited), self.confirm, None);
        link.counted_by(open.clone())
    }
}

impl Dispatcher {
    async fn by_receiver(&self, delivery: &Delivery) -> Result<Result<usize, Nobody>, Outcome> {
        if !self.directory.has_receivers() {
            return Ok(self.directory.by_receiver(b""));
        }
        let body = delivery.data(self.data_bytes_max).await.map_err(|error| no_data(&error))?;
        Ok(self.directory.by_receiver(&body))
    }
}
