// The L2 norm over all gradients, in one fixed order, and the scale that clips it.
//   sum[k] = sum of x[i]^2 over chunk k of 4096 elements     in f32, then one f64 number a chunk
//   norm   = sqrt(sum of sum[k])                             in f64
//   scale  = min(1, max_norm / (norm + 1e-6))
//
//   kernel                 in                         out              grid      block  shared   bytes
//   gradient_norm_sums     x of many tensors          sum[chunks]      chunks    256    32 B     4 an element
//   gradient_norm_finish   sum[chunks]                norm[1] scale[1] 1         1024   8 KiB    8 a chunk
//
// A tensor starts a chunk of its own. A block finds its tensor by the number of its chunk in a table of addresses
// (src/ops/tensor_list.rs): one launch reads all gradients, once. Its threads have four 16-byte vectors each, added in
// the order of their elements, then the block's tree. The second kernel adds the chunks, a thousand of them side by
// side, in an order that depends on their number alone. Both results stay on the device.
#include "tensor_list.cuh"

constexpr int BLOCK = 256;
constexpr int FINISH_BLOCK = 1024;

// Tensor t's row of the table: its first chunk, its elements, its address.
constexpr u32 COLUMNS = 3;

struct Squares {
    const float *x;
    float &sum;

    template <int N> __device__ __forceinline__ void operator()(Width<N>, u64 i) const {
        Numbers<N> a = read<N>(x + i);
#pragma unroll
        for (int k = 0; k < N; k++) sum = fmaf(a[k], a[k], sum);
    }
};

KERNEL(BLOCK) gradient_norm_sums(const u64 *table, const u32 *tensor_of_chunk, double *sums) {
    __shared__ float room[BLOCK / WARP];
    const u64 *row = table + (u64)tensor_of_chunk[blockIdx.x] * COLUMNS;
    float sum = 0.0f;
    Chunk(blockIdx.x - row[0], row[1]).each<BLOCK>(Squares{global<float>(table, row[2]), sum});
    sum = block_sum<BLOCK / WARP>(sum, room);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// `max_norm` is an f64 number by its bits.
KERNEL(FINISH_BLOCK) gradient_norm_finish(const double *sums, u32 chunks, u64 max_norm, float *norm, float *scale) {
    __shared__ double room[FINISH_BLOCK];
    u32 t = threadIdx.x;
    double sum = 0.0;
    for (u32 k = t; k < chunks; k += FINISH_BLOCK) sum += sums[k];
    room[t] = sum;
    for (u32 half = FINISH_BLOCK / 2; half > 0; half /= 2) {
        __syncthreads();
        if (t < half) room[t] += room[t + half];
    }
    if (t > 0) return;
    double bound = __longlong_as_double(max_norm), root = sqrt(room[0]), ratio = bound / (root + 1e-6);
    bool kept = ratio > 1.0 || bound == __longlong_as_double(0x7ff0000000000000);
    *norm = (float)root;
    *scale = kept ? 1.0f : (float)ratio;
}
