//! The same work by latch and by PyTorch (benches/pytorch.py), in turns in one run, in one table.
//!
//! `cargo bench --bench compare -- [--only NAMES] [--repeat N] [--budget SECONDS] [--threads N]`; README.md beside this
//! file says how to read the table. LATCH_PYTHON names the Python that has torch and transformers.

mod machine;
mod workloads;

use clap::Parser;
use half::bf16;
use latch::base::Dtype;
use latch::cpu::gemm::{Accumulate, Bf16Operand, Matrix, MatrixMut, gemm, gemm_bf16};
use latch::cpu::parallel::with_threads;
use latch::model::{Model, Record};
use machine::{Times, peak_once, read_once, triad_once};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use workloads::{Decode, Prefill, Rollout, Run, TrainStep};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Compares latch with PyTorch.
#[derive(Parser)]
struct Options {
    /// Names, leading parts of names (train_step/small) or `all`, separated by commas; without it, what stays
    /// within tens of MiB.
    #[arg(
        long,
        default_value = "train_step/small,prefill/small,decode/small,rollout/small,rollout_shared/small,rss/train_step/small,gemm"
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
    /// Measures this process's own training steps and prints its peak memory.
    #[arg(long, hide = true)]
    rss_child: Option<String>,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let options = Options::parse();
    let result = with_threads(options.threads, || match &options.rss_child {
        Some(name) => rss_child(name),
        None => compare(&options),
    });
    if let Err(failure) = result {
        eprintln!("{failure}");
        std::process::exit(1);
    }
}

/// PyTorch's process.
struct Theirs {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    threads: usize,
}

impl Theirs {
    fn start(threads: usize) -> Result<Theirs, Failure> {
        let python = std::env::var("LATCH_PYTHON").unwrap_or_else(|_| "python3".into());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/pytorch.py");
        let check = "import torch, transformers";
        let found = Command::new(&python).args(["-c", check]).stderr(Stdio::null()).status();
        if !found.as_ref().is_ok_and(|status| status.success()) {
            let why = match found {
                Ok(_) => "it cannot import torch and transformers".to_string(),
                Err(error) => error.to_string(),
            };
            return Err(format!(
                "cannot compare: the Python `{python}`: {why}; install them (pip install torch transformers) or set \
                 LATCH_PYTHON to a Python that has them"
            )
            .into());
        }
        let mut child = Command::new(&python)
            .args([script, "--serve", "--threads", &threads.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let to = child.stdin.take().ok_or("no pipe to Python")?;
        let from = BufReader::new(child.stdout.take().ok_or("no pipe from Python")?);
        Ok(Theirs { child, to, from, threads })
    }

    /// Asks for `iterations` runs of `name`.
    fn ask(&mut self, name: &str, iterations: usize) -> Result<Value, Failure> {
        let request = json!({"name": name, "iterations": iterations, "threads": self.threads});
        writeln!(self.to, "{request}")?;
        self.to.flush()?;
        let mut line = String::new();
        if self.from.read_line(&mut line)? == 0 {
            return Err(format!("the Python process ended while it ran {name}").into());
        }
        let answer: Value = serde_json::from_str(&line)?;
        match answer.get("error") {
            Some(error) => Err(format!("PyTorch, {name}: {error}").into()),
            None => Ok(answer),
        }
    }

    /// Milliseconds of each run.
    fn times(&mut self, name: &str, iterations: usize) -> Result<Vec<f64>, Failure> {
        let answer = self.ask(name, iterations)?;
        let times = answer["times_ms"].as_array().ok_or("no times_ms in the answer")?;
        Ok(times.iter().filter_map(Value::as_f64).collect())
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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
        "rollout" | "rollout_shared" => {
            let mut rollout = Rollout::new(warm.get(shape, dtype)?, work == "rollout_shared")?;
            Box::new(move || rollout.run())
        }
        other => return Err(format!("latch's side knows no work `{other}`").into()),
    })
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
        let line = match name.strip_prefix("rss/") {
            Some(inner) => memory(&mut theirs, inner, threads),
            None => timed(&mut warm, &mut theirs, name, options),
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
    let mut triad = Times::default();
    let (mut us, mut them) = (Vec::new(), Vec::new());
    let mut each = 1;
    let (start, mut rounds) = (Instant::now(), 0);
    while rounds < options.repeat && (rounds < 3 || start.elapsed().as_secs_f64() < options.budget) {
        triad.record(|| triad_once(&mut a, &b, &c));
        // The first run of a turn finds the caches as the other side left them; short work is run several times.
        us.extend((0..each).map(|_| run().as_secs_f64() * 1e3));
        them.extend(theirs.times(name, each)?);
        let longest = us[0].max(them[0]);
        each = ((20.0 / longest) as usize).clamp(1, 20);
        rounds += 1;
    }
    let (us, them) = (sorted(us), sorted(them));
    let bytes = (12 * ELEMENTS) as f64;
    Ok(format!(
        "{:>10.3}{:>10.3}{:>10.3}{:>10.3}{:>8.2}{rounds:>7}{:>7.1}{:>7.1}",
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

/// Peak resident memory of a process that only trains, ours and theirs.
fn memory(theirs: &mut Theirs, name: &str, threads: usize) -> Result<String, Failure> {
    let output = Command::new(std::env::current_exe()?)
        .args(["--rss-child", name, "--threads", &threads.to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("our measured process ended with {}", output.status).into());
    }
    let line = String::from_utf8(output.stdout)?;
    let ours: Value = serde_json::from_str(&line)?;
    let answer = theirs.ask(&format!("rss/{name}"), 1)?;
    let number = |value: &Value, key: &str| value[key].as_f64().unwrap_or(f64::NAN);
    let (us, them) = (number(&ours, "mib"), number(&answer, "mib"));
    Ok(format!(
        "  peak RSS: ours {us:.1} MiB ({:.1} of tensors), theirs {them:.1} MiB ({:.1} after its imports); ours / theirs {:.3}",
        number(&ours, "tensor_mib"),
        number(&answer, "import_mib"),
        us / them
    ))
}

/// Three training steps, then this process's high-water mark.
fn rss_child(name: &str) -> Result<(), Failure> {
    let (work, shape, dtype) = parts(name)?;
    if work != "train_step" {
        return Err(format!("memory is measured of train_step, not of `{work}`").into());
    }
    let mut step = TrainStep::new(fresh(shape, dtype)?, Record::Everything)?;
    let _: Duration = step.run();
    let mebibytes = f64::from(1 << 20);
    println!("{}", json!({"mib": peak_mib()?, "tensor_mib": step.bytes() as f64 / mebibytes}));
    Ok(())
}

/// VmHWM: the kernel's own mark of this process; exec starts it anew.
fn peak_mib() -> Result<f64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")
        .map_err(|error| format!("peak memory is read from /proc/self/status: {error}"))?;
    let line =
        status.lines().find(|line| line.starts_with("VmHWM:")).ok_or("no VmHWM in /proc/self/status")?;
    let kibibytes: f64 = line.split_whitespace().nth(1).ok_or("VmHWM has no value")?.parse()?;
    Ok(kibibytes / 1024.0)
}
