//! One AdamW step (Loshchilov & Hutter 2019), in the order of PyTorch's. Operation: ops/adamw.rs.
//!
//! ```text
//! g  = gradient * scale
//! p *= 1 - lr * decay
//! m += (g - m) * (1 - beta1)
//! v  = beta2 * v + (1 - beta2) * g^2
//! p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//! ```
//!
//! One pass over memory. bf16 parameters are rounded (to nearest, ties to even) from their f32 masters.

use super::embedding::Stored;
use super::float::Float;
use super::{isa, parallel};
use half::bf16;

/// Numbers of one step, the same for all tensors.
#[derive(Clone, Copy, Debug)]
pub struct Step<T> {
    /// 1 - lr * decay.
    pub keep: T,
    /// 1 - beta1.
    pub first: T,
    /// beta2.
    pub beta2: T,
    /// 1 - beta2.
    pub second: T,
    /// lr / (1 - beta1^t).
    pub size: T,
    /// sqrt(1 - beta2^t).
    pub root: T,
    /// Added to the denominator.
    pub eps: T,
    /// What gradients are multiplied by.
    pub scale: T,
}

impl<T: Float> Step<T> {
    /// The new parameter and moments of one element.
    #[inline(always)]
    fn element(&self, p: T, gradient: T, m: T, v: T) -> (T, T, T) {
        let g = gradient * self.scale;
        let m = (g - m).mul_add(self.first, m);
        let v = (self.second * g).mul_add(g, self.beta2 * v);
        let denominator = v.sqrt() / self.root + self.eps;
        ((p * self.keep) - self.size * (m / denominator), m, v)
    }
}

/// Steps `p` with moments `m` and `v`.
pub fn step<T: Float>(step: Step<T>, gradient: &[T], p: &mut [T], m: &mut [T], v: &mut [T]) {
    parallel::elements((p, (m, v)), 16, |first, (p, (m, v))| {
        isa::run(
            #[inline(always)]
            || {
                let moments = m.iter_mut().zip(v);
                for ((p, g), (m, v)) in p.iter_mut().zip(&gradient[first..]).zip(moments) {
                    (*p, *m, *v) = step.element(*p, *g, *m, *v);
                }
            },
        );
    });
}

/// Steps the f32 `master` of `p`, and rounds it to `p`.
pub fn step_bf16(
    step: Step<f32>,
    gradient: &[f32],
    (p, master): (&mut [bf16], &mut [f32]),
    m: &mut [f32],
    v: &mut [f32],
) {
    parallel::elements(((p, master), (m, v)), 16, |first, ((p, master), (m, v))| {
        isa::run(
            #[inline(always)]
            || {
                let parameters = p.iter_mut().zip(master.iter_mut());
                let moments = m.iter_mut().zip(v);
                for (((p, master), g), (m, v)) in parameters.zip(&gradient[first..]).zip(moments) {
                    (*master, *m, *v) = step.element(*master, *g, *m, *v);
                    *p = round(*master);
                }
            },
        );
    });
}

/// Nearest bf16, ties to even.
#[inline(always)]
fn round(value: f32) -> bf16 {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16) as u16;
    // Rounding could carry a NaN's payload into an infinity; its quiet bit keeps it a NaN.
    bf16::from_bits(if value.is_nan() { (bits >> 16) as u16 | 0x40 } else { rounded })
}

/// The f32 master of a bf16 parameter, exactly.
pub fn widen(p: &[bf16], master: &mut [f32]) {
    parallel::rows(master, 1, 1, |first, master| {
        isa::run(
            #[inline(always)]
            || {
                for (master, p) in master.iter_mut().zip(&p[first..]) {
                    *master = p.widen();
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        let mut bits = 0_u32;
        for _ in 0..200_000 {
            bits = bits.wrapping_add(0x9E37_79B9);
            let value = f32::from_bits(bits);
            assert_eq!(round(value).to_bits(), bf16::from_f32(value).to_bits(), "{bits:08x}");
        }
        for bits in [0x7F80_0001, 0x7F7F_FFFF, 0x3F80_8000, 0x3F81_8000, 0x8000_0000_u32] {
            let value = f32::from_bits(bits);
            assert_eq!(round(value).to_bits(), bf16::from_f32(value).to_bits(), "{bits:08x}");
        }
    }
}
