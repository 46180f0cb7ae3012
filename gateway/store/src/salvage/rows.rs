//! Every row that the database holds, each with what can be said of it: sound, mended, or damaged. Tables are followed from their
//! roots; where that leads nowhere, pages that belong to nothing known are looked through for rows that verify.

use std::collections::HashSet;
use std::io;

use rusqlite::Connection;
use rusqlite::types::Value;

use super::image::Image;
use super::mend::{BYTES_MAX, mended};
use super::page::{Cell, Kind, Page, Pages, u32_at, values};
use super::table::{Table, table_of, verdict};
use crate::sql;

/// Levels that a b-tree may have; SQLite's own limit.
const DEPTH_MAX: usize = 20;

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
    seen: HashSet<u32>,
    pub(super) faults: Vec<PageFault>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(image: &'a Image) -> Self {
        Self { image, seen: HashSet::new(), faults: Vec::new() }
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

    /// The roots: of tables with their rows, and of indices. The file's own list is compared with the one that it must be. Where a later
    /// migration puts its tables depends on what is there by then: of those the file's list is believed, and if it has none, their rows
    /// are found where nothing leads to them.
    fn schema(&mut self) -> io::Result<Vec<(Tree, u32)>> {
        let expected = expected_schema().map_err(io::Error::other)?;
        let mut found = Vec::new();
        self.walk(1, Tree::Schema, 0, &mut |row| {
            found.push(row.values);
            Ok(())
        })?;
        let as_found: Vec<Vec<Value>> =
            found.iter().map(|row| row.iter().skip(1).cloned().collect()).collect();
        let expected: Vec<Vec<Value>> = expected.into_iter().map(|row| row.rooted_as_in(&as_found)).collect();
        let sorted = |list: &[Vec<Value>]| {
            let mut list = list.to_vec();
            list.sort_by_key(|row| format!("{row:?}"));
            list
        };
        if sorted(&as_found) != sorted(&expected) {
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
            let (table, values) = table_of(cell)?;
            Some(FoundRow { table, row: cell.row, values, worth: Worth::Sound })
        };
        page.cells.iter().filter_map(verifies).collect()
    }

    fn row(&self, table: Table, cell: &Cell) -> FoundRow {
        let damaged = |values, why| FoundRow { table, row: cell.row, values, worth: Worth::Damaged(why) };
        let Some(record) = &cell.record else { return damaged(Vec::new(), "record") };
        let read = values(record, cell.row).filter(|values| table.has_columns(values.len()));
        let fault = read.as_ref().map_or(Some("record"), |values| verdict(table, values));
        let Some(fault) = fault else {
            return FoundRow { table, row: cell.row, values: read.unwrap_or_default(), worth: Worth::Sound };
        };
        let sound =
            |record: &[u8]| values(record, cell.row).is_some_and(|values| verdict(table, &values).is_none());
        let renumbered = || {
            let rows = (0..i64::BITS).filter_map(|bit| Some(cell.row? ^ 1 << bit));
            let mut read = rows.filter_map(|row| Some((row, values(record, Some(row))?)));
            read.find(|(_, values)| verdict(table, values).is_none())
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

/// A row of SQLite's list of tables: name, table, page of the root, statement.
struct Listed {
    columns: [Value; 4],
    /// It was there in a database that had nothing in it.
    is_of_the_first: bool,
}

impl Listed {
    /// Its columns, with the root that the file says it has if that was not the same from the beginning; without one, none.
    fn rooted_as_in(self, found: &[Vec<Value>]) -> Vec<Value> {
        let [name, table, root, statement] = self.columns;
        let is_it =
            |row: &&Vec<Value>| row.len() == 4 && row[0] == name && row[1] == table && row[3] == statement;
        let root = match self.is_of_the_first {
            true => root,
            false => found.iter().find(is_it).map_or(Value::Integer(0), |row| row[2].clone()),
        };
        vec![name, table, root, statement]
    }
}

fn expected_schema() -> rusqlite::Result<Vec<Listed>> {
    let connection = Connection::open_in_memory()?;
    let list = || -> rusqlite::Result<Vec<[Value; 4]>> {
        let mut statement = connection.prepare("SELECT name, tbl_name, rootpage, sql FROM sqlite_schema")?;
        let rows = statement.query_map([], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]))?;
        rows.collect()
    };
    let mut first = None;
    for (_, migration) in sql::MIGRATIONS {
        connection.execute_batch(migration)?;
        if first.is_none() {
            first = Some(list()?);
        }
    }
    let first = first.unwrap_or_default();
    // A later one may have added to what the first has made, where that is.
    let is_of_the_first =
        |[name, _, root, _]: &[Value; 4]| first.iter().any(|[known, _, at, _]| (known, at) == (name, root));
    let last = list()?.into_iter();
    Ok(last.map(|columns| Listed { is_of_the_first: is_of_the_first(&columns), columns }).collect())
}

#[cfg(test)]
mod tests {
    use rusqlite::params;

    use super::*;
    use crate::sum;

    /// A database that had rows before a later migration has its tables elsewhere than a new one.
    #[test]
    fn tables_of_later_migrations_are_found_wherever_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gatepost.db");
        let connection = Connection::open(&path).unwrap();
        let (first, later) = sql::MIGRATIONS.split_first().unwrap();
        connection.execute_batch(first.1).unwrap();
        let key = |n: i64| [n.to_be_bytes(), n.to_le_bytes()].concat();
        for n in 0..1000_i64 {
            connection
                .execute("INSERT INTO dedup (key, message) VALUES (?1, ?2)", params![key(n), n])
                .unwrap();
        }
        later.iter().for_each(|(_, migration)| connection.execute_batch(migration).unwrap());
        let (message, number, bytes) = (key(1), 1_i64, vec![7_u8; 10_000]);
        let sum = sum::of(params![message, number, bytes]).unwrap();
        connection.execute(sql::PIECE_ADD, params![message, number, bytes, sum]).unwrap();
        drop(connection);
        let found = |path: &std::path::Path| {
            let image = Image::open(path, &dir.path().join("none")).unwrap();
            let mut rows = Rows::new(&image);
            let mut pieces = 0;
            rows.read(&mut |row| {
                pieces += usize::from(row.table == Table::Piece && row.worth == Worth::Sound);
                Ok(())
            })
            .unwrap();
            (pieces, rows.faults)
        };
        let (pieces, faults) = found(&path);
        assert_eq!((pieces, faults.len()), (1, 0), "{faults:?}");
        // Where the list does not say any more where they are, that is a fault, and the rows are found all the same.
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(10).position(|window| window == b"tablepiece").unwrap();
        bytes[at + 5] = b'q';
        std::fs::write(&path, bytes).unwrap();
        let (pieces, faults) = found(&path);
        assert_eq!(pieces, 1);
        assert!(!faults.is_empty());
    }
}
