//! The tile kernel: `M x N` vectors of C stay in registers while k runs.
#![allow(unsafe_code)]
// Plain loops: closures of iterators are not sure to be inlined into code for the vector level.
#![allow(clippy::needless_range_loop)]

use super::ahead::Ahead;
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

/// Rows of A.
#[derive(Clone, Copy)]
pub(super) enum Rows<T> {
    /// A packed panel, `[k][height]`.
    Packed(*const T),
    /// As they lie in memory: where the first begins, and the next after it. A row's k are neighbours.
    InPlace(*const T, usize),
}

/// Terms between two looks at the loop's end: two gained up to 6 % over one where something else ran on the same core, and up to
/// 2 % where nothing did; four gained less.
const UNROLL: usize = 2;

/// c = chain over k of a * b for a tile of `M` rows and `N` vectors. `a` is `[k][M]`, or in place with `a_stride`; `b` is `[k]` of
/// `N` vectors.
///
/// # Safety
/// `a`, `b` readable for `depth`, `c` (and bias) valid for the whole tile; the CPU has `V`'s instructions.
#[inline(always)]
unsafe fn tile<V: Vector, const M: usize, const N: usize, const IN_PLACE: bool>(
    depth: usize,
    (mut a, a_stride): (*const V::Element, usize),
    mut b: *const V::Element,
    c: *mut V::Element,
    c_stride: usize,
    ends: Ends<V::Element>,
    mut ahead: Ahead<V::Element>,
) {
    // SAFETY: by the caller's promises; index arithmetic stays inside the tile.
    unsafe {
        let mut sums = [[V::splat(V::Element::default()); N]; M];
        if ends.load {
            for i in 0..M {
                for j in 0..N {
                    sums[i][j] = V::load(c.add(i * c_stride + j * V::LANES));
                }
            }
        }
        // The next tile's lines are asked for row by row, or the memory would have them all to do at once.
        let pause = if ahead.c.is_null() { 0 } else { depth / M };
        let (mut row, mut left) = (ahead.c, M);
        while left > 0 && pause > 0 {
            for j in 0..N {
                ahead.ask::<V>(row.wrapping_add(j * V::LANES));
            }
            (a, b) = terms::<V, M, N, IN_PLACE>(pause, (a, a_stride), b, &mut sums);
            row = row.wrapping_add(c_stride);
            left -= 1;
        }
        terms::<V, M, N, IN_PLACE>(depth - pause * M, (a, a_stride), b, &mut sums);
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

/// Adds `depth` terms to the chains; returns where the next ones lie.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn terms<V: Vector, const M: usize, const N: usize, const IN_PLACE: bool>(
    depth: usize,
    (mut a, a_stride): (*const V::Element, usize),
    mut b: *const V::Element,
    sums: &mut [[V; N]; M],
) -> (*const V::Element, *const V::Element) {
    // SAFETY: by the caller's promises.
    unsafe {
        let mut rows = [a; M];
        for i in 0..M {
            rows[i] = a.wrapping_add(i * a_stride);
        }
        let mut k = 0;
        while k + UNROLL <= depth {
            for next in 0..UNROLL {
                term::<V, M, N, IN_PLACE>(
                    (a.add(if IN_PLACE { 0 } else { next * M }), &rows, k + next),
                    b.add(next * N * V::LANES),
                    sums,
                );
            }
            if !IN_PLACE {
                a = a.add(UNROLL * M);
            }
            b = b.add(UNROLL * N * V::LANES);
            k += UNROLL;
        }
        while k < depth {
            term::<V, M, N, IN_PLACE>((a, &rows, k), b, sums);
            if !IN_PLACE {
                a = a.add(M);
            }
            b = b.add(N * V::LANES);
            k += 1;
        }
        (if IN_PLACE { a.add(depth) } else { a }, b)
    }
}

/// Adds a term to each chain: the packed `a`, or element `k` of each of the `rows`, by the vectors at `b`.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn term<V: Vector, const M: usize, const N: usize, const IN_PLACE: bool>(
    (a, rows, k): (*const V::Element, &[*const V::Element; M], usize),
    b: *const V::Element,
    sums: &mut [[V; N]; M],
) {
    // SAFETY: by the caller's promises.
    unsafe {
        let mut columns = [V::splat(V::Element::default()); N];
        for j in 0..N {
            columns[j] = V::load(b.add(j * V::LANES));
        }
        for i in 0..M {
            let row = V::splat(if IN_PLACE { *rows[i].add(k) } else { *a.add(i) });
            for j in 0..N {
                sums[i][j] = row.mul_add(columns[j], sums[i][j]);
            }
        }
    }
}

/// Elements of the largest tile's square buffer (8 x 48 f32).
pub(super) const TILE_ELEMENTS: usize = 512;

/// [`tile`] of a panel of B of at most `N` vectors, of which only `rows x cols` exist: the panel holds no vectors without a
/// column, what else is missing is computed beside C and dropped.
///
/// # Safety
/// As [`tile`], with `c` and `bias` valid for `rows x cols` only.
#[inline(always)]
pub(super) unsafe fn tile_clipped<V: Vector, const M: usize, const N: usize>(
    (rows, cols): (usize, usize),
    depth: usize,
    a: Rows<V::Element>,
    b: *const V::Element,
    (c, c_stride): (*mut V::Element, usize),
    ends: Ends<V::Element>,
    ahead: Ahead<V::Element>,
) {
    const { assert!(N <= 4) }
    let (size, c) = ((rows, cols), (c, c_stride));
    // SAFETY: passed on to the caller; `cols` fit the vectors of each case.
    unsafe {
        if N > 3 && cols > 3 * V::LANES {
            clipped::<V, M, 4>(size, depth, a, b, c, ends, ahead);
        } else if N > 2 && cols > 2 * V::LANES {
            clipped::<V, M, 3>(size, depth, a, b, c, ends, ahead);
        } else if N > 1 && cols > V::LANES {
            clipped::<V, M, 2>(size, depth, a, b, c, ends, ahead);
        } else {
            clipped::<V, M, 1>(size, depth, a, b, c, ends, ahead);
        }
    }
}

/// As [`tile_clipped`], for a tile of `N` vectors whose last has a column.
#[inline(always)]
unsafe fn clipped<V: Vector, const M: usize, const N: usize>(
    (rows, cols): (usize, usize),
    depth: usize,
    a: Rows<V::Element>,
    b: *const V::Element,
    (c, c_stride): (*mut V::Element, usize),
    ends: Ends<V::Element>,
    ahead: Ahead<V::Element>,
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
        match a {
            Rows::Packed(a) => tile::<V, M, N, false>(depth, (a, 0), b, target.0, target.1, ends, ahead),
            Rows::InPlace(a, stride) => {
                tile::<V, M, N, true>(depth, (a, stride), b, target.0, target.1, ends, ahead);
            }
        }
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
