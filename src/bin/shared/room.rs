//! What the memory of generation depends on, and what can be given to make it less.

use latch::model::Precision;
use latch::run::admission::Remedy;

/// Sizes that may be asked for.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Answers at once.
    pub rows: usize,
    /// Most tokens of an answer.
    pub tokens: usize,
    /// Storage of matrices and activations.
    pub dtype: Precision,
}

/// Fewer answers at once (`rows` says how that is asked for), matrices and activations in bf16, shorter answers.
pub fn remedies<'a>(rows: &'a dyn Fn(usize) -> String) -> Vec<Remedy<'a, Plan>> {
    vec![
        Remedy::new(
            |plan: &Plan| (plan.rows > 1).then_some(Plan { rows: plan.rows / 2, ..*plan }),
            |plan| rows(plan.rows),
        ),
        Remedy::new(
            |plan: &Plan| match plan.dtype {
                Precision::F32 => Some(Plan { dtype: Precision::Bf16, ..*plan }),
                Precision::Bf16 => Some(Plan { dtype: Precision::Bf16Activations, ..*plan }),
                _ => None,
            },
            |plan| format!("--dtype {}", plan.dtype),
        ),
        Remedy::new(
            |plan: &Plan| (plan.tokens > 1).then_some(Plan { tokens: plan.tokens / 2, ..*plan }),
            |plan| format!("--max-new-tokens {}", plan.tokens),
        ),
    ]
}
