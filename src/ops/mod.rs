//! Operations on tensors: one file each, forward and backward joined by a `Saved` that only forward fills.
//!
//! Every file follows one pattern (see [`rmsnorm`]): check shapes, then `match device { Cpu => .., Gpu => .. }`.
//! Above this floor tensor data is opaque.

pub mod adamw;
pub mod append;
pub mod attention;
pub mod cast;
pub mod elementwise;
pub mod embedding;
pub mod gated_mixture;
pub mod gather;
pub mod gaussian_density;
pub mod gelu;
pub mod gradient_norm;
pub mod index;
pub mod kv_cache;
pub mod latent;
mod launch;
pub mod layernorm;
pub mod linear;
pub mod log_probability;
pub mod mask;
pub mod masked_residual;
pub mod policy_loss;
mod product;
pub mod random;
pub mod reading_order;
pub mod residual_norm;
pub mod rmsnorm;
pub mod rope;
mod row_blocks;
pub mod sampler;
pub mod scatter;
pub mod smooth_l1;
pub mod soft_action;
pub mod swiglu;
mod tensor;
mod tensor_list;

pub(in crate::ops) use tensor::float_dispatch;
pub use tensor::{Fetch, Tensor, View, ViewMut};

/// Which vector instructions the kernels use on this CPU: `avx512`, `avx2` or `portable`.
pub fn vector_instructions() -> &'static str {
    match crate::cpu::isa::level() {
        crate::cpu::isa::Level::Portable => "portable",
        crate::cpu::isa::Level::Avx2 => "avx2",
        crate::cpu::isa::Level::Avx512 => "avx512",
    }
}
