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
//!
//! A master is kept as its bf16 parameter and 16 bits beside it, how far it lies above or below in units of its last
//! place: 65536 distances, the half-way points at both ends being one too many. So a step that ends exactly half-way
//! between two bf16 numbers sets the master's last bit, here and on a GPU (where a master is whole).

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

/// Steps the f32 masters of which `p` and `beside` are the parts.
pub fn step_bf16(
    step: Step<f32>,
    gradient: &[f32],
    (p, beside): (&mut [bf16], &mut [u16]),
    m: &mut [f32],
    v: &mut [f32],
) {
    parallel::elements(((p, beside), (m, v)), 16, |first, ((p, beside), (m, v))| {
        isa::run(
            #[inline(always)]
            || {
                let parameters = p.iter_mut().zip(beside.iter_mut());
                let moments = m.iter_mut().zip(v);
                for (((p, beside), g), (m, v)) in parameters.zip(&gradient[first..]).zip(moments) {
                    let master;
                    (master, *m, *v) = step.element(join(*p, *beside), *g, *m, *v);
                    (*p, *beside) = split(master);
                }
            },
        );
    });
}

/// The f32 number of which a bf16 number and 16 bits are the parts.
#[inline(always)]
fn join(p: bf16, beside: u16) -> f32 {
    f32::from_bits((u32::from(p.to_bits()) << 16).wrapping_add_signed(i32::from(beside as i16)))
}

/// The nearest bf16 number, and what [`join`] needs beside it. Half-way between two the last bit is set first.
#[inline(always)]
fn split(master: f32) -> (bf16, u16) {
    let bits = master.to_bits();
    let bits = bits | u32::from(bits & 0xFFFF == 0x8000);
    // The nearest number's bits are those of the master but for the lower half, a sixteen-bit distance away.
    (round(f32::from_bits(bits)), bits as u16)
}

/// The masters of which `p` and `beside` are the parts.
pub fn join_all(p: &[bf16], beside: &[u16], masters: &mut [f32]) {
    for ((master, p), beside) in masters.iter_mut().zip(p).zip(beside) {
        *master = join(*p, *beside);
    }
}

/// What `masters` need beside `p`; false where a number of `p` is not the nearest to its master.
pub fn split_all(masters: &[f32], p: &[bf16], beside: &mut [u16]) -> bool {
    let mut nearest = true;
    for ((master, p), beside) in masters.iter().zip(p).zip(beside) {
        let (rounded, lower) = split(*master);
        // A half-way master that somebody else rounded may have gone down, to the even number; then it is that one's.
        let down = rounded.to_bits() != p.to_bits();
        nearest &= !down || (master.to_bits() & 0xFFFF == 0x8000 && round(*master).to_bits() == p.to_bits());
        *beside = if down { 0x7FFF } else { lower };
    }
    nearest
}

/// Nearest bf16, ties to even.
#[inline(always)]
fn round(value: f32) -> bf16 {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16) as u16;
    // Rounding could carry a NaN's payload into an infinity; its quiet bit keeps it a NaN.
    bf16::from_bits(if value.is_nan() { (bits >> 16) as u16 | 0x40 } else { rounded })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_comes_back_from_its_parts() {
        let mut bits = 0_u32;
        let random = std::iter::repeat_with(|| {
            bits = bits.wrapping_add(0x9E37_79B9);
            bits
        });
        let edges = [0, 1, 0x7FFF, 0x8001, 0xFFFF]
            .map(|low| [0x0000, 0x007F, 0x3F80, 0x7F7F, 0xBF81, 0xFF7F].map(|high| high << 16 | low));
        for bits in random.take(200_000).chain(edges.into_iter().flatten()).chain([0x7F80_0000, 0xFF80_0000])
        {
            let master = f32::from_bits(bits);
            let (p, beside) = split(master);
            if master.is_nan() {
                assert!(join(p, beside).is_nan(), "{bits:08x}");
                continue;
            }
            let half_way = bits & 0xFFFF == 0x8000;
            assert_eq!(join(p, beside).to_bits(), bits | u32::from(half_way), "{bits:08x}");
            assert_eq!(p.to_bits(), bf16::from_f32(join(p, beside)).to_bits(), "{bits:08x}");
        }
    }

    #[test]
    fn masters_of_others_are_taken_where_the_parameters_are_theirs() {
        // Half-way to an even number below, and above; and neither.
        let masters = [0x3F80_8000, 0x3F81_8000, 0x3F81_8001].map(f32::from_bits);
        let p = masters.map(bf16::from_f32);
        let (mut beside, mut back) = ([0; 3], [0.0; 3]);
        assert!(split_all(&masters, &p, &mut beside));
        join_all(&p, &beside, &mut back);
        assert_eq!(back.map(f32::to_bits), [0x3F80_7FFF, 0x3F81_8001, 0x3F81_8001]);
        assert_eq!(back.map(bf16::from_f32), p);
        let other = [p[0], bf16::from_bits(p[1].to_bits() - 1), p[2]];
        assert!(!split_all(&masters, &other, &mut beside));
    }

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
