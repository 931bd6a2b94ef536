//! Rows added to rows named by an index, in a fixed order: what the backward passes of embedding, gather and latent
//! share on a GPU. Kernels: cuda/scatter.cu. On the CPU each of them adds by itself.
//! Parity: tests/parity/embedding.rs, gather.rs, latent.rs.

use super::launch::{ABSENT, arguments, by_dtype, kernels, rows_grid, size};
use super::mask::MaskAt;
use super::{Tensor, View, ViewMut};
use crate::base::{Dtype, Error, Result};
use crate::device::{Argument, Device, Grid, Kernel, Launcher};
use std::sync::Arc;

kernels!("scatter":
    TILES_ROWS = "scatter_tiles_rows",
    TILES_TOKENS = "scatter_tiles_tokens",
    TILES_LATENTS = "scatter_tiles_latents",
    RANKS = "scatter_ranks",
    ADD_ROWS_F32 = "scatter_add_rows_f32",
    ADD_ROWS_BF16 = "scatter_add_rows_bf16",
    ADD_ROWS_BF16_F32 = "scatter_add_rows_bf16_f32",
    ADD_TOKENS_F32 = "scatter_add_tokens_f32",
    ADD_TOKENS_BF16 = "scatter_add_tokens_bf16",
    ADD_LATENTS_F32 = "scatter_add_latents_f32",
    ADD_LATENTS_BF16 = "scatter_add_latents_bf16",
);
