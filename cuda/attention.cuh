// What the attention kernels share: which query sees which slots, tiles in shared memory, and the two matrix products
// that attention is made of, on tensor cores.
//
// Cache of one layer: keys and values, each [blocks][kv_heads][64][padded], padded = head_dim rounded up to 8 (the
// padding stays 0). Blocks lie outside, so that clearing the first blocks is one run of bytes; the 64 keys of one
// head are one run of bytes too, and every key is 16-byte aligned. Gradients have the same layout, in f32.
//
// Query rows. The query heads of one key-value head read the same keys, so a query row is (entry, member):
// row = entry * group + member, group = heads / kv_heads, query head = kv_head * group + member. Entries are the
// positions of the segment sorted by (family, row, position): attention_plan.cuh. A tile is a run of query rows.
//
// Shared memory. A tile row holds `stride` chunks of 16 bytes, a multiple of 8; chunk c of row r lies at c ^ (r % 8).
// The eight rows of a matrix that ldmatrix reads, and the words that the tf32 products read one by one, then lie in
// different banks.
#pragma once
#include "tensor_core.cuh"

#define KERNEL_OF(S) extern "C" __global__ void __launch_bounds__(S::THREADS, S::BLOCKS)

constexpr u32 BLOCK_KEYS = 64;           // keys reduced together, anchored at absolute position 0
constexpr u32 NEVER = 0xffffffffu;

// One position of the segment (src/cpu/attention/plan.rs has the same numbers).
struct __align__(16) Entry {
    u32 place;         // in the packed segment
    u32 row;
    u32 position;      // absolute
    u32 prefix_len;
    u32 prefix_block;  // block of slots that holds the prefix's position 0
    int own_block;     // block of slots of the row's own part of position block b, less b
    u32 first;         // the row's first position in this segment
    u32 slot;          // where partial results of this entry start (decode), or NEVER
};

__device__ __forceinline__ float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---- sizes --------------------------------------------------------------------------------------------------------

// What a kernel is compiled for: EXACT ones have head_dim = DIM; the others take every head_dim up to DIM. A block of
// threads has WARPS warps of 16 rows each and works on OUT columns of the result; a multiprocessor is to have registers
// for BLOCKS of them.
template <typename ACT, int DIM_, int OUT_, int WARPS_, int BLOCKS_, bool EXACT_>
struct Shape {
    using act = ACT;
    static constexpr int DIM = DIM_, OUT = OUT_, WARPS = WARPS_;
    static constexpr bool EXACT = EXACT_;
    static constexpr int BLOCKS = BLOCKS_;
    static constexpr int ROWS = 16 * WARPS, THREADS = WARP * WARPS;
    static constexpr int PER_CHUNK = 16 / sizeof(act);
    static constexpr int MAX_STEPS = DIM * sizeof(act) / 32;
    static constexpr int OUT_CHUNKS = OUT * sizeof(act) / 16;
};

// A step is 32 bytes of the head dimension: the summed index of one product (16 bf16 or 8 f32).
template <class S>
struct Dims {
    u32 head_dim_;
    __device__ __forceinline__ u32 head_dim() const { return S::EXACT ? S::DIM : head_dim_; }
    __device__ __forceinline__ u32 padded() const { return (head_dim() + 7) / 8 * 8; }
    __device__ __forceinline__ u32 steps() const { return (head_dim() * sizeof(typename S::act) + 31) / 32; }
    __device__ __forceinline__ u32 stride() const { return (2 * steps() + 7) / 8 * 8; }
    // Whether rows of head_dim elements of the packed tensors are 16-byte aligned.
    __device__ __forceinline__ bool aligned() const { return head_dim() % S::PER_CHUNK == 0; }
};

// The heads that there are kernels for, EXACT or up to a width, and how their kernels are shaped; src/ops/attention/gpu.rs
// (Shape) has the same numbers. OUT is that of all but single steps, which compute all columns in blocks of 4 warps.
//
//      name        act    width exact  OUT   forward  step    dq                   dkv
//                                            W  B     B       tiles W  B           queries stages W  B
#define HEAD_WIDTHS(X)                                                                                                 \
    X(d64_bf16,   bf16,  64,   true,  64,   4, 3,    4,      3,    4, 3,          64,     2,     4, 2)                 \
    X(d128_bf16,  bf16,  128,  true,  128,  4, 2,    4,      3,    4, 2,          32,     2,     4, 2)                 \
    X(to128_bf16, bf16,  128,  false, 128,  4, 2,    3,      3,    4, 2,          32,     2,     4, 2)                 \
    X(to256_bf16, bf16,  256,  false, 128,  4, 2,    2,      2,    2, 4,          32,     1,     4, 2)                 \
    X(d64_f32,    float, 64,   true,  64,   4, 3,    4,      3,    4, 2,          32,     2,     4, 2)                 \
    X(d128_f32,   float, 128,  true,  128,  4, 2,    3,      2,    2, 4,          16,     2,     4, 2)                 \
    X(to128_f32,  float, 128,  false, 128,  4, 2,    3,      2,    2, 4,          16,     2,     4, 2)                 \
    X(to256_f32,  float, 256,  false, 64,   1, 8,    2,      1,    1, 8,          16,     1,     2, 4)

// ---- tiles in shared memory ---------------------------------------------------------------------------------------

__device__ __forceinline__ u32 chunk_address(u32 tile, u32 row, u32 chunk, u32 stride) {
    return tile + (row * stride + (chunk ^ (row % 8))) * 16;
}

// The chunks of one tile row by even constants: chunk c + half, half 0 or 1. Chunks 8 apart are 128 bytes apart, so
// that few addresses are kept in registers.
struct RowChunks {
    u32 start, swizzle, half;
    __device__ __forceinline__ RowChunks(u32 tile, u32 row, u32 stride, u32 half)
        : start(tile + row * stride * 16), swizzle(row % 8), half(half) {}
    __device__ __forceinline__ u32 at(u32 chunk) const {
        return start + chunk / 8 * 128 + ((chunk % 8 + half) ^ swizzle) * 16;
    }
};

// Where the 64 keys of one position block of one head lie: lanes below `cut` in the prefix, lanes cut..most in the
// row's own slots; the others are nobody's. Indices count keys (rows of `padded` elements).
struct Source {
    u64 prefix, own;
    u32 cut, most;
};

__device__ __forceinline__ Source source(u32 prefix_len, u32 prefix_block, int own_block, u32 block, u32 most,
                                         u32 kv_heads, u32 head) {
    u32 start = block * BLOCK_KEYS;
    Source s;
    s.cut = prefix_len > start ? min(prefix_len - start, BLOCK_KEYS) : 0;
    s.most = most;
    s.prefix = ((u64)(prefix_block + block) * kv_heads + head) * BLOCK_KEYS;
    s.own = ((u64)(u32)(own_block + (int)block) * kv_heads + head) * BLOCK_KEYS;
    return s;
}

// How many lanes take a row of `chunks` chunks: a power of two, so that the 8 lanes of an access to shared memory never
// belong to two rows, whose swizzles would let them meet.
__device__ __forceinline__ u32 lanes_of_row(u32 chunks) {
    return chunks > 16 ? 32 : chunks > 8 ? 16 : chunks > 4 ? 8 : chunks > 2 ? 4 : 2;
}

// Starts copying columns `first_chunk ..` of KEYS keys (or values) into a tile with rows of `stride` chunks, `chunks`
// of them filled; what the source does not have becomes 0.
template <class S, u32 KEYS = BLOCK_KEYS>
__device__ __forceinline__ void load_keys(u32 tile, const typename S::act *cache, const Source &from, u32 padded,
                                          u32 first_chunk, u32 chunks, u32 stride) {
    using act = typename S::act;
    u32 available = padded / S::PER_CHUNK;
    auto copy = [&](u32 lane, u32 chunk) {
        bool wanted = lane < from.most && (S::EXACT || first_chunk + chunk < available);
        u64 key = (lane < from.cut ? from.prefix : from.own) + lane;
        const act *at = cache + key * padded + (first_chunk + chunk) * S::PER_CHUNK;
        cp_async_16(chunk_address(tile, lane, chunk, stride), wanted ? at : cache, wanted);
    };
    if constexpr (S::EXACT) {
        // `chunks` is a constant and a power of two here. Few copies at a time: their addresses fill registers.
#pragma unroll 4
        for (u32 i = 0; i < KEYS * chunks; i += S::THREADS) {
            copy((i + threadIdx.x) / chunks, (i + threadIdx.x) % chunks);
        }
    } else {
        u32 width = lanes_of_row(chunks);
        for (u32 lane = threadIdx.x / width; lane < KEYS; lane += S::THREADS / width) {
            for (u32 chunk = threadIdx.x % width; chunk < chunks; chunk += width) copy(lane, chunk);
        }
    }
}

// Copies rows of packed activations (`head_dim` elements each, row r at `at[r] * head_dim`, absent where at[r] is
// NEVER) into a tile of `rows` rows. Aligned rows arrive by cp.async, others at once; either way a barrier is due.
template <class S>
__device__ __forceinline__ void load_rows(u32 tile, void *tile_pointer, const typename S::act *data, const u32 *at,
                                          u32 rows, const Dims<S> &dims) {
    using act = typename S::act;
    u32 chunks = 2 * dims.steps(), stride = dims.stride(), head_dim = dims.head_dim();
    if (dims.aligned()) {
        u32 available = head_dim / S::PER_CHUNK;
        auto copy = [&](u32 row, u32 chunk) {
            bool wanted = at[row] != NEVER && (S::EXACT || chunk < available);
            const act *from = data + (u64)at[row] * head_dim + chunk * S::PER_CHUNK;
            cp_async_16(chunk_address(tile, row, chunk, stride), wanted ? from : data, wanted);
        };
        if constexpr (S::EXACT) {
            for (u32 i = threadIdx.x; i < rows * chunks; i += S::THREADS) copy(i / chunks, i % chunks);
        } else {
            u32 width = lanes_of_row(chunks);
#pragma unroll 1
            for (u32 row = threadIdx.x / width; row < rows; row += S::THREADS / width) {
#pragma unroll 1
                for (u32 chunk = threadIdx.x % width; chunk < chunks; chunk += width) copy(row, chunk);
            }
        }
    } else {
        for (u32 i = threadIdx.x; i < rows * chunks * S::PER_CHUNK; i += S::THREADS) {
            u32 row = i / (chunks * S::PER_CHUNK), column = i % (chunks * S::PER_CHUNK);
            bool wanted = at[row] != NEVER && column < head_dim;
            act value = wanted ? data[(u64)at[row] * head_dim + column] : act(0.0f);
            u32 offset = chunk_address(0, row, column / S::PER_CHUNK, stride);
            ((act *)((char *)tile_pointer + offset))[column % S::PER_CHUNK] = value;
        }
    }
}

// ---- products -----------------------------------------------------------------------------------------------------

// The left operand of one product: 16 rows, one step.
template <typename act>
struct Operand;

template <>
struct Operand<bf16> {
    u32 a[4];
    __device__ __forceinline__ void load(u32 address) { ldmatrix_x4(a, address); }
    // From the sums of two tiles of 8 columns.
    __device__ __forceinline__ void take(const float (&left)[4], const float (&right)[4]) {
        a[0] = pack_bf16(left[0], left[1]);
        a[1] = pack_bf16(left[2], left[3]);
        a[2] = pack_bf16(right[0], right[1]);
        a[3] = pack_bf16(right[2], right[3]);
    }
    // What `take` rounded away.
    __device__ __forceinline__ void take_rest(const Operand &taken, const float (&left)[4], const float (&right)[4]) {
        auto rest = [](u32 pair, float low, float high) {
            return pack_bf16(low - __uint_as_float(pair << 16), high - __uint_as_float(pair & 0xffff0000u));
        };
        a[0] = rest(taken.a[0], left[0], left[1]);
        a[1] = rest(taken.a[1], left[2], left[3]);
        a[2] = rest(taken.a[2], right[0], right[1]);
        a[3] = rest(taken.a[3], right[2], right[3]);
    }
};

template <>
struct Operand<float> {
    u32 high[4], low[4];
    __device__ __forceinline__ void load(u32 address) {
        u32 a[4];
        ldmatrix_x4(a, address);
#pragma unroll
        for (int i = 0; i < 4; i++) split_tf32(__uint_as_float(a[i]), high[i], low[i]);
    }
    // From the sums of one tile of 8 columns: the product's summed index t stands for column 2t, t + 4 for 2t + 1.
    __device__ __forceinline__ void take(const float (&sums)[4]) {
        split_tf32(sums[0], high[0], low[0]);
        split_tf32(sums[2], high[1], low[1]);
        split_tf32(sums[1], high[2], low[2]);
        split_tf32(sums[3], high[3], low[3]);
    }
};

__device__ __forceinline__ void multiply(float (&sums)[4], const Operand<bf16> &a, u32 b0, u32 b1) {
    mma_bf16(sums, a.a, b0, b1);
}

__device__ __forceinline__ void multiply(float (&sums)[4], const Operand<float> &a, u32 b0, u32 b1) {
    u32 high0, low0, high1, low1;
    split_tf32(__uint_as_float(b0), high0, low0);
    split_tf32(__uint_as_float(b1), high1, low1);
    // The step's own sum first: a tensor core rounds (or cuts off) at the size of what it adds to, 3 x 8 times a step.
    // Added to a long sum directly, a score of 64 columns, or a gradient of 3000 queries, would lose its last 3 bits.
    float step[4] = {};
    mma_3xtf32(step, a.high, a.low, high0, low0, high1, low1);
#pragma unroll
    for (int i = 0; i < 4; i++) sums[i] = __fadd_rn(sums[i], step[i]);
}

// sums[16, 8 TILES] += a[16 rows from a_row, :] b[8 TILES rows, :]^T over `steps` steps of the head dimension. Only the
// first `count` rows of b are wanted: in f32, whose products cost most, fours of tiles after them are left out. Fours,
// because products between two branches are all that a warp has under way at a time.
template <class S, int TILES>
__device__ __forceinline__ void products(float (&sums)[TILES][4], u32 a_tile, u32 a_row, u32 b_tile,
                                         u32 count, const Dims<S> &dims) {
    u32 lane = threadIdx.x % WARP, stride = dims.stride(), steps = dims.steps();
    RowChunks a_chunks(a_tile, a_row + lane % 16, stride, lane / 16);
    RowChunks b_chunks(b_tile, lane % 8 + lane / 16 * 8, stride, lane / 8 % 2);
    constexpr int UNROLL = S::EXACT ? (sizeof(typename S::act) == 2 ? S::MAX_STEPS : 1) : 1;
#pragma unroll UNROLL
    for (u32 step = 0; step < (S::EXACT ? S::MAX_STEPS : steps); step++) {
        Operand<typename S::act> a;
        a.load(a_chunks.at(2 * step));
#pragma unroll
        for (int n = 0; n < TILES; n += 2) {
            if (sizeof(typename S::act) == 4 && n % 4 == 0 && 8 * n >= count) break;
            u32 b[4];
            ldmatrix_x4(b, b_chunks.at(2 * step) + 8 * n * stride * 16);
            multiply(sums[n], a, b[0], b[1]);
            multiply(sums[n + 1], a, b[2], b[3]);
        }
    }
}

// The left operands of sums over keys, from a warp's scores of 8 KEYS keys.
template <typename act, int KEYS>
struct ScoreOperands {
    const float (&w)[KEYS][4];
    static constexpr int STEPS = sizeof(act) == 2 ? KEYS / 2 : KEYS;
    __device__ __forceinline__ Operand<act> take(int step) const {
        Operand<act> a;
        if constexpr (sizeof(act) == 2) a.take(w[2 * step], w[2 * step + 1]);
        else a.take(w[step]);
        return a;
    }
    __device__ __forceinline__ Operand<act> rest(int step, const Operand<act> &taken) const {
        Operand<act> a;
        a.take_rest(taken, w[2 * step], w[2 * step + 1]);
        return a;
    }
};

// sums[16, 8 TILES] += w[16, keys] b[keys, columns 8 first .. 8 (first + TILES)], over ascending keys; `operands` are
// those of w, b_tile holds one row a key, `chunks` chunks of it filled. first is even. w is 0 beyond the first `count`
// keys, which f32 leaves out. In bf16, w is rounded; where EXACTLY is set, what was rounded away is multiplied too.
template <class S, int TILES, bool EXACTLY = false, class Operands>
__device__ __forceinline__ void weighted(float (&sums)[TILES][4], const Operands &operands, u32 b_tile, u32 stride,
                                         u32 first, u32 chunks, u32 count) {
    using act = typename S::act;
    u32 lane = threadIdx.x % WARP;
    if constexpr (sizeof(act) == 2) {
        RowChunks b_chunks(b_tile, lane % 16, stride, lane / 16);
#pragma unroll
        for (int k = 0; k < Operands::STEPS; k++) {
            Operand<bf16> a = operands.take(k), rest;
            if constexpr (EXACTLY) rest = operands.rest(k, a);
#pragma unroll
            for (int n = 0; n < TILES; n += 2) {
                if (S::EXACT || first + n < chunks) {
                    u32 b[4];
                    ldmatrix_x4_trans(b, b_chunks.at(first + n) + 16 * k * stride * 16);
                    if constexpr (EXACTLY) {
                        multiply(sums[n], rest, b[0], b[1]);
                        multiply(sums[n + 1], rest, b[2], b[3]);
                    }
                    multiply(sums[n], a, b[0], b[1]);
                    multiply(sums[n + 1], a, b[2], b[3]);
                }
            }
        }
    } else {
        u32 g = lane / 4, t = lane % 4;
        RowChunks even(b_tile + g % 4 * 4, 2 * t, stride, g / 4), odd(b_tile + g % 4 * 4, 2 * t + 1, stride, g / 4);
#pragma unroll
        for (int k = 0; k < Operands::STEPS; k++) {
            if (8 * k >= count) break;
            Operand<float> a = operands.take(k);
#pragma unroll
            for (int n = 0; n < TILES; n++) {
                if (S::EXACT || 2 * (first + n) < chunks) {
                    u32 row = 8 * k * stride * 16, chunk = 2 * (first + n);
                    multiply(sums[n], a, load_shared(even.at(chunk) + row), load_shared(odd.at(chunk) + row));
                }
            }
        }
    }
}

// Writes a warp's sums [16, 8 TILES] to the packed rows `at[first ..]`, columns from first_chunk on. Rows of bf16 go
// through `staging`, a tile whose rows first .. first + 16 are this warp's to overwrite, so that whole sectors are
// written; f32 fills them as it is.
template <class S, int TILES>
__device__ __forceinline__ void write_rows(typename S::act *out, const float (&sums)[TILES][4], const u32 *at, u32 first,
                                           char *staging, u32 first_chunk, u32 chunks, const Dims<S> &dims) {
    using act = typename S::act;
    constexpr bool NARROW = sizeof(act) == 2;
    u32 lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4, head_dim = dims.head_dim();
    bool staged = NARROW && dims.aligned();
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        u32 r = first + g + 8 * half, row = at[r];
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            float x = sums[n][2 * half], y = sums[n][2 * half + 1];
            u32 column = first_chunk * S::PER_CHUNK + 8 * n + 2 * t;
            act *to = out + (u64)row * head_dim + column;
            if (staged) {
                u32 offset = chunk_address(0, r, n, dims.stride());
                if (S::EXACT || n < chunks) ((u32 *)(staging + offset))[t] = pack_bf16(x, y);
            } else if (row == NEVER) {
                continue;
            } else if (!NARROW && (S::EXACT || head_dim % 2 == 0)) {
                if (S::EXACT || column < head_dim) *(float2 *)to = make_float2(x, y);
            } else {
                if (column < head_dim) store(to, x);
                if (column + 1 < head_dim) store(to + 1, y);
            }
        }
    }
    if (!staged) return;
    __syncwarp();
    // At most 16 chunks of bf16.
    u32 available = S::EXACT ? S::OUT_CHUNKS : min(head_dim / S::PER_CHUNK - first_chunk, chunks);
    u32 width = S::EXACT ? S::OUT_CHUNKS : lanes_of_row(available);
    for (u32 i = lane; i < 16 * width; i += WARP) {
        u32 r = first + i / width, chunk = i % width, row = at[r];
        if (row == NEVER || (!S::EXACT && chunk >= available)) continue;
        uint4 value = *(const uint4 *)(staging + chunk_address(0, r, chunk, dims.stride()));
        *(uint4 *)(out + (u64)row * head_dim + (first_chunk + chunk) * S::PER_CHUNK) = value;
    }
}
