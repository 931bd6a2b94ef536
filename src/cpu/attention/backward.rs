//! Backward: key blocks outside, the queries that see them inside, one key-value head a task.

use super::plan::{Entry, Plan, Span};
use super::product::{Matrix, MatrixMut, add, add_transposed};
use super::{BLOCK, QUERIES, Sizes, scratch};
use crate::cpu::float::{Float, LANES, sum_over};
use crate::cpu::parallel::Rows;
use crate::cpu::{isa, parallel};

/// What backward reads: packed order, and the cache as forward left it.
#[derive(Clone, Copy)]
pub struct BackwardInputs<'a, T> {
    /// Gradient of the output `[positions, heads * head_dim]`.
    pub dout: &'a [T],
    /// `[positions, heads * head_dim]`.
    pub q: &'a [T],
    /// Forward's output.
    pub out: &'a [T],
    /// Forward's `[positions, heads]`.
    pub lse: &'a [T],
    /// Cached keys.
    pub keys: &'a [T],
    /// Cached values.
    pub values: &'a [T],
    /// Keys before the segment's first position of a row count as constants.
    pub detach_cached: bool,
}

/// What backward assigns, in packed order.
pub struct Gradients<'a, T> {
    /// `[positions, heads * head_dim]`.
    pub dq: &'a mut [T],
    /// `[positions, kv_heads * head_dim]`.
    pub dk: &'a mut [T],
    /// `[positions, kv_heads * head_dim]`.
    pub dv: &'a mut [T],
}

/// Adds the gradients of all keys and values that the segment's queries see to `grad_keys` and `grad_values` (laid
/// out like the cache), then reads those of the segment's own positions out.
pub fn backward<T: Float>(
    sizes: &Sizes,
    plan: &Plan,
    inputs: BackwardInputs<T>,
    (grad_keys, grad_values): (&mut [T], &mut [T]),
    gradients: Gradients<T>,
) {
    let (count, group, padded) = (plan.entries.len(), sizes.group(), sizes.padded());
    if count == 0 {
        return;
    }
    let rows = count * group;
    scratch::with([sizes.kv_heads * rows * padded], |[dq]| {
        // A slot has one writer, its head's task, which goes through rows and positions in the plan's order.
        let heads = (
            Rows { data: &mut *grad_keys, cols: sizes.blocks * sizes.key_block() },
            (
                Rows { data: &mut *grad_values, cols: sizes.blocks * sizes.value_block() },
                Rows { data: &mut *dq, cols: rows * padded },
            ),
        );
        let keys_seen: usize = plan.entries.iter().map(|entry| entry.position as usize + 1).sum();
        let cost = (keys_seen + count * BLOCK / 2) * group * padded * 5;
        parallel::elements(heads, cost, |first, (grad_keys, (grad_values, dq))| {
            let grad_keys = grad_keys.data.chunks_exact_mut(sizes.blocks * sizes.key_block());
            let grad_values = grad_values.data.chunks_exact_mut(sizes.blocks * sizes.value_block());
            let dq = dq.data.chunks_exact_mut(rows * padded);
            for (head, ((grad_keys, grad_values), dq)) in (first..).zip(grad_keys.zip(grad_values).zip(dq)) {
                let (keys, values) = (sizes.key_block(), sizes.value_block());
                let lengths = [
                    rows * padded,
                    rows * padded,
                    2 * rows,
                    QUERIES * BLOCK,
                    QUERIES * BLOCK,
                    keys,
                    keys,
                    values,
                    keys,
                    values,
                ];
                scratch::with(lengths, |[q, dout, statistics, weights, ds, merged, vt, k, dk, dv]| {
                    let (lse, delta) = statistics.split_at_mut(rows);
                    let memory = Memory { q, dout, lse, delta, weights, ds, merged, vt, k, dk, dv };
                    let task = Task { sizes, plan, inputs, head, grad_keys, grad_values, dq, memory };
                    isa::run_widest_kernel(task);
                });
            }
        });
        collect(sizes, plan, dq, (grad_keys, grad_values), gradients);
    });
}

/// Puts the gradients of the segment's own positions into packed order.
fn collect<T: Float>(
    sizes: &Sizes,
    plan: &Plan,
    dq: &[T],
    (grad_keys, grad_values): (&[T], &[T]),
    gradients: Gradients<T>,
) {
    let (head_dim, padded, group) = (sizes.head_dim, sizes.padded(), sizes.group());
    let rows = plan.entries.len() * group;
    let width = sizes.heads * head_dim;
    parallel::rows(gradients.dq, width, width, |first, out| {
        for (out, &index) in out.chunks_exact_mut(width).zip(&plan.order[first..]) {
            for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
                let row = (head / group) * rows + index as usize * group + head % group;
                out.copy_from_slice(&dq[row * padded..][..head_dim]);
            }
        }
    });
    let width = sizes.kv_heads * head_dim;
    parallel::rows2((gradients.dk, width), (gradients.dv, width), 4 * width, |first, dk, dv| {
        let rows = dk.chunks_exact_mut(width).zip(dv.chunks_exact_mut(width));
        for ((dk, dv), &index) in rows.zip(&plan.order[first..]) {
            let (block, lane) = plan.entries[index as usize].slot();
            let heads = dk.chunks_exact_mut(head_dim).zip(dv.chunks_exact_mut(head_dim));
            for (head, (dk, dv)) in heads.enumerate() {
                let block = head * sizes.blocks + block;
                let column = grad_keys[block * sizes.key_block() + lane..].iter().step_by(BLOCK);
                for (dk, &gradient) in dk.iter_mut().zip(column) {
                    *dk = gradient;
                }
                dv.copy_from_slice(&grad_values[block * sizes.value_block() + lane * padded..][..head_dim]);
            }
        }
    });
}

/// Working memory of a task. Query rows are `entry * group + head of the group`.
struct Memory<'a, T> {
    /// Queries `[rows, padded]`.
    q: &'a mut [T],
    /// Gradients of the output `[rows, padded]`.
    dout: &'a mut [T],
    /// Log-sum-exp of each query row.
    lse: &'a mut [T],
    /// dout . out of each query row.
    delta: &'a mut [T],
    /// `[QUERIES, BLOCK]`.
    weights: &'a mut [T],
    /// Gradients of the unscaled products q . k, `[QUERIES, BLOCK]`.
    ds: &'a mut [T],
    /// Keys of a block that lies in two places, `[head_dim, BLOCK]`.
    merged: &'a mut [T],
    /// Values transposed, `[head_dim, BLOCK]`.
    vt: &'a mut [T],
    /// Keys transposed, `[BLOCK, padded]`.
    k: &'a mut [T],
    /// The block's gradients, laid out like the cache.
    dk: &'a mut [T],
    dv: &'a mut [T],
}

/// One key-value head.
struct Task<'a, T> {
    sizes: &'a Sizes,
    plan: &'a Plan,
    inputs: BackwardInputs<'a, T>,
    head: usize,
    grad_keys: &'a mut [T],
    grad_values: &'a mut [T],
    dq: &'a mut [T],
    memory: Memory<'a, T>,
}

impl<T: Float> isa::Kernel for Task<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run(mut self) {
        self.gather();
        self.dq.fill(T::ZERO);
        let entries = &self.plan.entries;
        let mut first = 0;
        while first < entries.len() {
            let family = entries[first..].iter().take_while(|entry| entry.shares(&entries[first], 0)).count();
            let end = first + family;
            let last =
                entries[first..end].iter().map(|entry| entry.position as usize / BLOCK).max().unwrap_or(0);
            for block in 0..=last {
                let mut from = first;
                while from < end {
                    let same = |entry: &&Entry| entry.shares(&entries[from], block + 1);
                    let to = from + entries[from..end].iter().take_while(same).count();
                    self.queries_of_block(block, from, to);
                    from = to;
                }
            }
            first = end;
        }
    }
}

impl<T: Float> Task<'_, T> {
    /// Queries, gradients and statistics of this head in the plan's order.
    #[inline(always)]
    fn gather(&mut self) {
        let (head_dim, padded, group) = (self.sizes.head_dim, self.sizes.padded(), self.sizes.group());
        let (inputs, memory) = (&self.inputs, &mut self.memory);
        for (index, entry) in self.plan.entries.iter().enumerate() {
            for member in 0..group {
                let (row, head) = (index * group + member, self.head * group + member);
                let at = (entry.place as usize * self.sizes.heads + head) * head_dim;
                let dout = &inputs.dout[at..at + head_dim];
                let out = &inputs.out[at..at + head_dim];
                memory.q[row * padded..][..head_dim].copy_from_slice(&inputs.q[at..at + head_dim]);
                memory.q[row * padded..][head_dim..padded].fill(T::ZERO);
                memory.dout[row * padded..][..head_dim].copy_from_slice(dout);
                memory.dout[row * padded..][head_dim..padded].fill(T::ZERO);
                memory.lse[row] = inputs.lse[entry.place as usize * self.sizes.heads + head];
                memory.delta[row] = sum_over(head_dim, |d| dout[d] * out[d]);
            }
        }
    }

    /// Entries `from..to`, which read the same slots, against one block of keys.
    #[inline(always)]
    fn queries_of_block(&mut self, block: usize, from: usize, to: usize) {
        let entries = &self.plan.entries[from..to];
        let group = self.sizes.group();
        // Keys from this position on are the segment's own; several rows share nothing but cached keys.
        let own = if entries[0].row == entries[entries.len() - 1].row {
            entries[0].position as usize
        } else {
            usize::MAX
        };
        let detached =
            if self.inputs.detach_cached { own.saturating_sub(block * BLOCK).min(BLOCK) } else { 0 };
        let hidden = entries.iter().take_while(|entry| entry.visible(block) == 0).count();
        let most = entries.iter().map(|entry| entry.visible(block)).max().unwrap_or(0);
        if most == 0 {
            return;
        }
        let spans = entries[0].spans(block, most);
        self.load(spans, most);
        let (end, mut row) = (to * group, (from + hidden) * group);
        while row < end {
            let rows = QUERIES.min(end - row);
            self.query_rows(block, spans, most, row, rows, detached < most);
            row += rows;
        }
        if detached < most {
            self.add_to_slots(spans, detached);
        }
    }

    /// Transposes the block's keys and values, joins keys that lie in two places, and clears the block's gradients.
    #[inline(always)]
    fn load(&mut self, spans: [Span; 2], most: usize) {
        let (head_dim, padded) = (self.sizes.head_dim, self.sizes.padded());
        let (key_block, value_block) = (self.sizes.key_block(), self.sizes.value_block());
        let two = spans[0].to > 0 && spans[1].from < spans[1].to;
        let memory = &mut self.memory;
        for span in spans.into_iter().filter(|span| span.from < span.to) {
            let block = self.head * self.sizes.blocks + span.block;
            let keys = &self.inputs.keys[block * key_block..][..key_block];
            let values = &self.inputs.values[block * value_block..][..value_block];
            for d in 0..head_dim {
                for lane in span.from..span.to {
                    memory.k[lane * padded + d] = keys[d * BLOCK + lane];
                }
                if two {
                    memory.merged[d * BLOCK..][span.from..span.to]
                        .copy_from_slice(&keys[d * BLOCK..][span.from..span.to]);
                }
            }
            for lane in span.from..span.to {
                for d in 0..head_dim {
                    memory.vt[d * BLOCK + lane] = values[lane * padded + d];
                }
            }
        }
        for lane in 0..most {
            memory.k[lane * padded..][head_dim..padded].fill(T::ZERO);
        }
        memory.dk.fill(T::ZERO);
        memory.dv.fill(T::ZERO);
    }

    /// At most [`QUERIES`] query rows against the loaded block.
    #[inline(always)]
    fn query_rows(
        &mut self,
        block: usize,
        spans: [Span; 2],
        most: usize,
        first: usize,
        rows: usize,
        keys_wanted: bool,
    ) {
        let (head_dim, padded, group) = (self.sizes.head_dim, self.sizes.padded(), self.sizes.group());
        let key_block = self.sizes.key_block();
        let lanes = most.next_multiple_of(LANES);
        let Memory { q, dout, lse, delta, weights, ds, merged, vt, k, dk, dv } = &mut self.memory;
        let single = |span: Span| {
            &self.inputs.keys[(self.head * self.sizes.blocks + span.block) * key_block..][..key_block]
        };
        let kt = match spans {
            [prefix, own] if prefix.to > 0 && own.from < own.to => &**merged,
            [prefix, _] if prefix.to > 0 => single(prefix),
            [_, own] => single(own),
        };
        let q = Matrix { data: &q[first * padded..(first + rows) * padded], stride: padded };
        let dout = Matrix { data: &dout[first * padded..(first + rows) * padded], stride: padded };
        for (a, b, c) in [(q, kt, &mut **weights), (dout, vt, &mut **ds)] {
            c[..rows * BLOCK].fill(T::ZERO);
            let (b, c) = (Matrix { data: b, stride: BLOCK }, MatrixMut { data: c, stride: BLOCK });
            add([rows, head_dim, lanes], a, b, c);
        }
        let scale = T::from_f64(self.sizes.scale);
        for (i, (weights, ds)) in
            weights.chunks_exact_mut(BLOCK).zip(ds.chunks_exact_mut(BLOCK)).take(rows).enumerate()
        {
            let row = first + i;
            let visible = self.plan.entries[row / group].visible(block);
            let (lse, delta) = (lse[row], delta[row]);
            let parts = weights.chunks_exact_mut(LANES).zip(ds.chunks_exact_mut(LANES));
            for (part, (weights, ds)) in parts.take(lanes / LANES).enumerate() {
                // As numbers of the scores' type: a comparison of indices would be made lane by lane.
                let left = T::from_f64(visible as f64 - (part * LANES) as f64);
                for lane in 0..LANES {
                    let seen = T::from_f64(lane as f64) < left;
                    let weight = (weights[lane] * scale - lse).exp();
                    let slope = weight * (ds[lane] - delta) * scale;
                    weights[lane] = if seen { weight } else { T::ZERO };
                    ds[lane] = if seen { slope } else { T::ZERO };
                }
            }
        }
        let weights = Matrix { data: weights, stride: BLOCK };
        let ds = Matrix { data: ds, stride: BLOCK };
        let k = Matrix { data: k, stride: padded };
        let dq = MatrixMut { data: &mut self.dq[first * padded..], stride: padded };
        add([rows, most, padded], ds, k, dq);
        if keys_wanted {
            let (dv, dk) = (MatrixMut { data: dv, stride: padded }, MatrixMut { data: dk, stride: BLOCK });
            let sums = [([most, rows, padded], weights, dout, dv), ([head_dim, rows, lanes], q, ds, dk)];
            for (shape, a, b, c) in sums {
                add_transposed(shape, a, b, c);
            }
        }
    }

    /// Adds the block's gradients to those of its slots, from lane `detached` on.
    #[inline(always)]
    fn add_to_slots(&mut self, spans: [Span; 2], detached: usize) {
        let (head_dim, padded) = (self.sizes.head_dim, self.sizes.padded());
        for span in spans {
            let (from, to) = (span.from.max(detached), span.to);
            if from >= to {
                continue;
            }
            let keys = &mut self.grad_keys[span.block * self.sizes.key_block()..];
            for d in 0..head_dim {
                let sums = keys[d * BLOCK..][from..to].iter_mut();
                for (sum, &gradient) in sums.zip(&self.memory.dk[d * BLOCK..][from..to]) {
                    *sum += gradient;
                }
            }
            let values = &mut self.grad_values[span.block * self.sizes.value_block()..];
            let sums = values[from * padded..to * padded].iter_mut();
            for (sum, &gradient) in sums.zip(&self.memory.dv[from * padded..to * padded]) {
                *sum += gradient;
            }
        }
    }
}
