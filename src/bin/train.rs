//! `train [RECIPE]`: trains a small latent model on embedded data and shows its held-out accuracy.

use clap::Parser;
use latch::base::{Dtype, Error, Result};
use latch::cpu::parallel;
use latch::device::Device;
use latch::model::Precision;
use latch::model::save::Companions;
use latch::run::addition_recipe::{self, Recipe};
use latch::run::train::{Event, evaluate, fresh_model, train};
use latch::text::addition;
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Trains a model that thinks in latent steps before it answers. Without arguments: the built-in recipe.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Recipe file (TOML); recipes/addition.toml documents every key
    recipe: Option<PathBuf>,
    /// Folder to save the trained model in (Hugging Face format); it must not exist
    #[arg(long)]
    out: Option<PathBuf>,
    /// Seed, instead of the recipe's
    #[arg(long)]
    seed: Option<u64>,
    /// Updates, instead of the recipe's
    #[arg(long)]
    steps: Option<usize>,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// Storage of matrices: f32 or bf16
    #[arg(long, default_value = "f32")]
    dtype: Dtype,
    /// Worker threads (0 = one per core)
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// One JSON object a line on stdout instead of the table
    #[arg(long)]
    json: bool,
    /// Only the result
    #[arg(long, short)]
    quiet: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let threads = arguments.threads;
    match parallel::with_threads(threads, move || run(&arguments)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(if matches!(error, Error::Input { .. } | Error::File { .. }) { 2 } else { 1 })
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut recipe = match &arguments.recipe {
        Some(path) => Recipe::read(path)?,
        None => Recipe::parse(addition_recipe::DEFAULT, Path::new("the built-in recipe"))?,
    };
    recipe.seed = arguments.seed.unwrap_or(recipe.seed);
    recipe.train.steps = arguments.steps.unwrap_or(recipe.train.steps);
    if let Some(out) = &arguments.out
        && out.exists()
    {
        return Err(Error::input("--out", format!("{} exists", out.display()), "name a new folder"));
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    on_interrupt(interrupted.clone());

    let device = Device::open(&arguments.device)?;
    let mut model = fresh_model(&recipe, &device, Precision::of(arguments.dtype))?;
    let show = !arguments.quiet && !arguments.json;
    if show {
        let parameters: usize = model.parameters().iter().map(|p| p.shape().elements()).sum();
        eprintln!(
            "model     {} layers, width {}, {parameters} parameters, {} on {}, {} threads",
            recipe.model.layers,
            recipe.model.width,
            arguments.dtype,
            device.name(),
            parallel::threads()
        );
        eprintln!(
            "data      additions below {}, {} held out; {} latent steps before each answer",
            recipe.data.bound, recipe.data.held_out, recipe.train.latents
        );
        eprintln!("{:>9}  {:>8}  {:>9}  {:>9}  {:>11}", "step", "loss", "|grad|", "lr", "positions/s");
    }
    let started = Instant::now();
    let (mut clock, mut positions) = (Instant::now(), 0);
    let every = (recipe.train.steps / 20).max(1);
    let steps = recipe.train.steps;
    let mut accuracies: Vec<(usize, f64)> = Vec::new();
    train(&recipe, &mut model, |event| {
        match event {
            Event::Step { step, report, learning_rate } => {
                positions += report.positions;
                if arguments.json {
                    println!(
                        "{}",
                        serde_json::json!({"step": step, "loss": report.loss, "gradient_norm": report.gradient_norm, "learning_rate": learning_rate})
                    );
                } else if show && (step % every == 0 || *step == steps) {
                    let rate = positions as f64 / clock.elapsed().as_secs_f64();
                    eprintln!(
                        "{step:>4}/{steps:<4}  {:>8.4}  {:>9.3}  {learning_rate:>9.2e}  {rate:>11.0}",
                        report.loss, report.gradient_norm
                    );
                    (clock, positions) = (Instant::now(), 0);
                }
            }
            Event::Evaluation { step, right, asked, samples } => {
                let accuracy = *right as f64 / *asked as f64;
                accuracies.push((*step, accuracy));
                if arguments.json {
                    println!(
                        "{}",
                        serde_json::json!({"step": step, "held_out_accuracy": accuracy, "right": right, "asked": asked})
                    );
                } else if show {
                    let examples: Vec<String> = samples
                        .iter()
                        .map(|(problem, answer)| format!("{}{answer}", problem.prompt()))
                        .collect();
                    eprintln!(
                        "           held-out accuracy {:.1} % ({right}/{asked})   {}",
                        100.0 * accuracy,
                        examples.join("  ")
                    );
                }
                clock = Instant::now();
            }
        }
        match interrupted.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })?;
    let stopped = interrupted.load(Ordering::Relaxed);
    if let Some(out) = &arguments.out {
        model.save(out, &Companions::default())?;
        eprintln!("saved     {}", out.display());
    }
    if !arguments.json {
        summary(&recipe, &model, &accuracies, started.elapsed().as_secs_f64())?;
    }
    Ok(ExitCode::from(if stopped { 130 } else { 0 }))
}

/// The closing table: accuracy with the latents and with none.
fn summary(
    recipe: &Recipe,
    model: &latch::model::Model,
    accuracies: &[(usize, f64)],
    seconds: f64,
) -> Result<()> {
    let (held_out, _) = addition::split(recipe.data.bound, recipe.data.held_out, recipe.seed);
    println!("\nheld-out accuracy over {} problems ({seconds:.0} s)", held_out.len());
    for (step, accuracy) in accuracies {
        println!("  after {step:>5} updates            {:>5.1} %", 100.0 * accuracy);
    }
    if let Event::Evaluation { right, asked, .. } = evaluate(model, &held_out, 0, 0)? {
        println!("  with the latents left away     {:>5.1} %", 100.0 * right as f64 / asked as f64);
    }
    Ok(())
}

/// Ctrl-C once: finish the step, save, report. Twice: stop now.
fn on_interrupt(interrupted: Arc<AtomicBool>) {
    let tidy = std::io::stderr().is_terminal();
    let handler = ctrlc::set_handler(move || {
        if interrupted.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        if tidy {
            eprintln!("\nfinishing this step; Ctrl-C again stops now");
        }
    });
    if let Err(error) = handler {
        eprintln!("warning: Ctrl-C will stop at once: {error}");
    }
}
