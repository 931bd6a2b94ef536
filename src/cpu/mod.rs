//! The native CPU kernels: plain functions over slices, generic over f32 and f64, parallel and vectorised.
//!
//! They are the fast embedded default and the reference for every other device. They know lengths, not tensors.
//! Conventions of every kernel:
//! * gradients of parameters are added (`+=`); gradients of activations are assigned (`=`) unless the name says `add`;
//! * sums run in one fixed order, so that a row's bits depend neither on the rows beside it nor on the threads;
//! * the caller (the `ops` floor) has checked lengths; kernels index with slices and so cannot leave them.

pub mod adamw;
pub mod attention;
pub mod cast;
pub mod elementwise;
pub mod embedding;
pub mod float;
pub mod gated_mixture;
pub mod gather;
pub mod gaussian_density;
pub mod gelu;
pub mod gemm;
pub mod gradient_norm;
pub mod gumbel;
pub mod isa;
pub mod latent;
pub mod layernorm;
pub mod log_probability;
pub mod mask;
pub mod masked_residual;
pub mod parallel;
pub mod policy_loss;
pub mod random;
pub mod rmsnorm;
pub mod rope;
pub mod sampler;
pub mod smooth_l1;
pub mod soft_action;
pub mod swiglu;

pub use float::Float;
