//! Advantages by hand, dead groups, shaping and dynamic sampling.

use latch::learn::advantages::{Baseline, GroupKind, Overlong, Refill, Scale, advantages, refill};

fn of(groups: &[&[f64]], baseline: Baseline, scale: Scale) -> Vec<Vec<f64>> {
    let groups: Vec<Vec<f64>> = groups.iter().map(|group| group.to_vec()).collect();
    advantages(&groups, baseline, scale).unwrap()
}

fn near(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() < 1e-14, "{found:?} {expected:?}");
    }
}

#[test]
fn baselines_by_hand() {
    let rewards: &[&[f64]] = &[&[1.0, 0.0, 0.0, 1.0], &[3.0, 0.0]];
    let mean = of(rewards, Baseline::GroupMean, Scale::None);
    near(&mean[0], &[0.5, -0.5, -0.5, 0.5]);
    near(&mean[1], &[1.5, -1.5]);
    let others = of(rewards, Baseline::LeaveOneOut, Scale::None);
    // 1 - 1/3; 0 - 2/3.
    near(&others[0], &[2.0 / 3.0, -2.0 / 3.0, -2.0 / 3.0, 2.0 / 3.0]);
    near(&others[1], &[3.0, -3.0]);
    near(&of(rewards, Baseline::None, Scale::None)[0], &[1.0, 0.0, 0.0, 1.0]);
}

#[test]
fn scales_by_hand() {
    let rewards: &[&[f64]] = &[&[1.0, 0.0, 0.0, 1.0], &[0.0, 0.0, 0.0, 2.0]];
    let group = of(rewards, Baseline::GroupMean, Scale::GROUP);
    near(&[group[0][0]], &[0.5 / ((1.0_f64 / 3.0).sqrt() + 1e-4)]);
    near(&[group[1][3]], &[1.5 / (1.0 + 1e-4)]);
    let population = of(rewards, Baseline::GroupMean, Scale::GroupStd { epsilon: 0.0, ddof: 0 });
    near(&population[0], &[1.0, -1.0, -1.0, 1.0]);
    // Mean 1/2 of eight rewards, squares 1 + 1 + 4 = 6: variance (6 - 8/4)/7.
    let batch = of(rewards, Baseline::GroupMean, Scale::BATCH);
    let deviation = (4.0_f64 / 7.0).sqrt() + 1e-4;
    near(&batch[0], &[0.5 / deviation, -0.5 / deviation, -0.5 / deviation, 0.5 / deviation]);
}

#[test]
fn a_dead_group_has_advantages_of_exactly_zero() {
    for reward in [0.0, 1.0, 0.1, 1.0 / 3.0, -7.7] {
        for size in [2, 3, 7, 16] {
            for baseline in [Baseline::GroupMean, Baseline::LeaveOneOut] {
                for scale in [Scale::None, Scale::GROUP, Scale::BATCH] {
                    let found = of(&[&vec![reward; size], &[0.3, 0.4]], baseline, scale);
                    assert!(found[0].iter().all(|&a| a == 0.0), "{reward} {size} {baseline:?} {scale:?}");
                }
            }
        }
    }
    // A lone rollout has no deviation: 0 by epsilon, not NaN.
    assert_eq!(of(&[&[0.7]], Baseline::GroupMean, Scale::GROUP), [[0.0]]);
}

#[test]
fn bad_rewards_are_errors() {
    let run =
        |groups: &[Vec<f64>], baseline| advantages(groups, baseline, Scale::None).unwrap_err().to_string();
    let message = run(&[vec![1.0, 2.0], vec![1.0]], Baseline::LeaveOneOut);
    assert!(message.contains("group 1") && message.contains("needs 2"), "{message}");
    let message = run(&[vec![]], Baseline::None);
    assert!(message.contains("group 0"), "{message}");
    let message = run(&[vec![1.0, f64::NAN]], Baseline::GroupMean);
    assert!(message.contains("rollout 1 in group 0"), "{message}");
}

#[test]
fn groups_are_named_and_refilled() {
    let kinds: Vec<GroupKind> = [&[0.0, 0.0][..], &[1.0, 0.0], &[1.0, 1.0], &[0.5, 0.5], &[0.0, 0.5]]
        .iter()
        .map(|rewards| GroupKind::of(rewards, 0.0, 1.0))
        .collect();
    use GroupKind::{AllEqual, AllRight, AllWrong, Mixed};
    assert_eq!(kinds, [AllWrong, Mixed, AllRight, AllEqual, Mixed]);
    assert_eq!(refill(&kinds, 1, 10), Refill::Again(vec![0, 2, 3]));
    assert_eq!(refill(&kinds, 10, 10), Refill::GiveUp(vec![0, 2, 3]));
    assert_eq!(refill(&[Mixed, Mixed], 10, 10), Refill::Complete);
}

#[test]
fn long_answers_lose_reward_linearly() {
    let overlong = Overlong { buffer: 0.2, factor: 1.0 };
    // DAPO's own numbers: 20480 tokens, the last 4096 are the buffer.
    let penalty = |length| overlong.penalty(length, 20480);
    assert_eq!((penalty(100), penalty(16384)), (0.0, 0.0));
    assert_eq!((penalty(16384 + 1024), penalty(20480)), (-0.25, -1.0));
    assert_eq!(Overlong { buffer: 0.5, factor: 0.4 }.penalty(8, 8), -0.4);
    assert_eq!(Overlong { buffer: 0.01, factor: 1.0 }.penalty(8, 8), 0.0);
}

#[test]
fn names_are_read_and_unknown_ones_explained() {
    assert_eq!("leave_one_out".parse::<Baseline>(), Ok(Baseline::LeaveOneOut));
    assert_eq!("batch_std".parse::<Scale>(), Ok(Scale::BATCH));
    assert!("loo".parse::<Baseline>().unwrap_err().contains("known: group_mean, leave_one_out, none"));
    assert!("std".parse::<Scale>().unwrap_err().contains("known: none, group_std, batch_std"));
}
