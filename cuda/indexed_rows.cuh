// Rows moved a vector at a time, and what becomes of a row whose index does not exist. Device functions only.
//
// Indices arrive unchecked: the host has never seen them. No kernel that includes this file reads or writes
// outside its operands for any index. An index outside its table is not passed over in silence: what it should
// have brought becomes NaN, which the loss, the gradient's norm and the optimiser refuse.
#pragma once
#include "common.cuh"

__device__ __forceinline__ float nan() { return __int_as_float(0x7fffffff); }

// ---- V neighbouring numbers, in f32 ---------------------------------------------------------------------------------

// V is 1 (any address), 4 (float4, or 8 bytes of bf16) or 8 (16 bytes of bf16). A row of a tensor is aligned for V
// exactly when its number of columns is a multiple of V.
template <int V>
struct Pack {
    float x[V];
};

__device__ __forceinline__ float low_half(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_half(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ u32 two_halves(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<u32 *>(&pair);
}

template <int V>
__device__ __forceinline__ Pack<V> load_pack(const float *p) {
    Pack<V> r;
    if constexpr (V == 1) {
        r.x[0] = *p;
    } else {
        static_assert(V == 4, "16 bytes");
        float4 q = *reinterpret_cast<const float4 *>(p);
        r.x[0] = q.x, r.x[1] = q.y, r.x[2] = q.z, r.x[3] = q.w;
    }
    return r;
}

template <int V>
__device__ __forceinline__ Pack<V> load_pack(const bf16 *p) {
    Pack<V> r;
    if constexpr (V == 1) {
        r.x[0] = load(p);
    } else if constexpr (V == 4) {
        uint2 q = *reinterpret_cast<const uint2 *>(p);
        r.x[0] = low_half(q.x), r.x[1] = high_half(q.x), r.x[2] = low_half(q.y), r.x[3] = high_half(q.y);
    } else {
        uint4 q = *reinterpret_cast<const uint4 *>(p);
        r.x[0] = low_half(q.x), r.x[1] = high_half(q.x), r.x[2] = low_half(q.y), r.x[3] = high_half(q.y);
        r.x[4] = low_half(q.z), r.x[5] = high_half(q.z), r.x[6] = low_half(q.w), r.x[7] = high_half(q.w);
    }
    return r;
}

template <int V>
__device__ __forceinline__ void store_pack(float *p, Pack<V> v) {
    if constexpr (V == 1) {
        *p = v.x[0];
    } else {
        static_assert(V == 4, "16 bytes");
        *reinterpret_cast<float4 *>(p) = make_float4(v.x[0], v.x[1], v.x[2], v.x[3]);
    }
}

template <int V>
__device__ __forceinline__ void store_pack(bf16 *p, Pack<V> v) {
    if constexpr (V == 1) {
        store(p, v.x[0]);
    } else if constexpr (V == 4) {
        *reinterpret_cast<uint2 *>(p) = make_uint2(two_halves(v.x[0], v.x[1]), two_halves(v.x[2], v.x[3]));
    } else {
        *reinterpret_cast<uint4 *>(p) = make_uint4(two_halves(v.x[0], v.x[1]), two_halves(v.x[2], v.x[3]),
                                                   two_halves(v.x[4], v.x[5]), two_halves(v.x[6], v.x[7]));
    }
}

template <int V>
__device__ __forceinline__ Pack<V> all(float value) {
    Pack<V> r;
#pragma unroll
    for (int i = 0; i < V; i++) r.x[i] = value;
    return r;
}

template <int V>
__device__ __forceinline__ Pack<V> operator+(Pack<V> a, Pack<V> b) {
#pragma unroll
    for (int i = 0; i < V; i++) a.x[i] += b.x[i];
    return a;
}

// a * weight + b, each element rounded once.
template <int V>
__device__ __forceinline__ Pack<V> multiply_add(Pack<V> a, float weight, Pack<V> b) {
#pragma unroll
    for (int i = 0; i < V; i++) b.x[i] = fmaf(a.x[i], weight, b.x[i]);
    return b;
}

// Numbers of 16 bytes of the narrowest of the dtypes that a kernel moves; wider ones then take whole sectors too.
template <typename... types>
__device__ constexpr int vector() {
    return ((sizeof(types) == 2) && ...) ? 8 : 4;
}

// The pointer to device memory that an address read from `table` is. It is made from `table`, which the compiler knows
// to be global: from a mere number it would make generic loads and stores, and split the wide ones.
template <typename type>
__device__ __forceinline__ type *global(const u64 *table, u64 address) {
    u64 base = reinterpret_cast<u64>(table);
    return const_cast<type *>(
        reinterpret_cast<const type *>(reinterpret_cast<const char *>(table) + (address - base)));
}

// ---- which row and which columns a warp has -------------------------------------------------------------------------

// A block of WARPS warps has WARPS rows, a warp RUN columns of its row: grid (ceil(rows / WARPS), ceil(cols / RUN)).
// Every warp reads its row's index once for all of its columns. Few long rows still fill the machine.
constexpr int WARPS = 4;
constexpr int ROW_BLOCK = WARPS * WARP;
constexpr u32 RUN = 1024;

struct Run {
    u32 row, first, end, lane;

    __device__ __forceinline__ Run(u32 cols) {
        row = blockIdx.x * WARPS + threadIdx.x / WARP;
        first = blockIdx.y * RUN;
        end = min(first + RUN, cols);
        lane = threadIdx.x % WARP;
    }

    // to(c, from(c)) for the first column c of each of this lane's vectors. Four loads are on their way before the
    // first store: a decode step has too few rows for other warps to hide the latency of one at a time.
    template <int V, typename From, typename To>
    __device__ __forceinline__ void move(From from, To to) const {
        constexpr u32 STRIDE = WARP * V;
        for (u32 c = first + lane * V; c < end; c += 4 * STRIDE) {
            Pack<V> held[4];
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                if (c + i * STRIDE < end) held[i] = from(c + i * STRIDE);
            }
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                if (c + i * STRIDE < end) to(c + i * STRIDE, held[i]);
            }
        }
    }
};
