//! Lengths and angles of states, in f64 on the host.

/// The sum of products of `a` and `b`, as far as the shorter goes.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The Euclidean norm.
pub fn norm(vector: &[f64]) -> f64 {
    dot(vector, vector).sqrt()
}

/// The cosine of the angle between `a` and `b` of the norms `norms`; 0 where one of them is 0.
pub fn cosine(a: &[f64], b: &[f64], norms: [f64; 2]) -> f64 {
    dot(a, b) / (norms[0] * norms[1]).max(f64::MIN_POSITIVE)
}
