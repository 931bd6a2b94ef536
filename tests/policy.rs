//! Updates of a policy against themselves (tape and replay, parts and whole), against an independent computation, and
//! against finite differences.

use crate::rollouts::{form, prompts};
use latch::base::{Dtype, Result};
use latch::device::Device;
use latch::learn::advantages::Overlong;
use latch::learn::objective::{Aggregation, Objective, Preset};
use latch::learn::optimizer::{self, Optimizer};
use latch::learn::policy::{Policy, Replay, Settings, Source};
use latch::learn::policy_report::{Groups, Question, Report};
use latch::learn::supervised::{Example, Limits as Batches, Trainer};
use latch::model::config::Config;
use latch::model::{
    Gradients, Input, Model, Precision, Record, RowPlan, Scores, Segment, Sequences, SequencesPlan,
    Truncation,
};
use latch::ops::mask::SiteKind;
use latch::ops::policy_loss::{Estimator, Kl, Statistic};
use latch::ops::sampler::Law;
use latch::rollout::group::{Drawing, Form, Limits, Rollouts, Thoughts, Trajectory, room};
use latch::rollout::masks::{MaskPlan, Masking, Mode, Part, Scope};
use serde_json::json;
use std::path::Path;

/// Two ways to add up one gradient in f64 differ by rounding: at most this much, relative to its norm.
const CLOSE: f64 = 1e-12;
const TEMPERATURE: f64 = 0.8;
const UPDATE: u32 = 3;

fn model_of(seed: u64, dtype: Dtype) -> Model {
    let config = json!({
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 61, "n_embd": 24, "n_head": 3,
        "n_layer": 2, "n_positions": 128, "activation_function": "gelu_new", "initializer_range": 0.2,
    });
    let config = Config::from_json(config, Path::new("config.json")).unwrap();
    Model::random(config, seed, &Device::cpu(), Precision::of(dtype)).unwrap()
}

fn model() -> Model {
    model_of(5, Dtype::F64)
}

/// What a policy is made of; tests change what they are about.
#[derive(Clone)]
struct Make {
    form: Form,
    drawing: Drawing,
    objective: Objective,
    settings: Settings,
    optimizer: optimizer::Settings,
}

impl Make {
    fn new(scope: Scope, mode: Mode) -> Make {
        let law = Law::Categorical { temperature: TEMPERATURE, top_k: None, top_p: None, min_p: None };
        let masking = Masking { p: 0.2, sites: SiteKind::ALL.to_vec(), scope, mode };
        Make {
            form: form(),
            drawing: Drawing {
                masking,
                latent_noise: 0.0,
                soft: None,
                thoughts: Thoughts::Own,
                law,
                seed: 11,
                share: true,
            },
            objective: Preset::DropoutGrpo.objective(),
            settings: Settings {
                group: 4,
                prompts: 3,
                prompt_tokens: 70,
                passes: 1,
                truncation: Truncation::default(),
                tape_bytes: usize::MAX,
                audit_all: false,
                reference_masked: true,
                refills: 0,
                replay: Replay::Same,
                soft: None,
            },
            optimizer: optimizer::Settings {
                weight_decay: 0.0,
                clip: None,
                ..optimizer::Settings::default()
            },
        }
    }

    fn latent() -> Make {
        Make::new(Scope::Latent, Mode::Shared)
    }

    fn preset(mut self, preset: Preset) -> Make {
        self.objective = preset.objective();
        self
    }

    fn kl(mut self, estimator: Estimator, beta: f64) -> Make {
        self.objective.loss.kl = Some(Kl { estimator, beta, clamp: None, cap: None });
        self
    }

    fn set(mut self, change: impl FnOnce(&mut Settings)) -> Make {
        change(&mut self.settings);
        self
    }

    fn policy(&self, model: &Model, reference: Option<Model>) -> Result<Policy> {
        let optimizer = Optimizer::new(model, self.optimizer)?;
        let drawn = (self.form.clone(), self.drawing.clone());
        Policy::new(model, drawn, self.objective, self.settings.clone(), optimizer, reference)
    }

    /// The bytes of a tape that holds the groups of so many prompts.
    fn bytes(&self, model: &Model, prompts: usize) -> usize {
        let group = self.settings.group;
        let limits = Limits { prompts, members: prompts * group, prompt_tokens: self.settings.prompt_tokens };
        let room = room(model, &self.form, &self.drawing, limits, Record::Everything);
        Sequences::bytes(model, room, Record::Everything).unwrap()
    }

    /// One update of a fresh model at learning rate 0: the report, the gradient of its last pass, and the policy.
    fn still(
        &self,
        reference: Option<Model>,
        questions: &[Question],
        judge: Judge,
    ) -> (Report, Vec<f64>, Policy) {
        let mut model = model();
        let mut policy = self.policy(&model, reference).unwrap();
        let report = update(&mut policy, &mut model, 0.0, questions, judge).unwrap();
        let gradient = flat(policy.gradients());
        (report, gradient, policy)
    }
}

type Judge<'a> = &'a dyn Fn(&Question, &Trajectory) -> f64;

fn questions() -> Vec<Question> {
    let all = prompts().into_iter().enumerate();
    all.map(|(number, tokens)| Question { tokens, number: number as u32 }).collect()
}

/// Rewards of three values.
fn lively(_: &Question, trajectory: &Trajectory) -> f64 {
    f64::from(trajectory.tokens.iter().sum::<u32>() % 3) / 2.0
}

/// The same, but question 1 is always answered right.
fn one_dead(question: &Question, trajectory: &Trajectory) -> f64 {
    if question.number == 1 { 1.0 } else { lively(question, trajectory) }
}

fn update(
    policy: &mut Policy,
    model: &mut Model,
    rate: f64,
    questions: &[Question],
    judge: Judge,
) -> Result<Report> {
    let mut left = questions.iter().cloned();
    policy.update(
        model,
        UPDATE,
        rate,
        |n| left.by_ref().take(n).collect(),
        |question, t| Ok(judge(question, t)),
    )
}

fn flat(gradients: &Gradients) -> Vec<f64> {
    gradients.tensors().iter().flat_map(|tensor| tensor.download::<f64>().unwrap()).collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// ‖a - b‖ / ‖b‖.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert!(norm(b) > 0.0, "a gradient of zeros shows nothing");
    norm(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>()) / norm(b)
}

#[track_caller]
fn close(a: &[f64], b: &[f64], what: &str) {
    let apart = apart(a, b);
    assert!(apart <= CLOSE, "{what}: gradients differ by {apart:.1e}");
}

#[track_caller]
fn says<T>(found: Result<T>, words: &[&str]) {
    let message = found.err().expect("an error").to_string();
    words.iter().for_each(|word| assert!(message.contains(word), "`{word}` is missing in: {message}"));
}

fn masks() -> [Make; 5] {
    [
        Make::new(Scope::Latent, Mode::Shared),
        Make::new(Scope::PromptLatent, Mode::Shared),
        Make::new(Scope::All, Mode::Shared),
        Make::new(Scope::All, Mode::PerPosition),
        Make::new(Scope::Latent, Mode::None),
    ]
}

#[test]
fn the_tape_and_a_replay_give_the_same_losses_and_gradients() {
    for mut make in masks() {
        for share in [true, false] {
            make.drawing.share = share;
            for judge in [&lively as Judge, &one_dead] {
                let what =
                    format!("{:?} {:?} {share}", make.drawing.masking.scope, make.drawing.masking.mode);
                let (tape, gradient, _) = make.still(None, &questions(), judge);
                assert_eq!(tape.source, Some(Source::Tape), "{what}");
                // At learning rate 0 the second pass replays under the same weights.
                let (twice, replayed, _) =
                    make.clone().set(|s| s.passes = 2).still(None, &questions(), judge);
                assert_eq!(twice.passes.len(), 2);
                for passed in [&tape.passes[0], &twice.passes[0], &twice.passes[1]] {
                    assert_eq!((passed.log_ratio, passed.ratio_spread), (0.0, 0.0), "{what}");
                    assert_eq!(passed.loss.to_bits(), tape.passes[0].loss.to_bits(), "{what}");
                    assert_eq!(passed.tokens, tape.passes[0].tokens, "{what}");
                }
                close(&replayed, &gradient, &what);
                let lengths: Vec<usize> = tape.rollouts.iter().map(|j| j.trajectory.tokens.len()).collect();
                assert!(lengths.iter().any(|&length| length != lengths[0]), "answers of one length: {what}");
                assert_eq!(tape.replay_gap, 0.0);
            }
        }
    }
}

#[test]
fn sharing_prompts_changes_no_loss_and_no_gradient() {
    for mut make in masks() {
        let (shared, gradient, _) = make.still(None, &questions(), &one_dead);
        make.drawing.share = false;
        let (own, alone, _) = make.still(None, &questions(), &one_dead);
        assert_eq!(shared.passes[0].loss.to_bits(), own.passes[0].loss.to_bits());
        close(&alone, &gradient, "not shared");
    }
}

#[test]
fn mostly_dead_groups_are_replayed_and_the_gradient_is_the_same() {
    let make = Make::latent();
    let judge =
        |question: &Question, t: &Trajectory| if question.number == 2 { lively(question, t) } else { 0.0 };
    let (report, gradient, policy) = make.still(None, &questions(), &judge);
    assert_eq!((policy.source(), report.source), (Source::Tape, Some(Source::Replay)));
    assert_eq!(report.groups(), Groups { dead_low: 2, dead_high: 0, live: 1 });
    // A penalty of weight 0 keeps every group on the tape.
    let (all, from_tape, _) = make.kl(Estimator::K3, 1e-300).still(Some(model()), &questions(), &judge);
    assert_eq!(all.source, Some(Source::Tape));
    assert_eq!(all.passes[0].loss, report.passes[0].loss);
    close(&gradient, &from_tape, "one live group");
}

#[test]
fn prompts_in_parts_are_prompts_at_once() {
    let model = model();
    for (preset, source) in [
        (Preset::DropoutGrpo, Source::Tape),
        (Preset::DrGrpo, Source::Tape),
        (Preset::Gspo, Source::Tape),
        (Preset::TrlBnpo, Source::Replay),
        (Preset::Cispo, Source::Replay),
    ] {
        for prompts in [1, 2] {
            let make = Make::latent().preset(preset);
            let (whole, gradient, policy) = make.still(None, &questions(), &one_dead);
            assert_eq!((policy.source(), policy.prompts_at_once()), (Source::Tape, 3), "{preset}");
            let bytes = make.bytes(&model, prompts);
            let (parts, added, policy) =
                make.set(|s| s.tape_bytes = bytes).still(None, &questions(), &one_dead);
            assert_eq!((policy.source(), policy.prompts_at_once()), (source, prompts), "{preset}");
            assert_eq!(parts.source, Some(source), "{preset}");
            let difference = (parts.passes[0].loss - whole.passes[0].loss).abs();
            assert!(difference <= CLOSE * whole.passes[0].loss.abs().max(1e-3), "{preset}: {difference:.1e}");
            assert_eq!(parts.passes[0].tokens, whole.passes[0].tokens);
            close(&added, &gradient, preset.name());
        }
    }
}

#[test]
fn a_group_that_does_not_fit_is_refused_with_numbers() {
    let make = Make::latent();
    let bytes = make.bytes(&model(), 1);
    let mebibytes = format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64);
    let found = make.set(|s| s.tape_bytes = bytes - 1).policy(&model(), None);
    says(found, &["one group of 4 rollouts", &mebibytes, "grpo.tape_mib"]);
}

#[test]
fn fewer_questions_than_prompts_weigh_the_same_from_the_tape_and_replayed() {
    let make = Make::latent().set(|s| s.prompts = 5);
    let (_, tape, _) = make.still(None, &questions(), &lively);
    let (_, exact, _) = make.clone().set(|s| s.prompts = 3).still(None, &questions(), &lively);
    let (_, replayed, _) = make.set(|s| s.passes = 2).still(None, &questions(), &lively);
    close(&tape, &exact, "three questions of five");
    close(&replayed, &exact, "replayed");
}

#[test]
fn a_dead_group_adds_nothing_unless_it_is_penalised() {
    let live: Vec<Question> = questions().into_iter().filter(|question| question.number != 1).collect();
    for preset in [Preset::DropoutGrpo, Preset::Rloo, Preset::Grpo] {
        let mut make = Make::latent().preset(preset);
        make.objective.loss.kl = None;
        let (report, all, _) = make.still(None, &questions(), &one_dead);
        assert_eq!(report.groups(), Groups { dead_low: 0, dead_high: 1, live: 2 });
        let dead = &report.rollouts[report.rollouts_of(&(1..2))];
        assert!(dead.iter().all(|judged| judged.advantage == 0.0));
        let (_, alone, _) = make.clone().set(|s| s.prompts = 2).still(None, &live, &one_dead);
        let thirds: Vec<f64> = alone.iter().map(|g| g * 2.0 / 3.0).collect();
        close(&all, &thirds, preset.name());

        let other = || Some(model_of(6, Dtype::F64));
        let penalised = make.kl(Estimator::K3, 0.1);
        let (_, all, _) = penalised.still(other(), &questions(), &one_dead);
        let (_, alone, _) = penalised.set(|s| s.prompts = 2).still(other(), &live, &one_dead);
        let thirds: Vec<f64> = alone.iter().map(|g| g * 2.0 / 3.0).collect();
        assert!(apart(&all, &thirds) > 1e-3, "{preset}: the dead group is penalised too");
    }
}

/// The gradient of `sum_k c_k ln pi(answer k)`, each rollout in sequences of its own, teacher forced in one segment.
fn independent(model: &Model, make: &Make, report: &Report, coefficient: impl Fn(usize) -> f64) -> Vec<f64> {
    let mut gradients = model.gradients().unwrap();
    for (index, judged) in report.rollouts.iter().enumerate() {
        let trajectory = &judged.trajectory;
        let prompt = &report.questions[trajectory.member.prompt].tokens;
        let Form { start, latents, end, .. } = &make.form;
        let length = prompt.len() + start.len() + latents + end.len() + trajectory.tokens.len() - 1;
        let plan = MaskPlan::new(
            make.drawing.masking.clone(),
            *latents,
            length,
            vec![trajectory.member.coordinates],
        );
        let masks = plan.draw(model, make.drawing.seed).unwrap();
        let rows = vec![RowPlan::own(length)];
        let planned = SequencesPlan { rows, record: Record::Everything, tape_positions: length };
        let mut sequences = Sequences::new(model, &planned).unwrap();
        let mut position = 0;
        let mut run = |inputs: Vec<(Input, Part)>| {
            let mut segment = Segment::new();
            for (input, part) in inputs {
                segment.push_under(0, input, plan.instance(0, part, position));
                position += 1;
            }
            model.forward(&mut sequences, &segment, masks.as_ref()).unwrap();
        };
        let tokens =
            |tokens: &[u32], part| tokens.iter().map(|&t| (Input::Token(t), part)).collect::<Vec<_>>();
        run([tokens(prompt, Part::Prompt), tokens(start, Part::Start)].concat());
        (1..=*latents).for_each(|step| run(vec![(Input::Latent, Part::Latent(step))]));
        let answer = &trajectory.tokens;
        run([tokens(end, Part::Answer), tokens(&answer[..answer.len() - 1], Part::Answer)].concat());
        let at: Vec<u32> = (length - answer.len()..length).map(|n| n as u32).collect();
        let mut scores = Scores::reserve(model, answer.len()).unwrap();
        scores.forward(model, &sequences, &at, answer, 1.0 / TEMPERATURE).unwrap();
        let coefficients = vec![coefficient(index); answer.len()];
        scores.backward(model, &mut sequences, &coefficients, &mut gradients).unwrap();
        model.backward(&mut sequences, masks.as_ref(), Truncation::default(), &mut gradients).unwrap();
    }
    flat(&gradients)
}

#[test]
fn the_gradient_is_that_of_an_independent_computation() {
    for make in masks() {
        for (preset, factor) in [(Preset::DropoutGrpo, 1.0), (Preset::Rloo, 4.0 / 3.0)] {
            let make = make.clone().preset(preset);
            let (report, gradient, _) = make.still(None, &questions(), &lively);
            let coefficient = |index: usize| {
                let rewards: Vec<f64> =
                    report.rollouts[index / 4 * 4..][..4].iter().map(|j| j.reward).collect();
                let advantage = rewards[index % 4] - rewards.iter().sum::<f64>() / 4.0;
                -factor * advantage / (3.0 * 4.0)
            };
            let expected = independent(&model(), &make, &report, coefficient);
            close(&gradient, &expected, &format!("{preset} {:?}", make.drawing.masking));
        }
    }
}

#[test]
fn truncated_answers_can_be_left_out() {
    let mut make = Make::latent();
    make.objective.mask_truncated = true;
    let (report, gradient, _) = make.still(None, &questions(), &lively);
    let truncated = report.rollouts.iter().filter(|judged| !judged.trajectory.stopped).count();
    assert!((1..12).contains(&truncated), "{truncated} truncated");
    assert_eq!(report.truncated(), truncated as f64 / 12.0);
    let coefficient = |index: usize| {
        let judged = &report.rollouts[index];
        if judged.trajectory.stopped { -judged.advantage / 12.0 } else { 0.0 }
    };
    close(&gradient, &independent(&model(), &make, &report, coefficient), "truncated left out");
}

#[test]
fn later_passes_replay_the_masks_under_weights_that_moved() {
    for make in masks() {
        let mut model = model();
        let make = make.set(|s| s.passes = 3);
        let mut policy = make.policy(&model, None).unwrap();
        let report = update(&mut policy, &mut model, 0.02, &questions(), &lively).unwrap();
        let [first, second, third] = &report.passes[..] else { panic!("three passes") };
        assert_eq!((first.log_ratio, first.ratio_spread), (0.0, 0.0));
        assert_eq!(first.mean(Statistic::Ratio), 1.0);
        let clipped = |n: usize| {
            report.passes[n].mean(Statistic::ClippedLow) + report.passes[n].mean(Statistic::ClippedHigh)
        };
        assert!(second.ratio_spread > 0.2 && third.log_ratio > 0.0);
        assert!(clipped(0) == 0.0 && clipped(1) + clipped(2) > 0.0, "the clip acts");
        assert_eq!(report.gradient_norms.len(), 3);
        // The surrogate went down, since the same rollouts are seen again.
        assert!(second.loss < first.loss);
    }
}

#[test]
fn only_the_rollouts_own_mask_gives_its_log_probabilities() {
    for (scope, replay, zero) in [
        (Scope::Latent, Replay::Same, true),
        (Scope::Latent, Replay::Fresh, false),
        (Scope::Latent, Replay::Off, false),
        (Scope::All, Replay::Same, true),
        (Scope::All, Replay::Fresh, false),
        (Scope::All, Replay::Off, false),
    ] {
        let mut make = Make::new(scope, Mode::Shared);
        // A sum over constants of the batch in parts: the first pass replays whichever mask it is to run under.
        make.objective.aggregation = Aggregation::TokenMean { local_rows: None };
        let bytes = make.bytes(&model(), 1);
        let make = make.set(|s| (s.replay, s.tape_bytes) = (replay, bytes));
        let (report, _, policy) = make.still(None, &questions(), &lively);
        assert_eq!((policy.source(), report.source), (Source::Replay, Some(Source::Replay)));
        let found = report.passes[0].log_ratio;
        assert!((found == 0.0) == zero, "{scope:?} {replay:?}: {found}");
        assert_eq!(report.replay_gap, 0.0, "the audit looks at the rollout, not at the update");
    }
}

/// Answers of exactly `max_new_tokens` tokens.
fn endless(max_new_tokens: usize) -> Make {
    let mut make = Make::latent();
    make.form = Form { stop: vec![], max_new_tokens, ..form() };
    make
}

#[test]
fn the_matrix_products_of_a_backward_pass_do_not_depend_on_the_answers_length() {
    let count = |max_new_tokens: usize| {
        let make = endless(max_new_tokens);
        let model = model();
        let limits = Limits { prompts: 3, members: 12, prompt_tokens: 70 };
        let mut rollouts =
            Rollouts::reserve(&model, make.form.clone(), make.drawing.clone(), limits, Record::Everything)
                .unwrap();
        let members = crate::rollouts::members(3, 4);
        let go = |_: usize, _: u32| std::ops::ControlFlow::Continue(());
        let products = || model.device().traffic().count().products;
        let before = products();
        let sampled = rollouts.sample(&model, &prompts(), &members, go).unwrap();
        let sampling = products() - before;
        let targets: Vec<u32> = sampled.iter().flat_map(|t| t.tokens.clone()).collect();
        assert_eq!(targets.len(), 12 * max_new_tokens);
        let at: Vec<u32> = rollouts.predictors().iter().flatten().copied().collect();
        let mut scores = Scores::reserve(&model, targets.len()).unwrap();
        let mut gradients = model.gradients().unwrap();
        let (sequences, masks) = rollouts.parts_mut();
        scores.forward(&model, sequences, &at, &targets, 1.0 / TEMPERATURE).unwrap();
        let before = products();
        scores.backward(&model, sequences, &vec![0.1; targets.len()], &mut gradients).unwrap();
        model.backward(sequences, masks, Truncation::default(), &mut gradients).unwrap();
        (sampling, products() - before)
    };
    let (short, long) = (count(4), count(24));
    assert!(short.1 > 0 && short.0 < long.0, "{short:?} {long:?}");
    assert_eq!(short.1, long.1);
}

#[test]
fn the_matrix_products_of_a_later_pass_do_not_depend_on_the_answers_length() {
    let products = |max_new_tokens: usize, passes: usize| {
        let make = endless(max_new_tokens).set(|s| s.passes = passes);
        let mut model = model();
        let mut policy = make.policy(&model, None).unwrap();
        let before = model.device().traffic().count().products;
        update(&mut policy, &mut model, 0.0, &questions(), &lively).unwrap();
        model.device().traffic().count().products - before
    };
    let pass = |max_new_tokens| products(max_new_tokens, 2) - products(max_new_tokens, 1);
    assert!(pass(4) > 0);
    assert_eq!(pass(4), pass(24));
}

#[test]
fn the_penalty_is_zero_against_oneself_under_the_same_masks() {
    for estimator in [Estimator::K1, Estimator::K2, Estimator::K3] {
        for scope in [Scope::Latent, Scope::All] {
            let make = Make::new(scope, Mode::Shared).kl(estimator, 0.1);
            let (plain, _, _) = Make::new(scope, Mode::Shared).still(None, &questions(), &lively);
            assert_eq!(plain.kl(), None);
            let (same, _, _) = make.still(Some(model()), &questions(), &lively);
            assert_eq!(same.kl(), Some(0.0), "{estimator:?} {scope:?}");
            assert_eq!(same.passes[0].loss, plain.passes[0].loss);
            let clean = make.clone().set(|s| s.reference_masked = false);
            let (clean, _, _) = clean.still(Some(model()), &questions(), &lively);
            let found = clean.kl().unwrap();
            assert!(found.abs() > 1e-6, "{estimator:?} {scope:?}: {found}");
            assert!(estimator == Estimator::K1 || found > 0.0);
            let (other, _, _) = make.still(Some(model_of(6, Dtype::F64)), &questions(), &lively);
            assert!(other.kl().unwrap().abs() > 1e-3, "{estimator:?} {scope:?}");
        }
    }
}

#[test]
fn updates_allocate_no_device_memory_once_reserved() {
    for (replay, refills) in [(Replay::Same, 0), (Replay::Off, 0), (Replay::Same, 1)] {
        let mut model = model();
        let make = Make::latent().kl(Estimator::K3, 0.1).set(|s| {
            (s.passes, s.replay, s.refills, s.audit_all) = (2, replay, refills, true);
        });
        let mut policy = make.policy(&model, Some(model_of(6, Dtype::F64))).unwrap();
        let before = model.device().traffic().count().allocations;
        for _ in 0..3 {
            update(&mut policy, &mut model, 1e-3, &questions(), &one_dead).unwrap();
        }
        assert_eq!(model.device().traffic().count().allocations, before, "{replay:?} {refills}");
    }
}

#[test]
fn supervised_steps_allocate_no_device_memory_once_reserved() {
    let mut model = model_of(5, Dtype::F32);
    let example = |latents: usize, answer: u32| Example {
        prompt: vec![1, 2, 3, 58],
        latents,
        end: vec![59],
        answer: (0..answer).collect(),
    };
    let examples = [example(0, 9), example(2, 5), example(4, 3)];
    let optimizer = Optimizer::new(&model, optimizer::Settings::default()).unwrap();
    let mut trainer =
        Trainer::new(&model, optimizer, Batches::of(&examples, 3, 1000), Record::Everything).unwrap();
    let before = model.device().traffic().count().allocations;
    for round in 0..3 {
        trainer.step(&mut model, &examples[round..], 1e-3).unwrap();
    }
    assert_eq!(model.device().traffic().count().allocations, before);
}

/// Question `n` of many: odd ones are dead.
fn many(count: u32) -> Vec<Question> {
    (0..count).map(|number| Question { tokens: prompts()[number as usize % 3].clone(), number }).collect()
}

fn odd_dead(question: &Question, trajectory: &Trajectory) -> f64 {
    if question.number % 2 == 1 { 0.0 } else { lively(question, trajectory) }
}

#[test]
fn dead_groups_are_replaced_and_only_the_kept_ones_train() {
    for preset in [Preset::DropoutGrpo, Preset::Dapo, Preset::Cispo] {
        let mut make = Make::latent().preset(preset).set(|s| s.refills = 3);
        make.objective.overlong = None;
        // 0 1 2, then 3, then 4.
        let (report, gradient, policy) = make.still(None, &many(9), &odd_dead);
        assert_eq!(policy.source(), Source::Replay);
        let numbers: Vec<u32> = report.questions.iter().map(|question| question.number).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4], "{preset}");
        assert_eq!(report.rollouts.len(), 20);
        assert_eq!(report.groups(), Groups { dead_low: 2, dead_high: 0, live: 3 });
        let kept: Vec<Question> = many(5).into_iter().step_by(2).collect();
        let (plain, expected, _) = make.clone().set(|s| s.refills = 0).still(None, &kept, &odd_dead);
        assert_eq!(plain.source, Some(Source::Tape));
        close(&gradient, &expected, preset.name());

        // The limit is reached with two live groups: they alone count.
        let (report, gradient, _) = make.clone().set(|s| s.refills = 1).still(None, &many(9), &odd_dead);
        assert_eq!(report.questions.len(), 4);
        let two = make.clone().set(|s| (s.refills, s.prompts) = (0, 2));
        close(&gradient, &two.still(None, &kept[..2], &odd_dead).1, preset.name());
    }
}

#[test]
fn an_update_without_a_live_group_changes_nothing() {
    for refills in [0, 2] {
        let mut model = model();
        let make = Make::latent().set(|s| s.refills = refills);
        let mut policy = make.policy(&model, None).unwrap();
        let before: Vec<f64> = model.parameters().iter().flat_map(|p| p.download::<f64>().unwrap()).collect();
        let report = update(&mut policy, &mut model, 0.1, &many(20), &|_, _| 0.0).unwrap();
        assert_eq!(report.questions.len(), 3 * (refills + 1));
        assert!(report.gradient_norms.is_empty() && report.passes[0].tokens == 0);
        let after: Vec<f64> = model.parameters().iter().flat_map(|p| p.download::<f64>().unwrap()).collect();
        assert_eq!(before, after);
        assert_eq!(policy.optimizer().step(), 0);
    }
}

#[test]
fn a_length_penalty_makes_no_group_live() {
    let mut make = Make::latent().preset(Preset::Dapo).set(|s| s.refills = 1);
    make.objective.overlong = Some(Overlong { buffer: 1.0, factor: 0.5 });
    let (report, _, _) = make.still(None, &many(9), &|_, _| 0.0);
    assert_eq!(report.groups(), Groups { dead_low: 6, dead_high: 0, live: 0 });
    assert_eq!(report.passes[0].tokens, 0);
    for judged in &report.rollouts {
        let length = judged.trajectory.tokens.len() as f64;
        assert!((judged.reward - -0.5 * length / 9.0).abs() < 1e-15, "{} of {length}", judged.reward);
    }
}

#[test]
fn a_question_that_comes_again_gets_rollouts_of_its_own() {
    let twice = vec![questions()[0].clone(), questions()[1].clone(), questions()[0].clone()];
    for prompts in [1, 3] {
        let make = Make::latent();
        let bytes = make.bytes(&model(), prompts);
        let (report, _, _) = make.set(|s| s.tape_bytes = bytes).still(None, &twice, &lively);
        let answers = |question: usize| -> Vec<(u32, Vec<u32>)> {
            let of = report.rollouts[report.rollouts_of(&(question..question + 1))].iter();
            of.map(|j| (j.trajectory.member.coordinates.rollout, j.trajectory.tokens.clone())).collect()
        };
        let again = answers(2);
        assert_eq!(again.iter().map(|(rollout, _)| *rollout).collect::<Vec<_>>(), [4, 5, 6, 7]);
        assert!(answers(0).iter().zip(&again).any(|(first, second)| first.1 != second.1));
        assert_eq!(report.replay_gap, 0.0);
    }
}

#[test]
fn audits_are_counted() {
    let (one, _, _) = Make::latent().still(None, &questions(), &lively);
    assert_eq!(one.audited, 1);
    let (all, _, _) = Make::latent().set(|s| s.audit_all = true).still(None, &questions(), &lively);
    assert_eq!((all.audited, all.replay_gap), (12, 0.0));
    assert!(all.thoughts.is_some_and(|thoughts| thoughts.norm > 0.0));
}

#[test]
fn what_cannot_be_trained_is_refused_in_a_sentence() {
    let model = model();
    let mut make = Make::latent();
    make.drawing.law = Law::Categorical { temperature: 1.0, top_k: Some(3), top_p: None, min_p: None };
    says(make.policy(&model, None), &["law of the answers", "whole softmax", "top-k"]);
    make.drawing.law = Law::Greedy;
    says(make.policy(&model, None), &["law of the answers", "no greedy choice"]);
    let alone = Make::latent().set(|s| s.group = 1);
    says(alone.policy(&model, None), &["groups of 1", "at least 2"]);
    says(Make::latent().kl(Estimator::K1, 0.1).policy(&model, None), &["KL penalty", "give both or neither"]);
    says(Make::latent().policy(&model, Some(model_of(5, Dtype::F64))), &["give both or neither"]);

    let mut changed = model_of(5, Dtype::F64);
    let mut policy = Make::latent().policy(&changed, None).unwrap();
    let nan = |question: &Question, t: &Trajectory| {
        if question.number == 2 { f64::NAN } else { lively(question, t) }
    };
    says(
        update(&mut policy, &mut changed, 0.1, &questions(), &nan),
        &["a reward", "NaN", "nothing was updated"],
    );
    says(update(&mut policy, &mut changed, 0.1, &[], &lively), &["no question"]);
    let bits = |model: &Model| -> Vec<f64> {
        model.parameters().iter().flat_map(|p| p.download::<f64>().unwrap()).collect()
    };
    assert_eq!(bits(&changed), bits(&model));
}

#[test]
fn weights_that_are_not_finite_stop_the_update() {
    let mut model = model_of(5, Dtype::F64);
    let mut policy = Make::latent().policy(&model, None).unwrap();
    model.parameters_mut()[0].upload_at(4 * 24, &[f64::NAN]).unwrap();
    assert!(update(&mut policy, &mut model, 0.1, &questions(), &lively).is_err());
}

#[test]
fn the_gradient_is_the_slope_of_the_surrogate_loss() {
    for make in [Make::new(Scope::All, Mode::Shared), Make::latent()] {
        let beta = 0.05;
        let make = make.kl(Estimator::K3, beta);
        let reference = model_of(6, Dtype::F64);
        let (report, gradient, _) = make.still(Some(reference.duplicate().unwrap()), &questions(), &lively);
        let limits = Limits { prompts: 3, members: 12, prompt_tokens: 70 };
        let (form, drawing) = (make.form.clone(), make.drawing.clone());
        let mut rollouts = Rollouts::reserve(&reference, form, drawing, limits, Record::LayerInputs).unwrap();
        let trajectories: Vec<&Trajectory> =
            report.rollouts.iter().map(|judged| &judged.trajectory).collect();
        let targets: Vec<u32> = trajectories.iter().flat_map(|t| t.tokens.clone()).collect();
        let mut scored = |model: &Model| {
            rollouts.replay(model, &prompts(), &trajectories).unwrap();
            let at: Vec<u32> = rollouts.predictors().iter().flatten().copied().collect();
            let mut scores = Scores::reserve(model, at.len()).unwrap();
            scores.forward(model, rollouts.sequences(), &at, &targets, 1.0 / TEMPERATURE).unwrap();
            scores.log_probabilities().unwrap()
        };
        let (kept, begin) = (scored(&reference), model());
        // sum_k sum_t (-(ratio A) + beta k3) / (prompts K)
        let mut loss = |model: &Model| {
            let now = scored(model);
            let tokens = report.rollouts.iter().flat_map(|judged| {
                judged.trajectory.log_probabilities.iter().map(|&old| (old, judged.advantage))
            });
            let terms = tokens.zip(now.iter().zip(&kept)).map(|((old, advantage), (now, reference))| {
                let (ratio, d): (f64, f64) = ((now - old).exp(), now - reference);
                -ratio * advantage + beta * ((-d).exp() - 1.0 + d)
            });
            terms.sum::<f64>() / 12.0
        };
        assert!((loss(&begin) - report.passes[0].loss).abs() < 1e-12);
        for seed in [1_u64, 2] {
            let direction = direction(gradient.len(), seed);
            let slope: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
            let step = 1e-5;
            let [up, down] = [step, -step].map(|step| loss(&moved(&begin, &direction, step)));
            let difference = (up - down) / (2.0 * step);
            let relative = (slope - difference).abs() / difference.abs();
            assert!(relative < 1e-6, "{slope} against {difference}: {relative:.1e}");
        }
    }
}

/// Entries spread over [-1, 1].
fn direction(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
        })
        .collect()
}

fn moved(model: &Model, direction: &[f64], step: f64) -> Model {
    let mut moved = model.duplicate().unwrap();
    let mut at = 0;
    for parameter in moved.parameters_mut() {
        let mut values = parameter.download::<f64>().unwrap();
        for value in &mut values {
            *value += step * direction[at];
            at += 1;
        }
        parameter.upload_at(0, &values).unwrap();
    }
    moved
}

/// Updates in f32 on each device against the CPU's: the same tokens, losses and gradients within `tolerance` of their
/// norm, and no replay gap. Called by tests/gpu_models.rs.
pub fn updates_on(devices: &[Device], tolerance: f64, change: &dyn Fn(Model) -> Model) {
    let cpu = model_of(5, Dtype::F32);
    let flat = |policy: &Policy| -> Vec<f64> {
        let tensors = policy.gradients().tensors();
        tensors.iter().flat_map(|t| t.download::<f32>().unwrap()).map(f64::from).collect()
    };
    for make in [Make::latent(), Make::new(Scope::All, Mode::Shared), Make::latent().preset(Preset::Grpo)] {
        let run = |mut model: Model| {
            let make = make.clone().set(|settings| settings.audit_all = true);
            let reference = make.objective.loss.kl.map(|_| model.duplicate().unwrap());
            let mut policy = make.policy(&model, reference).unwrap();
            let report = update(&mut policy, &mut model, 1e-3, &questions(), &lively).unwrap();
            (report, flat(&policy))
        };
        let (expected, slope) = run(change(crate::gpu_models::on(&Device::cpu(), &cpu)));
        for device in devices {
            let (found, gradient) = run(change(crate::gpu_models::on(device, &cpu)));
            let tokens = |report: &Report| -> Vec<Vec<u32>> {
                report.rollouts.iter().map(|judged| judged.trajectory.tokens.clone()).collect()
            };
            assert_eq!(tokens(&found), tokens(&expected), "{}", device.name());
            assert_eq!(found.replay_gap, 0.0, "{}", device.name());
            assert_eq!(found.audited, found.rollouts.len());
            let apart = apart(&gradient, &slope);
            assert!(apart <= tolerance, "{}: gradients differ by {apart:.1e}", device.name());
            let (a, b) = (found.gradient_norms[0], expected.gradient_norms[0]);
            assert!((a - b).abs() <= tolerance * b, "{}: norms {a} and {b}", device.name());
        }
    }
}
