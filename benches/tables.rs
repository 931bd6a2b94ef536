//! Tables of rollouts and updates of the small model: what masks cost, how cost grows with latent steps and rollouts,
//! and where an update's time goes.

use crate::machine::{Times, triad_once};
use crate::reinforcement::{GrpoStep, PROMPTS, Plan, Rollout, masked};
use crate::workloads::{Run, config, model};
use latch::device::Device;
use latch::model::{Model, Precision};
use latch::rollout::masks::{Masking, Scope};
use std::sync::Arc;
use std::time::Duration;

/// Prints a table of so many rounds.
type Table = fn(usize);

/// The tables by name.
pub const NAMES: [(&str, Table); 3] = [("masks", masks), ("scaling", scaling), ("update", update)];

fn small() -> Model {
    model(config("small").expect("a known shape"), Precision::F32, &Device::cpu())
}

fn rollout(plan: &Plan) -> Rollout {
    Rollout::new(Arc::new(small()), plan).expect("the small model runs")
}

fn step(plan: &Plan) -> GrpoStep {
    GrpoStep::new(small(), plan).expect("the small model trains")
}

fn running(mut rollout: Rollout) -> Run {
    Box::new(move || rollout.run())
}

fn learning(mut step: GrpoStep) -> Run {
    Box::new(move || step.run())
}

/// Milliseconds, ascending.
fn sorted(times: &[Duration]) -> Vec<f64> {
    let mut times: Vec<f64> = times.iter().map(|time| 1e3 * time.as_secs_f64()).collect();
    times.sort_by(f64::total_cmp);
    times
}

fn middle(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Runs all works in turns; the triad of the same rounds ends the table.
fn in_turns(works: &mut [Run], rounds: usize) -> Vec<Vec<Duration>> {
    const ELEMENTS: usize = 2 << 20;
    let (b, c, mut a) = (vec![1.0_f32; ELEMENTS], vec![1.0_f32; ELEMENTS], vec![0.0_f32; ELEMENTS]);
    let mut triad = Times::default();
    let mut taken = vec![Vec::new(); works.len()];
    for round in 0..rounds {
        triad.record(|| triad_once(&mut a, &b, &c));
        for turn in 0..works.len() {
            // Every other round backwards: nobody always follows the same neighbour.
            let index = if round % 2 == 0 { turn } else { works.len() - 1 - turn };
            taken[index].push(works[index]());
        }
    }
    let speed = |seconds: f64| (12 * ELEMENTS) as f64 / seconds / 1e9;
    line!(
        "\n{rounds} rounds; triad {:.1} GB/s at best, median {:.1}",
        speed(triad.min()),
        speed(triad.median())
    );
    taken
}

/// Time at p = 0.1 over p = 0 with the same sharing.
fn masks(rounds: usize) {
    let unshared = |masking| Plan::new(1, masking, false);
    // Noise too small to change a number keeps a group without masks from sharing its thoughts too: equal work.
    let prompt_shared = |masking| Plan { noise: 1e-30, ..Plan::new(1, masking, true) };
    let pairs: [(&str, Plan, Plan); 3] = [
        ("scope all, nothing shared", unshared(Masking::NONE), unshared(masked(Scope::All))),
        ("scope latent, nothing shared", unshared(Masking::NONE), unshared(masked(Scope::Latent))),
        ("scope latent, prompt shared", prompt_shared(Masking::NONE), prompt_shared(masked(Scope::Latent))),
    ];
    let mut names = Vec::new();
    let mut works = Vec::new();
    for (name, clean, masked) in pairs {
        names.push(format!("rollout, {name}"));
        works.extend([running(rollout(&clean)), running(rollout(&masked))]);
        let update = |plan: Plan| Plan { prompts: PROMPTS, ..plan };
        names.push(format!("update, {name}"));
        works.extend([learning(step(&update(clean))), learning(step(&update(masked)))]);
    }
    let taken = in_turns(&mut works, rounds);
    line!("{:<40}{:>10}{:>10}{:>26}", "", "p = 0", "p = 0.1", "p = 0.1 over p = 0");
    line!("{:<40}{:>10}{:>10}{:>13}{:>13}", "", "min ms", "min ms", "of minima", "median pair");
    for (name, pair) in names.iter().zip(taken.chunks(2)) {
        let (clean, masked) = (sorted(&pair[0]), sorted(&pair[1]));
        let mut ratios: Vec<f64> =
            pair[1].iter().zip(&pair[0]).map(|(masked, clean)| masked.div_duration_f64(*clean)).collect();
        ratios.sort_by(f64::total_cmp);
        line!(
            "{name:<40}{:>10.2}{:>10.2}{:>13.3}{:>13.3}",
            clean[0],
            masked[0],
            masked[0] / clean[0],
            middle(&ratios)
        );
    }
}

/// What a latent step and a rollout cost as their numbers grow.
fn scaling(rounds: usize) {
    let base = Plan::new(1, masked(Scope::Latent), true);
    let counts = [0_u32, 1, 2, 4, 8, 16, 32, 64];
    let mut works: Vec<Run> = Vec::new();
    for latents in counts {
        let plan = Plan { latents: latents as usize, ..base.clone() };
        let mut thinking = rollout(&plan);
        works.push(Box::new(move || {
            thinking.run();
            thinking.thinking()
        }));
        works.push(learning(step(&plan)));
    }
    let taken = in_turns(&mut works, rounds);
    let taken: Vec<Vec<f64>> = taken.iter().map(|times| sorted(times)).collect();
    line!("8 rollouts of one prompt, ms; a step = (minimum - that without latents) / latents");
    line!("{:<10}{:>22}{:>11}{:>22}{:>11}", "latents", "prompt + latents", "a step", "update", "a step");
    line!("{:<10}{:>11}{:>11}{:>11}{:>11}{:>11}{:>11}", "", "median", "min", "", "median", "min", "");
    for (count, pair) in counts.iter().zip(taken.chunks(2)) {
        let columns: Vec<String> = (0..2)
            .map(|side| {
                let each = (pair[side][0] - taken[side][0]) / f64::from(*count);
                let each = if *count == 0 { String::new() } else { format!("{each:.3}") };
                format!("{:>11.2}{:>11.2}{each:>11}", middle(&pair[side]), pair[side][0])
            })
            .collect();
        line!("{count:<10}{}", columns.concat());
    }

    let groups = [2, 4, 8, 16, 32, 64];
    let plans = groups.map(|group| Plan { group, ..base.clone() });
    let mut works: Vec<Run> =
        plans.iter().flat_map(|plan| [running(rollout(plan)), learning(step(plan))]).collect();
    let taken = in_turns(&mut works, rounds);
    line!("K rollouts of one prompt, 6 latent steps, 32 tokens, ms; each = minimum / K");
    line!("{:<10}{:>22}{:>11}{:>22}{:>11}", "K", "rollouts", "each", "update", "each");
    line!("{:<10}{:>11}{:>11}{:>11}{:>11}{:>11}{:>11}", "", "median", "min", "", "median", "min", "");
    for (group, pair) in groups.iter().zip(taken.chunks(2)) {
        let columns: Vec<String> = pair
            .iter()
            .map(|times| {
                let times = sorted(times);
                format!("{:>11.2}{:>11.2}{:>11.3}", middle(&times), times[0], times[0] / *group as f64)
            })
            .collect();
        line!("{group:<10}{}", columns.concat());
    }
}

/// Where the time of an update goes.
fn update(rounds: usize) {
    let mut step = step(&Plan::new(PROMPTS, masked(Scope::Latent), true));
    let mut whole = Vec::new();
    let mut parts = vec![Vec::new(); 5];
    for _ in 0..rounds {
        whole.push(step.run());
        let times = step.times;
        let of = [times.rollout, times.reward, times.backward, times.optimizer, times.audit];
        parts.iter_mut().zip(of).for_each(|(part, time)| part.push(time));
    }
    line!("\nan update of the small model, {PROMPTS} x 8 rollouts, {rounds} rounds, ms");
    line!("{:<12}{:>10}{:>10}", "", "median", "min");
    for (name, times) in ["rollout", "reward", "backward", "optimizer", "audit"].into_iter().zip(&parts) {
        let times = sorted(times);
        line!("{name:<12}{:>10.2}{:>10.2}", middle(&times), times[0]);
    }
    let whole = sorted(&whole);
    line!("{:<12}{:>10.2}{:>10.2}", "all", middle(&whole), whole[0]);
}
