//! Lanes of which several deliveries may be leased at once, with several nodes: one goes back at a node that has leased nothing of the lane,
//! while its owner leases what is next in it.
//!
//! Neither may overlook the other. Both hold the row of the lane's bucket until their commit: who gives back alone, and it reads what is in
//! flight only then; who leases beside others who lease, and it reads what stands in front only then.

use std::collections::{BTreeSet, HashMap};

use super::commit::queue_id;
use super::row::{Cells, bucket_of_lane};
use super::{Postgres, sql};
use crate::backend::{CommitError, Read};
use crate::row::Row;
use crate::seal::Index;
use crate::writer::{Lanes, Memory};

/// In flight are the first of a lane, one behind the other but for some that have gone back or come to stand in between: so many are
/// looked at, and behind each one that is found so many again; or as many as the window is wide. It may have been wider when they were
/// leased, and may be at another node.
const WIDTH_MIN: u32 = 32;

/// A look at a lane, behind a position.
struct Look {
    lane: (i64, Index),
    after: i64,
    width: u32,
}

impl Look {
    /// The next one, behind the last that this one has found. In a lane of which many are in flight few looks see all.
    fn behind(&self, last: i64) -> Option<Self> {
        (last > self.after).then_some(Self { after: last, width: self.width.saturating_mul(2), ..*self })
    }
}

impl Postgres {
    /// Nobody else leases in these lanes, or gives back there, until the end of the transaction.
    pub(super) fn hold_lanes(&mut self, lanes: &Lanes) -> Result<(), CommitError> {
        self.open_late()?;
        let buckets: BTreeSet<(i32, i16)> =
            lanes.iter().map(|(queue, lane)| (queue_id(*queue), bucket_of_lane(lane))).collect();
        let (queues, buckets): (Vec<i32>, Vec<i16>) = buckets.into_iter().unzip();
        self.connection.execute(sqlx::query(sql::BUCKETS_HOLD).bind(queues).bind(buckets)).map(drop)
    }

    pub(super) fn read_in_flight(
        &mut self,
        memory: &Memory,
        lanes: &Lanes,
    ) -> Result<Read<Row>, CommitError> {
        let width = |queue: i64| {
            let window = memory.queues.get(&queue).map_or(1, |queue| queue.setup.policy.window);
            WIDTH_MIN.max(window)
        };
        let mut found = Read::new();
        let mut looks: Vec<Look> =
            lanes.iter().map(|lane| Look { lane: *lane, after: i64::MIN, width: width(lane.0) }).collect();
        while !looks.is_empty() {
            let of = |look: fn(&Look) -> i32| looks.iter().map(look).collect::<Vec<i32>>();
            let statement = sqlx::query(sql::DELIVERIES_IN_FLIGHT)
                .bind(of(|look| queue_id(look.lane.0)))
                .bind(looks.iter().map(|look| look.lane.1.as_slice()).collect::<Vec<&[u8]>>())
                .bind(looks.iter().map(|look| look.after).collect::<Vec<i64>>())
                .bind(of(|look| i32::try_from(look.width).unwrap_or(i32::MAX)));
            let read = self.load_rows(statement)?;
            let mut last: HashMap<(i64, Index), i64> = HashMap::new();
            for row in read.iter().flatten() {
                for lane in row.lanes() {
                    let last = last.entry((row.queue, lane)).or_insert(row.pos);
                    *last = row.pos.max(*last);
                }
            }
            looks = looks.iter().filter_map(|look| look.behind(*last.get(&look.lane)?)).collect();
            found.extend(read);
        }
        Ok(found)
    }

    /// Those of the lanes in which nothing goes back just now, and does not until the end of the transaction.
    pub(super) fn share_lanes(
        &mut self,
        queue: i64,
        mut lanes: Vec<Index>,
    ) -> Result<Vec<Index>, CommitError> {
        if lanes.is_empty() {
            return Ok(lanes);
        }
        self.open_late()?;
        let buckets: BTreeSet<i16> = lanes.iter().map(bucket_of_lane).collect();
        let buckets: Vec<i16> = buckets.into_iter().collect();
        let statement = sqlx::query(sql::BUCKETS_SHARE).bind(queue_id(queue)).bind(buckets);
        let shared = self.connection.rows(statement)?;
        let shared: BTreeSet<i16> =
            shared.iter().map(|row| Cells::new(row).take()).collect::<Result<_, _>>()?;
        lanes.retain(|lane| shared.contains(&bucket_of_lane(lane)));
        Ok(lanes)
    }

    /// Opens a transaction in the midst of a turn, if there is none. What was read until then the commit makes sure of, as without one.
    pub(super) fn open_late(&mut self) -> Result<(), CommitError> {
        if self.is_open {
            return Ok(());
        }
        self.unopened = None;
        let held = std::mem::take(&mut self.held);
        self.open_transaction(&held)
    }
}
