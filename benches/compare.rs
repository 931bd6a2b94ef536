//! The same work by latch and by PyTorch (benches/pytorch.py), in turns in one run, in one table.
//!
//! `cargo bench --bench compare -- [--only NAMES] [--repeat N] [--budget SECONDS] [--threads N]`; README.md beside this
//! file says how to read the table. LATCH_PYTHON names the Python that has torch and transformers.

mod machine;
mod memory;
mod peer;
mod reinforcement;
mod roofline;
mod workloads;

use clap::Parser;
use half::bf16;
use latch::base::Dtype;
use latch::cpu::gemm::{Accumulate, Bf16Operand, Matrix, MatrixMut, gemm, gemm_bf16};
use latch::cpu::parallel::with_threads;
use latch::model::{Model, Record};
use latch::rollout::masks::{Masking, Scope};
use machine::{Times, peak_once, read_once, triad_once};
use peer::{Failure, Theirs};
use reinforcement::{GrpoStep, PROMPTS, Plan, Rollout, masked};
use roofline::Roofline;
use std::sync::Arc;
use std::time::Instant;
use workloads::{Decode, Prefill, Run, TrainStep};

/// Compares latch with PyTorch.
#[derive(Parser)]
struct Options {
    /// Names, leading parts of names (train_step/small) or `all`, separated by commas; without it, what stays
    /// within tens of MiB.
    #[arg(
        long,
        default_value = "train_step/small,prefill/small,decode/small,rollout/small,rollout_shared/small,rollout_masked/small,grpo_step/small,grpo_step_dropout/small,gap,rss/train_step/small,rss/grpo_step/small,gemm"
    )]
    only: String,
    /// Rounds; in each, both sides run once or a few times.
    #[arg(long, default_value_t = 20)]
    repeat: usize,
    /// Seconds after which a shape stops early, though not before three rounds.
    #[arg(long, default_value_t = 10.0)]
    budget: f64,
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

fn main() {
    let options = Options::parse();
    let result = with_threads(options.threads, || match (&options.rss_child, &options.alone) {
        (Some(name), _) => rss_child(name),
        (None, Some(names)) => alone(names, &options),
        (None, None) => compare(&options),
    });
    if let Err(failure) = result {
        eprintln!("{failure}");
        std::process::exit(1);
    }
}

/// The model used last: prefill, decode and rollouts of one shape share it.
#[derive(Default)]
struct Warm {
    model: Option<(String, Arc<Model>)>,
}

impl Warm {
    fn get(&mut self, name: &str, dtype: Dtype) -> Result<Arc<Model>, Failure> {
        let key = format!("{name}/{dtype:?}");
        if let Some((kept, model)) = &self.model
            && *kept == key
        {
            return Ok(model.clone());
        }
        self.model = None;
        let model = Arc::new(fresh(name, dtype)?);
        self.model = Some((key, model.clone()));
        Ok(model)
    }
}

fn fresh(name: &str, dtype: Dtype) -> Result<Model, Failure> {
    let config = workloads::config(name).ok_or_else(|| format!("latch's side knows no model `{name}`"))?;
    Ok(workloads::model(config, dtype))
}

/// Splits WORK/SHAPE/DTYPE.
fn parts(name: &str) -> Result<(&str, &str, Dtype), Failure> {
    let wrong = || format!("`{name}` is not WORK/SHAPE/DTYPE");
    let (rest, dtype) = name.rsplit_once('/').ok_or_else(wrong)?;
    let (work, shape) = rest.rsplit_once('/').ok_or_else(wrong)?;
    let dtype = if dtype == "bf16" { Dtype::Bf16 } else { Dtype::F32 };
    Ok((work, shape, dtype))
}

/// Prepares our side of `name`.
fn ours(warm: &mut Warm, name: &str) -> Result<Run, Failure> {
    let (work, shape, dtype) = parts(name)?;
    Ok(match work {
        "gemm" => product(shape, dtype)?,
        "train_step" => {
            let mut step = TrainStep::new(fresh(shape, dtype)?, Record::Everything)?;
            Box::new(move || step.run())
        }
        "prefill" => {
            let mut prefill = Prefill::new(warm.get(shape, dtype)?)?;
            Box::new(move || prefill.run())
        }
        "decode" => {
            let mut decode = Decode::new(warm.get(shape, dtype)?)?;
            Box::new(move || decode.run())
        }
        "rollout" | "rollout_shared" | "rollout_masked" => {
            let mut rollout = Rollout::new(warm.get(shape, dtype)?, &rollout_plan(work))?;
            Box::new(move || rollout.run())
        }
        "grpo_step" | "grpo_step_dropout" => {
            let mut step = GrpoStep::new(fresh(shape, dtype)?, &update_plan(work))?;
            Box::new(move || step.run())
        }
        other => return Err(format!("latch's side knows no work `{other}`").into()),
    })
}

/// One group; `rollout_masked` shares its prompt, `rollout_shared` all that rollouts without masks have in common.
fn rollout_plan(work: &str) -> Plan {
    match work {
        "rollout_masked" => Plan::new(1, masked(Scope::Latent), true),
        _ => Plan::new(1, Masking::NONE, work == "rollout_shared"),
    }
}

/// An update; beside framework dropout, which is everywhere, masks are too.
fn update_plan(work: &str) -> Plan {
    let scope = if work == "grpo_step_dropout" { Scope::All } else { Scope::Latent };
    Plan::new(PROMPTS, masked(scope), true)
}

/// `x[m, k] w[n, k]^T` into a buffer; bf16 rounds x as it packs it, as the runtime does.
fn product(shape: &str, dtype: Dtype) -> Result<Run, Failure> {
    let sizes: Vec<usize> = shape.split('x').map(str::parse).collect::<Result<_, _>>()?;
    let [m, k, n] = sizes[..] else { return Err(format!("`{shape}` is not MxKxN").into()) };
    let values =
        |count: usize| (0..count).map(|i| ((i * 7919) % 1013) as f32 / 1013.0 - 0.5).collect::<Vec<_>>();
    let (x, w, mut y) = (values(m * k), values(n * k), vec![0.0; m * n]);
    if dtype == Dtype::Bf16 {
        let w: Vec<bf16> = w.into_iter().map(bf16::from_f32).collect();
        return Ok(Box::new(move || {
            let start = Instant::now();
            let a = Matrix::row_major(&x, m, k);
            let b = Bf16Operand::Stored(Matrix::row_major(&w, n, k).transposed());
            gemm_bf16(a, b, MatrixMut::row_major(&mut y, m, n), Accumulate::Assign, None);
            start.elapsed()
        }));
    }
    Ok(Box::new(move || {
        let start = Instant::now();
        let (a, b) = (Matrix::row_major(&x, m, k), Matrix::row_major(&w, n, k).transposed());
        gemm(a, b, MatrixMut::row_major(&mut y, m, n), Accumulate::Assign, None);
        start.elapsed()
    }))
}

/// The names in `listed` that a part of `only` equals or leads.
fn selected(listed: &[String], only: &str) -> Result<Vec<String>, Failure> {
    let chosen = |name: &str| {
        only.split(',').any(|part| {
            part == "all" || name == part || name.starts_with(&format!("{}/", part.trim_end_matches('/')))
        })
    };
    let found: Vec<String> =
        listed.iter().filter(|name| !name.starts_with("triad/") && chosen(name)).cloned().collect();
    match found.is_empty() {
        true => Err(format!("--only {only}: no such name; known:\n{}", listed.join("\n")).into()),
        false => Ok(found),
    }
}

/// Our side of each of `names`, for as many rounds and seconds as a comparison takes.
fn alone(names: &str, options: &Options) -> Result<(), Failure> {
    println!("latch {:?}; {} threads", latch::cpu::isa::level(), rayon::current_num_threads());
    println!(
        "{}\n{:<32}{:>10}{:>10}{:>7}",
        machine(rayon::current_num_threads()),
        "shape",
        "median ms",
        "min ms",
        "rounds"
    );
    let mut warm = Warm::default();
    for name in names.split(',') {
        let mut run = ours(&mut warm, name)?;
        run();
        let (start, mut times) = (Instant::now(), Vec::new());
        while times.len() < options.repeat
            && (times.len() < 3 || start.elapsed().as_secs_f64() < options.budget)
        {
            times.push(run().as_secs_f64() * 1e3);
        }
        let times = sorted(times);
        println!("{name:<32}{:>10.3}{:>10.3}{:>7}", times[times.len() / 2], times[0], times.len());
    }
    Ok(())
}

fn compare(options: &Options) -> Result<(), Failure> {
    let threads = rayon::current_num_threads();
    let mut theirs = Theirs::start(threads)?;
    let info = theirs.ask("info", 1)?;
    let listed: Vec<String> = info["names"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|name| name.as_str().map(String::from))
        .collect();
    let mut names = selected(&listed, &options.only)?;
    let emulated = info["bf16"] == "emulated";
    if emulated && !options.only.contains("bf16") {
        names.retain(|name| !name.ends_with("/bf16"));
        eprintln!("no bf16 instructions here: bf16 is left out unless --only names it");
    }
    println!(
        "torch {} ({}), transformers {}; latch {:?}; {threads} threads each; ratio = theirs / ours of the minima",
        info["torch"].as_str().unwrap_or("?"),
        info["cpu"].as_str().unwrap_or("?"),
        info["transformers"].as_str().unwrap_or("?"),
        latch::cpu::isa::level(),
    );
    println!("{}", machine(threads));
    println!(
        "{:<32}{:>10}{:>10}{:>10}{:>10}{:>8}{:>7}{:>14}",
        "", "ours", "", "theirs", "", "", "", "triad GB/s"
    );
    println!(
        "{:<32}{:>10}{:>10}{:>10}{:>10}{:>8}{:>7}{:>7}{:>7}",
        "shape", "median ms", "min ms", "median ms", "min ms", "ratio", "rounds", "best", "median"
    );
    let mut warm = Warm::default();
    for name in &names {
        let line = match name.split_once('/') {
            Some(("rss", inner)) => memory::compare(&mut theirs, inner, threads),
            Some(("gap", inner)) => gap(&mut theirs, inner),
            _ => timed(&mut warm, &mut theirs, name, options),
        };
        // One side's failure is its line; the other lines still count.
        println!("{name:<32}{}", line.unwrap_or_else(|failure| format!("  failed: {failure}")));
        theirs.ask("forget", 1)?;
    }
    Ok(())
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

/// Runs both sides of `name` in turns.
fn timed(warm: &mut Warm, theirs: &mut Theirs, name: &str, options: &Options) -> Result<String, Failure> {
    const ELEMENTS: usize = 2 << 20;
    let (b, c, mut a) = (vec![1.0_f32; ELEMENTS], vec![1.0_f32; ELEMENTS], vec![0.0_f32; ELEMENTS]);
    let mut run = ours(warm, name)?;
    theirs.times(name, 1)?;
    let mut roofline = match parts(name)? {
        (work, shape, dtype) if work.starts_with("rollout") => {
            Roofline::new(warm.get(shape, dtype)?.as_ref(), work != "rollout")
        }
        _ => None,
    };
    let mut triad = Times::default();
    let (mut us, mut them) = (Vec::new(), Vec::new());
    let mut each = 1;
    let (start, mut rounds) = (Instant::now(), 0);
    while rounds < options.repeat && (rounds < 3 || start.elapsed().as_secs_f64() < options.budget) {
        triad.record(|| triad_once(&mut a, &b, &c));
        roofline.iter_mut().for_each(Roofline::round);
        // The first run of a turn finds the caches as the other side left them; short work is run several times.
        us.extend((0..each).map(|_| run().as_secs_f64() * 1e3));
        them.extend(theirs.times(name, each)?);
        let longest = us[0].max(them[0]);
        each = ((20.0 / longest) as usize).clamp(1, 20);
        rounds += 1;
    }
    let (us, them) = (sorted(us), sorted(them));
    let bytes = (12 * ELEMENTS) as f64;
    let roofline = roofline.map(|roofline| format!("\n{}", roofline.line(us[0]))).unwrap_or_default();
    Ok(format!(
        "{:>10.3}{:>10.3}{:>10.3}{:>10.3}{:>8.2}{rounds:>7}{:>7.1}{:>7.1}{roofline}",
        us[us.len() / 2],
        us[0],
        them[them.len() / 2],
        them[0],
        them[0] / us[0],
        bytes / triad.min() / 1e9,
        bytes / triad.median() / 1e9,
    ))
}

fn sorted(mut times: Vec<f64>) -> Vec<f64> {
    times.sort_by(f64::total_cmp);
    times
}

/// How far log-probabilities at an update are from those at its rollout, before any weight moves.
fn gap(theirs: &mut Theirs, name: &str) -> Result<String, Failure> {
    let (work, shape, dtype) = parts(name)?;
    let mut step = GrpoStep::new(fresh(shape, dtype)?, &update_plan(work))?;
    for _ in 0..2 {
        step.run();
    }
    let answer = theirs.ask(&format!("gap/{name}"), 3)?;
    let them = answer["gap"].as_f64().ok_or("no gap in the answer")?;
    Ok(format!(
        "  largest |log-probability at the update - at the rollout| of 3 updates, nats: ours {:e} (run again from \
         keys: {:e}), theirs {them:.3e}",
        step.at_update, step.audited
    ))
}

/// Three steps, then this process's high-water mark.
fn rss_child(name: &str) -> Result<(), Failure> {
    let (work, shape, dtype) = parts(name)?;
    let bytes = match work {
        "train_step" => {
            let mut step = TrainStep::new(fresh(shape, dtype)?, Record::Everything)?;
            step.run();
            step.bytes()
        }
        "grpo_step" => {
            let mut step = GrpoStep::new(fresh(shape, dtype)?, &update_plan(work))?;
            (0..2).for_each(|_| {
                step.run();
            });
            step.bytes()
        }
        other => {
            return Err(format!("memory is measured of train_step and grpo_step, not of `{other}`").into());
        }
    };
    println!("{}", memory::report(bytes)?);
    Ok(())
}
