//! `kernel_report`: what each shipped kernel would cost a GPU, counted in the simulator at a real layer's sizes.

use clap::{Parser, ValueEnum};
use latch::base::{Dtype, Error, Result};
use latch::device::{Device, KernelCount, SimulatorOptions};
use latch::learn::codi::{self, Distiller, Lesson, Weights};
use latch::learn::optimizer::{self, Optimizer};
use latch::learn::supervised::{Example, Limits, Trainer};
use latch::model::{Config, Model, Precision, Projector, Record, RowPlan, Segment, Sequences, SequencesPlan};
use latch::sim::check::Checker;
use latch::sim::{Counters, counters::Class};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

const EXAMPLES: &str = "\
Columns:
  sectors   32-byte sectors of device memory requested over the fewest that the requested bytes fill
  banks     accesses of shared memory over the fewest that the requests need
  MB        device memory moved; `once` counts every byte that is read or written a single time
  tensor    share of the floating-point operations of products that tensor cores did
  floor     microseconds that the launches need at least by the datasheet: bytes once over bandwidth, or
            multiply-adds over the tensor cores' rate, whichever is longer

Examples:
  kernel_report                              one layer of GPT-2 small, f32
  kernel_report --shape qwen2.5-0.5b --dtype bf16
  kernel_report --rows 2 --prompt 16         quick";

/// Runs one layer of a real model in the simulator, as training and sampling run it, and prints what each kernel
/// costs beside what it must.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// Whose layer
    #[arg(long, value_enum, default_value = "gpt2-small")]
    shape: Shape,
    /// f32, or bf16 for bf16 matrices under f32 activations
    #[arg(long, default_value = "f32")]
    dtype: String,
    /// Examples of the training step, and rollouts of one group
    #[arg(long, default_value_t = 8)]
    rows: usize,
    /// Prompt tokens, shared by the group
    #[arg(long, default_value_t = 64)]
    prompt: usize,
    /// Vocabulary of the head; a real one takes minutes
    #[arg(long, default_value_t = 4096)]
    vocabulary: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shape {
    #[value(name = "gpt2-small")]
    Gpt2Small,
    #[value(name = "qwen2.5-0.5b")]
    Qwen,
}

/// A card's datasheet: GB/s, and TFLOP/s of dense bf16 on tensor cores with f32 sums.
const CARDS: [(&str, f64, f64); 3] =
    [("A100", 2039.0, 312.0), ("H100", 3350.0, 989.0), ("RTX 4090", 1008.0, 165.0)];

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn config(arguments: &Arguments) -> Result<Config> {
    let vocabulary = arguments.vocabulary;
    let json = match arguments.shape {
        Shape::Gpt2Small => {
            json!({"model_type": "gpt2", "vocab_size": vocabulary, "n_embd": 768, "n_head": 12,
            "n_layer": 1, "n_positions": 1024, "activation_function": "gelu_new"})
        }
        Shape::Qwen => json!({"model_type": "qwen2", "vocab_size": vocabulary, "hidden_size": 896,
            "num_attention_heads": 14, "num_key_value_heads": 2, "num_hidden_layers": 1, "intermediate_size": 4864,
            "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "hidden_act": "silu",
            "tie_word_embeddings": true, "rope_theta": 1000000.0}),
    };
    Config::from_json(json, Path::new("config.json"))
}

fn run(arguments: &Arguments) -> Result<()> {
    if arguments.rows == 0 || arguments.prompt < 2 {
        return Err(Error::input("--rows, --prompt", "too small", "give at least 1 row and 2 prompt tokens"));
    }
    let dtype: Dtype =
        arguments.dtype.parse().map_err(|problem: String| Error::input("--dtype", problem, "f32 or bf16"))?;
    let observer = Arc::new(Checker::only_counters());
    let device =
        Device::simulated_with(SimulatorOptions { observer: Some(observer), ..SimulatorOptions::default() });
    let mut model = Model::random(config(arguments)?, 0, &device, Precision::of(dtype))?;
    let (rows, prompt) = (arguments.rows, arguments.prompt);
    let token = |i: usize| (i * 7919 % arguments.vocabulary) as u32;
    let tokens: Vec<u32> = (0..prompt).map(token).collect();

    let mut seen = Seen::of(&device)?;
    let batch: Vec<Example> = (0..rows)
        .map(|row| Example {
            prompt: (0..prompt / 2).map(|i| token(row * prompt + i)).collect(),
            latents: 0,
            end: Vec::new(),
            answer: (prompt / 2..prompt).map(|i| token(row * prompt + i)).collect(),
        })
        .collect();
    let optimizer = Optimizer::new(&model, optimizer::Settings::default())?;
    let mut trainer =
        Trainer::new(&model, optimizer, Limits::of(&batch, rows, usize::MAX), Record::Everything)?;
    seen.advance(&device)?;
    trainer.step(&mut model, &batch, 1e-4)?;
    print(&format!("training step: {rows} rows of {prompt} positions"), &seen.advance(&device)?, &[]);

    let lessons: Vec<Lesson> = batch
        .iter()
        .map(|example| Lesson {
            student: Example { latents: 2, end: vec![token(1)], ..example.clone() },
            teacher: example.clone(),
            tap: 1,
            reasoning: 0,
        })
        .collect();
    let projected = Model::random(config(arguments)?, 0, &device, Precision::of(dtype))?
        .with_random_projector(Projector::of(config(arguments)?.width), 0)?;
    let limits = codi::limits(&lessons, rows, usize::MAX);
    let mut distiller = Distiller::new(&projected, limits, Weights::default(), Record::Everything)?;
    let mut gradients = projected.gradients()?;
    seen.advance(&device)?;
    distiller.gradient(&projected, &lessons, &mut gradients)?;
    print(
        &format!("gradient of CODI's loss: {rows} lessons of {prompt} positions, 2 latents"),
        &seen.advance(&device)?,
        &[],
    );
    drop((projected, distiller, gradients));

    let plans: Vec<RowPlan> = std::iter::once(RowPlan::own(prompt))
        .chain((0..rows).map(|_| RowPlan::sharing(0, prompt, prompt + 8)))
        .collect();
    let plan = SequencesPlan { rows: plans, record: Record::Nothing, tape_positions: prompt.max(rows) * 4 };
    let mut sequences = Sequences::new(&model, &plan)?;
    model.forward(&mut sequences, &Segment::of_tokens(0, &tokens), None)?;
    seen.advance(&device)?;
    let mut start = Segment::new();
    for row in 0..rows {
        start.extend_tokens(row as u32 + 1, &[token(row)]);
    }
    model.forward(&mut sequences, &start, None)?;
    let weights = |cache: usize| {
        let bytes: usize = model.parameters().iter().map(|p| p.bytes()).sum();
        // Tables of embeddings are read by rows.
        let tables =
            model.parameters().iter().filter(|p| p.shape().dims().first() == Some(&arguments.vocabulary));
        bytes - tables.map(|p| p.bytes()).sum::<usize>() + cache
    };
    let cache = 2 * (prompt + rows) * model.config().kv_heads * model.config().head_dim * 4;
    print(
        &format!("decode step without the head: {rows} rows that share {prompt} positions"),
        &seen.advance(&device)?,
        &[("weights and cache, once", weights(cache))],
    );
    model.forward(&mut sequences, &Segment::latent_step(1..rows as u32 + 1), None)?;
    print(
        &format!("latent step: {rows} rows"),
        &seen.advance(&device)?,
        &[("weights and cache, once", weights(cache))],
    );
    Ok(())
}

/// What kernels had cost when it was last asked.
struct Seen(BTreeMap<&'static str, (usize, Counters)>);

impl Seen {
    fn of(device: &Device) -> Result<Seen> {
        Ok(Seen(kernels(device)?.into_iter().map(|k| (k.kernel.entry, (k.launches, k.counters))).collect()))
    }

    /// What kernels have cost since.
    fn advance(&mut self, device: &Device) -> Result<Vec<(&'static str, usize, Counters)>> {
        let now = Seen::of(device)?;
        let mut spent = Vec::new();
        for (entry, (launches, counters)) in &now.0 {
            let (before, old) = self.0.get(entry).cloned().unwrap_or_default();
            if *launches > before {
                spent.push((*entry, launches - before, counters.since(&old)));
            }
        }
        self.0 = now.0;
        Ok(spent)
    }
}

fn kernels(device: &Device) -> Result<Vec<KernelCount>> {
    match device {
        Device::Gpu(launcher) => {
            launcher.synchronise()?;
            Ok(launcher.statistics().kernels)
        }
        Device::Cpu(_) => Ok(Vec::new()),
    }
}

fn print(title: &str, spent: &[(&'static str, usize, Counters)], floors: &[(&str, usize)]) {
    println!("\n{title}");
    print!(
        "{:32} {:>8} {:>7} {:>6} {:>8} {:>8} {:>6} {:>6}",
        "kernel", "launches", "sectors", "banks", "MB", "MB once", "tensor", "local"
    );
    for (card, ..) in CARDS {
        print!(" {card:>9}");
    }
    println!();
    let (mut moved, mut once) = (0, 0);
    for (entry, launches, c) in spent {
        let (global, shared) = (c.traffic.global(), c.traffic.shared());
        let unique = c.traffic.unique_read_bytes + c.traffic.unique_written_bytes;
        moved += global.bytes();
        once += unique;
        let tensor = match c.matrix_flops() {
            0 => "-".to_string(),
            flops => {
                // Fused multiply-adds outside tensor cores that could belong to the product: two operations each.
                let other = 2 * c.thread_instructions[Class::Float as usize];
                format!("{:.0}%", 100.0 * flops as f64 / (flops + other) as f64)
            }
        };
        print!(
            "{entry:32} {launches:>8} {:>7.2} {:>6.2} {:>8.2} {:>8.2} {tensor:>6} {:>6}",
            global.ratio(),
            shared.ratio(),
            global.bytes() as f64 / 1e6,
            unique as f64 / 1e6,
            c.local_bytes
        );
        for (_, bandwidth, tflops) in CARDS {
            let seconds = (unique as f64 / (bandwidth * 1e9)).max(c.matrix_flops() as f64 / (tflops * 1e12));
            print!(" {:>9.1}", seconds * 1e6);
        }
        println!();
    }
    println!(
        "{:32} {:>8} {:>7} {:>6} {:>8.2} {:>8.2}",
        "all",
        "",
        "",
        "",
        moved as f64 / 1e6,
        once as f64 / 1e6
    );
    for (what, bytes) in floors {
        println!(
            "{what}: {:.2} MB; moved {:.2} times that",
            *bytes as f64 / 1e6,
            moved as f64 / *bytes as f64
        );
    }
}
