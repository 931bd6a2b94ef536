//! Estimates against brute force over every subset.

use latch::learn::estimators::{average_by_probability, coverage, maj_at_k, majority, pass_at_k};

/// Every subset of `k` of `0..n`, in rising order inside.
fn subsets(n: usize, k: usize) -> Vec<Vec<usize>> {
    (0_u32..1 << n)
        .filter(|bits| bits.count_ones() as usize == k)
        .map(|bits| (0..n).filter(|i| bits >> i & 1 == 1).collect())
        .collect()
}

/// Eight answers with ties of every kind.
fn examples() -> Vec<Vec<u32>> {
    vec![
        vec![1, 2, 1, 3, 2, 1, 4, 2],
        vec![5, 5, 5, 5, 5, 5, 5, 5],
        vec![1, 2, 3, 4, 5, 6, 7, 8],
        vec![9, 9, 1, 1, 2, 2, 3, 3],
        vec![3, 1, 1, 1, 3, 3, 2, 2],
        vec![2],
        vec![1, 2],
    ]
}

#[test]
fn pass_at_k_is_the_share_of_subsets_with_a_right_answer() {
    for n in 1..=9 {
        for right in 0..=n {
            for k in 1..=n {
                let all = subsets(n, k);
                let passing = all.iter().filter(|subset| subset.iter().any(|&i| i < right)).count();
                let found = pass_at_k(n, right, k).unwrap();
                assert!((found - passing as f64 / all.len() as f64).abs() < 1e-14, "{n} {right} {k}");
            }
        }
    }
    assert!((pass_at_k(100_000, 1, 50_000).unwrap() - 0.5).abs() < 1e-10);
    for (n, right, k) in [(4, 5, 1), (4, 1, 0), (4, 1, 5), (0, 0, 0)] {
        assert!(pass_at_k(n, right, k).is_err());
    }
}

#[test]
fn maj_at_k_is_the_share_of_subsets_whose_majority_is_right() {
    for answers in examples() {
        for right in 1..=9 {
            for k in 1..=answers.len() {
                let all = subsets(answers.len(), k);
                let winning = all.iter().filter(|subset| {
                    // The most common; of several, the one seen first.
                    let count = |a: u32| subset.iter().filter(|&&i| answers[i] == a).count();
                    let most = subset.iter().map(|&i| count(answers[i])).max().unwrap();
                    answers[*subset.iter().find(|&&i| count(answers[i]) == most).unwrap()] == right
                });
                let expected = winning.count() as f64 / all.len() as f64;
                let found = maj_at_k(&answers, |&a| a == right, k).unwrap();
                assert!((found - expected).abs() < 1e-13, "{answers:?} {right} {k}: {found} {expected}");
            }
        }
    }
}

#[test]
fn some_answer_always_wins() {
    let answers: Vec<usize> = (0..200).map(|i| (i * i + 3 * i) % 23 % 11).collect();
    for k in [1, 2, 64, 199, 200] {
        let total: f64 = (0..11).map(|right| maj_at_k(&answers, |&a| a == right, k).unwrap()).sum();
        assert!((total - 1.0).abs() < 1e-10, "{k}: {total}");
    }
    let whole = majority(&answers).unwrap();
    assert_eq!(maj_at_k(&answers, |&a| a == answers[whole], 200).unwrap(), 1.0);
    assert!(maj_at_k(&answers, |_| true, 0).is_err() && maj_at_k(&answers, |_| true, 201).is_err());
    assert!(maj_at_k(&vec![1; 3000], |_| true, 1500).unwrap_err().to_string().contains("beyond f64"));
}

#[test]
fn votes_and_probabilities_may_choose_differently() {
    assert_eq!(majority(&["b", "a", "a", "b", "c"]), Some(0));
    assert_eq!(majority(&["c", "a", "b", "a"]), Some(1));
    assert_eq!(majority::<u32>(&[]), None);
    // Two of three masks prefer the first answer by little, one the second by much.
    let pi: [[f64; 3]; 2] = [[0.5, 0.5, 0.01], [0.4, 0.4, 0.9]];
    let logs: Vec<Vec<f64>> = pi.iter().map(|row| row.iter().map(|p| p.ln()).collect()).collect();
    assert_eq!(average_by_probability(&logs), Some(1));
    // Far below the smallest f64 probability.
    let shifted: Vec<Vec<f64>> = logs.iter().map(|row| row.iter().map(|l| l - 2000.0).collect()).collect();
    assert_eq!(average_by_probability(&shifted), Some(1));
    assert_eq!(average_by_probability(&[vec![f64::NEG_INFINITY], vec![f64::NEG_INFINITY]]), Some(0));
    assert_eq!(average_by_probability(&[]), None);
    assert!(coverage(&[false, true]) && !coverage(&[false]) && !coverage(&[]));
}
