//! `experiment e1 [e4 ...]`: variations of Dropout-GRPO from the same base models on several seeds, with intervals.

#[path = "shared/ending.rs"]
mod ending;
#[path = "shared/output.rs"]
mod output;
#[path = "shared/words.rs"]
mod words;

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use latch::base::{Error, Result};
use latch::cpu::parallel;
use latch::device::Device;
use latch::run::devices;
use latch::run::experiments::{Agenda, Experiment, Kept, Laboratory, Notice, compare, text};
use latch::run::recipe::Recipe;
use latch::run::terminal::plain;
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The largest seed that a recipe takes: a whole number that JSON holds.
const LARGEST_SEED: u64 = (1 << 53) - 1;

/// Most seeds: more than anybody has time for, and few enough to be looked at before the first is run.
const MOST_SEEDS: u64 = 1000;

/// Runs experiments on the embedded problems: mask modes (e1), dropout probabilities (e2), sites and scopes (e3), the
/// mask of the update (e4), baselines and group sizes (e5), controls (e6), Gaussian noise (e7), gradients through latents
/// (e8), other distributions (e10).
///
/// Base models and results are kept in the folder: what is there already is not run again.
#[derive(Parser)]
#[command(version, allow_negative_numbers = true)]
pub struct Arguments {
    /// Experiments, e.g. e1 e4 e6; or `list`
    #[arg(required = true)]
    experiments: Vec<String>,
    /// Number of seeds
    #[arg(long, default_value_t = 5, value_parser = RangedU64ValueParser::<u64>::new().range(1..=MOST_SEEDS))]
    seeds: u64,
    /// The first of them; tune on seeds that are not reported
    #[arg(long, default_value_t = 0, value_parser = RangedU64ValueParser::<u64>::new().range(..=LARGEST_SEED))]
    first_seed: u64,
    /// Recipe: a TOML file or a built-in name
    #[arg(long)]
    recipe: Option<String>,
    /// Changes one key of the recipe; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Folder of base models and results
    #[arg(long, default_value = "runs/experiments")]
    out: PathBuf,
    /// Shows what is missing in the folder, what will be done and the memory it takes, and stops
    #[arg(long)]
    dry_run: bool,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// On a GPU: launches kernels one by one, not as captured graphs of steps that repeat (the same results, slower)
    #[arg(long)]
    no_graphs: bool,
    /// Worker threads (0 = one per core)
    #[arg(long, default_value_t = 0, value_parser = RangedU64ValueParser::<usize>::new().range(..=parallel::MOST))]
    threads: usize,
    /// The tables as one JSON object on stdout
    #[arg(long)]
    json: bool,
    /// Only the tables
    #[arg(long, short)]
    quiet: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    ending::ended(parallel::with_threads(arguments.threads, || run(&arguments)))
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.experiments.iter().any(|name| name == "list") {
        for (_, name, question) in Experiment::ALL {
            output::write(&format!("{name:<8} {question}\n"))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let experiments: Vec<Experiment> = arguments
        .experiments
        .iter()
        .map(|name| {
            name.parse()
                .map_err(|problem: String| Error::input("experiment", problem, "see `experiment list`"))
        })
        .collect::<Result<_>>()?;
    // What is named twice is shown once.
    let mut named = Vec::new();
    for experiment in experiments {
        if !named.contains(&experiment) {
            named.push(experiment);
        }
    }
    if arguments.first_seed + (arguments.seeds - 1) > LARGEST_SEED {
        let problem =
            format!("{} seeds from {} on go beyond {LARGEST_SEED}", arguments.seeds, arguments.first_seed);
        return Err(Error::input("--first-seed", problem, "begin with a smaller one, or take fewer"));
    }
    if let Some(set) =
        arguments.set.iter().find(|set| set.split('=').next().is_some_and(|key| key.trim() == "seed"))
    {
        let problem = "experiments run over seeds of their own, whatever the recipe's is";
        return Err(Error::input(format!("--set {set}"), problem, "name them with --first-seed and --seeds"));
    }
    let recipe = Recipe::resolve(arguments.recipe.as_deref(), &arguments.set)?;
    let mut say = words::say;
    devices::on(&arguments.device, !arguments.no_graphs, &mut say, |device, _| {
        recipe.model.dtype.check(device)?;
        work(arguments, &recipe, &named, device)
    })
}

fn work(
    arguments: &Arguments,
    recipe: &Recipe,
    experiments: &[Experiment],
    device: &Device,
) -> Result<ExitCode> {
    let seeds = arguments.first_seed..arguments.first_seed + arguments.seeds;
    // The CPU's memory is the system's to give: there is nothing to look at before the folder.
    if arguments.dry_run || matches!(device, Device::Gpu(_)) {
        let kept = Kept::read(&arguments.out, recipe)?;
        let agenda = Agenda::of(recipe, experiments, seeds.clone(), kept, device)?;
        if arguments.dry_run {
            output::write(&format!("{}\n{}", recipe.to_toml(), agenda.forecast(device)?.text()))?;
            return Ok(ExitCode::SUCCESS);
        }
        agenda.admit(device)?;
    }
    let mut laboratory = Laboratory::open(&arguments.out, recipe, device.clone())?;
    let stop = on_interrupt();
    let show = !arguments.quiet && !arguments.json;
    let bars = show && std::io::stderr().is_terminal() && !plain(|name| std::env::var_os(name));
    let mut watch = |notice: &Notice| {
        match notice {
            Notice::Begins { seed, what } if show => words::say(&format!("seed {seed}  {what}")),
            Notice::Progress(done, of) if bars => {
                let _ = write!(std::io::stderr(), "\r  {done}/{of} ");
            }
            Notice::Found(found) if show => {
                let begin = if bars { "\r" } else { "" };
                words::say(&format!("{begin}  accuracy {:.1} %", 100.0 * found.accuracy))
            }
            _ => {}
        }
        match stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let mut tables = serde_json::Map::new();
    for &experiment in experiments {
        let variations = experiment.variations(recipe);
        let mut findings = Vec::new();
        for seed in seeds.clone() {
            let found = laboratory.run(recipe, seed, &variations, &mut watch)?;
            if found.is_empty() {
                words::say("stopped; the same command goes on from here");
                return Ok(ExitCode::from(130));
            }
            findings.push(found);
        }
        let comparisons = compare(&variations, &findings)?;
        let name = experiment.name();
        if !arguments.json {
            let (question, seeds) = (experiment.question(), findings.len());
            output::write(&format!("\n{name}: {question} ({seeds} seeds)\n\n{}\n", text(&comparisons)))?;
        }
        let value = json!({"question": experiment.question(), "variations": comparisons});
        let path = arguments.out.join(format!("{name}.json"));
        std::fs::write(&path, format!("{value:#}\n")).map_err(Error::io(&path, "cannot write"))?;
        let path = arguments.out.join(format!("{name}.txt"));
        std::fs::write(&path, text(&comparisons)).map_err(Error::io(&path, "cannot write"))?;
        tables.insert(name.into(), value);
    }
    if arguments.json {
        output::write(&format!("{}\n", serde_json::Value::Object(tables)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Ctrl-C once: stop after this update. Twice: stop now.
fn on_interrupt() -> Arc<AtomicBool> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    let handler = ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    });
    if let Err(error) = handler {
        words::say(&format!("warning: Ctrl-C will stop at once: {error}"));
    }
    interrupted
}
