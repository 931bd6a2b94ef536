//! Whole models, "small" (GPT-2's architecture, 4 layers, width 256): training step with and without recompute,
//! prefill, batch-1 decode, and the rollout of a group with and without prefix sharing. Larger shapes stand in
//! benches/compare.rs, where PyTorch runs beside them.

use crate::workloads::{
    ANSWER, BATCH, Decode, GROUP, LENGTH, PREFILL, Prefill, Rollout, TrainStep, config, model,
};
use criterion::{Criterion, Throughput};
use latch::base::Dtype;
use latch::model::{Model, Record};
use std::sync::Arc;
use std::time::Duration;

fn small() -> Model {
    model(config("small").expect("a known shape"), Dtype::F32)
}

/// All of them; elements are tokens.
pub fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("model/small/f32");
    let mut time = |name: &str, tokens: usize, run: &mut dyn FnMut() -> Duration| {
        group.throughput(Throughput::Elements(tokens as u64));
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|count| (0..count).map(|_| run()).sum());
        });
    };

    for (name, record) in
        [("training step", Record::Everything), ("training step, recompute", Record::LayerInputs)]
    {
        let mut step = TrainStep::new(small(), record).expect("the small model trains");
        println!("{name}: {:.1} MiB of tensors", step.bytes() as f64 / f64::from(1 << 20));
        time(name, BATCH * LENGTH, &mut || step.run());
    }
    let shared = Arc::new(small());
    let mut prefill = Prefill::new(shared.clone()).expect("the small model runs");
    time("prefill 256", PREFILL, &mut || prefill.run());
    let mut decode = Decode::new(shared.clone()).expect("the small model runs");
    time("decode 32 after 64", ANSWER, &mut || decode.run());
    for (name, sharing) in [("rollout 8", false), ("rollout 8, shared prefix", true)] {
        let mut rollout = Rollout::new(shared.clone(), sharing).expect("the small model runs");
        time(name, GROUP * ANSWER, &mut || rollout.run());
    }
    group.finish();
}
