//! Figures over several runs: the median, how far they lie apart, and each of them.

use serde::Serialize;

/// One figure over all runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    /// In the order in which they were measured.
    pub(super) runs: Vec<f64>,
}

impl Spread {
    pub(super) fn add(&mut self, value: f64) {
        self.runs.push(rounded(value));
        let mut sorted = self.runs.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        self.median = match sorted.len() % 2 {
            0 => rounded(f64::midpoint(sorted[middle - 1], sorted[middle])),
            _ => sorted[middle],
        };
        self.min = sorted[0];
        self.max = sorted[sorted.len() - 1];
    }

    /// Half the distance between the lowest and the highest run, in percent of the median; none of a single run.
    pub(super) fn plus_minus_percent(&self) -> Option<f64> {
        (self.runs.len() > 1 && self.median > 0.0).then(|| (self.max - self.min) / 2.0 / self.median * 100.0)
    }
}

/// The value below which `share` of the sorted values lie; 0 of none.
pub(super) fn percentile(sorted: &[u32], share: f64) -> u32 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// Three digits or more: what lies behind them is noise.
pub(super) fn rounded(value: f64) -> f64 {
    let unit = match value.abs() {
        100.0.. => 1.0,
        10.0.. => 10.0,
        _ => 100.0,
    };
    (value * unit).round() / unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middle_ones() {
        let mut spread = Spread::default();
        spread.add(300.0);
        assert_eq!((spread.median, spread.plus_minus_percent()), (300.0, None));
        spread.add(100.0);
        assert_eq!(spread.median, 200.0);
        spread.add(120.0);
        assert_eq!((spread.median, spread.min, spread.max), (120.0, 100.0, 300.0));
        assert_eq!(spread.runs, [300.0, 100.0, 120.0]);
        assert!((spread.plus_minus_percent().unwrap() - 83.333).abs() < 0.01);
    }

    #[test]
    fn percentiles_are_of_the_sorted_values() {
        let values: Vec<u32> = (1..=100).collect();
        assert_eq!(
            (percentile(&values, 0.5), percentile(&values, 0.99), percentile(&values, 1.0)),
            (50, 99, 100)
        );
        assert_eq!(percentile(&[], 0.5), 0);
    }

    #[test]
    fn figures_keep_three_digits() {
        assert_eq!((rounded(1234.5), rounded(12.34), rounded(1.234)), (1235.0, 12.3, 1.23));
    }
}
