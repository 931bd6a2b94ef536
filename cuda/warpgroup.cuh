// Products of a warpgroup, for compute capability 9.0 alone (files whose stem ends in _sm90a): one inline function an
// instruction. Four warps multiply 64 rows of A by columns of B, both in shared memory, which the tensor core reads by itself.
//
// # Bits
// A chain of these over k has the bits of the same chain of mma.sync m16n8k16 (seen on an H200: no element of products of
// 4096 x 4096 x 4096 differed), and the simulator computes it so. The order contract of gemm.cuh holds across both.
//
// # Panels
// A line is 128 bytes; eight lines are an atom of 1024 bytes, aligned to as much; the 16-byte cell c of line l lies at
// c ^ (l % 8), the hardware's 128-byte swizzle.
//   k contiguous       a line is 64 k of one row of A (column of B); atoms follow each other in rows
//   other contiguous   a line is 64 columns of one k; atoms follow each other in k, then come the next 64 columns
//
// # Fragments
// Warp w of the four has rows 16w to 16w + 15; d[4j + i] is element i of mma's C for columns 8j to 8j + 7.
#pragma once
#include "tensor_core.cuh"

// Cells of a line, lines of an atom.
constexpr u32 ATOM_CELLS = 8, ATOM_LINES = 8, ATOM_LINE = 128, ATOM = ATOM_LINES * ATOM_LINE;

// Byte of a cell of a panel whose lines follow each other.
__device__ __forceinline__ u32 swizzled(u32 line, u32 cell) {
    return line * ATOM_LINE + (cell ^ line % ATOM_LINES) * 16;
}

// How the tensor core finds an operand: where it starts, how far it is to the next 64 columns (other contiguous; else
// ignored) and to the next atom, and the swizzle.
__device__ __forceinline__ u64 describe(u32 address, u32 to_columns) {
    constexpr u64 SWIZZLE_128 = 1;
    return (u64)((address & 0x3ffff) >> 4) | (u64)(to_columns >> 4) << 16 | (u64)(ATOM >> 4) << 32 | SWIZZLE_128 << 62;
}

// Before the first product that reads registers or shared memory written since the last one.
__device__ __forceinline__ void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Closes the group of products so far.
__device__ __forceinline__ void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most PENDING groups are still on their way.
template <int PENDING>
__device__ __forceinline__ void warpgroup_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Shows the tensor core what this thread wrote to shared memory, or has waited for.
__device__ __forceinline__ void show_to_tensor_core() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// d = a b, or d += a b where `add` is 1; 16 k.
#define FOUR(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SIXTEEN(i) FOUR(i), FOUR(i + 4), FOUR(i + 8), FOUR(i + 12)
template <bool B_OTHER_CONTIGUOUS>
__device__ __forceinline__ void warpgroup_product(float (&d)[32], u64 a, u64 b, u32 add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, p, 1, 1, 0, %35;\n}\n"
        : SIXTEEN(0), SIXTEEN(16)
        : "l"(a), "l"(b), "r"(add), "n"(B_OTHER_CONTIGUOUS));
}
template <bool B_OTHER_CONTIGUOUS>
__device__ __forceinline__ void warpgroup_product(float (&d)[64], u64 a, u64 b, u32 add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, p, 1, 1, 0, %67;\n}\n"
        : SIXTEEN(0), SIXTEEN(16), SIXTEEN(32), SIXTEEN(48)
        : "l"(a), "l"(b), "r"(add), "n"(B_OTHER_CONTIGUOUS));
}
