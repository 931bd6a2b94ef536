//! Every kernel's operation at the sizes of real models, with what it must move and multiply at least: what
//! `tools/kernel_report` counts in the simulator and `benches/kernels.rs` times on a GPU.
//!
//! A floor counts each input once, each output once, and what is added to twice; working memory that an operation keeps
//! for itself is not in it. Products count two operations a multiply-add, attention those of the pairs that are seen.

mod attention;
pub mod bars;
pub mod coverage;
mod embedding;
mod learning;
mod products;
mod rows;
mod sampling;
mod stepping;

use super::gradient::normals;
use crate::base::rng::{Purpose, StreamKey};
use crate::base::{Dtype, Result, Shape};
use crate::device::{Device, Element};
use crate::ops::{Tensor, random};

/// The sizes of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Its name.
    pub name: &'static str,
    /// Width of the residual stream.
    pub width: usize,
    /// Query heads, and heads of keys and values.
    pub heads: [usize; 2],
    /// Width of a head.
    pub head_dim: usize,
    /// Width inside the MLP.
    pub hidden: usize,
    /// Tokens.
    pub vocabulary: usize,
    /// Layers.
    pub layers: usize,
}

/// GPT-2 small: 124M parameters.
pub const GPT2_SMALL: Size = Size {
    name: "gpt2-small",
    width: 768,
    heads: [12, 12],
    head_dim: 64,
    hidden: 3072,
    vocabulary: 50257,
    layers: 12,
};

/// Qwen2.5-0.5B: 494M parameters.
pub const QWEN: Size = Size {
    name: "qwen2.5-0.5b",
    width: 896,
    heads: [14, 2],
    head_dim: 64,
    hidden: 4864,
    vocabulary: 151936,
    layers: 24,
};

/// Where and how large a workload is.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// A GPU, real or simulated.
    pub device: &'a Device,
    /// Whose sizes.
    pub size: Size,
    /// Of activations; matrices are bf16 beside bf16 and, [`Setting::rounded`], beside f32 ones.
    pub dtype: Dtype,
    /// bf16 matrices beside f32 activations.
    pub rounded: bool,
    /// Sequences of a training step, and rollouts of a group.
    pub sequences: usize,
    /// Positions of each.
    pub length: usize,
}

/// One operation, prepared.
pub struct Work {
    /// Bytes that it must move.
    pub bytes: usize,
    /// Floating-point operations of its products.
    pub flops: usize,
    /// 4-byte numbers that ids pick from far apart, each in a sector of its own; of operations that are one kernel.
    pub scattered: usize,
    /// Runs it.
    pub run: Box<dyn FnMut() -> Result<()>>,
}

/// How a workload is prepared.
pub type Make = fn(&Setting) -> Result<Work>;

/// A named workload.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// The operation, and its direction.
    pub name: &'static str,
    /// Prepares it.
    pub make: Make,
}

/// All workloads, by operation.
pub fn all() -> Vec<Workload> {
    let lists = [
        rows::LIST,
        embedding::LIST,
        stepping::LIST,
        products::LIST,
        attention::LIST,
        sampling::LIST,
        learning::LIST,
    ];
    lists.into_iter().flatten().map(|&(name, make)| Workload { name, make }).collect()
}

impl Work {
    /// Work without products.
    fn moving(bytes: usize, run: impl FnMut() -> Result<()> + 'static) -> Result<Work> {
        Work::multiplying(bytes, 0, run)
    }

    /// Work whose one kernel reads `scattered` numbers at ids, a sector for each; `bytes` are what it moves beside them.
    fn picking(scattered: usize, bytes: usize, run: impl FnMut() -> Result<()> + 'static) -> Result<Work> {
        Ok(Work { scattered, ..Work::moving(bytes + scattered * 32, run)? })
    }

    fn multiplying(bytes: usize, flops: usize, run: impl FnMut() -> Result<()> + 'static) -> Result<Work> {
        Ok(Work { bytes, flops, scattered: 0, run: Box::new(run) })
    }
}

/// Bytes of tensors.
fn moved(tensors: &[&Tensor]) -> usize {
    tensors.iter().map(|tensor| tensor.bytes()).sum()
}

impl Setting<'_> {
    /// Packed positions.
    fn positions(&self) -> usize {
        self.sequences * self.length
    }

    /// The dtype of matrices.
    fn matrix_dtype(&self) -> Dtype {
        if self.rounded { Dtype::Bf16 } else { self.dtype }
    }

    fn normal(&self, name: &str, shape: impl Into<Shape>, dtype: Dtype, deviation: f64) -> Result<Tensor> {
        let mut tensor = Tensor::zeros(self.device, shape, dtype)?;
        let seed = name.bytes().fold(7, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte));
        random::normal(&mut tensor, StreamKey::new(seed, 0, 0, 0, Purpose::Probe), deviation)?;
        Ok(tensor)
    }

    /// Activations `[rows, cols]`.
    fn activations(&self, name: &str, rows: usize, cols: usize) -> Result<Tensor> {
        self.normal(name, [rows, cols], self.dtype, 1.0)
    }

    /// A matrix of parameters.
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Tensor> {
        self.normal(name, [rows, cols], self.matrix_dtype(), 0.02)
    }

    /// A vector of parameters, or a gradient.
    fn vector(&self, name: &str, count: usize) -> Result<Tensor> {
        self.normal(name, [count], Dtype::F32, 1.0)
    }

    fn blank(&self, rows: usize, cols: usize) -> Result<Tensor> {
        Tensor::zeros(self.device, [rows, cols], self.dtype)
    }

    fn zeros(&self, rows: usize, cols: usize, dtype: Dtype) -> Result<Tensor> {
        Tensor::zeros(self.device, [rows, cols], dtype)
    }

    /// `[rows, 1]`.
    fn column<T: Element>(&self, rows: usize, value: impl Fn(usize) -> T) -> Result<Tensor> {
        Tensor::from_host(self.device, [rows, 1], &(0..rows).map(value).collect::<Vec<T>>())
    }

    /// f32 numbers from the host: for what a kernel's way depends on.
    fn numbers(&self, name: &str, rows: usize, cols: usize) -> Result<Tensor> {
        let values: Vec<f32> = normals(name, rows * cols).into_iter().map(|value| value as f32).collect();
        Tensor::from_host(self.device, [rows, cols], &values)
    }

    /// The token of a packed position: spread over the vocabulary, no two alike nearby.
    fn token(&self, position: usize) -> usize {
        position * 7919 % self.size.vocabulary
    }
}
