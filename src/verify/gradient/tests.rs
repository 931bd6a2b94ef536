//! Verdicts, faults and kinks included.

use super::*;
use crate::verify::fault::FaultKind;
use std::cell::Cell;

/// `sum_i w_i f(x_i)` with a gradient that is right or wrong.
fn case<'a>(
    values: Vec<f64>,
    f: impl Fn(f64) -> f64 + Copy + 'a,
    derivative: impl Fn(f64) -> f64 + 'a,
) -> Case<'a> {
    let weights = normals("weights", values.len());
    let other = weights.clone();
    Case {
        name: "sum".into(),
        variables: vec![Variable { name: "x".into(), values }],
        loss: Box::new(move |point| Ok(point[0].iter().zip(&weights).map(|(x, w)| w * f(*x)).sum())),
        gradient: Box::new(move |point, dtype| {
            let round = |g: f64| if dtype == Dtype::F32 { f64::from(g as f32) } else { g };
            Ok(vec![point[0].iter().zip(&other).map(|(x, w)| round(w * derivative(*x))).collect()])
        }),
    }
}

#[test]
fn a_right_gradient_passes_with_room() {
    let outcomes = check(&case(normals("x", 300), f64::sin, f64::cos), None).unwrap();
    assert_eq!(outcomes.len(), 2);
    assert_eq!(outcomes[0].probed, RANDOM_PROBES + LARGEST_PROBES);
    assert!(outcomes.iter().all(|o| o.passed && o.worst_f64 < 1e-7), "{outcomes:?}");
}

#[test]
fn small_errors_of_any_entry_fail() {
    for wrong in [1.0 + 3e-6, 0.99, -1.0, 0.0, f64::NAN] {
        let outcomes = check(&case(normals("x", 20), f64::sin, |x| wrong * x.cos()), None).unwrap();
        assert!(!outcomes[0].passed && !outcomes[1].passed, "{wrong}: {outcomes:?}");
    }
}

#[test]
fn every_planted_fault_fails() {
    for count in [1, 2, 20, 300] {
        for kind in FaultKind::ALL {
            let fault = Fault { check: "sum".into(), variable: Some("x".into()), kind };
            let outcomes = check(&case(normals("x", count), f64::sin, f64::cos), Some(&fault)).unwrap();
            assert!(outcomes.iter().any(|o| !o.passed), "{count} {kind:?}");
            let elsewhere = Fault { check: "su".into(), ..fault };
            let outcomes = check(&case(normals("x", count), f64::sin, f64::cos), Some(&elsewhere)).unwrap();
            assert!(outcomes.iter().all(|o| o.passed), "{count} {kind:?}");
        }
    }
}

#[test]
fn points_at_a_kink_are_moved_and_checked_there() {
    // Entries 0, 3, 6, ... stand exactly at the kink of |x|; the gradient there is one of its slopes' mean.
    let values: Vec<f64> =
        (0..30).map(|i| if i % 3 == 0 { 0.0 } else { f64::from(i) / 7.0 - 1.93 }).collect();
    let sign = |x: f64| if x == 0.0 { 0.0 } else { x.signum() };
    let outcomes = check(&case(values.clone(), f64::abs, sign), None).unwrap();
    // The direction passes through ten kinks at once: it is moved as well.
    assert!(outcomes.iter().all(|o| o.passed), "{outcomes:?}");
    assert_eq!((outcomes[0].moved, outcomes[0].probed, outcomes[1].moved), (10, 30, 1));

    // A gradient that is wrong on one side only is still found from a point at the kink.
    let wrong = |x: f64| if x >= 0.0 { 1.0 } else { -0.999 };
    let seen = Cell::new(0);
    let outcomes = check(
        &case(vec![0.0; 30], f64::abs, |x| {
            seen.set(seen.get() + 1);
            wrong(x)
        }),
        None,
    )
    .unwrap();
    assert!(!outcomes[0].passed && outcomes[0].moved == 30 && seen.get() > 30, "{outcomes:?}");
}

#[test]
fn a_function_that_is_rough_everywhere_fails() {
    // Bent at every point that a move can reach.
    let rough = |x: f64| (x * 1e9 + 1.0).sin().abs();
    let outcomes = check(&case(vec![0.0], rough, |_| 0.0), None).unwrap();
    assert!(!outcomes[0].passed, "{outcomes:?}");
}

#[test]
fn probes_hold_the_largest_and_no_entry_twice() {
    let gradient = normals("gradient", 500);
    let mut entries = probes("name", &gradient, Effort::default());
    let least = entries[..LARGEST_PROBES].iter().map(|&e| gradient[e].abs()).fold(f64::MAX, f64::min);
    assert_eq!(gradient.iter().filter(|g| g.abs() >= least).count(), LARGEST_PROBES);
    entries.sort_unstable();
    entries.dedup();
    assert_eq!(entries.len(), RANDOM_PROBES + LARGEST_PROBES);
    let seeded = probes("name", &gradient, Effort { seed: 1, ..Effort::default() });
    assert_ne!(seeded[LARGEST_PROBES..], probes("name", &gradient, Effort::default())[LARGEST_PROBES..]);
}
