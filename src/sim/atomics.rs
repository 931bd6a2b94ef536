//! `atom` and `red`: a lane after the other reads, computes and writes in one step.

use super::access::{LANES, Space};
use super::block::Shared;
use super::fault::{Fault, Kind, Result};
use super::half;
use super::instruction::{AddressSpace, Atomic, AtomicOp, Bank};
use super::launch::Grid;
use super::load::load_word;
use super::region::Region;
use super::rounding::{FTZ, flush};
use super::store::store_word;
use super::transfer::{Touch, lanes};
use super::warp::Warp;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;

impl Warp {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn atomic(
        &mut self,
        grid: &Grid<'_>,
        shared: &mut Shared,
        touch: &Touch,
        space: AddressSpace,
        addresses: &[u64; LANES],
        active: u32,
        atomic: &Atomic,
    ) -> Result<()> {
        let bytes = atomic.bytes;
        if let Some(lane) = lanes(active).find(|&lane| !addresses[lane].is_multiple_of(u64::from(bytes))) {
            let fault = Fault::new(
                Kind::Misaligned,
                format!("an atomic operation of {bytes} bytes at an address that is no multiple of {bytes}"),
                "align what atomics work on",
            )
            .at_address(addresses[lane]);
            return Err(grid.place(fault, touch.place, lane as u32));
        }
        match space {
            AddressSpace::Global => {
                let mut left = active;
                while left != 0 {
                    let (live, range, mask) = self.range(grid, shared, touch, addresses, left)?;
                    self.observe(grid, shared, touch, (Space::Global, range), addresses, (mask, None))?;
                    for lane in lanes(mask) {
                        let at = addresses[lane] - live.region.base;
                        let (a, b) = self.factors(atomic, lane);
                        let old = exchange(grid, &live.region, at, bytes, |old| {
                            apply(atomic.op, old, a, b, bytes, true)
                        });
                        self.keep(atomic, lane, old);
                    }
                    left &= !mask;
                }
            }
            AddressSpace::Shared => {
                self.within_shared(grid, shared, touch, addresses, active)?;
                self.observe(grid, shared, touch, (Space::Shared, 0), addresses, (active, None))?;
                for lane in lanes(active) {
                    let (a, b) = self.factors(atomic, lane);
                    let old = load_word(&shared.words, addresses[lane], bytes);
                    store_word(
                        &mut shared.words,
                        addresses[lane],
                        bytes,
                        apply(atomic.op, old, a, b, bytes, false),
                    );
                    self.keep(atomic, lane, old);
                }
            }
            _ => {
                let fault = Fault::new(
                    Kind::OutOfBounds,
                    "an atomic operation outside device and shared memory",
                    "take atomics on device or shared memory",
                );
                return Err(grid.place(fault, touch.place, active.trailing_zeros()));
            }
        }
        Ok(())
    }

    fn factors(&self, atomic: &Atomic, lane: usize) -> (u64, u64) {
        let get = |register: u32| match atomic.bank {
            Bank::Doubles => self.registers.doubles[register as usize][lane],
            _ => u64::from(self.registers.words[register as usize][lane]),
        };
        (get(atomic.a), get(atomic.b))
    }

    fn keep(&mut self, atomic: &Atomic, lane: usize, old: u64) {
        match (atomic.d, atomic.bank) {
            (Some(d), Bank::Doubles) => self.registers.doubles[d as usize][lane] = old,
            (Some(d), _) => self.registers.words[d as usize][lane] = old as u32,
            (None, _) => {}
        }
    }
}

/// Replaces a value in device memory, against other host threads; returns the old one.
fn exchange(grid: &Grid<'_>, region: &Region, at: u64, bytes: u32, f: impl Fn(u64) -> u64) -> u64 {
    if bytes == 8 {
        // Two words cannot be exchanged at once: a lock stands for the address.
        let lock = &grid.locks[(at / 8) as usize % grid.locks.len()];
        let _held = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let old = region.load(at, 8);
        region.store(at, 8, f(old));
        return old;
    }
    let word = &region.words()[(at / 4) as usize];
    let shift = 8 * (at % 4) as u32;
    let mask = if bytes == 4 { u32::MAX } else { 0xffff << shift };
    let mut now = word.load(Relaxed);
    loop {
        let old = u64::from((now & mask) >> shift);
        let new = now & !mask | (f(old) as u32) << shift & mask;
        match word.compare_exchange_weak(now, new, Relaxed, Relaxed) {
            Ok(_) => return old,
            Err(changed) => now = changed,
        }
    }
}

/// The new value.
fn apply(op: AtomicOp, old: u64, a: u64, b: u64, bytes: u32, global: bool) -> u64 {
    let signed = |x: u64| if bytes == 4 { i64::from(x as i32) } else { x as i64 };
    let pair = |f: fn(u16, u16) -> u16| {
        let low = f(old as u16, a as u16);
        let high = f((old >> 16) as u16, (a >> 16) as u16);
        u64::from(low) | u64::from(high) << 16
    };
    // f32 sums flush subnormals in device memory, and keep them in shared memory.
    let mode = if global { FTZ } else { 0 };
    match op {
        AtomicOp::And => old & a,
        AtomicOp::Or => old | a,
        AtomicOp::Xor => old ^ a,
        AtomicOp::Exchange => a,
        AtomicOp::CompareSwap => {
            if old == a {
                b
            } else {
                old
            }
        }
        AtomicOp::Add => old.wrapping_add(a),
        AtomicOp::Increment => {
            if old >= a {
                0
            } else {
                old + 1
            }
        }
        AtomicOp::Decrement => {
            if old == 0 || old > a {
                a
            } else {
                old - 1
            }
        }
        AtomicOp::MinSigned => {
            if signed(a) < signed(old) {
                a
            } else {
                old
            }
        }
        AtomicOp::MaxSigned => {
            if signed(a) > signed(old) {
                a
            } else {
                old
            }
        }
        AtomicOp::MinUnsigned => old.min(a),
        AtomicOp::MaxUnsigned => old.max(a),
        AtomicOp::AddF32 => {
            let sum = flush(f32::from_bits(old as u32), mode) + flush(f32::from_bits(a as u32), mode);
            u64::from(flush(sum, mode).to_bits())
        }
        AtomicOp::AddF64 => (f64::from_bits(old) + f64::from_bits(a)).to_bits(),
        AtomicOp::AddF16 => u64::from(half::f16::plain_sum(old as u16, a as u16)),
        AtomicOp::AddBf16 => u64::from(half::bf16::plain_sum(old as u16, a as u16)),
        AtomicOp::AddF16x2 => pair(half::f16::plain_sum),
        AtomicOp::AddBf16x2 => pair(half::bf16::plain_sum),
    }
}
