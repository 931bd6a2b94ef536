//! Tensor shapes of up to four dimensions.

use std::fmt;

/// The lengths of a tensor's axes, outermost first; row-major order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Shape {
    dims: [usize; 4],
    rank: usize,
}

impl Shape {
    /// The axes, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// Number of elements; 1 for a scalar (rank 0).
    pub fn elements(&self) -> usize {
        self.dims().iter().product()
    }

    /// The shape as a matrix: all axes but the last are rows, the last is columns. A vector is one row.
    pub fn as_matrix(&self) -> (usize, usize) {
        let cols = self.dims().last().copied().unwrap_or(1);
        let rows = self.dims()[..self.rank.saturating_sub(1)].iter().product();
        (rows, cols)
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(axes: [usize; N]) -> Self {
        const { assert!(N <= 4, "latch tensors have at most four axes") };
        let mut dims = [1; 4];
        dims[..N].copy_from_slice(&axes);
        Shape { dims, rank: N }
    }
}

impl From<usize> for Shape {
    fn from(length: usize) -> Self {
        Shape::from([length])
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrix_form_folds_leading_axes() {
        assert_eq!(Shape::from([2, 3, 5]).as_matrix(), (6, 5));
        assert_eq!(Shape::from([7]).as_matrix(), (1, 7));
        assert_eq!(Shape::from([]).as_matrix(), (1, 1));
        assert_eq!(Shape::from([2, 3]).to_string(), "[2, 3]");
    }
}
