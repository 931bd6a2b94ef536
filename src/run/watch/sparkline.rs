//! A curve in braille: two columns of dots a cell, four dots a row of cells, filled from below.

/// Dots of the left and the right column of a cell, from below.
const DOTS: [[u32; 4]; 2] = [[0x40, 0x04, 0x02, 0x01], [0x80, 0x20, 0x10, 0x08]];
/// The cell without dots.
const EMPTY: u32 = 0x2800;

/// How many of `levels` dots stand for `value` between `low` and `high`: 1 is the lowest value, all are the highest.
pub fn dots(value: f64, low: f64, high: f64, levels: usize) -> usize {
    let most = levels.saturating_sub(1) as f64;
    // Halves, so that a range of the largest numbers does not leave the range of numbers.
    let share = (value / 2.0 - low / 2.0) / (high / 2.0 - low / 2.0);
    let above = if share.is_finite() { (share.clamp(0.0, 1.0) * most).round() } else { 0.0 };
    1 + above as usize
}

/// `values` between `low` and `high` as `rows` lines (from above) of as many cells as they take, at most `cells`: a column
/// of dots a value, or a whole cell where there is room; values that are none leave a gap. The last values are shown where
/// there are too many.
pub fn sparkline(values: &[Option<f64>], range: (f64, f64), cells: usize, rows: usize) -> Vec<String> {
    let values = &values[values.len().saturating_sub(2 * cells)..];
    let each = if values.len() <= cells { 2 } else { 1 };
    let heights: Vec<usize> = values
        .iter()
        .map(|value| value.map_or(0, |value| dots(value, range.0, range.1, 4 * rows)))
        .flat_map(|height| std::iter::repeat_n(height, each))
        .collect();
    (0..rows)
        .rev()
        .map(|row| {
            let cell = |pair: &[usize]| {
                let column = |(column, height): (usize, &usize)| -> u32 {
                    DOTS[column][..height.saturating_sub(4 * row).min(4)].iter().sum()
                };
                char::from_u32(EMPTY + pair.iter().enumerate().map(column).sum::<u32>()).unwrap_or(' ')
            };
            heights.chunks(2).map(cell).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_filled_from_below() {
        let values = [Some(0.0), Some(1.0), None, Some(2.0), Some(3.0)];
        // A column a value: 1, 2, 0, 3 and 4 dots.
        assert_eq!(sparkline(&values, (0.0, 3.0), 3, 1), ["⣠⢰⡇"]);
        // A cell a value.
        assert_eq!(sparkline(&values, (0.0, 3.0), 5, 1), ["⣀⣤⠀⣶⣿"]);
        // Two thirds of seven levels above the lowest are 6 dots.
        assert_eq!(sparkline(&values[3..], (0.0, 3.0), 2, 2), ["⣤⣿", "⣿⣿"]);
        // The last ones, where there is no room.
        assert_eq!(sparkline(&values, (0.0, 3.0), 1, 1), ["⣾"]);
        assert_eq!(sparkline(&[Some(1.0); 2], (1.0, 1.0), 2, 1), ["⣀⣀"]);
        assert_eq!(sparkline(&values, (0.0, 3.0), 0, 1), [""]);
    }
}
