//! Rows on their way into a statement: fixed-width records in one blob, long values in one heap beside it.
//!
//! A statement through sqlx costs a hand-over to another thread, which is worth hundreds of rows. So the whole of a commit
//! travels as one call with a handful of parameters, and SQLite cuts the rows out of them by position.

/// Digits of a 64-bit integer with its sign.
const INT_BYTES: usize = 20;
/// Stands for NULL in an optional integer.
const NULL_INT: i64 = i64::MIN;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Int,
    OptInt,
    /// 16 bytes; never all zero where a value is present.
    Key,
    OptKey,
    Blob,
    OptBlob,
    Text,
    OptText,
}

impl Kind {
    const fn width(self) -> usize {
        match self {
            Self::Int | Self::OptInt => INT_BYTES,
            Self::Key | Self::OptKey => 16,
            Self::Blob | Self::OptBlob | Self::Text | Self::OptText => 2 * INT_BYTES,
        }
    }

    /// The SQL expression that cuts this field out of record `i` of parameter `records`.
    fn expression(self, records: &str, heap: &str, record_bytes: usize, offset: usize) -> String {
        let at = |offset: usize, length: usize| {
            format!("substr({records}, i * {record_bytes} + {}, {length})", offset + 1)
        };
        let int = |offset: usize| format!("CAST({} AS INTEGER)", at(offset, INT_BYTES));
        let span = || format!("substr({heap}, {} + 1, {})", int(offset), int(offset + INT_BYTES));
        let present = |value: String| format!("CASE WHEN {} >= 0 THEN {value} END", int(offset));
        match self {
            Self::Int => int(offset),
            Self::OptInt => format!("NULLIF({}, {NULL_INT})", int(offset)),
            Self::Key => at(offset, 16),
            Self::OptKey => format!("NULLIF({}, zeroblob(16))", at(offset, 16)),
            Self::Blob => span(),
            Self::OptBlob => present(span()),
            Self::Text => format!("CAST({} AS TEXT)", span()),
            Self::OptText => present(format!("CAST({} AS TEXT)", span())),
        }
    }
}

/// The columns of one kind of record.
pub(crate) struct Layout {
    pub(crate) columns: &'static [(&'static str, Kind)],
}

impl Layout {
    fn record_bytes(&self) -> usize {
        self.columns.iter().map(|(_, kind)| kind.width()).sum()
    }

    /// `name, name, …`
    pub(crate) fn names(&self) -> String {
        self.columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }

    /// `WITH RECURSIVE k(i) …, r(names) AS (…)`: the records of parameter `$records`, `$count` of them, as table `r`.
    pub(crate) fn with(&self, records: u32, count: u32, heap: u32) -> String {
        let (records, heap) = (format!("${records}"), format!("${heap}"));
        let record_bytes = self.record_bytes();
        let mut offset = 0;
        let mut expressions = Vec::with_capacity(self.columns.len());
        for (_, kind) in self.columns {
            expressions.push(kind.expression(&records, &heap, record_bytes, offset));
            offset += kind.width();
        }
        format!(
            "WITH RECURSIVE k(i) AS (SELECT 0 WHERE ${count} > 0 UNION ALL SELECT i + 1 FROM k WHERE i + 1 < ${count}), \
             r({}) AS (SELECT {} FROM k)",
            self.names(),
            expressions.join(", ")
        )
    }
}

/// The heap that all records of a commit share.
#[derive(Default)]
pub(crate) struct Heap {
    bytes: Vec<u8>,
}

impl Heap {
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Appends what `write` writes and returns its span.
    pub(crate) fn append(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Span {
        let offset = self.bytes.len();
        write(&mut self.bytes);
        Span { offset, length: self.bytes.len() - offset }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    offset: usize,
    length: usize,
}

/// Records of one layout; fields are pushed in the layout's order.
pub(crate) struct Records {
    layout: &'static Layout,
    bytes: Vec<u8>,
    count: usize,
    /// Position in the layout of the next field; guards against a pushed field too many or of another kind.
    next: usize,
}

impl Records {
    pub(crate) fn new(layout: &'static Layout) -> Self {
        Self { layout, bytes: Vec::new(), count: 0, next: 0 }
    }

    pub(crate) fn count(&self) -> i64 {
        debug_assert_eq!(self.next, 0, "the last record is incomplete");
        i64::try_from(self.count).unwrap_or(i64::MAX)
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(crate) fn int(&mut self, value: i64) -> &mut Self {
        self.expect(&[Kind::Int]);
        self.digits(value);
        self
    }

    pub(crate) fn flag(&mut self, value: bool) -> &mut Self {
        self.int(i64::from(value))
    }

    pub(crate) fn opt_int(&mut self, value: Option<i64>) -> &mut Self {
        self.expect(&[Kind::OptInt]);
        self.digits(value.unwrap_or(NULL_INT));
        self
    }

    pub(crate) fn key(&mut self, value: &[u8; 16]) -> &mut Self {
        self.expect(&[Kind::Key]);
        self.bytes.extend_from_slice(value);
        self
    }

    pub(crate) fn opt_key(&mut self, value: Option<&[u8; 16]>) -> &mut Self {
        self.expect(&[Kind::OptKey]);
        self.bytes.extend_from_slice(value.unwrap_or(&[0; 16]));
        self
    }

    pub(crate) fn span(&mut self, span: Span) -> &mut Self {
        self.expect(&[Kind::Blob, Kind::Text]);
        self.put_span(Some(span));
        self
    }

    pub(crate) fn opt_span(&mut self, span: Option<Span>) -> &mut Self {
        self.expect(&[Kind::OptBlob, Kind::OptText]);
        self.put_span(span);
        self
    }

    fn put_span(&mut self, span: Option<Span>) {
        let part = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.digits(span.map_or(-1, |span| part(span.offset)));
        self.digits(span.map_or(0, |span| part(span.length)));
    }

    fn expect(&mut self, kinds: &[Kind]) {
        debug_assert!(
            kinds.contains(&self.layout.columns[self.next].1),
            "{}",
            self.layout.columns[self.next].0
        );
        self.next += 1;
        if self.next == self.layout.columns.len() {
            self.next = 0;
            self.count += 1;
        }
    }

    fn digits(&mut self, value: i64) {
        let mut field = [b' '; INT_BYTES];
        let mut rest = value.unsigned_abs();
        let mut at = INT_BYTES;
        loop {
            at -= 1;
            field[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        if value < 0 {
            at -= 1;
            field[at] = b'-';
        }
        self.bytes.extend_from_slice(&field);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx::{Connection, Row, SqliteConnection};

    static LAYOUT: Layout = Layout {
        columns: &[
            ("a", Kind::Int),
            ("b", Kind::OptInt),
            ("c", Kind::Key),
            ("d", Kind::OptKey),
            ("e", Kind::Blob),
            ("f", Kind::OptBlob),
            ("g", Kind::Text),
            ("h", Kind::OptText),
        ],
    };

    #[tokio::test]
    async fn sqlite_reads_what_was_written() {
        let mut heap = Heap::default();
        let mut records = Records::new(&LAYOUT);
        let blob = heap.append(|bytes| bytes.extend_from_slice(&[0, 255, 7]));
        let text = heap.append(|bytes| bytes.extend_from_slice("grüezi".as_bytes()));
        let empty = heap.append(|_| {});
        records
            .int(i64::MAX)
            .opt_int(None)
            .key(&[1; 16])
            .opt_key(None)
            .span(blob)
            .opt_span(None)
            .span(text)
            .opt_span(None);
        records.int(-5).opt_int(Some(0)).key(&[2; 16]).opt_key(Some(&[3; 16]));
        records.span(empty).opt_span(Some(blob)).span(empty).opt_span(Some(text));
        let count = records.count();
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        let sql = format!("{} SELECT * FROM r", LAYOUT.with(1, 2, 3));
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(records.into_bytes())
            .bind(count)
            .bind(heap.into_bytes())
            .fetch_all(&mut connection)
            .await
            .unwrap();
        assert_eq!(rows.len(), 2);
        let (first, second) = (&rows[0], &rows[1]);
        assert_eq!(first.get::<i64, _>("a"), i64::MAX);
        assert_eq!(first.get::<Option<i64>, _>("b"), None);
        assert_eq!(first.get::<Vec<u8>, _>("c"), [1; 16]);
        assert_eq!(first.get::<Option<Vec<u8>>, _>("d"), None);
        assert_eq!(first.get::<Vec<u8>, _>("e"), [0, 255, 7]);
        assert_eq!(first.get::<Option<Vec<u8>>, _>("f"), None);
        assert_eq!(first.get::<String, _>("g"), "grüezi");
        assert_eq!(first.get::<Option<String>, _>("h"), None);
        assert_eq!(second.get::<i64, _>("a"), -5);
        assert_eq!(second.get::<Option<i64>, _>("b"), Some(0));
        assert_eq!(second.get::<Option<Vec<u8>>, _>("d"), Some(vec![3; 16]));
        assert_eq!(second.get::<Vec<u8>, _>("e"), Vec::<u8>::new());
        assert_eq!(second.get::<Option<Vec<u8>>, _>("f"), Some(vec![0, 255, 7]));
        assert_eq!(second.get::<String, _>("g"), "");
        assert_eq!(second.get::<Option<String>, _>("h"), Some("grüezi".into()));
    }
}
