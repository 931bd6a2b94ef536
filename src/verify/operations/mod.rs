//! Gradient checks of single operations, one file each with the operation's stem.
//!
//! The loss of a check is `sum(c * y)` with fixed random `c`, so that `dy = c`.

pub mod attention;
pub mod embedding;
pub mod gated_mixture;
pub mod gaussian_density;
pub mod gelu;
pub mod latent;
pub mod layernorm;
pub mod linear;
pub mod log_probability;
pub mod masked_residual;
pub mod policy_loss;
pub mod residual_norm;
pub mod rmsnorm;
pub mod rope;
pub mod sampler;
pub mod smooth_l1;
pub mod soft_action;
pub mod swiglu;

use super::gradient::Case;
use crate::base::{Dtype, Result, Shape};
use crate::device::Device;
use crate::ops::{Tensor, View};

/// Uploads f64 values as a tensor of `dtype` (f32 or f64).
pub fn tensor(device: &Device, shape: impl Into<Shape>, values: &[f64], dtype: Dtype) -> Result<Tensor> {
    let mut tensor = Tensor::zeros(device, shape, dtype)?;
    tensor.upload_numbers(0, values)?;
    Ok(tensor)
}

/// Downloads a float tensor as f64 values.
pub fn values(view: View) -> Result<Vec<f64>> {
    view.numbers()
}

/// Sum of products.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Every operation's checks at awkward sizes; the name of each begins with the operation's stem.
pub fn all() -> Vec<Case<'static>> {
    let mut cases = Vec::new();
    cases.extend(rmsnorm::cases());
    cases.extend(layernorm::cases());
    cases.extend(linear::cases());
    cases.extend(embedding::cases());
    cases.extend(latent::cases());
    cases.extend(rope::cases());
    cases.extend(attention::cases());
    cases.extend(gelu::cases());
    cases.extend(swiglu::cases());
    cases.extend(masked_residual::cases());
    cases.extend(residual_norm::cases());
    cases.extend(log_probability::cases());
    cases.extend(sampler::cases());
    cases.extend(soft_action::cases());
    cases.extend(gated_mixture::cases());
    cases.extend(gaussian_density::cases());
    cases.extend(policy_loss::cases());
    cases.extend(smooth_l1::cases());
    cases
}
