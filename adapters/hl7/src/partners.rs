//! Several partners behind one queue: what the settings say of each, and how a message finds its own.

mod directory;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use gatepost_adapter::tls::ConnectTls;
use gatepost_adapter::{Fault, Outcome, PartnerSetup, Scope, element};
use schemars::JsonSchema;
use serde::Deserialize;

pub(crate) use self::directory::{Directory, Nobody};
use crate::charset::Charset;
use crate::on_ack::OnAck;
use crate::peer::{Answerer, Peer};
use crate::settings::{OptionalPath, Settings};

/// Names a message's partner, of those that are sent to and of those that it comes from.
pub(crate) const PARTNER: &str = "hl7partner";
/// Each has connections, and a place in what operators are shown.
pub(crate) const PARTNERS_MAX: usize = 1000;
const NAME_BYTES_MAX: usize = 64;
/// The gateway lets an adapter read so many files that its settings name.
const FILES_MAX: usize = 128;
/// Where there are many, connections that nobody uses are closed.
const IDLE_DISCONNECT_MS: u64 = 300_000;

/// One of several partners. What is not set is as the adapter's settings say for all.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PartnerTable {
    /// Unique within this adapter: letters, digits, `-`, `_` and `.`. The attribute `hl7partner` of a message names it.
    pub(crate) name: String,
    /// The partner's MLLP listener, `host:port`. Without it nothing is sent to it.
    pub(crate) connect: Option<String>,
    /// Where it connects to us from: addresses, networks, and names in certificates (`dns:`, `uri:`, `cn:`). What comes from there
    /// says `hl7partner`, and answers its messages only.
    #[serde(default)]
    pub(crate) from: Vec<Answerer>,
    /// Messages for it that do not say `hl7partner`: by the application and facility that they are addressed to.
    #[serde(default)]
    pub(crate) receivers: Vec<ReceiverName>,
    pub(crate) tls: Option<ConnectTls>,
    pub(crate) connections: Option<usize>,
    pub(crate) connect_timeout_ms: Option<u64>,
    pub(crate) ack_timeout_ms: Option<u64>,
    pub(crate) application_ack_timeout_ms: Option<u64>,
    pub(crate) idle_disconnect_ms: Option<u64>,
    pub(crate) on_ack: Option<OnAck>,
    pub(crate) mllp_release: Option<u8>,
    pub(crate) max_frame_bytes: Option<usize>,
    pub(crate) lenient_end_ms: Option<u64>,
    #[schemars(with = "Option<String>")]
    pub(crate) charset: Option<Charset>,
    #[schemars(with = "Option<String>")]
    pub(crate) default_charset: Option<Charset>,
    #[schemars(with = "Option<String>")]
    pub(crate) partition_key: Option<OptionalPath>,
    #[schemars(with = "Option<String>")]
    pub(crate) subject: Option<OptionalPath>,
}

/// Whom a message is addressed to: MSH-5, and MSH-6 where that is given; each whole or its first component, exactly.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReceiverName {
    pub(crate) application: String,
    pub(crate) facility: Option<String>,
}

impl PartnerTable {
    /// The adapter's settings as they are for this partner.
    fn settings(&self, common: &Settings) -> Settings {
        let partner = self.clone();
        let idle = partner.idle_disconnect_ms.or(common.idle_disconnect_ms).unwrap_or(IDLE_DISCONNECT_MS);
        Settings {
            partner: Some(partner.name),
            connect: partner.connect,
            tls: partner.tls.or_else(|| common.tls.clone()),
            connections: partner.connections.unwrap_or(common.connections),
            connect_timeout_ms: partner.connect_timeout_ms.unwrap_or(common.connect_timeout_ms),
            ack_timeout_ms: partner.ack_timeout_ms.unwrap_or(common.ack_timeout_ms),
            application_ack_timeout_ms: partner
                .application_ack_timeout_ms
                .unwrap_or(common.application_ack_timeout_ms),
            idle_disconnect_ms: Some(idle),
            on_ack: partner.on_ack.unwrap_or_else(|| common.on_ack.clone()),
            mllp_release: partner.mllp_release.unwrap_or(common.mllp_release),
            max_frame_bytes: partner.max_frame_bytes.unwrap_or(common.max_frame_bytes),
            lenient_end_ms: partner.lenient_end_ms.or(common.lenient_end_ms),
            charset: partner.charset.or(common.charset),
            default_charset: partner.default_charset.unwrap_or(common.default_charset),
            partition_key: partner.partition_key.unwrap_or_else(|| common.partition_key.clone()),
            subject: partner.subject.unwrap_or_else(|| common.subject.clone()),
            partners: Vec::new(),
            ..common.clone()
        }
    }
}

impl Settings {
    /// What each partner has for itself that is sent to.
    pub(crate) fn each_sent_to(&self) -> Vec<Arc<Self>> {
        let sent_to = self.partners.iter().filter(|partner| partner.connect.is_some());
        sent_to.map(|partner| Arc::new(partner.settings(self))).collect()
    }

    /// The names of those partners.
    pub(crate) fn names_sent_to(&self) -> impl Iterator<Item = &str> {
        let sent_to = self.partners.iter().filter(|partner| partner.connect.is_some());
        sent_to.map(|partner| partner.name.as_str())
    }

    /// An outcome as it is to be reported by itself: where there are several partners, one of them is not the destination.
    pub(crate) fn scoped(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Retry { scope: Scope::Destination, after, reason, reply } if self.partner.is_some() => {
                Outcome::Retry { scope: Scope::Lane, after, reason, reply }
            }
            outcome => outcome,
        }
    }

    /// What is wrong with the list of partners; each fault is said of its table.
    pub(crate) fn partner_faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if self.partners.is_empty() {
            return faults;
        }
        if self.connect.is_some() {
            faults.push(Fault::new("connect", "goes with one partner; `partners` have a `connect` each"));
        }
        if self.sequence_numbers.send {
            let message = "goes with one partner, whose numbers they are; `partners` have none";
            faults.push(Fault::new("sequence_numbers.send", message));
        }
        if self.partners.len() > PARTNERS_MAX {
            faults.push(Fault::new("partners", format!("{PARTNERS_MAX} at most; use more adapters")));
            return faults;
        }
        let files = self.files().collect::<BTreeSet<_>>().len();
        if files > FILES_MAX {
            let message = format!(
                "TLS names {files} files, {FILES_MAX} at most: share authorities and certificates, or use more adapters"
            );
            faults.push(Fault::new("partners", message));
        }
        // What is said of the settings for all is not said again of each.
        let common = Self { partners: Vec::new(), connect: None, tls: None, ..self.clone() };
        let common = common.faults();
        let mut names: HashMap<&str, usize> = HashMap::new();
        let mut receivers: HashMap<&ReceiverName, usize> = HashMap::new();
        let mut origins: Vec<(&Answerer, usize)> = Vec::new();
        for (index, partner) in self.partners.iter().enumerate() {
            let mut fault = |key: &str, message: String| {
                let message = format!("{message} (partner `{}`)", partner.name.escape_debug());
                faults.push(Fault::new(format!("{}.{key}", element("partners", index)), message));
            };
            if !is_name(&partner.name) {
                let what = format!("must be letters, digits, `-`, `_` and `.`, {NAME_BYTES_MAX} at most");
                fault("name", what);
            }
            if let Some(other) = names.insert(&partner.name, index) {
                fault("name", format!("{} has that name too", element("partners", other)));
            }
            for receiver in &partner.receivers {
                if receiver.application.is_empty() || receiver.facility.as_deref() == Some("") {
                    fault("receivers", "application and facility must not be empty".to_owned());
                }
                if let Some(other) = receivers.insert(receiver, index) {
                    fault("receivers", format!("{} has the same receiver", element("partners", other)));
                }
            }
            for origin in &partner.from {
                if let Some((_, other)) = origins.iter().find(|(known, _)| *known == origin) {
                    fault("from", format!("{} has the same", element("partners", *other)));
                }
                origins.push((origin, index));
            }
            if !partner.from.is_empty() && self.listen.is_none() {
                fault("from", "goes with `listen`, which is not set".to_owned());
            }
            if partner.connect.is_none() {
                if partner.from.is_empty() {
                    fault("connect", "neither `connect` nor `from` is set".to_owned());
                }
                if !partner.receivers.is_empty() || partner.tls.is_some() {
                    fault("connect", "is missing: `receivers` and `tls` go with it".to_owned());
                }
                continue;
            }
            for found in partner.settings(self).faults() {
                if !common.contains(&found) {
                    fault(&found.key, found.message);
                }
            }
        }
        faults
    }

    /// Where this adapter connects to.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let partners = self.partners.iter().filter_map(|partner| partner.connect.as_ref());
        let mut all: Vec<String> = self.connect.iter().chain(partners).cloned().collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    pub(crate) fn partner_setups(&self) -> Vec<PartnerSetup> {
        let setup = |partner: Arc<Self>| PartnerSetup {
            name: partner.partner.clone().unwrap_or_default(),
            connections: partner.connections,
        };
        self.each_sent_to().into_iter().map(setup).collect()
    }
}

fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// Tells partners that connect to us from each other.
pub(crate) struct Roster(Vec<(Vec<Answerer>, Arc<Settings>)>);

impl Roster {
    pub(crate) fn new(settings: &Settings) -> Self {
        let from = settings.partners.iter().filter(|partner| !partner.from.is_empty());
        Self(from.map(|partner| (partner.from.clone(), Arc::new(partner.settings(settings)))).collect())
    }

    /// What is set for whoever is there: by its certificate, if that names one, else by its address; of several the first.
    pub(crate) fn find(&self, peer: &Peer) -> Option<&Arc<Settings>> {
        let by = |is_kind: fn(&Answerer) -> bool| {
            let is_it = |from: &&(Vec<Answerer>, _)| from.0.iter().any(|from| is_kind(from) && from.is(peer));
            self.0.iter().find(is_it).map(|(_, settings)| settings)
        };
        by(|from| matches!(from, Answerer::Name(_)))
            .or_else(|| by(|from| matches!(from, Answerer::Network(_))))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings(partners: serde_json::Value) -> Settings {
        serde_json::from_value(json!({"partners": partners, "ack_timeout_ms": 7, "on_ack": {"AE": "retry"}}))
            .unwrap()
    }

    #[test]
    fn a_partner_has_what_it_sets_and_else_what_all_have() {
        let settings = settings(json!([
            {"name": "north", "connect": "north:2575", "ack_timeout_ms": 9, "charset": "8859/1"},
            {"name": "south", "connect": "south:2575", "connections": 1, "on_ack": {"preset": "strict"}}
        ]));
        assert!(settings.faults().is_empty());
        let [north, south] = &settings.each_sent_to()[..] else { panic!("two") };
        assert_eq!((north.ack_timeout_ms, south.ack_timeout_ms), (9, 7));
        assert_eq!((north.connections, south.connections), (4, 1));
        assert_eq!((north.on_ack.ae.is_some(), south.on_ack.ae.is_some()), (true, false));
        assert_eq!((north.charset.is_some(), south.charset.is_some()), (true, false));
        assert_eq!(north.idle_disconnect_ms, Some(IDLE_DISCONNECT_MS));
        assert_eq!(south.partner.as_deref(), Some("south"));
    }

    #[test]
    fn faults_name_the_partners_table() {
        let settings: Settings = serde_json::from_value(json!({"connect": "lab:1", "connections": 0, "partners": [
            {"name": "north", "connect": "north", "ack_timeout_ms": 0},
            {"name": "no th", "connect": "a:1", "tls": {"cert_file": "/a.pem"}, "receivers": [{"application": ""}]},
            {"name": "north", "connect": "a:2", "receivers": [{"application": "A", "facility": "B"}, {"application": "A"}]},
            {"name": "west", "connect": "a:3", "receivers": [{"application": "A", "facility": "B"}]}
        ]}))
        .unwrap();
        let faults: Vec<String> = settings.faults().iter().map(ToString::to_string).collect();
        for expected in [
            "connect: goes with one partner",
            "connections: must be from 1",
            "partners[1].ack_timeout_ms: must be from 1 to 600000 (partner `north`)",
            "partners[1].connect: must be host:port",
            "partners[2].name: must be letters",
            "partners[2].tls",
            "partners[2].receivers: application and facility must not be empty",
            "partners[3].name: partners[1] has that name too",
            "partners[4].receivers: partners[3] has the same receiver",
        ] {
            assert!(faults.iter().any(|fault| fault.starts_with(expected)), "{expected}: {faults:#?}");
        }
        assert_eq!(faults.len(), 9, "{faults:#?}");
    }
}
