//! Axes: a range of values, round numbers on it, and where a value stands among pixels.

/// Values from `low` to `high` along a line of pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    ceiling: f64,
}

impl Scale {
    /// A scale that holds `low` to `high`, between the pixels `from` and `to`. Where both are one value, some room is made
    /// around it.
    pub fn new(low: f64, high: f64, from: f64, to: f64) -> Scale {
        let largest = low.abs().max(high.abs());
        // Below this, steps between ticks would have no digits left.
        let (room, nothing) = (1e-9 * largest, largest < 1e-280);
        let (low, high) = match high - low > room && !nothing {
            true => (low, high),
            false if nothing => (-1.0, 1.0),
            false => (low - 0.5 * low.abs(), high + 0.5 * high.abs()),
        };
        Scale { low, high, from, to, ceiling: f64::INFINITY }
    }

    /// The same, where values above `ceiling` stand at it.
    pub fn below(self, ceiling: Option<f64>) -> Scale {
        Scale { ceiling: ceiling.unwrap_or(f64::INFINITY), ..self }
    }

    /// The pixel of a value.
    pub fn place(&self, value: f64) -> f64 {
        // Halves: the difference of two large numbers of other signs may leave the range.
        let (low, high) = (self.low / 2.0, self.high / 2.0);
        self.from + (self.to - self.from) * ((value.min(self.ceiling) / 2.0 - low) / (high - low))
    }

    /// Round values on it, about `count`, with their labels. A label reads back as its value, to the bit.
    pub fn ticks(&self, count: usize, whole: bool) -> Vec<(f64, String)> {
        let rough = (self.high / count as f64) - (self.low / count as f64);
        let mut exponent = rough.log10().floor() as i32;
        let digit = rough / 10f64.powi(exponent);
        let mut factor: i64 = match digit {
            d if d <= 1.0 => 1,
            d if d <= 2.0 => 2,
            d if d <= 5.0 => 5,
            _ => 10,
        };
        if whole && exponent < 0 {
            (factor, exponent) = (1, 0);
        }
        let step = factor as f64 * 10f64.powi(exponent);
        let (first, last) =
            ((self.low / step - 1e-9).ceil() as i64, (self.high / step + 1e-9).floor() as i64);
        let tick = |k: i64| {
            let value: f64 = format!("{}e{exponent}", k.saturating_mul(factor)).parse().unwrap_or(0.0);
            (value, label(value, exponent + i32::from(factor == 10)))
        };
        (first..=last.min(first.saturating_add(4 * count as i64))).map(tick).collect()
    }
}

/// A tick's label; `exponent` is that of the step between ticks.
fn label(value: f64, exponent: i32) -> String {
    match value.abs() {
        size if size == 0.0 && exponent < -4 => "0".into(),
        size if exponent < -4 || size >= 1e7 => format!("{value:e}"),
        _ => format!("{value:.*}", exponent.min(0).unsigned_abs() as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_read_back_and_lie_on_the_axis() {
        let ranges = [
            (0.0, 1.0),
            (-0.3, 0.7),
            (0.0, 1.2e-5),
            (-4e299, 9e299),
            (0.0, 1_000_000.0),
            (0.41, 0.43),
            (12_345.0, 12_346.0),
            (5.0, 5.0),
            (0.0, 0.0),
            (1e-300, 3e-300),
            (1e-200, 3e-200),
        ];
        for (low, high) in ranges {
            let scale = Scale::new(low, high, 50.0, 450.0);
            let ticks = scale.ticks(5, false);
            assert!((2..=13).contains(&ticks.len()), "{low} to {high}: {ticks:?}");
            for (value, label) in &ticks {
                assert_eq!(label.parse::<f64>().unwrap(), *value, "{low} to {high}");
                let place = scale.place(*value);
                assert!((49.9..=450.1).contains(&place), "{label} at {place}");
                assert!(label.len() <= 12, "{label}");
            }
        }
    }

    #[test]
    fn whole_axes_have_whole_labels() {
        let ticks = Scale::new(1.0, 3.0, 0.0, 100.0).ticks(6, true);
        assert_eq!(ticks.iter().map(|tick| tick.1.as_str()).collect::<Vec<_>>(), ["1", "2", "3"]);
    }
}
