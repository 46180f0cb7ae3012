//! From settings to what sessions work by: everything that can be wrong is told, with what to do about it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gatepost_adapter::tls::{ConnectTls, ListenTls, PeerName};
use gatepost_adapter::{Fault, Level, Network, element};

use super::{AfterResetSetting, QuerySetting, ResetOn, SessionSettings, Settings};
use crate::content::Keys;
use crate::engine::{AfterReset, AskFor, BUSINESS_IDS, Config, Credentials, Role};
use crate::event::Origin;
use crate::message::{SOH, Tag, tag};
use crate::room::{Room, SESSIONS_MAX};
use crate::schedule::{Schedule, ScheduleFault};
use crate::version::{ApplVerId, BeginString};

const NAME_CHARS_MAX: usize = 64;
const COMP_ID_BYTES_MAX: usize = 128;
const HEARTBEAT_S_MAX: u64 = 3600;
const TIMEOUT_MS_MAX: u64 = 600_000;
/// The gateway's own limit for late proof.
const CONFIRM_TIMEOUT_MS_MAX: u64 = 7 * 86_400_000;
const KEEP_MESSAGES_MAX: usize = 100_000;
const KEEP_MESSAGES_MIN: usize = 256;
/// Memory of messages that all sessions together keep behind gaps, and one of them, bytes.
const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;
const HELD_BYTES_PER_SESSION_MAX: usize = 16 * 1024 * 1024;
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
const PASSWORD_BYTES_MAX: usize = 256;

/// Where a session's connection comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Way {
    Connect { address: String, tls: Option<ConnectTls> },
    Listen(Entrance),
}

/// Where partners connect to, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entrance {
    pub(crate) address: String,
    pub(crate) tls: Option<ListenTls>,
    pub(crate) allow_from: Vec<Network>,
}

/// A session as it is to be kept.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) config: Arc<Config>,
    pub(crate) way: Way,
    pub(crate) origin: Origin,
    /// Names of certificates, of which whoever logs on must have one; none: whoever may connect may log on.
    pub(crate) partner_names: Vec<PeerName>,
    pub(crate) message_bytes_max: usize,
    pub(crate) enabled: bool,
}

/// Everything that the settings say, or everything that is wrong with it. `adapter` is its name, `confirm` what it counts as
/// delivered.
pub(crate) fn plans(settings: &Settings, adapter: &str, confirm: Level) -> Result<Vec<Plan>, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut plans = Vec::new();
    if settings.sessions.is_empty() {
        faults.push(Fault::new("sessions", "there is none, so there is nothing to do"));
    }
    if settings.sessions.len() > SESSIONS_MAX {
        faults.push(Fault::new("sessions", format!("{SESSIONS_MAX} at most; use more adapters")));
    }
    let (room, keep_bytes) = (Arc::new(Room::default()), Room::share(settings.sessions.len()));
    let held_bytes = (HELD_BYTES_MAX / settings.sessions.len().max(1)).min(HELD_BYTES_PER_SESSION_MAX);
    let mut names = BTreeSet::new();
    let mut between = BTreeMap::new();
    let mut entrances: BTreeMap<String, (usize, Entrance)> = BTreeMap::new();
    for (index, session) in settings.sessions.iter().enumerate() {
        let mut reader = Reader {
            prefix: element("sessions", index),
            room: Arc::clone(&room),
            keep_bytes,
            held_bytes,
            faults: Vec::new(),
        };
        if !names.insert(&session.name) {
            reader.fault("name", "stands twice; each session has its own");
        }
        if let Some(other) = between.insert(identity(session), index) {
            let message = format!(
                "the same BeginString, CompIDs, SubIDs and LocationIDs at the same address as {}",
                element("sessions", other)
            );
            reader.fault("target_comp_id", &message);
        }
        let plan = reader.plan(session, adapter, confirm);
        if let Some(Plan { way: Way::Listen(entrance), .. }) = &plan
            && let Some((other, first)) = entrances.get(&entrance.address)
        {
            if first != entrance {
                let message = format!(
                    "listens as {} does, with other `listen_tls` or `allow_from`",
                    element("sessions", *other)
                );
                reader.fault("listen", &message);
            }
        } else if let Some(Plan { way: Way::Listen(entrance), .. }) = &plan {
            entrances.insert(entrance.address.clone(), (index, entrance.clone()));
        }
        faults.append(&mut reader.faults);
        plans.extend(plan);
    }
    if faults.is_empty() { Ok(plans) } else { Err(faults) }
}

/// What tells a session from others, besides its name: where it is kept, and who speaks what with whom.
fn identity(session: &SessionSettings) -> impl Ord {
    (
        (&session.connect, &session.listen),
        (&session.begin_string, &session.sender_comp_id, &session.target_comp_id),
        (&session.sender_sub_id, &session.target_sub_id),
        (&session.sender_location_id, &session.target_location_id),
    )
}

/// The tag in the partner's messages whose value is that of this one in ours.
fn turned(tag: Tag) -> Tag {
    match tag {
        tag::SENDER_SUB_ID => tag::TARGET_SUB_ID,
        tag::TARGET_SUB_ID => tag::SENDER_SUB_ID,
        tag::SENDER_LOCATION_ID => tag::TARGET_LOCATION_ID,
        tag::TARGET_LOCATION_ID => tag::SENDER_LOCATION_ID,
        other => other,
    }
}

pub(super) struct Reader {
    prefix: String,
    room: Arc<Room>,
    keep_bytes: usize,
    held_bytes: usize,
    pub(super) faults: Vec<Fault>,
}

impl Reader {
    pub(super) fn fault(&mut self, key: &str, message: &str) {
        self.faults.push(Fault::new(format!("{}.{key}", self.prefix), message));
    }

    fn range(&mut self, key: &str, value: u64, lowest: u64, highest: u64) {
        if !(lowest..=highest).contains(&value) {
            self.fault(key, &format!("must be from {lowest} to {highest}"));
        }
    }

    fn plan(&mut self, session: &SessionSettings, adapter: &str, confirm: Level) -> Option<Plan> {
        let before = self.faults.len();
        self.names(session);
        self.ranges(session);
        let way = self.way(session);
        let begin_string = self.begin_string(session);
        let appl_ver_id = self.appl_ver_id(session, begin_string);
        let header = self.header(session, begin_string);
        let credentials = self.credentials(session, begin_string);
        let schedule = self.schedule(session);
        let reset_at = self.reset_at(session, begin_string);
        let validator = self.validator(session, begin_string, appl_ver_id);
        if session.next_expected_seq_num && begin_string.is_some_and(|version| version < BeginString::Fix44) {
            self.fault("next_expected_seq_num", "came with FIX.4.4; leave it out");
        }
        let asks_for_certificates =
            session.listen_tls.as_ref().is_some_and(|tls| !tls.client_ca_files.is_empty());
        if !session.partner_names.is_empty() && !asks_for_certificates {
            self.fault("partner_names", "goes with `listen_tls` that has `client_ca_files`");
        }
        if session.source.as_deref() == Some("") {
            self.fault("source", "must not be empty");
        }
        if self.faults.len() > before {
            return None;
        }
        let (way, begin_string, validator) = (way?, begin_string?, validator?);
        let millis = Duration::from_millis;
        let resets = |on| session.reset_on.contains(&on);
        let config = Config {
            name: session.name.clone(),
            role: if matches!(way, Way::Connect { .. }) { Role::Initiator } else { Role::Acceptor },
            begin_string,
            appl_ver_id,
            sender_comp_id: session.sender_comp_id.clone(),
            target_comp_id: session.target_comp_id.clone(),
            header_tags: header.iter().map(|(tag, _)| *tag).collect(),
            partner_header: header.iter().map(|(tag, value)| (turned(*tag), value.clone())).collect(),
            header,
            check_header: session.check_sub_ids,
            credentials,
            heartbeat: Duration::from_secs(session.heartbeat_s),
            logon_timeout: millis(session.logon_timeout_ms),
            logout_timeout: millis(session.logout_timeout_ms),
            latency_max: (session.latency_max_s > 0).then(|| Duration::from_secs(session.latency_max_s)),
            reset_on_logon: resets(ResetOn::Logon),
            reset_on_logout: resets(ResetOn::Logout),
            reset_on_disconnect: resets(ResetOn::Disconnect),
            reset_at,
            next_expected: session.next_expected_seq_num,
            last_processed: session.last_seq_num_processed,
            resend_chunk: session.resend_chunk,
            keep: session.keep_messages,
            keep_bytes: self.keep_bytes,
            room: Arc::clone(&self.room),
            held_bytes: self.held_bytes,
            unconfirmed_max: session.keep_messages,
            confirm,
            confirm_within: millis(session.confirm_timeout_ms),
            after_reset: match session.after_reset {
                AfterResetSetting::PossResend => AfterReset::Resend,
                AfterResetSetting::Doubt => AfterReset::Doubt,
            },
            business_ids: session.business_ids.clone().unwrap_or_else(|| BUSINESS_IDS.to_vec()),
            ask_for: match session.query {
                QuerySetting::Session => AskFor::Proof,
                QuerySetting::OrderStatus => AskFor::OrderStatus,
            },
            schedule,
            validator,
        };
        let source = session.source.clone();
        Some(Plan {
            config: Arc::new(config),
            way,
            origin: Origin {
                source: source.unwrap_or_else(|| format!("/adapters/{adapter}/{}", session.name)),
                session: session.name.clone(),
                keys: Keys {
                    subject: (session.subject > 0).then_some(session.subject),
                    partition_key: session.partition_key,
                },
            },
            partner_names: session.partner_names.clone(),
            message_bytes_max: session.max_message_bytes,
            enabled: session.enabled,
        })
    }

    fn names(&mut self, session: &SessionSettings) {
        let fits = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_');
        if !(1..=NAME_CHARS_MAX).contains(&session.name.len()) || !session.name.chars().all(fits) {
            self.fault("name", "must be 1 to 64 letters, digits, `-` and `_`");
        }
        let optional = [
            ("sender_sub_id", &session.sender_sub_id),
            ("target_sub_id", &session.target_sub_id),
            ("sender_location_id", &session.sender_location_id),
            ("target_location_id", &session.target_location_id),
            ("username", &session.username),
        ];
        let given = optional.into_iter().filter_map(|(key, value)| Some((key, value.as_deref()?)));
        let ids =
            [("sender_comp_id", &*session.sender_comp_id), ("target_comp_id", &*session.target_comp_id)];
        for (key, value) in ids.into_iter().chain(given) {
            let is_clean = !value.bytes().any(|byte| byte == SOH || byte.is_ascii_control());
            if !(1..=COMP_ID_BYTES_MAX).contains(&value.len()) || !is_clean {
                self.fault(key, "must be 1 to 128 bytes without control characters");
            }
        }
    }

    fn ranges(&mut self, session: &SessionSettings) {
        self.range("heartbeat_s", session.heartbeat_s, 0, HEARTBEAT_S_MAX);
        self.range("logon_timeout_ms", session.logon_timeout_ms, 1, TIMEOUT_MS_MAX);
        self.range("logout_timeout_ms", session.logout_timeout_ms, 1, TIMEOUT_MS_MAX);
        self.range("confirm_timeout_ms", session.confirm_timeout_ms, 1, CONFIRM_TIMEOUT_MS_MAX);
        let keep = session.keep_messages as u64;
        self.range("keep_messages", keep, KEEP_MESSAGES_MIN as u64, KEEP_MESSAGES_MAX as u64);
        self.range("max_message_bytes", session.max_message_bytes as u64, 256, MESSAGE_BYTES_MAX as u64);
    }

    fn way(&mut self, session: &SessionSettings) -> Option<Way> {
        match (&session.connect, &session.listen) {
            (Some(to), None) => {
                let fits = to.rsplit_once(':').is_some_and(|(host, port)| {
                    !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
                });
                if !fits {
                    self.fault("connect", "must be host:port, like fix.example.org:9876");
                }
                if let Some(tls) = &session.tls {
                    self.faults.extend(tls.faults(&format!("{}.tls", self.prefix), to));
                }
                if session.listen_tls.is_some() || session.allow_from.is_some() {
                    self.fault("listen_tls", "goes with `listen`, like `allow_from`; `connect` has `tls`");
                }
                Some(Way::Connect { address: to.clone(), tls: session.tls.clone() })
            }
            (None, Some(at)) => {
                if at.parse::<SocketAddr>().is_err() {
                    self.fault("listen", "must be address:port, like 127.0.0.1:9876");
                }
                if session.tls.is_some() {
                    self.fault("tls", "goes with `connect`; `listen` has `listen_tls`");
                }
                if let Some(tls) = &session.listen_tls {
                    self.faults.extend(tls.faults(&format!("{}.listen_tls", self.prefix)));
                }
                let allow_from = session.allow_from.clone().unwrap_or_else(Network::loopback);
                Some(Way::Listen(Entrance {
                    address: at.clone(),
                    tls: session.listen_tls.clone(),
                    allow_from,
                }))
            }
            (None, None) => {
                self.fault("connect", "set `connect` (this side connects) or `listen` (the partner does)");
                None
            }
            (Some(_), Some(_)) => {
                self.fault("listen", "one of `connect` and `listen`: a session has one side that connects");
                None
            }
        }
    }

    fn begin_string(&mut self, session: &SessionSettings) -> Option<BeginString> {
        let version = BeginString::parse(session.begin_string.as_bytes());
        if version.is_none() {
            self.fault("begin_string", "must be FIX.4.0, FIX.4.1, FIX.4.2, FIX.4.3, FIX.4.4 or FIXT.1.1");
        }
        version
    }

    fn appl_ver_id(&mut self, session: &SessionSettings, version: Option<BeginString>) -> Option<ApplVerId> {
        let is_fixt = version == Some(BeginString::Fixt11);
        match &session.default_appl_ver {
            None => {
                if is_fixt {
                    self.fault("default_appl_ver", "goes with FIXT.1.1, like \"FIX.5.0SP2\"");
                }
                None
            }
            Some(name) => {
                let appl_ver_id = ApplVerId::from_name(name);
                if appl_ver_id.is_none() {
                    self.fault(
                        "default_appl_ver",
                        "must be a version like FIX.5.0, FIX.5.0SP1 or FIX.5.0SP2",
                    );
                } else if version.is_some() && !is_fixt {
                    self.fault("default_appl_ver", "goes with `begin_string = \"FIXT.1.1\"` only");
                }
                appl_ver_id
            }
        }
    }

    fn header(&mut self, session: &SessionSettings, version: Option<BeginString>) -> Vec<(Tag, String)> {
        let locations = [
            ("sender_location_id", &session.sender_location_id),
            ("target_location_id", &session.target_location_id),
        ];
        for (key, _) in locations.into_iter().filter(|(_, value)| value.is_some()) {
            if version == Some(BeginString::Fix40) {
                self.fault(key, "came with FIX.4.1; leave it out");
            }
        }
        let fields = [
            (tag::SENDER_SUB_ID, &session.sender_sub_id),
            (tag::TARGET_SUB_ID, &session.target_sub_id),
            (tag::SENDER_LOCATION_ID, &session.sender_location_id),
            (tag::TARGET_LOCATION_ID, &session.target_location_id),
        ];
        fields.into_iter().filter_map(|(tag, value)| Some((tag, value.clone()?))).collect()
    }

    fn credentials(
        &mut self,
        session: &SessionSettings,
        version: Option<BeginString>,
    ) -> Option<Credentials> {
        match (&session.username, &session.password_file) {
            (None, None) => None,
            (Some(username), Some(file)) => {
                if version.is_some_and(|version| version < BeginString::Fix43) {
                    self.fault("username", "came with FIX.4.3; leave it out");
                }
                let password = self.password(file)?;
                Some(Credentials { username: username.clone(), password })
            }
            (Some(_), None) | (None, Some(_)) => {
                self.fault("username", "goes with `password_file`; set both or neither");
                None
            }
        }
    }

    fn password(&mut self, file: &Path) -> Option<String> {
        match std::fs::read_to_string(file) {
            Ok(text) => {
                let password = text.trim_end_matches(['\r', '\n']);
                if (1..=PASSWORD_BYTES_MAX).contains(&password.len())
                    && !password.chars().any(char::is_control)
                {
                    return Some(password.to_owned());
                }
                self.fault("password_file", "must hold one line of 1 to 256 bytes");
            }
            Err(error) => self.fault("password_file", &format!("cannot be read: {}", error.kind())),
        }
        None
    }

    fn schedule(&mut self, session: &SessionSettings) -> Option<Schedule> {
        let read = Schedule::try_from(session.schedule.as_ref()?);
        read.map_err(|faults| self.schedule_faults("schedule", &faults)).ok()
    }

    fn reset_at(&mut self, session: &SessionSettings, version: Option<BeginString>) -> Option<Schedule> {
        let moments = session.reset_at.as_ref()?;
        if version == Some(BeginString::Fix40) {
            self.fault("reset_at", "needs ResetSeqNumFlag (141), which came with FIX.4.1; leave it out");
        }
        moments.windows().map_err(|faults| self.schedule_faults("reset_at", &faults)).ok()
    }

    fn schedule_faults(&mut self, key: &str, faults: &[ScheduleFault]) {
        for fault in faults {
            self.fault(&format!("{key}.{}", fault.key), &fault.message);
        }
    }
}
