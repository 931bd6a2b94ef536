//! The gates between a token's embedding and a mixture's (HRPO, arXiv 2505.18454; algorithms C.4). Operation:
//! ops/gated_mixture.rs.
//!
//! ```text
//! r = sigmoid(p)   i = sigmoid(q)          p, q: the gates' pre-activations, products of the token's embedding e
//! L = -8 softplus(-lambda) r               a = exp(L)       b = sqrt(1 - a^2) = sqrt(-expm1(2 L))
//! forward   x = a e + b i h                e: the token's embedding, h: the mixture's, a constant
//! backward  de = dx a                      (what flows through p and q comes on top, from the products)
//!           dL = dx (a e - i h a^2 / b)    the second term is 0 where b is: its limit with r (or softplus) -> 0
//!           dp = dL (-8 softplus(-lambda)) r (1 - r)
//!           dq = dx b h i (1 - i)
//!           dlambda[c] += sum over rows of dL 8 sigmoid(-lambda) r
//! ```
//!
//! 1 - a^2 is never a difference: with a near 1, where training begins, it would have lost half its digits.

use super::float::Float;
use super::gemm::add_column_sums;
use super::parallel;

/// The operands, `[rows, cols]` each; `lambda[cols]`.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a, T> {
    /// e.
    pub token: &'a [T],
    /// h.
    pub soft: &'a [T],
    /// p.
    pub reset: &'a [T],
    /// q.
    pub input: &'a [T],
    /// What each column's rate comes from.
    pub lambda: &'a [T],
}

/// softplus(-lambda), from f64: e^-lambda is near 1e-3 where training begins.
fn softplus(lambda: f64) -> f64 {
    (-lambda.abs()).exp().ln_1p() + (-lambda).max(0.0)
}

/// sigmoid(-lambda).
fn slope(lambda: f64) -> f64 {
    1.0 / (1.0 + lambda.exp())
}

/// A number of each column.
fn columns<T: Float>(lambda: &[T], of: impl Fn(f64) -> f64) -> Vec<T> {
    lambda.iter().map(|lambda| T::from_f64(of(lambda.to_f64()))).collect()
}

/// The gates of one element.
struct Gates<T> {
    /// The token's share.
    a: T,
    /// The mixture's.
    b: T,
    reset: T,
    input: T,
}

#[inline(always)]
fn gates<T: Float>(rate: T, reset: T, input: T) -> Gates<T> {
    let reset = reset.sigmoid();
    let log = rate * reset;
    let rest = T::from_f64(-(log + log).to_f64().exp_m1());
    Gates { a: log.exp(), b: rest.sqrt(), reset, input: input.sigmoid() }
}

/// dL of one element.
#[inline(always)]
fn d_log<T: Float>(gates: &Gates<T>, dx: T, token: T, soft: T) -> T {
    let through_b = match gates.b > T::ZERO {
        true => gates.input * soft * (gates.a * gates.a / gates.b),
        false => T::ZERO,
    };
    dx * gates.a.mul_add(token, -through_b)
}

impl<T: Float> Operands<'_, T> {
    /// Calls `f(column, index)` for each element of the rows that begin with row `first`.
    #[inline(always)]
    fn each(&self, first: usize, elements: usize, mut f: impl FnMut(usize, usize, usize)) {
        let cols = self.lambda.len();
        for n in 0..elements {
            f(n, n % cols, first * cols + n);
        }
    }

    #[inline(always)]
    fn gates(&self, rate: &[T], column: usize, at: usize) -> Gates<T> {
        gates(rate[column], self.reset[at], self.input[at])
    }
}

/// x = a e + b i h.
pub fn forward<T: Float>(operands: Operands<T>, x: &mut [T]) {
    let cols = operands.lambda.len();
    let rate: Vec<T> = columns(operands.lambda, |lambda| -8.0 * softplus(lambda));
    parallel::rows(x, cols, 60 * cols, |first, x| {
        operands.each(first, x.len(), |n, column, at| {
            let gates = operands.gates(&rate, column, at);
            x[n] = gates.a.mul_add(operands.token[at], gates.b * (gates.input * operands.soft[at]));
        });
    });
}

/// Gradients of the token's embedding and of the two pre-activations, assigned.
pub fn backward<T: Float>(
    dx: &[T],
    operands: Operands<T>,
    dtoken: &mut [T],
    (dreset, dinput): (&mut [T], &mut [T]),
) {
    let cols = operands.lambda.len();
    let rate: Vec<T> = columns(operands.lambda, |lambda| -8.0 * softplus(lambda));
    parallel::rows(dtoken, cols, 60 * cols, |first, dtoken| {
        operands.each(first, dtoken.len(), |n, column, at| {
            dtoken[n] = dx[at] * operands.gates(&rate, column, at).a;
        });
    });
    parallel::rows2((dreset, cols), (dinput, cols), 90 * cols, |first, dreset, dinput| {
        operands.each(first, dreset.len(), |n, column, at| {
            let gates = operands.gates(&rate, column, at);
            let d_log = d_log(&gates, dx[at], operands.token[at], operands.soft[at]);
            dreset[n] = d_log * rate[column] * (gates.reset * (T::ONE - gates.reset));
            dinput[n] = dx[at] * gates.b * operands.soft[at] * (gates.input * (T::ONE - gates.input));
        });
    });
}

/// The gradient of lambda, added: each row's part to `terms`, assigned, then their sum in row order.
pub fn backward_lambda<T: Float>(dx: &[T], operands: Operands<T>, terms: &mut [T], dlambda: &mut [T]) {
    let cols = operands.lambda.len();
    let rate: Vec<T> = columns(operands.lambda, |lambda| -8.0 * softplus(lambda));
    let slope: Vec<T> = columns(operands.lambda, |lambda| 8.0 * slope(lambda));
    parallel::rows(terms, cols, 60 * cols, |first, terms| {
        operands.each(first, terms.len(), |n, column, at| {
            let gates = operands.gates(&rate, column, at);
            let d_log = d_log(&gates, dx[at], operands.token[at], operands.soft[at]);
            terms[n] = d_log * slope[column] * gates.reset;
        });
    });
    add_column_sums(terms, dlambda);
}
