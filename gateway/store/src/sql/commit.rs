//! The commit call: everything that one group of operations changes, in one call to SQLite.

use std::sync::LazyLock;

use crate::record::{Kind, Layout};

pub(crate) static MESSAGES: Layout = Layout {
    columns: &[
        ("seq", Kind::Int),
        ("id", Kind::Key),
        ("accepted_at", Kind::Int),
        ("sender_kind", Kind::Text),
        ("sender", Kind::Text),
        ("kind", Kind::Text),
        ("form", Kind::Int),
        ("size", Kind::Int),
        ("dedup", Kind::Key),
        ("subject", Kind::OptKey),
        ("key", Kind::OptKey),
        ("correlation", Kind::OptKey),
        ("attributes", Kind::Blob),
        ("salt", Kind::Blob),
        ("data", Kind::Blob),
    ],
};

pub(crate) static DEDUPS: Layout =
    Layout { columns: &[("key", Kind::Key), ("fingerprint", Kind::Key), ("message", Kind::Int)] };

pub(crate) static DELIVERIES_NEW: Layout = Layout {
    columns: &[
        ("pos", Kind::Int),
        ("id", Kind::Key),
        ("message", Kind::Int),
        ("queue", Kind::Int),
        ("lane", Kind::OptKey),
        ("state", Kind::Int),
        ("blocks", Kind::Int),
        ("due", Kind::OptInt),
        ("ready", Kind::OptInt),
        ("late", Kind::Int),
        ("attempts", Kind::Int),
        ("series", Kind::Int),
        ("crashes", Kind::Int),
        ("doubt", Kind::Int),
        ("suspect", Kind::Int),
        ("replayed", Kind::Int),
        ("reason", Kind::OptText),
        ("expires_at", Kind::OptInt),
        ("born", Kind::Int),
        ("idle_at_birth", Kind::Int),
        ("changed_at", Kind::Int),
        ("leaves", Kind::Blob),
    ],
};

pub(crate) static DELIVERIES_CHANGED: Layout = Layout {
    columns: &[
        ("pos", Kind::Int),
        ("was_state", Kind::Int),
        ("was_token", Kind::OptKey),
        ("lane", Kind::OptKey),
        ("state", Kind::Int),
        ("blocks", Kind::Int),
        ("due", Kind::OptInt),
        ("ready", Kind::OptInt),
        ("token", Kind::OptKey),
        ("until", Kind::OptInt),
        ("session", Kind::OptInt),
        ("batch", Kind::OptKey),
        ("late", Kind::Int),
        ("attempts", Kind::Int),
        ("series", Kind::Int),
        ("crashes", Kind::Int),
        ("doubt", Kind::Int),
        ("suspect", Kind::Int),
        ("replayed", Kind::Int),
        ("reason", Kind::OptText),
        ("born", Kind::Int),
        ("idle_at_birth", Kind::Int),
        ("changed_at", Kind::Int),
        ("settled_token", Kind::OptKey),
        ("settled_as", Kind::OptText),
        ("leaves", Kind::Blob),
    ],
};

pub(crate) static LANES: Layout = Layout {
    columns: &[("queue", Kind::Int), ("lane", Kind::Key), ("width", Kind::Int), ("session", Kind::Int)],
};

/// Lanes in which others than the first may be ready: those of a window.
pub(crate) static LANES_WIDE: Layout = Layout { columns: &[("queue", Kind::Int), ("lane", Kind::Key)] };

pub(crate) static LEAVES_NEW: Layout = Layout { columns: &[("idx", Kind::Int), ("bytes", Kind::Blob)] };

pub(crate) static DETAILS: Layout =
    Layout { columns: &[("leaf", Kind::Int), ("delivery", Kind::Int), ("body", Kind::Blob)] };

pub(crate) static REPLIES: Layout = Layout { columns: &[("delivery", Kind::Int), ("body", Kind::Blob)] };

pub(crate) static STATES: Layout =
    Layout { columns: &[("adapter", Kind::Text), ("key", Kind::Text), ("value", Kind::OptBlob)] };

pub(crate) static QUEUES: Layout = Layout {
    columns: &[
        ("id", Kind::Int),
        ("paused_since", Kind::OptInt),
        ("trip_since", Kind::OptInt),
        ("trip_reason", Kind::OptText),
        ("trip_failures", Kind::Int),
        ("trip_due", Kind::OptInt),
        ("idle_before", Kind::Int),
        ("idle_since", Kind::OptInt),
        ("session", Kind::Int),
        ("waiting", Kind::Int),
        ("leased", Kind::Int),
        ("sending", Kind::Int),
        ("sent", Kind::Int),
        ("in_doubt", Kind::Int),
        ("held", Kind::Int),
        ("dead", Kind::Int),
        ("suspects", Kind::Int),
        ("held_lanes", Kind::Int),
        ("bytes", Kind::Int),
    ],
};

/// Parameters of the commit call, in this order: heap; then records and count of each layout in the order of
/// `COMMIT_LAYOUTS`; then clock, leaf count before, leaf count after, width of the widest lane.
pub(crate) static COMMIT_LAYOUTS: [&Layout; 11] = [
    &MESSAGES,
    &DEDUPS,
    &DELIVERIES_NEW,
    &DELIVERIES_CHANGED,
    &LANES_WIDE,
    &LANES,
    &LEAVES_NEW,
    &DETAILS,
    &REPLIES,
    &STATES,
    &QUEUES,
];

const HEAP: u32 = 1;

/// Begins what [`COMMIT_OPEN`] ends.
pub(crate) const BEGIN: &str = "BEGIN IMMEDIATE";

/// The whole of a commit in one call.
pub(crate) static COMMIT: LazyLock<String> =
    LazyLock::new(|| format!("/* commit */ {BEGIN};\n{}", *COMMIT_OPEN));

/// The same for a transaction that is open already and has done something of its own.
pub(crate) static COMMIT_OPEN: LazyLock<String> = LazyLock::new(|| {
    let parameter = |layout: &'static Layout| {
        let position = COMMIT_LAYOUTS.iter().position(|other| std::ptr::eq(*other, layout)).unwrap_or(0);
        u32::try_from(position).unwrap_or(0) * 2 + 2
    };
    let with = |layout: &'static Layout| layout.with(parameter(layout), parameter(layout) + 1, HEAP);
    let expect = |count: String| format!("UPDATE guard SET ok = (changes() = {count})");
    let count_of = |layout: &'static Layout| format!("${}", parameter(layout) + 1);
    let insert = |table: &str, layout: &'static Layout, verb: &str| {
        format!(
            "{} {verb} INTO {table} ({names}) SELECT {names} FROM r",
            with(layout),
            names = layout.names()
        )
    };
    let clock = parameter(&QUEUES) + 2;
    let statements = [
        insert("message", &MESSAGES, "INSERT"),
        // A key whose window has passed may stand there still; the newer message takes it over.
        insert("dedup", &DEDUPS, "INSERT OR REPLACE"),
        insert("delivery", &DELIVERIES_NEW, "INSERT"),
        format!(
            "{} UPDATE delivery AS d SET {} FROM r WHERE d.pos = r.pos AND d.state = r.was_state AND d.token IS r.was_token",
            with(&DELIVERIES_CHANGED),
            DELIVERIES_CHANGED
                .columns
                .iter()
                .map(|(name, _)| *name)
                .filter(|name| !matches!(*name, "pos" | "was_state" | "was_token"))
                .map(|name| format!("{name} = r.{name}"))
                .collect::<Vec<_>>()
                .join(", ")
        ),
        expect(count_of(&DELIVERIES_CHANGED)),
        lane_clear(&with(&LANES_WIDE), clock + 3),
        lane_advance(&with(&LANES)),
        insert("leaf", &LEAVES_NEW, "INSERT"),
        insert("detail", &DETAILS, "INSERT"),
        insert("reply", &REPLIES, "INSERT OR REPLACE"),
        format!(
            "{} INSERT OR REPLACE INTO adapter_state (adapter, key, value) SELECT adapter, key, value FROM r WHERE value IS NOT NULL",
            with(&STATES)
        ),
        format!(
            "{} DELETE FROM adapter_state WHERE (adapter, key) IN (SELECT adapter, key FROM r WHERE value IS NULL)",
            with(&STATES)
        ),
        format!(
            "{} UPDATE queue AS q SET {} FROM r WHERE q.id = r.id",
            with(&QUEUES),
            QUEUES.columns[1..]
                .iter()
                .map(|(name, _)| format!("{name} = r.{name}"))
                .collect::<Vec<_>>()
                .join(", ")
        ),
        expect(count_of(&QUEUES)),
        format!(
            "UPDATE store SET clock = ${clock}, leaf_count = ${} WHERE leaf_count = ${}",
            clock + 2,
            clock + 1
        ),
        expect("1".to_owned()),
        "COMMIT".to_owned(),
    ];
    statements.join(";\n")
});

/// Takes back what was ready in a windowed lane: the one in front of it may have gone back since. Whatever was made ready
/// stands within the lane's width of its head, since deliveries only ever leave from before it. `$width` is that of the
/// widest lane.
fn lane_clear(with: &str, width: u32) -> String {
    format!(
        "{with} UPDATE delivery SET ready = NULL WHERE ready IS NOT NULL AND pos IN (SELECT d.pos FROM r CROSS JOIN delivery d \
         WHERE d.queue = r.queue AND d.lane = r.lane AND d.blocks = 1 AND d.pos <= coalesce((SELECT e.pos FROM delivery e \
         WHERE e.queue = r.queue AND e.lane = r.lane AND e.blocks = 1 ORDER BY e.pos LIMIT 1 OFFSET ${width} - 1), {}))",
        i64::MAX
    )
}

/// Makes the first delivery of each touched lane ready that is not leased, if fewer than the lane's width stand before
/// it, all leased to the queue's newest session. A dead or held one in front stays unready, and so does the rest of its lane.
fn lane_advance(with: &str) -> String {
    format!(
        "{with} UPDATE delivery SET ready = due WHERE due IS NOT NULL AND ready IS NULL AND state IN (0, 3) AND pos IN (\
         SELECT f.first FROM (SELECT r.queue, r.lane, r.width, r.session, (SELECT d.pos FROM delivery d WHERE d.queue = r.queue \
         AND d.lane = r.lane AND d.blocks = 1 AND d.state NOT IN (1, 2) ORDER BY d.pos LIMIT 1) AS first FROM r) f \
         WHERE f.first IS NOT NULL AND (SELECT count(*) + coalesce(sum(e.session IS NOT f.session), 0) * f.width \
         FROM delivery e WHERE e.queue = f.queue AND e.lane = f.lane AND e.blocks = 1 AND e.pos < f.first) < f.width)"
    )
}
