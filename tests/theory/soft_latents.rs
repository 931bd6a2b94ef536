//! Algorithms C.3: bias and variance of the estimators of soft latents on a toy whose expectations are integrals.
//!
//! The toy: embeddings E (tied to the head) and a matrix W. A position with input x has h = W x and logits E h. The
//! input of position 0 is a token, that of position t + 1 the mixture y_t^T E over a fixed support, y_t = softmax((a_t +
//! eps_t) / tau); the last position's logits give the answer, one token, and its reward.
//!
//! Expectations over the noise are sums over a grid, which for analytic integrands converge faster than any power of
//! the step. y and the density score depend on differences of a step's noise alone: with E = exp(-eps) they are
//! functions of s = E / sum E, uniform on the simplex, whose log-ratios to the last have the density (n-1)! prod s.
//! sum E is independent of s and has a Gamma(n) law; of it gumbel_g takes two Gauss points, exact for cubics.

mod estimators;
mod toy;

use crate::models::apart;
use estimators::{
    AUXILIARY, DETACHED, EXACT, GAUSS, GAUSS_LOGITS, GUMBEL_G, KEPT, NONE, PATHWISE, RELEASED, Rows, STRAIGHT,
};
use toy::{
    Bonus, Kept, Node, ONE_STEP, PARAMETERS, TWO_STEPS, Toy, VOCABULARY, differences, nodes, parameters,
};

#[test]
fn the_grid_is_the_law_of_the_noise() {
    for n in [2, 3] {
        for sums in [false, true] {
            let all = nodes(n, sums);
            let mean =
                |f: &dyn Fn(&[f64]) -> f64| all.iter().map(|node| node.weight * f(&node.noise)).sum::<f64>();
            assert!((mean(&|_| 1.0) - 1.0).abs() < 1e-5, "{n} ids: total {}", mean(&|_| 1.0));
            for i in 0..n {
                // exp(-eps) is exponential: mean 1, mean square 2. With sum E held at n the square is n^2 E[s^2].
                let (first, second) = (mean(&|eps| (-eps[i]).exp()), mean(&|eps| (-2.0 * eps[i]).exp()));
                assert!((first - 1.0).abs() < 1e-5, "{n} ids: {first}");
                let expected = if sums { 2.0 } else { 2.0 * n as f64 / (n as f64 + 1.0) };
                assert!((second - expected).abs() < 1e-4, "{n} ids: {second} {expected}");
            }
        }
    }
    // The same expectation from the noise itself, without the reduction to differences: three dimensions for one step.
    let theta = parameters();
    let (step, points) = (0.5, 60);
    let axis: Vec<(f64, f64)> = (0..points)
        .map(|i| -4.0 + step * f64::from(i))
        .map(|eps: f64| (eps, step * (-eps - (-eps).exp()).exp()))
        .collect();
    let mut total = 0.0;
    for a in &axis {
        for b in &axis {
            for c in &axis {
                let node = Node { noise: vec![a.0, b.0, c.0], weight: a.1 * b.1 * c.1 };
                if node.weight > 1e-13 {
                    total += node.weight * ONE_STEP.value(&ONE_STEP.run(&theta, &[&node], false));
                }
            }
        }
    }
    let reduced = ONE_STEP.expectation(&theta);
    assert!((total - reduced).abs() < 1e-5, "{total} {reduced}");
}

#[test]
fn pathwise_and_the_exact_scores_are_unbiased_and_the_others_are_not() {
    for (title, toy) in [("one soft step", ONE_STEP), ("two soft steps", TWO_STEPS)] {
        let all = [PATHWISE, EXACT, AUXILIARY, DETACHED, RELEASED, KEPT, STRAIGHT, NONE];
        let found = toy.table(title, &all);
        for (estimator, (bias, _)) in all.iter().zip(&found) {
            let unbiased = ["pathwise", "concrete", "gumbel_g"].contains(&estimator.name);
            assert_eq!(*bias < 1e-4, unbiased, "{title}, {}: {bias:e}", estimator.name);
            assert!(unbiased || *bias > 1e-2, "{title}, {}: {bias:e}", estimator.name);
        }
        // concrete is the expectation of gumbel_g given what was sampled.
        assert!(found[1].1 < found[2].1, "{title}");
    }
}

/// Noise on embeddings instead of logits (Soft Tokens): its density is unbiased with the gradient into the mean's
/// embeddings, and so is the way through the mixture with the noise held.
#[test]
fn the_density_of_noisy_embeddings_is_unbiased() {
    let one = Toy { embedded: Some((0.4, 9)), ..ONE_STEP };
    // Less noise where each step has fewer points.
    let two = Toy { embedded: Some((0.2, 6)), ..TWO_STEPS };
    for (title, toy) in [("one noisy embedding", one), ("two noisy embeddings", two)] {
        let all = [PATHWISE, GAUSS, GAUSS_LOGITS, NONE];
        let found = toy.table(title, &all);
        for (estimator, (bias, _)) in all.iter().zip(&found) {
            let unbiased = ["pathwise", "gauss_embed"].contains(&estimator.name);
            assert_eq!(*bias < 1e-4, unbiased, "{title}, {}: {bias:e}", estimator.name);
            assert!(unbiased || *bias > 1e-2, "{title}, {}: {bias:e}", estimator.name);
        }
        // A density knows what was drawn; the way through the mixture knows where the reward comes from.
        assert!(found[0].1 < found[1].1, "{title}");
    }
}

#[test]
fn exact_scores_of_soft_steps_have_mean_zero_and_the_surrogate_has_not() {
    let theta = parameters();
    for estimator in [EXACT, AUXILIARY, RELEASED] {
        let grid = TWO_STEPS.grid(&theta, estimator.score == Some(GUMBEL_G));
        let mut mean = [0.0; PARAMETERS];
        for first in &grid[0] {
            let mut rows = Rows { trajectories: Vec::new(), of: Vec::new() };
            for second in &grid[1] {
                rows.of.push((rows.trajectories.len(), [0.0; VOCABULARY], 1.0, first.weight * second.weight));
                rows.trajectories.push(TWO_STEPS.run(&theta, &[first, second], false));
            }
            for (gradient, of) in TWO_STEPS.gradients(&theta, &rows, &estimator).iter().zip(&rows.of) {
                mean.iter_mut().zip(gradient).for_each(|(mean, g)| *mean += of.3 * g);
            }
        }
        let largest = mean.iter().fold(0.0, |largest: f64, m| largest.max(m.abs()));
        println!("E[score] of {}: largest entry {largest:.1e}", estimator.name);
        assert_eq!(largest < 1e-5, estimator.name != RELEASED.name, "{}: {largest:e}", estimator.name);
    }
}

/// A reward that reads proxies drawn from y: concrete scores all that was sampled, pathwise misses how y moves the draw.
#[test]
fn drawn_proxies_in_the_reward_bias_pathwise() {
    let toy = Toy { bonus: Bonus::Drawn(1), ..ONE_STEP };
    let all = [PATHWISE, EXACT, AUXILIARY, RELEASED, KEPT, NONE];
    let found = toy.table("one soft step, a drawn proxy in the reward", &all);
    assert!(found[1].0 < 1e-4 && found[2].0 < 1e-4, "{found:?}");
    assert!(found[0].0 > 1e-2, "{found:?}");
}

/// Toys whose second step keeps, or says, something else where two of its logits cross.
fn jumping() -> [(&'static str, Toy); 3] {
    let kept: &'static [Kept] = &[Kept::Fixed(&[1, 4]), Kept::Largest(2)];
    let truncated = Toy { kept, ..TWO_STEPS };
    let kept: &'static [Kept] = &[Kept::Fixed(&[1, 4]), Kept::Fixed(&[2, 4])];
    [
        ("two soft steps, the second keeps its two largest", truncated),
        (
            "two soft steps, the largest proxy in the reward",
            Toy { kept, bonus: Bonus::Largest(4), ..TWO_STEPS },
        ),
        ("both", Toy { bonus: Bonus::Largest(4), ..truncated }),
    ]
}

/// Twice the cells give the same gradient, up to a hundredth of the smallest bias that is claimed of these toys.
#[test]
fn the_cells_between_changes_are_narrow_enough() {
    for (title, toy) in jumping() {
        let gradient = |toy: Toy| differences(|theta| toy.expectation(theta));
        let finer = gradient(Toy { cells: 2 * toy.cells, ..toy });
        let error = apart(&gradient(toy), &finer);
        println!("{title}: these cells leave an error of {error:.1e}");
        assert!(error < 1e-5, "{title}: {error:e}");
    }
}

/// Ids that the filter keeps, and the largest clean logit, change where logits cross. No estimator sees that.
#[test]
fn truncation_and_largest_proxies_bias_every_estimator() {
    let toys = jumping();
    let (truncated, theta) = (toys[0].1, parameters());
    let first = &truncated.grid(&theta, false)[0];
    let middle = Node { noise: vec![0.3, -0.2], weight: 1.0 };
    let supports: std::collections::BTreeSet<Vec<u32>> =
        first.iter().map(|node| truncated.run(&theta, &[node, &middle], false).kept[1].clone()).collect();
    println!("kept by the second step: {supports:?}");
    assert!(supports.len() > 1, "the filter never changes its mind");
    let all = [PATHWISE, EXACT, RELEASED, KEPT, NONE];
    for (title, toy) in toys {
        let found = toy.table(title, &all);
        assert!(found.iter().all(|(bias, _)| *bias > 1e-3), "{title}: {found:?}");
    }
}
