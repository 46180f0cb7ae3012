//! Who is ready in the lanes that a turn has touched.
//!
//! In most of them only one thing has happened, and then the turn's own statement can tell. It sees the tables as they were before it.

use std::collections::HashMap;

use super::super::connection::Connection;
use super::super::row::bucket_of_lane;
use super::super::{Owned, sql};
use super::script::Script;
use super::{count, place_in_lane, queue_id, whole};
use crate::backend::CommitError;
use crate::seal::Index;
use crate::writer::{Touched, Turn};

/// The first of a lane is ready when nobody stood there before.
const FIRST: &str = "first AS (INSERT INTO ready (queue, bucket, due, pos, suspect) SELECT l.queue, l.bucket, ?::bigint, f.base + l.pos, false \
     FROM valid f, (SELECT unnest(?::int[]) AS queue, unnest(?::bytea[]) AS lane, unnest(?::smallint[]) AS bucket, \
     unnest(?::bigint[]) AS pos) l WHERE NOT EXISTS (SELECT 1 FROM lane m WHERE m.queue = l.queue AND m.lane = l.lane))";
/// The first of a lane without the one that leaves it. One that is dead and holds its lane stays unready.
const BEHIND: &str = "behind AS (INSERT INTO ready (queue, bucket, due, pos, suspect) SELECT l.queue, l.bucket, d.due, d.pos, d.suspect \
     FROM (SELECT unnest(?::int[]) AS queue, unnest(?::bytea[]) AS lane, unnest(?::smallint[]) AS bucket, unnest(?::bigint[]) AS leaves) l \
     CROSS JOIN LATERAL (SELECT pos FROM lane m WHERE m.queue = l.queue AND m.lane = l.lane AND m.pos <> l.leaves ORDER BY pos LIMIT 1) h \
     CROSS JOIN LATERAL (SELECT pos, due, suspect, state FROM delivery WHERE pos = h.pos LIMIT 1) d \
     WHERE d.due IS NOT NULL AND d.state IN (0, 3) ON CONFLICT DO NOTHING)";
/// Notes for those who own the lanes.
const NOTES: &str = "notes AS (INSERT INTO lane_changed (queue, bucket, lane) SELECT unnest(?::int[]), unnest(?::smallint[]), \
     unnest(?::bytea[]) ON CONFLICT DO NOTHING)";
#[cfg(test)]
pub(super) const PARTS: [&str; 3] = [FIRST, BEHIND, NOTES];

/// A queue's lane.
type Name = (i64, Index);

/// What has happened to the lanes of a turn, where the turn's own statement can bring them in line.
#[derive(Default)]
pub(in crate::postgres) struct Simple<'t> {
    /// Lanes into which messages were accepted, with the first of them.
    entered: Vec<(&'t Name, i64)>,
    /// Lanes that one delivery leaves, which nothing else has happened to.
    left: Vec<(&'t Name, i64)>,
    /// Lanes that others own.
    others: Vec<&'t Name>,
}

impl<'t> Simple<'t> {
    /// `None` if there is more to it: lanes of which several may be leased at once, or to which several things have happened.
    pub(super) fn of(turn: &'t Turn<'_>, owned: &Owned) -> Option<Self> {
        let mut simple = Self::default();
        if turn.lanes.is_empty() {
            return Some(simple);
        }
        let mut touched: HashMap<Name, Vec<&Touched>> = HashMap::new();
        for one in turn.touched.values() {
            if one.was.lane != one.now.lane || one.was.queue != one.now.queue {
                return None;
            }
            if let Some(lane) = one.was.lane {
                touched.entry((one.was.queue, lane)).or_default().push(one);
            }
        }
        let mut first: HashMap<Name, i64> = HashMap::new();
        for row in &turn.new_rows {
            if let Some((queue, lane)) = place_in_lane(row) {
                first.entry((queue, lane)).or_insert(row.pos);
            }
        }
        for lane in &turn.lanes {
            if !is_owned(owned, lane) {
                simple.others.push(lane);
                continue;
            }
            let width = turn.queue(lane.0).map_or(1, |queue| queue.setup.policy.window);
            if width.max(turn.width_before) > 1 {
                return None;
            }
            match (touched.get(lane).map(Vec::as_slice), first.get(lane)) {
                (None, Some(pos)) => simple.entered.push((lane, *pos)),
                (Some([one]), None)
                    if place_in_lane(&one.was).is_some() && place_in_lane(&one.now).is_none() =>
                {
                    simple.left.push((lane, one.was.pos));
                }
                (Some(all), None) if all.iter().all(|one| stays_leased(one)) => {}
                _ => return None,
            }
        }
        // In one order for every node: two that leave the same notes would wait for each other.
        simple.others.sort_unstable();
        Some(simple)
    }

    pub(super) fn write(&self, script: &mut Script, turn: &Turn<'_>) {
        let queues =
            |lanes: &[(&Name, i64)]| lanes.iter().map(|(lane, _)| queue_id(lane.0)).collect::<Vec<i32>>();
        let buckets = |lanes: &[(&Name, i64)]| {
            lanes.iter().map(|(lane, _)| bucket_of_lane(&lane.1)).collect::<Vec<i16>>()
        };
        let positions = |lanes: &[(&Name, i64)]| lanes.iter().map(|(_, pos)| *pos).collect::<Vec<i64>>();
        fn names<'n>(lanes: &[(&'n Name, i64)]) -> Vec<&'n [u8]> {
            lanes.iter().map(|(lane, _)| lane.1.as_slice()).collect()
        }
        if !self.entered.is_empty() {
            let lanes = &self.entered;
            let values = script.part(FIRST).bind(turn.now.as_micros()).bind(queues(lanes)).bind(names(lanes));
            values.bind(buckets(lanes)).bind(positions(lanes));
        }
        if !self.left.is_empty() {
            let lanes = &self.left;
            let values = script.part(BEHIND).bind(queues(lanes)).bind(names(lanes));
            values.bind(buckets(lanes)).bind(positions(lanes));
        }
        if !self.others.is_empty() {
            script
                .part(NOTES)
                .bind(self.others.iter().map(|lane| queue_id(lane.0)).collect::<Vec<i32>>())
                .bind(self.others.iter().map(|lane| bucket_of_lane(&lane.1)).collect::<Vec<i16>>())
                .bind(self.others.iter().map(|lane| lane.1.as_slice()).collect::<Vec<&[u8]>>());
        }
    }
}

/// Whether it stands at the front of its lane still, and is not ready.
fn stays_leased(touched: &Touched) -> bool {
    place_in_lane(&touched.was) == place_in_lane(&touched.now) && touched.now.delivery.lease().is_some()
}

fn is_owned(owned: &Owned, (queue, lane): &Name) -> bool {
    owned.get(queue).is_some_and(|buckets| buckets.has(bucket_of_lane(lane)))
}

/// A lane that a turn has touched.
pub(in crate::postgres) struct Lane<'l> {
    pub(in crate::postgres) queue: i64,
    pub(in crate::postgres) name: &'l Index,
    /// As wide as its queue's window is now, and as it may have been.
    pub(in crate::postgres) width: u32,
    pub(in crate::postgres) widest: u32,
    pub(in crate::postgres) session: u64,
}

/// Brings what is ready in the touched lanes in line with who stands in them now: where this node owns the bucket. Elsewhere
/// the owner is told, in this very commit: it decides alone, so that two nodes never overlook each other's rows.
pub(super) fn bring_in_line(
    connection: &mut Connection,
    turn: &Turn<'_>,
    owned: &Owned,
) -> Result<(), CommitError> {
    let mut touched: Vec<&(i64, Index)> = turn.lanes.iter().collect();
    touched.sort_unstable();
    type Lanes<'t> = Vec<&'t (i64, Index)>;
    let (owned, others): (Lanes<'_>, Lanes<'_>) = touched.into_iter().partition(|lane| is_owned(owned, lane));
    if !others.is_empty() {
        let statement = sqlx::query(sql::LANES_CHANGED_ADD)
            .bind(others.iter().map(|(queue, _)| queue_id(*queue)).collect::<Vec<i32>>())
            .bind(others.iter().map(|(_, lane)| bucket_of_lane(lane)).collect::<Vec<i16>>())
            .bind(others.iter().map(|(_, lane)| lane.as_slice()).collect::<Vec<&[u8]>>());
        connection.execute(statement)?;
    }
    let lanes = owned.into_iter().map(|(queue, name)| {
        let of = turn.queue(*queue).ok();
        let width = of.map_or(1, |of| of.setup.policy.window.max(1));
        let session = of.map_or(0, |of| of.session);
        Lane { queue: *queue, name, width, widest: width.max(turn.width_before), session }
    });
    advance(connection, &lanes.collect::<Vec<_>>())
}

pub(in crate::postgres) fn advance(
    connection: &mut Connection,
    lanes: &[Lane<'_>],
) -> Result<(), CommitError> {
    if lanes.is_empty() {
        return Ok(());
    }
    let queues: Vec<i32> = lanes.iter().map(|lane| queue_id(lane.queue)).collect();
    let names: Vec<&[u8]> = lanes.iter().map(|lane| lane.name.as_slice()).collect();
    let buckets: Vec<i16> = lanes.iter().map(|lane| bucket_of_lane(lane.name)).collect();
    if lanes.iter().any(|lane| lane.widest > 1) {
        let statement = sqlx::query(sql::LANES_CLEAR)
            .bind(queues.clone())
            .bind(names.clone())
            .bind(buckets.clone())
            .bind(lanes.iter().map(|lane| count(lane.widest)).collect::<Vec<i32>>());
        connection.execute(statement)?;
    }
    let statement = sqlx::query(sql::LANES_ADVANCE)
        .bind(queues)
        .bind(names)
        .bind(buckets)
        .bind(lanes.iter().map(|lane| count(lane.width)).collect::<Vec<i32>>())
        .bind(lanes.iter().map(|lane| whole(lane.session)).collect::<Vec<i64>>());
    connection.execute(statement).map(drop)
}
