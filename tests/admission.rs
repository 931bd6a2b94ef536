//! A model too big for its GPU is refused before anything is allocated there, with what is needed, what is free, and what
//! would fit; the edge of what is accepted is the edge of what runs.

use crate::binaries::{refuses, stderr};
use crate::gpu_models::on;
use crate::rollouts;
use crate::story::fresh;
use latch::base::{Dtype, Result};
use latch::device::{Arena, Device, SimulatorOptions};
use latch::model::{Model, Record, Room, Sequences, SoftRoom};
use latch::ops::sampler::Law;
use latch::rollout::generate::{self, Options, generate};
use latch::run::admission::{Remedy, admit, need};
use latch::run::dry_run;
use latch::run::folder::{Existing, RunFolder};
use latch::run::recipe::Recipe;
use latch::run::rehearsal::rehearse;
use latch::run::replay::replay;
use latch::run::story::{Ending, Event, Story};
use std::ops::ControlFlow;

/// A simulated GPU with `free` bytes free, and what it needs itself.
pub fn sim(free: usize) -> Device {
    Device::simulated_with(SimulatorOptions { memory_bytes: (free + own()) as u64, ..Default::default() })
}

/// What a simulated GPU needs itself.
pub fn own() -> usize {
    let device = Device::simulated_with(SimulatorOptions { memory_bytes: 1 << 20, ..Default::default() });
    let Device::Gpu(gpu) = device else { unreachable!() };
    (1 << 20) - gpu.memory_free().unwrap()
}

/// A story of a few updates, of which every kind of part is one.
fn recipe(changes: &[&str]) -> Recipe {
    let small = [
        "data.limit_train=8",
        "data.limit_valid=2",
        "data.limit_test=2",
        "coconut.extra_epochs=0",
        "grpo.arms=dropout_all",
        "grpo.updates=2",
        "grpo.inner_epochs=1",
        "evaluation.modes=det",
        "evaluation.every=2",
        "run.checkpoint_every=0",
        "model.width=32",
        "model.mlp_hidden=64",
    ];
    fresh(&[&small[..], changes].concat())
}

/// Runs the story on `device`.
fn run(recipe: &Recipe, device: &Device) -> Result<Ending> {
    let home = tempfile::tempdir().unwrap();
    let folder = RunFolder::create(&home.path().join("run"), Existing::Refuse).unwrap();
    folder.write_recipe(recipe).unwrap();
    let go = &mut |_: &Event| ControlFlow::Continue(());
    Story::open(recipe, &folder, device, go)?.run(go)
}

/// Nothing is held on the device, and nothing ever was.
#[track_caller]
pub fn untouched(device: Device) {
    let count = device.traffic().count();
    assert_eq!((count.allocations, count.uploads, count.bytes_high_water), (0, 0, 0));
    assert!(device.close().unwrap().is_empty());
}

#[test]
fn the_edge_of_what_trains_is_the_edge_of_what_is_accepted() {
    for changes in [&[][..], &["adapter.rank=4", "run.recompute=true", "model.dtype=bf16"]] {
        let recipe = recipe(changes);
        let roomy = sim(1 << 30);
        let problems = dry_run::problems(&recipe, &roomy).unwrap();
        let rehearsal = |device: &Device| rehearse(&recipe, &problems, device).map(drop);
        let need = need(&roomy, &rehearsal, 0).unwrap();
        let expected = rehearse(&recipe, &problems, &roomy.accountant(None)).unwrap().peak;

        // At the edge it runs, and holds what was forecast, kind by kind and to the byte.
        let edge = sim(need.free);
        assert_eq!(run(&recipe, &edge).unwrap(), Ending::Complete, "{changes:?}");
        assert_eq!(edge.memory_peak(), expected, "{changes:?}");
        assert!(edge.close().unwrap().is_empty());

        // A 64th below it is refused, and runs out when it is forced.
        let below = need.free - need.free / 64;
        let device = sim(below);
        let message = run(&recipe, &device).unwrap_err().to_string();
        for says in [
            format!("sim has {below} of its {} bytes free", below + own()),
            "this run needs ".into(),
            format!("weights {}", expected.of(Arena::Weights)),
            format!("gradients {}", expected.of(Arena::Gradients)),
            format!("optimiser moments {}", expected.of(Arena::Optimiser)),
            format!("activations (tape) {}", expected.of(Arena::Tape)),
            format!("KV cache {}", expected.of(Arena::KvCache)),
            format!("scratch {}", expected.of(Arena::Workspace)),
            "rounding to blocks ".into(),
            "enough would be: ".into(),
        ] {
            assert!(message.contains(&says), "{says}: {message}");
        }
        untouched(device);
        let forced = sim(below);
        let message = rehearse(&recipe, &problems, &forced).unwrap_err().to_string();
        assert!(message.contains("sim is out of memory"), "{message}");
        assert!(forced.close().unwrap().is_empty(), "nothing leaks");
    }
}

/// To go on, a run reads its checkpoint's model while it has one: the forecast of the whole run covers that too.
#[test]
fn a_run_goes_on_within_its_forecast() {
    // Stopped in the first phase, and in an arm.
    for (changes, after) in
        [(&["run.keep_last=1"][..], 1), (&["adapter.rank=4", "model.dtype=bf16"], usize::MAX)]
    {
        let recipe = recipe(changes);
        let roomy = sim(1 << 30);
        let problems = dry_run::problems(&recipe, &roomy).unwrap();
        let rehearsal = |device: &Device| rehearse(&recipe, &problems, device).map(drop);
        let need = need(&roomy, &rehearsal, 0).unwrap();
        let home = tempfile::tempdir().unwrap();
        let place = home.path().join("run");
        let mut updates = 0;
        let stop = &mut |event: &Event| match event {
            Event::Supervised { .. } | Event::Rewarded { .. } => {
                updates += 1;
                let rewarded = matches!(event, Event::Rewarded { .. });
                if updates == after || rewarded { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            }
            _ => ControlFlow::Continue(()),
        };
        {
            let folder = RunFolder::create(&place, Existing::Refuse).unwrap();
            folder.write_recipe(&recipe).unwrap();
            let device = sim(need.free);
            let ending = Story::open(&recipe, &folder, &device, stop).unwrap().run(stop).unwrap();
            assert!(matches!(ending, Ending::Stopped { .. }), "{ending:?}");
        }
        let folder = RunFolder::create(&place, Existing::Resume).unwrap();
        let edge = sim(need.free);
        let go = &mut |_: &Event| ControlFlow::Continue(());
        let mut story = Story::open(&recipe, &folder, &edge, go).unwrap();
        assert!(story.progress().step > 0);
        assert_eq!(story.run(go).unwrap(), Ending::Complete, "{changes:?}");
        drop(story);
        assert!(edge.memory_peak().total() <= need.peak.total(), "{changes:?}");
        assert!(edge.close().unwrap().is_empty());
    }
}

#[test]
fn what_is_said_to_be_enough_is_enough() {
    // Large enough a batch that its tape is what fills the device.
    let big = recipe(&["cot.batch=8", "grpo.prompts=8", "grpo.group=6", "evaluation.batch=64"]);
    let roomy = sim(1 << 30);
    let problems = dry_run::problems(&big, &roomy).unwrap();
    let rehearsal = |device: &Device| rehearse(&big, &problems, device).map(drop);
    let all = need(&roomy, &rehearsal, 0).unwrap();
    let device = sim(all.free * 9 / 10);
    let message = dry_run::admit(&big, &problems, &device).unwrap_err().to_string();
    let (_, advice) = message.split_once("enough would be: ").unwrap();
    let cures: Vec<&str> = advice.split("; or ").collect();
    assert!(cures.iter().any(|cure| cure.contains("grpo.tape_mib=")), "{message}");
    for cure in cures {
        let mut cured = big.clone();
        for set in cure.split(" and ") {
            cured.set(set.trim().strip_prefix("--set ").unwrap()).unwrap();
        }
        dry_run::admit(&cured, &problems, &device).unwrap_or_else(|error| panic!("{cure}: {error}"));
    }
    untouched(device);

    // Where nothing helps that is said, with what the smallest still needs.
    let tiny = sim(20_000);
    let message = dry_run::admit(&big, &problems, &tiny).unwrap_err().to_string();
    assert!(message.contains("nothing that can be set is enough"), "{message}");
    untouched(tiny);
}

#[test]
fn generation_runs_at_the_edge_and_is_refused_below_it() {
    let host = rollouts::model(Dtype::F32);
    let prompts: Vec<Vec<u32>> = rollouts::prompts();
    let options = |tokens: usize| Options {
        latents: 2,
        soft: None,
        after_latents: vec![5],
        law: Law::PLAIN,
        max_new_tokens: tokens,
        stop: Vec::new(),
        seed: 3,
    };
    let rehearsal = |tokens: &usize, device: &Device| {
        let model = Model::build(host.config().clone(), device, host.precision(), |_, _, _| Ok(()))?;
        generate::rehearse(&model, &prompts, &options(*tokens), None)
    };
    let all = need(&sim(1 << 30), &|device| rehearsal(&6, device), 0).unwrap();
    let go = |_, _| ControlFlow::Continue(());
    let whole =
        |device: &Device| generate(&on(device, &host), &prompts, &options(6), go).map(|(made, _)| made);

    let shorter = || {
        Remedy::new(
            |tokens: &usize| (*tokens > 1).then(|| tokens / 2),
            |tokens| format!("--max-new-tokens {tokens}"),
        )
    };
    let edge = sim(all.free);
    admit(&edge, "generating this", &6, &rehearsal, &[shorter()]).unwrap();
    assert_eq!(whole(&edge).unwrap(), whole(&sim(1 << 30)).unwrap());
    assert_eq!(edge.memory_peak(), all.peak, "to the byte");

    let below = sim(all.free - all.free / 64);
    let message = admit(&below, "generating this", &6, &rehearsal, &[shorter()]).unwrap_err().to_string();
    assert!(message.contains("generating this needs") && message.contains("KV cache"), "{message}");
    untouched(below);
}

/// A rollout of an arm whose own gates are made on the way: two models and the room to sample are rehearsed.
#[test]
fn a_replay_runs_at_the_edge_and_is_refused_below_it() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("run");
    let arms = ["--set", "grpo.arms=[\"hrpo\"]", "--set", "evaluation.modes=[\"det\"]"];
    let quiet = ["--quiet", "--device", "cpu", "--out", out.to_str().unwrap()];
    crate::binaries::stdout(&crate::binaries::train(&[&arms[..], &quiet].concat()));
    let samples = out.join("samples.jsonl");
    let tiny = sim(20_000);
    let message = replay(&samples, 2, &tiny).unwrap_err().to_string();
    assert!(message.contains("this replay needs ") && message.contains("KV cache"), "{message}");
    untouched(tiny);
    let (_, needs) = message.split_once("this replay needs ").unwrap();
    let needs: usize = needs.split_once(' ').unwrap().0.parse().unwrap();
    let edge = sim(needs);
    let again = replay(&samples, 2, &edge).unwrap();
    assert_eq!(again.again.tokens.len(), again.again.log_probabilities.len());
    assert!(edge.close().unwrap().is_empty());
    let below = sim(needs - needs / 32);
    assert!(replay(&samples, 2, &below).unwrap_err().to_string().contains("this replay needs "));
    untouched(below);
}

#[test]
fn the_window_of_captured_steps_is_counted() {
    let host = rollouts::model(Dtype::F32);
    let room = Room { rows: 6, slots: 640, longest: 80, tape_positions: 200, soft: SoftRoom::default() };
    let bytes = |graphs: bool, record| {
        let device = Device::simulated();
        device.use_graphs(graphs);
        let model = on(&device, &host);
        let before = device.traffic().count();
        let forecast = Sequences::bytes(&model, room, record).unwrap();
        assert_eq!(device.traffic().count(), before, "asking takes nothing");
        let sequences = Sequences::reserve(&model, &device, room, record).unwrap();
        let held = device.traffic().count().bytes_held - before.bytes_held;
        drop(sequences);
        assert_eq!(forecast, held, "graphs {graphs}, {record:?}");
        forecast
    };
    for record in [Record::Everything, Record::LayerInputs] {
        assert!(bytes(true, record) > bytes(false, record), "{record:?}");
    }
    // A tape that does not record is its own window.
    assert_eq!(bytes(true, Record::Nothing), bytes(false, Record::Nothing));
}

/// The binaries, where the simulator's 16 GiB are too few.
#[test]
fn the_binaries_refuse_what_the_device_cannot_hold() {
    let huge = ["--set", "model.layers=64", "--set", "model.width=4096", "--set", "model.mlp_hidden=16384"];
    let more = ["--set", "model.heads=32", "--set", "model.kv_heads=32", "--set", "grpo.arms=[]"];
    let huge = [&huge[..], &more].concat();
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("run");
    let base = [&huge[..], &["--device", "sim", "--out", out.to_str().unwrap()]].concat();
    let refused = crate::binaries::train(&base);
    refuses(
        &refused,
        1,
        &["sim has 17179852800 of its 17179869184 bytes free", "optimiser moments", "weights "],
    );
    assert!(!stderr(&refused).contains("was closed while"), "{}", stderr(&refused));
    let table = crate::binaries::stdout(&crate::binaries::train(&[&base[..], &["--dry-run"]].concat()));
    for row in ["weights", "gradients", "optimiser moments", "KV cache", "rounding to blocks", "may not fit"]
    {
        assert!(table.contains(row), "{row}: {table}");
    }
}
