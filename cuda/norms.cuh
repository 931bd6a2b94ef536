// The two norms of one row, for a team of threads (rows.cuh) that holds it: rmsnorm.cu and layernorm.cu run over rows
// with them, residual_norm.cu after a residual sum. One piece of code, so that a row has the same bits in all three.
#pragma once
#include "rows.cuh"

// Gain and bias, their gradients, and what is added to the variance. RMS norm has no bias.
struct Parameters {
    const float *w, *b;
    float eps;
    float *dw, *db;
};

// Shared memory of a block: a float a warp, and shelves for vectors and sums.
struct Room {
    float *warps;
    Shelf first, second;
};

//   forward   rstd = 1/sqrt(mean_c x[c]^2 + eps)       y[c] = x[c] * rstd * w[c]
//   backward  dx[c] = rstd * (dy*w)[c] - x[c] * rstd^3/C * sum_k (dy*w*x)[k]       dw[c] += dy[c] * x[c] * rstd
template <typename On> struct RmsNorm {
    static constexpr u32 STATISTICS = 1, VECTORS = 1;
    Vector<On> w;
    Sums<On> dw;
    float rstd, scale;

    template <int BLOCK> __device__ __forceinline__ void bring(const On &on, const Parameters &p, const Room &room) {
        ::bring<BLOCK>(w, on, p.w, room.first);
    }

    template <typename act>
    __device__ __forceinline__ void forward(const On &on, const Row<act, On> &x, float eps, u32 cols, act *y,
                                            float *statistics, const Room &room) const {
        float squares = 0.0f;
        on.each([&](int k, u32 c) {
            auto v = x(k, c);
            for (int i = 0; i < On::N; i++) squares = fmaf(v[i], v[i], squares);
        });
        float rstd = 1.0f / sqrtf(on.sum(squares, room.warps) / cols + eps);
        on.each([&](int k, u32 c) {
            auto v = x(k, c), g = w(k, c);
            for (int i = 0; i < On::N; i++) v[i] = v[i] * rstd * g[i];
            write<On::N>(y + c, v);
        });
        if (on.thread == 0) statistics[0] = rstd;
    }

    template <int BLOCK>
    __device__ __forceinline__ void begin_backward(const On &on, const Parameters &p, const Room &room, float *partial,
                                                   u32) {
        ::bring<BLOCK>(w, on, p.w, room.first);
        dw.clear(on, partial);
    }

    // The sum that dx needs; adds the row to the gradients of the parameters.
    template <typename act>
    __device__ __forceinline__ void gather(const On &on, const Row<act, On> &dy, const Row<act, On> &x, u32 cols,
                                           const float *statistics, const Room &room) {
        float dot = 0.0f;
        rstd = statistics[0];
        on.each([&](int k, u32 c) {
            auto d = dy(k, c), v = x(k, c), g = w(k, c);
            for (int i = 0; i < On::N; i++) {
                dot = fmaf(d[i] * g[i], v[i], dot);
                dw.at(k, c, i) = fmaf(d[i] * rstd, v[i], dw.at(k, c, i));
            }
        });
        scale = rstd * rstd * rstd * (on.sum(dot, room.warps) / cols);
    }

    // dx of a piece, after `gather`.
    template <typename act>
    __device__ __forceinline__ Numbers<On::N> dx(const Row<act, On> &dy, const Row<act, On> &x, int k, u32 c) const {
        auto d = dy(k, c), v = x(k, c), g = w(k, c);
        for (int i = 0; i < On::N; i++) v[i] = fmaf(rstd * d[i], g[i], -(v[i] * scale));
        return v;
    }

    template <int BLOCK> __device__ __forceinline__ void finish(const On &on, const Parameters &p, const Room &room,
                                                                float *partial, u32) {
        // A frozen gain has no gradient.
        if (p.dw) ::finish<BLOCK>(dw, on, room.second, partial, p.dw);
    }
};

//   forward   mean = mean_c x[c]       rstd = 1/sqrt(mean_c (x[c] - mean)^2 + eps)
//             h[c] = (x[c] - mean) * rstd       y[c] = h[c] * w[c] + b[c]
//   backward  dx[c] = rstd * ((dy*w)[c] - mean_k (dy*w)[k] - h[c] * mean_k (dy*w*h)[k])
//             dw[c] += dy[c] * h[c]       db[c] += dy[c]
template <typename On> struct LayerNorm {
    static constexpr u32 STATISTICS = 2, VECTORS = 2;
    Vector<On> w, b;
    Sums<On> dw, db;
    float mean, rstd, level, slope;

    template <int BLOCK> __device__ __forceinline__ void bring(const On &on, const Parameters &p, const Room &room) {
        ::bring<BLOCK>(w, on, p.w, room.first);
        ::bring<BLOCK>(b, on, p.b, room.second);
    }

    template <typename act>
    __device__ __forceinline__ void forward(const On &on, const Row<act, On> &x, float eps, u32 cols, act *y,
                                            float *statistics, const Room &room) const {
        float total = 0.0f, squares = 0.0f;
        on.each([&](int k, u32 c) {
            auto v = x(k, c);
            for (int i = 0; i < On::N; i++) total += v[i];
        });
        float mean = on.sum(total, room.warps) / cols;
        on.each([&](int k, u32 c) {
            auto v = x(k, c);
            for (int i = 0; i < On::N; i++) squares = fmaf(v[i] - mean, v[i] - mean, squares);
        });
        float rstd = 1.0f / sqrtf(on.sum(squares, room.warps) / cols + eps);
        on.each([&](int k, u32 c) {
            auto v = x(k, c), g = w(k, c), shift = b(k, c);
            for (int i = 0; i < On::N; i++) v[i] = fmaf((v[i] - mean) * rstd, g[i], shift[i]);
            write<On::N>(y + c, v);
        });
        if (on.thread == 0) *reinterpret_cast<float2 *>(statistics) = make_float2(mean, rstd);
    }

    template <int BLOCK>
    __device__ __forceinline__ void begin_backward(const On &on, const Parameters &p, const Room &room, float *partial,
                                                   u32 cols) {
        ::bring<BLOCK>(w, on, p.w, room.first);
        dw.clear(on, partial);
        db.clear(on, partial + cols);
    }

    template <typename act>
    __device__ __forceinline__ void gather(const On &on, const Row<act, On> &dy, const Row<act, On> &x, u32 cols,
                                           const float *statistics, const Room &room) {
        float2 kept = *reinterpret_cast<const float2 *>(statistics);
        mean = kept.x, rstd = kept.y, level = 0.0f, slope = 0.0f;
        on.each([&](int k, u32 c) {
            auto d = dy(k, c), v = x(k, c), g = w(k, c);
            for (int i = 0; i < On::N; i++) {
                float h = (v[i] - mean) * rstd, p = __fmul_rn(d[i], g[i]);
                level += p;
                slope = fmaf(p, h, slope);
                dw.at(k, c, i) = fmaf(d[i], h, dw.at(k, c, i));
                db.at(k, c, i) += d[i];
            }
        });
        level = on.sum(level, room.warps) / cols;
        slope = on.sum(slope, room.warps) / cols;
    }

    template <typename act>
    __device__ __forceinline__ Numbers<On::N> dx(const Row<act, On> &dy, const Row<act, On> &x, int k, u32 c) const {
        auto d = dy(k, c), v = x(k, c), g = w(k, c);
        // The product is rounded as it was in `level`, so that what is equal cancels exactly.
        for (int i = 0; i < On::N; i++)
            v[i] = rstd * fmaf(-((v[i] - mean) * rstd), slope, __fmul_rn(d[i], g[i]) - level);
        return v;
    }

    template <int BLOCK> __device__ __forceinline__ void finish(const On &on, const Parameters &p, const Room &room,
                                                                float *partial, u32 cols) {
        // Frozen ones have no gradients.
        if (!p.dw) return;
        ::finish<BLOCK>(dw, on, room.second, partial, p.dw);
        ::finish<BLOCK>(db, on, room.second, partial + cols, p.db);
    }
};

// ---- the loops over rows; a block takes `each` consecutive rows, its teams take them in turn ----------------------

template <template <typename> class Norm, int BLOCK, typename act> struct NormForward {
    const act *x;
    Parameters parameters;
    u32 rows, cols, each;
    act *y;
    float *statistics;
    Room room;

    template <typename On> __device__ __forceinline__ void operator()(On on) const {
        u32 row = blockIdx.x * each + on.team(), end = min(rows, (blockIdx.x + 1) * each);
        Norm<On> norm;
        norm.template bring<BLOCK>(on, parameters, room);
        // The first row is on its way while the gain arrives.
        Row<act, On> held;
        hold(held, on, x + (u64)row * cols, row < end);
        __syncthreads();
        while (row < end) {
            float *kept = statistics + (u64)row * Norm<On>::STATISTICS;
            norm.forward(on, held, parameters.eps, cols, y + (u64)row * cols, kept, room);
            row += BLOCK / On::THREADS;
            hold(held, on, x + (u64)row * cols, row < end);
        }
    }
};

template <template <typename> class Norm, int BLOCK, typename act> struct NormBackward {
    const act *dy, *x;
    Parameters parameters;
    const float *statistics;
    u32 rows, cols, each;
    act *dx;
    float *partial;
    Room room;

    template <typename On> __device__ __forceinline__ void operator()(On on) const {
        u32 row = blockIdx.x * each + on.team(), end = min(rows, (blockIdx.x + 1) * each);
        float *part = partial + (u64)blockIdx.x * Norm<On>::VECTORS * cols;
        Norm<On> norm;
        norm.template begin_backward<BLOCK>(on, parameters, room, part, cols);
        __syncthreads();
        for (; row < end; row += BLOCK / On::THREADS) {
            Row<act, On> slope, input;
            hold(slope, on, dy + (u64)row * cols, true);
            hold(input, on, x + (u64)row * cols, true);
            const float *kept = statistics + (u64)row * Norm<On>::STATISTICS;
            norm.gather(on, slope, input, cols, kept, room);
            on.each([&](int k, u32 c) { write<On::N>(dx + (u64)row * cols + c, norm.dx(slope, input, k, c)); });
        }
        norm.template finish<BLOCK>(on, parameters, room, part, cols);
    }
};
