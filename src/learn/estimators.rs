//! Estimates from several answers to one problem: pass@k, maj@k, coverage, and the Bayesian model average
//! (algorithms B.7, E). All are exact expectations or plain counts; nothing is drawn.

use crate::base::{Error, Result};

/// Probability that at least one of `k` answers drawn without replacement from `n`, of which `right` are right, is
/// right: `1 - C(n - right, k) / C(n, k)` (Chen et al., arXiv 2107.03374), in the product form that cannot
/// overflow.
///
/// # Errors
/// `k` of 0 or above `n`, or more right answers than answers.
pub fn pass_at_k(n: usize, right: usize, k: usize) -> Result<f64> {
    check_subset(n, k)?;
    if right > n {
        return Err(Error::shape("right answers", right, format!("at most {n}")));
    }
    if n - right < k {
        return Ok(1.0);
    }
    Ok(1.0 - (n - right + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product::<f64>())
}

/// Whether any answer is right: pass@n.
pub fn coverage(right: &[bool]) -> bool {
    right.contains(&true)
}

/// Position, in `answers`, of the first occurrence of the most common answer; of several, the one that occurs
/// first. This is the Bayesian model average by vote when each answer is greedy under its own mask.
pub fn majority<A: PartialEq>(answers: &[A]) -> Option<usize> {
    let mut best: Option<(usize, usize)> = None;
    for (first, answer) in answers.iter().enumerate() {
        if answers[..first].contains(answer) {
            continue;
        }
        let votes = answers[first..].iter().filter(|&other| other == answer).count();
        if best.is_none_or(|(most, _)| votes > most) {
            best = Some((votes, first));
        }
    }
    best.map(|(_, first)| first)
}

/// Probability that the majority of `k` answers drawn without replacement is right, exactly. Ties go to the answer
/// whose first occurrence in the subset has the smallest index. Give unreadable answers as a value of their own, or
/// leave them out, and say which.
///
/// For every answer a, every first index i and every count j of it, the rest of the subset is counted by the
/// product over the other answers b of `sum_c C(n_b, c) x^c` with c < j, or c = j among the indices after i; the
/// coefficient of x^(k-j) is taken. O(n^2 k^2) in the worst case.
///
/// # Errors
/// `k` of 0 or above the number of answers, or so many answers that C(n, k) leaves f64.
pub fn maj_at_k<A: PartialEq>(answers: &[A], right: impl Fn(&A) -> bool, k: usize) -> Result<f64> {
    let n = answers.len();
    check_subset(n, k)?;
    let binomial = Binomials::new(n);
    let all = binomial.of(n, k);
    if !all.is_finite() {
        return Err(Error::input(
            "maj@k",
            format!("the number of subsets of {k} of {n} answers is beyond f64"),
            "use at most 1000 answers",
        ));
    }
    // Indices of each distinct answer.
    let mut places: Vec<Vec<usize>> = Vec::new();
    for (index, answer) in answers.iter().enumerate() {
        match places.iter_mut().find(|places| answers[places[0]] == *answer) {
            Some(places) => places.push(index),
            None => places.push(vec![index]),
        }
    }
    let mut won = 0.0;
    for (a, own) in places.iter().enumerate().filter(|(_, own)| right(&answers[own[0]])) {
        for (order, &first) in own.iter().enumerate() {
            for votes in 1..=(own.len() - order).min(k) {
                let mut ways = vec![0.0; k - votes + 1];
                ways[0] = binomial.of(own.len() - order - 1, votes - 1);
                for (_, other) in places.iter().enumerate().filter(|&(b, _)| b != a) {
                    let after = other.iter().filter(|&&index| index > first).count();
                    let of =
                        |count: usize| binomial.of(if count == votes { after } else { other.len() }, count);
                    for size in (0..ways.len()).rev() {
                        ways[size] = (0..=votes.min(size)).map(|count| of(count) * ways[size - count]).sum();
                    }
                }
                won += ways[k - votes] / all;
            }
        }
    }
    Ok(won)
}

/// The Bayesian model average over candidate answers: the candidate with the largest `sum_m pi(a | m)`, given
/// `ln pi(a | m)` as one row a candidate, one column a mask. Of several, the first; none without candidates.
pub fn average_by_probability(log_probabilities: &[Vec<f64>]) -> Option<usize> {
    let log_sum = |row: &Vec<f64>| {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match largest == f64::NEG_INFINITY {
            true => largest,
            false => largest + row.iter().map(|value| (value - largest).exp()).sum::<f64>().ln(),
        }
    };
    let mut best: Option<(usize, f64)> = None;
    for (candidate, row) in log_probabilities.iter().enumerate() {
        let value = log_sum(row);
        if best.is_none_or(|(_, most)| value > most) {
            best = Some((candidate, value));
        }
    }
    best.map(|(candidate, _)| candidate)
}

fn check_subset(n: usize, k: usize) -> Result<()> {
    match (1..=n).contains(&k) {
        true => Ok(()),
        false => Err(Error::input(
            "k",
            format!("found {k} of {n} answers, expected 1 to {n}"),
            "sample more answers, or lower k",
        )),
    }
}

/// C(n, k) in f64: exact below 2^53.
struct Binomials(Vec<Vec<f64>>);

impl Binomials {
    fn new(n: usize) -> Binomials {
        let mut rows: Vec<Vec<f64>> = vec![vec![1.0]];
        for row in 1..=n {
            let above = &rows[row - 1];
            let at = |k: usize| above.get(k).copied().unwrap_or(0.0);
            rows.push((0..=row).map(|k| at(k) + if k > 0 { at(k - 1) } else { 0.0 }).collect());
        }
        Binomials(rows)
    }

    fn of(&self, n: usize, k: usize) -> f64 {
        self.0[n].get(k).copied().unwrap_or(0.0)
    }
}
