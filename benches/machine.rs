//! What this machine can do, measured in the run that quotes it: fused multiply-adds a second, bytes read a second,
//! and the triad's bytes a second.

use latch::cpu::isa::{self, Level};
use latch::cpu::parallel;
use std::hint::black_box;
use std::time::Instant;

/// Repeated timings, in seconds.
#[derive(Clone, Debug, Default)]
pub struct Times {
    wall: Vec<f64>,
    cpu: Vec<f64>,
}

impl Times {
    /// Adds the time of one call.
    pub fn record(&mut self, body: impl FnOnce()) {
        let (start, cpu) = (Instant::now(), processor_seconds());
        body();
        self.wall.push(start.elapsed().as_secs_f64());
        self.cpu.push(processor_seconds() - cpu);
        self.wall.sort_by(f64::total_cmp);
        self.cpu.sort_by(f64::total_cmp);
    }

    /// The shortest.
    pub fn min(&self) -> f64 {
        self.wall.first().copied().unwrap_or(f64::NAN)
    }

    /// The middle one.
    pub fn median(&self) -> f64 {
        self.wall.get(self.wall.len() / 2).copied().unwrap_or(f64::NAN)
    }

    #[allow(dead_code)] // one of the two bench binaries asks
    /// The least processor time of all threads together: what one free core would need, when programs share cores.
    pub fn cpu(&self) -> f64 {
        self.cpu.first().copied().unwrap_or(f64::NAN)
    }
}

/// Processor time of this process so far; NaN where the system does not tell.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn processor_seconds() -> f64 {
    #[repr(C)]
    struct Timespec {
        seconds: i64,
        nanoseconds: i64,
    }
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut Timespec) -> i32;
    }
    const CLOCK_PROCESS_CPUTIME_ID: i32 = 2;
    let mut time = Timespec { seconds: 0, nanoseconds: 0 };
    // SAFETY: the C library's function writes one timespec, which on 64-bit Linux has this layout.
    match unsafe { clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &mut time) } {
        0 => time.seconds as f64 + 1e-9 * time.nanoseconds as f64,
        _ => f64::NAN,
    }
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
fn processor_seconds() -> f64 {
    f64::NAN
}

/// Floating-point operations of one call of [`fma_burst`] on one thread.
fn burst_operations(level: Level) -> f64 {
    let lanes = match level {
        Level::Portable => return f64::NAN,
        Level::Avx2 => 8.0,
        Level::Avx512 => 16.0,
    };
    2.0 * lanes * 12.0 * BURST as f64
}

const BURST: usize = 400_000;

/// Twelve independent chains of f32 fused multiply-adds in registers.
#[cfg(target_arch = "x86_64")]
fn fma_burst(level: Level) {
    use std::arch::x86_64::*;
    #[target_feature(enable = "avx2,fma")]
    fn avx2(seed: f32) -> f32 {
        let (x, y) = (_mm256_set1_ps(seed), _mm256_set1_ps(0.999));
        let mut sums = [x; 12];
        for _ in 0..BURST {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, y, x);
            }
        }
        sums.iter().map(|&sum| _mm256_cvtss_f32(sum)).sum()
    }
    #[target_feature(enable = "avx512f")]
    fn avx512(seed: f32) -> f32 {
        let (x, y) = (_mm512_set1_ps(seed), _mm512_set1_ps(0.999));
        let mut sums = [x; 12];
        for _ in 0..BURST {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, y, x);
            }
        }
        sums.iter().map(|&sum| _mm512_cvtss_f32(sum)).sum()
    }
    let seed = black_box(1e-3);
    let sum = match level {
        // SAFETY: the caller passes a level of this CPU.
        Level::Avx512 => unsafe { avx512(seed) },
        // SAFETY: as above.
        Level::Avx2 => unsafe { avx2(seed) },
        Level::Portable => 0.0,
    };
    black_box(sum);
}

#[cfg(not(target_arch = "x86_64"))]
fn fma_burst(_level: Level) {}

/// Seconds and f32 operations of one burst at this process's vector level on `threads` workers of the current pool.
/// The operations are NaN where there is no burst for the level.
pub fn peak_once(threads: usize) -> f64 {
    let level = isa::level();
    parallel::for_each_task(threads, |_| fma_burst(level));
    burst_operations(level) * threads as f64
}

/// Reads all of `data` with all workers of the current pool.
pub fn read_once(data: &[f32]) {
    let each = data.len().div_ceil(4 * parallel::threads());
    let pieces: Vec<&[f32]> = data.chunks(each).collect();
    parallel::for_each_task(pieces.len(), |task| {
        let chunk = pieces[task];
        isa::run(|| {
            // Four streams: one alone leaves the memory waiting.
            let quarter = chunk.len() / 256 * 64;
            let (first, rest) = chunk.split_at(quarter);
            let (second, rest) = rest.split_at(quarter);
            let (third, fourth) = rest.split_at(quarter);
            let mut sums = [0.0_f32; 64];
            let blocks = first.chunks_exact(64).zip(second.chunks_exact(64));
            for ((a, b), (c, d)) in blocks.zip(third.chunks_exact(64).zip(fourth.chunks_exact(64))) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum += (a[i] + b[i]) + (c[i] + d[i]);
                }
            }
            black_box(sums.iter().sum::<f32>());
        });
    });
}

/// a = b + s * c with all workers of the current pool: 12 bytes an element (16 with the line that the write reads).
pub fn triad_once(a: &mut [f32], b: &[f32], c: &[f32]) {
    parallel::elements(&mut *a, 16, |first, a: &mut [f32]| {
        isa::run(|| {
            let rest = first..first + a.len();
            for ((a, b), c) in a.iter_mut().zip(&b[rest.clone()]).zip(&c[rest]) {
                *a = 3.0_f32.mul_add(*c, *b);
            }
        });
    });
    black_box(a);
}
