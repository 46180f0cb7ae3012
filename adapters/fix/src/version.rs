//! Versions of FIX, as BeginString (8), ApplVerID (1128) and DefaultApplVerID (1137) name them.

use std::fmt;

use crate::value::Precision;

/// Version of the session layer: what BeginString (8) says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BeginString {
    Fix40,
    Fix41,
    Fix42,
    Fix43,
    Fix44,
    /// The session layer of FIX 5.0 and later.
    Fixt11,
}

impl BeginString {
    pub const ALL: [Self; 6] =
        [Self::Fix40, Self::Fix41, Self::Fix42, Self::Fix43, Self::Fix44, Self::Fixt11];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fix40 => "FIX.4.0",
            Self::Fix41 => "FIX.4.1",
            Self::Fix42 => "FIX.4.2",
            Self::Fix43 => "FIX.4.3",
            Self::Fix44 => "FIX.4.4",
            Self::Fixt11 => "FIXT.1.1",
        }
    }

    /// `None` for a version that does not exist.
    pub fn parse(text: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str().as_bytes() == text)
    }

    /// Of SendingTime (52) and OrigSendingTime (122): milliseconds came with FIX 4.2.
    pub fn time_precision(self) -> Precision {
        if self < Self::Fix42 { Precision::Seconds } else { Precision::Millis }
    }
}

impl fmt::Display for BeginString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Version of the application layer where that is told apart from the session's: ApplVerID (1128) and
/// DefaultApplVerID (1137) of FIXT.1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ApplVerId {
    Fix27,
    Fix30,
    Fix40,
    Fix41,
    Fix42,
    Fix43,
    Fix44,
    Fix50,
    Fix50Sp1,
    Fix50Sp2,
}

impl ApplVerId {
    /// In the order of their codes, 0 to 9.
    pub const ALL: [Self; 10] = [
        Self::Fix27,
        Self::Fix30,
        Self::Fix40,
        Self::Fix41,
        Self::Fix42,
        Self::Fix43,
        Self::Fix44,
        Self::Fix50,
        Self::Fix50Sp1,
        Self::Fix50Sp2,
    ];

    /// As it stands in 1128 and 1137.
    pub fn code(self) -> &'static str {
        match self {
            Self::Fix27 => "0",
            Self::Fix30 => "1",
            Self::Fix40 => "2",
            Self::Fix41 => "3",
            Self::Fix42 => "4",
            Self::Fix43 => "5",
            Self::Fix44 => "6",
            Self::Fix50 => "7",
            Self::Fix50Sp1 => "8",
            Self::Fix50Sp2 => "9",
        }
    }

    pub fn from_code(code: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.code().as_bytes() == code)
    }

    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fix27 => "FIX.2.7",
            Self::Fix30 => "FIX.3.0",
            Self::Fix40 => "FIX.4.0",
            Self::Fix41 => "FIX.4.1",
            Self::Fix42 => "FIX.4.2",
            Self::Fix43 => "FIX.4.3",
            Self::Fix44 => "FIX.4.4",
            Self::Fix50 => "FIX.5.0",
            Self::Fix50Sp1 => "FIX.5.0SP1",
            Self::Fix50Sp2 => "FIX.5.0SP2",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.name() == name)
    }
}

impl fmt::Display for ApplVerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_reads_as_it_is_written() {
        for version in BeginString::ALL {
            assert_eq!(BeginString::parse(version.as_str().as_bytes()), Some(version));
        }
        for (number, version) in ApplVerId::ALL.into_iter().enumerate() {
            assert_eq!(version.code(), number.to_string());
            assert_eq!(ApplVerId::from_code(version.code().as_bytes()), Some(version));
            assert_eq!(ApplVerId::from_name(version.name()), Some(version));
        }
        for unknown in [&b"FIX.4.5"[..], b"FIX.5.0", b"fix.4.4", b"FIX.4.4 ", b""] {
            assert_eq!(BeginString::parse(unknown), None);
        }
        assert_eq!(ApplVerId::from_code(b"10"), None);
    }

    #[test]
    fn milliseconds_came_with_4_2() {
        let precisions = BeginString::ALL.map(BeginString::time_precision);
        use Precision::{Millis, Seconds};
        assert_eq!(precisions, [Seconds, Seconds, Millis, Millis, Millis, Millis]);
    }
}
