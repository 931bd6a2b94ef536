// Rows moved a vector at a time, and what becomes of a row whose index does not exist. Device functions only.
//
// Indices arrive unchecked: the host has never seen them. No kernel that includes this file reads or writes
// outside its operands for any index. An index outside its table is not passed over in silence: what it should
// have brought becomes NaN, which the loss, the gradient's norm and the optimiser refuse.
#pragma once
#include "vector.cuh"

// ---- numbers of a row -----------------------------------------------------------------------------------------------

template <int V>
__device__ __forceinline__ Numbers<V> all(float value) {
    Numbers<V> r;
#pragma unroll
    for (int i = 0; i < V; i++) r[i] = value;
    return r;
}

template <int V>
__device__ __forceinline__ Numbers<V> operator+(Numbers<V> a, Numbers<V> b) {
#pragma unroll
    for (int i = 0; i < V; i++) a[i] += b[i];
    return a;
}

// a * weight + b, each element rounded once.
template <int V>
__device__ __forceinline__ Numbers<V> multiply_add(Numbers<V> a, float weight, Numbers<V> b) {
#pragma unroll
    for (int i = 0; i < V; i++) b[i] = fmaf(a[i], weight, b[i]);
    return b;
}

// Numbers of 16 bytes of the narrowest of the dtypes that a kernel moves; wider ones then take whole sectors too.
template <typename... types>
__device__ constexpr int vector() {
    return ((sizeof(types) == 2) && ...) ? 8 : 4;
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
            Numbers<V> held[4];
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
