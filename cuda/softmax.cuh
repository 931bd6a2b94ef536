// The one arithmetic of a row of logits. The sampler and log_probability share it, so that both give a token's
// log-probability with the same bits.
//
//   s[v] = logit[v] * scale            log p[v] = (s[v] - M) - ln Z            Z = sum_v exp(s[v] - M)
//
// The vocabulary is walked in chunks of 1024 columns that begin at column 0. A warp takes a chunk: lane l holds the
// quads (four columns) l, l + 32, .. l + 224; its sum runs in that order, the lanes are added by a butterfly. Chunks
// are merged by a warp: lane l adds chunks l, l + 32, ..; again a butterfly. Nothing else decides the bits: not where
// a row begins in memory, not how many chunks a launch sees, not who computes them.
//
// Rows of an odd vocabulary begin anywhere. A warp then still loads aligned 16-byte pieces, and takes the columns that
// it wants from its own piece and its neighbour's by shuffles.
#pragma once
#include "common.cuh"
#include "gumbel.cuh"

constexpr u32 CHUNK = 1024;
constexpr int CHUNK_QUADS = CHUNK / 4 / WARP;
// Floats of a chunk's part in memory: maximum, sum, weighted.
constexpr u32 PART = 3;

// e^x with the bits of src/cpu/float.rs, which explains the steps: within 2 ulp, 0 below -103.97, NaN for NaN.
__device__ __forceinline__ float exponential(float x) {
    float clamped = x > 89.0f ? 89.0f : x;
    clamped = clamped < -104.0f ? -104.0f : clamped;
    float shifted = __fmaf_rn(clamped, 1.44269502f, 12582912.0f);
    float rounded = __fadd_rn(shifted, -12582912.0f);
    float r = __fmaf_rn(rounded, -0.693359375f, clamped);
    r = __fmaf_rn(rounded, 2.1219444e-4f, r);
    float p = 1.984127e-4f;
    p = __fmaf_rn(p, r, 1.3888889e-3f);
    p = __fmaf_rn(p, r, 8.333334e-3f);
    p = __fmaf_rn(p, r, 4.1666668e-2f);
    p = __fmaf_rn(p, r, 0.16666667f);
    p = __fmaf_rn(p, r, 0.5f);
    p = __fmaf_rn(p, r, 1.0f);
    p = __fmaf_rn(p, r, 1.0f);
    int n = __float_as_int(shifted) - __float_as_int(12582912.0f), half = n >> 1;
    float first = __int_as_float((half + 127) << 23), second = __int_as_float((n - half + 127) << 23);
    float value = __fmul_rn(__fmul_rn(p, first), second);
    return x < -103.97208f ? 0.0f : value;
}

// ---- a row in memory ----------------------------------------------------------------------------------------------

struct Row {
    const float *start;
    u32 cols;
    // Floats between the 16-byte boundary before `start` and it.
    u32 shift;

    __device__ __forceinline__ Row(const float *start, u32 cols)
        : start(start), cols(cols), shift((u32)((u64)start / sizeof(float)) % 4) {}

    // Aligned piece i: columns 4 i - shift .. 4 i - shift + 3; minus infinity outside the row.
    __device__ __forceinline__ float4 piece(u32 i) const {
        int first = (int)(4 * i) - (int)shift;
        if (first >= 0 && first + 3 < (int)cols) return *reinterpret_cast<const float4 *>(start + first);
        float none = -infinity();
        float4 out = make_float4(none, none, none, none);
        if (first >= 0 && first < (int)cols) out.x = start[first];
        if (first + 1 >= 0 && first + 1 < (int)cols) out.y = start[first + 1];
        if (first + 2 >= 0 && first + 2 < (int)cols) out.z = start[first + 2];
        if (first + 3 >= 0 && first + 3 < (int)cols) out.w = start[first + 3];
        return out;
    }

    // quads[j] = columns 4 q .. 4 q + 3 with q = first + 32 j + lane; minus infinity beyond the row. By a full warp.
    template <int COUNT>
    __device__ __forceinline__ void load(u32 first, float4 (&quads)[COUNT]) const {
        u32 lane = threadIdx.x % WARP;
#pragma unroll
        for (int j = 0; j < COUNT; j++) quads[j] = piece(first + j * WARP + lane);
        if (shift == 0) return; // The same for the whole block.
        float4 after = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (lane == 0) after = piece(first + COUNT * WARP);
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            // Lane 31 needs what lane 0 holds of the following run.
            float4 given = lane == 0 ? (j + 1 < COUNT ? quads[j + 1 < COUNT ? j + 1 : j] : after) : quads[j];
            float x = __shfl_sync(ALL_LANES, given.x, (lane + 1) % WARP);
            float y = __shfl_sync(ALL_LANES, given.y, (lane + 1) % WARP);
            float z = __shfl_sync(ALL_LANES, given.z, (lane + 1) % WARP);
            float4 own = quads[j];
            if (shift == 1) quads[j] = make_float4(own.y, own.z, own.w, x);
            if (shift == 2) quads[j] = make_float4(own.z, own.w, x, y);
            if (shift == 3) quads[j] = make_float4(own.w, x, y, z);
        }
    }
};

__device__ __forceinline__ float4 scaled(float4 x, float scale) {
    return make_float4(__fmul_rn(x.x, scale), __fmul_rn(x.y, scale), __fmul_rn(x.z, scale), __fmul_rn(x.w, scale));
}

__device__ __forceinline__ float largest(float4 x) { return fmaxf(fmaxf(x.x, x.y), fmaxf(x.z, x.w)); }

// ---- statistics ---------------------------------------------------------------------------------------------------

// Of a chunk or of a row. `weighted` is sum exp(s - M) (s - M), kept where entropy is wanted.
struct Part {
    float maximum, sum, weighted;

    // ln Z. The sum is at least 1 wherever there is a probability; NaN stays NaN.
    __device__ __forceinline__ float log_sum() const { return sum >= 1.0f ? gumbel_ln(sum) : sum + __int_as_float(0x7fc00000); }
    // In nats.
    __device__ __forceinline__ float entropy() const { return __fsub_rn(log_sum(), __fdiv_rn(weighted, sum)); }
    // A softmax exists: no NaN, no plus infinity, something above minus infinity.
    __device__ __forceinline__ bool sound() const { return sum >= 1.0f && sum <= 3.4028235e38f; }
};

__device__ __forceinline__ float log_probability(float scaled, float maximum, float log_sum) {
    return __fsub_rn(__fsub_rn(scaled, maximum), log_sum);
}

template <bool ENTROPY>
__device__ __forceinline__ void add_weight(float s, float shift, float &sum, float &weighted) {
    float distance = __fsub_rn(s, shift);
    float weight = exponential(distance);
    sum = __fadd_rn(sum, weight);
    if (ENTROPY) weighted = __fmaf_rn(weight, weight == 0.0f ? 0.0f : distance, weighted);
}

// Statistics of one chunk from its scaled logits, as Row::load lays them out. By a full warp; all lanes get them.
template <bool ENTROPY>
__device__ __forceinline__ Part part_of_chunk(const float4 (&s)[CHUNK_QUADS]) {
    float maximum = -infinity();
#pragma unroll
    for (int j = 0; j < CHUNK_QUADS; j++) maximum = fmaxf(maximum, largest(s[j]));
    maximum = warp_max(maximum);
    // A chunk of zero probability: any shift will do that does not make NaN of -inf - -inf.
    float shift = maximum == -infinity() ? 0.0f : maximum;
    float sum = 0.0f, weighted = 0.0f;
#pragma unroll
    for (int j = 0; j < CHUNK_QUADS; j++) {
        add_weight<ENTROPY>(s[j].x, shift, sum, weighted);
        add_weight<ENTROPY>(s[j].y, shift, sum, weighted);
        add_weight<ENTROPY>(s[j].z, shift, sum, weighted);
        add_weight<ENTROPY>(s[j].w, shift, sum, weighted);
    }
    return Part{maximum, warp_sum(sum), ENTROPY ? warp_sum(weighted) : 0.0f};
}

// Keeps a chunk's part; by a full warp.
__device__ __forceinline__ void store_part(float *parts, u32 chunk, Part part) {
    u32 lane = threadIdx.x % WARP;
    if (lane < PART) parts[PART * chunk + lane] = lane == 0 ? part.maximum : lane == 1 ? part.sum : part.weighted;
}

// Parts of the chunks base .. base + 31, one a lane, asked for as whole sectors; one that does not exist counts nothing.
// By a full warp.
__device__ __forceinline__ Part load_parts(const float *parts, u32 base, u32 chunks) {
    u32 lane = threadIdx.x % WARP, floats = PART * min(chunks - base, (u32)WARP);
    float held[PART], mine[PART];
#pragma unroll
    for (u32 i = 0; i < PART; i++) {
        u32 at = WARP * i + lane;
        held[i] = at < floats ? parts[PART * base + at] : 0.0f;
    }
#pragma unroll
    for (u32 i = 0; i < PART; i++) {
        u32 at = PART * lane + i;
        mine[i] = 0.0f;
#pragma unroll
        for (u32 j = 0; j < PART; j++) {
            float found = __shfl_sync(ALL_LANES, held[j], at % WARP);
            if (at / WARP == j) mine[i] = found;
        }
    }
    return base + lane < chunks ? Part{mine[0], mine[1], mine[2]} : Part{-infinity(), 0.0f, 0.0f};
}

// Statistics of a row from those of its chunks. By a full warp; all lanes get them.
template <bool ENTROPY>
__device__ __forceinline__ Part merge_parts(const float *parts, u32 chunks) {
    float maximum = -infinity();
    for (u32 base = 0; base < chunks; base += WARP) maximum = fmaxf(maximum, load_parts(parts, base, chunks).maximum);
    maximum = warp_max(maximum);
    float sum = 0.0f, weighted = 0.0f;
    for (u32 base = 0; base < chunks; base += WARP) {
        Part part = load_parts(parts, base, chunks);
        if (base + threadIdx.x % WARP >= chunks) continue;
        // Equal maxima may both be minus infinity.
        float distance = part.maximum == maximum ? 0.0f : __fsub_rn(part.maximum, maximum);
        float rescale = exponential(distance);
        sum = __fmaf_rn(part.sum, rescale, sum);
        if (ENTROPY) {
            float moved = part.sum == 0.0f ? 0.0f : __fmul_rn(part.sum, distance);
            weighted = __fmaf_rn(__fadd_rn(part.weighted, moved), rescale, weighted);
        }
    }
    return Part{maximum, warp_sum(sum), ENTROPY ? warp_sum(weighted) : 0.0f};
}
