//! Log-density of rows under normals of one deviation around given means, up to what is constant. Kernels:
//! cuda/gaussian_density.cu. CPU: cpu/gaussian_density.rs. Parity: tests/parity/gaussian_density.rs.
//!
//! ```text
//! score[r] = -|x[r] - m[r]|^2 / (2 sigma^2)
//! ```
//!
//! Source: Soft Tokens, Hard Truths (arXiv 2509.19170), where x is a noisy embedding that a rollout was fed and m the
//! mixture of embeddings that the model predicts now. In f32 the sum of many squares is a large number; equal means
//! give equal bits, so that a ratio of two densities starts at exactly 1.

use super::launch::{arguments, by_dtype, kernels, size};
use super::{View, ViewMut, float_dispatch};
use crate::base::{Error, Result};
use crate::cpu;
use crate::device::{Device, Grid};

kernels!("gaussian_density":
    FORWARD_F32 = "gaussian_density_fwd_f32",
    FORWARD_BF16 = "gaussian_density_fwd_bf16",
    BACKWARD_F32 = "gaussian_density_bwd_f32",
    BACKWARD_BF16 = "gaussian_density_bwd_bf16",
);

/// Threads of a block, which has one row; `__launch_bounds__`.
const BLOCK: u32 = 256;

/// The normals of all rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normal {
    /// Their deviation sigma, above 0.
    pub deviation: f64,
    /// Scores are divided by the number of columns.
    pub mean: bool,
}

impl Normal {
    /// Checks the numbers.
    ///
    /// # Errors
    /// A deviation that is not above 0.
    pub fn validate(&self) -> Result<()> {
        match self.deviation.is_finite() && self.deviation > 0.0 {
            true => Ok(()),
            false => Err(Error::input(
                "gaussian density",
                format!("deviation = {}, expected a number above 0", self.deviation),
                "a point has no density: give the noise on embeddings a deviation (lepo.embedding_noise)",
            )),
        }
    }

    /// What squares are multiplied by.
    fn scale(&self, cols: usize) -> f64 {
        let scale = 0.5 / (self.deviation * self.deviation);
        if self.mean { scale / cols.max(1) as f64 } else { scale }
    }
}

/// The score of each row of `x[N, d]` under means `m[N, d]`, to `score[N, 1]` (accumulation dtype).
///
/// # Errors
/// Shapes or dtypes that do not fit; a deviation that is not above 0.
pub fn forward(x: View, m: View, normal: &Normal, mut score: ViewMut) -> Result<()> {
    let (rows, cols, dtype) = (x.count(), x.cols(), x.dtype());
    check(x, m, normal)?;
    score.expect("gaussian density score", rows, 1, dtype.accumulation())?;
    let scale = normal.scale(cols);
    match x.device() {
        Device::Cpu(_) => float_dispatch!("gaussian density", dtype, T => {
            cpu::gaussian_density::forward::<T>(x.slice()?, m.slice()?, cols, scale, score.slice()?);
        }),
        Device::Gpu(_) if rows == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("gaussian density", dtype, &FORWARD_F32, &FORWARD_BF16)?;
            let grid = Grid::linear(size("gaussian density rows", rows)?, BLOCK);
            let cols = size("gaussian density columns", cols)?;
            let (x, m, score) = (x.address()?, m.address()?, score.address()?);
            gpu.launch(kernel, grid, &arguments![x, m, cols, scale as f32, score])?;
        }
    }
    Ok(())
}

/// Gradient of [`forward`] by the means, assigned to `dm[N, d]`: `d_score[N, 1]` (accumulation dtype) weights the rows,
/// and x is a constant.
///
/// # Errors
/// As [`forward`].
pub fn backward(x: View, m: View, normal: &Normal, d_score: View, mut dm: ViewMut) -> Result<()> {
    let (rows, cols, dtype) = (x.count(), x.cols(), x.dtype());
    check(x, m, normal)?;
    d_score.expect("gaussian density d_score", rows, 1, dtype.accumulation())?;
    dm.expect("gaussian density dm", rows, cols, dtype)?;
    let scale = normal.scale(cols);
    match x.device() {
        Device::Cpu(_) => float_dispatch!("gaussian density", dtype, T => {
            let (x, m, d) = (x.slice()?, m.slice()?, d_score.slice()?);
            cpu::gaussian_density::backward::<T>(x, m, d, cols, scale, dm.slice()?);
        }),
        Device::Gpu(_) if rows == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = by_dtype("gaussian density", dtype, &BACKWARD_F32, &BACKWARD_BF16)?;
            let grid = Grid::linear(size("gaussian density rows", rows)?, BLOCK);
            let cols = size("gaussian density columns", cols)?;
            let (x, m, d, dm) = (x.address()?, m.address()?, d_score.address()?, dm.address()?);
            gpu.launch(kernel, grid, &arguments![x, m, d, cols, scale as f32, dm])?;
        }
    }
    Ok(())
}

fn check(x: View, m: View, normal: &Normal) -> Result<()> {
    normal.validate()?;
    m.expect("gaussian density means", x.count(), x.cols(), x.dtype())?;
    match x.cols() {
        0 => Err(Error::shape("gaussian density columns", 0, "at least 1")),
        _ => Ok(()),
    }
}
