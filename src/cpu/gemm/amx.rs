//! Intel's AMX tiles through inline assembly (the intrinsics are not stable yet), on Linux.
//!
//! The tiles are usable when the CPU has AMX-TILE and AMX-BF16, the system saves their state (XCR0 bits 17 and 18),
//! and it has granted this process the large state (`arch_prctl(ARCH_REQ_XCOMP_PERM, 18)`, asked once).
#![allow(unsafe_code)]

use super::units::{DEPTH, NEIGHBOURS, SIDE, TILE, Unit};

/// The hardware unit.
pub(super) struct Amx;

/// Whether this process may use the tiles; found out once.
pub(super) fn available() -> bool {
    static AVAILABLE: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *AVAILABLE.get_or_init(detect)
}

fn detect() -> bool {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const OSXSAVE: u32 = 1 << 27;
    const AMX_BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
    const TILE_STATE: u32 = 1 << 17 | 1 << 18;
    const SYS_ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    #[allow(unused_unsafe)]
    // SAFETY: every x86-64 CPU has CPUID; leaves beyond the highest are not asked for.
    let (leaf1, leaf7) = unsafe {
        if __cpuid(0).eax < 7 {
            return false;
        }
        (__cpuid(1), __cpuid_count(7, 0))
    };
    if leaf1.ecx & OSXSAVE == 0 || leaf7.edx & AMX_BF16_AND_TILE != AMX_BF16_AND_TILE {
        return false;
    }
    let enabled: u32;
    // SAFETY: OSXSAVE says that XGETBV exists; it reads register XCR0 and touches no memory.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") enabled, out("edx") _, options(nomem, nostack, preserves_flags));
    }
    if enabled & TILE_STATE != TILE_STATE {
        return false;
    }
    let mut answer = SYS_ARCH_PRCTL;
    // SAFETY: a system call with two numbers as arguments; it changes what this process may use, and no memory.
    // The kernel overwrites rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") answer,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    answer == 0
}

/// Tiles of k between their use and the request for their lines ([`Unit::multiply_far`]).
const AHEAD: usize = 2;

/// Eight tiles of rows of 64 bytes.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

impl Configuration {
    /// Tiles 0 to 3 (C), 4 and 5 (A) of `rows` rows, 6 and 7 (B) of 16.
    const fn new(rows: u8) -> Configuration {
        let mut all = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            bytes_per_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
            rows: [rows; 16],
        };
        let mut tile = 6;
        while tile < 16 {
            all.rows[tile] = if tile < 8 { SIDE as u8 } else { 0 };
            tile += 1;
        }
        all
    }
}

impl Unit for Amx {
    #[inline(always)]
    unsafe fn begin(rows: usize) {
        let configuration = Configuration::new(rows.clamp(1, SIDE) as u8);
        // SAFETY: the caller has asked `available`; the configuration is 64 bytes of a valid palette. All tiles are
        // zeroed, and no compiled code keeps anything in them.
        unsafe {
            std::arch::asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly))
        }
    }

    #[inline(always)]
    unsafe fn end() {
        // SAFETY: gives the tiles back; no memory is touched.
        unsafe { std::arch::asm!("tilerelease", options(nostack, nomem)) }
    }

    #[inline(always)]
    unsafe fn multiply(
        tile_rows: usize,
        depth: usize,
        (a, a_step): (*const u16, usize),
        b: *const u16,
        (c, c_stride): (*mut f32, usize),
        add: bool,
    ) {
        const { assert!(TILE * 2 == 1024 && SIDE * SIDE * 4 == 1024) }
        if depth == 0 {
            return;
        }
        // SAFETY: every tile load and store covers the configured rows of 64 bytes inside the caller's arrays: C's window,
        // `depth` tiles of each row of A, and `2 * depth` tiles of B. Tiles 0 to 7 are configured, and nobody else
        // uses them between `begin` and `end`, so that they may be carried from one block to the next.
        unsafe {
            let (step, pitch) = (64_usize, c_stride * 4);
            let below = c.wrapping_add(SIDE * c_stride);
            if tile_rows == 1 {
                begin_row(c, pitch, add);
                std::arch::asm!(
                    "2:",
                    "tileloadd tmm4, [{a} + {step}*1]",
                    "tileloadd tmm6, [{b} + {step}*1]",
                    "tileloadd tmm7, [{b} + {step}*1 + 1024]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "add {a}, 1024",
                    "add {b}, 2048",
                    "dec {n}",
                    "jnz 2b",
                    step = in(reg) step,
                    a = inout(reg) a => _,
                    b = inout(reg) b => _,
                    n = inout(reg) depth => _,
                    out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                    options(nostack)
                );
                end_row(c, pitch);
                return;
            }
            if add {
                std::arch::asm!(
                    "tileloadd tmm0, [{c} + {pitch}*1]",
                    "tileloadd tmm1, [{c} + {pitch}*1 + 64]",
                    "tileloadd tmm2, [{below} + {pitch}*1]",
                    "tileloadd tmm3, [{below} + {pitch}*1 + 64]",
                    c = in(reg) c, below = in(reg) below, pitch = in(reg) pitch,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, options(nostack)
                );
            } else {
                std::arch::asm!(
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, options(nostack)
                );
            }
            std::arch::asm!(
                "2:",
                "tileloadd tmm4, [{a} + {step}*1]",
                "tileloadd tmm6, [{b} + {step}*1]",
                "tileloadd tmm7, [{b} + {step}*1 + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{a2} + {step}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, 1024",
                "add {a2}, 1024",
                "add {b}, 2048",
                "dec {n}",
                "jnz 2b",
                "tilestored [{c} + {pitch}*1], tmm0",
                "tilestored [{c} + {pitch}*1 + 64], tmm1",
                "tilestored [{below} + {pitch}*1], tmm2",
                "tilestored [{below} + {pitch}*1 + 64], tmm3",
                c = in(reg) c, below = in(reg) below, pitch = in(reg) pitch, step = in(reg) step,
                a = inout(reg) a => _,
                a2 = inout(reg) a.add(a_step) => _,
                b = inout(reg) b => _,
                n = inout(reg) depth => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            );
        }
    }

    #[inline(always)]
    unsafe fn multiply_far(
        depth: usize,
        a: *const u16,
        b: *const u16,
        (c, c_stride): (*mut f32, usize),
        add: bool,
    ) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: as for `multiply`; prefetches may name any address. The tiles are carried from one block to the next.
        unsafe {
            let (step, pitch) = (64_usize, c_stride * 4);
            begin_row(c, pitch, add);
            for k in 0..depth {
                let b = b.add(k * 2 * TILE);
                for line in 0..2 * TILE / 32 {
                    _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(AHEAD * 2 * TILE + 32 * line).cast());
                }
                std::arch::asm!(
                    "tileloadd tmm4, [{a} + {step}*1]",
                    "tileloadd tmm6, [{b} + {step}*1]",
                    "tileloadd tmm7, [{b} + {step}*1 + 1024]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    a = in(reg) a.add(k * TILE), b = in(reg) b, step = in(reg) step,
                    out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                    options(nostack)
                );
            }
            end_row(c, pitch);
        }
    }

    #[inline(always)]
    unsafe fn multiply_rows(
        depth: usize,
        (w, w_stride): (*const u16, usize),
        columns: *const u16,
        to: *mut f32,
        add: bool,
    ) {
        // SAFETY: as for `multiply`: 16 rows of 64 bytes of W for each of `depth` tiles, as many packed tiles, and
        // 16 x 16 sums. Two chains of tiles would change the order of the sums, so there is one.
        unsafe {
            let (step, pitch) = (64_usize, w_stride * 2);
            if add {
                std::arch::asm!(
                    "tileloadd tmm0, [{to} + {step}*1]",
                    to = in(reg) to, step = in(reg) step, out("tmm0") _, options(nostack)
                );
            } else {
                std::arch::asm!("tilezero tmm0", out("tmm0") _, options(nostack));
            }
            std::arch::asm!(
                "2:",
                "tileloadd tmm4, [{w} + {pitch}*1]",
                "tileloadd tmm6, [{x} + {step}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "add {w}, 64",
                "add {x}, 1024",
                "dec {n}",
                "jnz 2b",
                "tilestored [{to} + {step}*1], tmm0",
                to = in(reg) to, pitch = in(reg) pitch, step = in(reg) step,
                w = inout(reg) w => _,
                x = inout(reg) columns => _,
                n = inout(reg) depth => _,
                out("tmm0") _, out("tmm4") _, out("tmm6") _,
                options(nostack)
            );
        }
    }

    #[inline(always)]
    unsafe fn multiply_neighbours(
        depth: usize,
        a: *const u16,
        (b, b_stride): (*const u16, usize),
        (c, c_stride): (*mut f32, usize),
        add: bool,
        room: *mut u16,
    ) {
        // SAFETY: as for `multiply`: C's window of the configured rows by 64 columns, `depth` tiles of A, 64 numbers of
        // each of B's terms, and two rooms of four tiles. The tiles are carried from one block to the next.
        unsafe {
            let (step, pitch) = (64_usize, c_stride * 4);
            if add {
                std::arch::asm!(
                    "tileloadd tmm0, [{c} + {pitch}*1]",
                    "tileloadd tmm1, [{c} + {pitch}*1 + 64]",
                    "tileloadd tmm2, [{c} + {pitch}*1 + 128]",
                    "tileloadd tmm3, [{c} + {pitch}*1 + 192]",
                    c = in(reg) c, pitch = in(reg) pitch,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, options(nostack)
                );
            } else {
                std::arch::asm!(
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, options(nostack)
                );
            }
            interleave_tile(b, b_stride, room);
            for k in 0..depth {
                let now = room.add(k % 2 * NEIGHBOURS * DEPTH);
                if k + 1 < depth {
                    // A tile is interleaved while the one before is multiplied.
                    let next = room.add((k + 1) % 2 * NEIGHBOURS * DEPTH);
                    interleave_tile(b.add((k + 1) * DEPTH * b_stride), b_stride, next);
                }
                std::arch::asm!(
                    "tileloadd tmm4, [{a} + {step}*1]",
                    "tileloadd tmm6, [{b} + {step}*1]",
                    "tileloadd tmm7, [{b} + {step}*1 + 1024]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm6, [{b} + {step}*1 + 2048]",
                    "tileloadd tmm7, [{b} + {step}*1 + 3072]",
                    "tdpbf16ps tmm2, tmm4, tmm6",
                    "tdpbf16ps tmm3, tmm4, tmm7",
                    a = in(reg) a.add(k * TILE), b = in(reg) now, step = in(reg) step,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm6") _, out("tmm7") _,
                    options(nostack)
                );
            }
            std::arch::asm!(
                "tilestored [{c} + {pitch}*1], tmm0",
                "tilestored [{c} + {pitch}*1 + 64], tmm1",
                "tilestored [{c} + {pitch}*1 + 128], tmm2",
                "tilestored [{c} + {pitch}*1 + 192], tmm3",
                c = in(reg) c, pitch = in(reg) pitch, options(nostack)
            );
        }
    }

    #[inline(always)]
    unsafe fn interleave(low: *const u16, high: *const u16, to: *mut u16) {
        use std::arch::x86_64::*;
        // SAFETY: 64 readable bytes of each row and 64 writable ones of both tiles, by the caller's promise; the
        // matrix unit comes with AVX-512.
        unsafe {
            let (low, high) = (_mm512_loadu_si512(low.cast()), _mm512_loadu_si512(high.cast()));
            // Pairs of columns 0-3, 8-11, 16-19, 24-27 and of the others, in quarters; then quarters in order.
            let (even, odd) = (_mm512_unpacklo_epi16(low, high), _mm512_unpackhi_epi16(low, high));
            let first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
            let second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
            _mm512_storeu_si512(to.cast(), _mm512_permutex2var_epi64(even, first, odd));
            _mm512_storeu_si512(to.add(TILE).cast(), _mm512_permutex2var_epi64(even, second, odd));
        }
    }
}

/// Tiles 0 and 1 become C's two neighbouring tiles, whose rows are `pitch` bytes apart, or zeros.
///
/// # Safety
/// Between `begin` and `end`; where they are read, the configured rows of 128 bytes are C's.
#[inline(always)]
unsafe fn begin_row(c: *mut f32, pitch: usize, add: bool) {
    // SAFETY: by the caller's promise; no compiled code keeps anything in the tiles.
    unsafe {
        if add {
            std::arch::asm!(
                "tileloadd tmm0, [{c} + {pitch}*1]",
                "tileloadd tmm1, [{c} + {pitch}*1 + 64]",
                c = in(reg) c, pitch = in(reg) pitch, out("tmm0") _, out("tmm1") _, options(nostack)
            );
        } else {
            std::arch::asm!("tilezero tmm0", "tilezero tmm1", out("tmm0") _, out("tmm1") _, options(nostack));
        }
    }
}

/// Stores tiles 0 and 1 where [`begin_row`] reads them.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn end_row(c: *mut f32, pitch: usize) {
    // SAFETY: by the caller's promise.
    unsafe {
        std::arch::asm!(
            "tilestored [{c} + {pitch}*1], tmm0",
            "tilestored [{c} + {pitch}*1 + 64], tmm1",
            c = in(reg) c, pitch = in(reg) pitch, options(nostack)
        );
    }
}

/// Interleaves 32 terms of 64 neighbouring columns into four tiles, and asks for the same terms of the 64 columns that
/// come next.
///
/// # Safety
/// The terms have 64 numbers each, `to` has room for four tiles, and the CPU has AVX-512.
#[inline(always)]
unsafe fn interleave_tile(from: *const u16, stride: usize, to: *mut u16) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: by the caller's promise; prefetches may name any address.
    unsafe {
        for pair in 0..DEPTH / 2 {
            let low = from.add(2 * pair * stride);
            let high = low.add(stride);
            for row in [low, high] {
                _mm_prefetch::<_MM_HINT_T1>(row.wrapping_add(NEIGHBOURS).cast());
                _mm_prefetch::<_MM_HINT_T1>(row.wrapping_add(NEIGHBOURS + NEIGHBOURS / 2).cast());
            }
            let to = to.add(pair * 2 * SIDE);
            <Amx as Unit>::interleave(low, high, to);
            <Amx as Unit>::interleave(low.add(2 * SIDE), high.add(2 * SIDE), to.add(2 * TILE));
        }
    }
}
