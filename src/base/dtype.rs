//! Element types of tensors.

use std::fmt;

/// The type of a tensor's elements, known at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single precision: the working precision of the CPU.
    F32,
    /// IEEE double precision: CPU only, for gradient checks.
    F64,
    /// bfloat16: storage of weight matrices; products accumulate in f32.
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
