//! Intel's AMX tiles through inline assembly (the intrinsics are not stable yet), on Linux.
//!
//! The tiles are usable when the CPU has AMX-TILE and AMX-BF16, the system saves their state (XCR0 bits 17 and 18),
//! and it has granted this process the large state (`arch_prctl(ARCH_REQ_XCOMP_PERM, 18)`, asked once).
#![allow(unsafe_code)]

use super::units::{SIDE, TILE, Unit};

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

/// Eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

static CONFIGURATION: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes_per_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

impl Unit for Amx {
    #[inline(always)]
    unsafe fn begin() {
        // SAFETY: the caller has asked `available`; the configuration is 64 bytes of a valid palette. All tiles are
        // zeroed, and no compiled code keeps anything in them.
        unsafe {
            std::arch::asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack, readonly))
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
        a: *const u16,
        a_step: usize,
        b: *const u16,
        sums: *mut f32,
    ) {
        const { assert!(TILE * 2 == 1024 && SIDE * SIDE * 4 == 1024) }
        if depth == 0 {
            return;
        }
        // SAFETY: every tile load and store covers 16 rows of 64 bytes inside the caller's arrays: the sums' four
        // tiles, `depth` tiles of each row of A, and `2 * depth` tiles of B. Tiles 0 to 7 are configured.
        unsafe {
            if tile_rows == 1 {
                std::arch::asm!(
                    "tileloadd tmm0, [{c} + {stride}*1]",
                    "tileloadd tmm1, [{c} + {stride}*1 + 1024]",
                    "2:",
                    "tileloadd tmm4, [{a} + {stride}*1]",
                    "tileloadd tmm6, [{b} + {stride}*1]",
                    "tileloadd tmm7, [{b} + {stride}*1 + 1024]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "add {a}, 1024",
                    "add {b}, 2048",
                    "dec {n}",
                    "jnz 2b",
                    "tilestored [{c} + {stride}*1], tmm0",
                    "tilestored [{c} + {stride}*1 + 1024], tmm1",
                    c = in(reg) sums,
                    stride = in(reg) 64_usize,
                    a = inout(reg) a => _,
                    b = inout(reg) b => _,
                    n = inout(reg) depth => _,
                    out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                    options(nostack)
                );
            } else {
                std::arch::asm!(
                    "tileloadd tmm0, [{c} + {stride}*1]",
                    "tileloadd tmm1, [{c} + {stride}*1 + 1024]",
                    "tileloadd tmm2, [{c} + {stride}*1 + 2048]",
                    "tileloadd tmm3, [{c} + {stride}*1 + 3072]",
                    "2:",
                    "tileloadd tmm4, [{a} + {stride}*1]",
                    "tileloadd tmm6, [{b} + {stride}*1]",
                    "tileloadd tmm7, [{b} + {stride}*1 + 1024]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{a2} + {stride}*1]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {a}, 1024",
                    "add {a2}, 1024",
                    "add {b}, 2048",
                    "dec {n}",
                    "jnz 2b",
                    "tilestored [{c} + {stride}*1], tmm0",
                    "tilestored [{c} + {stride}*1 + 1024], tmm1",
                    "tilestored [{c} + {stride}*1 + 2048], tmm2",
                    "tilestored [{c} + {stride}*1 + 3072], tmm3",
                    c = in(reg) sums,
                    stride = in(reg) 64_usize,
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
    }
}
