// Rows shared out over teams of threads: what the norms have in common.
//
// How a row is cut depends on its width and dtype alone, so its sums have the same bits in every batch:
//
//   width                                           a row belongs to    each thread holds
//   at most 1024, in whole 128-bit pieces           a warp              up to 32 numbers, in registers
//   at most 16 a thread, in whole 128-bit pieces    a block             up to 16 numbers, in registers
//   any other                                       a block             nothing: it reads its elements again
//
// Thread t of a team of T owns pieces t, t + T, t + 2T, ... of N numbers. What a thread adds up goes in ascending
// order of columns, then threads are added by warp_sum and warps in their order.
#pragma once
#include "vector.cuh"

// Widest row that a warp owns.
constexpr u32 NARROW = 1024;

// The columns of a row that one thread of a team of THREADS owns: at most MAX pieces of N numbers.
template <int THREADS_, int N_, int MAX_> struct Columns {
    static constexpr int THREADS = THREADS_, N = N_, MAX = MAX_;
    u32 thread, pieces;

    // Calls f(piece, first column of the piece).
    template <typename F> __device__ __forceinline__ void each(F f) const {
        if constexpr (MAX == 0) {
            for (u32 c = thread; c < pieces; c += THREADS) f(0, c);
        } else {
#pragma unroll
            for (int k = 0; k < MAX; k++) {
                u32 at = k * THREADS + thread;
                if (at < pieces) f(k, at * N);
            }
        }
    }

    // Sum over the team. `room` holds a float a warp of the block.
    __device__ __forceinline__ float sum(float x, float *room) const {
        if constexpr (THREADS == WARP) return warp_sum(x);
        else return block_sum<THREADS / WARP>(x, room);
    }

    // Which team of the block this thread belongs to.
    __device__ __forceinline__ u32 team() const { return threadIdx.x / THREADS; }
};

// Calls `f(columns)` with the cut that rows of `cols` numbers of `act` have in a block of BLOCK threads.
template <typename act, int BLOCK, typename F> __device__ __forceinline__ void by_width(u32 cols, F f) {
    constexpr int N = WIDE<act>;
    if (cols % N == 0 && cols <= NARROW) f(Columns<WARP, N, 32 / N>{threadIdx.x % WARP, cols / N});
    else if (cols % N == 0 && cols <= BLOCK * 16) f(Columns<BLOCK, N, 16 / N>{threadIdx.x, cols / N});
    else f(Columns<BLOCK, 1, 0>{threadIdx.x, cols});
}

// A row of numbers stored as `act`: the owner's pieces in registers, or where to read them again.
template <typename act, typename On> struct Row {
    Piece<act, On::N> piece[On::MAX];
    __device__ __forceinline__ Numbers<On::N> operator()(int k, u32) const { return piece[k].numbers(); }
};
template <typename act, int THREADS> struct Row<act, Columns<THREADS, 1, 0>> {
    const act *p;
    __device__ __forceinline__ Numbers<1> operator()(int, u32 c) const { return {{load(p + c)}}; }
};

// Reads the row at `p`; nothing where there is none.
template <typename act, typename On>
__device__ __forceinline__ void hold(Row<act, On> &row, const On &on, const act *p, bool there) {
    if constexpr (On::MAX == 0) {
        row.p = p;
    } else if (there) {
        on.each([&](int k, u32 c) { row.piece[k].read(p + c); });
    }
}

// NARROW floats in shared memory, laid out so that neither threads that own pieces of 8 nor threads that copy pieces
// of 4 meet in a bank: of each 8 numbers the first 4 lie in the lower half, the others in the upper half, which
// begins 16 banks further.
struct Shelf {
    float *p;
    static constexpr u32 FLOATS = NARROW + 16;
    template <int N> static __device__ __forceinline__ u32 place(u32 c) {
        return N == 4 ? c : c / 8 * 4 + c / 4 % 2 * (NARROW / 2 + 16);
    }
    // N numbers from column c on, in a layout for pieces of N.
    template <int N> __device__ __forceinline__ Numbers<N> get(u32 c) const {
        Numbers<N> x;
#pragma unroll
        for (int part = 0; part < N; part += 4) {
            Numbers<4> four = read<4>(p + place<N>(c + part));
            for (int i = 0; i < 4; i++) x[part + i] = four[i];
        }
        return x;
    }
    template <int N> __device__ __forceinline__ void put(u32 c, const Numbers<N> &x) const {
#pragma unroll
        for (int part = 0; part < N; part += 4)
            write<4>(p + place<N>(c + part), {x[part], x[part + 1], x[part + 2], x[part + 3]});
    }
};

// A vector that all rows of a block use, f32: on a shelf where several warps read it; else read again for each row,
// when it is in the first cache, because a thread's registers are full of the row.
template <typename On> struct Vector {
    const float *p;
    __device__ __forceinline__ Numbers<On::N> operator()(int, u32 c) const { return read<On::N>(p + c); }
};
template <int N, int MAX> struct Vector<Columns<WARP, N, MAX>> {
    Shelf shelf;
    __device__ __forceinline__ Numbers<N> operator()(int, u32 c) const { return shelf.get<N>(c); }
};

// Brings the vector at `p`. A barrier must stand between this and the first use.
template <int BLOCK, typename On>
__device__ __forceinline__ void bring(Vector<On> &vector, const On &on, const float *p, Shelf shelf) {
    if constexpr (On::THREADS == WARP) {
        vector.shelf = shelf;
        for (u32 c = 4 * threadIdx.x; c < on.pieces * On::N; c += 4 * BLOCK)
            write<4>(shelf.p + shelf.place<On::N>(c), read<4>(p + c));
    } else {
        vector.p = p;
    }
}

// Sums over the rows of a block, one for each column: in the owner's registers, or in the memory they end in.
template <typename On> struct Sums {
    Numbers<On::N> sum[On::MAX];
    __device__ __forceinline__ void clear(const On &, float *) {
#pragma unroll
        for (int k = 0; k < On::MAX; k++)
            for (int i = 0; i < On::N; i++) sum[k][i] = 0.0f;
    }
    __device__ __forceinline__ float &at(int k, u32, int i) { return sum[k][i]; }
};
template <int THREADS> struct Sums<Columns<THREADS, 1, 0>> {
    float *p;
    __device__ __forceinline__ void clear(const Columns<THREADS, 1, 0> &on, float *partial) {
        p = partial;
        on.each([&](int, u32 c) { p[c] = 0.0f; });
    }
    __device__ __forceinline__ float &at(int, u32 c, int) { return p[c]; }
};

// What is left of N columns of a block's sums.
template <int N> __device__ __forceinline__ void leave(u32 c, Numbers<N> sum, float *partial, float *total) {
    if (gridDim.x > 1) return write<N>(partial + c, sum);
    Numbers<N> before = read<N>(total + c);
    for (int i = 0; i < N; i++) before[i] += sum[i];
    write<N>(total + c, before);
}

// Adds the block's sums to `total[cols]` where this block is the only one, else writes them to `partial[cols]`. Warps
// that own rows alone first lay them on shelves, one a warp from `shelf` on; then they are added in the warps' order.
template <int BLOCK, typename On>
__device__ __forceinline__ void finish(Sums<On> &sums, const On &on, Shelf shelf, float *partial, float *total) {
    if constexpr (On::THREADS == WARP) {
        Shelf own = {shelf.p + threadIdx.x / WARP * Shelf::FLOATS};
        on.each([&](int k, u32 c) { own.put<On::N>(c, sums.sum[k]); });
        __syncthreads();
        for (u32 c = 4 * threadIdx.x; c < on.pieces * On::N; c += 4 * BLOCK) {
            const float *from = shelf.p + shelf.place<On::N>(c);
            Numbers<4> sum = read<4>(from);
#pragma unroll
            for (u32 warp = 1; warp < BLOCK / WARP; warp++) {
                Numbers<4> next = read<4>(from + warp * Shelf::FLOATS);
                for (int i = 0; i < 4; i++) sum[i] += next[i];
            }
            leave<4>(c, sum, partial, total);
        }
        // The shelves are free again.
        __syncthreads();
    } else {
        on.each([&](int k, u32 c) {
            Numbers<On::N> sum;
            for (int i = 0; i < On::N; i++) sum[i] = sums.at(k, c, i);
            leave<On::N>(c, sum, partial, total);
        });
    }
}

// total[c] += sum over p of partial[p, c], p ascending in each of the block's warps, then warps in their order. A
// block of 32 x 32 threads takes 32 columns: warp w adds rows w, w + 32, ...
constexpr int FOLD = 1024;
__device__ __forceinline__ void fold(const float *partial, u32 parts, u32 cols, float *total, u32 c, float *room) {
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float sum = 0.0f;
    if (c < cols)
#pragma unroll 8
        for (u32 p = warp; p < parts; p += FOLD / WARP) sum += partial[(u64)p * cols + c];
    room[threadIdx.x] = sum;
    __syncthreads();
    if (warp > 0 || c >= cols) return;
    for (int w = 1; w < FOLD / WARP; w++) sum += room[w * WARP + lane];
    *total += sum;
}
