//! Input embeddings: token rows, soft mixtures of rows, position rows. Operation: ops/embedding.rs.
//!
//! ```text
//! forward   id >= 0     x[n] = table[id]
//!           id = -1     x[n] stays: a latent was written there before
//!           id = -2-s   x[n] = sum_j weight[s,j] * table[soft_id[s,j]]      j ascending, fused multiply-adds
//!           then        x[n] += position_table[position[n]]
//! backward  dtable[v] += sum over n, j of (1 or weight[s,j]) * dx[n]        n, then j, ascending
//!           dposition[p] += sum over n of dx[n]                             n ascending
//!           dweight[s,j] = sum over n of dx[n] . table[soft_id[s,j]]        n ascending
//! ```

use super::float::{Float, sum_over};
use super::{isa, parallel};
use half::bf16;

/// An element of a table that widens exactly to the type computed in.
pub trait Stored<T: Float>: Copy + Send + Sync {
    /// The same number.
    fn widen(self) -> T;
}

impl<T: Float> Stored<T> for T {
    #[inline(always)]
    fn widen(self) -> T {
        self
    }
}

impl Stored<f32> for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// What stands at each position; the caller has checked every index.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a, T> {
    /// Per position: a token, -1, or -2-s.
    pub ids: &'a [i32],
    /// Mixtures: token ids, `kept` a row.
    pub soft_ids: &'a [u32],
    /// Mixtures: weights, `kept` a row.
    pub soft_weights: &'a [T],
    /// Tokens of one mixture.
    pub kept: usize,
}

impl<'a, T> Inputs<'a, T> {
    /// Ids and weights of the mixture that id -2-s names.
    #[inline(always)]
    fn soft(&self, id: i32) -> (&'a [u32], &'a [T]) {
        let row = (-2 - id) as usize * self.kept;
        (&self.soft_ids[row..row + self.kept], &self.soft_weights[row..row + self.kept])
    }
}

/// Writes the token and soft rows of `x[N, cols]`.
pub fn forward<W: Stored<T>, T: Float>(inputs: Inputs<T>, table: &[W], cols: usize, x: &mut [T]) {
    parallel::rows(x, cols, 2 * cols * inputs.kept.max(1), |first, x| {
        isa::run(
            #[inline(always)]
            || {
                for (x, &id) in x.chunks_exact_mut(cols).zip(&inputs.ids[first..]) {
                    if id >= 0 {
                        for (x, w) in x.iter_mut().zip(row(table, id as usize, cols)) {
                            *x = w.widen();
                        }
                    } else if id < -1 {
                        let (ids, weights) = inputs.soft(id);
                        x.fill(T::ZERO);
                        for (&id, &weight) in ids.iter().zip(weights) {
                            for (x, w) in x.iter_mut().zip(row(table, id as usize, cols)) {
                                *x = w.widen().mul_add(weight, *x);
                            }
                        }
                    }
                }
            },
        );
    });
}

/// x[n] += table[position[n]].
pub fn add_positions<W: Stored<T>, T: Float>(positions: &[u32], table: &[W], cols: usize, x: &mut [T]) {
    parallel::rows(x, cols, cols, |first, x| {
        isa::run(
            #[inline(always)]
            || {
                for (x, &position) in x.chunks_exact_mut(cols).zip(&positions[first..]) {
                    for (x, w) in x.iter_mut().zip(row(table, position as usize, cols)) {
                        *x += w.widen();
                    }
                }
            },
        );
    });
}

/// Gradient of the table, added. Each task owns a run of table rows and looks through all positions for them,
/// so that a row's contributions arrive in packed order on any number of threads.
pub fn backward_table<T: Float>(dx: &[T], inputs: Inputs<T>, cols: usize, dtable: &mut [T]) {
    let cost = share(inputs.ids.len() * inputs.kept.max(1), cols, dtable.len());
    parallel::rows(dtable, cols, cost, |first, dtable| {
        isa::run(
            #[inline(always)]
            || {
                let owned = first..first + dtable.len() / cols;
                for (dx, &id) in dx.chunks_exact(cols).zip(inputs.ids) {
                    if id >= 0 && owned.contains(&(id as usize)) {
                        add(row_mut(dtable, id as usize - first, cols), dx);
                    } else if id < -1 {
                        let (ids, weights) = inputs.soft(id);
                        for (&id, &weight) in
                            ids.iter().zip(weights).filter(|(id, _)| owned.contains(&(**id as usize)))
                        {
                            for (sum, dx) in row_mut(dtable, id as usize - first, cols).iter_mut().zip(dx) {
                                *sum = dx.mul_add(weight, *sum);
                            }
                        }
                    }
                }
            },
        );
    });
}

/// Gradient of the position table, added; tasks as in [`backward_table`].
pub fn backward_positions<T: Float>(dx: &[T], positions: &[u32], cols: usize, dtable: &mut [T]) {
    let cost = share(positions.len(), cols, dtable.len());
    parallel::rows(dtable, cols, cost, |first, dtable| {
        isa::run(
            #[inline(always)]
            || {
                let owned = first..first + dtable.len() / cols;
                for (dx, &position) in dx.chunks_exact(cols).zip(positions) {
                    if owned.contains(&(position as usize)) {
                        add(row_mut(dtable, position as usize - first, cols), dx);
                    }
                }
            },
        );
    });
}

/// Gradient of the mixtures' weights, assigned; 0 for a mixture that no position uses.
pub fn backward_weights<W: Stored<T>, T: Float>(
    dx: &[T],
    inputs: Inputs<T>,
    table: &[W],
    cols: usize,
    dweights: &mut [T],
) {
    let kept = inputs.kept;
    parallel::rows(dweights, kept, 2 * kept * cols, |first, dweights| {
        isa::run(
            #[inline(always)]
            || {
                for (s, dweights) in dweights.chunks_exact_mut(kept).enumerate() {
                    dweights.fill(T::ZERO);
                    let id = -2 - (first + s) as i32;
                    let (ids, _) = inputs.soft(id);
                    for (dx, _) in
                        dx.chunks_exact(cols.max(1)).zip(inputs.ids).filter(|(_, found)| **found == id)
                    {
                        for (sum, &id) in dweights.iter_mut().zip(ids) {
                            let row = row(table, id as usize, cols);
                            *sum += sum_over(cols, |c| dx[c] * row[c].widen());
                        }
                    }
                }
            },
        );
    });
}

/// Work of one owned row when `count` contributions of `cols` are spread over `elements` of a table.
fn share(count: usize, cols: usize, elements: usize) -> usize {
    (count * cols * cols).div_ceil(elements.max(1))
}

#[inline(always)]
fn row<W>(table: &[W], index: usize, cols: usize) -> &[W] {
    &table[index * cols..(index + 1) * cols]
}

#[inline(always)]
fn row_mut<T>(table: &mut [T], index: usize, cols: usize) -> &mut [T] {
    &mut table[index * cols..(index + 1) * cols]
}

#[inline(always)]
fn add<T: Float>(to: &mut [T], from: &[T]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += *from;
    }
}
