//! `evaluate`: how well a model answers problems, without masks, over masks, sampled, or both.

#[path = "shared/ending.rs"]
mod ending;
#[path = "shared/machine.rs"]
mod machine;
#[path = "shared/masks.rs"]
mod masks;
#[path = "shared/model.rs"]
mod model;
#[path = "shared/output.rs"]
mod output;
#[path = "shared/problems.rs"]
mod problems;
#[path = "shared/room.rs"]
mod room;
#[path = "shared/soft.rs"]
mod soft;
#[path = "shared/words.rs"]
mod words;

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use latch::base::{Error, Result};
use latch::cpu::parallel;
use latch::device::{Device, Matmul};
use latch::learn::coconut::{Curriculum, Variant};
use latch::learn::soft_policy::{SoftEstimator, SoftObjective};
use latch::model::{Model, Precision};
use latch::ops::policy_loss::{Hyper, Ratio, Surrogate};
use latch::ops::reading_order;
use latch::ops::sampler::Law;
use latch::rollout::group::Thoughts;
use latch::rollout::masks::Masking;
use latch::run::admission::admit;
use latch::run::devices;
use latch::run::evaluation::{Ask, Examiner, Scores};
use latch::run::problems::expect_readable;
use latch::run::recipe::HrpoKeys;
use latch::run::reinforcement::SoftPlan;
use latch::run::student::{Student, gating_of, latents_of};
use latch::run::terminal::table;
use latch::text::answer::Extractor;
use machine::MachineArguments;
use masks::MaskArguments;
use model::ModelArguments;
use problems::ProblemArguments;
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;

/// Most answers to a problem: as many as a recipe may ask for.
const MOST_ANSWERS: u64 = 4096;

/// Asks a model problems and counts right answers (algorithms B.7).
#[derive(Parser)]
#[command(version, allow_negative_numbers = true)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// det = no masks, greedy; mc = masks, greedy; temp = sampled; mc+temp = both
    #[arg(long, default_value = "det", value_parser = ["det", "mc", "temp", "mc+temp"])]
    mode: String,
    /// Masks or samples a problem (mc, temp, mc+temp)
    #[arg(long, default_value_t = 16, value_parser = RangedU64ValueParser::<usize>::new().range(1..=MOST_ANSWERS))]
    masks: usize,
    /// The k of pass@k and maj@k; answers a problem where those are fewer
    #[arg(long, default_value_t = 8, value_parser = RangedU64ValueParser::<usize>::new().range(1..=MOST_ANSWERS))]
    k: usize,
    /// Seed of masks, samples and generated problems
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Latent steps (default: what latent_config.json in the folder says, else 0)
    #[arg(long)]
    latents: Option<usize>,
    /// Answers are read from the tokens that stand for soft steps too, before the sampled ones
    #[arg(long, requires = "soft")]
    read_proxies: bool,
    /// Reads plain tokens although the model has gates (HRPO). By default such a model thinks as it was trained: its first
    /// tokens are read with the mixtures they were sampled from, as latent_gating.json beside it says
    #[arg(long)]
    no_gates: bool,
    /// Temperature of sampled answers
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
    /// numeric, strict_string or last_number
    #[arg(long, default_value = "numeric")]
    extractor: String,
    /// Longest answer, in tokens
    #[arg(long, default_value_t = 64, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    max_new_tokens: usize,
    /// Ask only the first so many problems (0 = all)
    #[arg(long, default_value_t = 0)]
    limit: usize,
    /// Answers at once
    #[arg(long, default_value_t = 64, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    batch: usize,
    /// Own, removed, or shuffled: what becomes of the latents
    #[arg(long, default_value = "own", value_parser = ["own", "removed", "shuffled"])]
    thoughts: String,
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
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    problems: ProblemArguments,
    #[command(flatten)]
    masking: MaskArguments,
    #[command(flatten)]
    soft: soft::SoftArguments,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    ending::ended(
        parallel::with_threads(arguments.machine.threads, || run(&arguments)).map(|()| ExitCode::SUCCESS),
    )
}

fn run(arguments: &Arguments) -> Result<()> {
    let mut say = words::say;
    devices::on(&arguments.machine.device, !arguments.no_graphs, &mut say, |device, _| {
        work(arguments, device)
    })
}

fn work(arguments: &Arguments, device: &Device) -> Result<()> {
    device.choose_matmul(arguments.matmul)?;
    reading_order::allow(arguments.weight_copies_mib);
    let latents = match arguments.latents {
        Some(latents) => latents,
        // Soft steps follow the bare question.
        None if arguments.soft.soft.is_some() => 0,
        None => latents_of(&arguments.model.model, arguments.model.adapter.as_deref())?,
    };
    let curriculum = Curriculum {
        // A model that was not taught to think in latents answers the bare question.
        variant: if latents > 0 { Variant::Coconut } else { Variant::NoCot },
        thoughts_per_step: 1,
        max_latent_stage: latents,
        pad_latent_to_max: true,
        uniform_prob: 0.0,
        seed: arguments.seed,
    };
    let extractor: Extractor = arguments.extractor.parse()?;
    let mut gating = gating_of(&arguments.model.model)?;
    if arguments.no_gates {
        gating.hrpo.thinking = 0;
    }
    let ask = ask(arguments, latents)?;
    // What was mixed into the answers of a model with gates, or before answers, is not kept, so they are not scored again.
    let averages = |model: &Model| {
        let gated = model.has_gates() && !arguments.no_gates;
        ask.masking.is_active() && ask.thoughts == Thoughts::Own && !gated && ask.soft.is_none()
    };
    let load =
        |device: &Device, precision: Precision, load: fn(&Path, &Device, Precision) -> Result<Student>| {
            let mut student = load(&arguments.model.model, device, precision)?;
            if let Some(adapter) = &arguments.model.adapter {
                student.model.load_adapter(adapter)?;
            }
            Ok::<Student, Error>(student)
        };
    let base = Asking { curriculum: &curriculum, extractor, seed: arguments.seed, hrpo: &gating.hrpo };
    // The problems are read with the tokenizer of a model that is given back at once.
    let blank = load(&device.accountant(None), arguments.machine.dtype, Student::load_blank)?;
    let (items, skipped) = arguments.problems.items(&blank, arguments.seed, arguments.limit)?;
    drop(blank);
    expect_readable(&arguments.problems.data, &items, extractor, "--extractor")?;
    let plan = room::Plan {
        rows: arguments.batch,
        tokens: arguments.max_new_tokens,
        dtype: arguments.machine.dtype,
    };
    let rehearse = |plan: &room::Plan, device: &Device| {
        let student = load(device, plan.dtype, Student::load_blank)?;
        let examiner = base.asking(&student, plan);
        examiner.rehearse(&student.model, &items, &ask)?;
        match averages(&student.model) {
            true => examiner.rehearse_average(&student.model, &items, &ask),
            false => Ok(()),
        }
    };
    let rows = |rows: usize| format!("--batch {rows}");
    admit(device, "this evaluation", &plan, &rehearse, &room::remedies(&rows))?;
    let student = load(device, arguments.machine.dtype, Student::load)?;
    let examiner = base.asking(&student, &plan);
    let outcome = examiner.ask(&student.model, &items, &ask)?;
    let scores = outcome.scores(arguments.k)?;
    let average = match averages(&student.model) {
        true => Some(examiner.average_by_probability(&student.model, &items, &ask, &outcome)?),
        false => None,
    };
    if arguments.json {
        let mut value = json!(scores);
        value["mode"] = json!(arguments.mode);
        value["latents"] = json!(latents);
        value["soft"] = json!(arguments.soft.soft);
        value["thoughts"] = json!(arguments.thoughts);
        value["seed"] = json!(arguments.seed);
        value["skipped"] = json!(skipped);
        value["average_by_probability"] = json!(average);
        output::write(&format!("{value}\n"))?;
        return Ok(());
    }
    if skipped > 0 {
        words::say(&format!("{skipped} malformed items left out"));
    }
    output::write(&show(arguments, latents, &scores, average))?;
    Ok(())
}

/// What stays when the sizes of a [`room::Plan`] change.
struct Asking<'a> {
    curriculum: &'a Curriculum,
    extractor: Extractor,
    seed: u64,
    hrpo: &'a HrpoKeys,
}

impl<'a> Asking<'a> {
    /// Who asks `student`.
    fn asking(&self, student: &'a Student, plan: &room::Plan) -> Examiner<'a> {
        Examiner {
            curriculum: self.curriculum,
            markers: student.markers,
            tokenizer: &student.tokenizer,
            extractor: self.extractor,
            max_new_tokens: plan.tokens,
            batch: plan.rows,
            seed: self.seed,
            hrpo: self.hrpo,
        }
    }
}

fn ask(arguments: &Arguments, latents: usize) -> Result<Ask> {
    // Also where the mode does not use them: a number that means nothing is a mistake in any mode.
    let masking = arguments.masking.masking()?;
    let temperature = arguments.temperature;
    Law::Categorical { temperature, top_k: None, top_p: None, min_p: None }.validate()?;
    let masked = arguments.mode.starts_with("mc");
    let sampled = arguments.mode.ends_with("temp");
    Ok(Ask {
        soft: soft_plan(arguments).map(|plan| if sampled { plan } else { plan.quiet() }),
        stage: latents.saturating_add(1),
        masking: if masked { masking } else { Masking::NONE },
        temperature: sampled.then_some(arguments.temperature),
        samples: if masked || sampled { arguments.masks } else { 1 },
        thoughts: match arguments.thoughts.as_str() {
            "removed" => Thoughts::Removed,
            "shuffled" => Thoughts::Shuffled,
            _ => Thoughts::Own,
        },
        key: u32::MAX,
    })
}

/// Soft steps as asked for; nothing is trained here.
fn soft_plan(arguments: &Arguments) -> Option<SoftPlan> {
    let loss = Hyper { ratio: Ratio::Token, surrogate: Surrogate::Plain, clamp: None, kl: None };
    Some(SoftPlan {
        latents: arguments.soft.soft?,
        thoughts: arguments.soft.thoughts()?,
        objective: SoftObjective { estimator: SoftEstimator::None, loss },
        proxy_in_reward: arguments.read_proxies,
        infer_hard: false,
    })
}

fn show(arguments: &Arguments, latents: usize, scores: &Scores, average: Option<f64>) -> String {
    let percent = |value: f64| format!("{:.1}", 100.0 * value);
    let accuracy = scores.accuracy;
    let interval =
        format!("{} [{}, {}]", percent(accuracy.value), percent(accuracy.low), percent(accuracy.high));
    let mut header =
        vec!["mode".to_string(), "latents".into(), "problems".into(), "accuracy % [95 %]".into()];
    let mut row = vec![arguments.mode.clone(), latents.to_string(), scores.problems.to_string(), interval];
    if scores.samples > 1 {
        header.extend([
            format!("pass@{}", scores.k),
            format!("maj@{}", scores.k),
            format!("coverage of {}", scores.samples),
            "vote of all".into(),
        ]);
        row.extend(
            [scores.pass_at_k, scores.majority_at_k, scores.coverage, scores.average_by_vote].map(percent),
        );
    }
    if let Some(average) = average {
        header.push("model average".into());
        row.push(percent(average));
    }
    header.push("tokens".into());
    row.push(format!("{:.1}", scores.tokens));
    table(&header.iter().map(String::as_str).collect::<Vec<_>>(), &[row])
}
