// A row of logits shared out over many blocks: what each chunk of 1024 columns leaves for the block that ends the row.
// One block has one multiprocessor's share of the memory's bandwidth and of the arithmetic; a step of a few rows would
// leave the others idle.
//
// Chunks are those of softmax.cuh, so nothing here changes a bit: a chunk's statistics are the same whoever takes it,
// and of keys the largest is taken.
#pragma once
#include "selection.cuh"

// Threads of a block that takes chunks, a warp a chunk.
constexpr int CHUNK_BLOCK = 128;
constexpr u32 CHUNK_WARPS = CHUNK_BLOCK / WARP;

__device__ __forceinline__ u32 chunks_of(u32 cols) { return (cols + CHUNK - 1) / CHUNK; }

// The row and the chunk of a warp; a row's blocks stand side by side.
struct Place {
    u32 row, chunk, chunks, block, blocks;
    __device__ __forceinline__ explicit Place(u32 cols) : chunks(chunks_of(cols)) {
        blocks = (chunks + CHUNK_WARPS - 1) / CHUNK_WARPS;
        row = blockIdx.x / blocks;
        block = blockIdx.x % blocks;
        chunk = block * CHUNK_WARPS + threadIdx.x / WARP;
    }
    __device__ __forceinline__ bool inside() const { return chunk < chunks; }
};

// What a thread, and in the end the row, has drawn.
struct Drawn {
    float value;
    u32 id;
    u64 mass;

    // In ascending order of ids the lower of equals stays.
    __device__ __forceinline__ void take(float candidate, u32 candidate_id) {
        if (candidate > value) {
            value = candidate;
            id = candidate_id;
        }
    }
    __device__ __forceinline__ u64 key() const { return id == FAULTY ? 0 : rank_key(value, id); }
};

__device__ __forceinline__ u64 warp_largest(u64 x) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) x = max(x, __shfl_xor_sync(ALL_LANES, x, distance));
    return x;
}

// ---- memory -------------------------------------------------------------------------------------------------------

constexpr u32 BUCKETS = 2048;
constexpr u32 LIST = 2048;

// What a row's blocks tell each other; src/ops/sampler/workspace.rs reserves it. The first kernel of a draw writes each
// part before another reads it, but for the last three numbers, which are 0 between draws: whoever needs them last sees
// to that.
struct Header {
    u64 mass, best;  // Of the ids that are certain: their mass, the largest key.
    u64 amount;      // What the list must add up to (Cut).
    u32 listed;      // Keys in the list, or more than LIST.
    u32 arrived;     // Blocks that have left their part.
    u32 top, bottom; // The order of the largest logit, and the complement of that of the smallest above minus infinity.
};

// Of one chunk: its best draw, and its softmax.
struct alignas(16) Chunk {
    u64 best;
    float maximum, sum;
};

// Words are of 64 bits: header 8, then for C chunks 4 C, BUCKETS, LIST and 16 C, each part a whole number of sectors.
struct Scratch {
    Header *header;
    Chunk *chunks;    // Or:
    float *largest;   // of groups, CHUNK_GROUPS a chunk.
    u64 *amounts;     // BUCKETS masses or numbers.
    u64 *list;
    u32 *bitmap;      // Ids that are kept.

    __device__ __forceinline__ Scratch(u64 *memory, u32 row, u32 cols) {
        u64 padded = (chunks_of(cols) + 3) / 4 * 4;
        memory += row * (8 + 4 * padded + BUCKETS + LIST + 16 * padded);
        header = reinterpret_cast<Header *>(memory);
        chunks = reinterpret_cast<Chunk *>(memory + 8);
        largest = reinterpret_cast<float *>(memory + 8);
        amounts = memory + 8 + 4 * padded;
        list = amounts + BUCKETS;
        bitmap = reinterpret_cast<u32 *>(list + LIST);
    }
};

// ---- the whole vocabulary -----------------------------------------------------------------------------------------

// The draw from a chunk. By a full warp.
__device__ __forceinline__ Chunk chunk_drawn(const Row &row, u32 chunk, float scale, bool greedy, const Stream &stream) {
    u32 lane = threadIdx.x % WARP;
    float4 s[CHUNK_QUADS];
    row.load(chunk * (CHUNK / 4), s);
#pragma unroll
    for (int j = 0; j < CHUNK_QUADS; j++) s[j] = scaled(s[j], scale);
    Part part = part_of_chunk<false>(s);
    Drawn drawn = {-infinity(), FAULTY, 0};
    float floor = __fadd_rn(part.maximum, NOISE_SMALLEST);
#pragma unroll
    for (int j = 0; j < CHUNK_QUADS; j++) {
        u32 quad = chunk * (CHUNK / 4) + j * WARP + lane;
        float4 noise = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (!greedy) {
            if (!(__fadd_rn(largest(s[j]), NOISE_LARGEST) >= fmaxf(floor, drawn.value))) continue;
            noise = stream.noise_of_block(quad);
        }
        drawn.take(__fadd_rn(s[j].x, noise.x), 4 * quad);
        drawn.take(__fadd_rn(s[j].y, noise.y), 4 * quad + 1);
        drawn.take(__fadd_rn(s[j].z, noise.z), 4 * quad + 2);
        drawn.take(__fadd_rn(s[j].w, noise.w), 4 * quad + 3);
    }
    return Chunk{warp_largest(drawn.key()), part.maximum, part.sum};
}

// What all chunks of a row make: merge_parts of softmax.cuh, and the best of draws. By a full warp.
__device__ __forceinline__ Part merge_chunks(const Chunk *chunks, u32 count, u64 &best) {
    constexpr u32 HELD = 8;
    u32 lane = threadIdx.x % WARP;
    Chunk none = {0, -infinity(), 0.0f}, held[HELD];
    float maximum = -infinity();
    best = 0;
    for (u32 base = 0; base < count; base += HELD * WARP) {
#pragma unroll
        for (u32 i = 0; i < HELD; i++) {
            u32 at = base + i * WARP + lane;
            held[i] = none;
            if (at < count) {
                uint4 raw = *reinterpret_cast<const uint4 *>(chunks + at);
                held[i] = Chunk{(u64)raw.y << 32 | raw.x, __uint_as_float(raw.z), __uint_as_float(raw.w)};
            }
        }
#pragma unroll
        for (u32 i = 0; i < HELD; i++) {
            maximum = fmaxf(maximum, held[i].maximum);
            best = max(best, held[i].best);
        }
    }
    maximum = warp_max(maximum);
    best = warp_largest(best);
    float sum = 0.0f;
    auto add = [&](float chunk_maximum, float chunk_sum) {
        // Equal maxima may both be minus infinity.
        float distance = chunk_maximum == maximum ? 0.0f : __fsub_rn(chunk_maximum, maximum);
        sum = __fmaf_rn(chunk_sum, exponential(distance), sum);
    };
    if (count <= HELD * WARP) {
#pragma unroll
        for (u32 i = 0; i < HELD; i++)
            if (i * WARP + lane < count) add(held[i].maximum, held[i].sum);
    } else {
        for (u32 at = lane; at < count; at += WARP) add(chunks[at].maximum, chunks[at].sum);
    }
    return Part{maximum, warp_sum(sum), 0.0f};
}

// ---- groups -------------------------------------------------------------------------------------------------------

// Columns whose largest logit is known: what a warp loads by one access.
constexpr u32 GROUP = 4 * WARP;
constexpr u32 CHUNK_GROUPS = CHUNK / GROUP;

// Largest of each of eight numbers over the warp: lane l gets that of number l / 4.
__device__ __forceinline__ float eight_largest(const float (&x)[CHUNK_GROUPS]) {
    static_assert(CHUNK_GROUPS == 8, "three halvings");
    u32 lane = threadIdx.x % WARP;
    float y[4], z[2], w;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float given = lane & 16 ? x[i] : x[i + 4];
        y[i] = fmaxf(lane & 16 ? x[i + 4] : x[i], __shfl_xor_sync(ALL_LANES, given, 16));
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float given = lane & 8 ? y[i] : y[i + 2];
        z[i] = fmaxf(lane & 8 ? y[i + 2] : y[i], __shfl_xor_sync(ALL_LANES, given, 8));
    }
    float given = lane & 4 ? z[0] : z[1];
    w = fmaxf(lane & 4 ? z[1] : z[0], __shfl_xor_sync(ALL_LANES, given, 4));
    w = fmaxf(w, __shfl_xor_sync(ALL_LANES, w, 2));
    return fmaxf(w, __shfl_xor_sync(ALL_LANES, w, 1));
}

// Largest logit of each group of a chunk, plus infinity where the group holds what no softmax may hold, and the
// smallest above minus infinity of the chunk. By a full warp; groups as in
// eight_largest.
__device__ __forceinline__ float chunk_extent(const Row &row, u32 chunk, float scale, float &smallest) {
    float4 quads[CHUNK_QUADS];
    row.load(chunk * (CHUNK / 4), quads);
    float most[CHUNK_GROUPS], least = infinity();
#pragma unroll
    for (int j = 0; j < CHUNK_QUADS; j++) {
        float logit[4] = {quads[j].x, quads[j].y, quads[j].z, quads[j].w};
        bool broken = false;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            broken |= !(__fmul_rn(logit[i], scale) <= FINITE);
            if (logit[i] > -infinity()) least = fminf(least, logit[i]);
        }
        most[j] = broken ? infinity() : largest(quads[j]);
    }
    smallest = -warp_max(-least);
    return eight_largest(most);
}
