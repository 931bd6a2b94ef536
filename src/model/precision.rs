//! How a model holds numbers: its matrices, its activations, and what stands beside them.

use super::families::{Layout, Parameter};
use crate::base::{Dtype, Error, Result};
use crate::device::Device;
use std::fmt;
use std::str::FromStr;

/// How a model holds numbers. Sums, gains and biases, statistics of norms and of the softmax, logits, log-probabilities,
/// gradients of parameters and the optimiser's state are f32 (f64 in [`Precision::F64`]) whatever the rest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Everything in f32.
    F32,
    /// Everything in f64: CPU only, for checks.
    F64,
    /// Matrices in bf16 under f32 activations.
    Bf16,
    /// Matrices and activations in bf16, on a GPU: the residual stream, what layers and the tape keep, the KV cache, the
    /// state that latents feed back, and the gradients of all of these.
    Bf16Activations,
}

impl Precision {
    /// All of them.
    pub const ALL: [Precision; 4] =
        [Precision::F32, Precision::F64, Precision::Bf16, Precision::Bf16Activations];

    /// Activations of the CPU's: everything in one dtype; `bf16` means bf16 matrices under f32 activations.
    pub fn of(dtype: Dtype) -> Precision {
        match dtype {
            Dtype::F64 => Precision::F64,
            Dtype::Bf16 => Precision::Bf16,
            _ => Precision::F32,
        }
    }

    /// The dtype of activations and of their gradients.
    pub fn activations(self) -> Dtype {
        match self {
            Precision::F32 | Precision::Bf16 => Dtype::F32,
            Precision::F64 => Dtype::F64,
            Precision::Bf16Activations => Dtype::Bf16,
        }
    }

    /// The dtype of matrices.
    pub fn matrices(self) -> Dtype {
        match self {
            Precision::F32 => Dtype::F32,
            Precision::F64 => Dtype::F64,
            Precision::Bf16 | Precision::Bf16Activations => Dtype::Bf16,
        }
    }

    /// The dtype of one parameter.
    pub(super) fn of_parameter(self, parameter: &Parameter) -> Dtype {
        match parameter.layout {
            Layout::Vector => self.activations().accumulation(),
            _ => self.matrices(),
        }
    }

    /// Fails where `device` does not compute such activations.
    ///
    /// # Errors
    /// bf16 activations on the CPU.
    pub fn check(self, device: &Device) -> Result<()> {
        match (self, device) {
            (Precision::Bf16Activations, Device::Cpu(_)) => Err(Error::input(
                "model.dtype (--dtype)",
                "bf16-activations on the cpu, whose activations are f32 or f64",
                "choose --device cuda (or sim), or bf16: matrices in bf16 under f32 activations",
            )),
            _ => Ok(()),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::F64 => "f64",
            Precision::Bf16 => "bf16",
            Precision::Bf16Activations => "bf16-activations",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Precision {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Precision::ALL.into_iter().find(|precision| precision.name() == text).ok_or_else(|| {
            let known = Precision::ALL.map(Precision::name).join(", ");
            format!("unknown precision `{text}`; known: {known}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for precision in Precision::ALL {
            assert_eq!(precision.to_string().parse(), Ok(precision));
        }
        assert!("bf17".parse::<Precision>().unwrap_err().contains("bf16-activations"));
    }

    #[test]
    fn the_cpu_says_what_it_cannot_do() {
        let message = Precision::Bf16Activations.check(&Device::cpu()).unwrap_err().to_string();
        assert!(message.contains("model.dtype") && message.contains("--device cuda"), "{message}");
        for precision in [Precision::F32, Precision::F64, Precision::Bf16] {
            precision.check(&Device::cpu()).unwrap();
        }
    }
}
