// Operands of a product: where they lie in global memory, and their panels in shared memory. What panels are for, and
// why their cells are swizzled, stands in gemm.cuh.
#pragma once
#include "tensor_core.cuh"

// Starts a copy of 16 bytes to shared memory, of which `bytes` are read and the rest are zeros.
__device__ __forceinline__ void cp_async_part(u32 to, const void *from, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
                 "r"(bytes)
                 : "memory");
}

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

    // How many numbers of a line's cell exist.
    __device__ __forceinline__ u32 count(u32 col) const { return col < cols ? min(CELL, cols - col) : 0; }

    __device__ __forceinline__ const T *at(u32 line, u32 col) const { return data + (u64)line * stride + col; }

    // A cell, number by number, zeros where none exists.
    __device__ __forceinline__ uint4 gather(u32 line, u32 col) const {
        u32 numbers = line < lines ? count(col) : 0, word[4];
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

// What mma multiplies: bf16 numbers, 16 k a step; or f32 numbers as sums of two tf32, 8 k a step.
enum Arithmetic { BF16, SPLIT_TF32 };

// Which operand of mma: A wants the halves of its rows side by side in registers, B the halves of k.
enum Side { SIDE_A, SIDE_B };

// One operand's part of a stage in shared memory: EXTENT rows of A (columns of B) by DEPTH k.
template <typename T, Axis AXIS, u32 EXTENT, u32 DEPTH>
struct Panel {
    static constexpr bool K_LINES = AXIS == K_CONTIGUOUS, WIDE = sizeof(T) == 4;
    static constexpr u32 CELL = 16 / sizeof(T);
    static constexpr u32 LINES = K_LINES ? EXTENT : DEPTH;
    static constexpr u32 PITCH = (K_LINES ? DEPTH : EXTENT) / CELL;
    static constexpr u32 LINE = PITCH * 16, BYTES = LINES * LINE;
    static_assert(PITCH >= (!K_LINES && WIDE ? 8 : 2), "the swizzle needs more cells a line");

    static __device__ __forceinline__ u32 swizzle(u32 line) {
        if constexpr (!K_LINES && WIDE) return 2 * ((line ^ (line >> 2 & 1)) & 3);
        else if constexpr (PITCH == 2) return line >> 2 & 1;
        else if constexpr (PITCH == 4) return (line & 2) | (line >> 2 & 1);
        else return (line & 3) << 1 | (line >> 2 & 1);
    }

    // Byte of a cell.
    static __device__ __forceinline__ u32 cell(u32 line, u32 at) { return line * LINE + (at ^ swizzle(line)) * 16; }

    // Byte of one number.
    static __device__ __forceinline__ u32 number(u32 line, u32 at) {
        return cell(line, at / CELL) + at % CELL * (u32)sizeof(T);
    }

    // Byte from which a lane reads fragments whose first row (column) is `first`. All others of its reads are at
    // (this ^ cells) + lines, with multiples of a cell and of a line that are known when compiling: the swizzle
    // repeats every 8 lines, and `first` is a multiple of what a warp owns.
    template <Arithmetic ARITHMETIC, Side SIDE>
    static __device__ __forceinline__ u32 start(u32 first, u32 lane) {
        if constexpr (WIDE && ARITHMETIC == BF16) {
            if constexpr (K_LINES) return number(first + lane / 4, lane % 4 * 2);
            else return number(lane % 4 * 2, first + lane / 4);
        } else if constexpr (WIDE && !K_LINES) {
            return number(lane % 4, first + lane / 4);
        } else {
            u32 half = SIDE == SIDE_A ? lane / 8 % 2 : lane / 16, k_half = SIDE == SIDE_A ? lane / 16 : lane / 8 % 2;
            if constexpr (K_LINES) return cell(first + lane % 8 + half * 8, k_half);
            else return cell(lane % 8 + k_half * 8, first / CELL + half);
        }
    }

    // Sixteen rows of A (columns of B), the i-th from the start, by the step that starts at k. A: words 0 and 1 are
    // the first and the last eight rows in the lower half of k, words 2 and 3 the same in the upper half. B: words 0
    // and 1 are the halves of k of the first eight columns, words 2 and 3 those of the last eight.
    template <Arithmetic ARITHMETIC, Side SIDE>
    static __device__ __forceinline__ void load(u32 (&word)[4], const unsigned char *room, u32 start, u32 i, u32 k) {
        if constexpr (!WIDE || (K_LINES && ARITHMETIC == SPLIT_TF32)) {
            u32 from = shared_address(room);
            if constexpr (K_LINES) ldmatrix_x4(word, from + (start ^ k / CELL * 16) + i * 16 * LINE);
            else ldmatrix_x4_trans(word, from + (start ^ i * 32) + k * LINE);
        } else {
#pragma unroll
            for (u32 w = 0; w < 4; w++) {
                u32 half = SIDE == SIDE_A ? w % 2 : w / 2, k_half = SIDE == SIDE_A ? w / 2 : w % 2;
                if constexpr (K_LINES) {
                    u32 at = (start ^ (k / CELL + k_half * 2) * 16) + (i * 16 + half * 8) * LINE;
                    float2 pair = *reinterpret_cast<const float2 *>(room + at);
                    word[w] = pack_bf16(pair.x, pair.y);
                } else if constexpr (ARITHMETIC == BF16) {
                    u32 cells = (i * 4 + half * 2) * 16, low = (start ^ cells) + (k + k_half * 8) * LINE;
                    u32 high = (start ^ cells ^ 32) + (k + k_half * 8 + 1) * LINE;
                    word[w] = pack_bf16(*reinterpret_cast<const float *>(room + low),
                                        *reinterpret_cast<const float *>(room + high));
                } else {
                    u32 at = (start ^ (i * 4 + half * 2) * 16 ^ k_half * 32) + (k + k_half * 4) * LINE;
                    word[w] = *reinterpret_cast<const u32 *>(room + at);
                }
            }
        }
    }
};

// Copies an operand's panels, stage by stage; THREADS threads take part, each with the same cell of CELLS lines.
template <typename T, typename PANEL, u32 THREADS>
struct Fetcher {
    static constexpr u32 CELLS = PANEL::LINES * PANEL::PITCH / THREADS, STEP = THREADS / PANEL::PITCH;
    static_assert(PANEL::LINES * PANEL::PITCH % THREADS == 0 && THREADS % PANEL::PITCH == 0, "equal shares");

    const Source<T> &from;
    // The row (column) where the panels start; this thread's first line and its cell, in numbers.
    u32 first, line, col;
    // Its first cell of the panel at k = 0, and where that goes.
    const T *source;
    u32 to;

    __device__ __forceinline__ Fetcher(const Source<T> &from, u32 first, u32 thread)
        : from(from), first(first), line(thread / PANEL::PITCH), col(thread % PANEL::PITCH * PANEL::CELL),
          source(PANEL::K_LINES ? from.at(first + line, col) : from.at(line, first + col)),
          to(PANEL::cell(line, thread % PANEL::PITCH)) {
        // The compiler would rather compute these again at every stage than keep them.
        asm volatile("mov.b64 %0, %0;\n" : "+l"(this->source));
        asm volatile("mov.b32 %0, %0;\n" : "+r"(this->to));
        asm volatile("mov.b32 %0, %0;\n" : "+r"(this->line));
        asm volatile("mov.b32 %0, %0;\n" : "+r"(this->col));
    }

    // Starts the copy of the panel at k; cells beyond the operand's edges become zeros.
    __device__ __forceinline__ void fetch(u32 k, unsigned char *room) const {
        u32 l = line + (PANEL::K_LINES ? first : k), c = col + (PANEL::K_LINES ? k : first);
        if (from.aligned) {
            const T *next = source + (PANEL::K_LINES ? k : (u64)k * from.stride);
            u32 bytes = from.count(c) * (u32)sizeof(T), at = shared_address(room);
#pragma unroll
            for (u32 i = 0; i < CELLS; i++) {
                // Where no bytes are read, the source may be any address.
                u32 there = l + i * STEP < from.lines ? bytes : 0;
                cp_async_part(at + target(i), next + (u64)(i * STEP) * from.stride, there);
            }
        } else {
#pragma unroll 1
            for (u32 i = 0; i < CELLS; i++)
                *reinterpret_cast<uint4 *>(room + target(i)) = from.gather(l + i * STEP, c);
        }
    }

    __device__ __forceinline__ u32 target(u32 i) const {
        if constexpr (STEP % 8 == 0) return to + i * STEP * PANEL::LINE;
        else return PANEL::cell(line + i * STEP, col / PANEL::CELL);
    }
};
