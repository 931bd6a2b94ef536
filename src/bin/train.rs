//! `train [RECIPE]`: teaches a model to reason in latents, improves it by reinforcement, and compares what helped.

#[path = "shared/ending.rs"]
mod ending;
#[path = "shared/output.rs"]
mod output;
#[path = "shared/words.rs"]
mod words;

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use latch::base::Result;
use latch::cpu::parallel;
use latch::device::{Choice, Device};
use latch::run::folder::{Existing, RunFolder};
use latch::run::recipe::{self, Recipe};
use latch::run::story::{self, Ending, Event, Story};
use latch::run::terminal::{
    GRPO_COLUMNS, GrpoStep, NO_SIGNAL, SUPERVISED_COLUMNS, SUPERVISED_EVERY, Screen, StepTable, Style,
    SupervisedStep, plain,
};
use latch::run::{devices, dry_run, environment, prospect, report};
use serde_json::Value;
use std::io::{IsTerminal, Stderr};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Where runs without a name of their own go.
const RUNS: &str = "runs";

/// Trains a model that thinks in latent steps: reasoning in words, the Coconut curriculum, then Dropout-GRPO and its
/// comparisons, with held-out accuracy at each stage and a table at the end.
///
/// Without arguments: the built-in recipe on embedded problems, four to eight minutes on two cores.
#[derive(Parser)]
#[command(version, allow_negative_numbers = true)]
pub struct Arguments {
    #[arg(help = recipe_help())]
    recipe: Option<String>,
    /// Changes one key, e.g. --set grpo.updates=20; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Seed, instead of the recipe's
    #[arg(long)]
    seed: Option<u64>,
    /// Folder of the run (default: runs/RECIPE-NN)
    #[arg(long)]
    out: Option<PathBuf>,
    /// Goes on where a run in the folder stopped, to the same bits; without RECIPE and --set, the folder says what the run is
    #[arg(long, conflicts_with = "clean")]
    resume: bool,
    /// Removes a run that the folder holds, and starts anew
    #[arg(long)]
    clean: bool,
    /// Shows the recipe as resolved, what will be done, the memory it takes, and what becomes of the folder and its disk, and
    /// stops
    #[arg(long)]
    dry_run: bool,
    /// Shows every key of a recipe with its default and meaning, and stops
    #[arg(long)]
    describe: bool,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// On a GPU: launches kernels one by one, not as captured graphs of steps that repeat (the same results, slower)
    #[arg(long)]
    no_graphs: bool,
    /// Worker threads (0 = one per core)
    #[arg(long, default_value_t = 0, value_parser = RangedU64ValueParser::<usize>::new().range(..=parallel::MOST))]
    threads: usize,
    /// One JSON object on stdout at the end (what OUT/summary.json holds), nothing else
    #[arg(long)]
    json: bool,
    /// Only the closing table
    #[arg(long, short)]
    quiet: bool,
}

/// Names every built-in recipe.
fn recipe_help() -> String {
    let names: Vec<&str> = recipe::BUILT_IN.iter().map(|(name, _)| *name).collect();
    format!("Recipe: a TOML file, or the name of a built-in one ({})", names.join(", "))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    ending::ended(parallel::with_threads(arguments.threads, || run(&arguments)))
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut overrides = arguments.set.clone();
    overrides.extend(arguments.seed.map(|seed| format!("seed={seed}")));
    let recipe = match resumed_recipe(arguments).filter(|_| overrides.is_empty()) {
        Some(recipe) => recipe?,
        None => Recipe::resolve(arguments.recipe.as_deref(), &overrides)?,
    };
    if arguments.describe {
        output::write(&recipe.describe())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut say = words::say;
    devices::on(&arguments.device, !arguments.no_graphs, &mut say, |device, choice| {
        // Before there is a folder of the run.
        recipe.model.dtype.check(device)?;
        match arguments.dry_run {
            true => forecast(arguments, &recipe, device),
            false => train(arguments, &recipe, device, choice),
        }
    })
}

fn train(
    arguments: &Arguments,
    recipe: &Recipe,
    device: &Device,
    choice: Option<&Choice>,
) -> Result<ExitCode> {
    let began = Instant::now();
    let name = recipe::name(arguments.recipe.as_deref());
    let folder = open_folder(arguments, &name)?;
    if folder.resumed() {
        RunFolder::refuse_other_recipe(folder.path(), recipe)?;
    }
    folder.write_recipe(recipe)?;
    let mut environment = environment::capture(device);
    environment["device_choice"] = choice.map_or(Value::Null, |choice| choice.sentence.as_str().into());
    folder.write_environment(&environment)?;
    let path = folder.path().to_path_buf();
    let stop = on_interrupt();
    let mut view = View::new(recipe, arguments, stop);
    let mut watch = |event: &Event| {
        note(&folder, event);
        view.show(event)
    };
    let mut story = match Story::open(recipe, &folder, device, &mut watch) {
        Ok(story) => story,
        // Nothing was computed yet: the same command must work once its reason is mended.
        Err(error) => {
            folder.abandon();
            return Err(error);
        }
    };
    let ending = story.run(&mut watch)?;
    let (progress, memory) = (story.progress().clone(), *story.memory());
    drop(story);
    view.finish();
    let drawn = draw(&folder);
    if let Ending::Stopped { checkpoint } = ending {
        words::say(&format!(
            "stopped; {} holds everything: go on with --resume --out {}{drawn}",
            checkpoint.display(),
            path.display()
        ));
        return Ok(ExitCode::from(130));
    }
    if arguments.json {
        output::write(&format!("{}\n", story::summary(recipe, &progress, &memory)))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::write(&format!(
        "{}\n{}\n{}\n{}\n{:.0} s in all; the run is in {}{drawn}\n",
        story::stage_table(&progress),
        story::closing_table(recipe, &progress),
        story::time_table(&progress),
        memory.sentence(),
        began.elapsed().as_secs_f64(),
        path.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Draws the run's report, and says where it is. A run whose report cannot be written has not failed.
fn draw(folder: &RunFolder) -> String {
    match report::write(&[folder.path().to_path_buf()], None) {
        Ok(written) => format!("\nits report: {}", written.path.display()),
        Err(error) => {
            let warning = format!("warning: the report was not written: {error}");
            let _ = folder.log(&warning);
            words::say(&warning);
            String::new()
        }
    }
}

/// A run that goes on is described by its folder, unless a recipe is named.
fn resumed_recipe(arguments: &Arguments) -> Option<Result<Recipe>> {
    if !arguments.resume || arguments.recipe.is_some() {
        return None;
    }
    let newest = || RunFolder::newest(Path::new(RUNS), &recipe::name(None)).ok();
    let folder = arguments.out.clone().or_else(newest)?;
    RunFolder::holds_run(&folder).then(|| RunFolder::recipe_of(&folder))
}

/// What is to become of a run that the folder holds.
fn existing(arguments: &Arguments) -> Existing {
    match (arguments.resume, arguments.clean) {
        (true, _) => Existing::Resume,
        (_, true) => Existing::Clean,
        _ => Existing::Refuse,
    }
}

fn open_folder(arguments: &Arguments, name: &str) -> Result<RunFolder> {
    let (runs, existing) = (Path::new(RUNS), existing(arguments));
    match (&arguments.out, arguments.resume) {
        (Some(path), _) => RunFolder::create(path, existing),
        (None, true) => RunFolder::create(&RunFolder::newest(runs, name)?, existing),
        (None, false) => RunFolder::numbered(runs, name),
    }
}

fn forecast(arguments: &Arguments, recipe: &Recipe, device: &Device) -> Result<ExitCode> {
    story::check(recipe)?;
    let name = recipe::name(arguments.recipe.as_deref());
    let path = match (&arguments.out, arguments.resume) {
        (Some(path), _) => path.clone(),
        (None, true) => RunFolder::newest(Path::new(RUNS), &name)?,
        (None, false) => RunFolder::next(Path::new(RUNS), &name)?,
    };
    RunFolder::look(&path, existing(arguments))?;
    let problems = dry_run::problems(recipe, device)?;
    let forecast = dry_run::forecast(recipe, &problems, device)?;
    // Last: what a model and an optimiser leave resident would count as the program's memory.
    let prospect = prospect::prospect(recipe, &path, existing(arguments), device)?;
    output::write(&format!("{}\n{}\n{}\n", recipe.to_toml(), forecast.text(), prospect.join("\n")))?;
    Ok(ExitCode::SUCCESS)
}

/// What goes to log.txt: notes and evaluations, as they happen.
fn note(folder: &RunFolder, event: &Event) {
    let line = match event {
        Event::Note(text) => text.to_string(),
        Event::Part { name, updates, done, .. } => format!("{name}: {updates} updates, {done} done"),
        Event::Evaluated { what, scores } => {
            format!("{what}: accuracy {:.4} of {}", scores.accuracy.value, scores.problems)
        }
        Event::Saved(path) => format!("saved {}", path.display()),
        _ => return,
    };
    // The log is for people; metrics and checkpoints fail aloud where the disk refuses.
    let _ = folder.log(&line);
}

/// The terminal.
struct View {
    screen: Screen<Stderr>,
    steps: StepTable,
    log_every: usize,
    part: (String, usize),
    began: Instant,
    reward: Option<f64>,
    stop: Arc<AtomicBool>,
}

impl View {
    fn new(recipe: &Recipe, arguments: &Arguments, stop: Arc<AtomicBool>) -> View {
        let style = Style::of(
            std::io::stderr().is_terminal(),
            plain(|name| std::env::var_os(name)),
            arguments.quiet,
            arguments.json,
        );
        View {
            screen: Screen::new(std::io::stderr(), style),
            steps: StepTable::new(&SUPERVISED_COLUMNS),
            log_every: recipe.run.log_every,
            part: (String::new(), 0),
            began: Instant::now(),
            reward: None,
            stop,
        }
    }

    fn line(&mut self, text: &str) {
        // A terminal that is gone does not end a run.
        let _ = self.screen.line(text);
    }

    fn step(&mut self, cells: &[latch::run::terminal::Cell]) {
        if let Some(heading) = self.steps.heading() {
            self.line(&heading);
        }
        let line = self.steps.line(cells);
        self.line(&line);
    }

    fn progress(&mut self, update: usize) {
        let (name, updates) = self.part.clone();
        let _ = self.screen.progress(&name, update as u64, updates as u64, self.began.elapsed());
    }

    fn show(&mut self, event: &Event) -> ControlFlow<()> {
        match event {
            Event::Part { name, updates, rewarded, .. } => {
                self.steps = match rewarded {
                    true => StepTable::new(&GRPO_COLUMNS),
                    false => StepTable::new(&SUPERVISED_COLUMNS),
                };
                (self.part, self.began, self.reward) = ((name.to_string(), *updates), Instant::now(), None);
                self.line(&format!("\n{name}"));
            }
            Event::Supervised { update, report, learning_rate, seconds } => {
                if update % (SUPERVISED_EVERY * self.log_every) == 0 || *update == self.part.1 {
                    let step = SupervisedStep {
                        step: *update as u64,
                        steps: self.part.1 as u64,
                        loss: report.loss,
                        gradient_norm: report.gradient_norm,
                        learning_rate: *learning_rate,
                        seconds: *seconds,
                        tokens_per_second: report.positions as f64 / seconds,
                    };
                    self.step(&step.cells());
                }
                self.progress(*update);
            }
            Event::Rewarded { update, report, samples, learning_rate, seconds } => {
                if update % self.log_every == 0 || *update == self.part.1 {
                    let groups = report.groups();
                    let thoughts = report.thoughts.unwrap_or_default();
                    let reward = report.reward();
                    let step = GrpoStep {
                        step: *update as u64,
                        steps: self.part.1 as u64,
                        reward,
                        change: self.reward.map(|before| reward - before),
                        live: groups.live,
                        all_wrong: groups.dead_low,
                        all_right: groups.dead_high,
                        entropy: report.entropy(),
                        kl: report.kl(),
                        length: report.length(),
                        latent_norm: thoughts.norm,
                        latent_similarity: thoughts.similarity.unwrap_or(0.0),
                        gradient_norm: report.gradient_norms.last().copied().unwrap_or(0.0),
                        learning_rate: *learning_rate,
                        seconds: *seconds,
                        tokens_per_second: report.tokens as f64 / seconds,
                    };
                    self.reward = Some(reward);
                    self.step(&step.cells());
                    if groups.live == 0 {
                        self.line(NO_SIGNAL);
                    }
                }
                if update % (20 * self.log_every) == 0 {
                    for sample in *samples {
                        self.line(&format!(
                            "  reward {:.0} (gold {})  {}  ->  {}",
                            sample.reward,
                            sample.gold,
                            sample.question,
                            sample.answer.replace('\n', " ")
                        ));
                    }
                }
                self.progress(*update);
            }
            Event::Evaluated { what, scores } => {
                let accuracy = scores.accuracy;
                self.line(&format!(
                    "  {what}: {:.1} % of {} right [{:.1}, {:.1}]",
                    100.0 * accuracy.value,
                    scores.problems,
                    100.0 * accuracy.low,
                    100.0 * accuracy.high
                ));
            }
            Event::Saved(_) => {}
            Event::Note(text) => self.line(text),
        }
        match self.stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn finish(&mut self) {
        let _ = self.screen.clear();
    }
}

/// Ctrl-C once: finish the update, save, stop. Twice: stop now.
fn on_interrupt() -> Arc<AtomicBool> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    let tidy = std::io::stderr().is_terminal();
    let handler = ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        if tidy {
            words::say("\nfinishing this update and saving; Ctrl-C again stops now");
        }
    });
    if let Err(error) = handler {
        words::say(&format!("warning: Ctrl-C will stop at once: {error}"));
    }
    interrupted
}
