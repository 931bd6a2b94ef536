// Runs of numbers that one thread moves by one access: 128 bits where the address allows, one element elsewhere.
#pragma once
#include "common.cuh"

// N numbers, widened.
template <int N> struct Numbers {
    float v[N];
    __device__ __forceinline__ float &operator[](int i) { return v[i]; }
    __device__ __forceinline__ const float &operator[](int i) const { return v[i]; }
};

// N numbers as they are stored. N = 1, or a multiple of 4 at an address that is a multiple of 16 bytes (bf16: N = 4
// at a multiple of 8, N = 8 at a multiple of 16).
template <typename act, int N> struct Piece;

template <> struct Piece<float, 1> {
    float raw;
    __device__ __forceinline__ void read(const float *p) { raw = *p; }
    __device__ __forceinline__ void write(float *p) const { *p = raw; }
    __device__ __forceinline__ Numbers<1> numbers() const { return {{raw}}; }
    __device__ __forceinline__ void set(const Numbers<1> &x) { raw = x[0]; }
};

template <int N> struct Piece<float, N> {
    float4 raw[N / 4];
    __device__ __forceinline__ void read(const float *p) {
#pragma unroll
        for (int i = 0; i < N / 4; i++) raw[i] = reinterpret_cast<const float4 *>(p)[i];
    }
    __device__ __forceinline__ void write(float *p) const {
#pragma unroll
        for (int i = 0; i < N / 4; i++) reinterpret_cast<float4 *>(p)[i] = raw[i];
    }
    __device__ __forceinline__ Numbers<N> numbers() const {
        Numbers<N> x;
#pragma unroll
        for (int i = 0; i < N / 4; i++) {
            x[4 * i] = raw[i].x;
            x[4 * i + 1] = raw[i].y;
            x[4 * i + 2] = raw[i].z;
            x[4 * i + 3] = raw[i].w;
        }
        return x;
    }
    __device__ __forceinline__ void set(const Numbers<N> &x) {
#pragma unroll
        for (int i = 0; i < N / 4; i++) raw[i] = make_float4(x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]);
    }
};

template <> struct Piece<bf16, 1> {
    bf16 raw;
    __device__ __forceinline__ void read(const bf16 *p) { raw = *p; }
    __device__ __forceinline__ void write(bf16 *p) const { *p = raw; }
    __device__ __forceinline__ Numbers<1> numbers() const { return {{__bfloat162float(raw)}}; }
    __device__ __forceinline__ void set(const Numbers<1> &x) { raw = __float2bfloat16_rn(x[0]); }
};

// bf16 is the upper half of f32: widening is a shift or a mask.
template <int N> struct Piece<bf16, N> {
    u32 raw[N / 2];
    __device__ __forceinline__ void read(const bf16 *p) {
        if constexpr (N == 4) {
            uint2 two = *reinterpret_cast<const uint2 *>(p);
            raw[0] = two.x, raw[1] = two.y;
        } else {
            uint4 four = *reinterpret_cast<const uint4 *>(p);
            raw[0] = four.x, raw[1] = four.y, raw[2] = four.z, raw[3] = four.w;
        }
    }
    __device__ __forceinline__ void write(bf16 *p) const {
        if constexpr (N == 4) {
            *reinterpret_cast<uint2 *>(p) = make_uint2(raw[0], raw[1]);
        } else {
            *reinterpret_cast<uint4 *>(p) = make_uint4(raw[0], raw[1], raw[2], raw[3]);
        }
    }
    __device__ __forceinline__ Numbers<N> numbers() const {
        Numbers<N> x;
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            x[2 * i] = __uint_as_float(raw[i] << 16);
            x[2 * i + 1] = __uint_as_float(raw[i] & 0xffff0000u);
        }
        return x;
    }
    __device__ __forceinline__ void set(const Numbers<N> &x) {
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            __nv_bfloat162 two = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
            raw[i] = *reinterpret_cast<u32 *>(&two);
        }
    }
};

// How many numbers of a dtype make 128 bits.
template <typename act> constexpr int WIDE = 16 / sizeof(act);

template <int N, typename act> __device__ __forceinline__ Numbers<N> read(const act *p) {
    Piece<act, N> piece;
    piece.read(p);
    return piece.numbers();
}

template <int N, typename act> __device__ __forceinline__ void write(act *p, const Numbers<N> &x) {
    Piece<act, N> piece;
    piece.set(x);
    piece.write(p);
}

// How many numbers one access moves, as a value that carries it in its type.
template <int N_> struct Width { static constexpr int N = N_; };

// Shares `count` elements out over the grid and calls `f(Width<N>, first element)`: N at a time where `aligned` says
// that every operand begins at a multiple of its access, one at a time elsewhere and in what is left at the end. A
// block of BLOCK threads takes BLOCK * N elements, neighbouring threads neighbouring ones. `f` must give an element
// the same bits either way: what could be contracted into a fused multiply-add is written as one.
template <int N, int BLOCK, typename F> __device__ __forceinline__ void elements(u32 count, bool aligned, F f) {
    u32 first = blockIdx.x * (BLOCK * N);
    if (aligned) {
        u32 at = first + threadIdx.x * N;
        if (at + N <= count) {
            f(Width<N>(), at);
        } else {
            for (; at < count; at++) f(Width<1>(), at);
        }
    } else {
        u32 end = min(count, first + BLOCK * N);
        for (u32 at = first + threadIdx.x; at < end; at += BLOCK) f(Width<1>(), at);
    }
}

// Whether all of these addresses are multiples of `bytes`.
template <typename... T> __device__ __forceinline__ bool multiples(u32 bytes, const T *...p) {
    return ((reinterpret_cast<u64>(p) | ...) & (bytes - 1)) == 0;
}
