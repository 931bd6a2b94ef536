// Matrix products on tensor cores: C[M,N] = A[M,K] B[K,N], every operand row-major with a stride of its own.
//
// # The order contract
// What a K is summed in depends on K alone: not on M or N, the place in C, the tile, or the operands' layouts.
//
//   total = 0
//   for each chunk of 128 k, rising          the last one may be shorter
//       part = 0
//       for each step of the chunk, rising   16 k in bf16, 8 k in f32
//           part = mma(a, b, part)           f32 inside the tensor core
//       total = total + part                 f32, rounded to nearest
//
// So a row alone (decode) and the same row among thousands (prefill), a window of outputs and the whole have the same
// bits. Chunks give two things more. Tensor cores truncate as they accumulate; a part is at most 8 (f32: 48) of those
// steps deep, and what leaves it is added with proper rounding. And warps may work on different chunks at once, which
// is where a product of few rows finds its parallelism, as long as parts are added in rising order.
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
// once: 8 lines of one cell (ldmatrix); 4 lines of two adjacent cells (pairs of f32 that are rounded to bf16); and in
// a k-by-k panel of f32, two adjacent cells of 4 lines that are consecutive (tf32) or every other (pairs).
//
// With KGROUPS > 1 each group of the block's warps has chunks of its own (g, g + KGROUPS, ...) with its own pipeline;
// after each round group 0 adds the parts in rising order. Groups are single warps, so they meet at __syncwarp.
//
// Operands whose rows are no multiple of 16 bytes (odd widths, windows at odd columns) are copied element by element:
// right for every shape, fast for multiples of 8.
#pragma once
#include "common.cuh"

// ---- instructions -------------------------------------------------------------------------------------------------

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
__device__ __forceinline__ void mma_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c[16,8] += a[16,8] b[8,8] in tf32.
__device__ __forceinline__ void mma_tf32(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
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

// ---- operands -----------------------------------------------------------------------------------------------------

// Which axis of an operand is contiguous in memory: k, or the other one (m of A, n of B).
enum Axis { K_CONTIGUOUS, OTHER_CONTIGUOUS };

// An operand in global memory: `lines` lines of `cols` numbers, `stride` apart.
template <typename T>
struct Source {
    static constexpr u32 CELL = 16 / sizeof(T);
    const T *data;
    u32 stride, lines, cols;
    // Whether every line starts at a multiple of 16 bytes.
    bool aligned;

    __device__ __forceinline__ Source(const T *data, u32 stride, u32 lines, u32 cols)
        : data(data), stride(stride), lines(lines), cols(cols),
          aligned((((u64)data | (u64)stride * sizeof(T)) & 15) == 0) {}

    // How many numbers of the cell that starts here exist.
    __device__ __forceinline__ u32 count(u32 line, u32 col) const {
        return line < lines && col < cols ? min(CELL, cols - col) : 0;
    }

    __device__ __forceinline__ const T *at(u32 line, u32 col) const { return data + (u64)line * stride + col; }

    // That cell, number by number, zeros where none exists.
    __device__ __forceinline__ uint4 gather(u32 line, u32 col) const {
        u32 numbers = count(line, col), word[4];
        const T *from = at(line, col);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            if constexpr (sizeof(T) == 4) {
                word[i] = i < numbers ? __float_as_uint(from[i]) : 0;
            } else {
                const unsigned short *half = reinterpret_cast<const unsigned short *>(from) + 2 * i;
                u32 low = 2 * i < numbers ? half[0] : 0, high = 2 * i + 1 < numbers ? half[1] : 0;
                word[i] = high << 16 | low;
            }
        }
        return make_uint4(word[0], word[1], word[2], word[3]);
    }
};

// One operand's part of a stage in shared memory: EXTENT rows of A (columns of B) by DEPTH k.
template <typename T, Axis AXIS, int EXTENT, int DEPTH>
struct Panel {
    static constexpr bool K_LINES = AXIS == K_CONTIGUOUS, WIDE = sizeof(T) == 4;
    static constexpr u32 CELL = 16 / sizeof(T);
    static constexpr u32 LINES = K_LINES ? EXTENT : DEPTH;
    static constexpr u32 PITCH = (K_LINES ? DEPTH : EXTENT) / CELL;
    static constexpr u32 BYTES = LINES * PITCH * 16;
    static_assert(PITCH >= (!K_LINES && WIDE ? 8 : 2), "the swizzle needs more cells a line");

    static __device__ __forceinline__ u32 swizzle(u32 line) {
        if constexpr (!K_LINES && WIDE) return 2 * ((line ^ (line >> 2 & 1)) & 3);
        else if constexpr (PITCH == 2) return line >> 2 & 1;
        else if constexpr (PITCH == 4) return (line & 2) | (line >> 2 & 1);
        else return (line & 3) << 1 | (line >> 2 & 1);
    }

    // Byte of a cell.
    static __device__ __forceinline__ u32 cell(u32 line, u32 at) { return (line * PITCH + (at ^ swizzle(line))) * 16; }

    // Byte of one number.
    static __device__ __forceinline__ u32 number(u32 line, u32 at) {
        return cell(line, at / CELL) + at % CELL * (u32)sizeof(T);
    }

    // Copies the panel that starts at row (column) `first` and at `k`; this is thread `thread` of THREADS.
    template <u32 THREADS>
    static __device__ __forceinline__ void fetch(const Source<T> &from, u32 first, u32 k, unsigned char *room,
                                                 u32 thread) {
        static_assert(LINES * PITCH % THREADS == 0, "every thread copies as many cells");
        u32 line = K_LINES ? first : k, col = K_LINES ? k : first;
        if (from.aligned) {
            u32 to = shared_address(room);
#pragma unroll
            for (u32 at = 0; at < LINES * PITCH; at += THREADS) {
                u32 l = (at + thread) / PITCH, c = (at + thread) % PITCH;
                u32 numbers = from.count(line + l, col + c * CELL);
                const T *source = numbers ? from.at(line + l, col + c * CELL) : from.data;
                copy_async(to + cell(l, c), source, numbers * (u32)sizeof(T));
            }
        } else {
#pragma unroll 1
            for (u32 at = thread; at < LINES * PITCH; at += THREADS) {
                u32 l = at / PITCH, c = at % PITCH;
                *reinterpret_cast<uint4 *>(room + cell(l, c)) = from.gather(line + l, col + c * CELL);
            }
        }
    }
};

// ---- fragments ----------------------------------------------------------------------------------------------------

// What mma multiplies: bf16 numbers, 16 k a step; or f32 numbers as sums of two tf32, 8 k a step.
enum Arithmetic { BF16, SPLIT_TF32 };

// Sixteen rows of A (columns of B) by one step of k, as mma wants them: words 0 and 2 are the lower and the upper half
// of the step for the first eight, words 1 and 3 for the other eight. A takes all four, B an even or an odd pair.
template <Arithmetic ARITHMETIC, typename T, Axis AXIS, int EXTENT, int DEPTH>
__device__ __forceinline__ void load_fragment(u32 (&word)[4], Panel<T, AXIS, EXTENT, DEPTH>, const unsigned char *room,
                                              u32 first, u32 k, u32 lane) {
    using P = Panel<T, AXIS, EXTENT, DEPTH>;
    if constexpr (AXIS == K_CONTIGUOUS && (sizeof(T) == 2 || ARITHMETIC == SPLIT_TF32)) {
        load_matrices(word, shared_address(room) + P::cell(first + lane % 16, k / P::CELL + lane / 16));
    } else if constexpr (sizeof(T) == 2) {
        u32 line = k + lane % 8 + lane / 16 * 8, cell = first / P::CELL + lane / 8 % 2;
        load_matrices_transposed(word, shared_address(room) + P::cell(line, cell));
    } else {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 other = first + i % 2 * 8 + lane / 4;
            if constexpr (ARITHMETIC == SPLIT_TF32) {
                word[i] = *reinterpret_cast<const u32 *>(room + P::number(k + i / 2 * 4 + lane % 4, other));
            } else if constexpr (AXIS == K_CONTIGUOUS) {
                u32 at = P::number(other, k + i / 2 * 8 + lane % 4 * 2);
                float2 pair = *reinterpret_cast<const float2 *>(room + at);
                word[i] = pack_bf16(pair.x, pair.y);
            } else {
                u32 line = k + i / 2 * 8 + lane % 4 * 2;
                float low = *reinterpret_cast<const float *>(room + P::number(line, other));
                float high = *reinterpret_cast<const float *>(room + P::number(line + 1, other));
                word[i] = pack_bf16(low, high);
            }
        }
    }
}

// x = big + small, in place.
__device__ __forceinline__ void split(u32 (&big)[4], u32 (&small)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float x = __uint_as_float(big[i]);
        big[i] = to_tf32(x);
        small[i] = to_tf32(x - __uint_as_float(big[i]));
    }
}

// ---- what becomes of the sums -------------------------------------------------------------------------------------

// GELU in its tanh form: x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)).
__device__ __forceinline__ float gelu_tanh(float x) {
    return x / (1.0f + expf(-1.5957691216f * x * fmaf(0.044715f * x, x, 1.0f)));
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

// ---- the product --------------------------------------------------------------------------------------------------

// A block's outputs, the grid of warps over them, and how many such grids share the chunks of k among them.
template <u32 M_, u32 N_, u32 WARPS_M_, u32 WARPS_N_, u32 KGROUPS_>
struct Tile {
    static constexpr u32 M = M_, N = N_, WARPS_M = WARPS_M_, WARPS_N = WARPS_N_, KGROUPS = KGROUPS_;
    static constexpr u32 GROUP_WARPS = WARPS_M * WARPS_N, THREADS = GROUP_WARPS * KGROUPS * WARP;
    static_assert(N / WARPS_N == 32, "a warp owns 32 columns");
    static_assert(KGROUPS == 1 || GROUP_WARPS == 1, "groups meet at __syncwarp");
};

// Length of a chunk of k: part of the order contract.
constexpr u32 K_CHUNK = 128;
// Blocks that run together read few panels twice: tiles are visited in strips of this many rows of tiles.
constexpr u32 STRIP = 16;

template <typename TA, Axis AXIS_A, typename TB, Axis AXIS_B, Arithmetic ARITHMETIC, typename TILE>
struct Product {
    static constexpr u32 DEPTH = sizeof(TA) == 2 && sizeof(TB) == 2 ? 32 : 16;
    static constexpr u32 STEP = ARITHMETIC == BF16 ? 16 : 8;
    static constexpr u32 WARP_M = TILE::M / TILE::WARPS_M, SLABS = WARP_M / 16, PER_CHUNK = K_CHUNK / DEPTH;
    static constexpr u32 GROUP_THREADS = TILE::GROUP_WARPS * WARP;
    using PanelA = Panel<TA, AXIS_A, TILE::M, DEPTH>;
    using PanelB = Panel<TB, AXIS_B, TILE::N, DEPTH>;

    // Shared memory: the pipelines of the groups, then what the groups exchange. Totals reuse the pipelines' room.
    static constexpr u32 LIMIT = 48 * 1024;
    static constexpr u32 STAGE = PanelA::BYTES + PanelB::BYTES;
    static constexpr u32 PART = TILE::M * TILE::N * 4, EXCHANGE = (TILE::KGROUPS - 1) * PART;
    static constexpr u32 FIT = (LIMIT - EXCHANGE) / (TILE::KGROUPS * STAGE), STAGES = FIT < 4 ? FIT : 4;
    static constexpr u32 PIPELINES = TILE::KGROUPS * STAGES * STAGE;
    static constexpr u32 OUT_ROWS = WARP_M < 32 ? WARP_M : 32, OUT_PITCH = 40, OUT = OUT_ROWS * OUT_PITCH * 4;
    static constexpr u32 TOTALS = TILE::GROUP_WARPS * OUT;
    static constexpr u32 ROOM = (PIPELINES > TOTALS ? PIPELINES : TOTALS) + EXCHANGE;
    static_assert(STAGES >= 2 && ROOM <= LIMIT, "two stages fit");

    typedef float Sums[SLABS][4][4];

    // part += the panels of one stage.
    static __device__ __forceinline__ void multiply(Sums &part, const unsigned char *stage, u32 row, u32 col, u32 lane) {
        const unsigned char *room_a = stage, *room_b = stage + PanelA::BYTES;
#pragma unroll
        for (u32 k = 0; k < DEPTH; k += STEP) {
            u32 b[2][4], b_small[2][4];
#pragma unroll
            for (u32 j = 0; j < 2; j++) {
                load_fragment<ARITHMETIC>(b[j], PanelB(), room_b, col + j * 16, k, lane);
                if constexpr (ARITHMETIC == SPLIT_TF32) split(b[j], b_small[j]);
            }
#pragma unroll
            for (u32 i = 0; i < SLABS; i++) {
                u32 a[4], a_small[4];
                load_fragment<ARITHMETIC>(a, PanelA(), room_a, row + i * 16, k, lane);
                if constexpr (ARITHMETIC == BF16) {
#pragma unroll
                    for (u32 j = 0; j < 4; j++) mma_bf16(part[i][j], a, b[j / 2][j % 2], b[j / 2][j % 2 + 2]);
                } else {
                    split(a, a_small);
#pragma unroll
                    for (u32 j = 0; j < 4; j++) mma_tf32(part[i][j], a_small, b[j / 2][j % 2], b[j / 2][j % 2 + 2]);
#pragma unroll
                    for (u32 j = 0; j < 4; j++) mma_tf32(part[i][j], a, b_small[j / 2][j % 2], b_small[j / 2][j % 2 + 2]);
#pragma unroll
                    for (u32 j = 0; j < 4; j++) mma_tf32(part[i][j], a, b[j / 2][j % 2], b[j / 2][j % 2 + 2]);
                }
            }
        }
    }

    // Ends a chunk: total += part, where there are groups in the order of their chunks; part = 0.
    static __device__ __forceinline__ void add_part(Sums &total, Sums &part, float *exchange, u32 group, u32 lane) {
        constexpr u32 EACH = SLABS * 16;
        if constexpr (TILE::KGROUPS > 1) {
            if (group > 0) {
#pragma unroll
                for (u32 i = 0; i < EACH; i++)
                    exchange[((group - 1) * EACH + i) * WARP + lane] = part[i / 16][i / 4 % 4][i % 4];
            }
            __syncthreads();
        }
        if (group == 0) {
#pragma unroll
            for (u32 i = 0; i < EACH; i++) total[i / 16][i / 4 % 4][i % 4] += part[i / 16][i / 4 % 4][i % 4];
            for (u32 other = 0; other + 1 < TILE::KGROUPS; other++) {
#pragma unroll
                for (u32 i = 0; i < EACH; i++)
                    total[i / 16][i / 4 % 4][i % 4] += exchange[(other * EACH + i) * WARP + lane];
            }
        }
        if constexpr (TILE::KGROUPS > 1) __syncthreads();
#pragma unroll
        for (u32 i = 0; i < EACH; i++) part[i / 16][i / 4 % 4][i % 4] = 0.0f;
    }

    // A warp's totals, through shared memory of its own, to rows of C.
    static __device__ __forceinline__ void write(const Sums &total, float *out, const Output &to, u32 row, u32 col,
                                                 u32 lane) {
        bool aligned = to.aligned();
        float bias[4];
        col += lane % 8 * 4;
        to.load_bias(bias, col);
#pragma unroll 1
        for (u32 first = 0; first < WARP_M; first += OUT_ROWS) {
            __syncwarp();
#pragma unroll
            for (u32 i = 0; i < WARP_M / 8; i++) {
                // Registers have no index at run time: every pass stands here, and takes its own rows.
                if (i * 8 / OUT_ROWS * OUT_ROWS != first) continue;
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    const float(&four)[4] = total[i / 2][j];
                    float *pair = out + (i * 8 % OUT_ROWS + lane / 4) * OUT_PITCH + j * 8 + lane % 4 * 2;
                    *reinterpret_cast<float2 *>(pair) = make_float2(four[i % 2 * 2], four[i % 2 * 2 + 1]);
                }
            }
            __syncwarp();
#pragma unroll 1
            for (u32 r = lane / 8; r < OUT_ROWS; r += 4) {
                float sums[4];
                load_four(sums, out + r * OUT_PITCH + lane % 8 * 4);
                to.write(row + first + r, col, sums, bias, aligned);
            }
        }
    }

    // A block's tile of C[M,N]. `half`: C is bf16.
    static __device__ __forceinline__ void run(const TA *a, u32 stride_a, const TB *b, u32 stride_b, u32 m, u32 n, u32 k,
                                               void *c, u32 stride_c, bool add, bool half, const float *bias,
                                               void *activated) {
        __shared__ __align__(128) unsigned char room[ROOM];
        u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
        u32 group = TILE::KGROUPS > 1 ? warp : 0, member = TILE::KGROUPS > 1 ? lane : threadIdx.x;
        u32 warp_row = TILE::KGROUPS > 1 ? 0 : warp / TILE::WARPS_N * WARP_M;
        u32 warp_col = TILE::KGROUPS > 1 ? 0 : warp % TILE::WARPS_N * 32;

        // Which tile.
        u32 tiles_m = (m + TILE::M - 1) / TILE::M, tiles_n = (n + TILE::N - 1) / TILE::N;
        u32 strip = blockIdx.x / (STRIP * tiles_n), inside = blockIdx.x % (STRIP * tiles_n);
        u32 height = min(STRIP, tiles_m - strip * STRIP);
        u32 row = (strip * STRIP + inside % height) * TILE::M, col = inside / height * TILE::N;

        Source<TA> from_a(a, stride_a, AXIS_A == K_CONTIGUOUS ? m : k, AXIS_A == K_CONTIGUOUS ? k : m);
        Source<TB> from_b(b, stride_b, AXIS_B == K_CONTIGUOUS ? n : k, AXIS_B == K_CONTIGUOUS ? k : n);
        unsigned char *pipeline = room + group * STAGES * STAGE;
        float *exchange = reinterpret_cast<float *>(room + ROOM - EXCHANGE);
        int chunks = (k + K_CHUNK - 1) / K_CHUNK;
        int stages = TILE::KGROUPS > 1 ? (chunks + TILE::KGROUPS - 1) / TILE::KGROUPS * PER_CHUNK : (k + DEPTH - 1) / DEPTH;

        Sums part = {}, total = {};
        for (int at = 1 - (int)STAGES; at < stages; at++) {
            // Stage `at` has landed, and everybody is done with the one before it, whose room is filled next.
            if (at >= 0) {
                wait_copies<STAGES - 2>();
                if constexpr (TILE::KGROUPS > 1) __syncwarp();
                else __syncthreads();
            }
            u32 next = at + STAGES - 1;
            if ((int)next < stages) {
                unsigned char *stage = pipeline + next % STAGES * STAGE;
                u32 first = (next / PER_CHUNK * TILE::KGROUPS + group) * K_CHUNK + next % PER_CHUNK * DEPTH;
                PanelA::template fetch<GROUP_THREADS>(from_a, row, first, stage, member);
                PanelB::template fetch<GROUP_THREADS>(from_b, col, first, stage + PanelA::BYTES, member);
            }
            commit_copies();
            if (at < 0) continue;
            multiply(part, pipeline + at % STAGES * STAGE, warp_row, warp_col, lane);
            if (at % PER_CHUNK == PER_CHUNK - 1 || at + 1 == stages) add_part(total, part, exchange, group, lane);
        }
        wait_copies<0>();
        if constexpr (TILE::KGROUPS == 1) __syncthreads();
        if (group > 0) return;
        float *out = reinterpret_cast<float *>(room + (TILE::KGROUPS > 1 ? 0 : warp) * OUT);
        Output to{c, activated, bias, stride_c, m, n, add, sizeof(TA) == 2 && half};
        write(total, out, to, row + warp_row, col + warp_col, lane);
    }
};
