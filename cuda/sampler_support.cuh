// Scores of tokens on the support that was stored when they were sampled, their gradient, and that of mixtures.
// A row whose support does not hold its token, or is broken, or has no softmax, gives NaN.
#pragma once
#include "selection.cuh"

// A row's softmax over its stored support.
struct Support {
    const u32 *ids;
    u32 count; // 0: the whole vocabulary.
    float maximum, log_sum;
    bool sound;
};

// Statistics of the whole vocabulary. `parts` holds PART floats a chunk.
__device__ __forceinline__ Part part_of_row(const Row &row, float scale, float *parts) {
    u32 chunks = (row.cols + CHUNK - 1) / CHUNK;
    for (u32 chunk = threadIdx.x / WARP; chunk < chunks; chunk += WARPS) {
        float4 quads[CHUNK_QUADS];
        row.load(chunk * (CHUNK / 4), quads);
#pragma unroll
        for (int j = 0; j < CHUNK_QUADS; j++) quads[j] = scaled(quads[j], scale);
        store_part(parts, chunk, part_of_chunk<false>(quads));
    }
    __syncthreads();
    return merge_parts<false>(parts, chunks);
}

// By the whole block; `parts` as above, `room` holds WARPS numbers. A kept logit is a sector of its own, and few rows keep
// more ids than there are threads: the logit of a thread's first place stays with it, those of others are read again.
__device__ __forceinline__ Support support_of_row(const Row &row, float scale, u32 token, const u32 *ids, u32 count,
                                                  u32 capacity, float *parts, u64 *room) {
    if (count == 0) {
        Part part = part_of_row(row, scale, parts);
        return Support{ids, 0, part.maximum, part.log_sum(), part.sound() && token < row.cols};
    }
    Support broken = {ids, 0, 0.0f, 0.0f, false};
    if (count > capacity) return broken;
    bool wrong = false, held = false;
    float maximum = -infinity(), own = 0.0f;
    for (u32 i = threadIdx.x; i < count; i += BLOCK) {
        u32 id = ids[i];
        if (id >= row.cols) {
            wrong = true;
            continue;
        }
        float s = __fmul_rn(row.start[id], scale);
        if (i == threadIdx.x) own = s;
        wrong |= !(s <= FINITE);
        held |= id == token;
        maximum = fmaxf(maximum, s);
    }
    if (__syncthreads_or(wrong) || !__syncthreads_or(held)) return broken;
    maximum = block_max(maximum, room);
    if (!(maximum > -infinity())) return broken;
    int fraction = fraction_bits(row.cols);
    u64 mass = 0;
    for (u32 i = threadIdx.x; i < count; i += BLOCK) {
        float s = i == threadIdx.x ? own : __fmul_rn(row.start[ids[i]], scale);
        mass += mass_of(exponential(__fsub_rn(s, maximum)), fraction);
    }
    return Support{ids, count, maximum, log_mass(block_total(mass, room), fraction), true};
}

// Assigns `value` to a row that may begin anywhere. By the whole block.
__device__ __forceinline__ void fill(float *row, u32 cols, float value) {
    u32 head = min((4 - (u32)((u64)row / sizeof(float)) % 4) % 4, cols), body = (cols - head) / 4;
    u32 tail = head + 4 * body;
    if (threadIdx.x < head) row[threadIdx.x] = value;
    float4 four = make_float4(value, value, value, value);
    for (u32 i = threadIdx.x; i < body; i += BLOCK) reinterpret_cast<float4 *>(row + head)[i] = four;
    if (tail + threadIdx.x < cols) row[tail + threadIdx.x] = value;
}
