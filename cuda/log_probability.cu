// Log-probabilities of targets, entropies, and their gradient, from panels of logits; src/ops/log_probability.rs makes
// the panels with matrix products, so that the logits of all rows never stand together. The row arithmetic is
// softmax.cuh, which the sampler shares.
//
//   s[r,v] = logit[r,v] * scale     log p = (s - M) - ln Z      H = ln Z - (1/Z) sum_v exp(s - M) (s - M)
//   backward   dlogit[r,v] = scale (dlp[r] (1[v = target] - p[r,v]) - dH[r] p[r,v] (log p[r,v] + H[r]))
//
//   kernel                          in                                   out                       grid             block
//   log_probability_fwd_chunks_f32  panel[R,P] target[R]                 parts[R,C',3] logit[R]    ceil(P/4096) R   128
//   log_probability_fwd_finish_f32  parts logit target                   lp M lnZ H [R]            ceil(R/4)        128
//   log_probability_bwd_logits_f32  panel[R,P] target dlp dH M lnZ H     panel (in place)          ceil(P/4096) R   256
//   log_probability_bwd_logits_bf16 the same                             dlogits[R,P] bf16         the same         256
//
//   shared: none; bytes moved: chunks 4 R P; finish 12 R C; logits 8 (bf16: 6) R P
//
// A warp takes a chunk of 1024 columns and leaves (maximum, sum, weighted sum) of it, wherever the panel begins:
// panels are whole chunks, so a row's bits depend on nothing but the row. The parts of a vocabulary of 151936 are 1.8 KB
// a row; one warp merges them. Panels fit the L2 cache between the product that writes them and these kernels.
//
// Rows of panels and of parts begin at whole sectors, whatever the vocabulary: a row of P columns stands `stride` floats
// behind the one before, a multiple of 4 here (of 64 as it is reserved), and C' is C rounded up to whole sectors of parts.
//
// A target outside the vocabulary gives NaN.
#include "softmax.cuh"

constexpr int BLOCK = 256;
constexpr int CHUNK_BLOCK = 128;
constexpr u32 SPAN = 4096; // Columns of a backward block.

// Columns first .. first + cols of the vocabulary stand in panel[rows, stride]; a row has room for `room` parts.
KERNEL(CHUNK_BLOCK)
log_probability_fwd_chunks_f32(const float *panel, u32 cols, u32 stride, u32 first, float scale, const u32 *targets,
                               u32 room, float *parts, float *target_logit) {
    u32 chunk = blockIdx.x * (CHUNK_BLOCK / WARP) + threadIdx.x / WARP, row = blockIdx.y;
    if (chunk * CHUNK >= cols) return;
    Row logits(panel + (u64)row * stride, cols);
    float4 s[CHUNK_QUADS];
    logits.load(chunk * (CHUNK / 4), s);
#pragma unroll
    for (int j = 0; j < CHUNK_QUADS; j++) s[j] = scaled(s[j], scale);
    Part part = part_of_chunk<true>(s);
    store_part(parts + PART * ((u64)row * room + first / CHUNK), chunk, part);
    u32 target = targets[row] - first; // Far outside where it lies before.
    if (threadIdx.x % WARP == 0 && target / CHUNK == chunk && target < cols)
        target_logit[row] = __fmul_rn(logits.start[target], scale);
}

KERNEL(CHUNK_BLOCK)
log_probability_fwd_finish_f32(const float *parts, u32 rows, u32 chunks, u32 room, u32 vocabulary, const u32 *targets,
                               const float *target_logit, float *score, float *maximum, float *log_sum, float *entropy,
                               float *entropy_out) {
    u32 row = blockIdx.x * (CHUNK_BLOCK / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    Part part = merge_parts<true>(parts + (u64)PART * row * room, chunks);
    if (threadIdx.x % WARP) return;
    float log_z = part.log_sum(), h = part.entropy();
    maximum[row] = part.maximum;
    log_sum[row] = log_z;
    entropy[row] = h;
    if (entropy_out) entropy_out[row] = h;
    bool known = targets[row] < vocabulary;
    score[row] = known ? log_probability(target_logit[row], part.maximum, log_z) : __int_as_float(0x7fc00000);
}

// What the gradient of a row's logits needs.
struct Slope {
    u32 target;
    float scale, maximum, log_sum, entropy, d_score, d_entropy;

    __device__ __forceinline__ float of(float logit, u32 col) const {
        float log_p = log_probability(__fmul_rn(logit, scale), maximum, log_sum);
        float slope = __fmaf_rn(d_entropy, __fadd_rn(log_p, entropy), d_score);
        // Minus infinity is probability 0; its entropy term is 0 * infinity.
        float p = exponential(log_p), d = p == 0.0f ? 0.0f : __fmul_rn(p, -__fmul_rn(scale, slope));
        return col == target ? __fadd_rn(d, __fmul_rn(scale, d_score)) : d;
    }
    __device__ __forceinline__ float4 of(float4 x, u32 col) const {
        return make_float4(of(x.x, col), of(x.y, col + 1), of(x.z, col + 2), of(x.w, col + 3));
    }
};

__device__ __forceinline__ void store_four(float *to, float4 x) { *reinterpret_cast<float4 *>(to) = x; }
__device__ __forceinline__ void store_four(bf16 *to, float4 x) {
    __nv_bfloat162 low = __floats2bfloat162_rn(x.x, x.y), high = __floats2bfloat162_rn(x.z, x.w);
    *reinterpret_cast<uint2 *>(to) = make_uint2(*reinterpret_cast<u32 *>(&low), *reinterpret_cast<u32 *>(&high));
}

// `panel` and `out` may be the same memory; both have the same stride.
template <typename out_t>
__device__ __forceinline__ void backward(const float *panel, u32 cols, u32 stride, u32 first, float scale,
                                         const u32 *targets, const float *d_score, const float *d_entropy,
                                         const float *maximum, const float *log_sum, const float *entropy, out_t *out) {
    u32 row = blockIdx.y, begin = blockIdx.x * SPAN;
    Slope slope = {targets[row] - first, scale,        maximum[row], log_sum[row],
                   entropy[row],         d_score[row], d_entropy ? d_entropy[row] : 0.0f};
    panel += (u64)row * stride;
    out += (u64)row * stride;
    u32 whole = cols / 4 * 4, end = min(begin + SPAN, whole);
    for (u32 col = begin + 4 * threadIdx.x; col < end; col += 4 * BLOCK)
        store_four(out + col, slope.of(*reinterpret_cast<const float4 *>(panel + col), col));
    // At most three columns are no whole piece.
    u32 col = whole + threadIdx.x;
    if (blockIdx.x == 0 && col < cols) store(out + col, slope.of(panel[col], col));
}

KERNEL(BLOCK)
log_probability_bwd_logits_f32(float *panel, u32 cols, u32 stride, u32 first, float scale, const u32 *targets,
                               const float *d_score, const float *d_entropy, const float *maximum, const float *log_sum,
                               const float *entropy) {
    backward(panel, cols, stride, first, scale, targets, d_score, d_entropy, maximum, log_sum, entropy, panel);
}
KERNEL(BLOCK)
log_probability_bwd_logits_bf16(const float *panel, u32 cols, u32 stride, u32 first, float scale, const u32 *targets,
                                const float *d_score, const float *d_entropy, const float *maximum, const float *log_sum,
                                const float *entropy, bf16 *out) {
    backward(panel, cols, stride, first, scale, targets, d_score, d_entropy, maximum, log_sum, entropy, out);
}
