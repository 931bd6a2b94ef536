//! The two small matrix products that attention is made of, tiled in registers.
//!
//! Every element of a result is one chain of fused multiply-adds in ascending order of the summed index, starting
//! from the element's old value: its bits do not depend on the tile it falls into.

use crate::cpu::float::{Float, LANES};

/// Rows of a tile: with 16 lanes its sums, one row of b and the factors fit the 16 vector registers of AVX2.
pub const TILE: usize = 4;

/// A row-major matrix inside a slice.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    /// Element (r, c) is `data[r * stride + c]`.
    pub data: &'a [T],
    /// Distance of two rows.
    pub stride: usize,
}

/// A row-major matrix to write to.
pub struct MatrixMut<'a, T> {
    /// Element (r, c) is `data[r * stride + c]`.
    pub data: &'a mut [T],
    /// Distance of two rows.
    pub stride: usize,
}

impl<T> MatrixMut<'_, T> {
    #[inline(always)]
    fn reborrow(&mut self) -> MatrixMut<'_, T> {
        MatrixMut { data: self.data, stride: self.stride }
    }
}

/// `c[rows, lanes] += a[rows, inner] * b[inner, lanes]`; `lanes` is a multiple of [`LANES`].
#[inline(always)]
pub fn add<T: Float>([rows, inner, lanes]: [usize; 3], a: Matrix<T>, b: Matrix<T>, c: MatrixMut<T>) {
    let mut row = 0;
    while row < rows {
        let (a, c) = (&a.data[row * a.stride..], (a.stride, &mut c.data[row * c.stride..], c.stride));
        let (a, c) = (Matrix { data: a, stride: c.0 }, MatrixMut { data: c.1, stride: c.2 });
        row += match rows - row {
            TILE.. => strip::<T, TILE, LANES>(0, inner, lanes, a, b, c),
            2.. => pair(inner, lanes, a, b, c),
            _ => single(inner, lanes, a, b, c),
        };
    }
}

/// Two rows: 32 lanes while they last.
#[inline(always)]
fn pair<T: Float>(inner: usize, lanes: usize, a: Matrix<T>, b: Matrix<T>, mut c: MatrixMut<T>) -> usize {
    let wide = lanes / 32 * 32;
    strip::<T, 2, 32>(0, inner, wide, a, b, c.reborrow());
    strip::<T, 2, LANES>(wide, inner, lanes, a, b, c)
}

/// One row: 64 lanes while they last, the rest in one tile.
#[inline(always)]
fn single<T: Float>(inner: usize, lanes: usize, a: Matrix<T>, b: Matrix<T>, mut c: MatrixMut<T>) -> usize {
    let wide = lanes / 64 * 64;
    strip::<T, 1, 64>(0, inner, wide, a, b, c.reborrow());
    match lanes - wide {
        48 => strip::<T, 1, 48>(wide, inner, lanes, a, b, c),
        32 => strip::<T, 1, 32>(wide, inner, lanes, a, b, c),
        _ => strip::<T, 1, LANES>(wide, inner, lanes, a, b, c),
    }
}

/// `R` rows of [`add`] in tiles of `L` lanes from `lane` on. Few rows take many lanes, so that enough chains run side
/// by side to hide the latency of an addition. Returns `R`.
#[inline(always)]
fn strip<T: Float, const R: usize, const L: usize>(
    mut lane: usize,
    inner: usize,
    lanes: usize,
    a: Matrix<T>,
    b: Matrix<T>,
    c: MatrixMut<T>,
) -> usize {
    while lane < lanes {
        tile::<T, R, L>(inner, a, &b.data[lane..], b.stride, &mut c.data[lane..], c.stride);
        lane += L;
    }
    R
}

#[inline(always)]
fn tile<T: Float, const R: usize, const L: usize>(
    inner: usize,
    a: Matrix<T>,
    b: &[T],
    b_stride: usize,
    c: &mut [T],
    c_stride: usize,
) {
    let mut sums = [[T::ZERO; L]; R];
    for (i, sums) in sums.iter_mut().enumerate() {
        sums.copy_from_slice(&c[i * c_stride..][..L]);
    }
    let mut rows: [&[T]; R] = [&[]; R];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = &a.data[i * a.stride..][..inner];
    }
    for (k, b) in (0..inner).zip(b.chunks(b_stride)) {
        let b = &b[..L];
        for (sums, row) in sums.iter_mut().zip(rows) {
            let factor = row[k];
            for (sum, &b) in sums.iter_mut().zip(b) {
                *sum = factor.mul_add(b, *sum);
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        c[i * c_stride..][..L].copy_from_slice(sums);
    }
}

/// `c[rows, lanes] += a[inner, rows]^T * b[inner, lanes]`; `lanes` is a multiple of [`LANES`].
#[inline(always)]
pub fn add_transposed<T: Float>(
    [rows, inner, lanes]: [usize; 3],
    a: Matrix<T>,
    b: Matrix<T>,
    c: MatrixMut<T>,
) {
    let mut row = 0;
    while row < rows {
        let done = match rows - row {
            TILE.. => TILE,
            2.. => 2,
            _ => 1,
        };
        let mut lane = 0;
        while lane < lanes {
            let (a, b) = (
                Matrix { data: &a.data[row..], stride: a.stride },
                Matrix { data: &b.data[lane..], stride: b.stride },
            );
            let (c, stride) = (&mut c.data[row * c.stride + lane..], c.stride);
            match done {
                TILE => tile_transposed::<T, TILE>(inner, a, b, c, stride),
                2 => tile_transposed::<T, 2>(inner, a, b, c, stride),
                _ => tile_transposed::<T, 1>(inner, a, b, c, stride),
            }
            lane += LANES;
        }
        row += done;
    }
}

#[inline(always)]
fn tile_transposed<T: Float, const R: usize>(
    inner: usize,
    a: Matrix<T>,
    b: Matrix<T>,
    c: &mut [T],
    c_stride: usize,
) {
    let mut sums = [[T::ZERO; LANES]; R];
    for (i, sums) in sums.iter_mut().enumerate() {
        sums.copy_from_slice(&c[i * c_stride..][..LANES]);
    }
    for (a, b) in a.data.chunks(a.stride).take(inner).zip(b.data.chunks(b.stride)) {
        let (a, b) = (&a[..R], &b[..LANES]);
        for (sums, &factor) in sums.iter_mut().zip(a) {
            for (sum, &b) in sums.iter_mut().zip(b) {
                *sum = factor.mul_add(b, *sum);
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        c[i * c_stride..][..LANES].copy_from_slice(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_match_plain_loops_to_the_bit() {
        let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) * 0.13;
        for rows in 1..=13 {
            for (inner, lanes) in [(1, 16), (5, 48), (7, 64), (3, 112)] {
                let a: Vec<f32> = (0..rows * inner).map(value).collect();
                let transposed: Vec<f32> =
                    (0..rows * inner).map(|i| a[i % rows * inner + i / rows]).collect();
                let b: Vec<f32> = (0..inner * lanes).map(|i| value(i + 11)).collect();
                let start: Vec<f32> = (0..rows * lanes).map(|i| value(i + 3)).collect();
                let reference = |start: f32, r: usize, l: usize| {
                    (0..inner).fold(start, |sum, k| a[r * inner + k].mul_add(b[k * lanes + l], sum))
                };
                let (a, at) =
                    (Matrix { data: &a, stride: inner }, Matrix { data: &transposed, stride: rows });
                let b = Matrix { data: &b, stride: lanes };
                let (mut added, mut outer) = (start.clone(), start.clone());
                let size = [rows, inner, lanes];
                add(size, a, b, MatrixMut { data: &mut added, stride: lanes });
                add_transposed(size, at, b, MatrixMut { data: &mut outer, stride: lanes });
                for i in 0..rows * lanes {
                    let (r, l) = (i / lanes, i % lanes);
                    assert_eq!(added[i], reference(start[i], r, l));
                    assert_eq!(outer[i], reference(start[i], r, l));
                }
            }
        }
    }
}
