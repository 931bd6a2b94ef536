//! Embedded problems, their tokenizer, and readers of real data.

mod builtin_tokenizer;
mod datasets;
mod graph_problems;
mod special_tokens;
mod word_problems;

use latch::text::{GraphProblems, Problem, WordProblems};

/// Problems of every kind, longer and larger ones too.
fn problems(count: u32) -> Vec<Problem> {
    let words = WordProblems { steps: 1..=6, bound: 12_345, ..every_story() };
    let graphs = GraphProblems { path: 1..=5, kinds: 22, edges: 36 };
    (0..count)
        .flat_map(|i| {
            let small = every_story().problem(3, i).unwrap();
            [small, words.problem(4, i).unwrap(), graphs.problem(5, i).unwrap()]
        })
        .collect()
}

fn every_story() -> WordProblems {
    WordProblems { templates: latch::text::Templates::All, ..WordProblems::default() }
}
