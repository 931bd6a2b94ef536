//! Whole models, "small" (GPT-2's architecture, 4 layers, width 256): training step with and without recompute,
//! prefill, batch-1 decode, and the rollout of a group with and without prefix sharing. Larger shapes stand in
//! benches/compare.rs, where PyTorch runs beside them.

use crate::workloads::{
    ANSWER, BATCH, Decode, GROUP, LENGTH, PREFILL, Prefill, Rollout, Run, TrainStep, config, model,
};
use criterion::{Criterion, Throughput};
use latch::base::Dtype;
use latch::model::{Model, Record};
use std::sync::Arc;

fn small() -> Model {
    model(config("small").expect("a known shape"), Dtype::F32)
}

/// All of them; elements are tokens.
pub fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("model/small/f32");
    // Work is prepared when its bench is first run, so that a filter skips its preparation too.
    let mut time = |name: &str, tokens: usize, prepare: &dyn Fn() -> Run| {
        let mut prepared = None;
        group.throughput(Throughput::Elements(tokens as u64));
        group.bench_function(name, |bencher| {
            let run = prepared.get_or_insert_with(prepare);
            bencher.iter_custom(|count| (0..count).map(|_| run()).sum());
        });
    };
    for (name, record) in
        [("training step", Record::Everything), ("training step, recompute", Record::LayerInputs)]
    {
        time(name, BATCH * LENGTH, &|| {
            let mut step = TrainStep::new(small(), record).expect("the small model trains");
            println!("{name}: {:.1} MiB of tensors", step.bytes() as f64 / f64::from(1 << 20));
            Box::new(move || step.run())
        });
    }
    time("prefill 256", PREFILL, &|| {
        let mut prefill = Prefill::new(Arc::new(small())).expect("the small model runs");
        Box::new(move || prefill.run())
    });
    time("decode 32 after 64", ANSWER, &|| {
        let mut decode = Decode::new(Arc::new(small())).expect("the small model runs");
        Box::new(move || decode.run())
    });
    for (name, sharing) in [("rollout 8", false), ("rollout 8, shared prefix", true)] {
        time(name, GROUP * ANSWER, &|| {
            let mut rollout = Rollout::new(Arc::new(small()), sharing).expect("the small model runs");
            Box::new(move || rollout.run())
        });
    }
    group.finish();
}
