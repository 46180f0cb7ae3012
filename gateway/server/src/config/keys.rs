//! The table of every key that `gatepost.toml` may have. It drives the check of the file's shape and the JSON Schema, so that
//! the two cannot differ.

use gatepost_core::principal::OperatorRight;
use gatepost_core::{Level, OnDead, OnDoubt, Order};

use super::{limits, resources, units};

/// One key of a table.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) need: Need,
    /// For the schema; says the default where there is one.
    pub(super) help: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    Required,
    Optional,
}

/// What a key's value must look like before its meaning is asked.
#[derive(Clone, Copy)]
pub(super) enum Shape {
    /// A string, not empty; in the schema with a pattern.
    Text(Option<&'static str>),
    /// Strings, none of them empty.
    Texts,
    /// A string, or an array of strings that is not empty.
    Argv,
    Truth,
    Duration,
    Size,
    Count {
        min: u64,
        max: u64,
    },
    /// Processors, a number with at most two decimals.
    Cpus,
    Choice(&'static [&'static str]),
    /// One or more of them.
    Choices(&'static [&'static str]),
    Table(Groups),
    /// `[[key]]`
    Tables(Groups),
    /// `[key.NAME]`
    Named(Groups),
    /// A table of the adapter's own.
    Free,
}

/// The keys of a table, as groups that several tables share.
pub(super) type Groups = &'static [&'static [Key]];

/// Longest name of a principal, adapter, inbox or route.
pub(super) const NAME_CHARS_MAX: usize = 64;
pub(super) const NAME_PATTERN: &str = "^[a-z0-9_-]{1,64}$";

pub(super) const SERVES: &[&str] = &["apps", "operators", "adapters"];
pub(super) const NODES: &[&str] = &["one", "each"];
pub(super) const SANDBOX: &[&str] = &["strict", "standard", "minimal", "off"];

/// Largest `max_connections`.
const CONNECTIONS_MAX: u64 = 65_536;
/// Largest `max_in_flight` and `window`, deliveries.
const IN_FLIGHT_MAX: u64 = 100_000;
/// Largest `limits.requests`: what every principal may have.
const REQUESTS_MAX: u64 = 1024;
/// Largest `retry.attempts`.
const ATTEMPTS_MAX: u64 = 1_000_000;

const fn key(name: &'static str, shape: Shape, help: &'static str) -> Key {
    Key { name, shape, need: Need::Optional, help }
}

const fn required(name: &'static str, shape: Shape, help: &'static str) -> Key {
    Key { name, shape, need: Need::Required, help }
}

const PLAIN: Shape = Shape::Text(None);

pub(super) const ROOT: Groups = &[&[
    key("gateway", Shape::Table(GATEWAY), "The gateway itself."),
    key("store", Shape::Table(STORE), "Where messages are kept; SQLite in `data_dir` unless said otherwise."),
    key("encryption", Shape::Table(ENCRYPTION), "How messages are encrypted where they are kept."),
    key("listen", Shape::Tables(LISTEN), "A socket and which kind of principal it serves."),
    key("apps", Shape::Named(APP), "Applications that send messages and read inboxes."),
    key("operators", Shape::Named(OPERATOR), "People and programs that look after the gateway."),
    key(
        "adapters",
        Shape::Named(ADAPTER),
        "Processes that speak a partner's protocol; each is a destination.",
    ),
    key("inboxes", Shape::Named(INBOX), "Queues that apps read from; each is a destination."),
    key(
        "routes",
        Shape::Tables(ROUTE),
        "Which messages go to which destinations; every matching route applies.",
    ),
]];

const GATEWAY: Groups = &[&[
    key(
        "name",
        Shape::Text(Some("^[A-Za-z0-9._-]{1,64}$")),
        "Name of this gateway and origin of its audit log. Default: the host's name.",
    ),
    key(
        "node",
        Shape::Text(Some("^[A-Za-z0-9._-]{1,64}$")),
        "Name of this node among several on one PostgreSQL. Default: the host's name.",
    ),
    key(
        "user",
        PLAIN,
        "User that the gateway becomes when it is started as root, by name or number; one that nobody and nothing else uses. Default: \
         whoever starts it.",
    ),
    key("data_dir", PLAIN, "Directory of the store, the keys and the audit log. Default: /var/lib/gatepost."),
    key("max_message", Shape::Size, "Largest payload of a message, at most 64MiB. Default: 64MiB."),
    key(
        "dedup_window",
        Shape::Duration,
        "How long idempotency keys are remembered; at least the largest `give_up_after`. Default: 8d.",
    ),
    key(
        "retention",
        Shape::Duration,
        "Age at which settled messages are purged; the audit log stays. Default: 30d.",
    ),
    key(
        "max_connections",
        Shape::Count { min: 1, max: CONNECTIONS_MAX },
        "Most connections open at a time on one listener; 4 times as many on all of them, and 256 (never more than half of this) of \
         one user or address. Default: 1024.",
    ),
]];

const STORE: Groups = &[&[key(
    "postgres",
    Shape::Table(POSTGRES),
    "A PostgreSQL database that several nodes share. Keys and the audit log's files stay in `data_dir`.",
)]];

const POSTGRES: Groups = &[&[
    required(
        "url_file",
        PLAIN,
        "File that holds the database's address: `postgres://USER:PASSWORD@HOST/DATABASE?sslmode=verify-full&sslrootcert=FILE`.",
    ),
    key(
        "experimental",
        Shape::Truth,
        "Try an engine that only resembles PostgreSQL: nothing that the gateway promises is tested on it. Default: false.",
    ),
]];

const ENCRYPTION: Groups = &[&[
    key(
        "at_rest",
        Shape::Truth,
        "Whether what is stored from now on is encrypted; what is stored already can be read either way. Default: true.",
    ),
    key(
        "keys",
        PLAIN,
        "Directory of the seal keys, `seal-N.key`; or `credentials`: those that systemd gives the service. Default: `keys` in `data_dir`.",
    ),
]];

const LISTEN: Groups = &[&[
    required("serves", Shape::Choice(SERVES), "Who connects here: apps, operators or external adapters."),
    key("unix", PLAIN, "Path of a Unix socket. Either this or `tcp`."),
    key(
        "mode",
        Shape::Text(Some("^0?[0-7]{3}$")),
        "Permissions of the Unix socket, never writable by everybody. Default: 0600, with `group` 0660.",
    ),
    key("group", PLAIN, "Group that the Unix socket belongs to."),
    key("tcp", PLAIN, "IP address and port; needs `tls`."),
    key("tls", Shape::Table(TLS), "Files for TLS 1.3 with client certificates."),
]];

const TLS: Groups = &[&[
    required("cert", PLAIN, "PEM file of the server's certificate chain."),
    required("key", PLAIN, "PEM file of the server's private key."),
    required("client_ca", PLAIN, "PEM file of the authorities that sign client certificates."),
    key(
        "crl",
        Shape::Argv,
        "PEM file of the authorities' revocation lists, or an array of files. With it, a certificate is refused if it is revoked, if \
         its standing is unknown, or if the list has expired. Default: none, nothing is revoked.",
    ),
]];

const SELECTOR: &[Key] = &[
    key("user", PLAIN, "User that the peer's process runs as (name or number)."),
    key(
        "group",
        PLAIN,
        "Group that the peer's process is in (name or number). With `user`, both must match.",
    ),
    key("spiffe", Shape::Text(Some("^spiffe://[^/?#]+/")), "SPIFFE id in the peer's client certificate."),
    key(
        "exe",
        Shape::Text(Some("^/")),
        "Absolute path of the program that the peer's process runs; only together with `user`. The gateway must be allowed to see it: \
         as root, as the same user, or with CAP_SYS_PTRACE.",
    ),
    key("unit", PLAIN, "systemd unit that the peer's process belongs to, such as \"ehr.service\"."),
    key(
        "cgroup",
        Shape::Text(Some("^/.")),
        "Control group that the peer's process is in, or in one below it.",
    ),
    key(
        "token_sha256",
        Shape::Text(Some("^[0-9a-fA-F]{64}$")),
        "SHA-256 of a bearer token, hex; tells principals with equal selectors apart.",
    ),
];

const SEND: &[Key] = &[key(
    "send",
    Shape::Texts,
    "CloudEvents types it may send; `*` at the end stands for any rest. Default: none.",
)];

const LIMITS: Groups = &[&[
    key(
        "rate",
        Shape::Text(Some(limits::RATE_PATTERN)),
        "Messages that it may hand in, such as \"100/s\" or \"6000/m\". Default: no limit.",
    ),
    key(
        "burst",
        Shape::Count { min: 1, max: IN_FLIGHT_MAX },
        "Messages that it may hand in at once after a pause. Default: what `rate` is in a second.",
    ),
    key(
        "request_rate",
        Shape::Text(Some(limits::RATE_PATTERN)),
        "Requests of any kind that it may make, such as \"500/s\"; what it may in a second also at once. Default: no limit.",
    ),
    key(
        "bytes_in_flight",
        Shape::Size,
        "Bodies of its requests that are not answered yet. Default: no limit.",
    ),
    key("requests", Shape::Count { min: 1, max: REQUESTS_MAX }, "Its open requests. Default: 1024."),
    key(
        "connections",
        Shape::Count { min: 1, max: CONNECTIONS_MAX },
        "Its open connections. Default: those of its user or address.",
    ),
    key(
        "backlog",
        Shape::Table(BACKLOG),
        "What it has handed in and is not settled; a message counts for each of its destinations. Default: no limit.",
    ),
]];

const LIMITED: &[Key] = &[key("limits", Shape::Table(LIMITS), "What it may take at a time.")];

const APP: Groups = &[
    SELECTOR,
    SEND,
    LIMITED,
    &[
        key(
            "token",
            Shape::Truth,
            "Each request must bring a token that `gatepost token create` made for this app, besides what the selector asks for. \
             Default: false.",
        ),
        key("inbox", Shape::Texts, "Inboxes it may read. Default: none."),
    ],
];

const OPERATOR: Groups =
    &[SELECTOR, &[required("can", Shape::Choices(OperatorRight::NAMES), "What it may do.")]];

/// What adapters and inboxes have in common.
const QUEUE: &[Key] = &[
    key("order", Shape::Choice(Order::NAMES), "Which deliveries wait for each other. Default: none."),
    key(
        "on_doubt",
        Shape::Choice(OnDoubt::NAMES),
        "What follows when it is unknown whether a message arrived. Default: resend.",
    ),
    key("on_dead", Shape::Choice(OnDead::NAMES), "What a dead letter does to its lane. Default: continue."),
    key("retry", Shape::Table(RETRY), "When to try again, and when to give up."),
    key(
        "window",
        Shape::Count { min: 1, max: IN_FLIGHT_MAX },
        "Most consecutive deliveries of one lane in flight; more than 1 needs an order. Default: 1.",
    ),
    key(
        "max_in_flight",
        Shape::Count { min: 1, max: IN_FLIGHT_MAX },
        "Most deliveries leased at a time. Default: 256.",
    ),
    key("max_backlog", Shape::Table(BACKLOG), "Beyond this, messages for it are refused. Default: no limit."),
];

const RETRY: Groups = &[&[
    key("initial", Shape::Duration, "Pause after the first failure; it doubles each time. Default: 1s."),
    key("max", Shape::Duration, "Longest pause. Default: 5m."),
    key(
        "attempts",
        Shape::Count { min: 1, max: ATTEMPTS_MAX },
        "Failures after which a delivery is dead. Default: 20.",
    ),
    key("give_up_after", Shape::Duration, "Age at which a delivery is dead. Default: 7d."),
]];

const BACKLOG: Groups = &[&[
    key("messages", Shape::Count { min: 1, max: units::SIZE_BYTES_MAX }, "Messages not yet settled."),
    key("bytes", Shape::Size, "Their payloads together."),
]];

const ADAPTER: Groups = &[
    &[key(
        "run",
        Shape::Argv,
        "Program that the gateway starts, or an array of program and arguments; without it the adapter is external.",
    )],
    SELECTOR,
    SEND,
    LIMITED,
    QUEUE,
    &[
        key(
            "confirm",
            Shape::Choice(Level::NAMES),
            "Weakest evidence that counts as delivered. Default: transport.",
        ),
        key("nodes", Shape::Choice(NODES), "On how many nodes of several it runs. Default: one."),
        key(
            "sandbox",
            Shape::Choice(SANDBOX),
            "How much is taken from its process before its program starts; `off` only with `serve --insecure-dev`. Default: standard.",
        ),
        key(
            "run_as",
            PLAIN,
            "User (name or number) that its process runs as; needs a gateway started as root.",
        ),
        key("allow", Shape::Table(ALLOW), "What its process may reach beyond what its settings imply."),
        key(
            "settings",
            Shape::Free,
            "The adapter's own settings, checked by the adapter. No secrets: name files.",
        ),
    ],
];

const ALLOW: Groups = &[&[
    key("connect", Shape::Texts, "Partners, each `host:port`; `*` is any. Default: none."),
    key("bind", Shape::Texts, "Where it may listen, each `address:port`. Default: nowhere."),
    key("read", Shape::Texts, "Files and directories that it may read. Default: none."),
    key(
        "write",
        Shape::Texts,
        "Files and directories that it may read and write, never execute. Default: none.",
    ),
    key(
        "memory",
        Shape::Size,
        "Memory of all its processes together; beyond it the kernel kills them. At least 16MiB. Default: 2GiB.",
    ),
    key(
        "processes",
        Shape::Count { min: 1, max: resources::PROCESSES_MAX },
        "Its processes and threads. Default: 512.",
    ),
    key("cpus", Shape::Cpus, "Processors that it may keep busy, with at most two decimals. Default: all."),
    key(
        "direct",
        Shape::Truth,
        "Whether it connects by itself, so that ports are enforced and hosts are not. Default: what its program says; for one that \
         does not say, true, and false at the strict level.",
    ),
]];

const INBOX: Groups = &[QUEUE];

const ROUTE: Groups = &[&[
    key("name", Shape::Text(Some(NAME_PATTERN)), "Name in errors. Default: routes[N], counted from 1."),
    required("from", PLAIN, "App or adapter whose messages it takes."),
    key(
        "when",
        PLAIN,
        "CEL condition over the attributes (and JSON data). Without it the route always matches.",
    ),
    required("to", Shape::Texts, "Adapters and inboxes that get the message."),
]];

/// The key called `name` in a table of these groups.
pub(super) fn find(groups: Groups, name: &str) -> Option<&'static Key> {
    all(groups).find(|key| key.name == name)
}

pub(super) fn all(groups: Groups) -> impl Iterator<Item = &'static Key> + Clone {
    groups.iter().copied().flatten()
}
