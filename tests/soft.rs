//! Soft steps: draws against their replays, to the bit; gradients of whole models against finite differences.

use latch::base::Dtype;
use latch::base::rng::{Purpose, StreamKey};
use latch::device::Device;
use latch::learn::objective::Preset;
use latch::learn::optimizer::{self, Optimizer};
use latch::learn::policy::{Policy, Replay, Settings, Source};
use latch::learn::policy_report::{Question, Report};
use latch::learn::soft_policy::{SoftEstimator, SoftObjective, SoftStatistics};
use latch::model::config::Config;
use latch::model::{
    Action, Gradients, Model, NoisyInput, Precision, Record, Scores, SoftGradient, SoftLaw, SoftScore,
    SoftScores, Truncation,
};
use latch::ops::gaussian_density::Normal;
use latch::ops::mask::SiteKind;
use latch::ops::policy_loss::{Hyper, Ratio, Statistic, Surrogate};
use latch::ops::sampler::Law;
use latch::ops::soft_action::{Perturbation, Proxy, Score};
use latch::rollout::audit::Audit;
use latch::rollout::group::{
    ColdStop, Drawing, Form, Limits, Member, Rollouts, SoftReplay, SoftThoughts, Thoughts, Trajectory,
};
use latch::rollout::masks::{Masking, Mode, Rollout, Scope};
use serde_json::json;
use std::ops::ControlFlow;
use std::path::Path;

const TOP_K: usize = 9;

pub fn model(family: &str, dtype: Dtype, device: &Device) -> Model {
    let config = match family {
        "gpt2" => json!({
            "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 61, "n_embd": 24, "n_head": 3,
            "n_layer": 2, "n_positions": 128, "activation_function": "gelu_new",
        }),
        _ => json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 61, "hidden_size": 24,
            "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
            "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
        }),
    };
    let config = Config::from_json(config, Path::new("config.json")).unwrap();
    let mut model = Model::random(config, 5, device, Precision::of(dtype)).unwrap();
    // Sharper than at birth, so that mixtures are not all alike.
    if dtype != Dtype::Bf16 {
        for parameter in model.parameters_mut() {
            if parameter.shape().dims().len() == 2 {
                match dtype {
                    Dtype::F64 => scale::<f64>(parameter, 8.0),
                    _ => scale::<f32>(parameter, 8.0),
                }
            }
        }
    }
    model
}

fn scale<T: latch::device::Element + Copy + std::ops::Mul<Output = T>>(
    tensor: &mut latch::ops::Tensor,
    by: T,
) {
    let values: Vec<T> = tensor.download::<T>().unwrap().into_iter().map(|value| value * by).collect();
    tensor.upload(&values).unwrap();
}

pub fn thoughts(perturbation: Perturbation, hard: bool) -> SoftThoughts {
    SoftThoughts {
        law: SoftLaw {
            law: Law::Categorical { temperature: 0.9, top_k: Some(TOP_K), top_p: Some(0.95), min_p: None },
            tau: 0.5,
            perturbation,
            proxy: Proxy::Argmax,
            hard,
        },
        proxies_stop: true,
        cold: None,
        leave_at: None,
        replay: SoftReplay::Actions,
    }
}

pub fn form(latents: usize) -> Form {
    Form { start: vec![], latents, end: vec![], stop: vec![7, 8, 9], max_new_tokens: 5 }
}

pub fn drawing(thoughts: SoftThoughts) -> Drawing {
    Drawing {
        gate: None,
        masking: Masking::NONE,
        latent_noise: 0.0,
        soft: Some(thoughts),
        thoughts: Thoughts::Own,
        law: Law::PLAIN,
        seed: 11,
        share: true,
    }
}

pub fn masked(p: f64) -> Masking {
    Masking { p, sites: SiteKind::ALL.to_vec(), scope: Scope::All, mode: Mode::PerStep }
}

pub fn prompts() -> Vec<Vec<u32>> {
    vec![vec![3, 14, 15, 9, 26], vec![5, 35, 8], vec![2, 7, 1, 8, 28, 18, 28]]
}

pub fn members(prompts: usize, group: u32) -> Vec<Member> {
    (0..prompts)
        .flat_map(|prompt| {
            (0..group).map(move |rollout| Member {
                prompt,
                coordinates: Rollout { update: 2, prompt: 40 + prompt as u32, rollout, attempt: 0 },
            })
        })
        .collect()
}

pub const LIMITS: Limits = Limits { prompts: 3, members: 12, prompt_tokens: 7 };

pub fn sampled(model: &Model, form: &Form, drawing: &Drawing, record: Record) -> (Rollouts, Vec<Trajectory>) {
    let mut rollouts = Rollouts::reserve(model, form.clone(), drawing.clone(), LIMITS, record).unwrap();
    let go = |_, _| ControlFlow::Continue(());
    let trajectories = rollouts.sample(model, &prompts(), &members(3, 4), go).unwrap();
    (rollouts, trajectories)
}

const KINDS: [Perturbation; 5] = [
    Perturbation::None,
    Perturbation::Gumbel { clamp: None },
    Perturbation::Gumbel { clamp: Some((-1.5, 3.0)) },
    Perturbation::Gaussian { strength: 0.4 },
    Perturbation::Dirichlet { concentration: 3.0 },
];

pub fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The log-probabilities of all answers as the rollouts stand on the tape.
pub fn scored(
    model: &Model,
    rollouts: &Rollouts,
    trajectories: &[Trajectory],
    scores: &mut Scores,
) -> Vec<f64> {
    let at: Vec<u32> = rollouts.predictors().iter().flatten().copied().collect();
    let targets: Vec<u32> = trajectories.iter().flat_map(|t| t.tokens.iter().copied()).collect();
    scores.forward(model, rollouts.sequences(), &at, &targets, 1.0).unwrap();
    scores.log_probabilities().unwrap()
}

#[test]
fn draws_are_audited_and_replayed_to_the_bit() {
    for family in ["gpt2", "llama"] {
        let model = model(family, Dtype::F32, &Device::cpu());
        let (mut stopped, mut answered, mut several) = (0, 0, 0);
        for perturbation in KINDS {
            for (masking, noise) in [(Masking::NONE, 0.0), (masked(0.2), 0.0), (Masking::NONE, 0.05)] {
                for hard in [false, true] {
                    let drawing = Drawing {
                        masking: masking.clone(),
                        latent_noise: noise,
                        ..drawing(thoughts(perturbation, hard))
                    };
                    let (_, trajectories) = sampled(&model, &form(6), &drawing, Record::Nothing);
                    let mut audit = Audit::reserve(&model, form(6), drawing.clone(), 7).unwrap();
                    let mut scores = Scores::reserve(&model, 60).unwrap();
                    for trajectory in &trajectories {
                        let prompt = &prompts()[trajectory.member.prompt];
                        assert_eq!(
                            audit.gap(&model, prompt, trajectory).unwrap(),
                            0.0,
                            "{family} {drawing:?}"
                        );
                        stopped += usize::from(trajectory.tokens.is_empty());
                        answered += usize::from(!trajectory.tokens.is_empty());
                        several += usize::from(trajectory.actions.iter().any(|action| action.ids.len() > 1));
                    }
                    let said: Vec<f64> =
                        trajectories.iter().flat_map(|t| t.log_probabilities.iter().copied()).collect();
                    for replay in [SoftReplay::Actions, SoftReplay::Noise] {
                        let mut drawing = drawing.clone();
                        drawing.soft = drawing.soft.map(|soft| SoftThoughts { replay, ..soft });
                        let mut rollouts =
                            Rollouts::reserve(&model, form(6), drawing.clone(), LIMITS, Record::Everything)
                                .unwrap();
                        rollouts
                            .replay(&model, &prompts(), &trajectories.iter().collect::<Vec<_>>())
                            .unwrap();
                        let again = scored(&model, &rollouts, &trajectories, &mut scores);
                        assert_eq!(bits(&again), bits(&said), "{family} {replay:?} {drawing:?}");
                    }
                }
            }
        }
        assert!(stopped > 0 && answered > 0 && several > 0, "{family}: {stopped} {answered} {several}");
    }
}

#[test]
fn a_rollout_is_the_same_in_any_batch_and_without_sharing() {
    let model = model("llama", Dtype::F32, &Device::cpu());
    for masking in [Masking::NONE, masked(0.2)] {
        let drawing = Drawing { masking, ..drawing(thoughts(Perturbation::Gumbel { clamp: None }, false)) };
        let (_, all) = sampled(&model, &form(6), &drawing, Record::Everything);
        let alone = Drawing { share: false, ..drawing };
        let mut rollouts = Rollouts::reserve(&model, form(6), alone, LIMITS, Record::Nothing).unwrap();
        for trajectory in &all {
            let prompt = prompts()[trajectory.member.prompt].clone();
            let member = Member { prompt: 0, ..trajectory.member };
            let go = |_, _| ControlFlow::Continue(());
            let mut again = rollouts.sample(&model, &[prompt], &[member], go).unwrap().remove(0);
            again.member = trajectory.member;
            assert_eq!(&again, trajectory);
        }
    }
}

#[test]
fn thinking_ends_early_when_it_is_cold_or_says_so() {
    let model = model("llama", Dtype::F32, &Device::cpu());
    let never = SoftThoughts { proxies_stop: false, ..thoughts(Perturbation::None, false) };
    let steps = |soft: SoftThoughts| -> (Vec<Trajectory>, Drawing) {
        let drawing = drawing(soft);
        (sampled(&model, &form(6), &drawing, Record::Nothing).1, drawing)
    };
    let (all, _) = steps(never);
    assert!(all.iter().all(|t| t.actions.len() == 6 && !t.tokens.is_empty()));
    let entropies: Vec<f64> = all.iter().flat_map(|t| &t.actions).map(Action::entropy).collect();
    let middle = {
        let mut sorted = entropies.clone();
        sorted.sort_by(f64::total_cmp);
        // Between two values, so that rounding decides nothing.
        (sorted[sorted.len() / 2] + sorted[sorted.len() / 2 - 5]) / 2.0
    };
    // What the rule says, from the entropies of the rollouts that never left.
    let expected = |t: &Trajectory, run: usize| {
        let mut cold = 0;
        for (step, action) in t.actions.iter().enumerate() {
            cold = if action.entropy() < middle { cold + 1 } else { 0 };
            if cold >= run {
                return step + 1;
            }
        }
        t.actions.len()
    };
    for run in [1, 2] {
        let cold = Some(ColdStop { entropy: middle, steps: run });
        let (early, drawing) = steps(SoftThoughts { cold, ..never });
        let found: Vec<usize> = early.iter().map(|t| t.actions.len()).collect();
        assert_eq!(found, all.iter().map(|t| expected(t, run)).collect::<Vec<_>>());
        assert!(found.iter().any(|&steps| steps < 6) && early.iter().all(|t| !t.tokens.is_empty()));
        let mut audit = Audit::reserve(&model, form(6), drawing, 7).unwrap();
        for t in &early {
            assert_eq!(audit.gap(&model, &prompts()[t.member.prompt], t).unwrap(), 0.0);
        }
    }
    let word = all[0].actions[2].proxy;
    let (early, _) = steps(SoftThoughts { leave_at: Some(word), ..never });
    for (early, all) in early.iter().zip(&all) {
        let at = all.actions.iter().position(|action| action.proxy == word);
        assert_eq!(early.actions.len(), at.map_or(6, |step| step + 1));
    }
}

#[test]
fn an_audit_sees_another_noise_another_mixture_and_another_proxy() {
    let model = model("gpt2", Dtype::F32, &Device::cpu());
    let drawing = drawing(thoughts(Perturbation::Gumbel { clamp: None }, false));
    let (_, trajectories) = sampled(&model, &form(6), &drawing, Record::Nothing);
    let mut audit = Audit::reserve(&model, form(6), drawing, 7).unwrap();
    let mut gap = |trajectory: &Trajectory| {
        audit.gap(&model, &prompts()[trajectory.member.prompt], trajectory).unwrap()
    };
    let good = trajectories.iter().find(|t| t.actions.iter().any(|action| action.ids.len() > 1)).unwrap();
    assert_eq!(gap(good), 0.0);
    let mut other = good.clone();
    other.member.coordinates.rollout += 100;
    assert!(gap(&other) > 1e-3);
    let mut other = good.clone();
    let action = other.actions.iter_mut().find(|action| action.ids.len() > 1).unwrap();
    action.perturbed[0] += 1e-3;
    assert!(gap(&other) > 0.0);
    let mut other = good.clone();
    other.actions[0].proxy ^= 1;
    assert_eq!(gap(&other), f64::INFINITY);
}

/// What the gradient checks differentiate: answers' log-probabilities and, where asked, scores of soft steps, each with
/// a coefficient of its own.
pub struct Objective {
    drawing: Drawing,
    pub trajectories: Vec<Trajectory>,
    score: Option<SoftScore>,
    truncation: Truncation,
}

impl Objective {
    fn coefficients(count: usize, salt: usize) -> Vec<f64> {
        (0..count).map(|n| ((n * 37 + salt * 11) % 19) as f64 / 10.0 - 0.9).collect()
    }

    fn actions(&self) -> Vec<&Action> {
        self.trajectories.iter().flat_map(|t| &t.actions).collect()
    }

    /// The value at a model and, when asked, its gradient.
    pub fn at(&self, model: &Model, gradients: Option<&mut Gradients>) -> f64 {
        let record = Record::Everything;
        let mut rollouts = Rollouts::reserve(model, form(4), self.drawing.clone(), LIMITS, record).unwrap();
        rollouts.replay(model, &prompts(), &self.trajectories.iter().collect::<Vec<_>>()).unwrap();
        self.of(model, &mut rollouts, gradients)
    }

    pub fn of(&self, model: &Model, rollouts: &mut Rollouts, gradients: Option<&mut Gradients>) -> f64 {
        let mut scores = Scores::reserve(model, 60).unwrap();
        let values = scored(model, rollouts, &self.trajectories, &mut scores);
        let weights = Self::coefficients(values.len(), 1);
        let mut total: f64 = values.iter().zip(&weights).map(|(a, b)| a * b).sum();
        let mut soft = self.score.map(|kind| SoftScores::reserve(model, 48, TOP_K, kind, 1.0 / 0.9).unwrap());
        let mut soft_weights = Vec::new();
        if let Some(soft) = &mut soft {
            let at: Vec<u32> = rollouts.thinking().iter().flatten().copied().collect();
            soft.forward(model, rollouts.sequences(), &at, &self.actions()).unwrap();
            let values = soft.values().unwrap();
            soft_weights = Self::coefficients(values.len(), 2);
            total += values.iter().zip(&soft_weights).map(|(a, b)| a * b).sum::<f64>();
        }
        if let Some(gradients) = gradients {
            let (sequences, masks) = rollouts.parts_mut();
            scores.backward(model, sequences, &weights, gradients).unwrap();
            if let Some(soft) = &mut soft {
                soft.backward(model, sequences, &soft_weights, gradients).unwrap();
            }
            model.backward(sequences, masks, self.truncation, gradients).unwrap();
        }
        total
    }
}

pub fn flat(gradients: &Gradients) -> Vec<f64> {
    gradients.tensors().iter().flat_map(|tensor| tensor.download::<f64>().unwrap()).collect()
}

/// Moves all parameters by `step` along a fixed random direction; returns the direction.
pub fn moved(model: &mut Model, step: f64) -> Vec<f64> {
    let mut direction = Vec::new();
    for (index, parameter) in model.parameters_mut().iter_mut().enumerate() {
        let mut draws = StreamKey::new(9, 0, index as u32, 0, Purpose::Probe).draws(0, 0);
        let values = parameter.download::<f64>().unwrap();
        let own: Vec<f64> = values.iter().map(|_| draws.below(2001) as f64 / 1000.0 - 1.0).collect();
        let values: Vec<f64> = values.iter().zip(&own).map(|(value, d)| value + step * d).collect();
        parameter.upload(&values).unwrap();
        direction.extend(own);
    }
    direction
}

/// What an estimator differentiates.
struct Case {
    name: &'static str,
    perturbation: Perturbation,
    /// Deviation of the noise on embeddings.
    noise: f64,
    /// How soft inputs are replayed, where gradients flow, and the score.
    replay: SoftReplay,
    gradient: SoftGradient,
    score: Option<SoftScore>,
}

fn cases() -> Vec<Case> {
    let gumbel = Perturbation::Gumbel { clamp: None };
    let pathwise = |name, perturbation, noise| Case {
        name,
        perturbation,
        noise,
        replay: SoftReplay::Noise,
        gradient: SoftGradient::Pathwise,
        score: None,
    };
    let scored = |name, score: Score| Case {
        name,
        perturbation: gumbel,
        noise: 0.0,
        replay: SoftReplay::Actions,
        gradient: SoftGradient::Table,
        score: Some(score.into()),
    };
    let embedded = |name, mean| Case {
        name,
        perturbation: Perturbation::None,
        noise: 0.05,
        replay: SoftReplay::Inputs,
        gradient: SoftGradient::Nothing,
        score: Some(NoisyInput { tau: 0.5, normal: Normal { deviation: 0.05, mean } }.into()),
    };
    vec![
        pathwise("pathwise, gumbel", gumbel, 0.0),
        pathwise("pathwise, no noise", Perturbation::None, 0.0),
        pathwise("pathwise, noise on embeddings", Perturbation::None, 0.05),
        pathwise("pathwise, gumbel and noise on embeddings", gumbel, 0.05),
        embedded("gauss_embed", false),
        embedded("gauss_embed, mean", true),
        scored("soft_ce", Score::SoftCe { full: true }),
        scored("soft_ce on the support", Score::SoftCe { full: false }),
        scored("concrete", Score::Concrete { tau: 0.5, mean: false }),
        scored("gumbel_g", Score::GumbelG { clamp: None, floor: None, mean: true }),
    ]
}

pub fn objective(model: &Model, case: usize, masking: Masking) -> (Objective, Rollouts) {
    let Case { perturbation, noise, replay, gradient, score, .. } = cases()[case];
    let mut drawing = Drawing { masking, latent_noise: noise, ..drawing(thoughts(perturbation, false)) };
    drawing.soft = drawing.soft.map(|soft| SoftThoughts { replay, ..soft });
    let (rollouts, trajectories) = sampled(model, &form(4), &drawing, Record::Everything);
    let truncation = Truncation { soft: gradient, ..Truncation::default() };
    (Objective { drawing, trajectories, score, truncation }, rollouts)
}

#[test]
fn gradients_through_soft_steps_are_the_differences() {
    for family in ["gpt2", "llama"] {
        for (case, Case { name, .. }) in cases().into_iter().enumerate() {
            for masking in [Masking::NONE, masked(0.2)] {
                let model = model(family, Dtype::F64, &Device::cpu());
                let (objective, _) = objective(&model, case, masking);
                let mut gradients = model.gradients().unwrap();
                objective.at(&model, Some(&mut gradients));
                let at = |step: f64| {
                    let mut model = self::model(family, Dtype::F64, &Device::cpu());
                    let direction = moved(&mut model, step);
                    (objective.at(&model, None), direction)
                };
                // Richardson: the error of central differences falls from h^2 to h^4.
                let central = |h: f64| (at(h).0 - at(-h).0) / (2.0 * h);
                let difference = (4.0 * central(1e-6) - central(2e-6)) / 3.0;
                let direction = at(0.0).1;
                let slope: f64 = flat(&gradients).iter().zip(&direction).map(|(g, d)| g * d).sum();
                let error = (slope - difference).abs() / slope.abs().max(difference.abs());
                assert!(
                    error < 1e-6,
                    "{family}, {name}: gradient {slope}, difference {difference}, error {error:e}"
                );
            }
        }
    }
}

#[test]
fn the_tape_of_sampling_and_a_replay_give_the_same_gradients() {
    for (case, Case { name, .. }) in cases().into_iter().enumerate() {
        let model = model("llama", Dtype::F64, &Device::cpu());
        let (objective, mut rollouts) = objective(&model, case, masked(0.2));
        let (mut tape, mut replay) = (model.gradients().unwrap(), model.gradients().unwrap());
        let a = objective.of(&model, &mut rollouts, Some(&mut tape));
        let b = objective.at(&model, Some(&mut replay));
        assert_eq!(a.to_bits(), b.to_bits(), "{name}");
        let (tape, replay) = (flat(&tape), flat(&replay));
        let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let apart: Vec<f64> = tape.iter().zip(&replay).map(|(a, b)| a - b).collect();
        assert!(norm(&apart) <= 1e-12 * norm(&tape), "{name}: {:e}", norm(&apart) / norm(&tape));
        assert!(norm(&tape) > 0.0);
    }
}

#[test]
fn constant_inputs_leave_the_embedding_table_alone() {
    let model = model("llama", Dtype::F64, &Device::cpu());
    let scored = cases().iter().position(|case| case.name == "soft_ce").unwrap();
    let (mut objective, _) = objective(&model, scored, Masking::NONE);
    let mut of = |soft| {
        objective.truncation.soft = soft;
        let mut gradients = model.gradients().unwrap();
        objective.at(&model, Some(&mut gradients));
        gradients
    };
    let (table, nothing) = (of(SoftGradient::Table), of(SoftGradient::Nothing));
    let embedding = model.parameter_list().iter().position(|p| p.name.contains("embed_tokens")).unwrap();
    for (index, (a, b)) in table.tensors().iter().zip(nothing.tensors()).enumerate() {
        let (a, b) = (a.download::<f64>().unwrap(), b.download::<f64>().unwrap());
        let apart = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let largest = a.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
        if index == embedding {
            assert!(apart > 1e-3 * largest);
        } else {
            assert!(apart <= 1e-12 * largest, "parameter {index}: {apart:e} of {largest:e}");
        }
    }
}

fn estimators() -> Vec<SoftEstimator> {
    vec![
        SoftEstimator::None,
        SoftEstimator::SoftCe { full: true },
        SoftEstimator::SoftCe { full: false },
        SoftEstimator::Concrete { mean: false },
        SoftEstimator::GumbelG { floor: Some(-3.0), mean: true },
        SoftEstimator::GaussEmbed { mean: false },
        SoftEstimator::Pathwise,
        SoftEstimator::StraightThrough,
    ]
}

/// The noise that an estimator needs: on logits, or on embeddings.
pub fn noise_of(estimator: SoftEstimator) -> (Perturbation, f64) {
    match estimator {
        SoftEstimator::GaussEmbed { .. } => (Perturbation::None, 0.05),
        _ => (Perturbation::Gumbel { clamp: None }, 0.0),
    }
}

pub fn settings(estimator: SoftEstimator, ratio: bool) -> Settings {
    let surrogate = match ratio {
        true => Surrogate::Clipped { low: 0.2, high: 0.2, delta: None, dual: None },
        false => Surrogate::Plain,
    };
    Settings {
        group: 4,
        prompts: 3,
        prompt_tokens: 7,
        passes: 1,
        truncation: Truncation::default(),
        tape_bytes: usize::MAX,
        audit_all: true,
        reference_masked: true,
        refills: 0,
        replay: Replay::Same,
        soft: Some(SoftObjective {
            estimator,
            loss: Hyper { ratio: Ratio::Token, surrogate, clamp: Some(20.0), kl: None },
        }),
    }
}

/// One update at a learning rate: the report and the gradient of the last pass.
pub fn updated(
    model: &mut Model,
    settings: Settings,
    thoughts: SoftThoughts,
    preset: Preset,
    rate: f64,
) -> (Report, Vec<f64>) {
    let optimizer = optimizer::Settings { weight_decay: 0.0, clip: None, ..optimizer::Settings::default() };
    let optimizer = Optimizer::new(model, optimizer).unwrap();
    let latent_noise = settings.soft.as_ref().map_or(0.0, |soft| noise_of(soft.estimator).1);
    let drawn = (form(4), Drawing { latent_noise, ..drawing(thoughts) });
    let mut policy = Policy::new(model, drawn, preset.objective(), settings, optimizer, None).unwrap();
    let questions: Vec<Question> =
        prompts().into_iter().zip(40..).map(|(tokens, number)| Question { tokens, number }).collect();
    let mut left = questions.into_iter();
    let report = policy
        .update(
            model,
            2,
            rate,
            |n| left.by_ref().take(n).collect(),
            |_, t| Ok(f64::from(t.said().iter().sum::<u32>() % 3) / 2.0),
        )
        .unwrap();
    let gradient = match model.dtype() {
        Dtype::F64 => flat(policy.gradients()),
        _ => Vec::new(),
    };
    (report, gradient)
}

#[test]
fn updates_from_the_tape_are_updates_from_a_replay() {
    for estimator in estimators() {
        for (ratio, preset) in [(false, Preset::TrlBnpo), (true, Preset::DropoutGrpo)] {
            let hard = estimator == SoftEstimator::StraightThrough;
            let mut thoughts = thoughts(noise_of(estimator).0, hard);
            thoughts.proxies_stop = ratio;
            let what = format!("{estimator} {preset}");
            let fresh = || model("llama", Dtype::F64, &Device::cpu());
            let own = settings(estimator, ratio);
            let (tape, from_tape) = updated(&mut fresh(), own.clone(), thoughts, preset, 0.0);
            assert_eq!(tape.source, Some(Source::Tape), "{what}");
            assert_eq!(tape.replay_gap, 0.0, "{what}");
            assert_eq!(tape.audited, 12);
            // At learning rate 0 the second pass replays under the same weights.
            let twice = Settings { passes: 2, ..own };
            let (twice, replayed) = updated(&mut fresh(), twice, thoughts, preset, 0.0);
            assert_eq!(twice.passes.len(), 2);
            for passed in &twice.passes {
                assert_eq!((passed.log_ratio, passed.ratio_spread), (0.0, 0.0), "{what}");
                assert_eq!(passed.loss.to_bits(), tape.passes[0].loss.to_bits(), "{what}");
                let soft = (passed.soft.as_ref(), tape.passes[0].soft.as_ref());
                assert_eq!(soft.0.map(|soft| soft.tokens), soft.1.map(|soft| soft.tokens));
                if let (Some(soft), true) = (soft.0, ratio) {
                    assert_eq!(soft.log_ratio, 0.0, "{what}");
                }
                if let Some(soft) = soft.0 {
                    assert_eq!((soft.mean(Statistic::Ratio), soft.churn()), (1.0, (0.0, 0.0)), "{what}");
                    assert_eq!(
                        soft.mean_score(),
                        tape.passes[0].soft.as_ref().unwrap().mean_score(),
                        "{what}"
                    );
                }
            }
            let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
            let apart: Vec<f64> = replayed.iter().zip(&from_tape).map(|(a, b)| a - b).collect();
            assert!(
                norm(&apart) <= 1e-12 * norm(&from_tape),
                "{what}: {:e}",
                norm(&apart) / norm(&from_tape)
            );
            let scored = tape.passes[0].soft.is_some();
            let scores = matches!(
                estimator,
                SoftEstimator::SoftCe { .. }
                    | SoftEstimator::Concrete { .. }
                    | SoftEstimator::GumbelG { .. }
                    | SoftEstimator::GaussEmbed { .. }
            );
            assert_eq!(scored, scores, "{what}");
            let statistics = SoftStatistics::of(&tape).unwrap();
            assert!(statistics.kept > 1.0 && statistics.entropy > 0.0, "{statistics:?}");
        }
    }
}

#[test]
fn estimators_refuse_thoughts_that_they_cannot_train() {
    let model = model("gpt2", Dtype::F32, &Device::cpu());
    let refusal = |estimator, perturbation, hard| -> String {
        let optimizer = Optimizer::new(&model, optimizer::Settings::default()).unwrap();
        let drawn = (form(4), drawing(thoughts(perturbation, hard)));
        let objective = Preset::DropoutGrpo.objective();
        let settings = settings(estimator, false);
        Policy::new(&model, drawn, objective, settings, optimizer, None).err().unwrap().to_string()
    };
    let gumbel = Perturbation::Gumbel { clamp: None };
    let concrete = SoftEstimator::Concrete { mean: false };
    for (message, words) in [
        (refusal(concrete, Perturbation::None, false), ["lepo.estimator `concrete`", "lepo.noise"]),
        (
            refusal(SoftEstimator::Pathwise, Perturbation::Dirichlet { concentration: 1.0 }, false),
            ["lepo.estimator `pathwise`", "Dirichlet"],
        ),
        (
            refusal(SoftEstimator::GaussEmbed { mean: false }, Perturbation::None, false),
            ["lepo.estimator `gauss_embed`", "lepo.embedding_noise = 0"],
        ),
        (
            refusal(SoftEstimator::GaussEmbed { mean: false }, gumbel, false),
            ["lepo.estimator `gauss_embed`", "lepo.noise = \"none\""],
        ),
        (refusal(SoftEstimator::StraightThrough, gumbel, false), ["straight_through", "one-hot"]),
        (refusal(SoftEstimator::Pathwise, gumbel, true), ["lepo.estimator `pathwise`", "one-hot"]),
    ] {
        words.iter().for_each(|word| assert!(message.contains(word), "`{word}` is missing in: {message}"));
    }
}
