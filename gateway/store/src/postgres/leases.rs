//! Leases by the commits that gave them: a row of table `lease_group` stands until none of its leases does.

use std::collections::{HashMap, HashSet};

/// Which deliveries of each group of leases still stand.
#[derive(Default)]
pub(super) struct LeaseGroups {
    of: HashMap<i64, i64>,
    members: HashMap<i64, HashSet<i64>>,
    /// Groups of which nothing stands any more.
    pub(super) over: Vec<i64>,
}

impl LeaseGroups {
    pub(super) fn lease(&mut self, pos: i64, group: i64) {
        self.end(pos);
        self.of.insert(pos, group);
        self.members.entry(group).or_default().insert(pos);
    }

    pub(super) fn end(&mut self, pos: i64) {
        let Some(group) = self.of.remove(&pos) else { return };
        if let Some(members) = self.members.get_mut(&group) {
            members.remove(&pos);
            if members.is_empty() {
                self.members.remove(&group);
                self.over.push(group);
            }
        }
    }
}
