//! The tile kernel: `M x N` vectors of C stay in registers while k runs.
#![allow(unsafe_code)]
// Plain loops: closures of iterators are not sure to be inlined into code for the vector level.
#![allow(clippy::needless_range_loop)]

use super::simd::Vector;
use std::mem::MaybeUninit;

/// What one product is, but for A: pointers and strides that the entry points have checked against their slices; B is an
/// `O`. (A is packed by its own code, so that the kernels are compiled once for all types that A may have.)
pub struct Product<T, O> {
    pub rows: usize,
    pub cols: usize,
    pub depth: usize,
    pub b: O,
    pub c: *mut T,
    pub c_stride: usize,
    /// Chains start from C instead of 0.
    pub add: bool,
    /// One number a column, or null.
    pub bias: *const T,
}

/// A product by a matrix as it lies in memory; lanes are columns.
pub(super) type Problem<T, B> = Product<T, super::pack::Strip<B>>;

// SAFETY: tasks read B and bias and write disjoint tiles of C; the borrows outlive the product.
unsafe impl<T: Sync, O: Sync> Sync for Product<T, O> {}

/// Where a tile starts from and what it ends with.
#[derive(Clone, Copy)]
pub(super) struct Ends<T> {
    /// Chains start from what C holds.
    pub load: bool,
    /// Added after the last k; null for none. Points at the tile's first column.
    pub bias: *const T,
}

// SAFETY: the bias is only read, and its borrow outlives the product.
unsafe impl<T: Sync> Sync for Ends<T> {}

/// c = chain over k of a * b for a tile of `M` rows and `N` vectors. `a` is packed `[k][M]`, `b` is `[k][b_step]`
/// with `b_step` at least `N` vectors.
///
/// # Safety
/// `a`, `b` readable for `depth`, `c` (and bias) valid for the whole tile; the CPU has `V`'s instructions.
#[inline(always)]
pub(super) unsafe fn tile<V: Vector, const M: usize, const N: usize>(
    depth: usize,
    mut a: *const V::Element,
    (mut b, b_step): (*const V::Element, usize),
    c: *mut V::Element,
    c_stride: usize,
    ends: Ends<V::Element>,
) {
    // SAFETY: by the caller's promises; index arithmetic stays inside the tile.
    unsafe {
        let mut sums = [[V::splat(V::Element::default()); N]; M];
        // The tile is read or written only now and then: its lines are fetched while k runs.
        for i in 0..M {
            V::prefetch(c.add(i * c_stride));
        }
        if ends.load {
            for i in 0..M {
                for j in 0..N {
                    sums[i][j] = V::load(c.add(i * c_stride + j * V::LANES));
                }
            }
        }
        for _ in 0..depth {
            let mut columns = [V::splat(V::Element::default()); N];
            for j in 0..N {
                columns[j] = V::load(b.add(j * V::LANES));
            }
            for i in 0..M {
                let row = V::splat(*a.add(i));
                for j in 0..N {
                    sums[i][j] = row.mul_add(columns[j], sums[i][j]);
                }
            }
            a = a.add(M);
            b = b.add(b_step);
        }
        if !ends.bias.is_null() {
            for j in 0..N {
                let bias = V::load(ends.bias.add(j * V::LANES));
                for row in &mut sums {
                    row[j] = row[j].add(bias);
                }
            }
        }
        for i in 0..M {
            for j in 0..N {
                sums[i][j].store(c.add(i * c_stride + j * V::LANES));
            }
        }
    }
}

/// Elements of the largest tile's square buffer (8 x 48 f32).
pub(super) const TILE_ELEMENTS: usize = 512;

/// [`tile`] of a panel of B of `N` vectors of which only `rows x cols` exist: vectors without a column are left out,
/// what else is missing is computed beside C and dropped.
///
/// # Safety
/// As [`tile`], with `c` and `bias` valid for `rows x cols` only.
#[inline(always)]
pub(super) unsafe fn tile_clipped<V: Vector, const M: usize, const N: usize>(
    (rows, cols): (usize, usize),
    depth: usize,
    a: *const V::Element,
    b: *const V::Element,
    (c, c_stride): (*mut V::Element, usize),
    ends: Ends<V::Element>,
) {
    const { assert!(N <= 4) }
    let (size, b, c) = ((rows, cols), (b, N * V::LANES), (c, c_stride));
    // SAFETY: passed on to the caller; `cols` fit the vectors of each case.
    unsafe {
        if N > 3 && cols > 3 * V::LANES {
            clipped::<V, M, 4>(size, depth, a, b, c, ends);
        } else if N > 2 && cols > 2 * V::LANES {
            clipped::<V, M, 3>(size, depth, a, b, c, ends);
        } else if N > 1 && cols > V::LANES {
            clipped::<V, M, 2>(size, depth, a, b, c, ends);
        } else {
            clipped::<V, M, 1>(size, depth, a, b, c, ends);
        }
    }
}

/// As [`tile_clipped`], for a tile of `N` vectors whose last has a column.
#[inline(always)]
unsafe fn clipped<V: Vector, const M: usize, const N: usize>(
    (rows, cols): (usize, usize),
    depth: usize,
    a: *const V::Element,
    b: (*const V::Element, usize),
    (c, c_stride): (*mut V::Element, usize),
    ends: Ends<V::Element>,
) {
    let width = N * V::LANES;
    // SAFETY: whole tiles by the caller's promise; clipped ones work on local buffers of a whole tile
    // (const-asserted by the buffer's size: M * width <= TILE_ELEMENTS) and copy only what exists.
    unsafe {
        let whole = rows == M && cols == width;
        // Uninitialised: filling them would cost whole tiles a tenth of their time.
        let mut local = [const { MaybeUninit::<V::Element>::uninit() }; TILE_ELEMENTS];
        let mut bias = [const { MaybeUninit::<V::Element>::uninit() }; 64];
        let mut target = (c, c_stride);
        let mut ends = ends;
        if !whole {
            debug_assert!(M * width <= TILE_ELEMENTS && width <= 64);
            for value in &mut local[..M * width] {
                value.write(V::Element::default());
            }
            if ends.load {
                for i in 0..rows {
                    std::ptr::copy_nonoverlapping(
                        c.add(i * c_stride),
                        local.as_mut_ptr().cast::<V::Element>().add(i * width),
                        cols,
                    );
                }
            }
            if !ends.bias.is_null() {
                for value in &mut bias[..width] {
                    value.write(V::Element::default());
                }
                std::ptr::copy_nonoverlapping(ends.bias, bias.as_mut_ptr().cast(), cols);
                ends.bias = bias.as_ptr().cast();
            }
            target = (local.as_mut_ptr().cast(), width);
        }
        tile::<V, M, N>(depth, a, b, target.0, target.1, ends);
        if !whole {
            for i in 0..rows {
                std::ptr::copy_nonoverlapping(
                    local.as_ptr().cast::<V::Element>().add(i * width),
                    c.add(i * c_stride),
                    cols,
                );
            }
        }
    }
}
