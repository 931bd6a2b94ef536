// Tensor-core products, matrix loads and asynchronous copies: one inline function an instruction.
//
// Fragments of a warp, with g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix fragments for mma"):
//
//   m16n8k16 bf16   a[0] = A(g, 2t..2t+1)   a[1] = A(g+8, 2t..)   a[2] = A(g, 2t+8..)   a[3] = A(g+8, 2t+8..)
//                   b0 = B(2t..2t+1, g)     b1 = B(2t+8.., g)
//   m16n8k8 tf32    a[0] = A(g, t)          a[1] = A(g+8, t)      a[2] = A(g, t+4)      a[3] = A(g+8, t+4)
//                   b0 = B(t, g)            b1 = B(t+4, g)
//   both            c[0..1] = C(g, 2t..2t+1)                      c[2..3] = C(g+8, 2t..2t+1)
//
// ldmatrix reads 8 x 8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8 (16 bytes,
// 16-byte aligned), and lane (g, t) receives elements 2t, 2t+1 of row g; transposed, elements g of rows 2t and 2t+1.
// A row of four f32 counts as eight 16-bit elements: lane (g, t) then receives element t of row g, which is what
// both operands of the tf32 product want when they are stored with the summed index last.
#pragma once
#include "common.cuh"

// The address of shared memory as instructions want it.
__device__ __forceinline__ u32 shared_address(const void *pointer) {
    return (u32)__cvta_generic_to_shared(pointer);
}

// ---- products: c += a b -------------------------------------------------------------------------------------------

__device__ __forceinline__ void mma_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_tf32(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The nearest tf32 (10 bits of fraction; ties away from zero), as bits.
__device__ __forceinline__ u32 to_tf32(float x) {
    u32 bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}

// x as the sum of two tf32 numbers, to about 2^-22 of x.
__device__ __forceinline__ void split_tf32(float x, u32 &high, u32 &low) {
    high = to_tf32(x);
    low = to_tf32(x - __uint_as_float(high));
}

// A product of f32 accuracy from three of tf32, in a fixed order: the small terms first, low x low left out.
__device__ __forceinline__ void mma_3xtf32(float (&c)[4], const u32 (&a_high)[4], const u32 (&a_low)[4],
                                           u32 b0_high, u32 b0_low, u32 b1_high, u32 b1_low) {
    mma_tf32(c, a_low, b0_high, b1_high);
    mma_tf32(c, a_high, b0_low, b1_low);
    mma_tf32(c, a_high, b0_high, b1_high);
}

// Two f32 as bf16, the first in the low half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(u32 *)&pair;
}

// ---- matrix loads from shared memory ------------------------------------------------------------------------------

__device__ __forceinline__ void ldmatrix_x1(u32 &r, u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r) : "r"(address) : "memory");
}

__device__ __forceinline__ void ldmatrix_x2(u32 (&r)[2], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x1_trans(u32 &r, u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r) : "r"(address) : "memory");
}

__device__ __forceinline__ void ldmatrix_x2_trans(u32 (&r)[2], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// A word of shared memory by its address.
__device__ __forceinline__ u32 load_shared(u32 address) {
    u32 word;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
    return word;
}

// ---- asynchronous copies from global to shared memory -------------------------------------------------------------
//
// What is copied is visible to the copying thread after its cp_async_wait, to other threads after a barrier too.
// `wanted` false writes zeros and reads nothing; `from` must be a valid address all the same.

__device__ __forceinline__ void cp_async_16(u32 to, const void *from, bool wanted = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
                 "r"(wanted ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void cp_async_8(u32 to, const void *from, bool wanted = true) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
                 "r"(wanted ? 8 : 0)
                 : "memory");
}

__device__ __forceinline__ void cp_async_4(u32 to, const void *from, bool wanted = true) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
                 "r"(wanted ? 4 : 0)
                 : "memory");
}

// Closes the group of this thread's copies so far.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of this thread's latest groups are still on their way.
template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
