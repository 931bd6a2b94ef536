//! Forward: queries in blocks, each against the key blocks that it sees.

use super::plan::{Entry, Plan, Span};
use super::product::{Matrix, MatrixMut, TILE, add};
use super::{BLOCK, QUERIES, Sizes, scratch};
use crate::cpu::float::{Float, LANES, sum_lanes};
use crate::cpu::{isa, parallel};

/// What forward reads, in packed order.
#[derive(Clone, Copy)]
pub struct ForwardInputs<'a, T> {
    /// `[positions, heads * head_dim]`.
    pub q: &'a [T],
    /// `[positions, kv_heads * head_dim]`.
    pub k: &'a [T],
    /// `[positions, kv_heads * head_dim]`.
    pub v: &'a [T],
}

/// Writes the segment's keys and values to their slots, then `out[positions, heads * head_dim]` and
/// `lse[positions, heads]`.
pub fn forward<T: Float>(
    sizes: &Sizes,
    plan: &Plan,
    inputs: ForwardInputs<T>,
    (keys, values): (&mut [T], &mut [T]),
    out: &mut [T],
    lse: &mut [T],
) {
    let (count, group, padded) = (plan.entries.len(), sizes.group(), sizes.padded());
    if count == 0 {
        return;
    }
    store(sizes, plan, inputs, keys, values);
    // Units of work are (key-value head, position), so that a task's queries read the same keys; their results are
    // contiguous in this order and are put into packed order afterwards.
    let units = sizes.kv_heads * count;
    scratch::with([units * group * padded, units * group], |[results, sums]| {
        let keys_seen: usize = plan.entries.iter().map(|e| e.position as usize + 1).sum();
        let cost = (keys_seen / count).max(BLOCK / 2) * group * padded * 2;
        parallel::rows2((results, group * padded), (sums, group), cost, |first, results, sums| {
            let task = Task { sizes, plan, q: inputs.q, keys, values };
            let sizes = [QUERIES * sizes.head_dim, TILE * BLOCK, TILE * BLOCK, TILE * padded];
            scratch::with(sizes, |memory| {
                isa::run_widest_kernel(Rows { task, first: first * group, results, sums, memory });
            });
        });
        let (width, head_dim) = (sizes.heads * sizes.head_dim, sizes.head_dim);
        parallel::rows2((out, width), (lse, sizes.heads), width, |first, out, lse| {
            let rows = out.chunks_exact_mut(width).zip(lse.chunks_exact_mut(sizes.heads));
            for ((out, lse), &index) in rows.zip(&plan.order[first..]) {
                for (head, (out, lse)) in out.chunks_exact_mut(head_dim).zip(lse).enumerate() {
                    let unit = ((head / group) * count + index as usize) * group + head % group;
                    out.copy_from_slice(&results[unit * padded..][..head_dim]);
                    *lse = sums[unit];
                }
            }
        });
    });
}

/// Copies the segment's keys and values into the cache, one key-value head a task.
fn store<T: Float>(sizes: &Sizes, plan: &Plan, inputs: ForwardInputs<T>, keys: &mut [T], values: &mut [T]) {
    let (head_dim, padded, width) = (sizes.head_dim, sizes.padded(), sizes.kv_heads * sizes.head_dim);
    let (key_block, value_block) = (sizes.key_block(), sizes.value_block());
    let (key_head, value_head) = (sizes.blocks * key_block, sizes.blocks * value_block);
    let cost = 40 * plan.entries.len() * head_dim;
    parallel::rows2((keys, key_head), (values, value_head), cost, |first, keys, values| {
        let heads = keys.chunks_exact_mut(key_head).zip(values.chunks_exact_mut(value_head));
        for (head, (keys, values)) in (first..).zip(heads) {
            for entry in &plan.entries {
                let at = entry.place as usize * width + head * head_dim;
                let (block, lane) = entry.slot();
                let column = keys[block * key_block + lane..].iter_mut().step_by(BLOCK);
                for (key, &k) in column.zip(&inputs.k[at..at + head_dim]) {
                    *key = k;
                }
                values[block * value_block + lane * padded..][..head_dim]
                    .copy_from_slice(&inputs.v[at..at + head_dim]);
            }
        }
    });
}

/// What every task reads.
struct Task<'a, T> {
    sizes: &'a Sizes,
    plan: &'a Plan,
    q: &'a [T],
    keys: &'a [T],
    values: &'a [T],
}

/// A task's share of the query rows.
struct Rows<'a, 'b, T> {
    task: Task<'a, T>,
    first: usize,
    results: &'b mut [T],
    sums: &'b mut [T],
    memory: Memory<'b, T>,
}

impl<T: Float> isa::Kernel for Rows<'_, '_, T> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        self.task.run(self.first, self.results, self.sums, self.memory);
    }
}

/// Working memory of a task: queries `[QUERIES, head_dim]`, scores twice `[TILE, BLOCK]`, output `[TILE, padded]`.
type Memory<'a, T> = [&'a mut [T]; 4];

impl<T: Float> Task<'_, T> {
    /// Query rows `first..` (unit * group + head of the group), one for each of `lse`.
    #[inline(always)]
    fn run(&self, first: usize, out: &mut [T], lse: &mut [T], mut memory: Memory<T>) {
        let (padded, head_dim) = (self.sizes.padded(), self.sizes.head_dim);
        let mut done = 0;
        while done < lse.len() {
            let (head, _) = self.query(first + done);
            let mut entries = [self.query(first + done).1; QUERIES];
            let mut count = 0;
            while count < QUERIES.min(lse.len() - done) {
                let (other, entry) = self.query(first + done + count);
                // Queries of one block of queries read the same prefix, or none is shared.
                if other / self.sizes.group() != head / self.sizes.group() || !entry.shares(entries[0], 0) {
                    break;
                }
                let at = entry.place as usize * self.sizes.heads * head_dim + other * head_dim;
                memory[0][count * head_dim..][..head_dim].copy_from_slice(&self.q[at..at + head_dim]);
                entries[count] = entry;
                count += 1;
            }
            let out = &mut out[done * padded..(done + count) * padded];
            self.queries(
                head / self.sizes.group(),
                &entries[..count],
                out,
                &mut lse[done..done + count],
                &mut memory,
            );
            done += count;
        }
    }

    /// Query head and entry of a query row.
    #[inline(always)]
    fn query(&self, row: usize) -> (usize, &Entry) {
        let (group, count) = (self.sizes.group(), self.plan.entries.len());
        let unit = row / group;
        (unit / count * group + row % group, &self.plan.entries[unit % count])
    }

    /// One block of queries against all their keys. `lse` holds each query's running maximum until the end.
    #[inline(always)]
    fn queries(&self, head: usize, entries: &[&Entry], out: &mut [T], lse: &mut [T], memory: &mut Memory<T>) {
        let padded = self.sizes.padded();
        let mut sums = [T::ZERO; QUERIES];
        out.fill(T::ZERO);
        lse.fill(T::NEG_INFINITY);
        let last = entries.iter().map(|entry| entry.position as usize / BLOCK).max().unwrap_or(0);
        let mut next = Some(Tile::of(entries, 0, 0));
        while let Some(tile) = next {
            next = match tile.to < entries.len() {
                true => Some(Tile::of(entries, tile.block, tile.to)),
                false => (tile.block < last).then(|| Tile::of(entries, tile.block + 1, 0)),
            };
            let rows = tile.from..tile.to;
            let state = State {
                maxima: &mut lse[rows.clone()],
                sums: &mut sums[rows.clone()],
                out: &mut out[rows.start * padded..rows.end * padded],
            };
            self.tile(head, entries, &tile, next.as_ref(), state, memory);
        }
        for ((out, lse), &sum) in out.chunks_exact_mut(padded).zip(lse).zip(&sums) {
            let inverse = T::ONE / sum;
            for out in out {
                *out *= inverse;
            }
            *lse += sum.ln();
        }
    }

    /// A few queries against one block of keys, merged into their states. Meanwhile the keys of the next tile are asked
    /// for: in a decode step each tile reads slots that no tile before it did.
    #[inline(always)]
    fn tile(
        &self,
        head: usize,
        all: &[&Entry],
        tile: &Tile,
        next: Option<&Tile>,
        state: State<T>,
        [queries, scores, other, partial]: &mut Memory<T>,
    ) {
        let (block, entries) = (tile.block, &all[tile.from..tile.to]);
        let (padded, rows) = (self.sizes.padded(), entries.len());
        let mut visible = [0; TILE];
        for (visible, entry) in visible.iter_mut().zip(entries) {
            *visible = entry.visible(block);
        }
        let visible = &visible[..rows];
        let most = visible.iter().copied().max().unwrap_or(0);
        let common = visible.iter().copied().min().unwrap_or(0);
        if most == 0 {
            return;
        }
        let spans = entries[0].spans(block, most);
        if tile.fresh {
            for span in spans.into_iter().filter(|span| span.from < span.to) {
                isa::prefetch(&self.values_in(head, span)[span.from * padded..span.to * padded]);
            }
        }
        let queries =
            Matrix { data: &queries[tile.from * self.sizes.head_dim..], stride: self.sizes.head_dim };
        self.scores(head, spans, rows, queries, scores, other);
        let mut own_max = [T::ZERO; TILE];
        let mut own_sum = [T::ZERO; TILE];
        let scale = T::from_f64(self.sizes.scale);
        for (i, &visible) in visible.iter().enumerate() {
            (own_max[i], own_sum[i]) = weights(&mut scores[i * BLOCK..][..BLOCK], visible, scale);
        }
        if let Some(next) = next.filter(|next| next.fresh) {
            self.ask_for_keys(head, all[next.to - 1], next.block);
        }
        // The keys that all queries of the tile see, then each query's remaining ones; ascending for every query.
        partial[..rows * padded].fill(T::ZERO);
        for span in spans.into_iter().filter(|span| span.from < span.to) {
            let values = self.values_in(head, span);
            let (from, to) = (span.from.min(common), span.to.min(common));
            let shape = [rows, to - from, padded];
            let weights = Matrix { data: &scores[from..], stride: BLOCK };
            let seen = Matrix { data: &values[from * padded..], stride: padded };
            add(shape, weights, seen, MatrixMut { data: partial, stride: padded });
            for (i, &visible) in visible.iter().enumerate() {
                for key in span.from.max(common)..span.to.min(visible) {
                    let weight = scores[i * BLOCK + key];
                    let sums = partial[i * padded..][..padded].iter_mut();
                    for (sum, &value) in sums.zip(&values[key * padded..][..padded]) {
                        *sum = weight.mul_add(value, *sum);
                    }
                }
            }
        }
        // All factors of the merge at once, as one vector: exp(maximum so far - maximum), exp(own maximum - maximum).
        let mut factors = [T::ZERO; 2 * TILE];
        for i in 0..rows {
            let maximum = state.maxima[i].larger(own_max[i]);
            (factors[i], factors[TILE + i]) = (state.maxima[i] - maximum, own_max[i] - maximum);
            state.maxima[i] = maximum;
        }
        for factor in &mut factors {
            *factor = factor.exp();
        }
        let rows = state.out.chunks_exact_mut(padded).zip(partial.chunks_exact(padded));
        for (i, (out, partial)) in rows.enumerate().filter(|(i, _)| visible[*i] > 0) {
            let (keep, add) = (factors[i], factors[TILE + i]);
            state.sums[i] = state.sums[i].mul_add(keep, own_sum[i] * add);
            for (out, &partial) in out.iter_mut().zip(partial) {
                *out = out.mul_add(keep, partial * add);
            }
        }
    }

    /// The block of keys `[head_dim, BLOCK]` of a head that a span lies in.
    #[inline(always)]
    fn keys_in(&self, head: usize, span: Span) -> &[T] {
        let size = self.sizes.key_block();
        &self.keys[(head * self.sizes.blocks + span.block) * size..][..size]
    }

    /// The block of values `[BLOCK, padded]` of a head that a span lies in.
    #[inline(always)]
    fn values_in(&self, head: usize, span: Span) -> &[T] {
        let size = self.sizes.value_block();
        &self.values[(head * self.sizes.blocks + span.block) * size..][..size]
    }

    /// Asks the cache for the keys of a block that a query will read.
    #[inline(always)]
    fn ask_for_keys(&self, head: usize, entry: &Entry, block: usize) {
        let spans = entry.spans(block, entry.visible(block));
        for span in spans.into_iter().filter(|span| span.from < span.to) {
            for keys in self.keys_in(head, span).chunks_exact(BLOCK) {
                isa::prefetch(&keys[span.from / LANES * LANES..span.to.next_multiple_of(LANES)]);
            }
        }
    }

    /// Unscaled scores of a tile against one block of keys; lanes beyond the spans hold anything.
    #[inline(always)]
    fn scores(
        &self,
        head: usize,
        [prefix, own]: [Span; 2],
        rows: usize,
        queries: Matrix<T>,
        scores: &mut [T],
        other: &mut [T],
    ) {
        let both = prefix.to > 0 && own.from < own.to;
        for (span, wanted) in [(prefix, prefix.to > 0), (own, own.from < own.to)] {
            if !wanted {
                continue;
            }
            let target = if both && span == own { &mut *other } else { &mut *scores };
            target[..rows * BLOCK].fill(T::ZERO);
            let keys = self.keys_in(head, span);
            let first = span.from / LANES * LANES;
            add(
                [rows, self.sizes.head_dim, span.to.next_multiple_of(LANES) - first],
                queries,
                Matrix { data: &keys[first..], stride: BLOCK },
                MatrixMut { data: &mut target[first..], stride: BLOCK },
            );
        }
        if both {
            for (scores, other) in scores.chunks_exact_mut(BLOCK).zip(other.chunks_exact(BLOCK)).take(rows) {
                scores[own.from..own.to].copy_from_slice(&other[own.from..own.to]);
            }
        }
    }
}

/// Queries `from..to` of a block of queries, against one block of keys: all of them read it in the same slots.
struct Tile {
    block: usize,
    from: usize,
    to: usize,
    /// Whether the tile before it read other slots.
    fresh: bool,
}

impl Tile {
    /// The tile that begins with query `from`.
    #[inline(always)]
    fn of(entries: &[&Entry], block: usize, from: usize) -> Tile {
        let shared = |other: &Entry| other.shares(entries[from], block + 1);
        let same = entries[from + 1..].iter().take(TILE - 1).take_while(|other| shared(other)).count();
        Tile { block, from, to: from + 1 + same, fresh: from == 0 || !shared(entries[from - 1]) }
    }
}

/// Running maximum, sum and unnormalised output of a tile's queries.
struct State<'a, T> {
    maxima: &'a mut [T],
    sums: &'a mut [T],
    out: &'a mut [T],
}

/// Turns the first `visible` scores of a block into `exp(scale * score - maximum)` and the others into 0; returns
/// the maximum and the sum of the weights (lanes, then the fixed tree).
#[inline(always)]
fn weights<T: Float>(scores: &mut [T], visible: usize, scale: T) -> (T, T) {
    let (whole, end) = (visible / LANES * LANES, visible.next_multiple_of(LANES));
    scores[end..].fill(T::ZERO);
    let mut largest = [T::NEG_INFINITY; LANES];
    for scores in scores[..whole].chunks_exact_mut(LANES) {
        for lane in 0..LANES {
            scores[lane] *= scale;
            largest[lane] = largest[lane].larger(scores[lane]);
        }
    }
    let left = T::from_f64((visible - whole) as f64);
    for scores in scores[whole..end].chunks_exact_mut(LANES) {
        for lane in 0..LANES {
            // Numbers of the scores' type: a comparison of indices would be made lane by lane.
            let seen = T::from_f64(lane as f64) < left;
            scores[lane] = if seen { scores[lane] * scale } else { T::NEG_INFINITY };
            largest[lane] = largest[lane].larger(scores[lane]);
        }
    }
    // By halves, as a chain of sixteen is waited for; the largest of numbers does not depend on the order.
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            largest[lane] = largest[lane].larger(largest[lane + half]);
        }
        half /= 2;
    }
    let maximum = largest[0];
    let mut sums = [T::ZERO; LANES];
    for scores in scores[..end].chunks_exact_mut(LANES) {
        for lane in 0..LANES {
            scores[lane] = (scores[lane] - maximum).exp();
            sums[lane] += scores[lane];
        }
    }
    (maximum, sum_lanes(sums))
}
