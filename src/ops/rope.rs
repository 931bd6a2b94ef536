//! Rotary position embedding (Su et al. 2021, "RoFormer", section 3.2.2). Kernels: cuda/rope.cu. CPU: cpu/rope.rs.
//! Parity: tests/parity/rope.rs.
//!
//! Hugging Face's convention (`rotate_half`): dimension i of a head turns with dimension i + D/2, by the angle
//! `position * inverse_frequency[i]`. Angles, cosines and sines are computed in f64 and rounded once.

use super::launch::{arguments, blocks, by_dtype, kernels, size};
use super::{Tensor, View, ViewMut, float_dispatch};
use crate::base::{Dtype, Error, Result};
use crate::cpu;
use crate::device::{Device, Grid};
use std::f64::consts::TAU;

kernels!("rope":
    FORWARD_F32 = "rope_fwd_f32",
    FORWARD_BF16 = "rope_fwd_bf16",
    BACKWARD_F32 = "rope_bwd_f32",
    BACKWARD_BF16 = "rope_bwd_bf16",
);

/// Threads of a block; `__launch_bounds__` of the kernels.
const BLOCK: u32 = 256;
/// Threads that make a device busy enough: with fewer, a thread takes fewer heads and the table is read more often.
const BUSY: usize = 1 << 17;

/// How a model's frequencies are stretched beyond its training length.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Scaling {
    /// Not at all.
    #[default]
    None,
    /// All positions are divided by `factor` (Chen et al. 2023, "Extending context window ... via positional
    /// interpolation", equation 4).
    Linear {
        /// How many times longer the context is.
        factor: f64,
    },
    /// Llama 3.1: long waves are stretched by `factor`, short ones kept, those between interpolated (Hugging Face
    /// transformers, `modeling_rope_utils.py`, `rope_type = "llama3"`).
    Llama3 {
        /// Stretch of long waves.
        factor: f64,
        /// Waves longer than `original_max_position_embeddings / low_freq_factor` are stretched.
        low_freq_factor: f64,
        /// Waves shorter than `original_max_position_embeddings / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Length of the context in pre-training, in positions.
        original_max_position_embeddings: f64,
    },
}

/// Inverse frequencies `theta^(-2i / head_dim)`, i = 0..head_dim/2, in radians a position, under `scaling`.
///
/// # Errors
/// An odd `head_dim`, or numbers that are not positive and finite.
pub fn inverse_frequencies(head_dim: usize, theta: f64, scaling: Scaling) -> Result<Vec<f64>> {
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(Error::shape("rope head dimension", head_dim, "a positive even number"));
    }
    let positive = |what: &str, value: f64| {
        if value > 0.0 && value.is_finite() {
            return Ok(());
        }
        Err(Error::input(
            format!("rope {what}"),
            format!("found {value}, expected a positive number"),
            "correct config.json",
        ))
    };
    positive("theta", theta)?;
    let plain = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64));
    match scaling {
        Scaling::None => Ok(plain.collect()),
        Scaling::Linear { factor } => {
            positive("factor", factor)?;
            Ok(plain.map(|frequency| frequency / factor).collect())
        }
        Scaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: original,
        } => {
            positive("factor", factor)?;
            positive("low_freq_factor", low)?;
            positive("original_max_position_embeddings", original)?;
            positive("high_freq_factor - low_freq_factor", high - low)?;
            Ok(plain
                .map(|frequency| {
                    // How many whole waves fit in the original context, mapped to 0 (long wave) .. 1 (short).
                    let waves = original * frequency / TAU;
                    let keep = ((waves - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - keep) * frequency / factor + keep * frequency
                })
                .collect())
        }
    }
}

/// Cosines and sines of all angles, built once for a model; all layers share it.
#[derive(Debug)]
pub struct RopeTable {
    /// `[max_positions, head_dim / 2]`.
    cos: Tensor,
    /// `[max_positions, head_dim / 2]`.
    sin: Tensor,
}

impl RopeTable {
    /// The angles `position * inverse_frequencies[i]` for positions `0..max_positions` (two uploads), for operands of
    /// `dtype`: bf16 operands turn by an f32 table.
    ///
    /// # Errors
    /// No frequencies, a dtype that is no float, or memory that the device does not have.
    pub fn new(
        device: &Device,
        inverse_frequencies: &[f64],
        max_positions: usize,
        dtype: Dtype,
    ) -> Result<RopeTable> {
        let half = inverse_frequencies.len();
        if half == 0 {
            return Err(Error::shape("rope inverse frequencies", 0, "at least 1"));
        }
        let column = |f: fn(f64) -> f64| -> Result<Tensor> {
            let values =
                (0..max_positions).flat_map(|p| inverse_frequencies.iter().map(move |w| f(p as f64 * w)));
            match dtype.accumulation() {
                Dtype::F64 => Tensor::from_host(device, [max_positions, half], &values.collect::<Vec<f64>>()),
                Dtype::F32 => {
                    let values: Vec<f32> = values.map(|value| value as f32).collect();
                    Tensor::from_host(device, [max_positions, half], &values)
                }
                other => Err(Error::dtype("rope table", other, "f32, f64 or bf16")),
            }
        };
        Ok(RopeTable { cos: column(f64::cos)?, sin: column(f64::sin)? })
    }

    /// Number of positions; a caller checks a prompt's length against it before it runs.
    pub fn max_positions(&self) -> usize {
        self.cos.shape().as_matrix().0
    }
}

/// Rotates `x[N, heads * head_dim]` in place by the angles of `positions[N, 1]` (u32).
///
/// Positions must be below the table's [`RopeTable::max_positions`]: the caller checks that on the host, before any
/// work, where it can name the prompt. The CPU checks again; a GPU kernel does not read outside its table and makes
/// such a row NaN.
///
/// # Errors
/// Shapes or dtypes that do not fit, a position beyond the table.
pub fn forward(x: ViewMut, heads: usize, positions: View, table: &RopeTable) -> Result<()> {
    rotate::<false>(x, heads, positions, table)
}

/// Gradient of [`forward`], in place: turns `dx[N, heads * head_dim]` back.
///
/// # Errors
/// As [`forward`].
pub fn backward(dx: ViewMut, heads: usize, positions: View, table: &RopeTable) -> Result<()> {
    rotate::<true>(dx, heads, positions, table)
}

fn rotate<const INVERSE: bool>(
    mut x: ViewMut,
    heads: usize,
    positions: View,
    table: &RopeTable,
) -> Result<()> {
    let (rows, dtype) = (x.count(), x.dtype());
    let half = table.cos.shape().as_matrix().1;
    x.expect("rope", rows, heads * 2 * half, dtype)?;
    positions.expect("rope positions", rows, 1, Dtype::U32)?;
    table.cos.expect_dtype("rope table", dtype.accumulation())?;
    let device = x.device().clone();
    match &device {
        Device::Cpu(_) => float_dispatch!("rope", dtype, T => {
            let positions: &[u32] = positions.slice()?;
            if let Some(beyond) = positions.iter().find(|&&p| p as usize >= table.max_positions()) {
                return Err(Error::shape(
                    "rope position",
                    beyond,
                    format!("below {}, the length of the table", table.max_positions()),
                ));
            }
            let (cos, sin) = (table.cos.view().slice()?, table.sin.view().slice()?);
            let table = cpu::rope::Table { cos, sin, half };
            cpu::rope::rotate::<T, INVERSE>(x.slice()?, heads, positions, table);
        }),
        Device::Gpu(_) if rows * heads == 0 => {}
        Device::Gpu(gpu) => {
            let kernel = match INVERSE {
                false => by_dtype("rope", dtype, &FORWARD_F32, &FORWARD_BF16)?,
                true => by_dtype("rope", dtype, &BACKWARD_F32, &BACKWARD_BF16)?,
            };
            // Four pairs a thread, or one where heads do not divide so.
            let pieces = if half.is_multiple_of(4) { half / 4 } else { half };
            let share = heads.div_ceil((BUSY / (rows * pieces)).clamp(1, heads));
            let threads = rows * pieces * heads.div_ceil(share);
            let grid = Grid::linear(blocks("rope threads", threads, BLOCK as usize)?, BLOCK);
            let (cos, sin) = (table.cos.view().address()?, table.sin.view().address()?);
            let limit = size("rope positions", table.max_positions())?;
            let (x, positions) = (x.address()?, positions.address()?);
            let (rows, heads, half, share) = (rows as u32, heads as u32, half as u32, share as u32);
            let arguments = arguments![x, positions, cos, sin, limit, rows, heads, half, share];
            gpu.launch(kernel, grid, &arguments)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaled_frequencies() {
        let plain = inverse_frequencies(8, 10_000.0, Scaling::None).unwrap();
        for (found, expected) in plain.iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!((found - expected).abs() < 1e-15);
        }
        let linear = inverse_frequencies(8, 10_000.0, Scaling::Linear { factor: 4.0 }).unwrap();
        assert!(linear.iter().zip(&plain).all(|(l, p)| *l == p / 4.0));
        // Llama 3.1's numbers: 8192 / (2 pi / w) waves are 1304, 130, 13, 1.3; thresholds 1 and 4.
        let llama = Scaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        };
        let found = inverse_frequencies(8, 10_000.0, llama).unwrap();
        assert_eq!(found[..3], plain[..3]);
        let smooth = (8192.0 / (TAU / plain[3]) - 1.0) / (4.0 - 1.0);
        let expected = (1.0 - smooth) * plain[3] / 8.0 + smooth * plain[3];
        assert!((found[3] - expected).abs() < 1e-12 && found[3] < plain[3]);
        let long = inverse_frequencies(8, 1e8, llama).unwrap();
        assert!((long[3] - 1e-6 / 8.0).abs() < 1e-18, "{long:?}");
    }

    #[test]
    fn bad_parameters_are_named() {
        let message = inverse_frequencies(7, 1e4, Scaling::None).unwrap_err().to_string();
        assert!(message.contains("head dimension: found 7"), "{message}");
        let message = inverse_frequencies(8, 1e4, Scaling::Linear { factor: 0.0 }).unwrap_err().to_string();
        assert!(message.contains("rope factor: found 0"), "{message}");
    }
}
