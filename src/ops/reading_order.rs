//! Copies of weights in the order in which a CPU's products of few rows read them (cpu/gemm/prepacked).
//!
//! A copy belongs to its tensor. It is made when the weight has been read a few times since it changed: a rollout or a
//! decoded text reads every weight once a position, a training step does not come back to it. The bits of products do not
//! depend on it. All copies of a process take at most as many bytes as [`allow`] says; weights beyond are read where they
//! lie, and so are all where the system has no memory for a copy.

use super::linear::{Layout, Projection};
use crate::base::pages::PageVec;
use crate::cpu::gemm::{Matrix, Prepacked, Stored, prepack, prepacked_len};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// Most MiB of all copies, unless [`allow`] says otherwise.
pub const USUAL_MIB: usize = 1024;

/// Products of few rows before a copy pays. A pass makes three of a fused weight (queries, keys, values).
const BEFORE: usize = 3;

/// Lets all copies of this process together take at most `mebibytes` from now on; 0 = no copies are made. Those that
/// there are stay until their weights change.
pub fn allow(mebibytes: usize) {
    BUDGET.most.store(mebibytes.saturating_mul(1 << 20), Ordering::Relaxed);
}

/// Bytes that copies of matrices of `bytes` together may come to take on this CPU, where all copies may take `mebibytes`.
pub fn at_most(bytes: usize, mebibytes: usize) -> usize {
    prepacked_len::<f32>(1, 1).map_or(0, |_| bytes.min(mebibytes.saturating_mul(1 << 20)))
}

/// What copies may take, and do.
#[derive(Debug)]
pub(in crate::ops) struct Budget {
    most: AtomicUsize,
    held: AtomicUsize,
}

impl Budget {
    const fn new(most: usize) -> Budget {
        Budget { most: AtomicUsize::new(most), held: AtomicUsize::new(0) }
    }

    /// Counts `bytes`, unless that would be too many.
    fn take(&self, bytes: usize) -> bool {
        let most = self.most.load(Ordering::Relaxed);
        let sum = |held: usize| held.checked_add(bytes).filter(|&sum| sum <= most);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum).is_ok()
    }
}

/// The process's.
static BUDGET: Budget = Budget::new(USUAL_MIB << 20);

/// A tensor's copy, if it has one.
#[derive(Debug, Default)]
pub(in crate::ops) struct ReadingOrder {
    /// Products of few rows since the tensor changed, as long as it has no copy for them.
    products: AtomicUsize,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    /// As what `[in, out]` matrix the tensor was read when it was copied; `None` when it has changed since.
    of: Option<(Layout, usize, usize)>,
    /// Kept when the tensor changes, for the next copy.
    words: Option<Arc<Words>>,
}

/// Memory that a budget counts.
#[derive(Debug)]
struct Words {
    words: PageVec<u64>,
    /// Bytes that the budget counts.
    counted: usize,
    budget: &'static Budget,
}

impl Words {
    /// Room for `count` words, unless all copies would take too much, or more than the system has.
    fn new(count: usize, budget: &'static Budget) -> Option<Words> {
        let counted = count * size_of::<u64>();
        if !budget.take(counted) {
            return None;
        }
        // Made first, so that what was counted is given back where there is no memory.
        let mut words = Words { words: PageVec::default(), counted, budget };
        words.words = PageVec::try_zeroed(count).ok()?;
        Some(words)
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

/// A copy in use.
#[derive(Debug)]
pub(in crate::ops) struct Lent<T> {
    words: Arc<Words>,
    depth: usize,
    cols: usize,
    numbers: PhantomData<T>,
}

impl<T: Stored> Lent<T> {
    /// The whole weight as `[in, out]`.
    pub fn matrix(&self) -> Prepacked<'_, T> {
        Prepacked::stored(bytemuck::cast_slice(&self.words.words), self.depth, self.cols)
    }
}

impl ReadingOrder {
    /// The tensor is about to change.
    pub fn outdate(&mut self) {
        *self.products.get_mut() = 0;
        self.state.get_mut().unwrap_or_else(PoisonError::into_inner).of = None;
    }

    /// The copy, where there is one of what the tensor holds, read as the projection does.
    pub fn current<T: Stored>(&self, projection: &Projection) -> Option<Lent<T>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).lend(projection)
    }

    /// The copy of `b`, which is what the tensor holds read as the projection does, for a product of `rows` rows; `None`
    /// where such a product takes none, or has none yet.
    pub fn lend<T: Stored>(&self, b: Matrix<T>, projection: &Projection, rows: usize) -> Option<Lent<T>> {
        self.lend_within(&BUDGET, b, projection, rows)
    }

    fn lend_within<T: Stored>(
        &self,
        budget: &'static Budget,
        b: Matrix<T>,
        projection: &Projection,
        rows: usize,
    ) -> Option<Lent<T>> {
        if !Prepacked::<T>::serves(rows, &projection.outputs) {
            return None;
        }
        let copy = self.current(projection);
        if copy.is_some() || self.products.fetch_add(1, Ordering::Relaxed) < BEFORE {
            return copy;
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have been here, or read the tensor as the other layout: it then keeps that copy.
        if state.of.is_none() && state.copy(b, budget) {
            state.of = Some((projection.layout, b.rows(), b.cols()));
        }
        state.lend(projection)
    }
}

impl State {
    fn lend<T: Stored>(&self, projection: &Projection) -> Option<Lent<T>> {
        let (_, depth, cols) = self.of.filter(|of| of.0 == projection.layout)?;
        Some(Lent { words: self.words.clone()?, depth, cols, numbers: PhantomData })
    }

    /// Copies `b`; false where there is no such order, or no room.
    fn copy<T: Stored>(&mut self, b: Matrix<T>, budget: &'static Budget) -> bool {
        let Some(numbers) = prepacked_len::<T>(b.rows(), b.cols()) else { return false };
        let count = (numbers * size_of::<T>()).div_ceil(size_of::<u64>());
        let kept = self.words.take().and_then(Arc::into_inner).filter(|kept| kept.words.len() == count);
        let Some(mut words) = kept.or_else(|| Words::new(count, budget)) else { return false };
        let done = prepack(b, bytemuck::cast_slice_mut(&mut words.words)).is_some();
        self.words = Some(Arc::new(words));
        done
    }
}

#[cfg(test)]
mod tests;
