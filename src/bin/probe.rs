//! `probe`: the runtime's public oracle. Logits, loss and all gradients of given rows, as safetensors.

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use latch::base::{Error, Result};
use latch::cpu::parallel;
use latch::device::Device;
use latch::model::{Model, Precision};
use latch::run::devices;
use latch::run::probe;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs rows of tokens, latents and soft positions through a model and writes logits, loss and gradients.
///
/// The input holds `ids` i64 [rows, T] (-1 = latent position, -2 = soft position) and optionally `labels`
/// i64 [rows, T] (-100 = not trained; position t is scored against labels[t + 1]), `mask.LAYER.SITE` u8
/// [rows, width] (1 = kept; sites emb, attn_out, mlp_out, mlp_hid, latent; metadata `p`), `soft_ids` i64 and
/// `soft_weights` f32 [rows, T, k]. The output holds `logits` [rows, T, V] and, with labels, `loss` [1] and
/// `grad/PARAMETER` for every parameter, through the recurrence, nothing detached.
#[derive(Parser)]
#[command(version, allow_negative_numbers = true)]
struct Arguments {
    /// Hugging Face folder or .gguf file
    #[arg(long)]
    model: PathBuf,
    /// Folder of an adapter (LoRA, as PEFT or train saves it) for the model; gradients are then those of its tensors
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Rows to run (safetensors)
    #[arg(long)]
    input: PathBuf,
    /// Where to write the results (safetensors)
    #[arg(long)]
    output: PathBuf,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// f32, f64, bf16 (matrices in bf16 under f32 activations), or on a GPU bf16-activations (both in bf16)
    #[arg(long, default_value = "f32")]
    dtype: Precision,
    /// Worker threads (0 = one per core)
    #[arg(long, default_value_t = 0, value_parser = RangedU64ValueParser::<usize>::new().range(..=parallel::MOST))]
    threads: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match parallel::with_threads(arguments.threads, || run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error}"));
            ExitCode::from(if matches!(error, Error::Input { .. }) { 2 } else { 1 })
        }
    }
}

/// Writes a line of words for people, whether or not anybody reads it.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn run(arguments: &Arguments) -> Result<()> {
    devices::on(&arguments.device, true, &mut say, |device, _| work(arguments, device))
}

fn work(arguments: &Arguments, device: &Device) -> Result<()> {
    let request = probe::read(&arguments.input)?;
    // Before hours of work.
    probe::check_place(&arguments.output)?;
    let mut model = Model::load(&arguments.model, device, arguments.dtype)?;
    if let Some(adapter) = &arguments.adapter {
        model.load_adapter(adapter)?;
    }
    let answer = probe::probe(&model, &request)?;
    probe::write(&arguments.output, &model, &request, &answer)?;
    let place = arguments.output.display();
    say(&match answer.loss {
        Some(loss) => format!("loss {loss:.6}, {} gradients -> {place}", answer.gradients.len()),
        None => format!("logits only (no labels) -> {place}"),
    });
    Ok(())
}
