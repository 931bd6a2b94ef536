//! Captured steps of models on the simulator: the bits of eager steps, one launch a step, and a step that is another
//! step when anything else than the contents of memory changes.

use crate::binaries;
use crate::gpu_models::{example, on};
use crate::models;
use crate::parity::gpu;
use crate::rollouts::{self, members, prompts};
use latch::base::Dtype;
use latch::device::{Device, Statistics, TrafficCount};
use latch::learn::optimizer::{self, Optimizer};
use latch::learn::supervised::{Limits as Batches, Trainer};
use latch::model::{Model, Record};
use latch::rollout::group::{Drawing, Form, Limits, Rollouts, Trajectory};
use latch::rollout::masks::{Mode, Scope};
use std::ops::ControlFlow;

/// A simulated GPU that captures, and one that does not.
fn both() -> [Device; 2] {
    [true, false].map(|graphs| {
        let device = gpu::device();
        device.use_graphs(graphs);
        device
    })
}

fn steps(count: TrafficCount) -> [usize; 3] {
    [count.steps_eager, count.steps_captured, count.steps_replayed]
}

fn statistics(device: &Device) -> Statistics {
    let Device::Gpu(gpu) = device else { unreachable!() };
    gpu.statistics()
}

fn reserve(model: &Model, form: Form, drawing: Drawing, record: Record) -> Rollouts {
    Rollouts::reserve(model, form, drawing, rollouts::LIMITS, record).unwrap()
}

fn sample(rollouts: &mut Rollouts, model: &Model, group: u32) -> Vec<Trajectory> {
    rollouts.sample(model, &prompts(), &members(3, group), |_, _| ControlFlow::Continue(())).unwrap()
}

fn qwen(device: &Device) -> Model {
    models::random(models::qwen3(), 7, Dtype::F32, device)
}

/// Everything that may vary: masks by step and position, shared prefixes or not, noise on latents, ragged ends.
fn drawings() -> Vec<Drawing> {
    let mut drawings = vec![
        rollouts::drawing(Scope::Latent, Mode::Shared, true),
        rollouts::drawing(Scope::All, Mode::Shared, false),
        rollouts::drawing(Scope::All, Mode::PerStep, true),
        rollouts::drawing(Scope::All, Mode::PerPosition, true),
        rollouts::drawing(Scope::Latent, Mode::None, true),
    ];
    drawings.push(Drawing { latent_noise: 0.5, ..drawings[0].clone() });
    drawings
}

#[test]
fn captured_steps_have_the_bits_of_eager_ones() {
    for (n, drawing) in drawings().into_iter().enumerate() {
        let records = [Record::Everything, Record::Nothing, Record::LayerInputs];
        // A simulated batch takes seconds: one drawing is run on every kind of tape.
        for record in records.into_iter().take(if n == 2 { 3 } else { 1 }) {
            let runs = both().map(|device| {
                let model = qwen(&device);
                let mut rollouts = reserve(&model, rollouts::form(), drawing.clone(), record);
                // Another batch in between, so that a graph is launched on rows that lie elsewhere.
                let batches: Vec<_> = [2, 1, 2]
                    .into_iter()
                    .map(|group| {
                        let sampled = sample(&mut rollouts, &model, group);
                        let scored = (record != Record::Nothing)
                            .then(|| rollouts::scored(&rollouts, &model, &sampled));
                        if let Some(scored) = &scored {
                            let old: Vec<_> = sampled.iter().map(|t| t.log_probabilities.clone()).collect();
                            assert_eq!(scored, &old, "the tape is what was sampled");
                        }
                        sampled
                    })
                    .collect();
                (batches, steps(device.traffic().count()))
            });
            let [(captured, with), (eager, without)] = runs;
            let what = format!(
                "{:?} share {} noise {} {record:?}",
                drawing.masking, drawing.share, drawing.latent_noise
            );
            assert_eq!(captured, eager, "{what}");
            assert_eq!(with.iter().sum::<usize>(), without[0], "{what}: as many steps");
            assert_eq!(without[1..], [0, 0]);
            assert!(with[2] > 0 && with[1] > 0, "{what}: {with:?}");
        }
    }
}

#[test]
fn gradients_through_captured_latents_are_the_eager_ones() {
    let batch = [example(1, 9, 4, 5), example(2, 4, 4, 8), example(3, 70, 4, 3)];
    for record in [Record::Everything, Record::LayerInputs] {
        let [captured, eager] = both().map(|device| {
            let mut model = qwen(&device);
            let optimizer = Optimizer::new(&model, optimizer::Settings::default()).unwrap();
            let limits = Batches::of(&batch, batch.len(), usize::MAX);
            let mut trainer = Trainer::new(&model, optimizer, limits, record).unwrap();
            let mut reports = Vec::new();
            for _ in 0..3 {
                let report = trainer.step(&mut model, &batch, 1e-2).unwrap();
                reports.push((report.loss.to_bits(), report.gradient_norm.to_bits()));
            }
            let weights: Vec<Vec<f32>> = model.parameters().iter().map(|p| p.download().unwrap()).collect();
            (reports, weights, steps(device.traffic().count())[2] > 0)
        });
        assert!(captured.2 && !eager.2, "{record:?}");
        assert_eq!((captured.0, captured.1), (eager.0, eager.1), "{record:?}");
    }
}

#[test]
fn a_replayed_step_is_one_launch_and_uploads_nothing() {
    let device = gpu::device();
    let model = on(&device, &rollouts::model(Dtype::F32));
    for record in [Record::Nothing, Record::Everything] {
        // What a batch costs whose answers have so many tokens, once all its steps are known.
        let cost = |tokens: usize| {
            let form = Form { stop: Vec::new(), max_new_tokens: tokens, ..rollouts::form() };
            let drawing = rollouts::drawing(Scope::All, Mode::PerStep, true);
            let mut rollouts = reserve(&model, form, drawing, record);
            (0..3).for_each(|_| drop(sample(&mut rollouts, &model, 4)));
            let read = || {
                let (crossed, run) = (device.traffic().count(), statistics(&device));
                let crossings = [crossed.uploads, crossed.downloads, crossed.allocations];
                (crossings, steps(crossed), run.launches, run.graph_launches)
            };
            let before = read();
            sample(&mut rollouts, &model, 4);
            let after = read();
            let crossings: Vec<usize> = after.0.iter().zip(before.0).map(|(a, b)| a - b).collect();
            let steps: Vec<usize> = after.1.iter().zip(before.1).map(|(a, b)| a - b).collect();
            (crossings, steps, after.2 - before.2, after.3 - before.3)
        };
        let (short, long) = (cost(5), cost(9));
        assert_eq!(long.2, short.2, "{record:?}: no kernel of a further step is launched by itself");
        assert_eq!(long.3 - short.3, 4, "{record:?}: a further step is one launch");
        let more: Vec<usize> = long.0.iter().zip(&short.0).map(|(a, b)| a - b).collect();
        assert_eq!(more, [0, 4, 0], "{record:?}: uploads, downloads, allocations of four further tokens");
        assert_eq!(long.1[..2], [0, 0], "{record:?}: every step was captured before");
        // The start marker, three latents, the end marker, and all tokens but the last, which nobody reads.
        assert_eq!(long.1[2], 1 + 3 + 1 + 8, "{record:?}: {:?}", long.1);
    }
}

#[test]
fn another_model_and_another_set_of_masks_are_other_steps() {
    let drawing = || rollouts::drawing(Scope::All, Mode::Shared, true);
    let [captured, eager] = both().map(|device| {
        let first = qwen(&device);
        let mut second = first.duplicate().unwrap();
        let other: Vec<f32> =
            second.parameters()[2].download::<f32>().unwrap().iter().map(|w| 1.5 * w).collect();
        second.parameters_mut()[2].upload(&other).unwrap();
        let mut one = reserve(&first, rollouts::form(), drawing(), Record::Nothing);
        let mut two = reserve(&first, rollouts::form(), drawing(), Record::Everything);
        let mut found = Vec::new();
        for _ in 0..2 {
            for model in [&first, &first, &second, &second, &first] {
                found.push(sample(&mut one, model, 4));
                found.push(sample(&mut two, model, 4));
            }
        }
        found
    });
    assert_eq!(captured, eager);
    assert_eq!(captured[0], captured[8], "the first model, before and after the second");
    assert_ne!(captured[0], captured[4], "the second model is another one");
}

#[test]
fn a_model_that_was_trained_runs_its_captured_steps_with_the_new_weights() {
    let [captured, eager] = both().map(|device| {
        let mut model = qwen(&device);
        let drawing = rollouts::drawing(Scope::Latent, Mode::Shared, true);
        let mut rollouts = reserve(&model, rollouts::form(), drawing, Record::Nothing);
        let mut found: Vec<_> = (0..3).map(|_| sample(&mut rollouts, &model, 4)).collect();
        let changed: Vec<f32> = model.parameters()[3].download::<f32>().unwrap().iter().map(|w| -w).collect();
        model.parameters_mut()[3].upload(&changed).unwrap();
        found.push(sample(&mut rollouts, &model, 4));
        found
    });
    assert_eq!(captured, eager);
    assert_ne!(captured[2], captured[3]);
}

#[test]
fn steps_that_are_not_captured_are_counted() {
    let device = gpu::device();
    let model = qwen(&device).with_random_projector(latch::model::Projector::of(24), 3).unwrap();
    let drawing = rollouts::drawing(Scope::Latent, Mode::None, true);
    let form = Form { max_new_tokens: 1, end: Vec::new(), ..rollouts::form() };
    let limits = Limits { prompts: 3, members: 12, prompt_tokens: 70 };
    let mut rollouts = Rollouts::reserve(&model, form, drawing, limits, Record::Everything).unwrap();
    let before = steps(device.traffic().count());
    for _ in 0..3 {
        sample(&mut rollouts, &model, 2);
    }
    let after = steps(device.traffic().count());
    assert_eq!(after[0] - before[0], 3 * 3 + 1, "three latents a batch, and the start marker's first step");
}

#[test]
fn threads_share_a_device_and_each_captures_its_own_steps() {
    let device = gpu::device();
    let drawing = rollouts::drawing(Scope::Latent, Mode::Shared, true);
    let run = |device: &Device| {
        let model = qwen(device);
        let mut rollouts = reserve(&model, rollouts::form(), drawing.clone(), Record::Nothing);
        let before = latch::device::Traffic::products_here();
        let found: Vec<_> = (0..3).map(|group| sample(&mut rollouts, &model, group)).collect();
        (found, latch::device::Traffic::products_here() - before)
    };
    let alone = run(&gpu::device());
    let together: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| run(&device))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for one in together {
        assert_eq!(one, alone, "trajectories, and the products that were counted");
    }
    assert!(steps(device.traffic().count())[2] > 0, "steps were launched as graphs");
}

/// What `--no-graphs` turns off has no say in the results (run/devices.rs tests that it turns it off).
#[test]
fn the_binaries_write_the_same_bytes_without_graphs() {
    let model = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qwen3");
    let text = |more: &[&str]| {
        let base = ["--model", model.to_str().unwrap(), "--device", gpu::name(), "--prompt-ids", "5,6"];
        let how = ["--prompt-ids", "9,1,4", "--latents", "4", "--temperature", "1", "-n", "8", "--json"];
        let all: Vec<&str> =
            base.iter().chain(&how).chain(&["--ignore-eos", "-q"]).chain(more).copied().collect();
        binaries::stdout(&binaries::run(env!("CARGO_BIN_EXE_generate"), &all))
    };
    let captured = text(&[]);
    assert_eq!(captured.lines().count(), 2);
    assert_eq!(captured, text(&["--no-graphs"]));
    // A seed that is another one is seen in these bytes.
    assert_ne!(captured, text(&["--no-graphs", "--seed", "1"]));

    let home = tempfile::tempdir().unwrap();
    let trained = |name: &str, more: &[&str]| {
        let out = home.path().join(name);
        let sets = [
            "data.limit_train=8",
            "data.limit_valid=2",
            "data.limit_test=2",
            "coconut.max_latent_stage=1",
            "coconut.extra_epochs=0",
            "evaluation.modes=[\"det\"]",
            "evaluation.every=0",
            "grpo.updates=1",
            "grpo.arms=[\"dropout_latent\"]",
            "run.checkpoint_every=0",
        ];
        let mut all = vec!["--device", gpu::name(), "--quiet", "--out", out.to_str().unwrap()];
        all.extend(sets.iter().flat_map(|set| ["--set", set]).chain(more.iter().copied()));
        binaries::stdout(&binaries::train(&all));
        let weights =
            |name: &str| std::fs::read(out.join("models").join(name).join("model.safetensors")).unwrap();
        let samples = std::fs::read_to_string(out.join("samples.jsonl")).unwrap();
        assert_eq!(samples.lines().count(), 1 + 8);
        (weights("coconut"), weights("dropout_latent"), samples)
    };
    let captured = trained("captured", &[]);
    assert!(captured == trained("eager", &["--no-graphs"]));
}
