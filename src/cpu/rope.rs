//! Rotary position embedding of `x[rows, heads * dim]` in place (Su et al. 2021), pairs (i, i + dim/2).
//! Operation: ops/rope.rs.
//!
//! ```text
//! forward   x[i] <- x[i] cos - x[i+dim/2] sin      x[i+dim/2] <- x[i+dim/2] cos + x[i] sin
//! backward  the inverse rotation: the same with -sin
//! ```

use super::float::Float;
use super::{isa, parallel};

/// The angles' cosines and sines, `[positions, half]`.
#[derive(Clone, Copy)]
pub struct Table<'a, T> {
    /// Cosines.
    pub cos: &'a [T],
    /// Sines.
    pub sin: &'a [T],
    /// Half of a head's dimensions.
    pub half: usize,
}

/// Rotates every head of row r by the angles of `positions[r]`; `INVERSE` rotates back.
pub fn rotate<T: Float, const INVERSE: bool>(x: &mut [T], heads: usize, positions: &[u32], table: Table<T>) {
    let half = table.half;
    let width = heads * 2 * half;
    parallel::rows(x, width, 2 * width, |first, x| {
        isa::run(
            #[inline(always)]
            || {
                for (row, &position) in x.chunks_exact_mut(width).zip(&positions[first..]) {
                    let cos = &table.cos[position as usize * half..][..half];
                    let sin = &table.sin[position as usize * half..][..half];
                    for head in row.chunks_exact_mut(2 * half) {
                        let (low, high) = head.split_at_mut(half);
                        let pairs = low.iter_mut().zip(high).zip(cos.iter().zip(sin));
                        for ((low, high), (&cos, &sin)) in pairs {
                            let sin = if INVERSE { -sin } else { sin };
                            let (a, b) = (*low, *high);
                            *low = a.mul_add(cos, -(b * sin));
                            *high = b.mul_add(cos, a * sin);
                        }
                    }
                }
            },
        );
    });
}
