//! Rows that hold something else than was written: what is known of them, and what is done about it.
//!
//! A damaged delivery cannot be believed in anything, its queue and its state included. It is passed over, everywhere: not
//! leased, not settled, not ended by time; its lane waits behind it, everything else goes on. It stays as it is until somebody
//! repairs the directory. A message whose content is damaged is another matter: its deliveries are sound and end as dead.

use std::collections::{BTreeMap, HashSet};

use gatepost_audit::Event as LeafEvent;
use gatepost_core::delivery::Event;

use super::Writer;
use super::needs::Needs;
use super::outcome::conclude;
use super::recall::Fronts;
use super::turn::{Extra, Turn, went_back};
use crate::backend::{Backend, CommitError};
use crate::call::DamagedLease;
use crate::ops::{AuditNote, StoreError};
use crate::row::Row;

/// Damaged rows that are remembered; a directory with more of them needs repair, not bookkeeping.
const DAMAGE_MAX: usize = 1000;

/// Damaged rows found since the database was opened.
#[derive(Default)]
pub(crate) struct Damage {
    /// Tables and rows, each with the column that shows it.
    rows: BTreeMap<(&'static str, String), &'static str>,
    told: HashSet<(&'static str, String)>,
}

impl Damage {
    /// The sound ones of rows just read; the others are noted.
    pub(crate) fn sound<T>(&mut self, read: Vec<Result<T, StoreError>>) -> Result<Vec<T>, StoreError> {
        read.into_iter().filter_map(|row| self.noted(row).transpose()).collect()
    }

    /// As [`Damage::sound`] for rows of which none may be passed over: those before the first damaged one.
    pub(crate) fn sound_prefix<T>(&mut self, read: Vec<Result<T, StoreError>>) -> Result<Vec<T>, StoreError> {
        let rows = read.into_iter().map(|row| self.noted(row));
        rows.map_while(Result::transpose).collect()
    }

    fn noted<T>(&mut self, row: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
        match row {
            Ok(row) => Ok(Some(row)),
            Err(StoreError::Corrupt { table, column, row }) => {
                if self.rows.len() < DAMAGE_MAX {
                    self.rows.insert((table, row), column);
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Takes over whom it has been told of from what was known before the database was opened anew.
    pub(crate) fn told_before(&mut self, before: Self) {
        self.told = before.told;
    }

    /// How many more rows must be read so that a claim does not end at damaged ones.
    pub(crate) fn passed_over(&self) -> u32 {
        u32::try_from(self.rows.len()).unwrap_or(u32::MAX)
    }
}

impl<B: Backend> Writer<B> {
    /// Ends deliveries whose message is damaged as dead, if they are leased as they were when that was seen.
    pub(crate) fn end_damaged(&mut self, leased: &[DamagedLease]) -> Result<(), StoreError> {
        self.with_needs(|writer, needs| {
            writer.begin_if_needed(needs)?;
            writer.end_damaged_open(leased, needs)
        })?;
        let damage = leased.iter().map(|lease| Err::<(), _>(lease.damage.clone())).collect();
        self.memory.damage.sound(damage).map(drop)
    }

    fn end_damaged_open(
        &mut self,
        leased: &[DamagedLease],
        needs: &mut Needs,
    ) -> Result<Option<()>, CommitError> {
        let in_flight = self.in_flight(&needs.lanes)?;
        let now = self.number()?;
        let mut turn =
            Turn::new(now, self.instance_epoch, &self.memory, &self.vault, &mut self.random, &self.gateway);
        turn.read_lanes(&needs.lanes, in_flight);
        let gateway = turn.gateway.clone();
        for lease in leased {
            let row = turn.row(&lease.delivery).cloned();
            let holds = |row: &Row| row.delivery.lease().is_some_and(|held| held.token == lease.token);
            let Some(row) = row.filter(holds) else { continue };
            let was = row.clone();
            if let Ok(change) =
                turn.at_moment(row.queue, |moment| row.delivery.apply(Event::Damaged, moment))?
            {
                turn.change(row, &change, &gateway, &Extra::default())?;
                turn.probe_lost(was.queue, was.id)?;
                // It may hold its lane.
                if went_back(&was.delivery, &change.delivery) {
                    turn.recall_behind(&Fronts::lost(&was))?;
                }
            }
        }
        let held = needs.queues.clone();
        if turn.lacks(needs, &held) {
            return Ok(None);
        }
        let committed = conclude(&mut self.database, turn)?;
        self.install(committed, 0);
        Ok(Some(()))
    }

    /// Tells the log, the audit log and whoever asks for the gateway's health of damage that nobody has been told of.
    pub(crate) fn tell_damage(&mut self) -> Result<(), CommitError> {
        let damage = &self.memory.damage;
        let untold: Vec<_> = damage.rows.iter().filter(|(row, _)| !damage.told.contains(*row)).collect();
        if untold.is_empty() {
            return Ok(());
        }
        let untold: Vec<((&'static str, String), &'static str)> =
            untold.into_iter().map(|(row, column)| (row.clone(), *column)).collect();
        let now = self.number()?;
        let mut turn =
            Turn::new(now, self.instance_epoch, &self.memory, &self.vault, &mut self.random, &self.gateway);
        let mut told = Vec::new();
        for ((table, row), column) in untold {
            tracing::error!(table, column, row, "a damaged row; `gatepost doctor` looks at all of them");
            self.health.damage_found(table, &row);
            let mut note = AuditNote::new(LeafEvent::DamageFound, self.gateway.clone());
            note.target = Some(format!("{table} {row}"));
            turn.note(&note)?;
            told.push((table, row));
        }
        let committed = conclude(&mut self.database, turn)?;
        self.install(committed, 0);
        self.memory.damage.told.extend(told);
        Ok(())
    }
}
