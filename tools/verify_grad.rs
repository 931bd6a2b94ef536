//! `verify_grad`: every gradient against central differences in f64, as a table.

#[path = "../src/bin/shared/ending.rs"]
mod ending;
#[path = "../src/bin/shared/output.rs"]
mod output;
#[path = "verify_grad/rounding.rs"]
mod rounding;
#[path = "verify_grad/table.rs"]
mod table;
#[path = "../src/bin/shared/words.rs"]
mod words;

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use latch::base::{Error, Result};
use latch::cpu::parallel;
use latch::device::Device;
use latch::model::{Precision, Truncation};
use latch::ops::mask::SiteKind;
use latch::run::devices;
use latch::verify::gradient::RANDOM_PROBES;
use latch::verify::suite::{self, Options};
use std::path::PathBuf;
use std::process::ExitCode;
use table::Table;

const EXAMPLES: &str = "\
Examples:
  verify_grad                                     everything, on small random models
  verify_grad --only attention --tensors          one operation, a line a tensor
  verify_grad --only 'model qwen3' --steps 6      one family through six latent steps
  verify_grad --model ./my-model --probes 2       a trained model (folder or .gguf), two entries a tensor
  verify_grad --device sim --dtype bf16-activations   logits and gradients of whole models in bf16, by norms
  verify_grad --plant linear/w                    self-test: a wrong dW must be found (exit code 1)
  verify_grad --plant recurrence --only model     self-test: a backward pass that forgets the latents

Error of an entry: |g - d| / max(|g|, |d|, 1e-3 max|g| of its tensor), d by Richardson extrapolation of central
differences in f64; at most 1e-6. f32 gradients: against the f64 gradient at the same entries, at most 1e-3 with
a floor of 1e-2 max|g|. Exit code 0: all agree; 1: a gradient is wrong, or a check failed to run; 2: the command or its model is wrong.";

/// Checks every operation, every family's layer, and every family's whole model through latent steps, with masks
/// on all sites and a shared prompt, against central differences in f64.
#[derive(Parser)]
#[command(version, allow_negative_numbers = true, after_help = EXAMPLES)]
pub struct Arguments {
    /// Check this model (Hugging Face folder or .gguf) instead of operations, layers and small random models
    #[arg(long)]
    model: Option<PathBuf>,
    /// Latent steps
    #[arg(long, default_value_t = 3)]
    steps: usize,
    /// Masked sites: `all`, `none`, or some of emb,attn_out,mlp_out,mlp_hid,latent
    #[arg(long, default_value = "all")]
    sites: String,
    /// Tokens of the shared prompt (half of them where prompts are not shared); the default reaches over the first
    /// block of 64 keys
    #[arg(long, default_value_t = 66)]
    prompt: usize,
    /// Device of the f32 gradients of layers and models: auto, cpu, cuda or cuda:N. Differences and f64 gradients
    /// are always computed on the CPU, and so are single operations
    #[arg(long, default_value = "cpu")]
    device: String,
    /// f32, or bf16 (matrices) or bf16-activations (on a GPU): then whole models in that precision are compared with f64,
    /// tensor by tensor in norm, beside what f32 is off by there
    #[arg(long, default_value = "f32")]
    dtype: Precision,
    /// Random entries probed per tensor, besides the 8 largest (or fewer, where this is less than 8)
    #[arg(long, default_value_t = RANDOM_PROBES)]
    probes: usize,
    /// Only checks whose name contains this text
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Chooses weights of the small models, tokens, masks, probed entries and directions
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Worker threads (0 = one per core)
    #[arg(long, default_value_t = 0, value_parser = RangedU64ValueParser::<usize>::new().range(..=parallel::MOST))]
    threads: usize,
    /// Self-test: spoil a gradient, OPERATION/VARIABLE or CHECK/PARAMETER, with :swap (default), :drop, :scale or
    /// :f32; or `recurrence` or `cache`, which whole models' backward pass then forgets
    #[arg(long, value_name = "WHAT")]
    plant: Option<String>,
    /// Print the names of all checks and of the operations' gradients, and stop
    #[arg(long)]
    list: bool,
    /// A line for every tensor
    #[arg(long, conflicts_with = "json")]
    tensors: bool,
    /// One JSON object a tensor and a summary, on stdout
    #[arg(long)]
    json: bool,
    /// Only failures and the last line
    #[arg(long, short)]
    quiet: bool,
}

fn main() -> ExitCode {
    let code = |agree: bool| if agree { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    ending::ended(run(&Arguments::parse()).map(code))
}

/// Whether every gradient agrees.
fn run(arguments: &Arguments) -> Result<bool> {
    let mut say = words::say;
    devices::on(&arguments.device, true, &mut say, |device, _| check(arguments, device))
}

fn check(arguments: &Arguments, device: &Device) -> Result<bool> {
    let options = options(arguments, device)?;
    if arguments.dtype != Precision::F32 {
        arguments.dtype.check(device)?;
        if arguments.list {
            output::write(&rounding::list(&options))?;
            return Ok(true);
        }
        return rounding::run(&options, arguments.dtype, arguments.json, arguments.quiet, arguments.tensors);
    }
    if arguments.list {
        output::write(&table::list(&suite::names(&options), &suite::gradient_outputs()))?;
        return Ok(true);
    }
    let mut table = Table::new(arguments.json, arguments.quiet, arguments.tensors);
    output::write(&table.head())?;
    let mut written = Ok(true);
    suite::run(&options, &mut |report| {
        let lines = table.add(&report);
        if written.is_ok() {
            written = output::write(&lines);
        }
    })?;
    written?;
    output::write(&table.close())?;
    Ok(table.passed())
}

fn options(arguments: &Arguments, device: &Device) -> Result<Options> {
    let mut options = Options {
        model: arguments.model.clone(),
        device: device.clone(),
        steps: arguments.steps,
        sites: sites(&arguments.sites)?,
        prompt: arguments.prompt,
        probes: arguments.probes,
        only: arguments.only.clone(),
        seed: arguments.seed,
        threads: parallel::with_threads(arguments.threads, parallel::threads),
        fault: None,
        truncation: Truncation::default(),
    };
    match arguments.plant.as_deref() {
        None => {}
        Some("recurrence") => options.truncation.detach_latent = true,
        Some("cache") => options.truncation.detach_kv = true,
        Some(fault) => options.fault = Some(fault.parse()?),
    }
    Ok(options)
}

fn sites(text: &str) -> Result<Vec<SiteKind>> {
    match text {
        "all" => Ok(SiteKind::ALL.to_vec()),
        "none" => Ok(Vec::new()),
        _ => text
            .split(',')
            .map(|name| {
                SiteKind::from_name(name.trim()).ok_or_else(|| {
                    let known = SiteKind::ALL.map(SiteKind::name).join(", ");
                    Error::input(
                        "--sites",
                        format!("unknown site `{name}`"),
                        format!("known: all, none, {known}"),
                    )
                })
            })
            .collect(),
    }
}
