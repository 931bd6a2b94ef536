// The same numbers in another dtype (src/cpu/cast.rs): f32 to bf16 by rounding to nearest, ties to even; bf16 to f32
// exactly.
//
//   kernel          in           out          grid                 block   moved
//   cast_f32_bf16   x[n] f32     y[n] bf16    ceil(n / 1024)       256     6 n
//   cast_bf16_f32   x[n] bf16    y[n] f32     ceil(n / 1024)       256     6 n
//
// A thread takes four numbers: 128 bits on the f32 side, 64 on the bf16 side. With eight, neighbouring threads would
// be 32 bytes apart on the f32 side, and each access would touch twice the sectors it needs.
#include "vector.cuh"

constexpr int BLOCK = 256;

template <typename from, typename to> struct Cast {
    const from *x;
    to *y;
    template <int N> __device__ __forceinline__ void operator()(Width<N>, u32 at) const {
        write<N>(y + at, read<N>(x + at));
    }
};

KERNEL(BLOCK) cast_f32_bf16(const float *x, u32 count, bf16 *y) {
    elements<4, BLOCK>(count, multiples(16, x) && multiples(8, y), Cast<float, bf16>{x, y});
}

KERNEL(BLOCK) cast_bf16_f32(const bf16 *x, u32 count, float *y) {
    elements<4, BLOCK>(count, multiples(8, x) && multiples(16, y), Cast<bf16, float>{x, y});
}
