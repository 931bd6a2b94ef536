//! Whole models with bf16 activations on devices that run the shipped PTX: beside f64, and beside themselves.

use crate::gpu_models::example;
use crate::models::hidden_bits;
use crate::parity::gpu::{self, devices};
use crate::{rollouts, soft};
use latch::base::Dtype;
use latch::device::Device;
use latch::learn::optimizer::{self, Optimizer};
use latch::learn::supervised::{Limits as Batches, Trainer};
use latch::model::{
    AdapterConfig, Embeddings, Model, Precision, Projector, Record, Room, Sequences, Truncation,
};
use latch::ops::mask::{MaskSet, SiteKind};
use latch::rollout::audit::Audit;
use latch::rollout::group::{Rollouts, Trajectory};
use latch::rollout::masks::{Masking, Mode, Scope};
use latch::verify::models::{in_precision, rounded, small_config, small_model};
use latch::verify::rounding::{self, Distance, Planted, distances};
use latch::verify::script::Group;
use std::ops::ControlFlow;

const HALF: Precision = Precision::Bf16Activations;

fn group(share: bool) -> Group {
    let (scope, mode) = if share { (Scope::Latent, Mode::Shared) } else { (Scope::All, Mode::PerStep) };
    let masking = Masking { p: 0.2, sites: SiteKind::ALL.to_vec(), scope, mode };
    Group { prompt: if share { 66 } else { 33 }, rollouts: 2, latents: 3, answer: 3, share, masking, seed: 0 }
}

fn worst(list: &[Distance]) -> f64 {
    list.iter().map(|distance| distance.found / distance.bound).fold(0.0, f64::max)
}

#[test]
fn logits_and_gradients_are_those_of_f64() {
    for device in devices() {
        for (family, share) in
            [("gpt2", true), ("gpt2", false), ("llama", true), ("llama-linear", false), ("qwen2", true)]
                .into_iter()
                .chain([("qwen3", false)])
        {
            let found = distances(family, &group(share), &device, HALF, Planted::default()).unwrap();
            println!("{} {family}: worst {:.2} of its bound", device.name(), worst(&found));
            for distance in &found {
                assert!(distance.passed(), "{} {family}: {distance:?}", device.name());
                // A gradient that is lost is 1 away from it.
                assert!(distance.bound < 0.25, "{family}: {distance:?}");
            }
        }
    }
}

/// What the bounds of [`logits_and_gradients_are_those_of_f64`] must see.
#[test]
fn a_wrong_bit_of_a_mask_and_a_forgotten_recurrence_are_outside() {
    let device = &devices()[0];
    let mut missed = Vec::new();
    for family in ["gpt2", "qwen3"] {
        let flip = |kind: SiteKind, layer: usize| move |masks: &mut MaskSet| masks.flip(0, kind, layer, 3);
        let bits = [flip(SiteKind::AttnOut, 0), flip(SiteKind::MlpOut, 1), flip(SiteKind::Latent, 0)];
        let forget = [
            Truncation { detach_latent: true, ..Truncation::default() },
            Truncation { detach_kv: true, ..Truncation::default() },
        ];
        let of_bits = bits.iter().map(|flip| Planted { masks: Some(flip), ..Planted::default() });
        let of_walks = forget.map(|truncation| Planted { truncation, ..Planted::default() });
        for (n, planted) in of_bits.chain(of_walks).enumerate() {
            let found = distances(family, &group(true), device, HALF, planted).unwrap();
            println!("{family}, fault {n}: {:.1} of the bound", worst(&found));
            if found.iter().all(Distance::passed) {
                missed.push((family, n));
            }
        }
    }
    assert!(missed.is_empty(), "not seen: {missed:?}");
}

/// A model of a family at values where everything matters, on the device.
fn model(family: &str, device: &Device, precision: Precision) -> Model {
    let exact = small_model(small_config(family, 2, 61, 128, false).unwrap(), 3).unwrap();
    in_precision(&exact, device, precision).unwrap()
}

#[test]
fn a_row_has_the_same_bits_in_any_batch_and_any_cut() {
    for device in devices() {
        for family in ["gpt2", "llama", "qwen2", "qwen3"] {
            let model = model(family, &device, HALF);
            assert_eq!(model.dtype(), Dtype::Bf16);
            let whole = hidden_bits(&model, 70, &[], 0);
            let name = format!("{} {family}", device.name());
            assert_eq!(whole, hidden_bits(&model, 70, &[1, 2, 30, 63, 64, 65], 0), "{name}: cuts");
            assert_eq!(whole, hidden_bits(&model, 70, &[], 2), "{name}: a batch");
            let one_by_one: Vec<usize> = (62..70).collect();
            assert_eq!(whole, hidden_bits(&model, 70, &one_by_one, 1), "{name}: token by token");
        }
    }
}

fn sample(rollouts: &mut Rollouts, model: &Model) -> Vec<Trajectory> {
    let members = rollouts::members(3, 2);
    rollouts.sample(model, &rollouts::prompts(), &members, |_, _| ControlFlow::Continue(())).unwrap()
}

/// Decode steps and latent steps, captured and not, under masks, from shared prefixes: what is sampled stands on the tape,
/// and is computed again, to the bit.
#[test]
fn rollouts_are_computed_again_to_the_bit() {
    let cases = [
        ("gpt2", Scope::All, Mode::PerStep, true, Record::LayerInputs),
        ("llama", Scope::Latent, Mode::Shared, true, Record::Everything),
        ("qwen2", Scope::All, Mode::Shared, false, Record::Everything),
        ("qwen3", Scope::Latent, Mode::PerPosition, true, Record::Everything),
    ];
    for (family, scope, mode, share, record) in cases {
        let [captured, eager] = [true, false].map(|graphs| {
            let device = gpu::device();
            device.use_graphs(graphs);
            let model = model(family, &device, HALF);
            let drawing = rollouts::drawing(scope, mode, share);
            let limits = rollouts::LIMITS;
            let mut here =
                Rollouts::reserve(&model, rollouts::form(), drawing.clone(), limits, record).unwrap();
            let first = sample(&mut here, &model);
            assert_eq!(sample(&mut here, &model), first, "{family}: again, in the memory of before");
            let old: Vec<_> = first.iter().map(|t| t.log_probabilities.clone()).collect();
            assert_eq!(
                rollouts::scored(&here, &model, &first),
                old,
                "{family}: the tape is what was sampled"
            );
            let mut audit = Audit::reserve(&model, rollouts::form(), drawing, 70).unwrap();
            for trajectory in &first {
                let prompt = &rollouts::prompts()[trajectory.member.prompt];
                assert_eq!(
                    audit.gap(&model, prompt, trajectory).unwrap(),
                    0.0,
                    "{family} {scope:?} {mode:?}"
                );
            }
            if mode == Mode::Shared {
                // Instance 1 is that of the rollout under audit.
                let other = |masks: &mut MaskSet| masks.flip(1, SiteKind::MlpOut, 0, 5);
                let seen = audit.gap_with(&model, &rollouts::prompts()[0], &first[0], other).unwrap();
                assert!(seen > 0.0, "{family}: an audit sees another mask");
            }
            let count = device.traffic().count();
            (first, count.steps_replayed)
        });
        assert_eq!(captured.0, eager.0, "{family}: captured steps have the bits of eager ones");
        assert!(captured.1 > 0 && eager.1 == 0, "{family}: {} steps replayed", captured.1);
    }
}

/// Losses and weights after some steps of training.
fn trained(mut model: Model, record: Record) -> (Vec<[u64; 2]>, Vec<Vec<f64>>) {
    let batch = [example(1, 9, 3, 5), example(2, 4, 3, 8), example(3, 70, 2, 3)];
    let optimizer = Optimizer::new(&model, optimizer::Settings::default()).unwrap();
    let limits = Batches::of(&batch, batch.len(), usize::MAX);
    let mut trainer = Trainer::new(&model, optimizer, limits, record).unwrap();
    let mut steps = Vec::new();
    for _ in 0..3 {
        let report = trainer.step(&mut model, &batch, 2e-3).unwrap();
        steps.push([report.loss.to_bits(), report.gradient_norm.to_bits()]);
    }
    let weights = model.trained().iter().map(|tensor| tensor.view().numbers().unwrap()).collect();
    (steps, weights)
}

fn with_adapter(mut model: Model) -> Model {
    let config = AdapterConfig {
        rank: 3,
        alpha: 6.0,
        rslora: false,
        targets: vec!["all-linear".into()],
        embeddings: Embeddings::Tied,
        base: String::new(),
    };
    model.adapt(config, 4).unwrap();
    model
}

#[test]
fn training_lowers_the_loss_and_layers_run_again_have_the_same_bits() {
    for device in devices() {
        for (family, change) in [
            ("gpt2", None),
            ("qwen3", None),
            ("qwen2", Some(with_adapter as fn(Model) -> Model)),
            (
                "llama-linear",
                Some((|model: Model| model.with_random_projector(Projector::of(17), 3).unwrap()) as _),
            ),
        ] {
            let fresh = || {
                let model = model(family, &device, HALF);
                change.map_or_else(|| model.duplicate().unwrap(), |change| change(model.duplicate().unwrap()))
            };
            let kept = trained(fresh(), Record::Everything);
            assert_eq!(kept, trained(fresh(), Record::LayerInputs), "{} {family}", device.name());
            let loss = |step: usize| f64::from_bits(kept.0[step][0]);
            assert!(loss(2) < loss(0), "{} {family}: {} after {}", device.name(), loss(2), loss(0));
            // The first loss beside that of the same weights in f64.
            let mut exact = small_model(small_config(family, 2, 61, 128, false).unwrap(), 3).unwrap();
            rounded(&mut exact, &device, HALF).unwrap();
            if family != "llama-linear" {
                let exact = f64::from_bits(trained(exact, Record::LayerInputs).0[0][0]);
                assert!((loss(0) - exact).abs() <= 0.02 * exact, "{family}: {} and {exact}", loss(0));
            }
        }
    }
}

/// Mixtures drawn on the device: replayed to the bit, and gradients (through the weights and the logits, of scores, of the
/// density of noisy embeddings) near those of f64 for the same rollouts.
#[test]
fn soft_steps_are_replayed_to_the_bit_and_their_gradients_are_those_of_f64() {
    let norm = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>().sqrt();
    for device in devices() {
        for (family, case) in [("llama", 0), ("gpt2", 4), ("llama", 6)] {
            let mut exact = soft::model(family, Dtype::F64, &Device::cpu());
            let low = rounded(&mut exact, &device, HALF).unwrap();
            let (objective, mut sampled) = soft::objective(&low, case, soft::masked(0.2));
            let run = |model: &Model| {
                let mut gradients = model.gradients().unwrap();
                (objective.at(model, Some(&mut gradients)), soft::flat(&mut gradients))
            };
            let (replayed, found) = run(&low);
            assert_eq!(
                objective.of(&low, &mut sampled, None).to_bits(),
                replayed.to_bits(),
                "{family} {case}"
            );
            let (_, expected) = run(&exact);
            let (_, single) = run(&in_precision(&exact, &Device::cpu(), Precision::F32).unwrap());
            let apart = |found: &[f64]| {
                norm(&found.iter().zip(&expected).map(|(a, b)| a - b).collect::<Vec<_>>()) / norm(&expected)
            };
            let (apart, bound) = (apart(&found), rounding::bound(apart(&single)));
            println!("{} {family}, case {case}: {apart:.1e} from f64, bound {bound:.1e}", device.name());
            assert!(apart <= bound, "{} {family}, case {case}: {apart:.1e}, {bound:.1e}", device.name());
        }
    }
}

#[test]
fn the_cache_and_the_tape_take_half_the_bytes() {
    let device = gpu::device();
    let [single, half] = [Precision::F32, HALF].map(|precision| model("qwen3", &device, precision));
    for record in [Record::Nothing, Record::Everything, Record::LayerInputs] {
        let room = Room { rows: 2, slots: 4096, longest: 64, tape_positions: 64, soft: Default::default() };
        let longer = Room { tape_positions: 1064, ..room };
        let wider = Room { slots: 8192, ..room };
        let [a, b] = [&single, &half].map(|model| {
            let bytes = |room| Sequences::bytes(model, room, record).unwrap();
            [bytes(longer) - bytes(room), bytes(wider) - bytes(room)]
        });
        // A position has six words of index, and statistics of norms and attention; a slot's gradient is f32.
        let share = b[0] as f64 / a[0] as f64;
        assert!((0.5..0.62).contains(&share), "{record:?}: a position takes {share} of its bytes in f32");
        let expected = if record == Record::Nothing { 0.5 } else { 0.75 };
        assert_eq!(b[1] as f64 / a[1] as f64, expected, "{record:?}: a slot");
    }
}

#[test]
fn the_cpu_refuses() {
    let config = small_config("gpt2", 1, 29, 16, true).unwrap();
    let message = Model::random(config, 1, &Device::cpu(), HALF).unwrap_err().to_string();
    for word in ["model.dtype", "bf16-activations", "cpu", "--device cuda"] {
        assert!(message.contains(word), "{message}");
    }
}
