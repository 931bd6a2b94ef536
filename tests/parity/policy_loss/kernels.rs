//! The kernels of the policy losses against the CPU in f64: every surrogate, ratio and estimator; bits of rows.

use super::{Problem, Results, hypers, starts};
use crate::parity::gpu;
use latch::base::Dtype;
use latch::ops::policy_loss::{Estimator, Hyper, Kl, Ratio, Statistic, Surrogate};

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// The losses of the other tests, and some whose bounds act on these operands.
fn all_hypers() -> Vec<Hyper> {
    let mut all = hypers();
    for hyper in hypers() {
        let kl = hyper.kl.map(|kl| Kl { clamp: Some(0.5), cap: Some(0.3), ..kl });
        all.push(Hyper { clamp: Some(0.25), kl, ..hyper });
    }
    all.push(Hyper {
        ratio: Ratio::Token,
        surrogate: Surrogate::Clipped { low: 0.2, high: 0.2, delta: None, dual: None },
        clamp: None,
        kl: Some(Kl { estimator: Estimator::K3, beta: 0.0, clamp: None, cap: None }),
    });
    all
}

#[test]
fn every_loss_agrees_with_f64() {
    for device in gpu::devices() {
        for lengths in [&[1][..], &[5, 1, 0, 33, 16, 2], &[300, 17, 1100]] {
            let problem = Problem::new(lengths);
            for hyper in all_hypers() {
                let found = problem.run_on(&device, &hyper);
                let exact = problem.run_exactly(&hyper);
                let what = |part: &str| format!("{} {hyper:?} {lengths:?} {part}", device.name());
                gpu::compare(&what("term"), Dtype::F32, 1, &wide(&found.term), &exact[0]);
                // One ratio a row: its slope is a sum over the row.
                let terms = if hyper.ratio == Ratio::Sequence { 1100 } else { 1 };
                gpu::compare(&what("coefficient"), Dtype::F32, terms, &wide(&found.coefficient), &exact[2]);
                for column in 0..Statistic::COUNT {
                    let pick = |values: &[f64]| -> Vec<f64> {
                        values.iter().skip(column).step_by(Statistic::COUNT).copied().collect()
                    };
                    let (found, exact) = (pick(&wide(&found.statistics)), pick(&exact[1]));
                    gpu::compare(&what(&format!("statistic {column}")), Dtype::F32, 1, &found, &exact);
                }
            }
        }
    }
}

#[test]
fn a_row_depends_on_itself_alone() {
    let lengths: Vec<usize> = (0..30).map(|row| (row * 37) % 101).collect();
    let (problem, all) = (Problem::new(&lengths), starts(&lengths));
    for device in gpu::devices() {
        for hyper in hypers() {
            let whole = problem.run_on(&device, &hyper);
            for other in gpu::orders() {
                assert_eq!(whole, problem.run_on(&other, &hyper), "another order of blocks");
            }
            for row in [0, 1, 2, 17, 29] {
                let tokens = all[row] as usize..all[row + 1] as usize;
                let alone = problem.part(row..row + 1).run_on(&device, &hyper);
                assert_eq!(alone.term, whole.term[tokens.clone()]);
                assert_eq!(alone.coefficient, whole.coefficient[tokens.clone()]);
                let five = |n: usize| n * Statistic::COUNT;
                assert_eq!(alone.statistics, whole.statistics[five(tokens.start)..five(tokens.end)]);
            }
        }
    }
}

#[test]
fn an_unmoved_policy_has_a_ratio_of_exactly_one() {
    let mut problem = Problem::new(&[7, 1, 40]);
    problem.old = problem.log_probability.clone();
    for device in gpu::devices() {
        for hyper in hypers().into_iter().filter(|hyper| hyper.kl.is_none()) {
            let found = problem.run_on(&device, &hyper);
            assert!(found.statistics.chunks(Statistic::COUNT).all(|row| row[0].to_bits() == 1f32.to_bits()));
            if hyper.ratio == Ratio::Token && !matches!(hyper.surrogate, Surrogate::Soft { .. }) {
                for (n, &coefficient) in found.coefficient.iter().enumerate() {
                    assert_eq!(coefficient, -(problem.weight[n] * problem.advantage[n]), "{hyper:?}");
                }
            }
        }
    }
}

#[test]
fn numbers_that_are_none_and_rows_that_end_too_late_reach_the_loss() {
    for device in gpu::devices() {
        for hyper in hypers() {
            let mut problem = Problem::new(&[4, 4]);
            problem.log_probability[5] = f32::NAN;
            let found = problem.run_on(&device, &hyper);
            assert!(found.term[5].is_nan() && found.coefficient[5].is_nan(), "{hyper:?}");
            assert!(found.term[..4].iter().all(|term| term.is_finite()));
            let problem = Problem::new(&[4, 4]);
            let Results { term, coefficient, .. } = problem.run_with(&device, &hyper, &[0, 4, 9]);
            assert!(term[..4].iter().chain(&coefficient[..4]).all(|v| v.is_finite()));
            assert!(term[4..].iter().chain(&coefficient[4..]).all(|v| v.is_nan()), "{hyper:?}");
            // Rows that end before they start, or start behind the tokens, have none.
            let clean = problem.run_on(&device, &hyper);
            for starts in [[0, 4, 8, 3], [0, 4, 8, u32::MAX]] {
                assert_eq!(problem.run_with(&device, &hyper, &starts), clean);
            }
        }
    }
}
