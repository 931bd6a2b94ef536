//! The flags that say where a model runs, and how its numbers are held.

use clap::Args;
use clap::builder::RangedU64ValueParser;
use latch::cpu::parallel;
use latch::model::Precision;

/// Where a model runs.
#[derive(Args, Debug)]
pub struct MachineArguments {
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// f32, f64 (on the CPU), bf16 (matrices in bf16 under f32 activations), or on a GPU bf16-activations (both in bf16)
    #[arg(long, default_value = "f32")]
    pub dtype: Precision,
    /// Worker threads (0 = one per core)
    #[arg(long, default_value_t = 0, value_parser = RangedU64ValueParser::<usize>::new().range(..=parallel::MOST))]
    pub threads: usize,
}
