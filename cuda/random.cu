// Constants and normal random numbers (src/cpu/random.rs).
//
//   fill         x[i] = value
//   normal       x[4b .. 4b+3] = deviation * four normals of Philox(key, (0, 0, b, 0))
//   add_normal   x[n, 4b .. 4b+3] += deviation * four normals of Philox(key_n, (0, step_n, b, 0))
//   four normals of words a b c d: two pairs by Box and Muller, sqrt(-2 ln u(a)) (cos, sin)(2 pi u(b)), then c and d;
//   u(word) = (word + 1/2) / 2^32
//
//   kernel                  in                   out       grid                       block   moved (a = bytes of act)
//   random_fill_*           -                    x[n]      ceil(n / (256 * 16/a))     256     a n
//   random_normal_*         -                    x[n]      ceil(n / 1024)             256     a n
//   random_add_normal_*     keys[R,3] x[R,C]     x[R,C]    ceil(R ceil(C/4) / 256)    256     2 a R C
//
// A thread makes the four normals of one block. The words are the CPU's; the normals agree within tolerance
// (normals.cuh).
#include "normals.cuh"
#include "vector.cuh"

constexpr int BLOCK = 256;

__device__ __forceinline__ Numbers<4> four_normals(uint4 words, float deviation) {
    float2 first = two_normals(words.x, words.y, deviation), second = two_normals(words.z, words.w, deviation);
    Numbers<4> x;
    x[0] = first.x;
    x[1] = first.y;
    x[2] = second.x;
    x[3] = second.y;
    return x;
}

template <typename act> struct Fill {
    float value;
    act *x;
    template <int N> __device__ __forceinline__ void operator()(Width<N>, u32 at) const {
        Numbers<N> v;
        for (int i = 0; i < N; i++) v[i] = value;
        write<N>(x + at, v);
    }
};

// Puts what there is room for of four numbers at `p`.
template <typename act> __device__ __forceinline__ void put(act *p, u32 room, const Numbers<4> &x) {
    if (room >= 4 && multiples(4 * sizeof(act), p)) return write<4>(p, x);
    for (int i = 0; i < 4; i++)
        if (i < room) store(p + i, x[i]);
}

template <typename act> __device__ __forceinline__ void normal(u32 key0, u32 key1, float deviation, u32 count, act *x) {
    u32 block = blockIdx.x * BLOCK + threadIdx.x, at = 4 * block;
    if (at >= count) return;
    uint4 words = philox(make_uint2(key0, key1), make_uint4(0, 0, block, 0));
    put(x + at, count - at, four_normals(words, deviation));
}

template <typename act>
__device__ __forceinline__ void add_normal(const u32 *keys, float deviation, u32 rows, u32 cols, act *x) {
    u32 blocks = (cols + 3) / 4, thread = blockIdx.x * BLOCK + threadIdx.x;
    u32 row = thread / blocks, block = thread % blocks, at = 4 * block;
    if (row >= rows) return;
    const u32 *key = keys + 3 * row;
    uint4 words = philox(make_uint2(key[0], key[1]), make_uint4(0, key[2], block, 0));
    Numbers<4> noise = four_normals(words, deviation);
    act *p = x + (u64)row * cols + at;
    u32 room = cols - at;
    if (room >= 4 && multiples(4 * sizeof(act), p)) {
        Numbers<4> v = read<4>(p);
        for (int i = 0; i < 4; i++) v[i] = __fadd_rn(v[i], noise[i]);
        return write<4>(p, v);
    }
    for (int i = 0; i < 4; i++)
        if (i < room) store(p + i, __fadd_rn(load(p + i), noise[i]));
}

KERNEL(BLOCK) random_fill_f32(float value, u32 count, float *x) {
    elements<4, BLOCK>(count, multiples(16, x), Fill<float>{value, x});
}
KERNEL(BLOCK) random_fill_bf16(float value, u32 count, bf16 *x) {
    elements<8, BLOCK>(count, multiples(16, x), Fill<bf16>{value, x});
}
KERNEL(BLOCK) random_normal_f32(u32 key0, u32 key1, float deviation, u32 count, float *x) {
    normal(key0, key1, deviation, count, x);
}
KERNEL(BLOCK) random_normal_bf16(u32 key0, u32 key1, float deviation, u32 count, bf16 *x) {
    normal(key0, key1, deviation, count, x);
}
KERNEL(BLOCK) random_add_normal_f32(const u32 *keys, float deviation, u32 rows, u32 cols, float *x) {
    add_normal(keys, deviation, rows, cols, x);
}
KERNEL(BLOCK) random_add_normal_bf16(const u32 *keys, float deviation, u32 rows, u32 cols, bf16 *x) {
    add_normal(keys, deviation, rows, cols, x);
}
