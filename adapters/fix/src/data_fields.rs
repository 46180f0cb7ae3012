//! Fields that may hold any bytes, SOH among them: a length field directly before them says how many.

use crate::value::Tag;

/// Which length field announces which data field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFields {
    /// (length's tag, data's tag), ascending.
    pairs: Vec<(Tag, Tag)>,
}

/// Those of the specification.
impl Default for DataFields {
    fn default() -> Self {
        Self { pairs: STANDARD.to_vec() }
    }
}

impl DataFields {
    /// Adds a pair of a dictionary. One of the specification's own is replaced.
    pub fn add(&mut self, length: Tag, data: Tag) {
        match self.pairs.binary_search_by_key(&length, |pair| pair.0) {
            Ok(at) => self.pairs[at].1 = data,
            Err(at) => self.pairs.insert(at, (length, data)),
        }
    }

    pub fn add_all(&mut self, other: &Self) {
        for (length, data) in &other.pairs {
            self.add(*length, *data);
        }
    }

    /// The data field whose length stands in `length`.
    pub fn announced_by(&self, length: Tag) -> Option<Tag> {
        // Asked of every field that is read, most of which have lower tags than any length.
        if self.pairs.first().is_none_or(|first| length < first.0) {
            return None;
        }
        let at = self.pairs.binary_search_by_key(&length, |pair| pair.0).ok()?;
        Some(self.pairs[at].1)
    }

    /// The field that has this data field's length.
    pub fn length_of(&self, data: Tag) -> Option<Tag> {
        self.pairs.iter().find(|pair| pair.1 == data).map(|pair| pair.0)
    }
}

/// All pairs up to FIX 5.0 SP2 with its extension packs, ascending.
const STANDARD: [(Tag, Tag); 83] = [
    (90, 91),
    (93, 89),
    (95, 96),
    (212, 213),
    (348, 349),
    (350, 351),
    (352, 353),
    (354, 355),
    (356, 357),
    (358, 359),
    (360, 361),
    (362, 363),
    (364, 365),
    (445, 446),
    (618, 619),
    (621, 622),
    (1184, 1185),
    (1277, 1278),
    (1280, 1281),
    (1282, 1283),
    (1397, 1398),
    (1401, 1402),
    (1403, 1404),
    (1468, 1469),
    (1525, 1527),
    (1578, 1579),
    (1620, 1621),
    (1664, 1665),
    (1678, 1697),
    (1733, 1734),
    (1871, 1872),
    (1874, 1875),
    (2072, 2073),
    (2074, 2075),
    (2111, 2112),
    (2179, 2180),
    (2287, 2288),
    (2351, 2352),
    (2372, 2371),
    (2481, 2482),
    (2494, 2493),
    (2522, 2521),
    (2637, 2638),
    (2651, 2652),
    (2665, 2666),
    (2715, 2716),
    (2718, 2719),
    (2721, 2722),
    (2797, 2798),
    (2802, 2801),
    (2809, 2808),
    (2815, 2814),
    (40004, 40005),
    (40008, 40009),
    (40978, 40979),
    (40980, 40981),
    (40982, 40983),
    (40984, 40985),
    (40986, 40987),
    (40988, 40989),
    (41083, 41084),
    (41101, 41102),
    (41107, 41108),
    (41256, 41257),
    (41320, 41321),
    (41324, 41325),
    (41458, 41459),
    (41476, 41477),
    (41482, 41483),
    (41653, 41654),
    (41710, 41711),
    (41806, 41807),
    (41811, 41812),
    (41873, 41874),
    (41969, 41970),
    (42025, 42026),
    (42171, 42172),
    (42451, 42452),
    (42652, 42653),
    (42947, 42948),
    (43109, 42684),
    (43110, 42486),
    (43111, 42982),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_found_from_both_ends() {
        assert!(STANDARD.is_sorted_by_key(|pair| pair.0));
        let fields = DataFields::default();
        for (length, data) in STANDARD {
            assert_eq!(fields.announced_by(length), Some(data));
            assert_eq!(fields.length_of(data), Some(length));
        }
        assert_eq!(fields.announced_by(96), None);
    }

    #[test]
    fn a_dictionary_adds_its_own() {
        let mut fields = DataFields::default();
        fields.add(9001, 9002);
        fields.add(95, 9003);
        assert_eq!(fields.announced_by(9001), Some(9002));
        assert_eq!(fields.announced_by(95), Some(9003));
        assert_eq!(fields.announced_by(354), Some(355));
    }
}
