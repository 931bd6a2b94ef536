//! Element types of tensors.

use std::fmt;

/// The type of a tensor's elements, known at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single precision: the working precision.
    F32,
    /// IEEE double precision: CPU only, for gradient checks.
    F64,
    /// bfloat16: storage of weight matrices, and on a GPU of activations; products accumulate in f32.
    Bf16,
    /// Token ids, rows, positions, slots, bitmaps.
    U32,
    /// Indices that may be absent (-1).
    I32,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F64 => 8,
            Dtype::F32 | Dtype::U32 | Dtype::I32 => 4,
            Dtype::Bf16 => 2,
        }
    }

    /// The dtype of what stands beside activations of this dtype: gains and biases, statistics, log-probabilities,
    /// sums, gradients of parameters. bf16 activations have f32 ones; other dtypes have their own.
    pub fn accumulation(self) -> Dtype {
        match self {
            Dtype::Bf16 => Dtype::F32,
            other => other,
        }
    }

    /// Whether elements are floating-point numbers.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F32 | Dtype::F64 | Dtype::Bf16)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "f32",
            Dtype::F64 => "f64",
            Dtype::Bf16 => "bf16",
            Dtype::U32 => "u32",
            Dtype::I32 => "i32",
        })
    }
}

impl std::str::FromStr for Dtype {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" | "float32" => Ok(Dtype::F32),
            "f64" | "float64" => Ok(Dtype::F64),
            "bf16" | "bfloat16" => Ok(Dtype::Bf16),
            other => Err(format!("unknown dtype `{other}`; known: f32, f64, bf16")),
        }
    }
}

/// The bf16 number nearest to `value`, ties to even. (`half::bf16::from_f64` looks at the upper word of the f64 alone, so that
/// values just above a tie count as ties.)
pub fn bf16_of_f64(value: f64) -> half::bf16 {
    let near = value as f32;
    let widened = f64::from(near);
    if !near.is_finite() || widened == value {
        return half::bf16::from_f32(near);
    }
    // Round to odd: an f32 that is not exact gets its last bit set, so that rounding again makes no tie of it.
    let toward_zero = near.to_bits() - u32::from(widened.abs() > value.abs());
    half::bf16::from_f32(f32::from_bits(toward_zero | 1))
}

#[cfg(test)]
mod tests {
    use super::bf16_of_f64;
    use half::bf16;

    /// The nearest of the bf16 numbers around `value` by exact differences in f64.
    fn nearest(value: f64) -> bf16 {
        let start = bf16::from_f64(value).to_bits();
        let around = [start.wrapping_sub(1), start, start.wrapping_add(1)].map(bf16::from_bits);
        let distance = |x: bf16| (f64::from(x) - value).abs();
        let best = around.iter().map(|&x| distance(x)).fold(f64::INFINITY, f64::min);
        let ties: Vec<bf16> = around.into_iter().filter(|&x| distance(x) == best).collect();
        *ties.iter().find(|x| x.to_bits() % 2 == 0).unwrap_or(&ties[0])
    }

    #[test]
    fn f64_becomes_the_nearest_bf16() {
        let tie = 1.0 + 2.0_f64.powi(-8);
        for offset in [0.0, 2.0_f64.powi(-24), 2.0_f64.powi(-40), 2.0_f64.powi(-52)] {
            for value in [tie + offset, tie - offset, -tie - offset, -tie + offset] {
                assert_eq!(bf16_of_f64(value), nearest(value), "{value:e}");
            }
        }
        let mut state = 1_u64;
        for _ in 0..10_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // All signs, and exponents around those of weights.
            let exponent = 1023 - 40 + (state >> 58);
            let value =
                f64::from_bits((state & (1 << 63)) | exponent << 52 | (state >> 12 & ((1 << 52) - 1)));
            assert_eq!(bf16_of_f64(value), nearest(value), "{value:e}");
        }
        assert_eq!(bf16_of_f64(1e-320).to_bits(), 0);
        assert!(bf16_of_f64(f64::NAN).is_nan() && bf16_of_f64(1e300).is_infinite());
    }
}
