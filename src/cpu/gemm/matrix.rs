//! Strided windows of slices: what a product reads and writes.

use std::ops::Range;

/// `rows x cols` numbers to read; element (r, c) is `data[r * row_stride + c * col_stride]`.
///
/// A transpose swaps the strides, a window moves the start: neither copies.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A matrix with any strides, in elements.
    ///
    /// # Panics
    /// When the last element lies outside `data`: the kernels read through pointers, so this is the one check.
    pub fn new(
        data: &'a [T],
        (rows, cols): (usize, usize),
        (row_stride, col_stride): (usize, usize),
    ) -> Self {
        assert_inside(data.len(), (rows, cols), (row_stride, col_stride));
        Matrix { data, rows, cols, row_stride, col_stride }
    }

    /// A whole row-major matrix.
    ///
    /// # Panics
    /// When `data` is shorter than `rows * cols`.
    pub fn row_major(data: &'a [T], rows: usize, cols: usize) -> Self {
        Matrix::new(data, (rows, cols), (cols, 1))
    }

    /// The transpose.
    pub fn transposed(self) -> Self {
        let Matrix { data, rows, cols, row_stride, col_stride } = self;
        Matrix { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }

    /// The rows `range`.
    ///
    /// # Panics
    /// When the range leaves the matrix.
    pub fn window_rows(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let start = (range.start * self.row_stride).min(self.data.len());
        Matrix { data: &self.data[start..], rows: range.len(), ..self }
    }

    /// The columns `range`.
    ///
    /// # Panics
    /// When the range leaves the matrix.
    pub fn window_cols(self, range: Range<usize>) -> Self {
        self.transposed().window_rows(range).transposed()
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Start, row stride, column stride: every element inside the shape is inside the slice.
    pub(super) fn parts(&self) -> (*const T, usize, usize) {
        (self.data.as_ptr(), self.row_stride, self.col_stride)
    }
}

/// `rows x cols` numbers to write; the elements of a row are neighbours, rows are `row_stride` apart.
#[derive(Debug)]
pub struct MatrixMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a, T> MatrixMut<'a, T> {
    /// A matrix whose rows are `row_stride` elements apart.
    ///
    /// # Panics
    /// When the last element lies outside `data`, or rows overlap.
    pub fn new(data: &'a mut [T], (rows, cols): (usize, usize), row_stride: usize) -> Self {
        assert_inside(data.len(), (rows, cols), (row_stride, 1));
        assert!(rows <= 1 || row_stride >= cols, "rows of {cols} overlap at stride {row_stride}");
        MatrixMut { data, rows, cols, row_stride }
    }

    /// A whole row-major matrix.
    ///
    /// # Panics
    /// When `data` is shorter than `rows * cols`.
    pub fn row_major(data: &'a mut [T], rows: usize, cols: usize) -> Self {
        MatrixMut::new(data, (rows, cols), cols)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Visits the rows in order.
    pub(super) fn each_row(&mut self, mut visit: impl FnMut(&mut [T])) {
        for row in 0..self.rows {
            visit(&mut self.data[row * self.row_stride..][..self.cols]);
        }
    }

    /// Start and row stride.
    pub(super) fn parts(&mut self) -> (*mut T, usize) {
        (self.data.as_mut_ptr(), self.row_stride)
    }
}

fn assert_inside(len: usize, (rows, cols): (usize, usize), (row_stride, col_stride): (usize, usize)) {
    if rows == 0 || cols == 0 {
        return;
    }
    let row = (rows - 1).checked_mul(row_stride);
    let col = (cols - 1).checked_mul(col_stride);
    let last = row.zip(col).and_then(|(row, col)| row.checked_add(col));
    assert!(
        last.is_some_and(|last| last < len),
        "a {rows} x {cols} matrix with strides {row_stride}, {col_stride} needs more than {len} elements"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_and_transposes_move_the_start_and_swap_the_strides() {
        let data: Vec<u32> = (0..12).collect();
        let window = Matrix::row_major(&data, 3, 4).window_cols(1..3).window_rows(1..3).transposed();
        assert_eq!((window.rows(), window.cols()), (2, 2));
        assert_eq!((window.data[0], window.row_stride, window.col_stride), (5, 1, 4));
    }

    #[test]
    #[should_panic(expected = "needs more than 11 elements")]
    fn a_matrix_cannot_leave_its_slice() {
        Matrix::row_major(&[0_f32; 11], 3, 4);
    }

    #[test]
    #[should_panic(expected = "needs more than")]
    fn strides_cannot_overflow() {
        Matrix::new(&[0_f32; 4], (3, 2), (usize::MAX / 2 + 1, 1));
    }
}
