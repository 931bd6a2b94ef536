//! Which vector instructions this process uses, chosen once, never by the size of the work.
//!
//! [`run`] compiles its closure for AVX2+FMA besides the portable baseline. Kernels are written with explicit lanes
//! and explicit fused multiply-adds, so both give the same bits; only the speed differs. (Without FMA in hardware
//! `mul_add` is a library call: right, and slow.) AVX-512 is used where it pays: by the matrix product, attention,
//! GELU and the softmax ([`run_widest`]); for the rest, which waits for memory, a third copy of every kernel would only
//! cost build time.
#![allow(unsafe_code)]

use std::sync::OnceLock;

/// Vector instruction sets, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What the compiler's target guarantees.
    Portable,
    /// x86-64-v3: AVX2 and FMA.
    Avx2,
    /// x86-64-v4: AVX-512 F, BW, CD, DQ, VL.
    Avx512,
}

/// The level this process uses.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let v3 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("f16c");
    let v4 = v3
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512cd")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (v3, v4) {
        (_, true) => Level::Avx512,
        (true, false) => Level::Avx2,
        (false, false) => Level::Portable,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Portable
}

/// A loop nest to be compiled for every level. Mark `run` and all that it calls `#[inline(always)]`: then no
/// compiler heuristic can leave part of it behind, as happens to long closures given to the function [`run`].
pub trait Kernel {
    /// What it gives back.
    type Output;
    /// Does the work.
    fn run(self) -> Self::Output;
}

struct Closure<F>(F);

impl<R, F: FnOnce() -> R> Kernel for Closure<F> {
    type Output = R;
    #[inline(always)]
    fn run(self) -> R {
        (self.0)()
    }
}

/// Runs `body` compiled for this process's level. Call it inside a parallel task, around the loops themselves:
/// the instructions reach only code that is inlined into `body`, so write `run(#[inline(always)] || ..)` and mark
/// callees alike. Without the mark a long closure stays a function of its own, compiled for the baseline, where
/// every `mul_add` is a library call (GELU was 60 times slower).
#[inline]
pub fn run<R>(body: impl FnOnce() -> R) -> R {
    run_kernel(Closure(body))
}

/// [`run_kernel`] with AVX-512 where this process has it: for kernels that compute more than they wait for memory. The
/// bits are the same, and each such kernel costs build time a third time.
#[inline]
pub fn run_widest_kernel<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(
            enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,bmi1,bmi2,f16c,lzcnt,popcnt"
        )]
        fn avx512<K: Kernel>(kernel: K) -> K::Output {
            kernel.run()
        }
        if level() == Level::Avx512 {
            // SAFETY: `level` returned Avx512 only after these AVX-512 subsets, AVX2, FMA, BMI2 and F16C were detected
            // on this CPU; every CPU with these also has BMI1, LZCNT and POPCNT.
            return unsafe { avx512(kernel) };
        }
    }
    run_kernel(kernel)
}

/// [`run`] with AVX-512 where this process has it, as [`run_widest_kernel`].
#[inline]
pub fn run_widest<R>(body: impl FnOnce() -> R) -> R {
    run_widest_kernel(Closure(body))
}

/// Runs `kernel` compiled for this process's level.
#[inline]
pub fn run_kernel<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma,bmi1,bmi2,f16c,lzcnt,popcnt")]
        fn avx2<K: Kernel>(kernel: K) -> K::Output {
            kernel.run()
        }
        match level() {
            // SAFETY: `level` returned Avx2 or Avx512 only after AVX2, FMA, BMI2 and F16C were detected on this
            // CPU; every CPU with these also has BMI1, LZCNT and POPCNT.
            Level::Avx2 | Level::Avx512 => return unsafe { avx2(kernel) },
            Level::Portable => {}
        }
    }
    kernel.run()
}

/// Asks the first-level cache for the lines of `data`, which will be read soon: to be called some hundred operations
/// before, where the hardware cannot guess what comes next. Changes nothing that a program could see.
#[inline(always)]
pub fn prefetch<T>(data: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use crate::base::pages::CACHE_LINE;
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let start = data.as_ptr().cast::<i8>();
        for at in (0..size_of_val(data)).step_by(CACHE_LINE) {
            // SAFETY: every x86-64 CPU has this instruction, and it may be given any address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(at)) }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = data;
}
