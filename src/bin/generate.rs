//! `generate`: continues prompts, with latent steps before the answer if asked.

#[path = "shared/ending.rs"]
mod ending;
#[path = "shared/machine.rs"]
mod machine;
#[path = "shared/output.rs"]
mod output;
#[path = "generate/prompts.rs"]
mod prompts;
#[path = "shared/room.rs"]
mod room;
#[path = "shared/soft.rs"]
mod soft;
#[path = "generate/switching.rs"]
mod switching;
#[path = "shared/words.rs"]
mod words;

use clap::builder::RangedU64ValueParser;
use clap::{ArgGroup, Parser};
use latch::base::{Error, Result};
use latch::cpu::parallel;
use latch::device::{Device, Matmul};
use latch::model::Model;
use latch::model::weights::Source;
use latch::ops::reading_order;
use latch::ops::sampler::Law;
use latch::rollout::generate::{self, Generated, Options, Timing, generate_gated};
use latch::rollout::switching as rollout_switching;
use latch::run::admission::admit;
use latch::run::student::gating_of;
use latch::run::{devices, replay, settings};
use latch::text::Tokenizer;
use machine::MachineArguments;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Generates text from a model. Text goes to stdout, everything else to stderr.
#[derive(Parser)]
#[command(version, allow_negative_numbers = true, group = ArgGroup::new("input").required(true))]
pub struct Arguments {
    /// Hugging Face folder or .gguf file
    #[arg(long, short, required_unless_present = "replay")]
    model: Option<PathBuf>,
    /// Folder of an adapter (LoRA, as PEFT or train saves it) for the model
    #[arg(long, value_name = "DIR", requires = "model")]
    adapter: Option<PathBuf>,
    /// Runs a logged rollout again, e.g. runs/default-01/samples.jsonl:42, and compares it with what was logged
    #[arg(long, group = "input", value_name = "RUN/samples.jsonl:LINE", conflicts_with = "model")]
    replay: Option<String>,
    /// Prompt text; may be given several times for a batch; `-` reads stdin, one prompt a line
    #[arg(long, short, group = "input", allow_hyphen_values = true)]
    prompt: Vec<String>,
    /// Prompt as token ids, e.g. 1,2,3; may be given several times
    #[arg(long, group = "input", value_name = "ID,ID,...")]
    prompt_ids: Vec<String>,
    /// File of prompts, one a line (`-` = stdin)
    #[arg(long, group = "input")]
    prompt_file: Option<PathBuf>,
    /// Wrap each prompt as a user message of the model's chat template
    #[arg(long, conflicts_with = "prompt_ids")]
    chat: bool,
    /// System message of the chat template
    #[arg(long, requires = "chat")]
    system: Option<String>,
    /// Latent steps after the prompt: the final hidden state is fed back so many times
    #[arg(long, default_value_t = 0)]
    latents: usize,
    /// Token ids fed after the latents, e.g. an end-of-thought token
    #[arg(long, value_delimiter = ',', requires = "latents")]
    after_latents: Vec<u32>,
    /// Token ids fed after the soft steps, e.g. that of </think>
    #[arg(long, value_delimiter = ',', requires = "soft")]
    after_soft: Vec<u32>,
    /// Reads plain tokens although the model has gates (HRPO). By default such a model thinks as it was trained: its first
    /// tokens are read with the mixtures they were sampled from, as latent_gating.json beside it says
    #[arg(long)]
    no_gates: bool,
    /// Always the most probable token (the default unless a sampling flag is given)
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "min_p"])]
    greedy: bool,
    /// Sample at this temperature
    #[arg(long)]
    temperature: Option<f64>,
    /// Sample among the k most probable tokens
    #[arg(long)]
    top_k: Option<usize>,
    /// Sample among the fewest tokens whose probability reaches p
    #[arg(long)]
    top_p: Option<f64>,
    /// Sample among tokens at least this fraction as probable as the best
    #[arg(long)]
    min_p: Option<f64>,
    /// Most tokens to generate for each prompt (default: 64, or what the position table has room for)
    #[arg(long, short = 'n', value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    max_new_tokens: Option<usize>,
    /// Go on after end-of-text tokens
    #[arg(long)]
    ignore_eos: bool,
    /// Seed of sampling: the same seed, prompt and row give the same text
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    machine: MachineArguments,
    /// Who multiplies matrices on a GPU: latch's kernels (auto, latch), or cublaslt, whose bits depend on the batch
    #[arg(long, default_value = "auto")]
    matmul: Matmul,
    /// On a GPU: launches kernels one by one, not as captured graphs of steps that repeat (the same results, slower)
    #[arg(long)]
    no_graphs: bool,
    /// Most memory on the CPU for copies of weights in the order in which decoding reads them, in MiB; 0 = none: slower, with
    /// the same bits
    #[arg(long, value_name = "MIB", default_value_t = reading_order::USUAL_MIB)]
    weight_copies_mib: usize,
    /// One JSON object a prompt on stdout: prompt_ids, ids, text, logprobs, stopped; with --swi no logprobs, but readings:
    /// t (token), m (mixture) or s (both, at a switch), what the position after each token was given to read
    #[arg(long)]
    json: bool,
    /// No timing line
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    soft: soft::SoftArguments,
    #[command(flatten)]
    switching: switching::SwitchingArguments,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    ending::ended(parallel::with_threads(arguments.machine.threads, || run(&arguments)))
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let law = law(arguments);
    law.validate()?;
    let mut say = words::say;
    devices::on(&arguments.machine.device, !arguments.no_graphs, &mut say, |device, _| {
        work(arguments, law, device)
    })
}

fn work(arguments: &Arguments, law: Law, device: &Device) -> Result<ExitCode> {
    device.choose_matmul(arguments.matmul)?;
    reading_order::allow(arguments.weight_copies_mib);
    if let Some(replay) = &arguments.replay {
        return replay_logged(arguments, replay, device);
    }
    let Some(model) = &arguments.model else {
        return Err(Error::input("--model", "is missing", "name a Hugging Face folder or a .gguf file"));
    };
    let source = Source::open(model)?;
    // Prompts given as ids need no tokenizer; text is then shown where there is one.
    let tokenizer = match (source.tokenizer(), arguments.prompt_ids.is_empty()) {
        (Ok(tokenizer), _) => Some(tokenizer),
        (Err(_), false) => None,
        (Err(error), true) => return Err(error),
    };
    let prompts = prompts::read(arguments, &source, tokenizer.as_ref())?;
    let vocab = source.config().vocab;
    for (index, prompt) in prompts.iter().enumerate() {
        if let Some(id) = prompt.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::input(
                format!("prompt {index}"),
                format!("token id {id}; the vocabulary has {vocab}"),
                "check that the ids and the tokenizer belong to the model",
            ));
        }
    }
    let ignored = source.settings_not_followed()?;
    if !ignored.is_empty() && !arguments.quiet {
        words::say(&format!(
            "note: generation_config.json asks for {}, which is not applied",
            ignored.join(", ")
        ));
    }
    let options = Options {
        latents: arguments.soft.soft.unwrap_or(arguments.latents),
        soft: arguments.soft.thoughts(),
        after_latents: [&arguments.after_latents[..], &arguments.after_soft].concat(),
        law,
        max_new_tokens: arguments
            .max_new_tokens
            .unwrap_or_else(|| default_length(arguments, &source, &prompts)),
        stop: if arguments.ignore_eos { vec![] } else { source.stop_tokens()? },
        seed: arguments.seed,
    };

    let rule = arguments.switching.rule(tokenizer.as_ref())?;
    let gate_of = |model: &Model| match (
        model.has_gates() && !arguments.no_gates && rule.is_none(),
        tokenizer.as_ref(),
    ) {
        (false, _) => Ok(None),
        (true, Some(tokenizer)) => settings::gating(&gating_of(source_folder(arguments))?.hrpo, tokenizer),
        (true, None) => Err(Error::input(
            "a model with gates",
            "has no tokenizer, which writes the mark that ends its thinking",
            "add tokenizer.json to its folder, or give --no-gates",
        )),
    };
    let rehearse = |plan: &room::Plan, device: &Device| {
        let mut model = Model::blank_of(&source, device, plan.dtype)?;
        if let Some(adapter) = &arguments.adapter {
            model.load_adapter(adapter)?;
        }
        let options = Options { max_new_tokens: plan.tokens, ..options.clone() };
        let prompts = longest(&prompts, plan.rows);
        match &rule {
            None => generate::rehearse(&model, &prompts, &options, gate_of(&model)?),
            Some(rule) => rollout_switching::rehearse(&model, &prompts, rule, &switching::switched(&options)),
        }
    };
    let plan =
        room::Plan { rows: prompts.len(), tokens: options.max_new_tokens, dtype: arguments.machine.dtype };
    let rows = |rows: usize| format!("at most {rows} prompts at a time");
    admit(device, "generating this", &plan, &rehearse, &room::remedies(&rows))?;
    let mut model = Model::from_source(&source, device, arguments.machine.dtype)?;
    if let Some(adapter) = &arguments.adapter {
        model.load_adapter(adapter)?;
    }
    let gate = gate_of(&model)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    on_interrupt(interrupted.clone());
    let streams = !arguments.json && prompts.len() == 1;
    let mut stream = tokenizer.as_ref().filter(|_| streams).map(|tokenizer| tokenizer.stream(true));
    let mut failure = None;
    let mut closed = false;
    let mut show = |_: usize, token: u32| {
        let shown = match (&mut stream, streams) {
            (Some(_), _) if options.stop.contains(&token) => Ok(String::new()),
            (Some(stream), _) => stream.push(token),
            (None, true) => Ok(format!("{token} ")),
            (None, false) => Ok(String::new()),
        };
        match shown.and_then(|text| output::write(&text)) {
            Ok(read) => closed = !read,
            Err(error) => failure = Some(error),
        }
        match failure.is_some() || closed || interrupted.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let mut readings = Vec::new();
    let (generated, timing) = match &rule {
        None => generate_gated(&model, &prompts, &options, gate, &mut show)?,
        Some(rule) => switching::generate(&model, &prompts, (rule, &options), &mut show, &mut readings)?,
    };
    if let Some(error) = failure {
        return Err(error);
    }
    // A reader that has gone away (`| head`) is no failure.
    if !closed {
        let rest = match stream {
            Some(stream) => stream.finish()? + "\n",
            None if streams => "\n".into(),
            None => String::new(),
        };
        output::write(&rest)?;
        if !streams {
            show_all(arguments, &prompts, (&generated, &readings), tokenizer.as_ref())?;
        }
    }
    if !arguments.quiet {
        report(&prompts, timing);
    }
    Ok(ExitCode::from(if interrupted.load(Ordering::Relaxed) { 130 } else { 0 }))
}

/// The longest `count` of `prompts`.
fn longest(prompts: &[Vec<u32>], count: usize) -> Vec<Vec<u32>> {
    let mut prompts = prompts.to_vec();
    prompts.sort_by_key(|prompt| std::cmp::Reverse(prompt.len()));
    prompts.truncate(count);
    prompts
}

/// The model's folder, or the file's.
fn source_folder(arguments: &Arguments) -> &Path {
    arguments.model.as_deref().unwrap_or(Path::new("."))
}

/// 64 tokens, or fewer where the model has fewer positions; the last token needs none of its own.
fn default_length(arguments: &Arguments, source: &Source, prompts: &[Vec<u32>]) -> usize {
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let thoughts = arguments.soft.soft.unwrap_or(arguments.latents);
    let after = arguments.after_latents.len() + arguments.after_soft.len();
    let used = longest.saturating_add(thoughts).saturating_add(after);
    (source.config().max_positions + 1).saturating_sub(used).clamp(1, 64)
}

fn law(arguments: &Arguments) -> Law {
    let sampling = arguments.temperature.is_some()
        || arguments.top_k.is_some()
        || arguments.top_p.is_some()
        || arguments.min_p.is_some();
    match sampling {
        false => Law::Greedy,
        true => Law::Categorical {
            temperature: arguments.temperature.unwrap_or(1.0),
            top_k: arguments.top_k,
            top_p: arguments.top_p,
            min_p: arguments.min_p,
        },
    }
}

fn show_all(
    arguments: &Arguments,
    prompts: &[Vec<u32>],
    (generated, readings): (&[Generated], &[String]),
    tokenizer: Option<&Tokenizer>,
) -> Result<()> {
    for (index, (prompt, answer)) in prompts.iter().zip(generated).enumerate() {
        let text = tokenizer.map(|tokenizer| tokenizer.decode(&answer.ids, true)).transpose()?;
        let line = match arguments.json {
            true => {
                let mut value = serde_json::json!({
                    "prompt_ids": prompt,
                    "proxies": answer.proxies,
                    "thought": tokenizer.map(|tokenizer| tokenizer.decode(&answer.proxies, true)).transpose()?,
                    "ids": answer.ids,
                    "text": text,
                    "logprobs": answer.log_probabilities,
                    "stopped": answer.stopped,
                });
                if let Some(readings) = readings.get(index) {
                    value["readings"] = serde_json::json!(readings);
                }
                value.to_string()
            }
            false => format!("[{index}] {}", text.unwrap_or_else(|| format!("{:?}", answer.ids))),
        };
        if !output::write(&format!("{line}\n"))? {
            break;
        }
    }
    Ok(())
}

fn report(prompts: &[Vec<u32>], timing: Timing) {
    let rate = |count: usize, time: std::time::Duration| count as f64 / time.as_secs_f64().max(1e-9);
    let positions: usize = prompts.iter().map(Vec::len).sum();
    // Switching does not time prompts by themselves.
    let prompt = match timing.prefill.is_zero() {
        true => format!("prompt {positions} tokens"),
        false => format!("prompt {positions} tokens, {:.1} tokens/s", rate(positions, timing.prefill)),
    };
    let generated = rate(timing.tokens, timing.decode);
    words::say(&format!("{prompt};  generated {} tokens, {generated:.1} tokens/s", timing.tokens));
}

/// Runs a logged rollout again; exit code 1 where it comes out differently.
fn replay_logged(arguments: &Arguments, place: &str, device: &Device) -> Result<ExitCode> {
    let wrong =
        || Error::input("--replay", format!("`{place}`"), "give a file and a line, e.g. samples.jsonl:42");
    let (file, line) = place.rsplit_once(':').ok_or_else(wrong)?;
    let line: usize = line.parse().map_err(|_| wrong())?;
    let replayed = replay::replay(Path::new(file), line, device)?;
    let same = replayed.gap == 0.0;
    if arguments.json {
        let value = serde_json::json!({
            "question": replayed.question, "text": replayed.text, "ids": replayed.again.tokens,
            "logprobs": replayed.again.log_probabilities, "logged_ids": replayed.logged, "same": same,
        });
        output::write(&format!("{value}\n"))?;
    } else {
        output::write(&format!("{}\n{}\n", replayed.question, replayed.text))?;
        let (gap, logged) = (replayed.gap, &replayed.logged);
        words::say(&match same {
            true => format!("the same {} tokens and log-probabilities as logged", logged.len()),
            false => format!("differs from what was logged: gap {gap}, ids {logged:?}"),
        });
    }
    Ok(ExitCode::from(u8::from(!same)))
}

/// Ctrl-C once: stop after this token and show what there is. Twice: stop now.
fn on_interrupt(interrupted: Arc<AtomicBool>) {
    let handler = ctrlc::set_handler(move || {
        if interrupted.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    });
    if let Err(error) = handler {
        words::say(&format!("warning: Ctrl-C will stop at once: {error}"));
    }
}
