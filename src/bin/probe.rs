//! `probe`: the runtime's public oracle. Logits, loss and all gradients of given rows, as safetensors.

#[path = "shared/ending.rs"]
mod ending;
#[path = "shared/machine.rs"]
mod machine;
#[path = "shared/model.rs"]
mod model;
#[path = "shared/words.rs"]
mod words;

use clap::Parser;
use latch::base::Result;
use latch::cpu::parallel;
use latch::device::Device;
use latch::model::Model;
use latch::run::devices;
use latch::run::probe;
use machine::MachineArguments;
use model::ModelArguments;
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs rows of tokens, latents and soft positions through a model and writes logits, loss and gradients.
///
/// The input holds `ids` i64 [rows, T] (-1 = latent position, -2 = soft position) and optionally `labels`
/// i64 [rows, T] (-100 = not trained; position t is scored against labels[t + 1]), `mask.LAYER.SITE` u8
/// [rows, width] (1 = kept; sites emb, attn_out, mlp_out, mlp_hid, latent; metadata `p`), `soft_ids` i64 and
/// `soft_weights` f32 [rows, T, k]. The output holds `logits` [rows, T, V] and, with labels, `loss` [1] and
/// `grad/PARAMETER` for every parameter (with an adapter: for each of its tensors), through the recurrence, nothing
/// detached.
#[derive(Parser)]
#[command(version, allow_negative_numbers = true)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Rows to run (safetensors)
    #[arg(long)]
    input: PathBuf,
    /// Where to write the results (safetensors)
    #[arg(long)]
    output: PathBuf,
    #[command(flatten)]
    machine: MachineArguments,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    ending::ended(
        parallel::with_threads(arguments.machine.threads, || run(&arguments)).map(|()| ExitCode::SUCCESS),
    )
}

fn run(arguments: &Arguments) -> Result<()> {
    devices::on(&arguments.machine.device, true, &mut words::say, |device, _| work(arguments, device))
}

fn work(arguments: &Arguments, device: &Device) -> Result<()> {
    let request = probe::read(&arguments.input)?;
    // Before hours of work.
    probe::check_place(&arguments.output)?;
    let mut model = Model::load(&arguments.model.model, device, arguments.machine.dtype)?;
    if let Some(adapter) = &arguments.model.adapter {
        model.load_adapter(adapter)?;
    }
    let answer = probe::probe(&model, &request)?;
    probe::write(&arguments.output, &model, &request, &answer)?;
    let place = arguments.output.display();
    words::say(&match answer.loss {
        Some(loss) => format!("loss {loss:.6}, {} gradients -> {place}", answer.gradients.len()),
        None => format!("logits only (no labels) -> {place}"),
    });
    Ok(())
}
