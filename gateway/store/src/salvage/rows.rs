//! Every row that the database holds, each with what can be said of it: sound, mended, or damaged. Tables are followed from their
//! roots; where that leads nowhere, pages that belong to nothing known are looked through for rows that verify.

use std::collections::HashSet;
use std::io;

use rusqlite::Connection;
use rusqlite::types::{ToSql, Value};

use super::image::{Image, Pages};
use super::mend::{BYTES_MAX, mended};
use super::page::{Cell, Kind, Page, u32_at, values};
use crate::row::{DELIVERY_COLUMNS, INDEXED_COLUMNS, MESSAGE_COLUMNS, QUEUE_COLUMNS, STORE_COLUMNS};
use crate::seal::{Owner, Place, Vault};
use crate::{sql, sum};

/// Levels that a b-tree may have; SQLite's own limit.
const DEPTH_MAX: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Table {
    Store,
    Queue,
    Message,
    Dedup,
    Delivery,
    Detail,
    Reply,
    State,
    Leaf,
}

/// Columns of a message by their place.
pub(super) const MESSAGE_SUM: usize = MESSAGE_COLUMNS;
pub(super) const MESSAGE_DEDUP: usize = MESSAGE_SUM + 1;
pub(super) const MESSAGE_SUM_INDEXED: usize = MESSAGE_DEDUP + INDEXED_COLUMNS - 1;
pub(super) const MESSAGE_ATTRIBUTES: usize = MESSAGE_SUM_INDEXED + 1;
pub(super) const MESSAGE_SALT: usize = MESSAGE_ATTRIBUTES + 1;
pub(super) const MESSAGE_DATA: usize = MESSAGE_SALT + 1;
/// The one column of a delivery that its sum does not cover.
pub(super) const DELIVERY_READY: usize = 8;

impl Table {
    pub(super) const ALL: [Self; 9] = [
        Self::Store,
        Self::Queue,
        Self::Message,
        Self::Dedup,
        Self::Delivery,
        Self::Detail,
        Self::Reply,
        Self::State,
        Self::Leaf,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Queue => "queue",
            Self::Message => "message",
            Self::Dedup => "dedup",
            Self::Delivery => "delivery",
            Self::Detail => "detail",
            Self::Reply => "reply",
            Self::State => "adapter_state",
            Self::Leaf => "leaf",
        }
    }

    const fn columns(self) -> usize {
        match self {
            Self::Store => STORE_COLUMNS + 1,
            Self::Queue => QUEUE_COLUMNS + 1,
            Self::Message => MESSAGE_DATA + 1,
            Self::Delivery => DELIVERY_COLUMNS + 2,
            Self::Detail | Self::State | Self::Leaf => 3,
            Self::Dedup | Self::Reply => 2,
        }
    }

    /// Whether its rows have a number; the others are kept in the order of their key.
    const fn has_row_numbers(self) -> bool {
        !matches!(self, Self::Dedup | Self::State)
    }
}

/// What a row is worth.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Worth {
    Sound,
    /// One bit had flipped; it is as it was written.
    Mended,
    /// Some column is not what was written.
    Damaged(&'static str),
}

#[derive(Clone, Debug)]
pub(super) struct FoundRow {
    pub(super) table: Table,
    /// As it stands in its table, as far as that is readable.
    pub(super) row: Option<i64>,
    pub(super) values: Vec<Value>,
    pub(super) worth: Worth,
}

/// A place in the file that is not as SQLite left it.
#[derive(Clone, Debug)]
pub(super) struct PageFault {
    pub(super) page: u32,
    pub(super) table: Option<&'static str>,
    pub(super) why: &'static str,
}

/// What a tree of pages is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tree {
    /// The list of tables.
    Schema,
    Of(Table),
    Index,
}

impl Tree {
    const fn table(self) -> Option<Table> {
        match self {
            Self::Of(table) => Some(table),
            Self::Schema | Self::Index => None,
        }
    }

    const fn has_row_numbers(self) -> bool {
        match self {
            Self::Schema => true,
            Self::Of(table) => table.has_row_numbers(),
            Self::Index => false,
        }
    }
}

/// Looks at every row. `take` gets those of the tables in their order, afterwards what was found on pages that hang on nothing.
pub(super) struct Rows<'a> {
    image: &'a Image,
    vault: &'a Vault,
    seen: HashSet<u32>,
    pub(super) faults: Vec<PageFault>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(image: &'a Image, vault: &'a Vault) -> Self {
        Self { image, vault, seen: HashSet::new(), faults: Vec::new() }
    }

    pub(super) fn read(&mut self, take: &mut dyn FnMut(FoundRow) -> io::Result<()>) -> io::Result<()> {
        let schema = self.schema()?;
        for (tree, root) in schema {
            self.walk(root, tree, 0, take)?;
        }
        let severed = !self.faults.is_empty();
        self.free_pages()?;
        // Where every tree is whole, what hangs on nothing was deleted, whatever the list of free pages says.
        if severed { self.unattached(take) } else { Ok(()) }
    }

    /// The roots: of tables with their rows, and of indices. The file's own list is compared with the one that it must be.
    fn schema(&mut self) -> io::Result<Vec<(Tree, u32)>> {
        let expected = expected_schema().map_err(io::Error::other)?;
        let mut found = Vec::new();
        self.walk(1, Tree::Schema, 0, &mut |row| {
            found.push(row.values);
            Ok(())
        })?;
        let mut as_found: Vec<Vec<Value>> =
            found.iter().map(|row| row.iter().skip(1).cloned().collect()).collect();
        let mut as_expected: Vec<Vec<Value>> = expected.clone();
        for list in [&mut as_found, &mut as_expected] {
            list.sort_by_key(|row| format!("{row:?}"));
        }
        if as_found != as_expected {
            self.faults.push(PageFault {
                page: 1,
                table: None,
                why: "its list of tables is not the one that was written",
            });
        }
        let roots = expected.into_iter().filter_map(|row| {
            let [Value::Text(name), _, Value::Integer(root), ..] = &row[..] else { return None };
            let table = Table::ALL.into_iter().find(|table| table.name() == name);
            let tree = table.map_or(Tree::Index, Tree::Of);
            Some((tree, u32::try_from(*root).ok().filter(|root| *root > 0)?))
        });
        Ok(roots.collect())
    }

    fn fault(&mut self, page: u32, tree: Option<Tree>, why: &'static str) {
        let table = tree.and_then(Tree::table).map(Table::name);
        self.faults.push(PageFault { page, table, why });
    }

    /// Follows a tree and takes its rows, if it is not an index.
    fn walk(
        &mut self,
        number: u32,
        tree: Tree,
        depth: usize,
        take: &mut dyn FnMut(FoundRow) -> io::Result<()>,
    ) -> io::Result<()> {
        if depth > DEPTH_MAX || !self.seen.insert(number) {
            self.fault(number, Some(tree), "it hangs in two places");
            return Ok(());
        }
        let page = match self.image.page(number)? {
            Some(bytes) => Page::read(self.image, number, &bytes),
            None => None,
        };
        let fits = |kind| match kind {
            Kind::InnerTable | Kind::LeafTable => tree.has_row_numbers(),
            Kind::InnerIndex | Kind::LeafIndex => !tree.has_row_numbers(),
        };
        let Some(page) = page.filter(|page| fits(page.kind)) else {
            self.seen.remove(&number);
            self.fault(number, Some(tree), "it is no page of this table");
            return Ok(());
        };
        if page.broken {
            self.fault(number, Some(tree), "some of it cannot be read");
        }
        for cell in page.cells {
            self.seen.extend(&cell.overflow);
            match tree {
                Tree::Of(table) => take(self.row(table, &cell))?,
                Tree::Schema => {
                    let values = cell.record.as_deref().and_then(|record| values(record, None));
                    let values = values.unwrap_or_default();
                    take(FoundRow { table: Table::Store, row: cell.row, values, worth: Worth::Sound })?;
                }
                Tree::Index => {}
            }
        }
        for child in page.children {
            self.walk(child, tree, depth + 1, take)?;
        }
        Ok(())
    }

    /// Pages that hold nothing any more: what still stands on them was deleted.
    fn free_pages(&mut self) -> io::Result<()> {
        let Some(first) = self.image.page(1)? else { return Ok(()) };
        let (mut trunk, expected) = (u32_at(&first, 32).unwrap_or(0), u32_at(&first, 36).unwrap_or(0));
        let mut free = 0;
        while trunk != 0 {
            let page = self.image.page(trunk)?;
            let Some(page) = page.filter(|_| self.seen.insert(trunk)) else {
                self.fault(trunk, None, "the list of free pages does not lead on");
                return Ok(());
            };
            free += 1;
            let count = u32_at(&page, 4).unwrap_or(0);
            let places = (8..page.len()).step_by(4).take(count as usize);
            for page in places.filter_map(|at| u32_at(&page, at)) {
                free += 1;
                if page == 0 || page > self.image.count || !self.seen.insert(page) {
                    self.fault(page, None, "it is listed as free and is not");
                }
            }
            trunk = u32_at(&page, 0).unwrap_or(0);
        }
        if free != expected {
            self.fault(1, None, "it counts other free pages than there are");
        }
        Ok(())
    }

    /// Pages that nothing leads to.
    fn unattached(&mut self, take: &mut dyn FnMut(FoundRow) -> io::Result<()>) -> io::Result<()> {
        for number in 2..=self.image.count {
            if self.seen.contains(&number) {
                continue;
            }
            let Some(bytes) = self.image.page(number)? else { continue };
            for row in self.rows_on(self.image, number, &bytes) {
                take(row)?;
            }
        }
        Ok(())
    }

    /// Rows on a page of an unknown table: those that verify as some table's.
    pub(super) fn rows_on(&self, pages: &dyn Pages, number: u32, bytes: &[u8]) -> Vec<FoundRow> {
        let Some(page) = Page::read(pages, number, bytes) else { return Vec::new() };
        let verifies = |cell: &Cell| {
            let fitting = Table::ALL.into_iter().filter(|table| {
                // A key alone has nothing that tells it from chance.
                *table != Table::Dedup && table.has_row_numbers() == cell.row.is_some()
            });
            let values = values(cell.record.as_deref()?, cell.row)?;
            let of = fitting.filter(|table| verdict(*table, &values, self.vault).is_none());
            of.map(|table| FoundRow { table, row: cell.row, values: values.clone(), worth: Worth::Sound })
                .next()
        };
        page.cells.iter().filter_map(verifies).collect()
    }

    fn row(&self, table: Table, cell: &Cell) -> FoundRow {
        let damaged = |values, why| FoundRow { table, row: cell.row, values, worth: Worth::Damaged(why) };
        let Some(record) = &cell.record else { return damaged(Vec::new(), "record") };
        let read = values(record, cell.row).filter(|values| values.len() == table.columns());
        let fault = read.as_ref().map_or(Some("record"), |values| verdict(table, values, self.vault));
        let Some(fault) = fault else {
            return FoundRow { table, row: cell.row, values: read.unwrap_or_default(), worth: Worth::Sound };
        };
        let sound = |record: &[u8]| {
            values(record, cell.row).is_some_and(|values| verdict(table, &values, self.vault).is_none())
        };
        let renumbered = || {
            let rows = (0..i64::BITS).filter_map(|bit| Some(cell.row? ^ 1 << bit));
            let mut read = rows.filter_map(|row| Some((row, values(record, Some(row))?)));
            read.find(|(_, values)| verdict(table, values, self.vault).is_none())
        };
        let put_right = || {
            let record = Some(record).filter(|record| record.len() <= BYTES_MAX)?;
            Some((cell.row, values(&mended(record, sound)?, cell.row)?))
        };
        match renumbered().map(|(row, values)| (Some(row), values)).or_else(put_right) {
            Some((row, values)) => FoundRow { table, row, values, worth: Worth::Mended },
            None => damaged(read.unwrap_or_default(), fault),
        }
    }
}

fn expected_schema() -> rusqlite::Result<Vec<Vec<Value>>> {
    let connection = Connection::open_in_memory()?;
    for (_, migration) in sql::MIGRATIONS {
        connection.execute_batch(migration)?;
    }
    let mut statement = connection.prepare("SELECT name, tbl_name, rootpage, sql FROM sqlite_schema")?;
    let rows = statement.query_map([], |row| (0..4).map(|column| row.get(column)).collect())?;
    rows.collect()
}

/// The column that is not what was written, or none.
pub(super) fn verdict(table: Table, values: &[Value], vault: &Vault) -> Option<&'static str> {
    if values.len() != table.columns() {
        return Some("record");
    }
    let place = Place { table: table.name(), column: "", row: 0 };
    let opens = |sealed: &Value, owner| match sealed {
        Value::Blob(sealed) => vault.open(sealed, owner, place).is_ok(),
        _ => false,
    };
    let (sound, column) = match table {
        Table::Store => (summed(&values[..STORE_COLUMNS], &values[STORE_COLUMNS]), "sum"),
        Table::Queue => (summed(&values[..QUEUE_COLUMNS], &values[QUEUE_COLUMNS]), "sum"),
        Table::Leaf => (summed(&values[..2], &values[2]), "sum"),
        Table::Delivery => {
            let covered: Vec<&Value> = values[..DELIVERY_READY]
                .iter()
                .chain(&values[DELIVERY_READY + 1..=DELIVERY_COLUMNS])
                .collect();
            let summed = is_sum(&covered, &values[DELIVERY_COLUMNS + 1]);
            let ready = &values[DELIVERY_READY];
            if summed && *ready != Value::Null && *ready != values[DELIVERY_READY - 1] {
                return Some("ready");
            }
            (summed, "sum")
        }
        Table::Message => return message_verdict(values, vault),
        // Nothing is known of it but by its message.
        Table::Dedup => (matches!(values, [Value::Blob(_), Value::Integer(_)]), "key"),
        Table::Detail => match values {
            [Value::Integer(leaf), Value::Integer(delivery), body] => {
                (opens(body, Owner::Detail { leaf: *leaf, delivery: *delivery }), "body")
            }
            _ => (false, "body"),
        },
        Table::Reply => match values {
            [Value::Integer(delivery), body] => (opens(body, Owner::Reply { delivery: *delivery }), "body"),
            _ => (false, "body"),
        },
        Table::State => match values {
            [Value::Text(adapter), Value::Text(key), value] => {
                (opens(value, Owner::State { adapter, key }), "value")
            }
            _ => (false, "value"),
        },
    };
    (!sound).then_some(column)
}

fn message_verdict(values: &[Value], vault: &Vault) -> Option<&'static str> {
    if !summed(&values[..MESSAGE_SUM], &values[MESSAGE_SUM]) {
        return Some("sum");
    }
    content_verdict(values, vault).or_else(|| {
        let indexed: Vec<&Value> =
            values[..1].iter().chain(&values[MESSAGE_DEDUP..MESSAGE_SUM_INDEXED]).collect();
        (!is_sum(&indexed, &values[MESSAGE_SUM_INDEXED])).then_some("sum_indexed")
    })
}

fn content_verdict(values: &[Value], vault: &Vault) -> Option<&'static str> {
    let place = Place { table: "message", column: "", row: 0 };
    let Value::Blob(id) = &values[1] else { return Some("id") };
    let Ok(message) = <&[u8; 16]>::try_from(id.as_slice()) else { return Some("id") };
    let attributes = match &values[MESSAGE_ATTRIBUTES] {
        Value::Blob(sealed) => vault.open(sealed, Owner::Attributes { message }, place).is_ok(),
        _ => false,
    };
    if !attributes {
        return Some("attributes");
    }
    let data = match (&values[MESSAGE_SALT], &values[MESSAGE_DATA]) {
        (Value::Null, Value::Null) => true,
        (Value::Blob(salt), Value::Blob(sealed)) => <&[u8; 32]>::try_from(salt.as_slice())
            .is_ok_and(|salt| vault.open(sealed, Owner::Data { message, salt }, place).is_ok()),
        _ => false,
    };
    (!data).then_some("data")
}

fn summed(values: &[Value], sum: &Value) -> bool {
    is_sum(&values.iter().collect::<Vec<_>>(), sum)
}

fn is_sum(values: &[&Value], found: &Value) -> bool {
    let values: Vec<&dyn ToSql> = values.iter().map(|value| *value as &dyn ToSql).collect();
    sum::of(&values).is_ok_and(|sum| *found == Value::Integer(sum))
}
