// Matrix products on tensor cores: C[M,N] = A[M,K] B[K,N], every operand row-major with a stride of its own.
//
// # The order contract
// The order in which k is summed depends on K alone: not on M or N, the place in C, the tile, or the layouts.
//
//   total = 0
//   for each chunk of 128 k, rising          the last one may be shorter
//       part = 0
//       for each step of the chunk, rising   16 k in bf16, 8 k in f32
//           bf16   part = mma(a, b, part)    f32 inside the tensor core
//           f32    part = part + (three mma from 0, see below), rounded to nearest
//       total = total + part                 f32, rounded to nearest
//
// So a row alone (decode) and the same row among thousands (prefill), a window of outputs and the whole have the same
// bits. Chunks give two things more. Tensor cores truncate as they accumulate; at most 8 (f32: 3) of those steps follow
// each other before what they give is added with proper rounding. (48 of them put f32 products of 768 k 9e-7 from f64 in
// norm on an H200.) And warps may work on different chunks at once, which is where a product of few rows finds its
// parallelism, as long as parts are added in rising order.
// k beyond K count as zeros, which change no bit.
//
// # Operands
//   f32      A and B are f32. x = big + small, both tf32 (11 bits each), and a product is small*big + big*small +
//            big*big, three mma in this order: f32's accuracy with all flops on tensor cores. An infinity gives NaN.
//   rounded  f32 operands are rounded to bf16 (nearest even) on their way from shared memory to the tensor core.
//   bf16     A and B are bf16.
//
// # How a block works
//   for each depth of 16 or 32 k:            cp.async, STAGES deep, 16 bytes a thread
//       panels of A and B -> shared memory   zeros beyond the edges (source size of cp.async)
//       shared memory -> fragments           ldmatrix; .trans where k is not the contiguous axis
//       mma over the warp's WARP_M x 32 outputs
//   total -> shared memory -> bias, activation, += -> C in 16-byte rows
//
// A panel is a matrix of 16-byte cells, `LINES x PITCH`; where k is contiguous a line is a row of A (a column of B),
// else a line is one k. Cell c of line l lies in slot c ^ swizzle(l), so that every access of a warp touches all banks
// once: 8 lines of one cell (ldmatrix); 4 lines of two adjacent cells (pairs of f32 that are rounded to bf16); and
// where lines of f32 are k, two adjacent cells of 4 lines that are consecutive (tf32) or every other one (pairs).
//
// With KGROUPS > 1 each group of the block's warps has chunks of its own (g, g + KGROUPS, ...) with its own pipeline;
// after each round group 0 adds the parts in rising order. Groups are single warps, so they meet at __syncwarp.
//
// Operands whose rows are no multiple of 16 bytes (odd widths, windows at odd columns) are copied element by element:
// right for every shape, fast for multiples of 8.
#pragma once
#include "panel.cuh"

// ---- what becomes of the sums -------------------------------------------------------------------------------------

// GELU in its tanh form, to the bit as cuda/gelu.cu computes it: x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)).
__device__ __forceinline__ float gelu_tanh(float x) {
    return x * sigmoid(1.595769121605731f * x * fmaf(0.044715f * x, x, 1.0f));
}

__device__ __forceinline__ void load_four(float (&v)[4], const float *from) {
    float4 four = *reinterpret_cast<const float4 *>(from);
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
}
__device__ __forceinline__ void load_four(float (&v)[4], const bf16 *from) {
    uint2 four = *reinterpret_cast<const uint2 *>(from);
    v[0] = __uint_as_float(four.x << 16), v[1] = __uint_as_float(four.x & 0xffff0000u);
    v[2] = __uint_as_float(four.y << 16), v[3] = __uint_as_float(four.y & 0xffff0000u);
}
__device__ __forceinline__ void store_four(float *to, const float (&v)[4]) {
    *reinterpret_cast<float4 *>(to) = make_float4(v[0], v[1], v[2], v[3]);
}
__device__ __forceinline__ void store_four(bf16 *to, const float (&v)[4]) {
    *reinterpret_cast<uint2 *>(to) = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
}

// c = sums + bias, or c += sums + bias; then activated = gelu(c), of c as it was stored. Bias and activated may be
// absent. c and activated are `rows x cols` with one stride, of f32 or (`half`) bf16.
struct Output {
    void *c, *activated;
    const float *bias;
    u32 stride, rows, cols;
    bool add, half;

    // Whether four columns can be read and written at once.
    __device__ __forceinline__ bool aligned() const {
        u64 size = half ? 2 : 4;
        return (((u64)c | (u64)activated | stride * size) & (4 * size - 1)) == 0;
    }

    __device__ __forceinline__ void load_bias(float (&v)[4], u32 col) const {
#pragma unroll
        for (u32 i = 0; i < 4; i++) v[i] = bias && col + i < cols ? bias[col + i] : 0.0f;
    }

    // Four columns of a row, as far as they exist.
    __device__ __forceinline__ void write(u32 row, u32 col, const float (&sums)[4], const float (&bias)[4],
                                          bool aligned) const {
        if (row >= rows || col >= cols) return;
        u64 at = (u64)row * stride + col;
        u32 count = min(cols - col, 4);
        bool whole = aligned && count == 4;
        float v[4], old[4] = {};
        if (add) get(old, at, whole, count);
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = old[i] + (sums[i] + bias[i]);
        put(c, at, v, whole, count);
        if (!activated) return;
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = gelu_tanh(half ? __bfloat162float(__float2bfloat16_rn(v[i])) : v[i]);
        put(activated, at, v, whole, count);
    }

    __device__ __forceinline__ void get(float (&v)[4], u64 at, bool whole, u32 count) const {
        if (half) get_as((const bf16 *)c + at, v, whole, count);
        else get_as((const float *)c + at, v, whole, count);
    }

    __device__ __forceinline__ void put(void *to, u64 at, const float (&v)[4], bool whole, u32 count) const {
        if (half) put_as((bf16 *)to + at, v, whole, count);
        else put_as((float *)to + at, v, whole, count);
    }

    template <typename T>
    static __device__ __forceinline__ void get_as(const T *from, float (&v)[4], bool whole, u32 count) {
        if (whole) {
            load_four(v, from);
        } else {
#pragma unroll
            for (u32 i = 0; i < 4; i++) v[i] = i < count ? load(from + i) : 0.0f;
        }
    }

    template <typename T>
    static __device__ __forceinline__ void put_as(T *to, const float (&v)[4], bool whole, u32 count) {
        if (whole) {
            store_four(to, v);
        } else {
#pragma unroll
            for (u32 i = 0; i < 4; i++)
                if (i < count) store(to + i, v[i]);
        }
    }
};

// A warp's totals of 16 SLABS rows and 8 EIGHTS columns, as fragments, through `out`, shared memory of its own, to rows of
// C: 16 bytes a lane where C allows.
template <u32 SLABS, u32 EIGHTS>
struct Totals {
    static constexpr u32 ROWS = SLABS * 16, COLUMNS = EIGHTS * 8;
    static constexpr u32 OUT_ROWS = ROWS < 32 ? ROWS : 32, OUT_PITCH = COLUMNS + 8, OUT = OUT_ROWS * OUT_PITCH * 4;

    static __device__ __forceinline__ void write(const float (&total)[SLABS][EIGHTS][4], float *out, const Output &to,
                                                 u32 row, u32 col, u32 lane) {
        constexpr u32 LANES = COLUMNS / 4;
        bool aligned = to.aligned();
        float bias[4];
        col += lane % LANES * 4;
        to.load_bias(bias, col);
#pragma unroll 1
        for (u32 first = 0; first < ROWS; first += OUT_ROWS) {
            __syncwarp();
#pragma unroll
            for (u32 i = 0; i < ROWS / 8; i++) {
                // Registers have no index at run time: every pass stands here, and takes its own rows.
                if (i * 8 / OUT_ROWS * OUT_ROWS != first) continue;
#pragma unroll
                for (u32 j = 0; j < EIGHTS; j++) {
                    const float(&four)[4] = total[i / 2][j];
                    float *pair = out + (i * 8 % OUT_ROWS + lane / 4) * OUT_PITCH + j * 8 + lane % 4 * 2;
                    *reinterpret_cast<float2 *>(pair) = make_float2(four[i % 2 * 2], four[i % 2 * 2 + 1]);
                }
            }
            __syncwarp();
#pragma unroll 1
            for (u32 r = lane / LANES; r < OUT_ROWS; r += WARP / LANES) {
                float sums[4];
                load_four(sums, out + r * OUT_PITCH + lane % LANES * 4);
                to.write(row + first + r, col, sums, bias, aligned);
            }
        }
    }
};

// ---- the product --------------------------------------------------------------------------------------------------

// A block's outputs, the grid of warps over them, how many such grids share the chunks of k among them, the bytes of k in
// a line of a stage, and how many stages are in flight.
template <u32 M_, u32 N_, u32 WARPS_M_, u32 WARPS_N_, u32 KGROUPS_, u32 LINE_, u32 STAGES_>
struct Tile {
    static constexpr u32 M = M_, N = N_, WARPS_M = WARPS_M_, WARPS_N = WARPS_N_, KGROUPS = KGROUPS_;
    static constexpr u32 LINE = LINE_, STAGES = STAGES_;
    static constexpr u32 GROUP_WARPS = WARPS_M * WARPS_N, THREADS = GROUP_WARPS * KGROUPS * WARP;
    static_assert(N / WARPS_N == 16 || N / WARPS_N == 32, "a warp owns 16 or 32 columns");
    static_assert(KGROUPS == 1 || GROUP_WARPS == 1, "groups meet at __syncwarp");
};

// Length of a chunk of k: part of the order contract.
constexpr u32 K_CHUNK = 128;
// Blocks that run together read few panels twice: tiles are visited in strips of this many rows of tiles.
constexpr u32 STRIP = 16;

// The first output of this block's tile.
struct Place {
    u32 row, col;
};
template <u32 M, u32 N>
__device__ __forceinline__ Place place_of_block(u32 m, u32 n) {
    u32 tiles_m = (m + M - 1) / M, tiles_n = (n + N - 1) / N;
    u32 strip = blockIdx.x / (STRIP * tiles_n), inside = blockIdx.x % (STRIP * tiles_n);
    u32 height = min(STRIP, tiles_m - strip * STRIP);
    return {(strip * STRIP + inside % height) * M, inside / height * N};
}

template <typename TA, Axis AXIS_A, typename TB, Axis AXIS_B, Arithmetic ARITHMETIC, typename TILE>
struct Product {
    // k of a stage: the wider operand's line is full.
    static constexpr u32 WIDER = sizeof(TA) > sizeof(TB) ? sizeof(TA) : sizeof(TB), DEPTH = TILE::LINE / WIDER;
    static constexpr u32 STEP = ARITHMETIC == BF16 ? 16 : 8, STEPS = DEPTH / STEP;
    static constexpr u32 WARP_M = TILE::M / TILE::WARPS_M, SLABS = WARP_M / 16, PER_CHUNK = K_CHUNK / DEPTH;
    static constexpr u32 WARP_N = TILE::N / TILE::WARPS_N, COLUMNS = WARP_N / 16, EIGHTS = WARP_N / 8;
    static constexpr u32 GROUP_THREADS = TILE::GROUP_WARPS * WARP;
    using PanelA = Panel<TA, AXIS_A, TILE::M, DEPTH>;
    using PanelB = Panel<TB, AXIS_B, TILE::N, DEPTH>;

    // Shared memory, as much as the launch gives (product.rs): the pipelines of the groups, then what the groups exchange.
    // Totals reuse the pipelines' room.
    static constexpr u32 STAGES = TILE::STAGES, STAGE = PanelA::BYTES + PanelB::BYTES;
    static constexpr u32 PART = TILE::M * TILE::N * 4, EXCHANGE = (TILE::KGROUPS - 1) * PART;
    static constexpr u32 PIPELINES = TILE::KGROUPS * STAGES * STAGE;
    using Out = Totals<SLABS, EIGHTS>;
    static_assert(STAGES >= 2 && PIPELINES >= TILE::GROUP_WARPS * Out::OUT, "two stages, and room for totals");

    typedef float Sums[SLABS][EIGHTS][4];

    // The fragments of one step. Words 2j and 2j + 1 of B belong to its j-th eight columns.
    struct Fragments {
        u32 a[SLABS][4], b[COLUMNS * 4];

        __device__ __forceinline__ void load(const unsigned char *stage, u32 start_a, u32 start_b, u32 k) {
#pragma unroll
            for (u32 j = 0; j < COLUMNS; j++) {
                u32(&four)[4] = *reinterpret_cast<u32(*)[4]>(b + 4 * j);
                PanelB::template load<ARITHMETIC, SIDE_B>(four, stage + PanelA::BYTES, start_b, j, k);
            }
#pragma unroll
            for (u32 i = 0; i < SLABS; i++) PanelA::template load<ARITHMETIC, SIDE_A>(a[i], stage, start_a, i, k);
        }
    };

    // part += the panels of one stage. A lane reads them from start_a and start_b on. While a step of bf16 is multiplied,
    // the next one's fragments are on their way to registers; f32 has none to spare.
    static __device__ __forceinline__ void multiply(Sums &part, const unsigned char *stage, u32 start_a, u32 start_b) {
        constexpr u32 AHEAD = ARITHMETIC == BF16 ? 1 : 0, UNROLLED = ARITHMETIC == BF16 ? STEPS : 1;
        Fragments now[1 + AHEAD];
        if (AHEAD) now[0].load(stage, start_a, start_b, 0);
#pragma unroll UNROLLED
        for (u32 s = 0; s < STEPS; s++) {
            if (s + AHEAD < STEPS) now[(s + AHEAD) % (1 + AHEAD)].load(stage, start_a, start_b, (s + AHEAD) * STEP);
            multiply(part, now[s % (1 + AHEAD)]);
        }
    }

    static __device__ __forceinline__ void multiply(Sums &part, Fragments &now) {
        if constexpr (ARITHMETIC == BF16) {
#pragma unroll
            for (u32 i = 0; i < SLABS; i++)
#pragma unroll
                for (u32 j = 0; j < EIGHTS; j++) mma_bf16(part[i][j], now.a[i], now.b[2 * j], now.b[2 * j + 1]);
        } else {
            u32 b_small[COLUMNS * 4];
            split(now.b, b_small);
#pragma unroll
            for (u32 i = 0; i < SLABS; i++) {
                u32 a_small[4];
                split(now.a[i], a_small);
                float step[EIGHTS][4] = {};
#pragma unroll
                for (u32 j = 0; j < EIGHTS; j++) mma_tf32(step[j], a_small, now.b[2 * j], now.b[2 * j + 1]);
#pragma unroll
                for (u32 j = 0; j < EIGHTS; j++) mma_tf32(step[j], now.a[i], b_small[2 * j], b_small[2 * j + 1]);
#pragma unroll
                for (u32 j = 0; j < EIGHTS; j++) mma_tf32(step[j], now.a[i], now.b[2 * j], now.b[2 * j + 1]);
#pragma unroll
                for (u32 j = 0; j < EIGHTS * 4; j++) part[i][j / 4][j % 4] += step[j / 4][j % 4];
            }
        }
    }

    // x = big + small, both tf32; `big` holds x before.
    template <u32 COUNT>
    static __device__ __forceinline__ void split(u32 (&big)[COUNT], u32 (&small)[COUNT]) {
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) split_tf32(__uint_as_float(big[i]), big[i], small[i]);
    }

    // Ends a chunk: total += part, where there are groups in the order of their chunks; part = 0.
    static __device__ __forceinline__ void add_part(Sums &total, Sums &part, float *exchange, u32 group, u32 lane) {
        constexpr u32 EACH = SLABS * EIGHTS * 4;
        float *totals = &total[0][0][0], *parts = &part[0][0][0];
        if constexpr (TILE::KGROUPS > 1) {
            if (group > 0) {
#pragma unroll
                for (u32 i = 0; i < EACH; i++) exchange[((group - 1) * EACH + i) * WARP + lane] = parts[i];
            }
            __syncthreads();
        }
        if (group == 0) {
#pragma unroll
            for (u32 i = 0; i < EACH; i++) totals[i] += parts[i];
            for (u32 other = 0; other + 1 < TILE::KGROUPS; other++) {
#pragma unroll
                for (u32 i = 0; i < EACH; i++) totals[i] += exchange[(other * EACH + i) * WARP + lane];
            }
        }
        if constexpr (TILE::KGROUPS > 1) __syncthreads();
#pragma unroll
        for (u32 i = 0; i < EACH; i++) parts[i] = 0.0f;
    }

    // A block's tile of C[M,N]. `half`: C is bf16.
    static __device__ __forceinline__ void run(const TA *a, u32 stride_a, const TB *b, u32 stride_b, u32 m, u32 n,
                                               u32 k, void *c, u32 stride_c, bool add, bool half, const float *bias,
                                               void *activated) {
        extern __shared__ __align__(128) unsigned char room[];
        u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
        u32 group = TILE::KGROUPS > 1 ? warp : 0, member = TILE::KGROUPS > 1 ? lane : threadIdx.x;
        u32 warp_row = TILE::KGROUPS > 1 ? 0 : warp / TILE::WARPS_N * WARP_M;
        u32 warp_col = TILE::KGROUPS > 1 ? 0 : warp % TILE::WARPS_N * WARP_N;

        Place place = place_of_block<TILE::M, TILE::N>(m, n);
        u32 row = place.row, col = place.col;

        Source<TA> from_a(a, stride_a, AXIS_A == K_CONTIGUOUS ? m : k, AXIS_A == K_CONTIGUOUS ? k : m);
        Source<TB> from_b(b, stride_b, AXIS_B == K_CONTIGUOUS ? n : k, AXIS_B == K_CONTIGUOUS ? k : n);
        Fetcher<TA, PanelA, GROUP_THREADS> fetch_a(from_a, row, member);
        Fetcher<TB, PanelB, GROUP_THREADS> fetch_b(from_b, col, member);
        u32 start_a = PanelA::template start<ARITHMETIC, SIDE_A>(warp_row, lane);
        u32 start_b = PanelB::template start<ARITHMETIC, SIDE_B>(warp_col, lane);
        unsigned char *pipeline = room + group * STAGES * STAGE;
        float *exchange = reinterpret_cast<float *>(room + PIPELINES);
        int chunks = (k + K_CHUNK - 1) / K_CHUNK;
        int rounds = (chunks + TILE::KGROUPS - 1) / TILE::KGROUPS;
        int stages = TILE::KGROUPS > 1 ? rounds * PER_CHUNK : (k + DEPTH - 1) / DEPTH;

        Sums part = {}, total = {};
        u32 filled = 0, used = 0;
        for (int at = 1 - (int)STAGES; at < stages; at++) {
            // Stage `at` has landed, and everybody is done with the one before it, whose room is filled next.
            if (at >= 0) {
                cp_async_wait<STAGES - 2>();
                if constexpr (TILE::KGROUPS > 1) __syncwarp();
                else __syncthreads();
            }
            u32 next = at + STAGES - 1;
            if ((int)next < stages) {
                u32 first = next * DEPTH;
                if constexpr (TILE::KGROUPS > 1)
                    first = (next / PER_CHUNK * TILE::KGROUPS + group) * K_CHUNK + next % PER_CHUNK * DEPTH;
                fetch_a.fetch(first, pipeline + filled);
                fetch_b.fetch(first, pipeline + filled + PanelA::BYTES);
                filled = filled == (STAGES - 1) * STAGE ? 0 : filled + STAGE;
            }
            cp_async_commit();
            if (at < 0) continue;
            multiply(part, pipeline + used, start_a, start_b);
            used = used == (STAGES - 1) * STAGE ? 0 : used + STAGE;
            if (at % PER_CHUNK == PER_CHUNK - 1 || at + 1 == stages) add_part(total, part, exchange, group, lane);
        }
        cp_async_wait<0>();
        if constexpr (TILE::KGROUPS == 1) __syncthreads();
        if (group > 0) return;
        float *out = reinterpret_cast<float *>(room + (TILE::KGROUPS > 1 ? 0 : warp) * Out::OUT);
        Output to{c, activated, bias, stride_c, m, n, add, sizeof(TA) == 2 && half};
        Out::write(total, out, to, row + warp_row, col + warp_col, lane);
    }
};
