//! What is not as it was written, and what becomes of it.

use super::table::Table;

/// What becomes of something that is not as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// One bit had flipped, and a checksum, hash or signature says which.
    Mended,
    /// It follows from what is sound.
    Rebuilt,
    /// Its content is gone: its deliveries that had not ended are dead, for a person to see.
    Dead,
    Lost,
}

impl Fate {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mended => "mended",
            Self::Rebuilt => "rebuilt",
            Self::Dead => "dead",
            Self::Lost => "lost",
        }
    }
}

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Damage {
    pub fate: Fate,
    /// A table of the database, or `file`, `page`, `entry`.
    pub what: String,
    /// Which row, file or page.
    pub place: String,
    /// Of the message or delivery, where it is known.
    pub id: Option<String>,
    pub why: String,
}

impl Damage {
    pub(super) fn file(path: impl Into<String>, fate: Fate, why: impl Into<String>) -> Self {
        Self { fate, what: "file".to_owned(), place: path.into(), id: None, why: why.into() }
    }

    pub(super) fn row(
        table: Table,
        place: impl ToString,
        id: Option<String>,
        fate: Fate,
        why: impl Into<String>,
    ) -> Self {
        Self { fate, what: table.name().to_owned(), place: place.to_string(), id, why: why.into() }
    }

    /// As programs read it.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "fate": self.fate.as_str(),
            "what": self.what,
            "place": self.place,
            "id": self.id,
            "why": self.why,
        })
    }
}
