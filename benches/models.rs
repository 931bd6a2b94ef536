//! Whole models, "small" (GPT-2's architecture, 4 layers, width 256): training step with and without recompute,
//! prefill, batch-1 decode, the rollout of a group, and a whole Dropout-GRPO update. Larger shapes stand in
//! benches/compare.rs, where PyTorch runs beside them.

use crate::reinforcement::{GrpoStep, PROMPTS, Plan, Rollout, masked};
use crate::workloads::{
    ANSWER, BATCH, Decode, GROUP, LENGTH, PREFILL, Prefill, Run, TrainStep, config, model,
};
use criterion::{Criterion, Throughput};
use latch::device::Device;
use latch::model::{Model, Precision, Record};
use latch::rollout::masks::{Masking, Scope};
use std::sync::Arc;

fn small() -> Model {
    model(config("small").expect("a known shape"), Precision::F32, &Device::cpu())
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
            line!("{name}: {:.1} MiB of tensors", step.bytes() as f64 / f64::from(1 << 20));
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
    let plan = |masking, share| Plan::new(1, masking, share);
    for (name, plan) in [
        ("rollout 8", plan(Masking::NONE, false)),
        ("rollout 8, shared", plan(Masking::NONE, true)),
        ("rollout 8, masked", plan(masked(Scope::Latent), true)),
    ] {
        time(name, GROUP * ANSWER, &|| {
            let mut rollout = Rollout::new(Arc::new(small()), &plan).expect("the small model runs");
            Box::new(move || rollout.run())
        });
    }
    for (name, scope) in [("update 2 x 8", Scope::Latent), ("update 2 x 8, scope all", Scope::All)] {
        time(name, PROMPTS * GROUP * ANSWER, &|| {
            let plan = Plan::new(PROMPTS, masked(scope), true);
            let mut step = GrpoStep::new(small(), &plan).expect("the small model trains");
            line!("{name}: {:.1} MiB of tensors", step.bytes() as f64 / f64::from(1 << 20));
            Box::new(move || step.run())
        });
    }
    group.finish();
}
