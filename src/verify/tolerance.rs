//! When two devices agree: one formula for every kernel, from the dtype and the length of the reduction alone.
//!
//! ```text
//! |found - expected| <= unit |expected| + (unit + 4 u sqrt(terms)) rms
//! u    = 2^-24                       rounding of f32, in which everything is summed
//! unit = 16 u       f32              sixteen roundings: products, one exponential of an argument up to 10, a division
//!        16 u + 2^-7    bf16         and two roundings to bf16: of the result, and of one operand on the way
//! rms  = root mean square of the expected entries that are not 0: zeros take part in no rounding, and many of them
//!        must not make the rest stricter
//! ```
//!
//! The second term is what a sum of `terms` numbers of either sign loses by rounding each partial sum (a random walk
//! of roundings), and what cancellation hides from the first. `expected` is computed in f64 from the very numbers
//! that the kernel was given, so rounding the inputs is no part of it.

use crate::base::{Dtype, Error, Result};

/// Rounding of f32.
const U: f64 = 1.0 / 16_777_216.0;

/// How far a result may be from its reference.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Share of the expected value.
    pub relative: f64,
    /// Constant part.
    pub absolute: f64,
}

impl Tolerance {
    /// For results whose operands or outputs are stored in `dtype`, each a sum of `terms` products.
    pub fn new(dtype: Dtype, terms: usize, expected: &[f64]) -> Tolerance {
        let unit = 16.0 * U + if dtype == Dtype::Bf16 { 1.0 / 128.0 } else { 0.0 };
        let rms = root_mean_square(expected);
        Tolerance { relative: unit, absolute: (unit + 4.0 * U * (terms.max(1) as f64).sqrt()) * rms }
    }

    /// What is allowed at an expected value.
    pub fn at(&self, expected: f64) -> f64 {
        self.relative * expected.abs() + self.absolute
    }

    /// Compares element by element; equal infinities agree, NaN agrees with nothing.
    ///
    /// # Errors
    /// The worst element: its index, both values, and its distance over what is allowed.
    pub fn compare(&self, what: &str, found: &[f64], expected: &[f64]) -> Result<()> {
        if found.len() != expected.len() {
            return Err(Error::shape(what, found.len(), expected.len()));
        }
        let excess = |(&f, &e): (&f64, &f64)| match f == e {
            true => 0.0,
            false if f.is_nan() || e.is_nan() || f.is_infinite() => f64::INFINITY,
            false => (f - e).abs() / self.at(e).max(f64::MIN_POSITIVE),
        };
        let worst = found.iter().zip(expected).map(excess).enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
        match worst {
            Some((at, excess)) if excess > 1.0 => Err(Error::shape(
                format!("{what}, element {at} of {}", found.len()),
                format!("{:e}", found[at]),
                format!("{:e} within {:e} ({excess:.3} times as far)", expected[at], self.at(expected[at])),
            )),
            _ => Ok(()),
        }
    }
}

/// Root mean square of the entries that are not 0; 0 where all are.
pub fn root_mean_square(values: &[f64]) -> f64 {
    let (sum, count) =
        values.iter().filter(|x| **x != 0.0).fold((0.0, 0), |(sum, count), x| (sum + x * x, count + 1));
    (sum / f64::from(count.max(1))).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_element_is_named_and_nothing_hides() {
        let expected = [1.0, -2.0, 0.5, 0.0];
        let tolerance = Tolerance::new(Dtype::F32, 100, &expected);
        tolerance.compare("y", &[1.0, -2.0 + 1e-6, 0.5, 1e-7], &expected).unwrap();
        let message = tolerance.compare("y", &[1.0, -2.0, 0.51, 0.0], &expected).unwrap_err().to_string();
        assert!(message.contains("y, element 2 of 4"), "{message}");
        assert!(tolerance.compare("y", &[f64::NAN, -2.0, 0.5, 0.0], &expected).is_err());
        assert!(tolerance.compare("y", &[f64::INFINITY, -2.0, 0.5, 0.0], &expected).is_err());
        assert!(tolerance.compare("y", &[1.0], &expected).is_err());
        let zeros = Tolerance::new(Dtype::Bf16, 100, &[0.0; 3]);
        assert!(zeros.compare("z", &[0.0, 1e-30, 0.0], &[0.0; 3]).is_err());
    }
}
