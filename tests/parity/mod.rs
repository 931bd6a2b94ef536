//! One file an operation, with the operation's stem. Shapes always include one element, one row, columns that
//! are not a multiple of a vector, rows that are not a multiple of anything, and a real model's width.

pub mod adamw;
mod append;
pub mod attention;
mod cast;
pub mod elementwise;
pub mod embedding;
mod gated_mixture;
mod gather;
mod gaussian_density;
pub mod gelu;
mod gemm;
pub mod gpu;
pub mod gradient_norm;
mod index;
pub mod latent;
pub mod layernorm;
mod linear;
mod log_probability;
mod mask;
pub mod masked_residual;
pub mod policy_loss;
mod random;
mod residual_norm;
pub mod rmsnorm;
pub mod rope;
mod sampler;
mod smooth_l1;
mod soft_action;
pub mod swiglu;

use latch::cpu::parallel;
use latch::verify::gradient::{Case, check, normals};

/// Checks every case against central differences; a failure prints the worst entry.
fn check_gradients(cases: Vec<Case>) {
    assert!(!cases.is_empty(), "no cases");
    for case in cases {
        for outcome in check(&case, None).unwrap() {
            let (entry, gradient, difference) = outcome.witness;
            assert!(
                outcome.passed,
                "{}: f64 error {:.2e}, f32 error {:.2e}; worst entry {entry}: gradient {gradient:e}, difference {difference:e}",
                outcome.name, outcome.worst_f64, outcome.worst_f32
            );
        }
    }
}

/// Standard normal f32 values, reproducible from a name.
fn normals_f32(name: &str, count: usize) -> Vec<f32> {
    normals(name, count).into_iter().map(|v| v as f32).collect()
}

/// Runs `body` on a pool of `threads` workers.
fn on_threads<R: Send>(threads: usize, body: impl FnOnce() -> R + Send) -> R {
    parallel::with_threads(threads, body)
}
