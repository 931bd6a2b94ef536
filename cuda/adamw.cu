// One AdamW step (Loshchilov & Hutter 2019), in the order of PyTorch's.
//   g  = gradient * scale
//   p *= 1 - lr * decay
//   m += (g - m) * (1 - beta1)
//   v  = beta2 * v + (1 - beta2) * g^2
//   p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
// A bf16 parameter is its f32 master, stepped so and rounded to nearest. A master that would be half-way between two bf16
// numbers has its last bit set first: the CPU keeps masters in parts that cannot say half-way (cpu/adamw.rs).
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
#include "tensor_list.cuh"

constexpr int BLOCK = 256;

struct Step {
    float keep, first, beta2, second, size, root, eps, scale;

    __device__ __forceinline__ float element(float p, float gradient, float &m, float &v) const {
        float g = __fmul_rn(gradient, scale);
        m = fmaf(__fsub_rn(g, m), first, m);
        v = fmaf(__fmul_rn(second, g), g, __fmul_rn(beta2, v));
        float denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), root), eps);
        return __fsub_rn(__fmul_rn(p, keep), __fmul_rn(size, __fdiv_rn(m, denominator)));
    }
};

__device__ __forceinline__ float off_half_way(float master) {
    u32 bits = __float_as_uint(master);
    return __uint_as_float(bits | (u32)((bits & 0xFFFF) == 0x8000));
}

struct Operands {
    float *p;
    // The bf16 parameter that p is the master of, or absent.
    bf16 *rounded;
    const float *gradient;
    float *m, *v;
    Step with;

    template <int N> __device__ __forceinline__ void operator()(Width<N>, u64 i) const {
        Numbers<N> next = read<N>(p + i), slope = read<N>(gradient + i);
        Numbers<N> moment = read<N>(m + i), square = read<N>(v + i);
#pragma unroll
        for (int k = 0; k < N; k++) {
            float master = with.element(next[k], slope[k], moment[k], square[k]);
            next[k] = rounded ? off_half_way(master) : master;
        }
        write(p + i, next);
        write(m + i, moment);
        write(v + i, square);
        if (rounded) write(rounded + i, next);
    }
};

struct Widening {
    const bf16 *p;
    float *master;

    template <int N> __device__ __forceinline__ void operator()(Width<N>, u64 i) const {
        write(master + i, read<N>(p + i));
    }
};

#define NUMBERS float keep, float first, float beta2, float second, float size, float root, float eps
#define STEP Step{keep, first, beta2, second, size, root, eps, *scale}

KERNEL(BLOCK) adamw_step_f32(float *p, const float *gradient, float *m, float *v, u32 count, NUMBERS, const float *scale) {
    Chunk(blockIdx.x, count).each<BLOCK>(Operands{p, nullptr, gradient, m, v, STEP});
}

KERNEL(BLOCK)
adamw_step_bf16(bf16 *p, float *master, const float *gradient, float *m, float *v, u32 count, NUMBERS,
                const float *scale) {
    Chunk(blockIdx.x, count).each<BLOCK>(Operands{master, p, gradient, m, v, STEP});
}

// Tensor t's row of the table: its first chunk, its elements, then the addresses of p, master (0 for an f32 parameter),
// gradient, m, v.
constexpr u32 COLUMNS = 7;

KERNEL(BLOCK) adamw_step_all(const u64 *table, const u32 *tensor_of_chunk, NUMBERS, const float *scale) {
    const u64 *row = table + (u64)tensor_of_chunk[blockIdx.x] * COLUMNS;
    bool narrow = row[3] != 0;
    Operands operands = {
        global<float>(table, row[narrow ? 3 : 2]),
        narrow ? global<bf16>(table, row[2]) : nullptr,
        global<float>(table, row[4]),
        global<float>(table, row[5]),
        global<float>(table, row[6]),
        STEP,
    };
    Chunk(blockIdx.x - row[0], row[1]).each<BLOCK>(operands);
}

KERNEL(BLOCK) adamw_widen(const bf16 *p, float *master, u32 count) {
    Chunk(blockIdx.x, count).each<BLOCK>(Widening{p, master});
}
