//! Intervals and tests against published tables, closed forms and integers.

use latch::learn::intervals::{
    Interval, discordant, mcnemar, mean, paired_bootstrap, proportion, student_quantile,
};

#[test]
fn student_quantiles_are_those_of_tables() {
    // 97.5 % points; for 1 and 2 degrees the closed forms tan(0.475 pi) and 0.95 sqrt(2 / (1 - 0.95^2)).
    let closed = [(std::f64::consts::PI * 0.475).tan(), 0.95 * (2.0 / (1.0 - 0.95_f64 * 0.95)).sqrt()];
    let table =
        [(4.0, 2.776_445_105_2), (9.0, 2.262_157_162_7), (30.0, 2.042_272_456_3), (1000.0, 1.962_339_080_8)];
    for (freedom, expected) in [(1.0, closed[0]), (2.0, closed[1])].into_iter().chain(table) {
        let found = student_quantile(0.975, freedom);
        assert!((found / expected - 1.0).abs() < 1e-10, "{freedom}: {found} {expected}");
    }
    assert!((student_quantile(0.975, 1e8) - 1.959_963_984_54).abs() < 1e-7);
    assert!((student_quantile(0.75, 1.0) - 1.0).abs() < 1e-12);
}

#[test]
fn mean_of_five_seeds_by_hand() {
    // Mean 3, variance 10/4; half width t * sqrt(0.5).
    let found = mean(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
    let half = 2.776_445_105_2 * 0.5_f64.sqrt();
    assert!((found.estimate - 3.0).abs() < 1e-15);
    assert!((found.low - (3.0 - half)).abs() < 1e-9 && (found.high - (3.0 + half)).abs() < 1e-9);
    assert_eq!(mean(&[2.0, 2.0]).unwrap(), Interval { estimate: 2.0, low: 2.0, high: 2.0 });
    assert!(mean(&[1.0]).is_err() && mean(&[1.0, f64::NAN]).is_err());
}

#[test]
fn wilson_by_hand() {
    // At 0 of n the upper end is z^2 / (n + z^2).
    let squared = 1.959_963_984_540_054_f64.powi(2);
    let none = proportion(0, 10).unwrap();
    assert!(none.low == 0.0 && (none.high - squared / (10.0 + squared)).abs() < 1e-15);
    let all = proportion(10, 10).unwrap();
    assert!(all.high == 1.0 && (all.low - 10.0 / (10.0 + squared)).abs() < 1e-15);
    // The size of GSM8K's test set; ends by the formula with Python's integers and floats.
    let some = proportion(360, 1319).unwrap();
    assert!(
        (some.low - 0.2495789181294691).abs() < 1e-12 && (some.high - 0.2976079378570334).abs() < 1e-12,
        "{some:?}"
    );
    assert!(proportion(1, 0).is_err() && proportion(3, 2).is_err());
}

#[test]
fn mcnemar_is_a_binomial_tail() {
    assert_eq!(mcnemar(0, 0), 1.0);
    assert_eq!(mcnemar(4, 4), 1.0);
    // 2 (1 + 15 + 105 + 455) / 2^15.
    assert!((mcnemar(3, 12) - 0.035_156_25).abs() < 1e-14);
    assert_eq!(mcnemar(3, 12), mcnemar(12, 3));
    // 2 sum_{i <= 40} C(100, i) / 2^100 by integers.
    assert!((mcnemar(40, 60) - 0.05688793364098079).abs() < 1e-13);
    assert!(mcnemar(0, 5000) >= 0.0 && mcnemar(2400, 2600) > 0.004 && mcnemar(2400, 2600) < 0.006);
    let (before, after) = ([true, true, false, false, true], [true, false, true, true, true]);
    assert_eq!(discordant(&before, &after).unwrap(), (1, 2));
    assert!(discordant(&before, &after[1..]).is_err());
}

#[test]
fn the_bootstrap_is_deterministic_and_covers() {
    let before: Vec<f64> = (0..400).map(|i| f64::from(i % 3 == 0)).collect();
    // 40 items gained, 8 lost.
    let after: Vec<f64> = (0..400)
        .map(|i| match (i % 3 == 0, i < 120, i >= 376) {
            (false, true, _) if i % 2 == 0 => 1.0,
            (true, _, true) => 0.0,
            (right, ..) => f64::from(right),
        })
        .collect();
    let found = paired_bootstrap(&before, &after, 2000, 7).unwrap();
    assert_eq!(found, paired_bootstrap(&before, &after, 2000, 7).unwrap());
    // Of zeros and ones the ends have few values; of these all resamples differ.
    let fine: Vec<f64> = (0..50).map(|i| (f64::from(i) * 0.618).fract()).collect();
    let ends = |seed| paired_bootstrap(&[0.0; 50], &fine, 400, seed).unwrap().difference;
    assert!(ends(7) == ends(7) && ends(7) != ends(8));
    let gained = before.iter().zip(&after).filter(|(b, a)| a > b).count() as f64;
    let lost = before.iter().zip(&after).filter(|(b, a)| a < b).count() as f64;
    assert_eq!((gained, lost), (40.0, 8.0));
    let difference = found.difference;
    assert!((difference.estimate - 0.08).abs() < 1e-15);
    // The normal interval: standard deviation of one difference sqrt(0.12 - 0.08^2).
    let half = 1.96 * ((0.12_f64 - 0.0064) / 400.0).sqrt();
    assert!((difference.low - (0.08 - half)).abs() < 0.004, "{difference:?} {half}");
    assert!((difference.high - (0.08 + half)).abs() < 0.004, "{difference:?} {half}");
    assert_eq!(found.not_better, 0.0);
    // Against itself nothing is better; the pairing leaves no width.
    let same = paired_bootstrap(&before, &before, 100, 1).unwrap();
    assert_eq!(same.difference, Interval { estimate: 0.0, low: 0.0, high: 0.0 });
    assert_eq!(same.not_better, 1.0);
    assert!(paired_bootstrap(&before, &after[1..], 100, 1).is_err());
    assert!(paired_bootstrap(&before, &after, 10, 1).is_err());
}
