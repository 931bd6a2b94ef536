//! The feedback of final hidden states as inputs (Hao et al. 2024, "Coconut"). Operation: ops/latent.rs.
//!
//! ```text
//! forward   id = -1                    x[n] = m[n] * hidden[row[n]]
//! backward  id = -1, source[n] >= 0    dhidden[source[n]] += m[n] * dx[n]      n ascending
//! store     last[n] != 0               feedback[row[n]] = hidden[n]
//! ```

use super::float::Float;
use super::mask::{Mask, add_row, assign_row};
use super::{isa, parallel};

/// The id of a position that holds a latent.
pub const LATENT: i32 = -1;

/// Writes the latent rows of `x[N, cols]`.
pub fn forward<T: Float>(
    hidden: &[T],
    rows: &[u32],
    ids: &[i32],
    mask: Option<Mask>,
    cols: usize,
    x: &mut [T],
) {
    let scale = T::from_f64(mask.map_or(1.0, |mask| mask.scale));
    parallel::rows(x, cols, 2 * cols, |first, x| {
        isa::run(
            #[inline(always)]
            || {
                for (n, x) in x.chunks_exact_mut(cols).enumerate() {
                    let n = first + n;
                    if ids[n] == LATENT {
                        let from = rows[n] as usize * cols;
                        let words = mask.and_then(|mask| mask.row(n));
                        assign_row(words, scale, &hidden[from..from + cols], x);
                    }
                }
            },
        );
    });
}

/// Adds to `dhidden[M, cols]`. Each task owns a run of its rows and looks through all positions for them.
pub fn backward<T: Float>(
    dx: &[T],
    ids: &[i32],
    source: &[i32],
    mask: Option<Mask>,
    cols: usize,
    dhidden: &mut [T],
) {
    let scale = T::from_f64(mask.map_or(1.0, |mask| mask.scale));
    let cost = (2 * ids.len() * cols * cols).div_ceil(dhidden.len().max(1));
    parallel::rows(dhidden, cols, cost, |first, dhidden| {
        isa::run(
            #[inline(always)]
            || {
                let owned = first..first + dhidden.len() / cols;
                for (n, dx) in dx.chunks_exact(cols).enumerate() {
                    let row = source[n] as usize;
                    if ids[n] == LATENT && source[n] >= 0 && owned.contains(&row) {
                        let to = (row - first) * cols;
                        add_row(mask.and_then(|mask| mask.row(n)), scale, dx, &mut dhidden[to..to + cols]);
                    }
                }
            },
        );
    });
}

/// Keeps the flagged rows of `hidden[N, cols]` in `feedback[R, cols]`; where two name one row the later one stays.
pub fn store<T: Float>(hidden: &[T], rows: &[u32], last: &[u32], cols: usize, feedback: &mut [T]) {
    for ((hidden, &row), _) in
        hidden.chunks_exact(cols.max(1)).zip(rows).zip(last).filter(|(_, last)| **last != 0)
    {
        let to = row as usize * cols;
        feedback[to..to + cols].copy_from_slice(hidden);
    }
}
