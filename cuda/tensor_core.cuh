// The instructions behind tensor cores, one function each: copies to shared memory, fragments, multiply-accumulate.
#pragma once
#include "common.cuh"

__device__ __forceinline__ u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

// Starts a copy of 16 bytes to shared memory, of which `bytes` are read and the rest are zeros.
__device__ __forceinline__ void copy_async(u32 to, const void *from, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(__cvta_generic_to_global(from)),
                 "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits until all but this thread's last N groups of copies have landed.
template <int N>
__device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory"); }

// Four 8x8 matrices of 16-bit numbers (or 8x4 of 32-bit ones): lane l gives the address of line l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(u32 (&word)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                 : "r"(at)
                 : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(u32 (&word)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                 : "r"(at)
                 : "memory");
}

// c[16,8] += a[16,16] b[16,8] in bf16.
__device__ __forceinline__ void mma_bf16(float (&c)[4], const u32 (&a)[4], uint2 b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

// c[16,8] += a[16,8] b[8,8] in tf32.
__device__ __forceinline__ void mma_tf32(float (&c)[4], const u32 (&a)[4], uint2 b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

// The nearest tf32, as the bits of an f32.
__device__ __forceinline__ u32 to_tf32(float x) {
    u32 bits;
    asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(bits) : "f"(x));
    return bits;
}

// Two numbers rounded to bf16, `low` in the low half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<u32 *>(&pair);
}

// x = big + small, both tf32: what is left of x beyond 22 bits is lost. `big` holds x before.
__device__ __forceinline__ void split(u32 (&big)[4], u32 (&small)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float x = __uint_as_float(big[i]);
        big[i] = to_tf32(x);
        small[i] = to_tf32(x - __uint_as_float(big[i]));
    }
}
