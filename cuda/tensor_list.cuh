// One launch over many tensors. A table on the device (src/ops/tensor_list.rs) has a row of 64-bit numbers a tensor: its
// first chunk, its elements, its addresses; another says for each chunk which tensor it belongs to. A tensor starts a
// chunk of its own; block k has chunk k.
#pragma once
#include "vector.cuh"

// Elements of a chunk.
constexpr u32 CHUNK = 4096;

// The pointer to device memory that an address read from `table` is. It is made from `table`, which the compiler knows
// to be global: from a mere number it would make generic loads and stores, and split the wide ones.
template <typename type> __device__ __forceinline__ type *global(const u64 *table, u64 address) {
    u64 base = reinterpret_cast<u64>(table);
    return const_cast<type *>(reinterpret_cast<const type *>(reinterpret_cast<const char *>(table) + (address - base)));
}

// The block's elements of its tensor: whole vectors of four first..whole, and up to three more, whole..end, at the
// tensor's own end.
struct Chunk {
    u64 first, whole, end;

    __device__ __forceinline__ Chunk(u64 chunk, u64 elements) {
        first = chunk * CHUNK;
        end = min(first + CHUNK, elements);
        whole = first + (end - first) / 4 * 4;
    }

    // f(Width<N>, element) for the elements of this thread, four at a time, then one.
    template <int BLOCK, typename F> __device__ __forceinline__ void each(F f) const {
#pragma unroll
        for (u32 k = 0; k < CHUNK / (4 * BLOCK); k++) {
            u64 i = first + 4 * (k * BLOCK + threadIdx.x);
            if (i < whole) f(Width<4>(), i);
        }
        if (whole + threadIdx.x < end) f(Width<1>(), whole + threadIdx.x);
    }
};
