//! A model's memory by arena, on a simulated GPU: every kind of tensor is booked where a plan of memory lists it.

use crate::models;
use latch::base::Dtype;
use latch::device::{Arena, Device};
use latch::learn::optimizer::{Optimizer, Settings};
use latch::model::{Gradients, Model, Precision, Record, Room, Sequences};
use latch::ops::mask::{MaskSet, SiteKind, Sites};

fn held(device: &Device, arena: Arena) -> usize {
    let Device::Gpu(gpu) = device else { panic!("a simulated device is a GPU") };
    gpu.statistics().arenas.into_iter().find(|count| count.arena == arena).map_or(0, |count| count.held)
}

#[test]
fn a_models_memory_is_booked_by_what_it_is_for() {
    let config = models::gpt2();
    for precision in [Precision::Bf16, Precision::Bf16Activations] {
        let device = Device::simulated();
        let model = Model::build(config.clone(), &device, precision, |_, _, _| Ok(())).unwrap();
        of_a_model(device, model);
    }
}

fn of_a_model(device: Device, model: Model) {
    let elements: usize = model.parameters().iter().map(|p| p.shape().elements()).sum();
    let bytes: usize = model.parameters().iter().map(|p| p.bytes()).sum();
    assert_eq!(held(&device, Arena::Weights), bytes);

    let gradients = Gradients::like(&device, model.parameters(), Dtype::F32).unwrap();
    assert_eq!(held(&device, Arena::Gradients), 4 * elements);

    let optimizer = Optimizer::new(&model, Settings::default()).unwrap();
    let matrices: usize =
        model.parameters().iter().filter(|p| p.dtype() == Dtype::Bf16).map(|p| p.shape().elements()).sum();
    // A GPU keeps masters whole, the CPU the half that the parameter is not; matrices here have even numbers of elements.
    let beside = if matches!(device, Device::Cpu(_)) { 2 } else { 4 };
    assert_eq!(
        held(&device, Arena::Optimiser),
        8 * elements + beside * matrices,
        "two moments, and masters of bf16"
    );

    let room = Room { rows: 2, slots: 128, longest: 64, tape_positions: 100, soft: Default::default() };
    let sequences = Sequences::reserve(&model, &device, room, Record::Everything).unwrap();
    assert_eq!(held(&device, Arena::Masks), 2 * 3 * 4, "the keys of the latents' noise");
    // Keys and values of two layers, and their gradients.
    let dtype = model.dtype();
    let cached = 2 * 2 * 128 * 24 * (dtype.size() + dtype.accumulation().size());
    let layout = 3 * 2 * 4;
    assert_eq!(held(&device, Arena::KvCache), cached + layout);
    assert!(
        held(&device, Arena::Tape) >= 100 * 24 * dtype.size() * 3,
        "the stream before each layer and behind the last"
    );
    assert!(held(&device, Arena::Workspace) > 0);

    let before = held(&device, Arena::Masks);
    let masks = MaskSet::reserve(&device, Sites::new(24, 96, 2, &SiteKind::ALL), 0.1, 3).unwrap();
    assert!(held(&device, Arena::Masks) > before);

    let by_arena: usize = Arena::ALL.iter().map(|&arena| held(&device, arena)).sum();
    assert_eq!(by_arena, device.traffic().count().bytes_held);
    drop((model, gradients, optimizer, sequences, masks));
    assert!(device.close().unwrap().is_empty());
}
