// The masked residual sum and the norm of its result in one pass: masked_residual.cu followed by rmsnorm.cu or
// layernorm.cu, to the same bits forward.
//
//   forward   y[r,c] = x[r,c] + m[r,c] * branch[r,c]      normed[r] = norm(y[r])
//   backward  dy[r] += norm'(y[r]) dnormed[r]             dbranch[r,c] = m[r,c] * dy[r,c]
//             the gradients of gain and bias are added; dy is the residual stream's gradient before and after
//
//   kernel                      in                           out                        grid          block  shared
//   residual_norm_fwd_rms_*     x branch [R,C] mask w        y normed [R,C] rstd[R]     ceil(R/each)  512    8.5 KB
//   residual_norm_fwd_layer_*   x branch [R,C] mask w b      y normed [R,C] stats[R,2]  ceil(R/each)  512    8.5 KB
//   residual_norm_bwd_rms_*     dnormed y [R,C] mask w rstd  dy dbranch partial[G,C]    ceil(R/each)  256    38 KB
//   residual_norm_bwd_layer_*   dnormed y [R,C] mask w stats dy dbranch partial[G,2,C]  ceil(R/each)  256    38 KB
//
//   moved, a = bytes of act: forward (4 a + 1/8) R C where three kernels move 7 a; backward (5 a + 1/8) R C, not 8 a
//
// The rounded sum is what is normed, so forward equals the separate kernels bit for bit. Backward adds the norm's
// gradient to dy before it is rounded, which is one rounding less than the separate kernels make in bf16.
// Rows are owned, and the gradients of gain and bias summed, as norms.cuh and rmsnorm.cu say; blocks' partial sums are
// added by rmsnorm_bwd_dw and layernorm_bwd_dw. A block takes at most 32 rows forward: their instances are read by one
// access and wait in shared memory. Backward asks for one block a multiprocessor: told nothing, ptxas aims at two of
// the f32 kernel and spills.
#include "masks.cuh"
#include "norms.cuh"

constexpr int FORWARD = 512, BACKWARD = 256;
// Most rows of a block, forward.
constexpr u32 ROWS = 32;

template <template <typename> class Norm, typename act> struct Forward {
    const act *x, *branch;
    Mask mask;
    Parameters parameters;
    u32 rows, cols, each;
    act *y, *normed;
    float *statistics;
    Room room;
    int *instances;

    template <typename On> __device__ __forceinline__ void operator()(On on) const {
        u32 first = blockIdx.x * each, row = first + on.team(), end = min(rows, first + each);
        Norm<On> norm;
        norm.template bring<FORWARD>(on, parameters, room);
        if (mask.bits && threadIdx.x < end - first) instances[threadIdx.x] = mask.instance[first + threadIdx.x];
        // The first row is on its way while the gain arrives.
        Row<act, On> held, added;
        hold(held, on, x + (u64)row * cols, row < end);
        hold(added, on, branch + (u64)row * cols, row < end);
        __syncthreads();
        while (row < end) {
            MaskRow factor = mask.of(mask.bits ? instances[row - first] : -1);
            MaskPieces<On> pieces;
            pieces.bring(on, factor);
            act *out = y + (u64)row * cols;
            on.each([&](int k, u32 c) {
                Piece<act, On::N> sum;
                sum.set(masked_sum(held(k, c), added(k, c), pieces.bits(k, c), factor.scale));
                sum.write(out + c);
                if constexpr (On::MAX > 0) held.piece[k] = sum;
            });
            if constexpr (On::MAX == 0) held.p = out;
            float *kept = statistics + (u64)row * Norm<On>::STATISTICS;
            norm.forward(on, held, parameters.eps, cols, normed + (u64)row * cols, kept, room);
            row += FORWARD / On::THREADS;
            hold(held, on, x + (u64)row * cols, row < end);
            hold(added, on, branch + (u64)row * cols, row < end);
        }
    }
};

template <template <typename> class Norm, typename act> struct Backward {
    const act *dnormed, *y;
    Mask mask;
    Parameters parameters;
    const float *statistics;
    u32 rows, cols, each;
    act *dy, *dbranch;
    float *partial;
    Room room;

    template <typename On> __device__ __forceinline__ void operator()(On on) const {
        u32 row = blockIdx.x * each + on.team(), end = min(rows, (blockIdx.x + 1) * each);
        float *part = partial + (u64)blockIdx.x * Norm<On>::VECTORS * cols;
        Norm<On> norm;
        norm.template begin_backward<BACKWARD>(on, parameters, room, part, cols);
        __syncthreads();
        for (; row < end; row += BACKWARD / On::THREADS) {
            u64 at = (u64)row * cols;
            // The gradient that is added to is asked for with the rest: behind the first store it would wait for it.
            Row<act, On> slope, input, stream;
            hold(slope, on, dnormed + at, true);
            hold(input, on, y + at, true);
            hold(stream, on, dy + at, true);
            norm.gather(on, slope, input, cols, statistics + (u64)row * Norm<On>::STATISTICS, room);
            MaskRow factor = mask.of(mask.bits ? mask.instance[row] : -1);
            MaskPieces<On> pieces;
            pieces.bring(on, factor);
            on.each([&](int k, u32 c) {
                Numbers<On::N> v = norm.dx(slope, input, k, c), sum = stream(k, c);
                for (int i = 0; i < On::N; i++) sum[i] = __fadd_rn(sum[i], v[i]);
                Piece<act, On::N> rounded;
                rounded.set(sum);
                rounded.write(dy + at + c);
                write<On::N>(dbranch + at + c, masked(rounded.numbers(), pieces.bits(k, c), factor.scale));
            });
        }
        norm.template finish<BACKWARD>(on, parameters, room, part, cols);
    }
};

template <template <typename> class Norm, typename act>
__device__ __forceinline__ void forward(const act *x, const act *branch, const Mask &mask, const Parameters &parameters,
                                        u32 rows, u32 cols, u32 each, act *y, act *normed, float *statistics) {
    __shared__ float warps[FORWARD / WARP];
    __shared__ __align__(16) float shelf[2][Shelf::FLOATS];
    __shared__ int instances[ROWS];
    Room room = {warps, {shelf[0]}, {shelf[1]}};
    Forward<Norm, act> run = {x, branch, mask, parameters, rows, cols, each, y, normed, statistics, room, instances};
    by_width<act, FORWARD>(cols, run);
}

template <template <typename> class Norm, typename act>
__device__ __forceinline__ void backward(const act *dnormed, const act *y, const Mask &mask,
                                         const Parameters &parameters, const float *statistics, u32 rows, u32 cols,
                                         u32 each, act *dy, act *dbranch, float *partial) {
    __shared__ float warps[BACKWARD / WARP];
    __shared__ __align__(16) float shelf[1 + BACKWARD / WARP][Shelf::FLOATS];
    Room room = {warps, {shelf[0]}, {shelf[1]}};
    Backward<Norm, act> run = {dnormed, y, mask, parameters, statistics, rows, cols, each, dy, dbranch, partial, room};
    by_width<act, BACKWARD>(cols, run);
}

#define RESIDUAL_NORM(act, name)                                                                                       \
    KERNEL(FORWARD)                                                                                                    \
    residual_norm_fwd_rms_##name(const act *x, const act *branch, const u32 *bits, const int *instance, u32 instances, \
                                 u32 stride, u32 offset, float scale, const float *w, float eps, u32 rows, u32 cols,   \
                                 u32 each, act *y, act *normed, float *rstd) {                                         \
        Mask mask = {bits, instance, stride, offset, scale, instances};                                                \
        Parameters parameters = {w, nullptr, eps, nullptr, nullptr};                                                   \
        forward<RmsNorm>(x, branch, mask, parameters, rows, cols, each, y, normed, rstd);                              \
    }                                                                                                                  \
    KERNEL(FORWARD)                                                                                                    \
    residual_norm_fwd_layer_##name(const act *x, const act *branch, const u32 *bits, const int *instance,              \
                                   u32 instances, u32 stride, u32 offset, float scale, const float *w, const float *b, \
                                   float eps, u32 rows, u32 cols, u32 each, act *y, act *normed, float *statistics) {  \
        Mask mask = {bits, instance, stride, offset, scale, instances};                                                \
        Parameters parameters = {w, b, eps, nullptr, nullptr};                                                         \
        forward<LayerNorm>(x, branch, mask, parameters, rows, cols, each, y, normed, statistics);                      \
    }                                                                                                                  \
    KERNEL(BACKWARD, 1)                                                                                                \
    residual_norm_bwd_rms_##name(const act *dnormed, const act *y, const u32 *bits, const int *instance,               \
                                 u32 instances, u32 stride, u32 offset, float scale, const float *w,                   \
                                 const float *rstd, u32 rows, u32 cols, u32 each, act *dy, act *dbranch,               \
                                 float *partial, float *dw) {                                                          \
        Mask mask = {bits, instance, stride, offset, scale, instances};                                                \
        Parameters parameters = {w, nullptr, 0.0f, dw, nullptr};                                                       \
        backward<RmsNorm>(dnormed, y, mask, parameters, rstd, rows, cols, each, dy, dbranch, partial);                 \
    }                                                                                                                  \
    KERNEL(BACKWARD, 1)                                                                                                \
    residual_norm_bwd_layer_##name(const act *dnormed, const act *y, const u32 *bits, const int *instance,             \
                                   u32 instances, u32 stride, u32 offset, float scale, const float *w,                 \
                                   const float *statistics, u32 rows, u32 cols, u32 each, act *dy, act *dbranch,       \
                                   float *partial, float *dw, float *db) {                                             \
        Mask mask = {bits, instance, stride, offset, scale, instances};                                                \
        Parameters parameters = {w, nullptr, 0.0f, dw, db};                                                            \
        backward<LayerNorm>(dnormed, y, mask, parameters, statistics, rows, cols, each, dy, dbranch, partial);         \
    }

RESIDUAL_NORM(float, f32)
RESIDUAL_NORM(bf16, bf16)
