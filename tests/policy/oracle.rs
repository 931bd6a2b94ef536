//! Gradients against an independent computation and against differences; masks under which log-probabilities hold.

use super::*;
use latch::model::Precision;
use latch::verify::models::{in_precision, rounded};
use latch::verify::rounding;

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
    flat(&mut gradients)
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

/// An update whose activations are bf16: its gradient is that of f64 for the rollouts it sampled, as near as bf16 is.
#[test]
fn with_bf16_activations_the_gradient_is_that_of_the_rollouts_in_f64() {
    for device in crate::parity::gpu::devices() {
        for make in [Make::latent(), Make::new(Scope::All, Mode::Shared)] {
            let make = make.set(|settings| settings.audit_all = true);
            let mut exact = model();
            let mut low = rounded(&mut exact, &device, Precision::Bf16Activations).unwrap();
            let mut policy = make.policy(&low, None).unwrap();
            let report = update(&mut policy, &mut low, 0.0, &questions(), &lively).unwrap();
            assert_eq!((report.replay_gap, report.audited), (0.0, report.rollouts.len()));
            assert_eq!(report.passes[0].log_ratio, 0.0, "what was sampled is what is trained");
            let gradient = flat(policy.gradients_mut());
            let coefficient = |index: usize| -report.rollouts[index].advantage / 12.0;
            let expected = independent(&exact, &make, &report, coefficient);
            let single = in_precision(&exact, &Device::cpu(), Precision::F32).unwrap();
            let single = apart(&independent(&single, &make, &report, coefficient), &expected);
            let (apart, bound) = (apart(&gradient, &expected), rounding::bound(single));
            println!("{}: {apart:.1e} from f64, bound {bound:.1e}", device.name());
            assert!(apart <= bound && bound < 0.25, "{}: {apart:.1e}, bound {bound:.1e}", device.name());
            // Smaller steps than bf16 resolves reach the f32 masters, and in time the weights.
            let before: Vec<f64> = low.parameters()[0].view().numbers().unwrap();
            for _ in 0..3 {
                update(&mut policy, &mut low, 1e-3, &questions(), &lively).unwrap();
            }
            assert_ne!(low.parameters()[0].view().numbers().unwrap(), before);
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
