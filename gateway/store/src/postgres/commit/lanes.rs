//! Who is ready in the lanes that a turn has touched.
//!
//! In most of them only one thing has happened, and then the turn's own statement can tell. It sees the tables as they were before it.

use std::collections::HashMap;

use super::super::connection::Connection;
use super::super::row::{BUCKETS, Cells, bucket_of_lane};
use super::super::{Owned, sql};
use super::script::Script;
use super::{count, queue_id, stands_in, whole};
use crate::backend::CommitError;
use crate::row::Row;
use crate::seal::{Index, Place};
use crate::writer::{Queue, Touched, Turn};

/// The first of a lane is ready when nobody stood there before.
const FIRST: &str = "first AS (INSERT INTO ready (queue, bucket, due, pos, suspect) SELECT l.queue, l.bucket, ?::bigint, f.base + l.pos, false \
     FROM valid f, (SELECT unnest(?::int[]) AS queue, unnest(?::bytea[]) AS lane, unnest(?::smallint[]) AS bucket, \
     unnest(?::bigint[]) AS pos) l WHERE NOT EXISTS (SELECT 1 FROM lane m WHERE m.queue = l.queue AND m.lane = l.lane))";
/// The first of a lane without the one that leaves it. One that is dead and holds its lane stays unready. One that stands in two lanes
/// may be behind another that leaves in this very statement, or in another node's: who owns its home looks, once this has come about.
const BEHIND: &str = "next AS MATERIALIZED (SELECT l.queue, l.bucket, h.pos, h.home \
     FROM (SELECT unnest(?::int[]) AS queue, unnest(?::bytea[]) AS lane, unnest(?::smallint[]) AS bucket, unnest(?::bigint[]) AS leaves) l \
     CROSS JOIN LATERAL (SELECT pos, home FROM lane m WHERE m.queue = l.queue AND m.lane = l.lane AND m.pos <> l.leaves ORDER BY pos LIMIT 1) h), \
     behind AS (INSERT INTO ready (queue, bucket, due, pos, suspect) SELECT n.queue, n.bucket, d.due, d.pos, d.suspect FROM next n \
     CROSS JOIN LATERAL (SELECT pos, due, suspect, state FROM delivery WHERE pos = n.pos LIMIT 1) d \
     WHERE n.home IS NULL AND d.due IS NOT NULL AND d.state IN (0, 3) ON CONFLICT DO NOTHING), \
     of_two AS (INSERT INTO lane_changed (queue, bucket, lane) SELECT queue, (get_byte(home, 0) % 64)::smallint, home FROM next \
     WHERE home IS NOT NULL RETURNING 1)";
// As the statement reckons.
const _: () = assert!(BUCKETS == 64);
/// Notes for those who own the lanes.
const NOTES: &str = "notes AS (INSERT INTO lane_changed (queue, bucket, lane) SELECT unnest(?::int[]), unnest(?::smallint[]), \
     unnest(?::bytea[]))";
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
    /// `None` if there is more to it: lanes of which several may be leased at once, or to which several things have happened, and
    /// messages that come to stand in two.
    pub(super) fn of(turn: &'t Turn<'_>, owned: &Owned) -> Option<Self> {
        let mut simple = Self::default();
        if turn.lanes.is_empty() {
            return Some(simple);
        }
        let mut touched: HashMap<Name, Vec<&Touched>> = HashMap::new();
        for one in turn.touched.values() {
            let place = |row: &Row| (row.queue, row.lane, row.barrier);
            if place(&one.was) != place(&one.now) {
                return None;
            }
            for lane in one.was.lanes() {
                touched.entry((one.was.queue, lane)).or_default().push(one);
            }
        }
        let mut first: HashMap<Name, i64> = HashMap::new();
        for row in &turn.new_rows {
            match stands_in(row) {
                Some((_, _, Some(_))) => return None,
                Some((queue, lane, None)) => drop(first.entry((queue, lane)).or_insert(row.pos)),
                None => {}
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
                (Some([one]), None) if stands_in(&one.was).is_some() && stands_in(&one.now).is_none() => {
                    simple.left.push((lane, one.was.pos));
                }
                (Some(all), None) if all.iter().all(|one| stays_leased(one)) => {}
                _ => return None,
            }
        }
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
            script.tell_of("of_two");
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
    stands_in(&touched.was) == stands_in(&touched.now) && touched.now.delivery.lease().is_some()
}

fn is_owned(owned: &Owned, (queue, lane): &Name) -> bool {
    owned.get(queue).is_some_and(|buckets| buckets.has(bucket_of_lane(lane)))
}

/// A lane that a turn has touched.
#[derive(Clone, Copy)]
pub(in crate::postgres) struct Lane<'l> {
    pub(in crate::postgres) queue: i64,
    pub(in crate::postgres) name: &'l Index,
    /// As wide as its queue's window is now, and as it may have been.
    pub(in crate::postgres) width: u32,
    pub(in crate::postgres) widest: u32,
    pub(in crate::postgres) session: u64,
    pub(in crate::postgres) succeeds: bool,
}

/// Brings what is ready in the touched lanes in line with who stands in them now: where this node owns the bucket. Elsewhere
/// the owner is told, in this very commit: it decides alone, so that two nodes never overlook each other's rows.
pub(super) fn bring_in_line(
    connection: &mut Connection,
    turn: &Turn<'_>,
    owned: &Owned,
) -> Result<(), CommitError> {
    let mut touched: Vec<&Name> = turn.lanes.iter().collect();
    touched.sort_unstable();
    let (own, others): (Vec<&Name>, Vec<&Name>) = touched.into_iter().partition(|lane| is_owned(owned, lane));
    leave_notes(connection, &others)?;
    let lanes = own.into_iter().map(|(queue, name)| {
        let of = turn.queue(*queue).ok();
        let width = of.map_or(1, |of| of.setup.policy.window.max(1));
        let session = of.map_or(0, |of| of.session);
        let succeeds = of.is_some_and(Queue::succeeds_itself);
        Lane { queue: *queue, name, width, widest: width.max(turn.width_before), session, succeeds }
    });
    advance(connection, &lanes.collect::<Vec<_>>(), owned)
}

/// Tells the owners of lanes, in the open transaction.
fn leave_notes(connection: &mut Connection, lanes: &[&Name]) -> Result<(), CommitError> {
    if lanes.is_empty() {
        return Ok(());
    }
    let statement = sqlx::query(sql::LANES_CHANGED_ADD)
        .bind(lanes.iter().map(|(queue, _)| queue_id(*queue)).collect::<Vec<i32>>())
        .bind(lanes.iter().map(|(_, lane)| bucket_of_lane(lane)).collect::<Vec<i16>>())
        .bind(lanes.iter().map(|(_, lane)| lane.as_slice()).collect::<Vec<&[u8]>>());
    connection.execute(statement).map(drop)
}

/// Looks who is ready in lanes of this node, and in those in which that is decided of whoever stands in these besides: their owners are
/// told, if it is another.
pub(in crate::postgres) fn advance(
    connection: &mut Connection,
    lanes: &[Lane<'_>],
    owned: &Owned,
) -> Result<(), CommitError> {
    if lanes.is_empty() {
        return Ok(());
    }
    advance_these(connection, lanes)?;
    let homes = homes(connection, lanes)?;
    let (own, others): (Vec<&Name>, Vec<&Name>) = homes.iter().partition(|lane| is_owned(owned, lane));
    leave_notes(connection, &others)?;
    // As wide as those beside which they were found.
    let own: Vec<Lane<'_>> = own
        .into_iter()
        .filter_map(|(queue, name)| {
            lanes.iter().find(|lane| lane.queue == *queue).map(|lane| Lane { name, ..*lane })
        })
        .collect();
    if own.is_empty() { Ok(()) } else { advance_these(connection, &own) }
}

/// Lanes beside these, in which those are made ready that stand in both.
fn homes(connection: &mut Connection, lanes: &[Lane<'_>]) -> Result<Vec<Name>, CommitError> {
    let statement = sqlx::query(sql::LANES_OF_HOME)
        .bind(lanes.iter().map(|lane| queue_id(lane.queue)).collect::<Vec<i32>>())
        .bind(lanes.iter().map(|lane| lane.name.as_slice()).collect::<Vec<&[u8]>>())
        .bind(lanes.iter().map(|lane| count(lane.widest)).collect::<Vec<i32>>());
    let mut homes: Vec<Name> = Vec::new();
    for row in connection.rows(statement)? {
        let mut cells = Cells::new(&row);
        let queue = i64::from(cells.take::<i32>()?);
        homes.push((queue, cells.take_bytes(Place { table: "lane", column: "home", row: queue })?));
    }
    homes.retain(|home| !lanes.iter().any(|lane| (lane.queue, *lane.name) == *home));
    homes.sort_unstable();
    Ok(homes)
}

fn advance_these(connection: &mut Connection, lanes: &[Lane<'_>]) -> Result<(), CommitError> {
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
        .bind(lanes.iter().map(|lane| whole(lane.session)).collect::<Vec<i64>>())
        .bind(lanes.iter().map(|lane| lane.succeeds).collect::<Vec<bool>>());
    connection.execute(statement).map(drop)
}
