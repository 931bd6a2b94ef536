//! Draws of a Dirichlet distribution over the kept ids, as logarithms: parameters far below 1 give weights that no
//! float holds.
//!
//! ```text
//! alpha[v] = max(concentration exp(a[v]), 1e-30)
//! ln G[v]  = ln d + 3 ln(1 + c x) + ln(u') / alpha[v]     d = alpha + 2/3, c = 1 / sqrt(9 d)
//! accepted   ln u < x^2 / 2 + d - d w + d ln w             w = (1 + c x)^3 > 0
//! g[v]     = ln G[v] - ln sum over kept of G
//! ```
//!
//! A gamma variate of shape alpha + 1 (Marsaglia & Tsang, "A simple method for generating gamma variables", 2000) times
//! u'^(1 / alpha) has shape alpha, for every alpha above 0. Attempt k of id v has the four words of block v of the row's
//! stream at Philox attempt k: x is the first normal of words 0 and 1, u comes of word 2, u' of word 3. At least 95 of
//! 100 attempts are accepted; should [`ATTEMPTS`] fail, which happens once in 10^40, x = 0 stands, the mode. The
//! variates are computed in f64 whatever T is, so that f32 and f64 accept alike.

use crate::cpu::float::Float;
use crate::cpu::log_probability::{Running, log_probability};
use crate::cpu::random::four_normals;
use crate::cpu::sampler::Stream;

/// Most attempts of one variate.
pub const ATTEMPTS: u32 = 32;
/// Least parameter.
const LEAST: f64 = 1e-30;

/// Replaces the log-probabilities `g` of the kept ids by the logarithm of a draw.
#[inline(always)]
pub fn draw<T: Float>(stream: Stream, concentration: T, ids: &[u32], g: &mut [T]) {
    for (g, &id) in g.iter_mut().zip(ids) {
        let alpha = (concentration.to_f64() * g.to_f64().exp()).max(LEAST);
        *g = T::from_f64(log_gamma_variate(stream, id, alpha));
    }
    let running = Running::of::<false>(g, T::ONE);
    let log_sum = running.log_sum();
    for g in g.iter_mut() {
        *g = log_probability(*g, running.maximum, log_sum);
    }
}

/// Logarithm of a gamma variate of shape `alpha`.
fn log_gamma_variate(stream: Stream, id: u32, alpha: f64) -> f64 {
    let log_uniform = |word: u32| ((f64::from(word) + 0.5) / 4_294_967_296.0).ln();
    let d = alpha + 2.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    let mut boost = 0.0;
    for attempt in 0..ATTEMPTS {
        let words = stream.block(id, attempt);
        let x = four_normals(words)[0];
        let root = 1.0 + c * x;
        boost = log_uniform(words[3]) / alpha;
        if root <= 0.0 {
            continue;
        }
        let (w, log_w) = (root * root * root, 3.0 * root.ln());
        if log_uniform(words[2]) < 0.5 * x * x + d * (1.0 - w + log_w) {
            return d.ln() + log_w + boost;
        }
    }
    d.ln() + boost
}
