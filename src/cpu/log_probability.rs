//! Log-probabilities and entropies of a softmax over a vocabulary, holding few logits at a time.
//! Operation: ops/log_probability.rs. The sampler (cpu/sampler.rs) shares the row arithmetic, [`Running`].
//!
//! ```text
//! s[r,v] = (sum_k h[r,k] w[v,k]) / T        M[r] = max_v s[r,v]       Z[r] = sum_v exp(s[r,v] - M[r])
//! log p[r,v] = (s[r,v] - M[r]) - ln Z[r]    H[r] = ln Z[r] - (1/Z[r]) sum_v exp(s - M) (s - M)
//! backward   dlogits[r,v] = (dlp[r] (1[v = target] - p[r,v]) - dH[r] p[r,v] (log p[r,v] + H[r])) / T
//!            dh[r]  = sum_v dlogits[r,v] w[v]              dw[v] += sum_r dlogits[r,v] h[r]
//! ```
//!
//! The vocabulary is walked in chunks of [`CHUNK`] ids anchored at id 0; a chunk's maximum and sums are taken in
//! sixteen lanes and merged into the row's in ascending order. Nothing else decides a row's bits. Products are
//! made for panels of a few chunks and at most [`ROW_BLOCK`] rows, which live in scratch memory that a thread
//! keeps; backward makes them again instead of storing them (the idea of "cut cross-entropy",
//! Wijmans et al. 2024), but for the first panels, as many as there is room for in [`Kept`].

use super::float::{Float, LANES, sum_lanes};
use super::gemm::{Accumulate, Bf16Operand, Matrix, MatrixMut, gemm, gemm_bf16};
use super::{isa, parallel};
use half::bf16;
use std::cell::Cell;
use std::fmt::Debug;

/// Ids whose sums are taken together.
pub const CHUNK: usize = 512;
/// Ids whose logits are held at once: whole chunks.
const PANEL: usize = 4 * CHUNK;
/// Rows whose logits are held at once.
pub const ROW_BLOCK: usize = 512;
/// Numbers of a row carried from panel to panel: those of [`Running`] and the target's scaled logit.
const STATE: usize = 4;

/// The softmax statistics of the ids seen so far.
#[derive(Clone, Copy, Debug)]
pub struct Running<T> {
    /// Largest scaled logit.
    pub maximum: T,
    /// Sum of exp(s - maximum).
    pub sum: T,
    /// Sum of exp(s - maximum) * (s - maximum), kept where entropy is wanted.
    pub weighted: T,
}

impl<T: Float> Running<T> {
    /// Nothing seen.
    pub const EMPTY: Self = Running { maximum: T::NEG_INFINITY, sum: T::ZERO, weighted: T::ZERO };

    /// Statistics of all of `logits`, chunk by chunk.
    #[inline(always)]
    pub fn of<const ENTROPY: bool>(logits: &[T], inverse_temperature: T) -> Self {
        let mut running = Running::EMPTY;
        for chunk in logits.chunks(CHUNK) {
            running.absorb::<ENTROPY>(chunk, inverse_temperature);
        }
        running
    }

    /// Adds the next chunk. NaN anywhere makes the sum NaN; minus infinity counts as probability 0.
    #[inline(always)]
    pub fn absorb<const ENTROPY: bool>(&mut self, chunk: &[T], inverse_temperature: T) {
        let (body, tail) = chunk.as_chunks::<LANES>();
        let mut lanes = [T::NEG_INFINITY; LANES];
        for block in body {
            for i in 0..LANES {
                lanes[i] = lanes[i].larger(block[i] * inverse_temperature);
            }
        }
        for i in 0..tail.len() {
            lanes[i] = lanes[i].larger(tail[i] * inverse_temperature);
        }
        let maximum = lanes.into_iter().fold(T::NEG_INFINITY, T::larger);
        // A chunk of zero probability: any shift will do that does not make NaN of -inf - -inf.
        let shift = if maximum == T::NEG_INFINITY { T::ZERO } else { maximum };

        let (mut sums, mut weighted) = ([T::ZERO; LANES], [T::ZERO; LANES]);
        for block in body {
            for i in 0..LANES {
                let distance = block[i] * inverse_temperature - shift;
                add::<T, ENTROPY>(distance, &mut sums[i], &mut weighted[i]);
            }
        }
        for i in 0..tail.len() {
            let distance = tail[i] * inverse_temperature - shift;
            add::<T, ENTROPY>(distance, &mut sums[i], &mut weighted[i]);
        }
        let weighted = if ENTROPY { sum_lanes(weighted) } else { T::ZERO };
        self.merge(Running { maximum, sum: sum_lanes(sums), weighted });
    }

    #[inline(always)]
    fn merge(&mut self, next: Running<T>) {
        let maximum = self.maximum.larger(next.maximum);
        let (old, new) = (rescale(*self, maximum), rescale(next, maximum));
        *self = Running { maximum, sum: old.sum + new.sum, weighted: old.weighted + new.weighted };
    }

    /// ln of the sum of exp(s - maximum): what [`log_probability`] subtracts last.
    #[inline(always)]
    pub fn log_sum(&self) -> T {
        self.sum.ln()
    }

    /// Entropy in nats; the chunks must have been absorbed with `ENTROPY`.
    #[inline(always)]
    pub fn entropy(&self) -> T {
        self.sum.ln() - self.weighted / self.sum
    }
}

/// Adds the weight exp(distance), and its part of the weighted sum.
#[inline(always)]
fn add<T: Float, const ENTROPY: bool>(distance: T, sum: &mut T, weighted: &mut T) {
    let weight = distance.exp();
    *sum += weight;
    if ENTROPY {
        let distance = if weight == T::ZERO { T::ZERO } else { distance };
        *weighted = weight.mul_add(distance, *weighted);
    }
}

/// The same statistics relative to another maximum.
#[inline(always)]
fn rescale<T: Float>(from: Running<T>, maximum: T) -> Running<T> {
    if from.maximum == maximum {
        return from;
    }
    let distance = from.maximum - maximum;
    let scale = distance.exp();
    // 0 * -inf would be NaN where nothing had been seen.
    let moved = if from.sum == T::ZERO { T::ZERO } else { from.sum * distance };
    Running { maximum, sum: from.sum * scale, weighted: (from.weighted + moved) * scale }
}

/// Log-probability of a scaled logit.
#[inline(always)]
pub fn log_probability<T: Float>(scaled: T, maximum: T, log_sum: T) -> T {
    (scaled - maximum) - log_sum
}

/// An element of the output head, and how products with it are made.
pub trait Weight<T>: Copy + Debug + Send + Sync + 'static {
    /// C = A B or C += A B with numbers of the head as B.
    fn product(a: Matrix<T>, head: Matrix<Self>, c: MatrixMut<T>, accumulate: Accumulate);
    /// The same for the head's gradient: neither factor is the head, both are rounded as it is.
    fn gradient_product(a: Matrix<T>, b: Matrix<T>, c: MatrixMut<T>, accumulate: Accumulate);
}

macro_rules! weight {
    ($type:ty) => {
        impl Weight<$type> for $type {
            fn product(a: Matrix<Self>, head: Matrix<Self>, c: MatrixMut<Self>, accumulate: Accumulate) {
                gemm(a, head, c, accumulate, None);
            }
            fn gradient_product(
                a: Matrix<Self>,
                b: Matrix<Self>,
                c: MatrixMut<Self>,
                accumulate: Accumulate,
            ) {
                gemm(a, b, c, accumulate, None);
            }
        }
    };
}
weight!(f32);
weight!(f64);

/// The other factor is rounded to bf16 too, as in ops/linear.rs; sums are f32.
impl Weight<f32> for bf16 {
    fn product(a: Matrix<f32>, head: Matrix<bf16>, c: MatrixMut<f32>, accumulate: Accumulate) {
        gemm_bf16(a, Bf16Operand::Stored(head), c, accumulate, None);
    }
    fn gradient_product(a: Matrix<f32>, b: Matrix<f32>, c: MatrixMut<f32>, accumulate: Accumulate) {
        gemm_bf16(a, Bf16Operand::Rounded(b), c, accumulate, None);
    }
}

/// The operands: `h[rows, width]`, the head `w[vocabulary, width]`, `targets[rows]` below `vocabulary`.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a, T, W> {
    /// Final hidden states.
    pub h: &'a [T],
    /// The output head.
    pub w: &'a [W],
    /// Elements of a hidden state.
    pub width: usize,
    /// Scored ids.
    pub targets: &'a [u32],
    /// 1 / T.
    pub inverse_temperature: T,
}

impl<T: Float, W: Weight<T>> Operands<'_, T, W> {
    fn vocabulary(&self) -> usize {
        self.w.len() / self.width
    }

    fn rows(&self, first: usize, rows: usize) -> Self {
        let h = &self.h[first * self.width..(first + rows) * self.width];
        Operands { h, targets: &self.targets[first..first + rows], ..*self }
    }

    /// The hidden states as a matrix `[rows, width]`.
    fn states(&self) -> Matrix<'_, T> {
        Matrix::row_major(self.h, self.targets.len(), self.width)
    }

    /// The head's rows `first .. first + ids`.
    fn head(&self, first: usize, ids: usize) -> Matrix<'_, W> {
        Matrix::row_major(self.w, self.vocabulary(), self.width).window_rows(first..first + ids)
    }

    /// Logits (before the temperature) of all rows and of ids `first .. first + panel.len() / rows`.
    fn logits(&self, first: usize, panel: &mut [T]) {
        let (rows, ids) = (self.targets.len(), panel.len() / self.targets.len());
        let head = self.head(first, ids).transposed();
        W::product(self.states(), head, MatrixMut::row_major(panel, rows, ids), Accumulate::Assign);
    }
}

/// Room for logits of the first ids of all rows, from forward to backward: panel by panel of each block of rows.
#[derive(Debug)]
pub struct Kept<'a, T> {
    /// The numbers.
    pub logits: &'a mut [T],
}

impl<T> Kept<'_, T> {
    /// No room.
    pub fn none() -> Self {
        Kept { logits: &mut [] }
    }

    /// Ids that are kept of each of `rows` rows: whole panels, or the whole vocabulary.
    fn ids(&self, rows: usize, vocabulary: usize) -> usize {
        match self.logits.len() / rows.max(1) {
            fitting if fitting >= vocabulary => vocabulary,
            fitting => fitting / PANEL * PANEL,
        }
    }

    /// The panel of `rows` rows and `ids` ids which begins at `first_row` and `first`, if it is kept (of `all` rows).
    fn panel(
        &mut self,
        (all, vocabulary): (usize, usize),
        (first_row, rows): (usize, usize),
        (first, ids): (usize, usize),
    ) -> Option<&mut [T]> {
        let kept = self.ids(all, vocabulary);
        let start = first_row * kept + rows * first;
        (first + ids <= kept).then(|| &mut self.logits[start..start + rows * ids])
    }
}

/// Where [`forward`] writes; each slice holds one number a row.
#[derive(Debug)]
pub struct Results<'a, T> {
    /// Log-probability of the target.
    pub log_probability: &'a mut [T],
    /// Largest scaled logit, for backward.
    pub maximum: &'a mut [T],
    /// ln sum exp(s - maximum), for backward.
    pub log_sum: &'a mut [T],
    /// Entropy in nats.
    pub entropy: &'a mut [T],
}

/// Log-probability of each row's target, with what backward needs.
pub fn forward<T: Float, W: Weight<T>>(all: Operands<T, W>, out: Results<T>, mut kept: Kept<T>) {
    let size = (all.targets.len(), all.vocabulary());
    let vocabulary = size.1;
    for first_row in (0..all.targets.len()).step_by(ROW_BLOCK) {
        let rows = ROW_BLOCK.min(all.targets.len() - first_row);
        let operands = all.rows(first_row, rows);
        with_scratch(rows * (PANEL.min(vocabulary) + STATE), |scratch| {
            let (states, panel) = scratch.split_at_mut(rows * STATE);
            for state in states.chunks_exact_mut(STATE) {
                let empty = Running::<T>::EMPTY;
                state.copy_from_slice(&[empty.maximum, empty.sum, empty.weighted, T::ZERO]);
            }
            for first in (0..vocabulary).step_by(PANEL) {
                let ids = PANEL.min(vocabulary - first);
                let panel = match kept.panel(size, (first_row, rows), (first, ids)) {
                    Some(kept) => kept,
                    None => &mut panel[..rows * ids],
                };
                operands.logits(first, panel);
                absorb_panel(&operands, first, (panel, ids), states);
            }
            for (row, state) in (first_row..).zip(states.chunks_exact(STATE)) {
                let running = Running { maximum: state[0], sum: state[1], weighted: state[2] };
                out.maximum[row] = running.maximum;
                out.log_sum[row] = running.log_sum();
                out.entropy[row] = running.entropy();
                out.log_probability[row] = log_probability(state[3], running.maximum, running.log_sum());
            }
        });
    }
}

/// Adds a panel of logits (ids from `first` on) to the state of each row.
fn absorb_panel<T: Float, W: Weight<T>>(
    operands: &Operands<T, W>,
    first: usize,
    (panel, ids): (&mut [T], usize),
    states: &mut [T],
) {
    let inverse_temperature = operands.inverse_temperature;
    parallel::rows2((panel, ids), (states, STATE), 16 * ids, |row, panel, states| {
        let targets = &operands.targets[row..];
        isa::run_widest_kernel(AbsorbPanel { first, panel, ids, states, targets, inverse_temperature });
    });
}

struct AbsorbPanel<'a, T> {
    first: usize,
    panel: &'a [T],
    ids: usize,
    states: &'a mut [T],
    targets: &'a [u32],
    inverse_temperature: T,
}

impl<T: Float> isa::Kernel for AbsorbPanel<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let rows = self.panel.chunks_exact(self.ids).zip(self.states.chunks_exact_mut(STATE));
        for ((logits, state), &target) in rows.zip(self.targets) {
            let mut running = Running { maximum: state[0], sum: state[1], weighted: state[2] };
            for chunk in logits.chunks(CHUNK) {
                running.absorb::<true>(chunk, self.inverse_temperature);
            }
            state[..3].copy_from_slice(&[running.maximum, running.sum, running.weighted]);
            if let Some(&logit) = (target as usize).checked_sub(self.first).and_then(|i| logits.get(i)) {
                state[3] = logit * self.inverse_temperature;
            }
        }
    }
}

/// What [`backward`] reads besides the operands; one number a row each.
#[derive(Clone, Copy, Debug)]
pub struct Upstream<'a, T> {
    /// Gradient of the log-probability.
    pub d_log_probability: &'a [T],
    /// Gradient of the entropy; none is zero.
    pub d_entropy: Option<&'a [T]>,
    /// From [`forward`].
    pub maximum: &'a [T],
    /// From [`forward`].
    pub log_sum: &'a [T],
    /// From [`forward`].
    pub entropy: &'a [T],
}

/// Gradients: assigns `dh[rows, width]`; `dw[vocabulary, width]` as said, where there are rows. `kept` is what [`forward`] of
/// these rows left there.
pub fn backward<T: Float, W: Weight<T>>(
    all: Operands<T, W>,
    upstream: Upstream<T>,
    dh: &mut [T],
    mut dw: Option<(&mut [T], Accumulate)>,
    mut kept: Kept<T>,
) {
    let (vocabulary, width) = (all.vocabulary(), all.width);
    let size = (all.targets.len(), vocabulary);
    for first_row in (0..all.targets.len()).step_by(ROW_BLOCK) {
        let rows = ROW_BLOCK.min(all.targets.len() - first_row);
        let operands = all.rows(first_row, rows);
        let dh = &mut dh[first_row * width..(first_row + rows) * width];
        with_scratch(rows * PANEL.min(vocabulary), |panel| {
            for first in (0..vocabulary).step_by(PANEL) {
                let ids = PANEL.min(vocabulary - first);
                let panel = &mut panel[..rows * ids];
                let logits = kept.panel(size, (first_row, rows), (first, ids));
                if logits.is_none() {
                    operands.logits(first, panel);
                }
                let logits = logits.map(|logits| &*logits);
                differentiate_panel(&operands, first, (panel, ids), logits, first_row, upstream);
                let d_logits = Matrix::row_major(panel, rows, ids);
                // dh continues its chain over ascending ids; each panel adds its own rows of dw.
                let dh = MatrixMut::row_major(dh, rows, width);
                let accumulate = if first == 0 { Accumulate::Assign } else { Accumulate::Add };
                W::product(d_logits, operands.head(first, ids), dh, accumulate);
                if let Some((dw, accumulate)) = &mut dw {
                    let accumulate = if first_row == 0 { *accumulate } else { Accumulate::Add };
                    let dw = MatrixMut::row_major(&mut dw[first * width..], ids, width);
                    W::gradient_product(d_logits.transposed(), operands.states(), dw, accumulate);
                }
            }
        });
    }
}

/// Turns a panel of logits into their gradient; `kept` is where they stand, unless that is in the panel.
fn differentiate_panel<T: Float, W: Weight<T>>(
    operands: &Operands<T, W>,
    first: usize,
    (panel, ids): (&mut [T], usize),
    kept: Option<&[T]>,
    first_row: usize,
    upstream: Upstream<T>,
) {
    parallel::rows(panel, ids, 16 * ids, |row, panel| {
        for (local, logits) in (row..).zip(panel.chunks_exact_mut(ids)) {
            if let Some(kept) = kept {
                logits.copy_from_slice(&kept[local * ids..][..ids]);
            }
            let row = first_row + local;
            isa::run_widest_kernel(DifferentiateRow {
                logits,
                target: (operands.targets[local] as usize).checked_sub(first),
                inverse_temperature: operands.inverse_temperature,
                maximum: upstream.maximum[row],
                log_sum: upstream.log_sum[row],
                entropy: upstream.entropy[row],
                d_log_probability: upstream.d_log_probability[row],
                d_entropy: upstream.d_entropy.map(|d| d[row]),
            });
        }
    });
}

struct DifferentiateRow<'a, T> {
    logits: &'a mut [T],
    /// The target's place in `logits`; it may be beyond.
    target: Option<usize>,
    inverse_temperature: T,
    maximum: T,
    log_sum: T,
    entropy: T,
    d_log_probability: T,
    d_entropy: Option<T>,
}

impl<T: Float> isa::Kernel for DifferentiateRow<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let scale = self.inverse_temperature;
        match self.d_entropy {
            None => {
                let factor = -(scale * self.d_log_probability);
                for logit in self.logits.iter_mut() {
                    *logit = log_probability(*logit * scale, self.maximum, self.log_sum).exp() * factor;
                }
            }
            Some(d_entropy) => {
                for logit in self.logits.iter_mut() {
                    let log_p = log_probability(*logit * scale, self.maximum, self.log_sum);
                    let slope = d_entropy.mul_add(log_p + self.entropy, self.d_log_probability);
                    *logit = log_p.exp() * -(scale * slope);
                }
            }
        }
        if let Some(logit) = self.target.and_then(|i| self.logits.get_mut(i)) {
            *logit += scale * self.d_log_probability;
        }
    }
}

thread_local! {
    static SCRATCH: Cell<Vec<f64>> = const { Cell::new(Vec::new()) };
}

/// Lends `elements` numbers of undefined content that this thread keeps between calls. A nested call (a thread
/// that waits may be handed another task) gets memory of its own.
#[inline(always)]
pub(super) fn with_scratch<T: Float, R>(elements: usize, body: impl FnOnce(&mut [T]) -> R) -> R {
    let mut store = SCRATCH.take();
    let needed = (elements * size_of::<T>()).div_ceil(size_of::<f64>());
    if store.len() < needed {
        store.resize(needed, 0.0);
    }
    let result = body(&mut bytemuck::cast_slice_mut(&mut store)[..elements]);
    SCRATCH.set(store);
    result
}

#[cfg(test)]
mod tests;
