//! The same work by latch and by PyTorch (benches/pytorch.py), in turns in one run, in one table.
//!
//! `cargo bench --bench compare -- [--device cpu|cuda] [--only NAMES] [--repeat N] [--budget SECONDS]`; README.md beside
//! this file says how to read the table. LATCH_PYTHON names the Python that has torch and transformers.

#[macro_use]
mod print;
mod machine;
mod memory;
mod ours;
mod peer;
mod reinforcement;
mod roofline;
mod row;
mod workloads;

use clap::Parser;
use latch::cpu::parallel::{self, with_threads};
use latch::device::{Device, Launcher};
use machine::{Times, peak_once, read_once};
use ours::{Count, Ours, caught, parts};
use peer::{Failure, Theirs};
use reinforcement::{GrpoStep, PROMPTS};
use row::sorted;
use std::time::{Duration, Instant};
use workloads::GROUP;

/// What is compared on the CPU unless --only says otherwise: what stays within tens of MiB.
const ON_CPU: &str = "train_step/small,prefill/small,decode/small,rollout/small,rollout_shared/small,rollout_masked/small,grpo_step/small,grpo_step_dropout/small,gap,rss/train_step/small,rss/grpo_step/small,gemm";
/// On a card: about a minute and a half on an H100.
const ON_CUDA: &str = "train_step/small,train_step/gpt2-124m,decode/gpt2-124m,rollout_shared/small,rollout_shared/gpt2-124m,rollout_masked/small,rollout_masked/gpt2-124m,grpo_step/small,grpo_step/gpt2-124m,gap/grpo_step/small";
/// In the simulator, where no time means anything.
const IN_SIMULATOR: &str = "train_step/tiny,prefill/tiny,decode/tiny,rollout_shared/tiny,rollout_masked/tiny,grpo_step/tiny,gap/grpo_step/tiny";

/// Compares latch with PyTorch.
#[derive(Parser)]
struct Options {
    /// Where both sides run: cpu, cuda, cuda:N; or sim: latch's simulator beside PyTorch on the CPU, whose times mean
    /// nothing.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Names, leading parts of names (train_step/small) or `all`, separated by commas; without it, on the CPU what stays
    /// within tens of MiB, on a card training steps, decoding, rollouts and updates of small and gpt2-124m.
    #[arg(long)]
    only: Option<String>,
    /// Dtypes of those names: f32, bf16 and, on a card, bf16a (activations in bf16 too); separated by commas. Default:
    /// all on the CPU, f32 and bf16a on a card.
    #[arg(long, value_delimiter = ',')]
    dtypes: Vec<String>,
    /// Rollouts of a group; several numbers, separated by commas, repeat the names that have rollouts.
    #[arg(long, value_delimiter = ',', default_values_t = [GROUP])]
    rollouts: Vec<usize>,
    /// Prompts of an update, each with its group of rollouts.
    #[arg(long, default_value_t = PROMPTS)]
    prompts: usize,
    /// Rounds; in each, both sides run once or a few times.
    #[arg(long, default_value_t = 20)]
    repeat: usize,
    /// Seconds after which a shape stops early: on the CPU not before three rounds and counted from the first of them
    /// (default 10); on a card after one round at least, counted from the beginning of its preparation (default 4).
    #[arg(long)]
    budget: Option<f64>,
    /// Seconds after which no further shape is begun.
    #[arg(long)]
    total: Option<f64>,
    /// Threads of both sides (0 = one per core).
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Times our side only, which needs no Python: whole names (train_step/small/bf16), separated by commas.
    #[arg(long, conflicts_with = "only")]
    alone: Option<String>,
    /// Does nothing but that work and prints this process's peak memory.
    #[arg(long, hide = true)]
    rss_child: Option<String>,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn on_cpu(&self) -> bool {
        self.device == "cpu"
    }

    fn on_card(&self) -> bool {
        self.device.starts_with("cuda")
    }

    fn only(&self) -> &str {
        let usual = match () {
            () if self.on_cpu() => ON_CPU,
            () if self.on_card() => ON_CUDA,
            () => IN_SIMULATOR,
        };
        self.only.as_deref().unwrap_or(usual)
    }

    fn dtypes(&self) -> Vec<&str> {
        match self.dtypes.is_empty() {
            false => self.dtypes.iter().map(String::as_str).collect(),
            true if self.on_cpu() => vec!["f32", "bf16"],
            true => vec!["f32", "bf16a"],
        }
    }

    /// The first number of rollouts, for what is asked once.
    fn count(&self) -> Count {
        Count { rollouts: self.rollouts.first().copied().unwrap_or(GROUP), prompts: self.prompts }
    }

    fn counts(&self) -> impl Iterator<Item = Count> + '_ {
        self.rollouts.iter().map(|&rollouts| Count { rollouts, prompts: self.prompts })
    }

    fn limits(&self) -> row::Limits {
        let (least, seconds) = if self.on_cpu() { (3, 10.0) } else { (1, 4.0) };
        row::Limits {
            rounds: self.repeat,
            least,
            seconds: self.budget.unwrap_or(seconds),
            from_preparation: !self.on_cpu(),
        }
    }
}

fn main() {
    let options = Options::parse();
    let result = with_threads(options.threads, || match (&options.rss_child, &options.alone) {
        (Some(name), _) => rss_child(name, &options),
        (None, Some(names)) => alone(names, &options),
        (None, None) => compare(&options),
    });
    if let Err(failure) = result {
        print::say(&format!("{failure}"));
        std::process::exit(1);
    }
}

/// The names in `listed` that a part of `only` equals or leads, in `dtypes`.
fn selected(listed: &[String], only: &str, dtypes: &[&str]) -> Result<Vec<String>, Failure> {
    let chosen = |name: &str| {
        only.split(',').any(|part| {
            part == "all" || name == part || name.starts_with(&format!("{}/", part.trim_end_matches('/')))
        })
    };
    let of_dtype = |name: &str| dtypes.iter().any(|dtype| name.rsplit('/').next() == Some(dtype));
    let found: Vec<String> = listed
        .iter()
        .filter(|name| !name.starts_with("triad/") && chosen(name) && of_dtype(name))
        .cloned()
        .collect();
    match found.is_empty() {
        true => {
            let dtypes = dtypes.join(",");
            Err(format!("--only {only} --dtypes {dtypes}: no such name; known:\n{}", listed.join("\n"))
                .into())
        }
        false => Ok(found),
    }
}

/// Our side of each of `names`, for as many rounds and seconds as a comparison takes.
fn alone(names: &str, options: &Options) -> Result<(), Failure> {
    let mut ours = Ours::open(&options.device)?;
    line!("latch {:?}; {} threads", latch::cpu::isa::level(), parallel::threads());
    line!("{}", place(&ours)?);
    line!("{:<32}{:>10}{:>10}{:>7}", "shape", "median ms", "min ms", "rounds");
    for name in names.split(',') {
        let limits = options.limits();
        let mut run = ours.prepare(name, options.count())?;
        run();
        let (start, mut times) = (Instant::now(), Vec::new());
        while limits.go_on(times.len(), start) {
            times.push(run().as_secs_f64() * 1e3);
        }
        let times = sorted(times);
        line!("{name:<32}{:>10.3}{:>10.3}{:>7}", times[times.len() / 2], times[0], times.len());
    }
    Ok(())
}

fn compare(options: &Options) -> Result<(), Failure> {
    let began = Instant::now();
    let threads = parallel::threads();
    // Python imports while our side opens the device and loads its kernels.
    let patience = Duration::from_secs(if options.on_cpu() { 3600 } else { 60 });
    let mut theirs = Theirs::start(&options.device, threads, patience)?;
    let mut ours = Ours::open(&options.device)?;
    if options.on_card() {
        load(&mut ours, options);
    }
    let info = theirs.ask("info", 1, options.count())?;
    let listed: Vec<String> = info["names"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|name| name.as_str().map(String::from))
        .collect();
    let mut names = selected(&listed, options.only(), &options.dtypes())?;
    let asked = options.only().contains("bf16") || !options.dtypes.is_empty();
    if options.on_cpu() && info["bf16"] == "emulated" && !asked {
        names.retain(|name| !name.ends_with("/bf16"));
        print::say("no bf16 instructions here: bf16 is left out unless --only or --dtypes names it");
    }
    let text = |key: &str| info[key].as_str().unwrap_or("?").to_string();
    let (torch, where_) = match options.on_card() {
        true => (text("gpu"), "eager, sdpa attention, TF32 products allowed in f32".to_string()),
        false => (text("cpu"), format!("{threads} threads each")),
    };
    line!(
        "torch {} ({torch}), transformers {}; latch {:?}; {where_}; ratio = theirs / ours of the minima",
        text("torch"),
        text("transformers"),
        latch::cpu::isa::level(),
    );
    line!("{}", place(&ours)?);
    line!("{}", row::heading(options.on_cpu()));
    for name in &names {
        let repeated = ["rollout", "grpo_step"].iter().any(|part| name.contains(part));
        for count in options.counts().take(if repeated { usize::MAX } else { 1 }) {
            let label = match count.rollouts == GROUP || !repeated {
                true => name.clone(),
                false => format!("{name} x{}", count.rollouts),
            };
            if options.total.is_some_and(|total| began.elapsed().as_secs_f64() > total) {
                line!("{label:<38}  not begun: --total is over");
                continue;
            }
            let line = caught(|| match name.split_once('/') {
                Some(("rss", inner)) => memory::compare(&mut theirs, inner, threads, count),
                Some(("peak", inner)) => memory::on_gpu(&ours, &mut theirs, inner, count),
                Some(("gap", inner)) => gap(&ours, &mut theirs, inner, count),
                _ => row::timed(&mut ours, &mut theirs, name, count, &options.limits()),
            });
            // One side's failure is its line; the other lines still count.
            if line.is_err() && options.on_card() {
                ours.reopen()?;
            }
            line!("{label:<38}{}", line.unwrap_or_else(|failure| format!("  failed: {failure}")));
        }
        // What it may say of a process that has ended is said by the next line.
        let _ = theirs.ask("forget", 1, options.count());
    }
    Ok(())
}

/// Loads kernels, which a driver compiles when it first sees them: that time is no shape's.
fn load(ours: &mut Ours, options: &Options) {
    let began = Instant::now();
    for dtype in options.dtypes() {
        for work in ["train_step", "grpo_step"] {
            let name = format!("{work}/small/{dtype}");
            if let Err(failure) = caught(|| ours.prepare(&name, options.count())) {
                print::say(&format!("while kernels were loaded, {name}: {failure}"));
            }
        }
    }
    print::say(&format!("kernels loaded in {:.1} s", began.elapsed().as_secs_f64()));
}

/// What runs ours, and on the CPU what that gives at the start of the run.
fn place(ours: &Ours) -> Result<String, Failure> {
    match ours.device() {
        Device::Cpu(_) => Ok(machine(parallel::threads())),
        Device::Gpu(gpu) => card(gpu.as_ref()),
    }
}

/// The card, and who multiplies for gradients there.
fn card(gpu: &dyn Launcher) -> Result<String, Failure> {
    let found = gpu.properties();
    let products = match gpu.library_multiplies(true)? {
        true => gpu.matmul_library()?.unwrap_or_else(|| "a library".into()),
        false => "latch's own kernels".into(),
    };
    Ok(format!(
        "device: {}, compute capability {}.{}, {:.0} GiB; latch's products are its own, those of gradients by {products}",
        gpu.name(),
        found.compute_capability.0,
        found.compute_capability.1,
        found.memory_bytes as f64 / f64::from(1 << 30),
    ))
}

/// What this machine gives at the start of the run.
fn machine(threads: usize) -> String {
    let data = vec![1.0_f32; 16 << 20];
    let (mut burst, mut peak, mut small, mut large) =
        (0.0, Times::default(), Times::default(), Times::default());
    for _ in 0..5 {
        peak.record(|| burst = peak_once(threads));
        (0..3).for_each(|_| small.record(|| read_once(&data[..1 << 20])));
        large.record(|| read_once(&data));
    }
    let giga = |amount: f64, times: &Times| {
        format!("{:.1} (median {:.1})", amount / times.min() / 1e9, amount / times.median() / 1e9)
    };
    format!(
        "machine: {} GFLOP/s f32, reads 4 MiB at {} GB/s, 64 MiB at {} GB/s",
        giga(burst, &peak),
        giga(f64::from(4 << 20), &small),
        giga(f64::from(64 << 20), &large)
    )
}

/// How far log-probabilities at an update are from those at its rollout, before any weight moves.
fn gap(ours: &Ours, theirs: &mut Theirs, name: &str, count: Count) -> Result<String, Failure> {
    let (work, shape, precision) = parts(name)?;
    let mut step = GrpoStep::new(ours.fresh(shape, precision)?, &count.update(work))?;
    for _ in 0..2 {
        step.run();
    }
    let answer = theirs.ask(&format!("gap/{name}"), 3, count)?;
    let them = answer["gap"].as_f64().ok_or("no gap in the answer")?;
    Ok(format!(
        "  largest |log-probability at the update - at the rollout| of 3 updates, nats: ours {:e} (run again from \
         keys: {:e}), theirs {them:.3e}",
        step.at_update, step.audited
    ))
}

/// Three steps, then this process's high-water mark.
fn rss_child(name: &str, options: &Options) -> Result<(), Failure> {
    let bytes = Ours::open("cpu")?.bytes(name, options.count())?;
    line!("{}", memory::report(bytes)?);
    Ok(())
}
