// Attention of single steps: latent steps and sampled tokens, where a row has one or few new positions and many keys.
// The plan and the kernel for prompts are in attention.cu.
//
//   kernel                       in                             out                 grid                          block
//   attention_decode_d64_*       q cache entries items slots    out statistics      items (any number), kv_heads  128
//   attention_decode_d128_*      the same
//   attention_decode_to128_*     head_dim up to 128
//   attention_decode_to256_*     head_dim up to 256
//
// A block of threads an item and key-value head: query rows that share a block of 64 keys, that block
// (attention_decode.cuh). So a single row of n keys keeps kv_heads x n / 64 blocks of threads busy, and rollouts of a
// group read the prompt they share once for up to 64 of their query rows. The last of a row's blocks merges the states
// of all: one launch, no float atomics, one order of sums.
//
// Shared memory: (rows + 128) x head_dim elements, rows 16 to 64: 18 KB at head_dim 64 in bf16; heads above 512 bytes
// keep one tile of 64 instead of two. Bytes moved: keys and values once for the query rows of an item; states, head_dim
// + 2 floats a query row and block of 64 keys, written once and read once, which stay in the L2 cache: 1/16 of the keys
// and values in bf16 where each key-value head has one query head and nothing is shared.
#include "attention_decode.cuh"

DECODE(attention_decode_d64_bf16, bf16, 64, 64, 4, 4, true)
DECODE(attention_decode_d128_bf16, bf16, 128, 128, 4, 4, true)
DECODE(attention_decode_to128_bf16, bf16, 128, 128, 4, 3, false)
DECODE(attention_decode_to256_bf16, bf16, 256, 256, 4, 2, false)
DECODE(attention_decode_d64_f32, float, 64, 64, 4, 4, true)
DECODE(attention_decode_d128_f32, float, 128, 128, 4, 3, true)
DECODE(attention_decode_to128_f32, float, 128, 128, 4, 3, false)
DECODE(attention_decode_to256_f32, float, 256, 256, 4, 2, false)
