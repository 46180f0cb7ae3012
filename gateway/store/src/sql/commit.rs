//! The commit call: everything that one group of operations changes, in one call to SQLite.

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
        ("fingerprint", Kind::Key),
        ("subject", Kind::OptKey),
        ("key", Kind::OptKey),
        ("correlation", Kind::OptKey),
        ("attributes", Kind::Blob),
        ("salt", Kind::Blob),
        ("data", Kind::Blob),
    ],
};

/// Idempotency keys on their way from memory into their index.
pub(crate) static KEYS: Layout = Layout { columns: &[("key", Kind::Key), ("message", Kind::Int)] };

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
/// `COMMIT_LAYOUTS`; then clock, leaf count before, leaf count after, width of the widest lane, newest message whose key is
/// in its index.
pub(crate) static COMMIT_LAYOUTS: [&Layout; 11] = [
    &MESSAGES,
    &KEYS,
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
const CLOCK: u32 = COMMIT_LAYOUTS.len() as u32 * 2 + 2;
const LEAVES_BEFORE: u32 = CLOCK + 1;
const LEAVES_AFTER: u32 = CLOCK + 2;
const LANE_WIDTH: u32 = CLOCK + 3;
const KEYED: u32 = CLOCK + 4;

/// Begins what an open call ends.
pub(crate) const BEGIN: &str = "BEGIN IMMEDIATE";

/// Which statements a commit needs. Each is worth a wake-up of the caller, so a commit that changes one table does not name
/// them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    /// Bit `n`: there are records of `COMMIT_LAYOUTS[n]`.
    pub(crate) layouts: u16,
    /// Whether the keys of new messages are still to be looked up in their index.
    pub(crate) check_keys: bool,
    /// Whether the transaction is open already and has done something of its own.
    pub(crate) open: bool,
}

impl Shape {
    /// The text of the call. Every statement rolls the whole transaction back when it fails: without that SQLite would copy
    /// each page beside its journal first, to be able to take back the one statement.
    pub(crate) fn sql(self) -> String {
        let mut call = Call { shape: self, statements: Vec::with_capacity(20) };
        if !self.open {
            call.statements.push(format!("/* commit */ {BEGIN}"));
        }
        call.rows();
        call.standing();
        call.statements.push("COMMIT".to_owned());
        call.statements.join(";\n")
    }
}

struct Call {
    shape: Shape,
    statements: Vec<String>,
}

impl Call {
    /// The statement for records of `layout`, if there are any.
    fn with(&mut self, layout: &'static Layout, statement: impl FnOnce(&str) -> String) -> bool {
        let position = COMMIT_LAYOUTS.iter().position(|other| std::ptr::eq(*other, layout)).unwrap_or(0);
        if self.shape.layouts >> position & 1 == 0 {
            return false;
        }
        let (records, count) = parameters(position);
        self.statements.push(statement(&layout.with(records, count, HEAP)));
        true
    }

    fn insert(&mut self, table: &str, layout: &'static Layout, or: &str) {
        self.with(layout, |with| {
            format!(
                "{with} INSERT OR {or} INTO {table} ({names}) SELECT {names} FROM r",
                names = layout.names()
            )
        });
    }

    /// Fails the transaction unless the last statement changed as many rows as it had records.
    fn expect_all(&mut self, layout: &'static Layout) {
        let position = COMMIT_LAYOUTS.iter().position(|other| std::ptr::eq(*other, layout)).unwrap_or(0);
        self.expect(&format!("${}", parameters(position).1));
    }

    fn expect(&mut self, changes: &str) {
        self.statements.push(format!("UPDATE OR ROLLBACK store SET ok = (changes() = {changes})"));
    }

    /// What happened: messages, deliveries and what stands beside them.
    fn rows(&mut self) {
        if self.shape.check_keys {
            self.with(&MESSAGES, |with| {
                format!(
                    "{with} UPDATE OR ROLLBACK store SET ok = NOT EXISTS (SELECT 1 FROM r JOIN dedup d ON d.key = r.dedup)"
                )
            });
        }
        self.insert("message", &MESSAGES, "ROLLBACK");
        // A key whose window has passed may stand there still; the newer message takes it over.
        self.insert("dedup", &KEYS, "REPLACE");
        self.insert("delivery", &DELIVERIES_NEW, "ROLLBACK");
        let changed = self.with(&DELIVERIES_CHANGED, |with| {
            let set = set_all(&DELIVERIES_CHANGED, &["pos", "was_state", "was_token"]);
            format!(
                "{with} UPDATE OR ROLLBACK delivery AS d SET {set} FROM r WHERE d.pos = r.pos AND d.state = r.was_state \
                 AND d.token IS r.was_token"
            )
        });
        if changed {
            self.expect_all(&DELIVERIES_CHANGED);
        }
        self.with(&LANES_WIDE, lane_clear);
        self.with(&LANES, lane_advance);
        self.insert("leaf", &LEAVES_NEW, "ROLLBACK");
        self.insert("detail", &DETAILS, "ROLLBACK");
        self.insert("reply", &REPLIES, "REPLACE");
    }

    /// What stands: adapters' state, the queues, the store's own row.
    fn standing(&mut self) {
        self.with(&STATES, |with| {
            format!(
                "{with} INSERT OR REPLACE INTO adapter_state (adapter, key, value) SELECT adapter, key, value FROM r \
                 WHERE value IS NOT NULL"
            )
        });
        self.with(&STATES, |with| {
            format!(
                "{with} DELETE FROM adapter_state WHERE (adapter, key) IN (SELECT adapter, key FROM r WHERE value IS NULL)"
            )
        });
        let queues = self.with(&QUEUES, |with| {
            format!(
                "{with} UPDATE OR ROLLBACK queue AS q SET {} FROM r WHERE q.id = r.id",
                set_all(&QUEUES, &["id"])
            )
        });
        if queues {
            self.expect_all(&QUEUES);
        }
        self.statements.push(format!(
            "UPDATE OR ROLLBACK store SET clock = ${CLOCK}, leaf_count = ${LEAVES_AFTER}, keyed = ${KEYED} \
             WHERE leaf_count = ${LEAVES_BEFORE}"
        ));
        self.expect("1");
    }
}

/// Numbers of a layout's parameters: its records and their count.
fn parameters(position: usize) -> (u32, u32) {
    let first = u32::try_from(position).unwrap_or(0) * 2 + 2;
    (first, first + 1)
}

/// `name = r.name, …` for all columns but some.
fn set_all(layout: &Layout, but: &[&str]) -> String {
    let names = layout.columns.iter().map(|(name, _)| *name).filter(|name| !but.contains(name));
    names.map(|name| format!("{name} = r.{name}")).collect::<Vec<_>>().join(", ")
}

/// Takes back what was ready in a windowed lane: the one in front of it may have gone back since. Whatever was made ready
/// stands within the lane's width of its head, since deliveries only ever leave from before it.
fn lane_clear(with: &str) -> String {
    format!(
        "{with} UPDATE OR ROLLBACK delivery SET ready = NULL WHERE ready IS NOT NULL AND pos IN (SELECT d.pos FROM r CROSS JOIN delivery d \
         WHERE d.queue = r.queue AND d.lane = r.lane AND d.blocks = 1 AND d.pos <= coalesce((SELECT e.pos FROM delivery e \
         WHERE e.queue = r.queue AND e.lane = r.lane AND e.blocks = 1 ORDER BY e.pos LIMIT 1 OFFSET ${LANE_WIDTH} - 1), {}))",
        i64::MAX
    )
}

/// Makes the first delivery of each touched lane ready that is not leased, if fewer than the lane's width stand before
/// it, all leased to the queue's newest session. A dead or held one in front stays unready, and so does the rest of its lane.
fn lane_advance(with: &str) -> String {
    format!(
        "{with} UPDATE OR ROLLBACK delivery SET ready = due WHERE due IS NOT NULL AND ready IS NULL AND state IN (0, 3) AND pos IN (\
         SELECT f.first FROM (SELECT r.queue, r.lane, r.width, r.session, (SELECT d.pos FROM delivery d WHERE d.queue = r.queue \
         AND d.lane = r.lane AND d.blocks = 1 AND d.state NOT IN (1, 2) ORDER BY d.pos LIMIT 1) AS first FROM r) f \
         WHERE f.first IS NOT NULL AND (SELECT count(*) + coalesce(sum(e.session IS NOT f.session), 0) * f.width \
         FROM delivery e WHERE e.queue = f.queue AND e.lane = f.lane AND e.blocks = 1 AND e.pos < f.first) < f.width)"
    )
}
