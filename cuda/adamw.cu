// One AdamW step (Loshchilov & Hutter 2019), in the order of PyTorch's.
//   g  = gradient * scale
//   p *= 1 - lr * decay
//   m += (g - m) * (1 - beta1)
//   v  = beta2 * v + (1 - beta2) * g^2
//   p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
// A bf16 parameter is its f32 master, stepped so and rounded to nearest, ties to even.
//
//   kernel            in                                  out             grid              block  bytes an element
//   adamw_step_f32    p g m v [N]                         p m v           ceil(N / 4096)    256    28
//   adamw_step_bf16   master g m v [N]                    p master m v    ceil(N / 4096)    256    30
//   adamw_step_all    the same of many tensors            the same        chunks of 4096    256    28 or 30
//   adamw_widen       p[N] bf16                           master[N]       ceil(N / 4096)    256    6
//
// No shared memory. A block has 4096 neighbouring elements of one tensor, a thread four times 16 bytes of each stream:
// whole sectors, four loads of a thread on their way at once, and enough threads beside it to fill the memory's queue.
// `adamw_step_all` finds its tensor by the number of its chunk in a table of addresses, built once on the host
// (src/ops/tensor_list.rs): one launch steps a whole model, of tensors of both dtypes.
//
// `scale` is read from device memory: the norm that it comes from is not known to the host. The other numbers are
// computed in f64 on the host and rounded once. Every operation is one IEEE rounding as written (no contraction by the
// compiler), so that the results have the bits of the CPU's f32 kernel.
#include "indexed_rows.cuh"

constexpr int BLOCK = 256;
constexpr u32 CHUNK = 4096;

struct Step {
    float keep, first, beta2, second, size, root, eps, scale;

    __device__ __forceinline__ float element(float p, float gradient, float &m, float &v) const {
        float g = __fmul_rn(gradient, scale);
        m = fmaf(__fsub_rn(g, m), first, m);
        v = fmaf(__fmul_rn(second, g), g, __fmul_rn(beta2, v));
        float denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), root), eps);
        return __fsub_rn(__fmul_rn(p, keep), __fmul_rn(size, __fdiv_rn(m, denominator)));
    }

    template <int V>
    __device__ __forceinline__ Pack<V> elements(Pack<V> p, Pack<V> gradient, Pack<V> &m, Pack<V> &v) const {
#pragma unroll
        for (int i = 0; i < V; i++) p.x[i] = element(p.x[i], gradient.x[i], m.x[i], v.x[i]);
        return p;
    }
};

struct Operands {
    float *p;
    // The bf16 parameter that p is the master of, or absent.
    bf16 *rounded;
    const float *gradient;
    float *m, *v;

    template <int V>
    __device__ __forceinline__ void step(const Step &step, u64 i) const {
        Pack<V> moment = load_pack<V>(m + i), square = load_pack<V>(v + i);
        Pack<V> next = step.elements<V>(load_pack<V>(p + i), load_pack<V>(gradient + i), moment, square);
        store_pack(p + i, next);
        store_pack(m + i, moment);
        store_pack(v + i, square);
        if (rounded) store_pack(rounded + i, next);
    }

    // Elements first..end of the tensor: vectors, then at most three elements at the tensor's own end.
    __device__ __forceinline__ void chunk(const Step &with, u64 first, u64 end) const {
        u64 whole = first + (end - first) / 4 * 4;
#pragma unroll
        for (u32 k = 0; k < CHUNK / (4 * BLOCK); k++) {
            u64 i = first + 4 * (k * BLOCK + threadIdx.x);
            if (i < whole) step<4>(with, i);
        }
        if (whole + threadIdx.x < end) step<1>(with, whole + threadIdx.x);
    }
};

__device__ __forceinline__ void step_one(const Operands &operands, u32 count, const Step &step) {
    u32 first = blockIdx.x * CHUNK;
    operands.chunk(step, first, min(first + CHUNK, count));
}

#define NUMBERS float keep, float first, float beta2, float second, float size, float root, float eps
#define STEP Step{keep, first, beta2, second, size, root, eps, *scale}

KERNEL(BLOCK) adamw_step_f32(float *p, const float *gradient, float *m, float *v, u32 count, NUMBERS, const float *scale) {
    step_one({p, nullptr, gradient, m, v}, count, STEP);
}

KERNEL(BLOCK)
adamw_step_bf16(bf16 *p, float *master, const float *gradient, float *m, float *v, u32 count, NUMBERS,
                const float *scale) {
    step_one({master, p, gradient, m, v}, count, STEP);
}

// Tensor t's row of the table: its first chunk, its elements, then the addresses of p, master (0 for an f32 parameter),
// gradient, m, v.
constexpr u32 COLUMNS = 7;

KERNEL(BLOCK) adamw_step_all(const u64 *table, const u32 *tensor_of_chunk, NUMBERS, const float *scale) {
    const u64 *row = table + (u64)tensor_of_chunk[blockIdx.x] * COLUMNS;
    u64 start = (blockIdx.x - row[0]) * CHUNK, end = min(start + CHUNK, row[1]);
    bool narrow = row[3] != 0;
    Operands operands = {
        global<float>(table, row[narrow ? 3 : 2]),
        narrow ? global<bf16>(table, row[2]) : nullptr,
        global<float>(table, row[4]),
        global<float>(table, row[5]),
        global<float>(table, row[6]),
    };
    operands.chunk(STEP, start, end);
}

KERNEL(BLOCK) adamw_widen(const bf16 *p, float *master, u32 count) {
    u32 first = blockIdx.x * CHUNK, end = min(first + CHUNK, count), whole = first + (end - first) / 4 * 4;
#pragma unroll
    for (u32 k = 0; k < CHUNK / (4 * BLOCK); k++) {
        u32 i = first + 4 * (k * BLOCK + threadIdx.x);
        if (i < whole) store_pack(master + i, load_pack<4>(p + i));
    }
    if (whole + threadIdx.x < end) store(master + whole + threadIdx.x, load(p + whole + threadIdx.x));
}
