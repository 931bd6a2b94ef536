//! Whole models on devices that run the shipped PTX (the simulator, and a GPU where there is one) beside the CPU:
//! training steps, latent rollouts under masks, Dropout-GRPO updates; and the bits that must not depend on a batch.

use crate::models::hidden_bits;
use crate::parity::gpu::devices;
use crate::{policy, rollouts};
use latch::base::Dtype;
use latch::device::Device;
use latch::learn::optimizer::{self, Optimizer};
use latch::learn::supervised::{Example, Limits as Batches, Trainer};
use latch::model::{Model, Precision, Record};
use latch::rollout::audit::Audit;
use latch::rollout::group::{Rollouts, Trajectory};
use latch::rollout::masks::{Mode, Scope};
use std::ops::ControlFlow;

/// What f32 gradients and losses of two devices may differ by, relative to their norm: a thousand roundings.
pub const CLOSE: f64 = 1000.0 / (1 << 24) as f64;

/// The same weights on another device.
pub fn on(device: &Device, model: &Model) -> Model {
    let values: Vec<Vec<f32>> = model.parameters().iter().map(|p| p.download().unwrap()).collect();
    let precision = Precision::of(Dtype::F32);
    Model::build(model.config().clone(), device, precision, |i, _, tensor| tensor.upload(&values[i])).unwrap()
}

pub fn example(seed: u32, prompt: usize, latents: usize, answer: usize) -> Example {
    let tokens = |first: usize, count: usize| -> Vec<u32> {
        (first..first + count).map(|i| (seed * 13 + i as u32 * 7) % 50).collect()
    };
    Example { prompt: tokens(0, prompt), latents, end: vec![59], answer: tokens(prompt, answer) }
}

#[test]
fn training_steps_are_the_cpus() {
    let cpu = rollouts::model(Dtype::F32);
    let batch = [example(1, 9, 3, 5), example(2, 4, 3, 8), example(3, 70, 2, 3)];
    let train = |mut model: Model| -> Vec<(f64, f64)> {
        let optimizer = Optimizer::new(&model, optimizer::Settings::default()).unwrap();
        let limits = Batches::of(&batch, batch.len(), usize::MAX);
        let mut trainer = Trainer::new(&model, optimizer, limits, Record::Everything).unwrap();
        (0..3)
            .map(|_| {
                let report = trainer.step(&mut model, &batch, 1e-3).unwrap();
                (report.loss, report.gradient_norm)
            })
            .collect()
    };
    for device in devices() {
        let expected = train(on(&Device::cpu(), &cpu));
        let found = train(on(&device, &cpu));
        for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
            for (found, expected) in [(found.0, expected.0), (found.1, expected.1)] {
                let apart = (found - expected).abs() / expected.abs();
                assert!(apart <= CLOSE, "{}, step {step}: {found} and {expected}", device.name());
            }
        }
        assert!(expected[2].0 < expected[0].0, "three steps lower the loss");
    }
}

fn sample(rollouts: &mut Rollouts, model: &Model) -> Vec<Trajectory> {
    let members = rollouts::members(3, 4);
    rollouts.sample(model, &rollouts::prompts(), &members, |_, _| ControlFlow::Continue(())).unwrap()
}

#[test]
fn latent_rollouts_under_masks_are_the_cpus() {
    let cpu = rollouts::model(Dtype::F32);
    for device in devices() {
        let model = on(&device, &cpu);
        let (mut agree, mut tokens) = (0, 0);
        let form = rollouts::form;
        for (scope, mode, share) in [
            (Scope::Latent, Mode::Shared, true),
            (Scope::All, Mode::Shared, false),
            (Scope::All, Mode::PerStep, true),
            (Scope::Latent, Mode::None, true),
        ] {
            let drawing = rollouts::drawing(scope, mode, share);
            let reserve = |model: &Model, record| {
                Rollouts::reserve(model, form(), drawing.clone(), rollouts::LIMITS, record).unwrap()
            };
            let expected = sample(&mut reserve(&cpu, Record::Nothing), &cpu);
            let mut here = reserve(&model, Record::Everything);
            let found = sample(&mut here, &model);
            for (found, expected) in found.iter().zip(&expected) {
                tokens += expected.tokens.len();
                let same = found.tokens.iter().zip(&expected.tokens).take_while(|(a, b)| a == b).count();
                agree += same;
                for (a, b) in found.log_probabilities.iter().zip(&expected.log_probabilities).take(same) {
                    assert!((a - b).abs() <= 20.0 * CLOSE, "{}, {scope:?}: {a} and {b}", device.name());
                }
            }
            // The tokens of the CPU, forced.
            here.replay(&model, &rollouts::prompts(), &expected.iter().collect::<Vec<_>>()).unwrap();
            let forced = rollouts::scored(&here, &model, &expected);
            for (found, expected) in forced.iter().zip(&expected) {
                for (a, b) in found.iter().zip(&expected.log_probabilities) {
                    assert!((a - b).abs() <= 20.0 * CLOSE, "{}, {scope:?}: forced {a}, {b}", device.name());
                }
            }
            // What the device sampled it computes again to the bit: another batch, another segmentation, keys alone.
            let prompts = rollouts::prompts();
            let mut audit = Audit::reserve(&model, form(), drawing.clone(), 70).unwrap();
            for trajectory in found.iter().step_by(5) {
                let gap = audit.gap(&model, &prompts[trajectory.member.prompt], trajectory).unwrap();
                assert_eq!(gap, 0.0, "{}, {scope:?} {mode:?}", device.name());
            }
        }
        println!("{}: {agree} of {tokens} freely sampled tokens are the CPU's", device.name());
        assert!(agree * 10 >= tokens * 9, "{agree} of {tokens}");
    }
}

#[test]
fn updates_are_the_cpus() {
    policy::updates_on(&devices(), CLOSE, &|model| model);
}

#[test]
fn a_row_has_the_same_bits_in_any_batch_and_any_cut() {
    let cpu = rollouts::model(Dtype::F32);
    for device in devices() {
        let model = on(&device, &cpu);
        let count = 70;
        let whole = hidden_bits(&model, count, &[], 0);
        assert_eq!(whole, hidden_bits(&model, count, &[1, 2, 30, 63, 64, 65], 0), "{}: cuts", device.name());
        assert_eq!(whole, hidden_bits(&model, count, &[], 2), "{}: a batch", device.name());
        let one_by_one: Vec<usize> = (60..count).collect();
        assert_eq!(whole, hidden_bits(&model, count, &one_by_one, 1), "{}: token by token", device.name());
    }
}
